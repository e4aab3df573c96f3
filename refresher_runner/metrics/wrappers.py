"""Metrics made of others: of a part of what a task gives, or as a part of what is measured at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torchmetrics import Metric as TorchMetric


class Through(nn.Module):
    """A metric of `prepare(preds)`, whose value is reported as `show(value)`."""

    def __init__(
        self, metric: TorchMetric, *, prepare: Callable[[Tensor], Tensor] = lambda preds: preds, show: Callable[[Tensor], Any] = lambda v: v
    ):
        super().__init__()
        self.metric, self.prepare, self.show = metric, prepare, show

    def update(self, preds: Tensor, targets: Tensor) -> None:
        self.metric.update(self.prepare(preds), targets)

    def compute(self) -> Any:
        return self.show(self.metric.compute())


class Part(nn.Module):
    """One of several values that are measured together: `show` makes it of what `whole` computes, which it does once.

    Each part is given every batch; the first to come with a batch has it measured for them all.
    """

    def __init__(self, whole: TorchMetric, show: Callable[[Mapping[str, Tensor]], Any]):
        super().__init__()
        self.whole, self.show, self.batches = whole, show, 0

    def update(self, preds: Any, targets: Any) -> None:
        self.batches += 1
        if self.batches > self.whole.update_count:
            self.whole.update(preds, targets)

    def compute(self) -> Any:
        return self.show(self.whole.compute())
