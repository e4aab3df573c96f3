"""A variational autoencoder: pictures as few numbers, of a known distribution, and back.

Kingma and Welling, "Auto-Encoding Variational Bayes", 2014. https://arxiv.org/abs/1312.6114
Higgins et al., "beta-VAE", 2017: the weight of the KL. https://openreview.net/forum?id=Sy2fzU9gl
Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", 2016: the tighter bound. https://arxiv.org/abs/1509.00519

    x -> encoder -> mu, logvar of q(z | x) -> z = mu + sigma eps -> decoder -> p(x | z)
    ELBO = E_q log p(x | z) - beta KL(q(z | x) || N(0, I)), in nats of a whole picture

Differs: encoder and decoder are convolutions with residual blocks, theirs one hidden layer each; the deviation of a Gaussian p(x | z) is
one number, learnt with the weights (Rybkin et al., "Simple and Effective VAE Training with Calibrated Decoders", 2021.
https://arxiv.org/abs/2006.13202); the encoder may be shown a noisier picture than the one to be told (Im et al., "Denoising Criterion
for Variational Auto-Encoding Framework", 2017. https://arxiv.org/abs/1511.06406).

Letters: B pictures, C channels, n = H = W pixels, D latents, k importance samples; x pixels in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refresher_runner.errors import ConfigError, UsageError
from refresher_runner.nn.pictures import picture_files, side_by_side
from refresher_runner.nn.unet import GROUPS, check_levels
from refresher_runner.registry import MODELS
from refresher_runner.report import Embedding, Images, Loggable, Prediction, Report
from refresher_runner.schema import NonNegative, NonNegativeFloat, Positive, PositiveFloat
from refresher_runner.spec import ImageBatch, ImageSpec
from refresher_runner.task import Metric, Output, Task

WALKED = 8  # latents that a traversal walks along: those that the encoder says most by
REACH = 3.0  # how far, in standard deviations of the prior
ACTIVE = 0.01  # variance over pictures of a latent's mean above which it is in use (Burda et al., section 5.2)


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

    def __init__(self, spec: ImageSpec, widths: Sequence[int], sizes: Sequence[int], depth: int, latents: int):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(spec.channels, widths[0], 3, padding=1)]
        for before, after in pairwise(widths):
            layers += [Residual(before) for _ in range(depth)]
            layers.append(nn.Conv2d(before, after, 3, stride=2, padding=1))
        layers += [*(Residual(widths[-1]) for _ in range(depth)), nn.GroupNorm(GROUPS, widths[-1]), nn.SiLU(), nn.Flatten()]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(widths[-1] * sizes[-1] ** 2, 2 * latents)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.head(self.body(x)).float().chunk(2, -1)
        return mu, logvar


class Decoder(nn.Module):
    """z (B, D) -> (B, C, n, n), means of a Gaussian p(x | z), or logits of a Bernoulli's"""

    def __init__(self, spec: ImageSpec, widths: Sequence[int], sizes: Sequence[int], depth: int, latents: int):
        super().__init__()
        self.smallest = (widths[-1], sizes[-1], sizes[-1])
        self.stem = nn.Linear(latents, math.prod(self.smallest))
        layers: list[nn.Module] = [Residual(widths[-1]) for _ in range(depth)]
        for (before, after), size in zip(pairwise(reversed(widths)), reversed(sizes[:-1]), strict=True):
            layers += [nn.Upsample(size=(size, size)), nn.Conv2d(before, after, 3, padding=1), *(Residual(after) for _ in range(depth))]
        layers += [nn.GroupNorm(GROUPS, widths[0]), nn.SiLU(), nn.Conv2d(widths[0], spec.channels, 3, padding=1)]
        self.body = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.body(self.stem(z).unflatten(1, self.smallest)).float()


