"""Sentences and what each becomes: what a set of pairs reads, and its batches. Free of torch and numpy until `prepare`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from refresher_runner.data.learnt import LearntSet
from refresher_runner.data.sentences import SentenceLoader, Side, side
from refresher_runner.data.subwords import encode_sentences
from refresher_runner.errors import ConfigError
from refresher_runner.spec import PairBatch, PairSpec, Placement, Spec
from refresher_runner.vocabulary import BEGIN, END, Vocabulary

Pair = tuple[str, str]  # source, target


class Corpus(NamedTuple):
    """What a set's files hold: both vocabularies, the pairs of each split, how many more had an empty side, and the files' digests."""

    source: Vocabulary
    target: Vocabulary
    splits: Mapping[str, Sequence[Pair]]
    blank: int
    checksums: dict[str, str]


@dataclass
class PairSet(LearntSet[PairSpec]):
    """Pairs, of which those with a sentence of more than `block_size` tokens are left out, and counted in one line of the log."""

    spec: PairSpec = field(init=False)
    splits: dict[str, tuple[Side, Side]] = field(default_factory=dict, init=False)

    def adopt(self, spec: Spec) -> None:
        self.known = spec.source if isinstance(spec, PairSpec) and spec.source == spec.target else None

    def prepare(self) -> None:
        """Raises DataError naming a file, and ConfigError where every sentence of a split is too long."""
        if self.splits:
            return
        corpus = self.read(self.known)
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

    def _loader(self, split: str, batch_size: int, placement: Placement) -> SentenceLoader[PairBatch]:
        assert self.splits, "prepare() comes first"
        return SentenceLoader(PairBatch, self.splits[split], batch_size, placement, train=split == "train")

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
