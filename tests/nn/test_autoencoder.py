"""The brick of autoencoders: latents as a vector and as maps. What it costs is tested with the paper, tests/models/test_vae.py."""

from __future__ import annotations

import pytest
import torch

from refresher_runner.nn.autoencoder import Autoencoder, between, draw


def autoencoder(maps: bool, size: int = 8) -> Autoencoder:
    options = {"width": 8, "multipliers": [1, 2], "depth": 1, "latents": 3, "likelihood": "gaussian"}
    return Autoencoder(2, size, maps=maps, **options).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [8, 7])
def test_maps_are_so_many_latents_at_every_place(size):
    made, x = autoencoder(maps=True, size=size), torch.rand(5, 2, size, size)
    mu, logvar = made.encode(x)
    assert made.shape == (3, 4, 4)
    assert mu.shape == logvar.shape == (5, 48)
    assert made.decode(mu).shape == x.shape


def test_a_map_keeps_to_its_place():
    """What is decoded from one place of the maps is near that place; of a vector, everywhere."""
    reached = {}
    for maps in (True, False):
        made = autoencoder(maps, size=32)
        z = torch.zeros(1, made.latents, requires_grad=True)
        said = made.decoder.stem(z.unflatten(1, made.decoder.shape)).reshape(1, *made.decoder.smallest)
        said[0, :, 0, 0].sum().backward()
        assert z.grad is not None
        reached[maps] = z.grad.view(1, 3, -1)[0].ne(0).any(0) if maps else z.grad.ne(0).all()
    assert reached[False]
    assert reached[True].view(16, 16).nonzero().max() <= 1  # a kernel of 3 x 3 around the corner


def test_latents_are_told_in_the_order_of_their_maps():
    made, x = autoencoder(maps=True), torch.rand(2, 2, 8, 8)
    mu, _ = made.encode(x)
    expected = made.encoder.head(made.encoder.body(2 * x - 1))[:, :3]
    torch.testing.assert_close(mu.unflatten(1, made.shape), expected)


def test_between_is_a_line():
    a, b = torch.randn(2, 3, 4)
    line = between(a, b, 5)
    torch.testing.assert_close(line, torch.stack([a + (b - a) * i / 4 for i in range(5)]))


def test_draws_are_of_the_prior_or_truncated():
    assert draw(20_000, 1, torch.device("cpu")).std().item() == pytest.approx(1, abs=0.03)
    assert draw(20_000, 1, torch.device("cpu"), 0.5).abs().max() <= 0.5
