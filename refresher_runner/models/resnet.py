"""A residual network.

He, Zhang, Ren and Sun, "Deep residual learning for image recognition", 2016. https://arxiv.org/abs/1512.03385

The form of section 4.2, made for CIFAR-10: one 3x3 convolution, then three groups of n blocks with 16, 32 and 64 channels, each
group after the first at half the resolution, a mean over all positions, and one linear layer: 6n + 2 layers with weights.

Differs: widths can be scaled, option B's shortcut is offered beside the paper's A (both from section 3.3), and biases and batch norm's
parameters are spared weight decay.

Letters: B pictures, C channels, H = W pixels, n blocks in a group, K classes.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from refresher_runner.errors import ConfigError
from refresher_runner.nn.classify import Classifier, feature_maps, kernels
from refresher_runner.nn.resnet import Shortcut, conv3x3, group, he_normal_
from refresher_runner.registry import MODELS
from refresher_runner.report import Images, Report
from refresher_runner.schema import Fraction, Positive
from refresher_runner.spec import ImageBatch, ImageSpec


class Residual(nn.Module):
    """Images (B, C, H, W) -> logits (B, K)"""

    def __init__(self, channels: int, num_classes: int, *, n: int, width: int, shortcut: Shortcut):
        super().__init__()
        self.conv, self.norm = conv3x3(channels, width), nn.BatchNorm2d(width)
        self.groups = nn.Sequential(
            group(n, width, width, stride=1, shortcut=shortcut),
            group(n, width, 2 * width, stride=2, shortcut=shortcut),
            group(n, 2 * width, 4 * width, stride=2, shortcut=shortcut),
        )
        self.classes = nn.Linear(4 * width, num_classes)
        he_normal_(self)

    def stem(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.groups(self.stem(x))  # (B, 4 width, H / 4, W / 4)
        return self.classes(F.avg_pool2d(x, x.shape[2:]).flatten(1))


class ResNet(Classifier):
    """Cross-entropy of a residual network, with what it has learned to see."""

    network: Residual

    def observe(self, batch: ImageBatch) -> Report:
        """The first kernels, what every group makes of the first picture, and the worst mistakes."""
        maps: dict[str, Images] = {}
        x = self.network.stem(batch.images[:1])
        for i, blocks in enumerate(self.network.groups, 1):
            x = blocks(x)
            maps[f"feature_maps/{i}"] = feature_maps(x[0])
        return {"kernels": kernels(self.network.conv.weight), **maps, **super().observe(batch)}


@MODELS.register("resnet")
def build_resnet(spec: ImageSpec, *, depth: Positive, width: Positive, shortcut: Literal["A", "B"], label_smoothing: Fraction) -> ResNet:
    """Residual network (He et al., 2016). Raises ConfigError unless depth = 6n + 2."""
    n, rest = divmod(depth - 2, 6)
    if n < 1 or rest:
        below = max(n, 1) * 6 + 2
        raise ConfigError("should be 6n + 2, n = 1, 2, ...", key="model.depth", value=depth, cure=f"try {below} or {below + 6}")
    return ResNet(spec, Residual(spec.channels, spec.num_classes, n=n, width=width, shortcut=shortcut), label_smoothing)
