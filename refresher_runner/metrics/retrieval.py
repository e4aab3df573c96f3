"""How well one of a pair finds the other. Importing this imports torchmetrics, so tasks do it inside `metrics`.

A picture whose caption occurs several times, or is said in other words too, has several right answers: pairs of one `meaning` are all
right for one another. So that the best that can be had is always 1,

    a picture finds its caption     at rank 1 + how many other meanings have a caption that is as like it as its own, or more
    a caption finds its picture     at rank 1 + how many pictures of other meanings are as like it as the likest of its own, or more

Equals count against: who tells nothing apart finds nothing. Letters: N pairs, M meanings, D numbers of the space where they meet.
"""

from __future__ import annotations

from math import comb
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric as TorchMetric
from torchmetrics.utilities import dim_zero_cat

WITHIN = 1, 5, 10
CHUNK = 512  # that are compared with all others at once


class Retrieval(TorchMetric):
    """Recall among the first 1, 5 and 10, and the median rank, both ways; `recall1` is the mean of both, `chance` what guessing has."""

    images: list[Tensor]
    captions: list[Tensor]
    meanings: list[Tensor]

    def __init__(self):
        super().__init__()
        for name in ("images", "captions", "meanings"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, preds: Any, targets: Any) -> None:
        """Preds with images and captions (B, D), targets with meanings (B,)"""
        self.images.append(preds.images.float())
        self.captions.append(preds.captions.float())
        self.meanings.append(targets.meanings)

    def compute(self) -> dict[str, Any]:
        images, captions, meanings = map(dim_zero_cat, (self.images, self.captions, self.meanings))
        found = {
            "image_to_text": of_ranks(ranks_of_captions(images, captions, meanings)),
            "text_to_image": of_ranks(ranks_of_pictures(images, captions, meanings)),
        }
        return {"recall1": sum(way["recall1"] for way in found.values()) / 2, **found, "chance": guessed(meanings)}


def ranks_of_captions(images: Tensor, captions: Tensor, meanings: Tensor) -> Tensor:
    """At which rank (N,), from 1, each picture finds what its caption means."""
    numbers, own = meanings.unique(return_inverse=True)
    ranks = []
    for some, mine in zip(images.split(CHUNK), own.split(CHUNK), strict=True):
        likest = some.new_full((len(some), len(numbers)), -torch.inf)
        likest.scatter_reduce_(1, own.expand(len(some), -1), some @ captions.T, "amax")
        ranks.append((likest >= likest.gather(1, mine[:, None])).sum(1))
    return torch.cat(ranks)


def ranks_of_pictures(images: Tensor, captions: Tensor, meanings: Tensor) -> Tensor:
    """At which rank (N,), from 1, each caption finds a picture that it is right for."""
    ranks = []
    for some, mine in zip(captions.split(CHUNK), meanings.split(CHUNK), strict=True):
        like, right = some @ images.T, mine[:, None] == meanings
        likest = like.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        ranks.append(1 + ((like >= likest) & ~right).sum(1))
    return torch.cat(ranks)


def of_ranks(ranks: Tensor) -> dict[str, Tensor]:
    """Ranks (N,) -> the share that is within 1, 5 and 10, and the median, the lower one of two."""
    return {**{f"recall{k}": (ranks <= k).float().mean() for k in WITHIN}, "median_rank": ranks.float().median()}


def guessed(meanings: Tensor) -> dict[str, dict[str, float]]:
    """The recalls that a random order has on average: k of M meanings; 1 - C(N - n, k) / C(N, k) where n of N pictures are right."""
    counts, n = meanings.unique(return_counts=True)[1].tolist(), len(meanings)

    def pictures(k: int) -> float:
        return 1 - sum(m / n * comb(n - m, k) for m in counts) / comb(n, k)

    return {
        "image_to_text": {f"recall{k}": min(k / len(counts), 1.0) for k in WITHIN},
        "text_to_image": {f"recall{k}": pictures(min(k, n)) for k in WITHIN},
    }
