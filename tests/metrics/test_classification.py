"""Every metric against scikit-learn, or against a sum by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as reference
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from refresher_runner.metrics.classification import THRESHOLDS, classification_metrics
from refresher_runner.report import Matrix, PRCurve

K = 7
CLASSES = tuple("abcdefg")


def _sample(n: int = 500) -> tuple[Tensor, Tensor]:
    """Logits that are right more often than not; class g never occurs, and f is never predicted."""
    targets = torch.randint(0, K - 1, (n,))
    logits = torch.randn(n, K) + 1.5 * torch.nn.functional.one_hot(targets, K)
    logits[:, 5] -= 20
    return logits, targets


def _measure(logits: Tensor, targets: Tensor, batches: int = 7) -> dict[str, Any]:
    metrics = classification_metrics(CLASSES)
    for part in zip(logits.chunk(batches), targets.chunk(batches), strict=True):
        for metric in metrics.values():
            metric.update(*part)
    return {name: metric.compute() for name, metric in metrics.items()}


@pytest.fixture(name="case")
def _case() -> tuple[Tensor, Tensor, dict[str, Any]]:
    logits, targets = _sample()
    return logits, targets, _measure(logits, targets)


def test_scalars(case: tuple[Tensor, Tensor, dict[str, Any]]):
    logits, targets, found = case
    predicted = logits.argmax(-1)
    occurring = sorted({*predicted.tolist(), *targets.tolist()})
    assert found["accuracy"].item() == pytest.approx(reference.accuracy_score(targets, predicted))
    f1 = reference.f1_score(targets, predicted, labels=occurring, average="macro", zero_division=0)
    assert found["f1"].item() == pytest.approx(f1)
    top5 = reference.top_k_accuracy_score(targets, logits, k=5, labels=range(K))
    assert found["top5"].item() == pytest.approx(top5)
    assert list(found) == ["accuracy", "f1", "precision", "recall", "calibration_error", "confusion_matrix", "pr_curve", "top5"]


@pytest.mark.parametrize("name", ["precision", "recall"])
def test_per_class(case: tuple[Tensor, Tensor, dict[str, Any]], name: str):
    logits, targets, found = case
    score = getattr(reference, f"{name}_score")(targets, logits.argmax(-1), labels=range(K), average=None, zero_division=0)
    assert list(found[name]) == list(CLASSES)
    np.testing.assert_allclose([v.item() for v in found[name].values()], score, atol=1e-6)


def test_confusion_matrix(case: tuple[Tensor, Tensor, dict[str, Any]]):
    logits, targets, found = case
    matrix = found["confusion_matrix"]
    assert isinstance(matrix, Matrix)
    assert matrix.rows == matrix.columns == CLASSES
    assert (matrix.row_title, matrix.column_title) == ("true", "predicted")
    np.testing.assert_array_equal(matrix.values, reference.confusion_matrix(targets, logits.argmax(-1), labels=range(K)))


def test_pr_curve(case: tuple[Tensor, Tensor, dict[str, Any]]):
    """At every threshold, for every class: counts by comparing, precision and recall by scikit-learn."""
    logits, targets, found = case
    curve, p = found["pr_curve"], logits.softmax(-1)
    assert isinstance(curve, PRCurve)
    assert curve.thresholds.tolist() == torch.linspace(0, 1, THRESHOLDS).tolist()
    for k in range(K):
        true = targets == k
        for t in range(0, THRESHOLDS, 4):
            taken = p[:, k] >= curve.thresholds[t]
            counts = [curve.true_positives, curve.false_positives, curve.true_negatives, curve.false_negatives]
            expected = [taken & true, taken & ~true, ~taken & ~true, ~taken & true]
            assert [c[k, t].item() for c in counts] == [e.sum().item() for e in expected], (k, t)
            precision = reference.precision_score(true, taken, zero_division=1)
            assert curve.precision[k, t].item() == pytest.approx(precision)
            assert curve.recall[k, t].item() == pytest.approx(reference.recall_score(true, taken, zero_division=0))


def test_pr_curve_at_probabilities_that_are_thresholds():
    """0 and 1 and what lies on a threshold counts as reached."""
    logits = torch.tensor([[0.0, float("-inf")], [0.0, 0.0]])  # p = (1, 0) and (1/2, 1/2)
    curve = classification_metrics(("a", "b"))["pr_curve"]
    curve.update(logits, torch.tensor([0, 1]))
    value = curve.compute()
    assert isinstance(value, PRCurve)
    assert value.true_positives[0].tolist() == [1] * THRESHOLDS
    assert value.false_positives[0].tolist() == [1] * 51 + [0] * 50
    assert value.true_positives[1].tolist() == [1] * 51 + [0] * 50
    assert value.false_positives[1].tolist() == [1] + [0] * 100


def test_calibration_error_is_the_binned_sum(case: tuple[Tensor, Tensor, dict[str, Any]]):
    """Sum over 15 bins of |B| / n * |accuracy(B) - confidence(B)|"""
    logits, targets, found = case
    confidence, predicted = (v.numpy() for v in logits.softmax(-1).max(-1))
    right = predicted == targets.numpy()
    bins = np.floor(confidence * 15).clip(max=14)
    expected = sum(abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins))
    assert found["calibration_error"].item() == pytest.approx(expected, abs=1e-6)


def test_calibration_error_by_hand():
    """Four samples of confidence 0.7 of which three are right, six of 0.9 of which three are: 0.4 * 0.05 + 0.6 * 0.4"""
    p = torch.tensor([0.7] * 4 + [0.9] * 6)
    logits = torch.stack([p, 1 - p], -1).log()
    targets = torch.tensor([0, 0, 0, 1, 0, 0, 0, 1, 1, 1])
    metric = classification_metrics(("a", "b"))["calibration_error"]
    metric.update(logits, targets)
    assert metric.compute() == pytest.approx(0.4 * 0.05 + 0.6 * 0.4)


def test_logits_between_0_and_1_are_still_logits():
    metric = classification_metrics(("a", "b"))["calibration_error"]
    metric.update(torch.tensor([[0.9, 0.1]]), torch.tensor([0]))
    assert metric.compute() == pytest.approx(1 - 1 / (1 + np.exp(-0.8)))


def test_batches_make_no_difference():
    logits, targets = _sample()
    one, many = _measure(logits, targets, 1), _measure(logits, targets, 50)
    for name in ("accuracy", "f1", "top5", "calibration_error"):
        assert one[name] == pytest.approx(many[name])
    assert torch.equal(one["confusion_matrix"].values, many["confusion_matrix"].values)
    assert torch.equal(one["pr_curve"].true_positives, many["pr_curve"].true_positives)


def _rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    logits, targets = torch.load(f"{folder}/sample.pt", weights_only=True)
    metrics = classification_metrics(CLASSES)
    if rank < 2:  # the last has nothing to look at
        for metric in metrics.values():
            metric.update(logits[rank::2], targets[rank::2])
    values = {name: metric.compute() for name, metric in metrics.items()}
    plain = {name: values[name] for name in ("accuracy", "f1", "top5", "calibration_error", "precision")}
    curve = values["pr_curve"]
    counts = [values["confusion_matrix"].values, curve.true_positives, curve.false_positives, curve.true_negatives]
    torch.save((plain, counts), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_three_ranks_see_the_whole(tmp_path: Path):
    logits, targets = _sample()
    torch.save((logits, targets), tmp_path / "sample.pt")
    mp.spawn(_rank, (3, str(tmp_path)), nprocs=3)
    whole = _measure(logits, targets)
    curve = whole["pr_curve"]
    expected = [whole["confusion_matrix"].values, curve.true_positives, curve.false_positives, curve.true_negatives]
    for rank in range(3):
        plain, counts = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert all(torch.equal(one, two) for one, two in zip(counts, expected, strict=True))
        for name, value in plain.items():
            torch.testing.assert_close(value, whole[name])
