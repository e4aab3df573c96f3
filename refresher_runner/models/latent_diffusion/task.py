"""Latent diffusion: pictures are drawn, as words tell, by taking noise from what an autoencoder makes of them.

Rombach, Blattmann, Lorenz, Esser and Ommer, "High-Resolution Image Synthesis with Latent Diffusion Models", 2022.
https://arxiv.org/abs/2112.10752
Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022. https://arxiv.org/abs/2207.12598
Meng et al., "SDEdit", 2022: from a picture, and noise, to another. https://arxiv.org/abs/2108.01073

    first (section 3.1):         x -> E -> mu, sigma of z -> D -> x, at a small price for what z tells                 (nn/autoencoder.py)
    then (sections 3.2, 3.3):    z = scale E(x), frozen;  z_t = alpha z + sigma eps
                               descend || eps - eps_theta(z_t, t, tau_theta(y)) ||^2       (nn/diffusion.py, nn/unet.py, nn/transformer.py)
    drawing:                     z_T ~ N(0, I), by one of the ways of nn/samplers.py to z, then D(z / scale)

E makes a picture's sides f times smaller, so diffusion has 1 / f^2 of the places to look at; eps_theta, a U-Net, looks at tau_theta(y),
a transformer's vectors of the words y. Both phases are of one run, and which of them a step belongs to is counted in a buffer.

Differs: E and D have neither a discriminator nor a perceptual loss (section 3.1) but a likelihood of pixels, its deviation learnt, as in
`vae`; what diffuses is E's mean, not a draw. The U-Net may be asked for eps, x0 or v; it is that of `ddpm`, whose places look at one
another and at the words, without a feed-forward layer after. tau_theta learns from the captions alone, or is a clip's, as it is. The t of a
batch lie evenly.

Letters: B pictures, C channels, n = H = W pixels, x pixels in [0, 1]; c latents at each of m x m places, z (B, c, m, m) of unit variance;
y captions (B, T), S = T tokens of a context; t = 0 .. T - 1 moments; the rest as in nn/diffusion.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from refresher_runner.models.latent_diffusion.showing import observe, predict
from refresher_runner.nn.attention import check_heads
from refresher_runner.nn.autoencoder import Autoencoder, check_modulation, draw, kl_to_prior
from refresher_runner.nn.denoisers import denoiser, guided
from refresher_runner.nn.diffusion import Process, Target
from refresher_runner.nn.ranks import gathered
from refresher_runner.nn.samplers import Sampling, last
from refresher_runner.nn.transformer import TextEncoder
from refresher_runner.nn.unet import UNet, check_geometry, check_levels
from refresher_runner.registry import MODELS
from refresher_runner.report import Prediction, Report
from refresher_runner.schema import Fraction, Later, NonNegative, NonNegativeFloat, Positive, PositiveFloat
from refresher_runner.spec import CaptionBatch, CaptionSpec
from refresher_runner.task import Borrowed, Goal, Metric, Output, Task
from refresher_runner.vocabulary import PAD

SHARP = -3.0  # log of the deviation of pixels that learning begins with: from a larger one it comes down too late, and z tells too little


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn, and what `predict` does with what it is given."""

    sampling: Sampling
    guidance: float
    n: int
    operation: Literal["draw", "interpolate", "modulate"]
    strength: float
    prompt: str
    frames: int
    modulation: tuple[float, ...]
    truncation: float | None
    samples: int
    judged: int


class Context(NamedTuple):
    """What the U-Net looks at: vectors (B, S, D), present (B, S) where there is a token."""

    vectors: Tensor
    present: Tensor


