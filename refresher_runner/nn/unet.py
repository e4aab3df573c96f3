"""A U-Net that knows the time: pictures (B, C, n, n) -> pictures of the same size, at a moment t of a diffusion.

Ronneberger, Fischer and Brox, "U-Net", 2015. https://arxiv.org/abs/1505.04597
Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", 2020, appendix B. https://arxiv.org/abs/2006.11239
Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022, section 3.3, for the context. https://arxiv.org/abs/2112.10752

    stem -> levels of residual blocks, each half as large as the one before -> middle -> levels back up, which see what the way
    down has left at their size -> head

Residual blocks are told the time, and a class if there are any, by a vector that is added between their convolutions. Where maps are small
enough every pixel looks at every other, and at a context, tokens (B, S, D) of any kind, if the network was made for one.

Letters: B pictures, C channels, n = H = W pixels, E numbers in the vector of time and class, S tokens of D numbers in a context.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refresher_runner.errors import ConfigError
from refresher_runner.nn.attention import MultiHeadAttention

GROUPS = 8  # of a group norm: channels are a multiple
NEARLY_NOTHING = 1e-5  # the last layer of a residual begins with weights this small, as in Ho's code: a block begins as the identity


def sinusoid(t: Tensor, dim: int) -> Tensor:
    """Times (B,) -> (B, dim): cosines and sines of wavelengths from 2 pi to 20,000 pi (Vaswani et al., 2017, section 3.5)."""
    frequency = torch.exp(-math.log(10000) * torch.arange(dim // 2, device=t.device) / (dim // 2))
    phase = t.float()[:, None] * frequency
    return torch.cat([phase.cos(), phase.sin()], -1)


def faint(layer: nn.Module) -> nn.Module:
    """Its weights made nearly nothing, its biases nothing."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=NEARLY_NOTHING) if parameter.ndim > 1 else nn.init.zeros_(parameter)
    return layer


