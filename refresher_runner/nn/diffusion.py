"""The process that turns data into noise step by step, and all of it that is known in closed form.

Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", 2020 (DDPM below). https://arxiv.org/abs/2006.11239
Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021. https://arxiv.org/abs/2102.09672

Steps are counted t = 0 .. T - 1 where the papers count 1 .. T, so data themselves stand at t = -1. Between two steps log alpha_bar is a
line: that makes a process in continuous time of it, dx = - beta/2 x dt + sqrt(beta) dw, which the solvers of nn/samplers.py follow.

Letters: x0 data, x or x_t what is left of them at t, eps ~ N(0, I) the noise in it; beta_t the variance added by a step,
alpha_bar_t = prod (1 - beta_s) what is left of data's variance; alpha = sqrt(alpha_bar) and sigma = sqrt(1 - alpha_bar), so that
x_t = alpha x0 + sigma eps. Tensors x are (B, ...), times t are (B,), whole or not.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from refresher_runner.report import Curve

Schedule = Literal["linear", "cosine"]
Target = Literal["eps", "x0", "v"]


class Denoised(NamedTuple):
    """What x_t is thought to consist of: x0 and eps, each as x, with x_t = alpha x0 + sigma eps."""

    x0: Tensor
    eps: Tensor


def betas(schedule: Schedule, num_timesteps: int) -> Tensor:
    """The variances beta (T,) float64 that steps add, at most 0.999.

    linear: from 1e-4 to 0.02 (DDPM, section 4) if there are 1,000; if not, scaled so that as much noise is added in all.
    cosine: alpha_bar = cos^2 of what goes from nearly 0 to pi / 2 (Nichol and Dhariwal, eq. 17), s = 0.008.
    """
    if schedule == "linear":
        scale = 1000 / num_timesteps
        return torch.linspace(1e-4 * scale, 0.02 * scale, num_timesteps, dtype=torch.float64).clamp(max=0.999)
    s, t = 0.008, torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
    f = ((t + s) / (1 + s) * math.pi / 2).cos() ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)


class Process(nn.Module):
    """q, from data to noise, by a schedule of T steps."""

    beta: Tensor  # (T,)
    log_alpha_bar: Tensor  # (T + 1,), of t = -1 .. T - 1

    def __init__(self, schedule: Schedule, num_timesteps: int):
        super().__init__()
        self.num_timesteps = num_timesteps
        beta = betas(schedule, num_timesteps)
        log_alpha_bar = torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-beta).cumsum(0)])
        self.register_buffer("beta", beta.float(), persistent=False)
        self.register_buffer("log_alpha_bar", log_alpha_bar.float(), persistent=False)

    def log_alpha_bar_at(self, t: Tensor) -> Tensor:
        """Log alpha_bar (B,) at times -1 <= t <= T - 1."""
        place = t.float() + 1
        before = place.floor().clamp(0, self.num_timesteps - 1).long()
        return torch.lerp(self.log_alpha_bar[before], self.log_alpha_bar[before + 1], place - before)

    def rates(self, t: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
        """Alpha and sigma at t, each (B, 1, ...) of so many dimensions."""
        log_alpha_bar = self.log_alpha_bar_at(t).view(-1, *[1] * (ndim - 1))
        return (log_alpha_bar / 2).exp(), torch.expm1(log_alpha_bar).abs().sqrt()

    def moments(self, count: int, device: torch.device) -> Tensor:
        """T (B,) int64, each uniform on 0 .. T - 1, evenly spread together, from one random start (Kingma et al., "Variational Diffusion
        Models", 2021. https://arxiv.org/abs/2107.00630).
        """
        place = (torch.rand(1, device=device) + torch.arange(count, device=device) / count) % 1
        return (place * self.num_timesteps).long().clamp(max=self.num_timesteps - 1)

    def q_sample(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_0) = N(alpha x_0, sigma^2 I), DDPM eq. 4, as the draw eps has it."""
        alpha, sigma = self.rates(t, x0.ndim)
        return alpha * x0 + sigma * eps

    def posterior(self, x0: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """q(x_{t-1} | x_t, x_0), DDPM eqs. 6 and 7: mean (B, ...) and variance (B, 1, ...), for whole t. At t = 0 it is x_0 for sure."""
        beta = self.beta[t].view(-1, *[1] * (x.ndim - 1))
        (alpha_before, sigma_before), (_, sigma) = self.rates(t - 1, x.ndim), self.rates(t, x.ndim)
        of_x0 = alpha_before * beta / sigma**2
        of_x = (1 - beta).sqrt() * sigma_before**2 / sigma**2
        return of_x0 * x0 + of_x * x, sigma_before**2 / sigma**2 * beta

    def target(self, kind: Target, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What a network is asked for: eps, x0, or v = alpha eps - sigma x0 (Salimans and Ho, 2022. https://arxiv.org/abs/2202.00512)."""
        if kind == "v":
            alpha, sigma = self.rates(t, x0.ndim)
            return alpha * eps - sigma * x0
        return eps if kind == "eps" else x0

    def denoised(self, kind: Target, said: Tensor, x: Tensor, t: Tensor) -> Denoised:
        """x0 and eps, from what a network says of x_t: `target` undone."""
        alpha, sigma = self.rates(t, x.ndim)
        if kind == "v":
            return Denoised(alpha * x - sigma * said, sigma * x + alpha * said)
        if kind == "eps":
            return Denoised((x - sigma * said) / alpha, said)
        return Denoised(said, (x - alpha * said) / sigma)

    def schedule(self) -> Curve:
        """What is left of data and what there is of noise, at every t."""
        t = torch.arange(self.num_timesteps, device=self.beta.device)
        alpha, sigma = self.rates(t, 1)
        return Curve(t, {"alpha, of x_0": alpha, "sigma, of noise": sigma, "beta, added by a step": self.beta}, "t", "")

    def clipped(self, found: Denoised, x: Tensor, t: Tensor) -> Denoised:
        """x0 brought into [-1, 1], where pixels are, with the eps that goes with it."""
        alpha, sigma = self.rates(t, x.ndim)
        x0 = found.x0.clamp(-1, 1)
        return Denoised(x0, (x - alpha * x0) / sigma)
