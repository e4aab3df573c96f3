"""What is asked and what is found, counted by hand."""

from __future__ import annotations

import pytest
import torch

from refresher_runner.metrics.captions import read_back
from refresher_runner.report import Matrix

ASPECTS = ("colour", ("red", "blue")), ("where", ("left", "above")), ("other colour", ("red", "blue"))


def test_aspects_of_both_things_are_counted_together():
    asked = torch.tensor([[0, 0, 1], [1, 1, -1], [1, 1, 0], [0, 0, 0]])
    found = torch.tensor([[0, 0, 1], [1, 0, -1], [0, 1, -1], [0, 1, 0]])
    report = read_back(ASPECTS, asked, found)
    assert report["as_asked/caption"] == pytest.approx(1 / 4)
    assert report["as_asked/colour"] == pytest.approx(5 / 7)
    assert report["as_asked/where"] == pytest.approx(2 / 4)
    assert report["as_asked/relation"] == pytest.approx(2 / 3)  # of those with two things
    matrix = report["read_colour"]
    assert isinstance(matrix, Matrix)
    assert (matrix.rows, matrix.columns) == (("red", "blue"), ("red", "blue", "none"))
    assert matrix.values.tolist() == [[3, 0, 1], [1, 2, 0]]
    assert "as_asked/other colour" not in report


def test_a_thing_that_nobody_asked_for_makes_a_caption_wrong():
    asked = torch.tensor([[0, 0, -1]])
    assert read_back(ASPECTS, asked, torch.tensor([[0, 0, 1]]))["as_asked/caption"] == 0
    assert "as_asked/relation" not in read_back(ASPECTS, asked, asked)
