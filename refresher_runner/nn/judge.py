"""A trained classifier as a measure of pictures that someone else has drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from refresher_runner.nn.classify import Classifier


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
