"""A model from outside the package: one file, one YAML, one entry point."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from refresher_runner.registry import MODELS
from refresher_runner.schema import Positive
from refresher_runner.spec import ImageBatch, ImageSpec
from refresher_runner.task import Output, Task


class Tiny(Task):
    """One hidden layer."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def step(self, batch: ImageBatch) -> Output:
        logits = self.net(batch.images)
        return Output(F.cross_entropy(logits, batch.labels), preds=logits, targets=batch.labels)


@MODELS.register("tiny")
def build_tiny(spec: ImageSpec, *, width: Positive) -> Tiny:
    """A tiny network, from a package of its own."""
    inputs = spec.channels * spec.size**2
    return Tiny(nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, spec.num_classes)))
