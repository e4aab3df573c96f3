from __future__ import annotations

import pytest
import torch

from refresher_runner.nn.dropout import Dropout, dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.75])
def test_each_number_is_zero_or_grows(dtype: torch.dtype, p: float):
    x = torch.full((321, 317), 3.0, dtype=dtype)
    y = dropout(x, p)
    assert (y.shape, y.dtype) == (x.shape, dtype)
    kept = y != 0
    torch.testing.assert_close(y[kept], (x / (1 - p))[kept], rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=0)
    deviation = (p * (1 - p) / x.numel()) ** 0.5
    assert abs((~kept).double().mean().item() - p) < 5 * deviation
    # neighbours, which share one draw of 64 bits, are independent of each other
    for lag in (1, 2, 3):
        both = (~kept.flatten()[lag:] & ~kept.flatten()[:-lag]).double().mean().item()
        assert abs(both - p * p) < 6 * deviation


@pytest.mark.parametrize("size", range(9))
def test_any_size(size: int):
    assert dropout(torch.ones(size), 0.5).shape == (size,)


def test_the_rate_is_met_to_the_last_of_sixteen_bits():
    """At p = 2^-16 one draw of 65,536 drops."""
    n = 2**22
    dropped = (dropout(torch.ones(n), 2**-16) == 0).sum().item()
    assert abs(dropped - n / 2**16) < 6 * 8  # 64 expected, deviation 8


def test_none_and_all():
    x = torch.randn(5, requires_grad=True)
    assert torch.equal(dropout(x, 0.0), x)
    y = dropout(x, 1.0)
    assert torch.equal(y, torch.zeros(5))
    y.sum().backward()
    assert torch.equal(x.grad, torch.zeros(5))


def test_gradient_is_the_same_mask():
    x = torch.randn(50, 7, requires_grad=True)
    y = dropout(x, 0.3)
    y.sum().backward()
    torch.testing.assert_close(x.grad, (y / x).detach())


def test_one_seed_one_mask():
    x = torch.ones(1000)
    torch.manual_seed(3)
    one, other = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.5), one)
    assert not torch.equal(one, other)


def test_module_drops_in_training_alone():
    x, module = torch.ones(100), Dropout(0.5)
    assert (module(x) == 0).any()
    assert module.eval()(x) is x
