"""A variational autoencoder: pictures as few numbers, of a known distribution, and back.

Kingma and Welling, "Auto-Encoding Variational Bayes", 2014. https://arxiv.org/abs/1312.6114
Higgins et al., "beta-VAE", 2017: the weight of the KL. https://openreview.net/forum?id=Sy2fzU9gl
Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", 2016: the tighter bound. https://arxiv.org/abs/1509.00519

    x -> encoder -> mu, logvar of q(z | x) -> z = mu + sigma eps -> decoder -> p(x | z)          (nn/autoencoder.py)
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
from torch import Tensor

from refresher_runner.errors import UsageError
from refresher_runner.nn.autoencoder import Autoencoder, Likelihood, between, check_modulation, draw, kl_to_prior, log_normal
from refresher_runner.nn.pictures import picture_files, side_by_side
from refresher_runner.nn.unet import check_levels
from refresher_runner.registry import MODELS
from refresher_runner.report import Embedding, Images, Loggable, Prediction, Report
from refresher_runner.schema import Later, NonNegative, NonNegativeFloat, Positive, PositiveFloat
from refresher_runner.spec import ImageBatch, ImageSpec
from refresher_runner.task import Metric, Output, Task

WALKED = 8  # latents that a traversal walks along: those that the encoder says most by
REACH = 3.0  # how far, in standard deviations of the prior
ACTIVE = 0.01  # variance over pictures of a latent's mean above which it is in use (Burda et al., section 5.2)


@dataclass(frozen=True)
class Showing:
    """What evaluations and `predict` show."""

    operation: Literal["reconstruct", "interpolate", "modulate", "traverse"]
    frames: int
    modulation: tuple[float, ...]
    truncation: float
    samples: int
    judged: int


class VAE(Autoencoder, Task):
    """Descend - ELBO, eq. 10: the price of telling z, and of what z leaves untold of x."""

    draws = True

    def __init__(
        self,
        spec: ImageSpec,
        *,
        width: int,
        multipliers: Sequence[int],
        depth: int,
        latents: int,
        maps: bool,
        likelihood: Likelihood,
        beta: float,
        noise: float,
        importance_samples: int,
        showing: Showing,
    ):
        of_network = {"width": width, "multipliers": multipliers, "depth": depth, "latents": latents, "maps": maps}
        super().__init__(spec.channels, spec.size, **of_network, likelihood=likelihood)
        self.spec, self.beta, self.noise = spec, beta, noise
        self.importance_samples, self.showing = importance_samples, showing

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
        """Pictures (count, C, n, n) of z ~ N(0, I), truncated or not."""
        return self.decode(draw(count, self.latents, next(self.parameters()).device, truncation))

    @torch.no_grad()
    def interpolate(self, a: Tensor, b: Tensor, frames: int) -> Tensor:
        """From one mean (D,) to another by a line: pictures (frames, C, n, n)"""
        return self.decode(between(a, b, frames))

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
    maps: bool = False,  # as runs from before it was asked for
    likelihood: Literal["bernoulli", "gaussian"],
    beta: NonNegativeFloat,
    noise: NonNegativeFloat,
    importance_samples: NonNegative,
    operation: Later[Literal["reconstruct", "interpolate", "modulate", "traverse"]],
    frames: Later[Positive],
    modulation: Later[tuple[float, ...]],
    truncation: Later[PositiveFloat],
    samples: Positive,
    judged: NonNegative,
) -> VAE:
    """Variational autoencoder (Kingma and Welling, 2014).

    Raises ConfigError where channels cannot be divided, or `modulation` is neither one number nor one for each latent.
    """
    check_levels(width, multipliers)
    task = VAE(
        spec,
        width=width,
        multipliers=multipliers,
        depth=depth,
        latents=latents,
        maps=maps,
        likelihood=likelihood,
        beta=beta,
        noise=noise,
        importance_samples=importance_samples,
        showing=Showing(operation, frames, modulation, truncation, samples, judged),
    )
    check_modulation(modulation, task.latents, "latents")
    return task
