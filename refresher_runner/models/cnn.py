"""A convolutional network.

LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998.
https://doi.org/10.1109/5.726791

What is theirs (section II): convolutions that share their weights, each followed by a subsampling that makes the map coarser and
the answer less sensitive to shifts, then fully connected layers, all learned from pixels by descending one objective.

Differs: subsampling is a maximum (or a plain mean) with no coefficient of its own; every map sees all maps before it (table I has
a sparse scheme); the activation is an option, the paper's a scaled tanh; the classes are read from a linear layer by softmax and
cross-entropy, not from radial basis functions; batch norm (Ioffe and Szegedy, 2015) and dropout (Srivastava et al., 2014) can be
switched on; weights start as torch's layers do.

Letters: B pictures, C channels, H = W = n pixels, f kernel, p padding, s stride, K classes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from refresher_runner.errors import ConfigError
from refresher_runner.nn.classify import Classifier, feature_maps, kernels
from refresher_runner.registry import MODELS
from refresher_runner.report import Images, Report
from refresher_runner.schema import Fraction, NonNegative, Positive
from refresher_runner.spec import ImageBatch, ImageSpec

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
POOLINGS = {"max": F.max_pool2d, "avg": F.avg_pool2d}


def output_size(n: int, f: int, s: int, p: int) -> int:
    """floor((n + 2p - f) / s) + 1: how often a window of f fits into n pixels padded by p on both sides, moving by s."""
    return (n + 2 * p - f) // s + 1


def map_size(n: int, stages: int, *, f: int, s: int, p: int, pool: int) -> int:
    """Pixels of a side after so many stages. Raises ConfigError when a picture of n x n shrinks to nothing on the way."""
    if stages < 1:
        raise ConfigError("needs at least one convolution", key="model.channels", value=[], cure="model.channels=[16,32], or model=mlp")
    for i in range(1, stages + 1):
        m = output_size(n, f, s, p)
        if m < 1:
            problem = f"convolution {i} slides {f}x{f} pixels over {n}x{n}, padded by {p}, and nothing is left"
            raise ConfigError(problem, key="model.kernel", value=f, cure="a smaller kernel, more model.padding or fewer model.channels")
        n = output_size(m, pool, pool, 0)
        if n < 1:
            problem = f"subsampling {i} takes {pool}x{pool} pixels of {m}x{m}, and nothing is left"
            raise ConfigError(problem, key="model.pool", value=pool, cure="a smaller pool, more model.padding or fewer model.channels")
    return n


class Stage(nn.Module):
    """Convolution, subsampling, activation: (B, C, n, n) -> (B, channels, m, m).

    The activation comes last, as in the paper. It acts on the fewer, subsampled values, and where it rises (relu, tanh), the
    maximum does not mind which comes first.
    """

    def __init__(self, conv: nn.Conv2d, *, pool: int, pooling: str, activation: str, batch_norm: bool):
        super().__init__()
        self.conv, self.pool, self.subsample = conv, pool, POOLINGS[pooling]
        self.norm = nn.BatchNorm2d(conv.out_channels) if batch_norm else nn.Identity()
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.subsample(self.norm(self.conv(x)), self.pool))


class ConvNet(nn.Module):
    """Stages, one hidden layer, classes: images (B, C, n, n) -> logits (B, K)"""

    def __init__(self, stages: list[Stage], features: int, *, hidden: int, num_classes: int, activation: str, dropout: float):
        super().__init__()
        self.stages = nn.Sequential(*stages)
        self.hidden = nn.Linear(features, hidden)
        self.activation = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)
        self.classes = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(x).flatten(1)
        x = self.activation(self.hidden(x))
        return self.classes(self.dropout(x))


class CNN(Classifier):
    """Cross-entropy of a ConvNet, with what it has learned to see."""

    network: ConvNet

    def observe(self, batch: ImageBatch) -> Report:
        """The first layer's kernels, what every stage makes of the first picture, and the worst mistakes."""
        maps: dict[str, Images] = {}
        x = batch.images[:1]
        for i, stage in enumerate(self.network.stages, 1):
            x = stage(x)
            maps[f"feature_maps/{i}"] = feature_maps(x[0])
        return {"kernels": kernels(next(self.network.parameters())), **maps, **super().observe(batch)}


@MODELS.register("cnn")
def build_cnn(
    spec: ImageSpec,
    *,
    channels: tuple[Positive, ...],
    kernel: Positive,
    stride: Positive,
    padding: NonNegative,
    pool: Positive,
    pooling: Literal["max", "avg"],
    activation: Literal["relu", "gelu", "silu", "tanh"],
    batch_norm: bool,
    hidden: Positive,
    dropout: Fraction,
    label_smoothing: Fraction,
) -> CNN:
    """Convolutional network (LeCun et al., 1998).

    Raises ConfigError when the geometry shrinks the picture to nothing.
    """
    n = map_size(spec.size, len(channels), f=kernel, s=stride, p=padding, pool=pool)
    stages = [
        Stage(
            nn.Conv2d(before, after, kernel, stride=stride, padding=padding, bias=not batch_norm),
            pool=pool,
            pooling=pooling,
            activation=activation,
            batch_norm=batch_norm,
        )
        for before, after in pairwise([spec.channels, *channels])
    ]
    features = channels[-1] * n * n
    network = ConvNet(stages, features, hidden=hidden, num_classes=spec.num_classes, activation=activation, dropout=dropout)
    return CNN(spec, network, label_smoothing)
