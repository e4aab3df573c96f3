from __future__ import annotations

import math

import pytest
import torch

from refresher_runner.errors import ConfigError
from refresher_runner.nn.unet import UNet, check_geometry, sinusoid


def unet(**changes) -> UNet:
    options = {"width": 8, "multipliers": (1, 2), "depth": 1, "attention": (2,), "heads": 2, "dropout": 0.0}
    return UNet(3, **{**options, **changes})


def woken(net: UNet) -> UNet:
    """Layers that begin as nothing are given weights, so that what reaches them can be seen."""
    for parameter in net.parameters():
        if parameter.ndim > 1 and parameter.std() < 1e-3:
            torch.nn.init.normal_(parameter, std=0.3)
    return net


@pytest.mark.parametrize(("n", "multipliers"), [(8, (1, 2)), (16, (1, 2, 3)), (7, (2,)), (28, (1, 1, 2))])
@pytest.mark.parametrize("depth", [1, 2])
def test_pictures_keep_their_size(n, multipliers, depth):
    net = unet(multipliers=multipliers, depth=depth, attention=(1,))
    assert net(torch.randn(2, 3, n, n), torch.tensor([0, 900])).shape == (2, 3, n, n)


def test_it_begins_by_saying_nothing():
    assert unet()(torch.randn(2, 3, 8, 8), torch.zeros(2)).abs().max() < 1e-2


def test_parameters_of_the_common_size():
    """As many as diffusers' UNet2DModel of block_out_channels (32, 64, 128), two layers each, attention at the last: 3.94 M."""
    net = UNet(1, width=32, multipliers=(1, 2, 4), depth=2, attention=(4,), heads=4, dropout=0.0)
    assert sum(p.numel() for p in net.parameters()) == 3_939_393


def test_time_is_sines_and_cosines():
    found = sinusoid(torch.tensor([0.0, 37.0]), 8)
    for i in range(4):
        frequency = 10000 ** (-i / 4)
        assert found[1, i].item() == pytest.approx(math.cos(37 * frequency), abs=1e-5)
        assert found[1, 4 + i].item() == pytest.approx(math.sin(37 * frequency), abs=1e-5)
    assert found[0].tolist() == [1.0] * 4 + [0.0] * 4


def test_the_answer_depends_on_time_class_and_context():
    net, x, t = woken(unet(num_classes=4, context_dim=5)).eval(), torch.randn(2, 3, 8, 8), torch.tensor([10.0, 10.0])
    labels, context = torch.tensor([1, 1]), torch.randn(2, 7, 5)
    base = net(x, t, labels, context)
    for changed in (net(x, t + 5, labels, context), net(x, t, labels + 1, context), net(x, t, labels, -context), net(x, t, labels)):
        assert not torch.allclose(base, changed, atol=1e-4)


def test_no_label_is_the_last_label():
    net, x, t = woken(unet(num_classes=4)).eval(), torch.randn(2, 3, 8, 8), torch.zeros(2)
    assert torch.equal(net(x, t), net(x, t, torch.tensor([4, 4])))


def test_a_context_is_a_set():
    """The order of its tokens says nothing; each picture has its own."""
    net, x, t = woken(unet(context_dim=5)).eval(), torch.randn(2, 3, 8, 8), torch.zeros(2)
    context = torch.randn(2, 7, 5)
    base = net(x, t, None, context)
    torch.testing.assert_close(net(x, t, None, context[:, torch.randperm(7)]), base, atol=1e-4, rtol=1e-4)
    other = torch.stack([context[0], -context[1]])
    torch.testing.assert_close(net(x, t, None, other)[0], base[0], atol=1e-4, rtol=1e-4)


def test_nothing_looks_where_a_context_has_no_token():
    net, x, t = woken(unet(context_dim=5)).eval(), torch.randn(2, 3, 8, 8), torch.zeros(2)
    context, present = torch.randn(2, 7, 5), torch.arange(7).expand(2, -1) < 4
    shorter = net(x, t, None, context[:, :4])
    torch.testing.assert_close(net(x, t, None, context, present), shorter, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(net(x, t, None, context), shorter, atol=1e-3)


def test_samples_do_not_mix():
    net, x, t = woken(unet()).eval(), torch.randn(3, 3, 8, 8), torch.tensor([1.0, 50.0, 900.0])
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(net(x, t), alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ((10, 8, [1, 2, 4], [], 1), "model.multipliers"),
        ((8, 8, [], [], 1), "model.multipliers"),
        ((8, 12, [1, 2], [], 1), "model.width"),
        ((8, 8, [1, 2], [4], 1), "model.attention"),
        ((8, 8, [1, 2], [2], 3), "model.heads"),
    ],
)
def test_a_geometry_that_does_not_divide_is_refused(arguments, key):
    with pytest.raises(ConfigError) as caught:
        check_geometry(*arguments)
    assert caught.value.key == key
    assert caught.value.cure
