from __future__ import annotations

import math

import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.neighbors import NearestNeighbors

from refresher_runner.metrics.generation import LossByTime, frechet_distance, judged, precision_recall
from refresher_runner.report import Matrix, Text


def test_frechet_distance_of_samples_is_scipys_formula():
    a, b = torch.randn(60, 5) @ torch.randn(5, 5), torch.randn(80, 5) @ torch.randn(5, 5) + 1
    mean_a, mean_b = a.double().mean(0).numpy(), b.double().mean(0).numpy()
    cov_a, cov_b = a.double().T.cov().numpy(), b.double().T.cov().numpy()
    expected = ((mean_a - mean_b) ** 2).sum() + (cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real).trace()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_known_gaussians():
    """In one dimension (m_a - m_b)^2 + (s_a - s_b)^2."""
    a, b = 2 * torch.randn(400_000, 1) + 1, 0.5 * torch.randn(400_000, 1) - 2
    assert frechet_distance(a, b) == pytest.approx(9 + 2.25, rel=0.02)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-4)


def test_frechet_distance_where_features_are_constant():
    """More features than pictures, some of them dead: no NaN."""
    a, b = torch.randn(5, 12), torch.randn(5, 12)
    a[:, 3:6] = b[:, 3:6] = 0
    assert math.isfinite(frechet_distance(a, b))
    assert frechet_distance(a, b) > 0


def test_precision_and_recall_are_those_of_sklearns_neighbours():
    real, drawn = torch.randn(70, 3), 1.5 * torch.randn(60, 3)

    def covered(manifold, points):
        reach = NearestNeighbors(n_neighbors=4).fit(manifold).kneighbors(manifold)[0][:, 3]
        return sum(bool(((torch.tensor(manifold) - p).norm(dim=1) <= torch.tensor(reach)).any()) for p in points) / len(points)

    expected = covered(real.numpy(), drawn), covered(drawn.numpy(), real)
    assert precision_recall(real, drawn) == pytest.approx(expected)


def test_precision_without_recall_and_the_reverse():
    """One mode of two is drawn: all drawn are real, half of the real are drawn."""
    real = torch.cat([torch.randn(100, 2), torch.randn(100, 2) + 50])
    one_mode = torch.randn(200, 2)
    precision, recall = precision_recall(real, one_mode)
    assert precision > 0.85
    assert recall == pytest.approx(0.5, abs=0.06)
    precision, recall = precision_recall(one_mode, real)
    assert precision == pytest.approx(0.5, abs=0.06)
    assert recall > 0.85


class Reader:
    name = "a reader of corners"

    def __call__(self, images):
        return images.flatten(1), torch.nn.functional.one_hot(images[:, 0, 0, 0].long(), 3).float()


def test_asked_and_recognised_are_counted():
    drawn, asked = torch.rand(6, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    drawn[:, 0, 0, 0] = torch.tensor([0.0, 1, 2, 1, 1, 0])
    report = judged(Reader(), torch.rand(9, 1, 2, 2), drawn, asked, ("a", "b", "c"))
    matrix, about = report["confusion_matrix"], report["judge"]
    assert isinstance(matrix, Matrix)
    assert matrix.values.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 1]]
    assert report["recognised_as_asked"] == pytest.approx(4 / 6)
    assert isinstance(about, Text)
    assert "a reader of corners" in about.markdown
    assert "not of Inception" in about.markdown
    assert "recognised_as_asked" not in judged(Reader(), torch.rand(9, 1, 2, 2), drawn, None, ("a", "b", "c"))


def test_losses_of_quarters():
    metric = LossByTime(8)
    metric.update(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 1, 7]))
    metric.update(torch.tensor([2.0]), torch.tensor([1]))
    assert {k: v.item() for k, v in metric.compute().items()} == {"quarter1": 2.0, "quarter4": 5.0}
