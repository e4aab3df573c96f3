"""Separate texts, sentences for instance, in batches of about one length, from memory. Free of torch and numpy until used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from refresher_runner.data.learnt import narrowest
from refresher_runner.spec import Placement
from refresher_runner.vocabulary import PAD

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

B = TypeVar("B")

POOL = 100  # batches whose sentences are sorted by length together: enough to leave little padding, few enough to stay a shuffle


class Side(NamedTuple):
    """Sentences of one language: numbers (N, L), of the smallest type that holds them; row n is lengths[n] numbers, then PAD."""

    numbers: NDArray
    lengths: NDArray


def side(sentences: Sequence[Sequence[int]], vocab_size: int) -> Side:
    """Sentences of numbers below `vocab_size`, padded to the longest."""
    import numpy as np

    kind = narrowest(vocab_size)
    lengths = np.array([len(sentence) for sentence in sentences], np.int64)
    numbers = np.full((len(sentences), lengths.max()), PAD, kind)
    numbers[np.arange(lengths.max()) < lengths[:, None]] = np.fromiter(chain.from_iterable(sentences), kind, lengths.sum())
    return Side(numbers, lengths)


class SentenceLoader(Generic[B]):
    """Batches of sentences held in memory, on the device if it is CUDA.

    A batch is `kind(*sides, *columns)`: each side padded to its longest sentence there, each column one number a sentence. In training
    the epoch's shuffle is cut into pools of POOL batches; a pool is sorted by the longer side, then by the first, and cut into
    batches, which come in random order. In evaluation all is one pool, and the order is always the same. Each rank takes every
    world_size-th sentence of a batch, padded as the whole batch is.
    """

    def __init__(
        self,
        kind: Callable[..., B],
        sides: Sequence[Side],
        batch_size: int,
        placement: Placement,
        *,
        train: bool,
        columns: Sequence[NDArray] = (),
    ):
        import torch

        from refresher_runner.data.loaders import Order

        self.kind, self.placement, self.train = kind, placement, train
        count = len(sides[0].lengths)
        Order(count, batch_size, placement, train=train)  # refuses what cannot be had
        self.order = Order(count, batch_size, replace(placement, rank=0, world_size=1), train=train)
        home = placement.device if placement.device.startswith("cuda") else "cpu"
        self.sides = [torch.from_numpy(side.numbers).to(home) for side in sides]
        self.columns = [torch.from_numpy(column).to(home) for column in columns]
        self.lengths = tuple(torch.from_numpy(side.lengths) for side in sides)

    def __len__(self) -> int:
        return len(self.order)

    def batches(self, epoch: int, start: int = 0) -> Iterator[B]:
        rank, world, device = self.placement.rank, self.placement.world_size, self.placement.device
        for batch in self.buckets(epoch)[start:]:
            share = batch[rank::world].to(self.sides[0].device)
            widths = (int(lengths[batch].max()) for lengths in self.lengths)
            cut = [side[:, :width] for side, width in zip(self.sides, widths, strict=True)]
            yield self.kind(*(part.index_select(0, share).long().to(device) for part in (*cut, *self.columns)))

    def buckets(self, epoch: int) -> list[Tensor]:
        """Which sentences (B,) int64 each global batch holds."""
        import torch

        from refresher_runner.data.loaders import mix

        batches = self.order.batches(epoch)
        size = POOL if self.train else len(batches)
        buckets: list[Tensor] = []
        for first in range(0, len(batches), size):
            pool = torch.cat(tuple(batches[first : first + size]))
            lengths = torch.stack([lengths[pool] for lengths in self.lengths])
            by_length = (lengths.amax(0) * (int(lengths[0].max()) + 1) + lengths[0]).argsort(stable=True)
            buckets += pool[by_length].split(self.order.batch_size)
        seed = mix("buckets", self.placement.seed, epoch) if self.train else 0
        return [buckets[i] for i in torch.randperm(len(buckets), generator=torch.Generator().manual_seed(seed)).tolist()]
