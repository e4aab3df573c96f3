"""Trained networks as measures of pictures that someone else has drawn."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from refresher_runner.nn.classify import Classifier
from refresher_runner.task import Scorer


class Matcher:
    """Images (B, C, H, W) and captions (B, T), as a batch has them, -> where they are in the space of both, (B, D).

    Not a module, as a judge is none.
    """

    def __init__(self, task: Scorer):
        assert isinstance(task, nn.Module)
        self.task = task.eval().requires_grad_(False)

    def encode_image(self, images: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return torch.cat([self.task.encode_image(part) for part in images.float().split(256)])

    def encode_text(self, captions: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(captions.device.type, enabled=False):
            return self.task.encode_text(captions)


class Judge:
    """images (B, C, H, W), as a batch has them -> features (B, D) and logits (B, K); features are what its last layer reads.

    Not a module: whoever is judged does not hold the judge's weights as its own.
    """

    def __init__(self, classifier: Classifier, name: str):
        self.classifier, self.name = classifier.eval().requires_grad_(False), name
        [self._head] = classifier.class_layers()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []
        handle = self._head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            with torch.autocast(images.device.type, enabled=False):
                logits = torch.cat([self.classifier.network(part) for part in images.float().split(256)])
        finally:
            handle.remove()
        return torch.cat(seen), logits
