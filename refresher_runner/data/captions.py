"""Pictures with captions, held in memory: what such a set is. Free of torch and numpy until `prepare`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from refresher_runner.data.learnt import LearntSet
from refresher_runner.errors import DataError
from refresher_runner.spec import CaptionBatch, CaptionSpec, Placement

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from refresher_runner.data.loaders import MemoryLoader


class Captioned(NamedTuple):
    """N pictures: images (N, C, S, S) uint8, their captions, labels (N,), truth (N, A) and meanings (N,) int64 as in a CaptionBatch."""

    images: NDArray
    captions: tuple[str, ...]
    labels: NDArray
    truth: NDArray
    meanings: NDArray


class CaptionedSplits(NamedTuple):
    """What was read: what it promises, its splits, and the digests of what it is made of."""

    spec: CaptionSpec
    splits: dict[str, Captioned]
    checksums: dict[str, str]


@dataclass
class CaptionSet(LearntSet[CaptionSpec]):
    """Pictures with captions, whose vocabulary is learnt from those that are trained on."""

    pad: int
    flip: bool
    reader: Callable[[Tensor, Tensor], Tensor] | None = None
    spec: CaptionSpec = field(init=False)
    splits: dict[str, Captioned] = field(default_factory=dict, init=False)
    tokens: dict[str, Tensor] = field(default_factory=dict, init=False)  # of the captions of each split

    def prepare(self) -> None:
        """Raises DataError, and ConfigError where the options do not suit the vocabulary that is known."""
        if self.splits:
            return
        self.spec, self.splits, self.digests = self.read(self.known)
        for split, found in self.splits.items():
            if not found.captions:
                raise DataError(f"its {split} split holds no picture", key="data", cure="a larger share for this split")
        self.tokens = {split: self.spec.encode(found.captions) for split, found in self.splits.items()}

    def _loader(self, split: str, batch_size: int, placement: Placement) -> MemoryLoader[CaptionBatch]:
        import torch

        from refresher_runner.data.loaders import MemoryLoader, Order

        assert self.splits, "prepare() comes first"
        found, train = self.splits[split], split == "train"
        images, labels, truth, meanings = map(torch.from_numpy, (found.images, found.labels, found.truth, found.meanings))
        columns = labels, self.tokens[split], truth, meanings
        order = Order(len(labels), batch_size, placement, train=train)
        return MemoryLoader(CaptionBatch, images, columns, self.spec, order, pad=train * self.pad, flip=train and self.flip)
