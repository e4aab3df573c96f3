"""Metrics of a part of what a task gives, and parts of what is measured at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric, SumMetric
from torchmetrics.regression import MeanSquaredError

from refresher_runner.metrics.wrappers import Part, Through


class Both(NamedTuple):
    left: Tensor
    right: Tensor


class Sums(Metric):
    """The sums of preds and of targets, and how often it was asked for them."""

    preds: Tensor
    targets: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.computed = self.updated = 0
        self.add_state("preds", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("targets", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, targets: Tensor) -> None:
        self.updated += 1
        self.preds += preds.sum()
        self.targets += targets.sum()

    def compute(self) -> dict[str, Tensor]:
        self.computed += 1
        return {"preds": self.preds, "targets": self.targets}


BATCHES = [(Both(torch.tensor([1.0, 2.0]), torch.tensor([5.0, 5.0])), torch.tensor([0.0, 4.0])), (Both(*torch.ones(2, 3)), torch.ones(3))]


def test_a_metric_sees_the_part_that_is_prepared_and_shows_what_is_made_of_its_value():
    wrapped = Through(MeanSquaredError(), prepare=lambda both: both.left, show=lambda value: {"rmse": value.sqrt()})
    for preds, targets in BATCHES:
        wrapped.update(preds, targets)
    torch.testing.assert_close(wrapped.compute()["rmse"], torch.tensor(((1 + 4 + 0) / 5) ** 0.5))


def test_without_a_preparation_it_is_the_metric_itself():
    wrapped, plain = Through(MeanSquaredError()), MeanSquaredError()
    for both, targets in BATCHES:
        wrapped.update(both.right, targets)
        plain.update(both.right, targets)
    assert wrapped.compute() == plain.compute()


def test_it_moves_with_its_metric():
    wrapped = Through(SumMetric()).to("meta")
    assert wrapped.metric.device == torch.device("meta")


def test_parts_measure_each_batch_once_whoever_comes_first():
    whole = Sums()
    one, two = (Part(whole, lambda values, name=name: values[name]) for name in ("preds", "targets"))
    for number, (both, targets) in enumerate(BATCHES):
        for part in (one, two) if number else (two, one):
            part.update(both.left, targets)
    assert whole.updated == 2
    assert (one.compute().item(), two.compute().item()) == (1 + 2 + 3, 4 + 3)
    assert whole.computed == 1


def test_a_part_alone_is_the_whole():
    part = Part(Sums(), lambda values: values["preds"] / values["targets"])
    for both, targets in BATCHES:
        part.update(both.right, targets)
    torch.testing.assert_close(part.compute(), torch.tensor((5 + 5 + 3) / (4 + 3)))
