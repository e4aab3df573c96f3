"""Pictures as few numbers of a known distribution, and back: what a variational autoencoder is made of.

Kingma and Welling, "Auto-Encoding Variational Bayes", 2014. https://arxiv.org/abs/1312.6114
Rybkin et al., "Simple and Effective VAE Training with Calibrated Decoders", 2021: a learnt deviation. https://arxiv.org/abs/2006.13202

    x -> encoder -> mu, logvar of q(z | x) -> z = mu + sigma eps -> decoder -> p(x | z)

The D latents are a vector, which all of the picture is mixed into, or, as maps, so many at every place of the smallest maps, in the order
of (latents, m, m); as vectors they are handed on in either case.

Letters: B pictures, C channels, n = H = W pixels, D latents, m places of a side of the smallest maps; x pixels in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refresher_runner.errors import ConfigError
from refresher_runner.nn.unet import GROUPS

Likelihood = Literal["bernoulli", "gaussian"]


class Residual(nn.Module):
    """x + what two convolutions make of it: (B, C, n, n) -> (B, C, n, n)"""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(GROUPS, channels), nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(y)))


class Encoder(nn.Module):
    """x (B, C, n, n) -> mu and logvar of q(z | x), each (B, D)"""

    def __init__(self, channels: int, widths: Sequence[int], sizes: Sequence[int], depth: int, latents: int, maps: bool):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1)]
        for before, after in pairwise(widths):
            layers += [Residual(before) for _ in range(depth)]
            layers.append(nn.Conv2d(before, after, 3, stride=2, padding=1))
        layers += [*(Residual(widths[-1]) for _ in range(depth)), nn.GroupNorm(GROUPS, widths[-1]), nn.SiLU()]
        self.body = nn.Sequential(*layers) if maps else nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Conv2d(widths[-1], 2 * latents, 1) if maps else nn.Linear(widths[-1] * sizes[-1] ** 2, 2 * latents)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.head(self.body(x)).float().chunk(2, 1)
        return mu.flatten(1), logvar.flatten(1)


class Decoder(nn.Module):
    """z (B, D) -> (B, C, n, n), means of a Gaussian p(x | z), or logits of a Bernoulli's"""

    def __init__(self, channels: int, widths: Sequence[int], sizes: Sequence[int], depth: int, latents: int, maps: bool):
        super().__init__()
        self.smallest = (widths[-1], sizes[-1], sizes[-1])
        self.shape = (latents, *self.smallest[1:]) if maps else (latents,)
        self.stem = nn.Conv2d(latents, widths[-1], 3, padding=1) if maps else nn.Linear(latents, math.prod(self.smallest))
        layers: list[nn.Module] = [Residual(widths[-1]) for _ in range(depth)]
        for (before, after), size in zip(pairwise(reversed(widths)), reversed(sizes[:-1]), strict=True):
            layers += [nn.Upsample(size=(size, size)), nn.Conv2d(before, after, 3, padding=1), *(Residual(after) for _ in range(depth))]
        layers += [nn.GroupNorm(GROUPS, widths[0]), nn.SiLU(), nn.Conv2d(widths[0], channels, 3, padding=1)]
        self.body = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.body(self.stem(z.unflatten(1, self.shape)).reshape(-1, *self.smallest)).float()


class Autoencoder(nn.Module):
    """Encoder and decoder, what they say, and what it costs to tell z. `width` times each of `multipliers` are the channels of the levels,
    each half as large as the one before, of `depth` residual blocks.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        width: int,
        multipliers: Sequence[int],
        depth: int,
        latents: int,
        maps: bool,
        likelihood: Likelihood,
    ):
        super().__init__()
        sizes = [size]
        for _ in multipliers[1:]:
            sizes.append((sizes[-1] + 1) // 2)
        widths = [width * m for m in multipliers]
        self.encoder = Encoder(channels, widths, sizes, depth, latents, maps)
        self.decoder = Decoder(channels, widths, sizes, depth, latents, maps)
        self.shape = (latents, sizes[-1], sizes[-1]) if maps else (latents,)
        self.latents = math.prod(self.shape)
        self.log_sigma = nn.Parameter(torch.full((1,), -1.0)) if likelihood == "gaussian" else None

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mu and logvar of q(z | x), each (B, D)"""
        return self.encoder(2 * x - 1)

    def reparameterise(self, mu: Tensor, logvar: Tensor) -> Tensor:
        """Z = mu + sigma eps with eps ~ N(0, I), section 2.4: a draw through which gradients pass"""
        return mu + (logvar / 2).exp() * torch.randn_like(mu)

    def log_p(self, x: Tensor, said: Tensor) -> Tensor:
        """Log p(x | z) in nats, (B,). Of pixels between 0 and 1 Bernoulli's is the expectation over pixels so rounded by chance."""
        if self.log_sigma is None:
            return -F.binary_cross_entropy_with_logits(said, x, reduction="none").flatten(1).sum(1)
        return log_normal(x, said, 2 * self.log_sigma.float())

    def decode(self, z: Tensor) -> Tensor:
        """The mean of p(x | z), pixels (B, C, n, n) in [0, 1]"""
        said = self.decoder(z)
        return said.sigmoid() if self.log_sigma is None else said.clamp(0, 1)


def kl_to_prior(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, 1)) of every latent, appendix B of Kingma and Welling: (B, D) nats"""
    return (mu**2 + logvar.exp() - 1 - logvar) / 2


def log_normal(x: Tensor, mu: Tensor | float, logvar: Tensor | float) -> Tensor:
    """Log N(x; mu, exp(logvar)), summed over all but the first dimension: (B,) nats"""
    logvar = torch.as_tensor(logvar, device=x.device)
    return -((x - mu) ** 2 / logvar.exp() + logvar + math.log(2 * math.pi)).expand_as(x).flatten(1).sum(1) / 2


# -------------------------------------------------------------------- the latent space


def draw(count: int, latents: int, device: torch.device, truncation: float | None = None) -> Tensor:
    """Latents (count, D) of N(0, I); truncated, none is farther than that from 0 (Brock et al., "Large Scale GAN Training for High Fidelity
    Natural Image Synthesis", 2019, section 3.1. https://arxiv.org/abs/1809.11096).
    """
    z = torch.randn(count, latents, device=device)
    if truncation is None:
        return z
    low = (1 - math.erf(truncation / math.sqrt(2))) / 2  # what lies below
    return torch.special.ndtri(low + (1 - 2 * low) * torch.rand_like(z)).clamp(-truncation, truncation)


def between(a: Tensor, b: Tensor, frames: int) -> Tensor:
    """From a to b by a line, both included: (...) twice -> (frames, ...)"""
    way = torch.linspace(0, 1, frames, device=a.device, dtype=a.dtype)
    return torch.lerp(a, b, way.view(-1, *[1] * a.ndim))


def check_modulation(modulation: Sequence[float], latents: int, named: str) -> None:
    """Raises ConfigError for factors that are neither one for all latents nor one for each."""
    if len(modulation) not in (1, latents):
        problem = f"holds {len(modulation)} numbers for {latents} {named}"
        raise ConfigError(problem, key="model.modulation", value=list(modulation), cure="one number for all, or one for each")
