from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refresher_runner.nn.resnet import BasicBlock, Shortcut, ZeroPad, he_normal_


def test_option_a_is_the_identity_with_zeros():
    x = torch.randn(2, 3, 5, 5)
    y = ZeroPad(8, stride=2)(x)
    assert y.shape == (2, 8, 3, 3)
    assert torch.equal(y[:, :3], x[:, :, ::2, ::2])
    assert not y[:, 3:].any()
    assert torch.equal(ZeroPad(3, stride=1)(x), x)


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_block_is_equation_1(shortcut: Shortcut):
    block = BasicBlock(4, 6, stride=2, shortcut=shortcut)
    x = torch.randn(8, 4, 6, 6)
    found = block(x)

    def norm(y: Tensor) -> Tensor:
        return (y - y.mean((0, 2, 3), keepdim=True)) / (y.var((0, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()

    y = F.relu(norm(F.conv2d(x, block.conv1.weight, stride=2, padding=1)))
    y = norm(F.conv2d(y, block.conv2.weight, padding=1))
    if shortcut == "A":
        x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 2))
    else:
        (weight,) = (p for p in block.shortcut.parameters() if p.ndim == 4)
        assert weight.shape == (6, 4, 1, 1)
        x = norm(F.conv2d(x, weight, stride=2))
    torch.testing.assert_close(found, F.relu(y + x))


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_same_sizes_need_no_shortcut(shortcut: Shortcut):
    block = BasicBlock(4, 4, shortcut=shortcut).eval()
    nn.init.zeros_(block.norm2.weight)  # F(x) = 0
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(block(x), F.relu(x))


def test_he_keeps_the_scale_through_relus():
    """The mean square of what enters a layer stays what it was (their section 2.2)."""
    layers = [nn.Linear(500, 500) for _ in range(10)]
    he_normal_(nn.Sequential(*layers, conv := nn.Conv2d(32, 64, 3)))
    x = torch.randn(200, 500)
    for layer in layers:
        x = layer(x).relu()
    assert 0.7 < x.square().mean().item() < 1.4
    assert conv.weight.var().item() == pytest.approx(2 / (32 * 9), rel=0.05)
    assert conv.bias is not None
    assert not conv.bias.any()
