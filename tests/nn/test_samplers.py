"""Samplers with an exact denoiser, that of a mixture of Gaussians: what they draw must be that mixture."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from refresher_runner.nn import samplers
from refresher_runner.nn.diffusion import Denoised, Process
from refresher_runner.nn.samplers import last

WEIGHTS = torch.tensor([0.3, 0.7])
CENTRES = torch.tensor([[-1.0, 0.5], [0.6, -0.4]])
SPREAD = 0.2

WAYS: dict[str, Callable[..., Iterator[Tensor]]] = {
    "ancestral": lambda p, d, x: samplers.ancestral(p, d, x, "beta"),
    "ancestral, posterior": lambda p, d, x: samplers.ancestral(p, d, x, "posterior"),
    "ddim": lambda p, d, x: samplers.ddim(p, d, x, 100),
    "ddim, eta 1": lambda p, d, x: samplers.ddim(p, d, x, 200, 1.0),
    "sde": lambda p, d, x: samplers.reverse_sde(p, d, x, 400),
    "ode": lambda p, d, x: samplers.probability_flow(p, d, x, 25),
    "dpm": lambda p, d, x: samplers.dpm_solver(p, d, x, 40),
}


def exact(process: Process, weights: Tensor = WEIGHTS, centres: Tensor = CENTRES, spread: float = SPREAD):
    """E[x_0 | x_t] and E[eps | x_t] where x_0 is of the mixture: x (B, D)."""

    def denoise(x: Tensor, t: Tensor) -> Denoised:
        alpha, sigma = process.rates(t, 2)
        variance = alpha**2 * spread**2 + sigma**2
        away = x[:, None] - alpha[..., None] * centres  # (B, K, D)
        share = (weights.log() - (away**2).sum(-1) / (2 * variance)).softmax(-1)[..., None]
        x0 = (share * (centres + (alpha * spread**2 / variance)[..., None] * away)).sum(1)
        return Denoised(x0, (sigma / variance) * (share * away).sum(1))

    return denoise


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("way", WAYS)
def test_a_mixture_is_recovered(way, schedule):
    """Weights, centres and spreads of 4,000 draws in the plane."""
    process, n = Process(schedule, 200), 4000
    x = last(WAYS[way](process, exact(process), torch.randn(n, 2)))
    nearest = torch.cdist(x, CENTRES).argmin(1)
    assert (nearest == 0).double().mean().item() == pytest.approx(0.3, abs=0.035)
    for k in range(2):
        mine = x[nearest == k]
        torch.testing.assert_close(mine.mean(0), CENTRES[k], atol=0.04, rtol=0)
        torch.testing.assert_close(mine.std(0), torch.full((2,), SPREAD), atol=0.035, rtol=0)


def test_exact_denoiser_agrees_with_the_score():
    """- sigma grad log p_t = E[eps | x_t]"""
    process, x, t = Process("linear", 100), torch.randn(5, 2, requires_grad=True), torch.tensor([3, 20, 50, 70, 99])
    alpha, sigma = process.rates(t, 2)
    away = x[:, None] - alpha[..., None] * CENTRES
    variance = alpha**2 * SPREAD**2 + sigma**2
    log_p = (WEIGHTS.log() - (away**2).sum(-1) / (2 * variance)).logsumexp(-1)
    (score,) = torch.autograd.grad(log_p.sum(), x)
    torch.testing.assert_close(exact(process)(x, t).eps, -sigma * score)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ddim_with_eta_1_and_every_step_has_the_variances_of_ddpm(schedule):
    """DDIM eq. 16 against beta-tilde of DDPM eq. 7."""
    process = Process(schedule, 40)
    for t in range(1, 40):
        _, posterior = process.posterior(torch.zeros(1, 1), torch.zeros(1, 1), torch.tensor([t]))
        assert samplers.ddim_sigma(process, t, t - 1, 1.0) ** 2 == pytest.approx(posterior.item(), rel=2e-3)
    assert samplers.ddim_sigma(process, 0, -1, 1.0) == 0


def test_ddim_with_eta_1_and_every_step_is_ancestral():
    """Draw for draw, from the same seed."""
    process, x = Process("linear", 30), torch.randn(50, 2)
    drawn = []
    for way in (samplers.ancestral(process, exact(process), x, "posterior"), samplers.ddim(process, exact(process), x, 30, 1.0)):
        torch.manual_seed(1)
        drawn.append(last(way))
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("way", ["ancestral", "ddim", "sde", "ode", "dpm"])
@pytest.mark.parametrize("begin", [120, 60])
def test_a_way_can_begin_later(way, begin):
    """From q(x_t) of the mixture at `begin` on, its centres and spreads come out as from noise."""
    process, n = Process("cosine", 200), 4000
    x0 = CENTRES[torch.multinomial(WEIGHTS, n, replacement=True)] + SPREAD * torch.randn(n, 2)
    x = process.q_sample(x0, torch.full((n,), begin), torch.randn(n, 2))
    how = samplers.Sampling(way, 200, 0.5, "posterior")
    steps = list(how.walk(process, exact(process), x, begin))
    assert len(steps) == pytest.approx(begin + 1, abs=1)
    for k, nearest in enumerate((torch.cdist(steps[-1], CENTRES).argmin(1) == k) for k in range(2)):
        assert nearest.double().mean().item() == pytest.approx(WEIGHTS[k].item(), abs=0.035)
        torch.testing.assert_close(steps[-1][nearest].mean(0), CENTRES[k], atol=0.04, rtol=0)
        torch.testing.assert_close(steps[-1][nearest].std(0), torch.full((2,), SPREAD), atol=0.035, rtol=0)


@pytest.mark.parametrize("way", ["ancestral", "ddim", "sde", "ode", "dpm"])
def test_to_begin_at_the_last_moment_is_to_begin_in_noise(way):
    process, x, how = Process("cosine", 50), torch.randn(20, 2), samplers.Sampling(way, 10, 0.0, "beta")
    drawn = []
    for begin in (None, 49):
        torch.manual_seed(1)
        drawn.append(last(how.walk(process, exact(process), x, begin)))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("way", ["ddim", "ode", "dpm"])
def test_what_adds_no_noise_draws_nothing(way):
    process, x = Process("cosine", 100), torch.randn(20, 2)
    before = torch.get_rng_state()
    once, again = (last(WAYS[way](process, exact(process), x)) for _ in range(2))
    assert torch.equal(once, again)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("way", "order"), [("ode", 2), ("dpm", 2), ("ddim", 1)])
def test_a_solver_converges_at_its_order(way, order):
    """Twice the steps leave a quarter, or half, of the distance to where the flow of a single Gaussian leads."""
    process = Process("linear", 1000)
    denoise = exact(process, torch.ones(1), torch.tensor([[0.5]]), 0.5)
    x = torch.randn(64, 1, dtype=torch.float32)
    (alpha, sigma), begin = process.rates(torch.tensor([999.0]), 2), x
    truth = 0.5 + 0.5 * (begin - alpha * 0.5) / (alpha**2 * 0.25 + sigma**2).sqrt()  # quantile to quantile
    solver = {"ode": samplers.probability_flow, "dpm": samplers.dpm_solver, "ddim": samplers.ddim}[way]
    errors = [(last(solver(process, denoise, begin, steps)) - truth).abs().mean().item() for steps in (8, 16)]
    assert errors[1] < errors[0] / (1.6 if order == 1 else 2.5), errors


@pytest.mark.parametrize("steps", [1, 7, 30, 100])
def test_ddim_visits_each_moment_once_and_ends_at_data(steps):
    visited = samplers.whole_times(30, steps)
    assert visited[0] == 29
    assert visited[-1] == -1
    assert len(visited) == min(steps, 30) + 1
    assert all(a > b for a, b in itertools.pairwise(visited))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("dims", [1, 12])
def test_likelihood_of_a_gaussian_is_its_density(schedule, dims):
    """Of what is at t = 0: N(alpha m, alpha^2 s^2 + sigma^2)."""
    process, m, s = Process(schedule, 1000), 0.0, 0.5
    denoise = exact(process, torch.ones(1), torch.full((1, dims), m), s)
    x = m + s * torch.randn(6, dims)
    alpha, sigma = process.rates(torch.zeros(1), 1)
    truth = torch.distributions.Normal(alpha * m, (alpha**2 * s**2 + sigma**2).sqrt()).log_prob(x).sum(1)
    torch.testing.assert_close(samplers.log_likelihood(process, denoise, x, 50), truth, atol=0.02 * dims, rtol=0)


def test_likelihood_of_a_mixture_integrates_to_one():
    process = Process("cosine", 1000)
    denoise = exact(process, WEIGHTS, CENTRES[:, :1], SPREAD)
    grid = torch.linspace(-2.5, 2.5, 801)[:, None]
    p = samplers.log_likelihood(process, denoise, grid, 100).exp()
    assert (p.sum() * 5 / 800).item() == pytest.approx(1, abs=0.01)
    truth = sum(w * torch.distributions.Normal(c, SPREAD).log_prob(grid[:, 0]).exp() for w, c in zip(WEIGHTS, CENTRES[:, 0], strict=True))
    torch.testing.assert_close(p, truth, atol=0.03, rtol=0)


def test_hutchinsons_estimate_is_right_on_average():
    """Where features depend on one another, single probes differ, and their mean is the trace."""
    process = Process("cosine", 1000)
    mixing = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    root = torch.linalg.cholesky(mixing)

    def denoise(x: Tensor, t: Tensor) -> Denoised:
        alpha, sigma = process.rates(t, 2)
        inverse = torch.linalg.inv(alpha[0] ** 2 * mixing + sigma[0] ** 2 * torch.eye(2))
        eps = sigma * (x @ inverse)
        return Denoised(alpha * (x @ inverse) @ mixing, eps)

    x = torch.randn(1, 2) @ root.T
    found = samplers.log_likelihood(process, denoise, x.expand(400, 2), 30, probes=1)
    truth = torch.distributions.MultivariateNormal(torch.zeros(2), mixing).log_prob(x).item()
    assert found.std() > 0.1
    assert found.mean().item() == pytest.approx(truth, abs=4 * found.std().item() / math.sqrt(400) + 0.02)
