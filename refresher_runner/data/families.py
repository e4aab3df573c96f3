"""Samples that must not be parted: those that share something, and splits of whole families. Free of numpy until used."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.typing import NDArray


def connected(*keys: Sequence[Hashable]) -> NDArray:
    """A number (N,) for each of N samples, the same for all that hang together by a key of any kind, from one to the next."""
    import numpy as np

    parent: list[int] = []
    number: dict[tuple[int, Hashable], int] = {}
    of_sample: list[int] = []

    def root(n: int) -> int:
        while parent[n] != n:
            parent[n] = n = parent[parent[n]]
        return n

    for sample in zip(*keys, strict=True):
        ends = []
        for kind, key in enumerate(sample):
            ends.append(number.setdefault((kind, key), len(parent)))
            if ends[-1] == len(parent):
                parent.append(len(parent))
        for end in ends[1:]:
            parent[root(end)] = root(ends[0])
        of_sample.append(ends[0])
    return np.unique([root(n) for n in of_sample], return_inverse=True)[1]


def cut(families: NDArray, fractions: dict[str, float], seed: int) -> dict[str, NDArray]:
    """Which samples (N,) bool are of each split: whole families at random, until each of `fractions` is about reached; the rest trains."""
    import numpy as np

    sizes = np.bincount(families)
    order = np.random.RandomState(seed % 2**32).permutation(len(sizes))  # the one generator whose draws numpy has frozen for good
    place = np.empty_like(order)
    place[order] = np.searchsorted(np.cumsum([*fractions.values()]) * len(families), np.cumsum(sizes[order]))
    return {split: place[families] == i for i, split in enumerate([*fractions, "train"])}
