"""The layer that every YOLO is made of.

Redmon, "Darknet: Open source neural networks in C", 2013-2016. https://pjreddie.com/darknet/
"""

from __future__ import annotations

from torch import nn


def conv(before: int, after: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, leaky ReLU, x where x > 0, else 0.1 x: (B, before, H, W) -> (B, after, H / stride, W / stride)"""
    layer = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(after), nn.LeakyReLU(0.1, inplace=True))
