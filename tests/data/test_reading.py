"""The reader of shapes against what was drawn: nothing it says is by a network, so it must be right nearly always."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from refresher_runner.data.reading import read
from refresher_runner.data.scenes import ASPECTS, Scene, Thing, alone, draw, pairs, things, truth, turned

COLUMNS = [name for name, _ in ASPECTS]


def pictures(scenes: list[Scene], size: int = 32) -> Tensor:
    random = np.random.RandomState(1)
    return torch.from_numpy(np.stack([draw(scene, size, random) for scene in scenes])).float() / 255


def truths(scenes: list[Scene]) -> Tensor:
    return torch.tensor([truth(scene) for scene in scenes])


@pytest.mark.parametrize(("size", "step"), [(32, 3), (24, 7), (64, 31)])
def test_one_thing_is_read_as_it_was_drawn(size, step):
    scenes = alone()[::step]
    asked = truths(scenes)
    found = read(pictures(scenes, size), asked)
    assert (found == asked).all(1).double().mean() >= (0.99 if size > 24 else 0.95)


def test_two_things_are_read_as_they_were_drawn_whichever_is_told_first():
    scenes = [scene if number % 2 else turned(scene) for number, scene in enumerate(pairs()[::89])]
    asked, shown = truths(scenes), pictures(scenes)
    found = read(shown, asked)
    assert (found == asked).all(1).double().mean() >= 0.985
    told_back = truths([turned(scene) for scene in scenes])
    assert (read(shown, told_back) == told_back).all(1).double().mean() >= 0.985


def test_what_is_not_as_asked_is_told():
    """Of each aspect in turn another value is asked, and the one that was drawn is found."""
    scene = Scene(Thing("medium", "red", "circle"), "above", Thing("small", "blue", "square"))
    for column, (name, values) in enumerate(ASPECTS):
        asked = truths([scene])
        asked[0, column] = (asked[0, column] + 1) % len(values)
        found = read(pictures([scene]), asked)
        assert (found == asked)[0].tolist() == [i != column for i in range(len(ASPECTS))], name


def test_nothing_is_found_where_there_is_nothing():
    empty = torch.rand(2, 3, 32, 32) * 0.05 + 0.1
    assert (read(empty, torch.zeros(2, len(ASPECTS), dtype=torch.int64)) == -1).all()


def test_three_things_are_in_no_relation():
    scene = Scene(Thing("small", "red", "circle"), "above", Thing("small", "blue", "square"))
    shown = pictures([scene])
    corner = next((y, x) for y in (1, 24) for x in (1, 24) if shown[0, :, y : y + 7, x : x + 7].amax() < 0.4)
    shown[0, :, corner[0] : corner[0] + 7, corner[1] : corner[1] + 7] = 0.9
    assert read(shown, truths([scene]))[0, COLUMNS.index("where")] == -1


def test_every_thing_has_a_way_to_be_found():
    scenes = [Scene(thing, "in the middle") for thing in things()]
    found = read(pictures(scenes, 48), truths(scenes))
    assert torch.equal(found, truths(scenes))
