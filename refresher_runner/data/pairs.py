"""Sentences and what each becomes: what a set of pairs reads, and its batches, from memory, of sentences about as long as one another.

Free of torch and numpy until `prepare`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from refresher_runner.data.subwords import encode_sentences
from refresher_runner.errors import ConfigError
from refresher_runner.spec import DataModule, PairBatch, PairSpec, Placement
from refresher_runner.vocabulary import BEGIN, END, PAD, Vocabulary

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

Pair = tuple[str, str]  # source, target

POOL = 100  # batches whose sentences are sorted by length together: enough to leave little padding, few enough to stay a shuffle


class Corpus(NamedTuple):
    """What a set's files hold: both vocabularies, the pairs of each split, how many more had an empty side, and the files' digests."""

    source: Vocabulary
    target: Vocabulary
    splits: Mapping[str, Sequence[Pair]]
    blank: int
    checksums: dict[str, str]


class Side(NamedTuple):
    """The sentences of one language: numbers (N, L), of the smallest type that holds them, each its first lengths[n], then PAD."""

    numbers: NDArray
    lengths: NDArray


@dataclass
class PairSet(DataModule[PairSpec]):
    """A set that is read whole, once. Sentences of more than `block_size` tokens are left out, and counted in one line of the log."""

    learnt: ClassVar[bool] = True

    read: Callable[[], Corpus]
    block_size: int
    batch_size: int
    eval_batch_size: int
    spec: PairSpec = field(init=False)
    splits: dict[str, tuple[Side, Side]] = field(default_factory=dict, init=False)
    digests: dict[str, str] = field(default_factory=dict, init=False)

    def prepare(self) -> None:
        """Raises DataError naming a file, and ConfigError where every sentence of a split is too long."""
        if self.splits:
            return
        corpus = self.read()
        splits, long, count = {}, 0, 0
        for split, pairs in corpus.splits.items():
            found, left_out = self._encoded(corpus, split, pairs)
            splits[split] = found
            long, count = long + left_out, count + len(pairs)
        if long or corpus.blank:
            told = "%d of %d pairs left out: %d have an empty side, %d are longer than data.block_size=%d tokens"
            facts = long + corpus.blank, count + corpus.blank, corpus.blank, long, self.block_size
            logging.getLogger(__name__).warning(told, *facts)
        self.spec, self.splits, self.digests = PairSpec(corpus.source, corpus.target, self.block_size), splits, corpus.checksums

    def checksums(self) -> dict[str, str]:
        return self.digests

    def train_loader(self, placement: Placement) -> PairLoader:
        return self._loader("train", self.batch_size, placement)

    def val_loader(self, placement: Placement) -> PairLoader:
        return self._loader("val", self.eval_batch_size, placement)

    def test_loader(self, placement: Placement) -> PairLoader:
        return self._loader("test", self.eval_batch_size, placement)

    def _loader(self, split: str, batch_size: int, placement: Placement) -> PairLoader:
        assert self.splits, "prepare() comes first"
        return PairLoader(*self.splits[split], batch_size, placement, train=split == "train")

    def _encoded(self, corpus: Corpus, split: str, pairs: Sequence[Pair]) -> tuple[tuple[Side, Side], int]:
        """Both sides of the pairs that are short enough, and how many are not."""
        source = [[*numbers, END] for numbers in encode(corpus.source, [source for source, _ in pairs])]
        target = [[BEGIN, *numbers, END] for numbers in encode(corpus.target, [target for _, target in pairs])]
        kept = [(s, t) for s, t in zip(source, target, strict=True) if max(len(s), len(t)) <= self.block_size]
        if not kept:
            least = min(max(len(s), len(t)) for s, t in zip(source, target, strict=True))
            problem = f"is less than any sentence of the {split} split takes"
            raise ConfigError(problem, key="data.block_size", value=self.block_size, cure=f"{least} or more")
        sides = side([s for s, _ in kept], len(corpus.source)), side([t for _, t in kept], len(corpus.target))
        return sides, len(pairs) - len(kept)


def encode(vocabulary: Vocabulary, sentences: Sequence[str]) -> list[list[int]]:
    """The numbers of each sentence, without BEGIN and END."""
    return encode_sentences(vocabulary, sentences) if vocabulary.merges else [vocabulary.encode(sentence) for sentence in sentences]


def side(sentences: Sequence[Sequence[int]], vocab_size: int) -> Side:
    """Sentences of numbers below `vocab_size`, padded to the longest."""
    import numpy as np

    kind = next(kind for kind in (np.uint8, np.int16, np.int32) if vocab_size <= np.iinfo(kind).max + 1)
    lengths = np.array([len(sentence) for sentence in sentences], np.int64)
    numbers = np.full((len(sentences), lengths.max()), PAD, kind)
    numbers[np.arange(lengths.max()) < lengths[:, None]] = np.fromiter(chain.from_iterable(sentences), kind, lengths.sum())
    return Side(numbers, lengths)


class PairLoader:
    """Batches of pairs held in memory, on the device if it is CUDA, each padded to its longest sentence of either side.

    Training: of the epoch's shuffle every POOL batches are sorted, by their longer side and then by the source, and cut anew; the batches
    come in random order. Evaluation: all are sorted, in an order of batches that never changes. Each rank takes every world_size-th
    sentence of a batch, padded like all of it.
    """

    def __init__(self, source: Side, target: Side, batch_size: int, placement: Placement, *, train: bool):
        import torch

        from refresher_runner.data.loaders import Order

        self.placement, self.train = placement, train
        Order(len(source.lengths), batch_size, placement, train=train)  # refuses what cannot be had
        self.order = Order(len(source.lengths), batch_size, replace(placement, rank=0, world_size=1), train=train)
        home = placement.device if placement.device.startswith("cuda") else "cpu"
        self.sides = [torch.from_numpy(side.numbers).to(home) for side in (source, target)]
        self.lengths = torch.from_numpy(source.lengths), torch.from_numpy(target.lengths)

    def __len__(self) -> int:
        return len(self.order)

    def batches(self, epoch: int, start: int = 0) -> Iterator[PairBatch]:
        rank, world, device = self.placement.rank, self.placement.world_size, self.placement.device
        for batch in self.buckets(epoch)[start:]:
            share = batch[rank::world].to(self.sides[0].device)
            widths = (int(lengths[batch].max()) for lengths in self.lengths)
            yield PairBatch(
                *(side[:, :width].index_select(0, share).long().to(device) for side, width in zip(self.sides, widths, strict=True))
            )

    def buckets(self, epoch: int) -> list[Tensor]:
        """The numbers of the pairs of every batch of all ranks, each (B,) int64."""
        import torch

        from refresher_runner.data.loaders import mix

        batches = self.order.batches(epoch)
        size = POOL if self.train else len(batches)
        buckets: list[Tensor] = []
        for first in range(0, len(batches), size):
            pool = torch.cat(tuple(batches[first : first + size]))
            source, target = (lengths[pool] for lengths in self.lengths)
            by_length = (torch.maximum(source, target) * (int(source.max()) + 1) + source).argsort(stable=True)
            buckets += pool[by_length].split(self.order.batch_size)
        seed = mix("buckets", self.placement.seed, epoch) if self.train else 0
        return [buckets[i] for i in torch.randperm(len(buckets), generator=torch.Generator().manual_seed(seed)).tolist()]
