"""Wrappers of torchmetrics: one that looks at a part of what a task gives, and one that shows a part of what another measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torchmetrics import Metric as TorchMetric

from refresher_runner.task import Metric


class Through(nn.Module):
    """A metric of `prepare(preds)` and `truth(targets)`, reported as `show(value)`."""

    def __init__(
        self,
        metric: TorchMetric | Metric,
        *,
        prepare: Callable[[Any], Any] = lambda preds: preds,
        truth: Callable[[Any], Any] = lambda targets: targets,
        show: Callable[[Any], Any] = lambda value: value,
    ):
        super().__init__()
        self.metric, self.prepare, self.truth, self.show = metric, prepare, truth, show

    def update(self, preds: Any, targets: Any) -> None:
        self.metric.update(self.prepare(preds), self.truth(targets))

    def compute(self) -> Any:
        return self.show(self.metric.compute())


class Part(nn.Module):
    """One of several metrics that share a computation, `whole`; `show` takes this one out of its result.

    Every part is updated with every batch, and the first of them passes it on to `whole`.
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