def kl_to_prior(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, 1)) of every latent, appendix B of Kingma and Welling: (B, D) nats"""
    return (mu**2 + logvar.exp() - 1 - logvar) / 2


def log_normal(x: Tensor, mu: Tensor | float, logvar: Tensor | float) -> Tensor:
    """Log N(x; mu, exp(logvar)), summed over all but the first dimension: (B,) nats"""
    logvar = torch.as_tensor(logvar, device=x.device)
    return -((x - mu) ** 2 / logvar.exp() + logvar + math.log(2 * math.pi)).expand_as(x).flatten(1).sum(1) / 2


@dataclass(frozen=True)
class Showing:
    """What evaluations and `predict` show."""

    operation: Literal["reconstruct", "interpolate", "modulate", "traverse"]
    frames: int
    modulation: tuple[float, ...]
    truncation: float
    samples: int
    judged: int


class VAE(Task):
    """Descend - ELBO, eq. 10: the price of telling z, and of what z leaves untold of x."""

    draws = True

    def __init__(
        self,
        spec: ImageSpec,
        encoder: Encoder,
        decoder: Decoder,
        *,
        latents: int,
        likelihood: Literal["bernoulli", "gaussian"],
        beta: float,
        noise: float,
        importance_samples: int,
        showing: Showing,
    ):
        super().__init__()
        self.spec, self.encoder, self.decoder, self.latents = spec, encoder, decoder, latents
        self.likelihood, self.beta, self.noise = likelihood, beta, noise
        self.importance_samples, self.showing = importance_samples, showing
        self.log_sigma = nn.Parameter(torch.full((1,), -1.0)) if likelihood == "gaussian" else None

    # ---------------------------------------------------------------- learning

    def step(self, batch: ImageBatch) -> Output:
        """- (E_q log p(x | z) - beta KL), eq. 10 with one z, a mean over pictures, in nats."""
        x = self.spec.pixels(batch.images)
        mu, logvar = self.encode(self.noisy(x))
        reconstruction = self.log_p(x, self.decoder(self.reparameterise(mu, logvar)))
        kl = kl_to_prior(mu, logvar).sum(1)
        loss = -(reconstruction - self.beta * kl).mean()
        parts = {"reconstruction": -reconstruction.mean().detach(), "kl": kl.mean().detach()}
        if self.training or not self.importance_samples:
            return Output(loss, parts)
        return Output(loss, parts, preds=-self.importance_bound(x, self.importance_samples), targets=batch.labels)

    def noisy(self, x: Tensor) -> Tensor:
        """What the encoder is shown of x."""
        return x + self.noise * torch.randn_like(x) if self.noise else x

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

    @torch.no_grad()
    def importance_bound(self, x: Tensor, k: int) -> Tensor:
        """L_k = E log 1/k sum_i p(x, z_i) / q(z_i | x), Burda et al., section 3: (B,) nats, below log p(x), the nearer the larger k."""
        mu, logvar = self.encode(x)
        weights = []
        for _ in range(k):
            z = self.reparameterise(mu, logvar)
            weights.append(self.log_p(x, self.decoder(z)) + log_normal(z, 0.0, 0.0) - log_normal(z, mu, logvar))
        return torch.stack(weights).logsumexp(0) - math.log(k)

    # ---------------------------------------------------------------- the latent space

    @torch.no_grad()
    def sample(self, count: int, truncation: float | None = None) -> Tensor:
        """Pictures (count, C, n, n) of z ~ N(0, I); truncated, no latent is farther than that from 0 (Brock et al., 2019, section 3.1)."""
        z = torch.randn(count, self.latents, device=next(self.parameters()).device)
        if truncation is not None:
            low = (1 - math.erf(truncation / math.sqrt(2))) / 2  # what lies below
            z = torch.special.ndtri(low + (1 - 2 * low) * torch.rand_like(z)).clamp(-truncation, truncation)
        return self.decode(z)

    @torch.no_grad()
    def interpolate(self, a: Tensor, b: Tensor, frames: int) -> Tensor:
        """From one mean (D,) to another by a line: pictures (frames, C, n, n)"""
        way = torch.linspace(0, 1, frames, device=a.device)[:, None]
        return self.decode(torch.lerp(a, b, way))

    @torch.no_grad()
    def modulate(self, z: Tensor, m: Tensor) -> Tensor:
        """Z' = z * m, latent by latent: pictures of z (B, D) and m (D,)"""
        return self.decode(z * m)

    @torch.no_grad()
    def traverse(self, z: Tensor, latent: int, frames: int) -> Tensor:
        """Pictures (frames, C, n, n) of z (D,) with one latent moved from -3 to 3"""
        moved = z.repeat(frames, 1)
        moved[:, latent] = torch.linspace(-REACH, REACH, frames, device=z.device)
        return self.decode(moved)

    # ---------------------------------------------------------------- looking

    def metrics(self) -> dict[str, Metric]:
        if not self.importance_samples:
            return {}
        from refresher_runner.metrics.generation import MeanOfPreds  # imports torchmetrics, which takes seconds

        return {"importance_bound": MeanOfPreds()}

    def observe(self, batch: ImageBatch) -> Report:
        """Pictures and their reconstructions, draws from the prior, a walk along the latents, where pictures lie, and a judge's opinion."""
        few, x = self.showing.samples, self.spec.pixels(batch.images)
        shown = self.noisy(x)
        mu, logvar = self.encode(shown)
        rebuilt = self.decode(mu)
        pairs = [side_by_side(a, b) for a, b in zip(shown[:few].clamp(0, 1), rebuilt[:few], strict=True)]
        names = tuple(self.spec.classes[label] for label in batch.labels.tolist())
        busiest = kl_to_prior(mu, logvar).mean(0).argsort(descending=True)[:WALKED].tolist()
        report: dict[str, Loggable] = {
            "reconstructions": Images(torch.stack(pairs), names[:few]),
            "samples": Images(self.sample(few)),
            "traversal": self._walk(mu[0], busiest),
            "latents": Embedding(mu, names, x),
            "active_units": float((mu.var(0) > ACTIVE).sum()) if len(mu) > 1 else 0.0,
        }
        if len(mu) > 1:
            report["interpolation"] = Images(self.interpolate(mu[0], mu[1], self.showing.frames))
        if self.judge is not None and self.showing.judged:
            from refresher_runner.metrics.generation import judged, recognised

            drawn = self.spec.normalise(self.sample(self.showing.judged))
            report |= judged(self.judge, batch.images, drawn, None, self.spec.classes)
            titles = "original", "recognised in the reconstruction"
            report |= recognised(self.judge, self.spec.normalise(rebuilt), batch.labels, self.spec.classes, *titles)
        return report

    def predict(self, inputs: Sequence[str]) -> Iterator[Prediction]:
        """A number draws so many pictures from the prior, truncated; files and folders of pictures undergo `model.operation`.

        Raises DataError naming a file, or UsageError where pictures are too few to interpolate between.
        """
        how = self.showing
        for count in (text for text in inputs if text.isdecimal()):
            yield Prediction(count, {"truncation": how.truncation}, {"samples": Images(self.sample(int(count), how.truncation))})
        paths = picture_files([text for text in inputs if not text.isdecimal()])
        device = next(self.parameters()).device
        x = [self.spec.pixels(self.spec.read(path).to(device)) for path in paths]
        codes = [self.encode(picture[None]) for picture in x]
        if how.operation == "interpolate":
            if len(paths) == 1:
                raise UsageError("is one picture, and two are interpolated", key="input", value=str(paths[0]), cure="name another picture")
            for (a, b), ((mu, _), (after, _)) in zip(pairwise(paths), pairwise(codes), strict=True):
                frames = Images(self.interpolate(mu[0], after[0], how.frames))
                yield Prediction(f"{a} to {b}", {"distance": (after - mu).norm().item()}, {"interpolation": frames})
            return
        for path, picture, (mu, logvar) in zip(paths, x, codes, strict=True):
            kl = kl_to_prior(mu, logvar)[0]
            values = {"bound": self.importance_bound(picture[None], max(self.importance_samples, 1)).item(), "kl": kl.sum().item()}
            yield Prediction(str(path), values, {how.operation: self._operated(picture, mu, kl)})

    def _operated(self, picture: Tensor, mu: Tensor, kl: Tensor) -> Images:
        """What `model.operation` makes of one picture, its code mu (1, D) and what each latent tells of it, (D,)."""
        how = self.showing
        if how.operation == "traverse":
            return self._walk(mu[0], kl.argsort(descending=True)[:WALKED].tolist())
        rebuilt = self.decode(mu)[0]
        if how.operation == "reconstruct":
            return Images(torch.stack([picture, rebuilt]), ("picture", "reconstruction"))
        m = torch.tensor(how.modulation, device=mu.device).expand(self.latents)
        return Images(torch.stack([picture, rebuilt, self.modulate(mu, m)[0]]), ("picture", "z", "z * m"))

    def _walk(self, z: Tensor, latents: Sequence[int]) -> Images:
        """A row of frames for every latent, side by side."""
        rows = [torch.cat(list(self.traverse(z, latent, self.showing.frames)), -1) for latent in latents]
        return Images(torch.stack(rows), tuple(f"latent {latent}, -{REACH:g} to {REACH:g}" for latent in latents))