class LatentDiffusion(Task):
    """Learn E and D, then eps_theta(z_t, t, tau_theta(y)), the noise in a noisy latent; draw by removing it."""

    goal = Goal("denoising")
    partial = True
    draws = True
    batches: Tensor  # () int64, that the autoencoder has learnt from
    scale: Tensor  # (), 0 until the autoencoder has learnt
    nothing: Tensor  # (1, T), the caption that says nothing

    def __init__(
        self,
        spec: CaptionSpec,
        autoencoder: Autoencoder,
        text: TextEncoder,
        network: UNet,
        process: Process,
        *,
        autoencoder_steps: int,
        beta: float,
        target: Target,
        caption_dropout: float,
        borrowed: Sequence[Borrowed],
        drawing: Drawing,
    ):
        super().__init__()
        self.spec, self.autoencoder, self.text, self.network, self.process = spec, autoencoder, text, network, process
        self.autoencoder_steps, self.beta, self.caption_dropout, self.drawing = autoencoder_steps, beta, caption_dropout, drawing
        self.target: Target = target
        self.of_others = borrowed
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scale", torch.zeros(()))
        self.register_buffer("nothing", spec.encode([""]), persistent=False)
        self.coding, self.measured = True, False  # as far as is known: what follows from the buffers, asked until it is settled
        self.register_load_state_dict_post_hook(lambda task, _: task.ask_anew())

    def borrowed(self) -> Sequence[Borrowed]:
        return self.of_others

    # ---------------------------------------------------------------- phases

    def ask_anew(self) -> None:
        """Other buffers came in."""
        self.coding, self.measured = True, False

    def codes(self) -> bool:
        """Whether the autoencoder is what is learnt. Once it has learnt, its buffer is asked no more: a GPU would have to be waited for."""
        self.coding = self.coding and bool(self.batches < self.autoencoder_steps)
        return self.coding

    def is_measured(self) -> bool:
        self.measured = self.measured or bool(self.scale > 0)
        return self.measured

    def step(self, batch: CaptionBatch) -> Output:
        """In training the autoencoder's loss, of so many batches, then that of diffusion. Evaluations tell of both."""
        x, coding = self.spec.pixels(batch.images), self.codes()
        if self.training and coding:
            self.batches += 1
            self.scale.zero_()  # that of another autoencoder, where weights came with one
            return Output(*self.code(x))
        errors, t = self.denoise(self.latents(x), batch.captions)
        denoising = errors.mean()
        if self.training:
            return Output(denoising, {"denoising": denoising.detach()})
        loss, parts = self.code(x)
        return Output(loss if coding else denoising, {**parts, "denoising": denoising}, preds=errors, targets=t)

    # ---------------------------------------------------------------- learning

    def code(self, x: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """- (E_q log p(x | z) - beta KL(q(z | x) || N(0, I))), in nats of a whole picture, a mean over pictures; and its parts."""
        mu, logvar = self.autoencoder.encode(x)
        said = self.autoencoder.decoder(self.autoencoder.reparameterise(mu, logvar))
        reconstruction, kl = -self.autoencoder.log_p(x, said).mean(), kl_to_prior(mu, logvar).sum(1).mean()
        return reconstruction + self.beta * kl, {"reconstruction": reconstruction.detach(), "kl": kl.detach()}

    @torch.no_grad()
    def latents(self, x: Tensor) -> Tensor:
        """The z of x, scale E(x): (B, c, m, m). The scale is measured of the first batch of diffusion's training, which it gives unit
        variance (section 4.3.2 and appendix D.1), and then stays; until then each batch has its own.
        """
        mu, _ = self.autoencoder.encode(x)
        z = mu.unflatten(1, self.autoencoder.shape)
        if self.is_measured():
            return z * self.scale
        scale = 1 / (gathered(z) if self.training else z).std()
        if self.training:
            self.scale.copy_(scale)
        return z * scale

    def denoise(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """|| eps - eps_theta(z_t, t, tau_theta(y)) ||^2 at random t, section 3.3, or the same of x0 or v: a mean of each z, (B,); and t."""
        t, eps = self.process.moments(len(z), z.device), torch.randn_like(z)
        said = self.network(self.process.q_sample(z, t, eps), t, None, *self.context(self.told(y))).float()
        return ((said - self.process.target(self.target, z, eps, t)) ** 2).flatten(1).mean(1), t

    def told(self, y: Tensor) -> Tensor:
        """The captions that the network is told; in training some say nothing, so that it learns both (Ho and Salimans, Algorithm 1)."""
        withheld = torch.rand(len(y), 1, device=y.device) < self.caption_dropout
        return y.where(~withheld, self.nothing) if self.training else y

    def context(self, y: Tensor) -> Context:
        """tau_theta(y)"""
        return Context(self.text(y), y != PAD)

    # ---------------------------------------------------------------- drawing

    def path(self, context: Context, noise: Tensor, z: Tensor | None = None, strength: float = 1.0) -> Iterator[Tensor]:
        """From noise (B, c, m, m) to latents as the context has them, z_t after every step, z last.

        With a z (B, c, m, m) to begin from, so much of the way as `strength` says, from z with the noise of that moment on (Meng et al.,
        section 3): at 0 nothing happens to z, at 1 it is forgotten.
        """
        begin = round(strength * self.process.num_timesteps) - 1
        if z is not None and begin < 0:
            return iter([z])
        x, count = noise, len(noise)
        if z is not None and begin < self.process.num_timesteps - 1:
            x = self.process.q_sample(z, torch.full((count,), begin, device=noise.device), noise)
        else:
            begin = self.process.num_timesteps - 1
        nothing = self.context(self.nothing.expand(count, -1))
        said = guided(self._asked, context, nothing, self.drawing.guidance)
        return self.drawing.sampling.walk(self.process, denoiser(self.process, self.target, said), x, begin)

    def _asked(self, x: Tensor, t: Tensor, vectors: Tensor, present: Tensor) -> Tensor:
        return self.network(x, t, None, vectors, present)

    @torch.no_grad()
    def sample(self, y: Tensor, z: Tensor | None = None, strength: float = 1.0) -> Tensor:
        """Latents z (B, c, m, m) of captions (B, T), from noise, or from a z (B, c, m, m)."""
        return last(self.path(self.context(y), self.noise(len(y)), z, strength))

    def noise(self, count: int) -> Tensor:
        """z_T ~ N(0, I), truncated or not: (count, c, m, m)"""
        truncation = self.drawing.truncation if not self.training else None
        return draw(count, self.autoencoder.latents, self.scale.device, truncation).unflatten(1, self.autoencoder.shape)

    @torch.no_grad()
    def pixels(self, z: Tensor) -> Tensor:
        """D(z / scale), (B, C, n, n) in [0, 1]"""
        scale = self.scale if self.is_measured() else torch.ones_like(self.scale)
        return self.autoencoder.decode((z / scale).flatten(1))

    # ---------------------------------------------------------------- looking

    def metrics(self) -> dict[str, Metric]:
        from refresher_runner.metrics.generation import LossByTime  # imports torchmetrics, which takes seconds

        return {"denoising_by_t": LossByTime(self.process.num_timesteps)}

    def observe(self, batch: CaptionBatch) -> Report:
        return observe(self, batch)

    def predict(self, inputs: Sequence[str]) -> Iterator[Prediction]:
        return predict(self, inputs)


@MODELS.register("latent_diffusion")
def build_latent_diffusion(
    spec: CaptionSpec,
    *,
    autoencoder: str | None,
    autoencoder_steps: NonNegative,
    autoencoder_width: Positive,
    autoencoder_multipliers: tuple[Positive, ...],
    autoencoder_depth: NonNegative,
    latents: Positive,
    likelihood: Literal["bernoulli", "gaussian"],
    beta: NonNegativeFloat,
    text: str | None,
    dim: Positive,
    text_depth: Positive,
    text_heads: Positive,
    caption_dropout: Fraction,
    width: Positive,
    multipliers: tuple[Positive, ...],
    depth: Positive,
    attention: tuple[Positive, ...],
    heads: Positive,
    dropout: Fraction,
    num_timesteps: Positive,
    schedule: Literal["linear", "cosine"],
    target: Literal["eps", "x0", "v"],
    sampler: Later[Literal["ancestral", "ddim", "sde", "ode", "dpm"]],
    steps: Later[Positive],
    eta: Later[Fraction],
    variance: Later[Literal["beta", "posterior"]],
    guidance: Later[NonNegativeFloat],
    n: Later[Positive],
    operation: Later[Literal["draw", "interpolate", "modulate"]],
    strength: Later[Fraction],
    prompt: Later[str],
    frames: Later[Positive],
    modulation: Later[tuple[float, ...]],
    truncation: Later[PositiveFloat | None],
    samples: Positive,
    judged: NonNegative,
) -> LatentDiffusion:
    """Latent diffusion, from words to pictures (Rombach et al., 2022).

    Raises ConfigError where pictures, channels or vectors cannot be divided as asked, or `modulation` is neither one number nor one for
    each latent of a place.
    """
    check_levels(autoencoder_width, autoencoder_multipliers, "model.autoencoder_")
    check_heads(dim, text_heads, key="model.text_heads")
    check_modulation(modulation, latents, "latents of a place")
    of_pixels = Autoencoder(
        spec.channels,
        spec.size,
        width=autoencoder_width,
        multipliers=autoencoder_multipliers,
        depth=autoencoder_depth,
        latents=latents,
        maps=True,
        likelihood=likelihood,
    )
    if of_pixels.log_sigma is not None:
        nn.init.constant_(of_pixels.log_sigma, SHARP)
    check_geometry(of_pixels.shape[-1], width, multipliers, attention, heads)
    of_words = TextEncoder(len(spec.vocabulary), spec.block_size, dim=dim, depth=text_depth, heads=text_heads, dropout=dropout)
    network = UNet(
        latents,
        width=width,
        multipliers=multipliers,
        depth=depth,
        attention=attention,
        heads=heads,
        dropout=dropout,
        context_dim=dim,
    )
    borrowed = [Borrowed("model.autoencoder", autoencoder, of_pixels)] if autoencoder else []
    if text is not None:
        borrowed.append(Borrowed("model.text", text, of_words.requires_grad_(False), "text.", words=True))
    return LatentDiffusion(
        spec,
        of_pixels,
        of_words,
        network,
        Process(schedule, num_timesteps),
        autoencoder_steps=autoencoder_steps,
        beta=beta,
        target=target,
        caption_dropout=caption_dropout,
        borrowed=borrowed,
        drawing=Drawing(
            Sampling(sampler, steps, eta, variance),
            guidance,
            n,
            operation,
            strength,
            prompt,
            frames,
            modulation,
            truncation,
            samples,
            judged,
        ),
    )
