"""Ranks by hand, against a slow count, and against guessing."""

from itertools import permutations
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from refresher_runner.metrics.retrieval import Retrieval, guessed, ranks_of_captions, ranks_of_pictures


def corner(n: int) -> Tensor:
    """Captions that are the axes, so that a picture's numbers are its cosines with each."""
    return torch.eye(n)


def measured(images: Tensor, captions: Tensor, meanings: Tensor, size: int = 1000) -> dict:
    metric = Retrieval()
    for i, c, m in zip(images.split(size), captions.split(size), meanings.split(size), strict=True):
        metric.update(SimpleNamespace(images=i, captions=c), SimpleNamespace(meanings=m))
    return metric.compute()


def test_by_hand():
    """Picture 0 likes its own caption best, 1 likes caption 0 better, 2 likes both others better."""
    images = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.5, 0.1], [0.7, 0.6, 0.3]])
    meanings = torch.arange(3)
    assert ranks_of_captions(images, corner(3), meanings).tolist() == [1, 2, 3]
    assert ranks_of_pictures(images, corner(3), meanings).tolist() == [1, 2, 1]
    found = measured(images, corner(3), meanings)
    assert {name: value.item() for name, value in found["image_to_text"].items()} == pytest.approx(
        {"recall1": 1 / 3, "recall5": 1, "recall10": 1, "median_rank": 2}
    )
    assert found["text_to_image"]["recall1"].item() == pytest.approx(2 / 3)
    assert found["recall1"].item() == pytest.approx(1 / 2)


def test_a_caption_that_occurs_twice_is_right_for_both_pictures_and_counts_once_against_others():
    """Pictures 0 and 1 have captions that mean the same; the axes are captions 0, 1 and 2."""
    images = torch.tensor([[0.1, 0.9, 0.2], [0.2, 0.1, 0.3], [0.6, 0.5, 0.4]])
    meanings = torch.tensor([7, 7, 3])
    assert ranks_of_captions(images, corner(3), meanings).tolist() == [1, 2, 2], "0 finds the other's, 2 has one meaning before its own"
    assert ranks_of_pictures(images, corner(3), meanings).tolist() == [2, 1, 1]
    perfect = torch.eye(2)[[0, 0, 1]]
    best = measured(perfect, perfect, meanings)
    assert [best[way]["recall1"].item() for way in ("image_to_text", "text_to_image")] == [1, 1], "what distinct captions allow is 1"


def test_who_tells_nothing_apart_finds_nothing():
    same = torch.ones(12, 4) / 2
    found = measured(same, same, torch.arange(12))
    assert found["recall1"] == found["image_to_text"]["recall10"] == found["text_to_image"]["recall10"] == 0
    assert found["image_to_text"]["median_rank"] == 12


def test_against_a_slow_count():
    generator = torch.Generator().manual_seed(0)
    images, captions = torch.randn(2, 1100, 6, generator=generator)  # more than are compared at once
    meanings = torch.randint(400, (1100,), generator=generator)
    like = (images @ captions.T).tolist()
    of_captions, of_pictures, said = [], [], meanings.tolist()
    for i in range(0, 1100, 50):
        best: dict[int, float] = {}
        for j, meaning in enumerate(said):
            best[meaning] = max(best.get(meaning, -99), like[i][j])
        of_captions.append(1 + sum(value > best[said[i]] for value in best.values()))
        own = max(like[j][i] for j in range(1100) if said[j] == said[i])
        of_pictures.append(1 + sum(like[j][i] > own for j in range(1100)))
    assert ranks_of_captions(images, captions, meanings)[::50].tolist() == of_captions
    assert ranks_of_pictures(images, captions, meanings)[::50].tolist() == of_pictures
    whole, parts = measured(images, captions, meanings), measured(images, captions, meanings, 77)
    assert whole == parts, "batches make no difference"


def test_guessing_against_all_orders():
    """Of 6 pictures, 3 of one meaning and 3 of others: how early does the first right one come, over all 720 orders?"""
    meanings = torch.tensor([5, 5, 1, 5, 2, 3])
    chance = guessed(meanings)
    orders = list(permutations(meanings.tolist()))
    for k in (1, 5):
        hits = [sum(meaning in order[:k] for order in orders) / len(orders) for meaning in meanings.tolist()]
        assert chance["text_to_image"][f"recall{k}"] == pytest.approx(sum(hits) / 6)
    assert chance["image_to_text"] == {"recall1": 0.25, "recall5": 1, "recall10": 1}
    assert chance["text_to_image"]["recall10"] == 1, "more than there are"