@MODELS.register("vae")
def build_vae(
    spec: ImageSpec,
    *,
    width: Positive,
    multipliers: tuple[Positive, ...],
    depth: NonNegative,
    latents: Positive,
    likelihood: Literal["bernoulli", "gaussian"],
    beta: NonNegativeFloat,
    noise: NonNegativeFloat,
    importance_samples: NonNegative,
    operation: Literal["reconstruct", "interpolate", "modulate", "traverse"],
    frames: Positive,
    modulation: tuple[float, ...],
    truncation: PositiveFloat,
    samples: Positive,
    judged: NonNegative,
) -> VAE:
    """Variational autoencoder (Kingma and Welling, 2014).

    Raises ConfigError where channels cannot be divided, or `modulation` is neither one number nor one for each latent.
    """
    check_levels(width, multipliers)
    if len(modulation) not in (1, latents):
        problem = f"holds {len(modulation)} numbers for {latents} latents"
        raise ConfigError(problem, key="model.modulation", value=list(modulation), cure="one number for all, or one for each")
    sizes = [spec.size]
    for _ in multipliers[1:]:
        sizes.append((sizes[-1] + 1) // 2)
    widths = [width * m for m in multipliers]
    showing = Showing(operation, frames, modulation, truncation, samples, judged)
    return VAE(
        spec,
        Encoder(spec, widths, sizes, depth, latents),
        Decoder(spec, widths, sizes, depth, latents),
        latents=latents,
        likelihood=likelihood,
        beta=beta,
        noise=noise,
        importance_samples=importance_samples,
        showing=showing,
    )
