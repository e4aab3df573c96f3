"""Ways from noise back to data, given something that tells them apart; each yields what it has after every step, data last.

Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", 2020. https://arxiv.org/abs/2006.11239
Song, Meng and Ermon, "Denoising Diffusion Implicit Models", 2021. https://arxiv.org/abs/2010.02502
Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", 2021. https://arxiv.org/abs/2011.13456
Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", 2022. https://arxiv.org/abs/2211.01095

They know nothing of networks: a denoiser takes x (B, ...) and t (B,) to x0 and eps, and the score of what is at t is - eps / sigma.
They begin at t = T - 1, where all is noise, or at another time `begin` < T - 1, where x then stands.
Letters as in nn/diffusion.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeVar

import torch
from torch import Tensor

from refresher_runner.nn.diffusion import Denoised, Process

Denoiser = Callable[[Tensor, Tensor], Denoised]
Variance = Literal["beta", "posterior"]
Sampler = Literal["ancestral", "ddim", "sde", "ode", "dpm"]
T = TypeVar("T")


@dataclass(frozen=True)
class Sampling:
    """Which of the ways below, in how many steps; eta is of ddim alone, and of ancestral, which takes all T, the variance."""

    sampler: Sampler
    steps: int
    eta: float
    variance: Variance

    def walk(self, process: Process, denoise: Denoiser, x: Tensor, begin: float | None = None) -> Iterator[Tensor]:
        """From x (B, ...), which stands at `begin`, to data; of the whole way's steps as many as are left of it, at least one."""
        left = 1.0 if begin is None else (begin + 1) / process.num_timesteps
        steps = max(1, round(left * self.steps))
        ways: dict[Sampler, Callable[[], Iterator[Tensor]]] = {
            "ancestral": lambda: ancestral(process, denoise, x, self.variance, begin=begin),
            "ddim": lambda: ddim(process, denoise, x, steps, self.eta, begin=begin),
            "sde": lambda: reverse_sde(process, denoise, x, steps, begin=begin),
            "ode": lambda: probability_flow(process, denoise, x, steps, begin=begin),
            "dpm": lambda: dpm_solver(process, denoise, x, steps, begin=begin),
        }
        return ways[self.sampler]()


def last(values: Iterator[T]) -> T:
    """Of what comes one after another."""
    *_, final = values
    return final


def _at(t: float, x: Tensor) -> Tensor:
    """The time of every sample."""
    return torch.full((len(x),), t, device=x.device, dtype=torch.float32)


def _begin(num_timesteps: int, begin: float | None) -> float:
    return num_timesteps - 1 if begin is None else begin


def times(num_timesteps: int, steps: int, begin: float | None = None) -> list[float]:
    """Steps + 1 times from `begin` to -1, evenly."""
    return torch.linspace(_begin(num_timesteps, begin), -1, steps + 1, dtype=torch.float64).tolist()


def whole_times(num_timesteps: int, steps: int, begin: float | None = None) -> list[int]:
    """The same, rounded, each once: at most T + 1 of them."""
    return sorted({round(t) for t in times(num_timesteps, steps, begin)}, reverse=True)


def ancestral(
    process: Process, denoise: Denoiser, x: Tensor, variance: Variance = "beta", *, begin: float | None = None
) -> Iterator[Tensor]:
    """Algorithm 2 of DDPM: x_{t-1} from q(x_{t-1} | x_t, x_0) at the x_0 that is thought to be in x_t (eq. 7), T steps.

    Of the two variances of section 3.2, `beta` suits noise for data, `posterior`, beta-tilde of eq. 7, a single picture.
    """
    for t in reversed(range(round(_begin(process.num_timesteps, begin)) + 1)):
        when = torch.full((len(x),), t, device=x.device)
        x0, _ = denoise(x, when.float())
        mean, posterior = process.posterior(x0, x, when)
        spread = process.beta[t] if variance == "beta" else posterior
        x = mean + spread.sqrt() * torch.randn_like(x) if t > 0 else mean
        yield x


def ddim_sigma(process: Process, t: int, before: int, eta: float) -> float:
    """The standard deviation of a step from t to `before`, DDIM eq. 16; with eta = 1 and every step, DDPM's sqrt(beta-tilde)."""
    alpha_bar, alpha_bar_before = (process.log_alpha_bar[i + 1].double().exp().item() for i in (t, before))
    return eta * math.sqrt((1 - alpha_bar_before) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_before))


def ddim(process: Process, denoise: Denoiser, x: Tensor, steps: int, eta: float = 0.0, *, begin: float | None = None) -> Iterator[Tensor]:
    """DDIM, eq. 12, over so many of the T steps. eta in [0, 1]: 0 adds no noise, 1 as much as DDPM."""
    for t, before in pairwise(whole_times(process.num_timesteps, steps, begin)):
        x0, eps = denoise(x, _at(t, x))
        alpha, sigma = process.rates(_at(before, x), x.ndim)
        noise = ddim_sigma(process, t, before, eta)
        x = alpha * x0 + (sigma**2 - noise**2).clamp(min=0).sqrt() * eps
        if noise > 0:
            x = x + noise * torch.randn_like(x)
        yield x


