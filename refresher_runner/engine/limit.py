"""A part of a loader: for quick looks, and for the question whether a model can learn a few batches by heart."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from refresher_runner.spec import Loader


class FirstBatches:
    """The first `count` batches of every epoch, or of one epoch again and again."""

    def __init__(self, loader: Loader, count: int, always_epoch: int | None = None):
        self.loader, self.count, self.always_epoch = loader, min(count, len(loader)), always_epoch

    def __len__(self) -> int:
        return self.count

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        chosen = epoch if self.always_epoch is None else self.always_epoch
        yield from islice(self.loader.batches(chosen, start), max(self.count - start, 0))
