"""The residual block, groups of it, and its start.

He, Zhang, Ren and Sun, "Deep residual learning for image recognition", 2016. https://arxiv.org/abs/1512.03385
He, Zhang, Ren and Sun, "Delving deep into rectifiers", 2015. https://arxiv.org/abs/1502.01852
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Shortcut = Literal["A", "B"]


class ZeroPad(nn.Module):
    """Option A (section 3.3): every second pixel of the input, with zeros for the channels it lacks. No parameters."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, 1, self.stride)  # x[:, :, ::stride, ::stride], whose gradient keeps the memory format
        return F.pad(x, (0, 0, 0, 0, 0, self.channels - x.shape[1]))


def conv3x3(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    """(B, before, H, W) -> (B, after, H / stride, W / stride), rounded up; batch norm follows, which has a bias of its own."""
    return nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)


def projection(before: int, after: int, stride: int) -> nn.Module:
    """Option B, eq. 2: W_s x, a 1x1 convolution, normalised as all others are."""
    return nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after))


class BasicBlock(nn.Module):
    """y = relu(F(x) + x), eq. 1, where F is two 3x3 convolutions: (B, before, H, W) -> (B, after, H / stride, W / stride)

    `shortcut` is what stands for x where sizes differ: A pads with zeros, B projects.
    """

    def __init__(self, before: int, after: int, *, stride: int = 1, shortcut: Shortcut = "B"):
        super().__init__()
        self.conv1, self.norm1 = conv3x3(before, after, stride), nn.BatchNorm2d(after)
        self.conv2, self.norm2 = conv3x3(after, after), nn.BatchNorm2d(after)
        if before == after and stride == 1:
            self.shortcut = nn.Identity()
        else:
            self.shortcut = ZeroPad(after, stride) if shortcut == "A" else projection(before, after, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.shortcut(x), inplace=True)


def group(n: int, before: int, after: int, *, stride: int, shortcut: Shortcut) -> nn.Sequential:
    """So many blocks, the first of which changes width and resolution."""
    first = BasicBlock(before, after, stride=stride, shortcut=shortcut)
    return nn.Sequential(first, *(BasicBlock(after, after) for _ in range(n - 1)))


def he_normal_(network: nn.Module) -> None:
    """Weights of variance 2 / fan_in (He et al., 2015, eq. 10), which keeps the scale of signals through relus; biases 0."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