def reverse_sde(process: Process, denoise: Denoiser, x: Tensor, steps: int, *, begin: float | None = None) -> Iterator[Tensor]:
    """Euler and Maruyama's steps along the reverse-time SDE (Song et al., eq. 6) of the variance-preserving one (their eq. 11).

    To t = 0, so many steps; there data are read off, since at t = -1 the score has no meaning.
    """
    grid = torch.linspace(_begin(process.num_timesteps, begin), 0, steps + 1).tolist()
    for t, before in pairwise(grid):
        _, sigma = process.rates(_at(t, x), x.ndim)
        score = -denoise(x, _at(t, x)).eps / sigma
        passed = (process.log_alpha_bar_at(_at(before, x)) - process.log_alpha_bar_at(_at(t, x))).view_as(sigma)  # the integral of beta
        x = x + passed * (x / 2 + score) + passed.sqrt() * torch.randn_like(x)
        yield x
    yield denoise(x, _at(0, x)).x0


def flow_times(num_timesteps: int, steps: int, begin: float | None = None) -> list[float]:
    """Steps + 1 times from `begin` to 0, denser towards data, where sigma changes by factors."""
    return (_begin(num_timesteps, begin) * torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** 2).tolist()


def velocity(process: Process, denoise: Denoiser, x: Tensor, t: float) -> Tensor:
    """Dx / dphi along the probability flow (Song et al., eq. 13), where alpha = cos phi and sigma = sin phi: v = alpha eps - sigma x0.

    In this angle (Salimans and Ho, 2022, appendix D. https://arxiv.org/abs/2202.00512) the flow is as gentle at noise as at data.
    """
    x0, eps = denoise(x, _at(t, x))
    return process.target("v", x0, eps, _at(t, x))


def angle(process: Process, t: float) -> float:
    """Phi at t, in radians: 0 at data, pi / 2 where nothing is left of them."""
    alpha, sigma = process.rates(torch.tensor([t], device=process.beta.device), 1)
    return math.atan2(sigma.item(), alpha.item())


def probability_flow(process: Process, denoise: Denoiser, x: Tensor, steps: int, *, begin: float | None = None) -> Iterator[Tensor]:
    """The ODE that has the same marginals as the SDE (Song et al., eq. 13), by Heun's steps, two looks each. No noise is added."""
    for t, before in pairwise(flow_times(process.num_timesteps, steps, begin)):
        step, slope = angle(process, before) - angle(process, t), velocity(process, denoise, x, t)
        slope_before = velocity(process, denoise, x + step * slope, before)
        x = x + step * (slope + slope_before) / 2
        yield x
    yield denoise(x, _at(0, x)).x0


def dpm_solver(process: Process, denoise: Denoiser, x: Tensor, steps: int, *, begin: float | None = None) -> Iterator[Tensor]:
    """DPM-Solver++(2M), Algorithm 2 of Lu et al. 2022: x0 as a line in lambda = log(alpha / sigma) through the last two looks.

    The first step has one look, and the last, to sigma = 0, takes x0 as it is.
    """
    x0_before, h_before = None, 0.0
    for t, before in pairwise(times(process.num_timesteps, steps, begin)):
        (alpha, sigma), (alpha_before, sigma_before) = process.rates(_at(t, x), x.ndim), process.rates(_at(before, x), x.ndim)
        x0 = denoise(x, _at(t, x)).x0
        h = (alpha_before / sigma_before).log() - (alpha / sigma).log()
        line = x0
        if x0_before is not None and before > -1:
            line = x0 + h / (2 * h_before) * (x0 - x0_before)
        x = sigma_before / sigma * x - alpha_before * torch.expm1(-h) * line
        x0_before, h_before = x0, h
        yield x


def log_likelihood(process: Process, denoise: Denoiser, x: Tensor, steps: int, probes: int = 1) -> Tensor:
    """Log p(x) in nats, (B,), where p is what the probability flow makes of N(0, I): Song et al., eq. 39.

    x, taken to be at t = 0, is carried to noise, and on the way log p changes by the trace of the velocity's Jacobian, which is
    Hutchinson's mean of v^T J v over so many probes v of random signs (their eq. 40).
    """
    signs = [torch.randint(0, 2, x.shape, device=x.device).to(x.dtype) * 2 - 1 for _ in range(probes)]

    def flow(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """The velocity at x, and its divergence (B,)."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            slope = velocity(process, denoise, leaf, t)
            along = [torch.autograd.grad((slope * v).sum(), leaf, retain_graph=True)[0] for v in signs]
        return slope.detach(), torch.stack([(g * v).flatten(1).sum(1) for g, v in zip(along, signs, strict=True)]).mean(0)

    log_p, grid = torch.zeros(len(x), device=x.device), flow_times(process.num_timesteps, steps)[::-1]
    slope, trace = flow(x, grid[0])
    for t, after in pairwise(grid):
        step = angle(process, after) - angle(process, t)
        slope_after, trace_after = flow(x + step * slope, after)
        x = x + step * (slope + slope_after) / 2
        log_p = log_p + step * (trace + trace_after) / 2
        slope, trace = flow(x, after)
    return log_p - (x.flatten(1) ** 2).sum(1) / 2 - x[0].numel() / 2 * math.log(2 * math.pi)
