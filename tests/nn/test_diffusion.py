"""The process against brute force: products and sums of Gaussians on a grid, and drawn step by step."""

from __future__ import annotations

import math

import pytest
import torch

from refresher_runner.nn.diffusion import Process, betas

SCHEDULES = ["linear", "cosine"]
every = pytest.mark.parametrize("schedule", SCHEDULES)


def test_linear_is_the_papers():
    """DDPM, section 4: T = 1000, from 1e-4 to 0.02."""
    beta = betas("linear", 1000)
    assert (beta[0].item(), beta[-1].item()) == pytest.approx((1e-4, 0.02))
    torch.testing.assert_close(beta.diff(), torch.full((999,), (0.02 - 1e-4) / 999, dtype=torch.float64))


def test_moments_are_uniform_and_evenly_spread():
    process = Process("cosine", 100)
    together = torch.stack([process.moments(10, torch.device("cpu")) for _ in range(4000)])
    assert ((together // 10).sort(1).values == torch.arange(10)).all()  # one in each tenth
    counts = together.flatten().bincount(minlength=100)
    assert len(counts) == 100
    assert (counts.double() / 400 - 1).abs().max() < 0.25


def test_cosine_is_the_papers():
    """Nichol and Dhariwal, eq. 17, as products of what it gives, but where beta is clipped at the end."""
    steps = 1000
    left = torch.cumprod(1 - betas("cosine", steps), 0)
    for t in range(0, steps - 5, 37):
        f = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in (t + 1, 0)]
        assert left[t].item() == pytest.approx(f[0] / f[1], rel=1e-9)
    assert betas("cosine", steps).max() == 0.999


@every
@pytest.mark.parametrize("steps", [10, 50, 1000])
def test_all_is_noise_in_the_end(schedule, steps):
    process = Process(schedule, steps)
    alpha, sigma = process.rates(torch.tensor([-1.0, steps - 1.0]), 1)
    assert (alpha[0].item(), sigma[0].item()) == (1.0, 0.0)
    assert alpha[1] < 0.05
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(2))
    assert (process.log_alpha_bar.diff() < 0).all()


@every
@pytest.mark.parametrize("t", [0, 3, 19])
def test_q_sample_has_the_moments_of_the_chain(schedule, t):
    """eq. 4 against eq. 2 applied t + 1 times to the same number."""
    process, n = Process(schedule, 20), 200_000
    x = torch.full((n,), 0.7)
    for s in range(t + 1):
        x = (1 - process.beta[s]).sqrt() * x + process.beta[s].sqrt() * torch.randn(n)
    closed = process.q_sample(torch.full((n,), 0.7), torch.full((n,), t), torch.randn(n))
    sigma = process.rates(torch.tensor([t]), 1)[1].item()
    assert closed.mean().item() == pytest.approx(x.mean().item(), abs=5 * sigma * math.sqrt(2 / n))
    assert closed.var().item() == pytest.approx(x.var().item(), rel=5 * math.sqrt(4 / n))


@every
@pytest.mark.parametrize("t", [1, 2, 7, 18])
def test_posterior_is_bayes_rule_on_a_grid(schedule, t):
    """q(x_{t-1} | x_t, x_0), eqs. 6 and 7, against q(x_t | x_{t-1}) q(x_{t-1} | x_0), normalised by summing."""
    process, (x0, x) = Process(schedule, 20), (0.4, -0.9)
    grid = torch.linspace(-8, 8, 400_001, dtype=torch.float64)
    beta = process.beta[t].double()
    alpha, sigma = (rate.double().item() for rate in process.rates(torch.tensor([t - 1]), 1))
    log_p = -((x - (1 - beta).sqrt() * grid) ** 2) / (2 * beta) - (grid - alpha * x0) ** 2 / (2 * sigma**2)
    p = log_p.softmax(0)
    mean = (p * grid).sum()
    variance = (p * (grid - mean) ** 2).sum()
    found = process.posterior(torch.tensor([[x0]]), torch.tensor([[x]]), torch.tensor([t]))
    assert found[0].item() == pytest.approx(mean.item(), rel=1e-4)
    assert found[1].item() == pytest.approx(variance.item(), rel=1e-3)


@every
def test_at_the_first_step_the_posterior_is_sure(schedule):
    mean, variance = Process(schedule, 20).posterior(torch.tensor([[0.3]]), torch.tensor([[5.0]]), torch.tensor([0]))
    assert mean.item() == pytest.approx(0.3, abs=1e-6)
    assert variance.item() == 0


@every
def test_posterior_mean_is_equation_11(schedule):
    """(x_t - beta / sqrt(1 - alpha_bar) eps) / sqrt(alpha), where x_0 is what eps leaves of x_t."""
    process = Process(schedule, 30)
    for t in range(1, 29):
        when, x0, eps = torch.tensor([t]), torch.randn(1, 5), torch.randn(1, 5)
        x = process.q_sample(x0, when, eps)
        beta, sigma = process.beta[t], process.rates(when, 2)[1]
        expected = (x - beta / sigma * eps) / (1 - beta).sqrt()
        torch.testing.assert_close(process.posterior(x0, x, when)[0], expected, rtol=1e-3, atol=1e-4)


@every
@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
def test_what_is_asked_for_can_be_undone(schedule, kind):
    process, x0, eps = Process(schedule, 50), torch.randn(6, 3), torch.randn(6, 3)
    t = torch.tensor([0, 5, 11, 23, 37, 44])
    x = process.q_sample(x0, t, eps)
    found = process.denoised(kind, process.target(kind, x0, eps, t), x, t)
    torch.testing.assert_close(found.x0, x0, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.eps, eps, rtol=1e-3, atol=1e-3)


@every
def test_v_is_the_velocity_of_the_angle(schedule):
    """d x / d phi by differences, where x = cos phi x0 + sin phi eps."""
    process, x0, eps, t = Process(schedule, 50), torch.randn(1, 4), torch.randn(1, 4), torch.tensor([20])
    alpha, sigma = process.rates(t, 1)
    phi, d = torch.atan2(sigma, alpha).double(), 1e-5
    moved = [(phi + s).cos() * x0 + (phi + s).sin() * eps for s in (d, -d)]
    torch.testing.assert_close(process.target("v", x0, eps, t).double(), (moved[0] - moved[1]) / (2 * d), rtol=1e-4, atol=1e-5)


def test_clipping_moves_x0_into_range_and_keeps_x():
    process, x, t = Process("linear", 50), 3 * torch.randn(4, 6), torch.tensor([3, 10, 30, 45])
    found = process.clipped(process.denoised("eps", torch.randn(4, 6), x, t), x, t)
    assert found.x0.abs().max() <= 1
    alpha, sigma = process.rates(t, 2)
    torch.testing.assert_close(alpha * found.x0 + sigma * found.eps, x)


def test_between_steps_log_alpha_bar_is_a_line():
    process = Process("cosine", 10)
    ends = process.log_alpha_bar_at(torch.tensor([3.0, 4.0]))
    assert process.log_alpha_bar_at(torch.tensor([3.25])).item() == pytest.approx((0.75 * ends[0] + 0.25 * ends[1]).item())