class ResBlock(nn.Module):
    """x + F(x, e): (B, before, n, n) and e (B, E) -> (B, after, n, n)"""

    def __init__(self, before: int, after: int, e: int, dropout: float):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, before), nn.Conv2d(before, after, 3, padding=1)
        self.e = nn.Linear(e, after)
        self.norm2, self.dropout = nn.GroupNorm(GROUPS, after), nn.Dropout(dropout)
        self.conv2 = faint(nn.Conv2d(after, after, 3, padding=1))
        self.shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.e(e)[..., None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.shortcut(x) + h


class Look(nn.Module):
    """Every pixel looks at every other, then at a context (B, S, D): (B, C, n, n) -> (B, C, n, n)"""

    def __init__(self, channels: int, heads: int, context_dim: int | None):
        super().__init__()
        self.norm, self.itself = nn.GroupNorm(GROUPS, channels), MultiHeadAttention(channels, heads)
        faint(self.itself.c_proj)
        if context_dim is not None:
            self.widen = nn.Linear(context_dim, channels)
            self.norm_context, self.context = nn.LayerNorm(channels), MultiHeadAttention(channels, heads)
            faint(self.context.c_proj)

    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        tokens = x.flatten(2).mT  # (B, n n, C)
        tokens = tokens + self.itself(self.norm(x).flatten(2).mT)
        if context is not None:
            tokens = tokens + self.context(self.norm_context(tokens), self.widen(context), mask=mask)
        return tokens.mT.unflatten(2, x.shape[2:])


class Layer(nn.Module):
    """A residual block, and a look around if `attention`."""

    def __init__(self, before: int, after: int, e: int, dropout: float, attention: bool, heads: int, context_dim: int | None):
        super().__init__()
        self.block = ResBlock(before, after, e, dropout)
        self.look = Look(after, heads, context_dim) if attention else None

    def forward(self, x: Tensor, e: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        x = self.block(x, e)
        return x if self.look is None else self.look(x, context, mask)


class Half(nn.Module):
    """Half as large by a convolution of stride 2."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, *_: object) -> Tensor:
        return self.conv(x)


class Double(Half):
    """Twice as large: every pixel four times, then a convolution."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, *_: object) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class UNet(nn.Module):
    """x (B, C, n, n), t (B,), labels (B,) and context (B, S, D), where it was made for them -> (B, channels, n, n)

    `width` times each of `multipliers` are the channels of the levels, of `depth` blocks each. `attention` names levels by how many times
    smaller their maps are than the picture. Label `num_classes` says that none is known. `present` (B, S) is False where a context has no
    token.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int,
        multipliers: Sequence[int],
        depth: int,
        attention: Sequence[int],
        heads: int,
        dropout: float,
        num_classes: int | None = None,
        context_dim: int | None = None,
    ):
        super().__init__()
        self.width, e = width, 4 * width
        self.time = nn.Sequential(nn.Linear(width, e), nn.SiLU(), nn.Linear(e, e))
        self.label = nn.Embedding(num_classes + 1, e) if num_classes is not None else None
        self.stem = nn.Conv2d(channels, width, 3, padding=1)

        def layer(before: int, after: int, looks: bool) -> Layer:
            return Layer(before, after, e, dropout, looks, heads, context_dim)

        widths = [width * m for m in multipliers]
        now, left = width, [width]  # channels of what the way down leaves behind
        down: list[nn.Module] = []
        for level, after in enumerate(widths):
            for _ in range(depth):
                down.append(layer(now, after, 2**level in attention))
                now = after
                left.append(now)
            if level < len(widths) - 1:
                down.append(Half(now))
                left.append(now)
        middle = [layer(now, now, True), layer(now, now, False)]
        up: list[nn.Module] = []
        for level, after in reversed(list(enumerate(widths))):
            for _ in range(depth + 1):
                up.append(layer(now + left.pop(), after, 2**level in attention))
                now = after
            if level > 0:
                up.append(Double(now))
        self.down, self.middle, self.up = nn.ModuleList(down), nn.ModuleList(middle), nn.ModuleList(up)
        self.norm, self.head = nn.GroupNorm(GROUPS, now), faint(nn.Conv2d(now, channels, 3, padding=1))

    def forward(
        self, x: Tensor, t: Tensor, labels: Tensor | None = None, context: Tensor | None = None, present: Tensor | None = None
    ) -> Tensor:
        e = self.time(sinusoid(t, self.width))
        if self.label is not None:
            none = self.label.num_embeddings - 1
            e = e + self.label(labels if labels is not None else torch.full((len(x),), none, device=x.device))
        e, mask = F.silu(e), None if present is None else present[:, None, None]
        x = self.stem(x)
        left = [x]
        for layer in self.down:
            x = layer(x, e, context, mask)
            left.append(x)
        for layer in self.middle:
            x = layer(x, e, context, mask)
        for layer in self.up:
            x = layer(x if isinstance(layer, Double) else torch.cat([x, left.pop()], 1), e, context, mask)
        return self.head(F.silu(self.norm(x)))


def check_levels(width: int, multipliers: Sequence[int], prefix: str = "model.") -> None:
    """Raises ConfigError, naming the key of a model, where there is no level, or its channels are not to be grouped."""
    if width % GROUPS:
        raise ConfigError("is not a multiple of the groups of a norm", key=f"{prefix}width", value=width, cure=f"a multiple of {GROUPS}")
    if not multipliers:
        raise ConfigError("needs at least one level", key=f"{prefix}multipliers", value=[], cure=f"{prefix}multipliers=[1,2]")


def check_geometry(size: int, width: int, multipliers: Sequence[int], attention: Sequence[int], heads: int) -> None:
    """Raises ConfigError, naming the key of a model, where pictures of so many pixels, or channels, cannot be divided as asked."""
    check_levels(width, multipliers)
    smallest = 2 ** (len(multipliers) - 1)
    if size % smallest:
        problem = f"halving pictures of {size} pixels {len(multipliers) - 1} times leaves a remainder"
        raise ConfigError(problem, key="model.multipliers", value=list(multipliers), cure="fewer levels, or pictures of another size")
    levels = [2**level for level in range(len(multipliers))]
    for factor in attention:
        if factor not in levels:
            problem, cure = f"no level is {factor} times smaller than the picture", f"of {levels}"
            raise ConfigError(problem, key="model.attention", value=list(attention), cure=cure)
    looking = [multipliers[levels.index(factor)] for factor in attention] + [multipliers[-1]]
    for multiplier in looking:
        if width * multiplier % heads:
            problem, cure = f"{width * multiplier} channels cannot be shared evenly among them", "a divisor of model.width"
            raise ConfigError(problem, key="model.heads", value=heads, cure=cure)
