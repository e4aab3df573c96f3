"""Denoising diffusion: a network learns to see the noise in a noisy picture, and pictures are drawn by taking noise away bit by bit.

Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", 2020. https://arxiv.org/abs/2006.11239
Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021: the cosine schedule. https://arxiv.org/abs/2102.09672
Song, Meng and Ermon, "Denoising Diffusion Implicit Models", 2021: fewer steps. https://arxiv.org/abs/2010.02502
Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", 2021. https://arxiv.org/abs/2011.13456
Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022. https://arxiv.org/abs/2207.12598

    training:  x_t = alpha x_0 + sigma eps,  descend || eps - eps_theta(x_t, t) ||^2          (nn/diffusion.py: q, its posterior)
    drawing:   x_T ~ N(0, I), then by one of the ways of nn/samplers.py to x_0                (nn/unet.py: the network)

Differs: the network may be asked for x_0 or v instead of eps; variances are fixed, not learnt as by Nichol and Dhariwal; the t of a batch
lie evenly, from one random start.

Letters: B pictures, C channels, n = H = W pixels, K classes; x_0 in [-1, 1]; t = 0 .. T - 1; the rest as in nn/diffusion.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from refresher_runner.errors import UsageError, did_you_mean
from refresher_runner.nn.denoisers import denoiser, guided
from refresher_runner.nn.diffusion import Process, Target
from refresher_runner.nn.samplers import Denoiser, Sampling, last, log_likelihood
from refresher_runner.nn.unet import UNet, check_geometry
from refresher_runner.registry import MODELS
from refresher_runner.report import Images, Loggable, Prediction, Report
from refresher_runner.schema import Fraction, Later, NonNegative, NonNegativeFloat, Positive
from refresher_runner.spec import ImageBatch, ImageSpec
from refresher_runner.task import Metric, Output, Task

SHOWN = 10  # moments of a denoising path
ANY = "any"  # what to ask `predict` for when every class will do
PROBES = 1  # of Hutchinson's trace


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn."""

    sampling: Sampling
    guidance: float
    clip: bool
    samples: int
    judged: int
    likelihoods: int


