"""What samplers ask of networks: guidance and its identities, and what is seen in noise whatever a network is asked for."""

from __future__ import annotations

import pytest
import torch

from refresher_runner.nn.denoisers import denoiser, guided
from refresher_runner.nn.diffusion import Process


def network(x, t, a, b):
    """Linear in its two conditions, and in x, so that what it says of each is known."""
    return x + a[:, None] + t[:, None] * b[:, None]


CONDITION = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
NOTHING = torch.zeros(2), torch.zeros(2)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 3.0])
def test_guidance_is_a_line_through_both(guidance):
    x, t = torch.randn(2, 3), torch.tensor([4.0, 7.0])
    told, untold = network(x, t, *CONDITION), network(x, t, *NOTHING)
    said = guided(network, CONDITION, NOTHING, guidance)(x, t)
    torch.testing.assert_close(said, (1 - guidance) * untold + guidance * told)


def test_guidance_0_and_1_look_once():
    seen = []

    def counting(x, t, a, b):
        seen.append(len(x))
        return network(x, t, a, b)

    for guidance in (0.0, 1.0, 2.0):
        guided(counting, CONDITION, NOTHING, guidance)(torch.randn(2, 3), torch.zeros(2))
    assert seen == [2, 2, 4]


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
def test_whatever_is_asked_for_the_same_is_seen(target):
    process, t = Process("cosine", 100), torch.tensor([10.0, 70.0])
    x0, eps = torch.randn(2, 5), torch.randn(2, 5)
    x = process.q_sample(x0, t, eps)
    seen = denoiser(process, target, lambda x, t: process.target(target, x0, eps, t))(x, t)
    torch.testing.assert_close(seen.x0, x0, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(seen.eps, eps, atol=1e-4, rtol=1e-4)


def test_what_is_clipped_still_makes_up_x():
    process, t, x = Process("cosine", 100), torch.tensor([50.0]), torch.randn(1, 5)
    seen = denoiser(process, "x0", lambda x, t: 3 * torch.ones_like(x), clip=True)(x, t)
    assert torch.equal(seen.x0, torch.ones_like(x))
    alpha, sigma = process.rates(t, 2)
    torch.testing.assert_close(alpha * seen.x0 + sigma * seen.eps, x)
