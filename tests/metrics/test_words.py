"""Word vectors are judged as scipy and a count by hand judge them."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from scipy.stats import spearmanr

from refresher_runner.metrics.words import word_metrics
from refresher_runner.models.word2vec import Answers


class Asked(NamedTuple):
    ratings: torch.Tensor
    analogies: torch.Tensor
    sections: torch.Tensor


NO_ANALOGIES = torch.zeros(0, 4).long(), torch.zeros(0).long()


def test_likeness_is_spearmans_over_what_is_known():
    draws = torch.Generator().manual_seed(0)
    cosines, ratings = torch.rand(40, generator=draws), torch.rand(40, generator=draws).mul(10).round()
    cosines[::5] = torch.nan
    metric = word_metrics(("a",))["wordsim"]
    for some in (slice(0, 1), slice(1, 25), slice(25, 40)):
        metric.update(Answers(cosines[some], torch.zeros(0).long()), Asked(ratings[some], *NO_ANALOGIES))
    found, known = metric.compute(), cosines.isfinite()
    assert float(found["spearman"]) == pytest.approx(spearmanr(cosines[known], ratings[known])[0], abs=1e-5)  # type: ignore[index]
    assert float(found["coverage"]) == pytest.approx(0.8)  # type: ignore[index]


def test_analogies_tell_where_wrong_answers_come_from():
    """Section a holds words 0 to 3, b holds 2 to 5; word 9 is of neither."""
    analogies = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3], [2, 3, 4, 5], [2, 3, 4, 5], [0, 1, 2, -1]])
    sections = torch.tensor([0, 0, 0, 1, 1, 0])
    answers = torch.tensor([3, 5, 9, 5, 0, -1])
    metric = word_metrics(("a", "b"))["analogies"]
    for rows in ([0, 1, 2], [3, 4, 5]):
        metric.update(Answers(torch.zeros(0), answers[rows]), Asked(torch.zeros(0), analogies[rows], sections[rows]))
    found = metric.compute()
    assert float(found["accuracy"]) == pytest.approx(2 / 5)  # type: ignore[index]
    assert float(found["coverage"]) == pytest.approx(5 / 6)  # type: ignore[index]
    assert {name: float(share) for name, share in found["sections"].items()} == {  # type: ignore[index]
        "a": pytest.approx(1 / 3),
        "b": pytest.approx(1 / 2),
    }
    matrix = found["confusion_matrix"]  # type: ignore[index]
    assert matrix.columns == ("a", "b", "none of them")
    assert matrix.values.tolist() == [[1, 1, 1], [1, 1, 0]]