class DDPM(Task):
    """Learn eps_theta(x_t, t), the noise in a noisy picture (Algorithm 1); draw by removing it (Algorithm 2, and faster ways)."""

    draws = True

    def __init__(self, spec: ImageSpec, network: UNet, process: Process, *, target: Target, label_dropout: float, drawing: Drawing):
        super().__init__()
        self.spec, self.network, self.process = spec, network, process
        self.target: Target = target
        self.label_dropout, self.drawing = label_dropout, drawing
        self.conditional = network.label is not None

    # ---------------------------------------------------------------- learning

    def step(self, batch: ImageBatch) -> Output:
        """L_simple, eq. 14: || eps - eps_theta(x_t, t) ||^2 at random t, a mean over pixels; or the same of x_0 or v."""
        x0 = self.scaled(batch.images)
        t, eps = self.process.moments(len(x0), x0.device), torch.randn_like(x0)
        said = self.network(self.process.q_sample(x0, t, eps), t, self.told(batch.labels)).float()
        errors = ((said - self.process.target(self.target, x0, eps, t)) ** 2).flatten(1).mean(1)
        return Output(errors.mean()) if self.training else Output(errors.mean(), preds=errors, targets=t)

    def scaled(self, images: Tensor) -> Tensor:
        """A batch's images as x_0 in [-1, 1]."""
        return 2 * self.spec.pixels(images) - 1

    def told(self, labels: Tensor) -> Tensor | None:
        """The classes that the network is told; in training some are withheld, so that it learns both (Ho and Salimans, Algorithm 1)."""
        if not self.conditional:
            return None
        withheld = torch.rand(len(labels), device=labels.device) < self.label_dropout
        return labels.where(~withheld, self.spec.num_classes) if self.training else labels

    # ---------------------------------------------------------------- drawing

    def denoiser(self, labels: Tensor | None, guidance: float, clip: bool) -> Denoiser:
        """What the network sees in x_t, drawn towards the classes labels (B,), the more the larger guidance; see nn/denoisers.py."""
        told = untold = ()
        if self.conditional and labels is not None:
            told, untold = (labels,), (torch.full_like(labels, self.spec.num_classes),)
        return denoiser(self.process, self.target, guided(self.network, told, untold, guidance if told else 1.0), clip=clip)

    def path(self, labels: Tensor | None, count: int) -> Iterator[Tensor]:
        """Pictures (count, C, n, n) on their way from noise, x_t after every step, x_0 last."""
        how, n = self.drawing, self.spec.size
        x = torch.randn(count, self.spec.channels, n, n, device=self.process.beta.device)
        return how.sampling.walk(self.process, self.denoiser(labels, how.guidance, how.clip), x)

    @torch.no_grad()
    def sample(self, labels: Tensor | None, count: int) -> Tensor:
        """Pictures (count, C, n, n), pixels in [0, 1], of the classes labels (count,), or of any."""
        return (last(self.path(labels, count)).clamp(-1, 1) + 1) / 2

    @torch.no_grad()
    def bits_per_dim(self, images: Tensor, labels: Tensor | None, steps: int) -> Tensor:
        """- log2 p(pixel values) / dimensions, (B,), by the probability flow; pixels are taken to be whole in 0..255 and are dequantised
        by uniform noise (Song et al., section 4.3), which makes the mean a bound from above.
        """
        levels = (self.spec.pixels(images) * 255).round()
        x = (levels + torch.rand_like(levels)) / 128 - 1
        log_p = log_likelihood(self.process, self.denoiser(labels, 1.0, clip=False), x, steps, PROBES)
        return 7 - log_p / (x[0].numel() * math.log(2))  # a level is 2^-7 wide

    # ---------------------------------------------------------------- looking

    def class_layers(self) -> list[nn.Module]:
        return [] if self.network.label is None else [self.network.label]

    def metrics(self) -> dict[str, Metric]:
        from refresher_runner.metrics.generation import LossByTime  # imports torchmetrics, which takes seconds

        return {"loss_by_t": LossByTime(self.process.num_timesteps)}

    def observe(self, batch: ImageBatch) -> Report:
        """Pictures of every class, one on its way from noise, the schedule, and what a judge says if there is one."""
        classes, device = self.spec.classes, batch.images.device
        asked = torch.arange(self.drawing.samples, device=device) % len(classes) if self.conditional else None
        captions = tuple(classes[label] for label in asked.tolist()) if asked is not None else ()
        report: dict[str, Loggable] = {"samples": Images(self.sample(asked, self.drawing.samples), captions)}
        report |= {"path": self._shown_path(asked[:1] if asked is not None else None), "schedule": self.process.schedule()}
        if self.drawing.likelihoods:
            few = self.drawing.likelihoods
            labels = batch.labels[:few] if self.conditional else None
            report["bits_per_dim"] = self.bits_per_dim(batch.images[:few], labels, self.drawing.sampling.steps).mean().item()
        if self.judge is not None and self.drawing.judged:
            from refresher_runner.metrics.generation import judged

            asked = torch.arange(self.drawing.judged, device=device) % len(classes) if self.conditional else None
            drawn = self.spec.normalise(self.sample(asked, self.drawing.judged))
            report |= judged(self.judge, batch.images, drawn, asked, classes)
        return report

    def predict(self, inputs: Sequence[str]) -> Iterator[Prediction]:
        """For every class that is named, or `any`, pictures of it and how the first came about. Raises UsageError for an unknown one."""
        classes, device = self.spec.classes, self.process.beta.device
        known = [*classes, ANY] if self.conditional else [ANY]
        for name in inputs:
            if name not in known:
                raise UsageError("is no class that this model draws", key="input", value=name, cure=did_you_mean(name, known))
        for name in inputs:
            count = self.drawing.samples
            labels = torch.full((count,), classes.index(name), device=device) if name != ANY else None
            report: Report = {
                "samples": Images(self.sample(labels, count)),
                "path": self._shown_path(None if labels is None else labels[:1]),
            }
            yield Prediction(name, {"pictures": count}, report)

    @torch.no_grad()
    def _shown_path(self, labels: Tensor | None) -> Images:
        """One picture on its way, at a few moments."""
        steps = torch.cat(list(self.path(labels, 1)))
        shown = torch.linspace(0, len(steps) - 1, min(SHOWN, len(steps))).round().long()
        return Images((steps[shown].clamp(-1, 1) + 1) / 2, tuple(f"step {i + 1}" for i in shown.tolist()))


@MODELS.register("ddpm")
def build_ddpm(
    spec: ImageSpec,
    *,
    width: Positive,
    multipliers: tuple[Positive, ...],
    depth: Positive,
    attention: tuple[Positive, ...],
    heads: Positive,
    dropout: Fraction,
    num_timesteps: Positive,
    schedule: Literal["linear", "cosine"],
    target: Literal["eps", "x0", "v"],
    conditional: bool,
    label_dropout: Fraction,
    sampler: Later[Literal["ancestral", "ddim", "sde", "ode", "dpm"]],
    steps: Later[Positive],
    eta: Later[Fraction],
    variance: Later[Literal["beta", "posterior"]],
    guidance: Later[NonNegativeFloat],
    clip: Later[bool],
    samples: Later[Positive],
    judged: NonNegative,
    likelihoods: NonNegative,
) -> DDPM:
    """Denoising diffusion (Ho et al., 2020), and its faster and guided ways of drawing.

    Raises ConfigError where pictures or channels cannot be divided as asked.
    """
    check_geometry(spec.size, width, multipliers, attention, heads)
    network = UNet(
        spec.channels,
        width=width,
        multipliers=multipliers,
        depth=depth,
        attention=attention,
        heads=heads,
        dropout=dropout,
        num_classes=spec.num_classes if conditional else None,
    )
    drawing = Drawing(Sampling(sampler, steps, eta, variance), guidance, clip, samples, judged, likelihoods)
    return DDPM(spec, network, Process(schedule, num_timesteps), target=target, label_dropout=label_dropout, drawing=drawing)
