"""Attention against sums by hand, torch's own modules, and itself done another way."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from refresher_runner.nn.attention import (
    Cache,
    MultiHeadAttention,
    attend,
    attention_weights,
    explicit_attention,
    fused_attention,
    prefers_fused,
)
from refresher_runner.nn.dropout import dropout

WAYS = pytest.mark.parametrize("way", [explicit_attention, fused_attention], ids=["explicit", "fused"])


def qkv(
    b: int = 2, heads: int = 3, t: int = 5, s: int = 5, d: int = 4, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(b, heads, t, d, dtype=dtype), torch.randn(b, heads, s, d, dtype=dtype), torch.randn(b, heads, s, d, dtype=dtype)


def padding(s: int = 5) -> Tensor:
    """Of two samples, the second's last two tokens are none."""
    return (torch.arange(s) < torch.tensor([[s], [s - 2]]))[:, None, None]


def by_hand(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Number by number, as the sums are printed."""
    (b, heads, t, d), s = q.shape, k.shape[-2]
    allowed = torch.ones(b, heads, t, s, dtype=torch.bool) if mask is None else mask.expand(b, heads, t, s)
    y = torch.zeros(b, heads, t, v.shape[-1], dtype=q.dtype)
    for n, h, i in itertools.product(range(b), range(heads), range(t)):
        seen = [j for j in range(s) if allowed[n, h, i, j] and not (causal and j > i + s - t)]
        scores = [sum(float(q[n, h, i, c] * k[n, h, j, c]) for c in range(d)) / math.sqrt(d) for j in seen]
        total = sum(math.exp(score) for score in scores)
        for j, score in zip(seen, scores, strict=True):
            y[n, h, i] += math.exp(score) / total * v[n, h, j]
    return y


@WAYS
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("t", [1, 3, 5])
def test_is_the_equation(way, causal: bool, masked: bool, t: int):
    q, k, v = qkv(t=t)
    mask = padding() if masked else None
    torch.testing.assert_close(way(q, k, v, mask, causal=causal), by_hand(q, k, v, mask, causal), atol=1e-12, rtol=0)


def test_weights_are_probabilities():
    """Scores alone, their softmax forgotten, are not: they neither sum to one nor stay above zero."""
    q, k, _ = qkv()
    weights = attention_weights(q, k, padding(), causal=True)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 5, dtype=q.dtype))
    assert weights.min() >= 0
    assert weights[1, :, :, 3:].max() == 0
    assert weights.triu(1).max() == 0


@WAYS
def test_large_scores_neither_overflow_nor_vanish(way):
    q, k, v = (x.float() for x in qkv())
    largest = (q @ k.mT).argmax(-1)
    expected = v.gather(-2, largest[..., None].expand(-1, -1, -1, v.shape[-1]))
    torch.testing.assert_close(way(q * 1e4, k, v), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_both_ways_are_equal(dtype: torch.dtype, causal: bool, masked: bool):
    for b, heads, t, s, d in [(2, 1, 1, 1, 1), (2, 3, 7, 7, 8), (2, 2, 4, 9, 16), (2, 4, 64, 64, 32)]:
        inputs = [x.requires_grad_() for x in qkv(b, heads, t, s, d, dtype)]
        mask = torch.rand(b, 1, t, s) < 0.7 if masked else None
        one, two = (way(*inputs, mask, causal=causal) for way in (explicit_attention, fused_attention))
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-6)
        g = torch.randn_like(one)
        for a, b_ in zip(torch.autograd.grad(one, inputs, g), torch.autograd.grad(two, inputs, g), strict=True):
            torch.testing.assert_close(a, b_, atol=1e-5, rtol=1e-5)


@WAYS
def test_who_may_look_nowhere_takes_zeros(way):
    q, k, v = (x.requires_grad_() for x in qkv())
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    mask[0, :, 2] = False
    y = way(q, k, v, mask)
    assert y[0, :, 2].abs().max() == 0
    assert y[0, :, 1].abs().min() > 0
    assert attention_weights(q, k, mask)[0, :, 2].abs().max() == 0
    y.square().sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in (q, k, v))
    assert q.grad[0, :, 2].abs().max() == 0


@WAYS
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients(way, causal: bool, masked: bool):
    inputs = [x.requires_grad_() for x in qkv(2, 1, 3, 4, 2)]
    mask = padding(4) if masked else None
    assert torch.autograd.gradcheck(lambda q, k, v: way(q, k, v, mask, causal=causal), inputs)


def test_dropout_is_of_the_weights():
    q, k, v = qkv()
    torch.manual_seed(1)
    y = explicit_attention(q, k, v, padding(), causal=True, dropout=0.5)
    torch.manual_seed(1)
    torch.testing.assert_close(y, dropout(attention_weights(q, k, padding(), causal=True), 0.5) @ v)


@WAYS
def test_dropout_keeps_the_mean(way):
    """With v the identity, y is the weights themselves: each is 0 or 1 / (1 - p) times as large."""
    q, k, _ = qkv(1, 1, 16, 16, dtype=torch.float32)
    v = torch.eye(16).expand(1, 1, 16, 16)
    exact = attention_weights(q, k)
    ratios = torch.stack([way(q, k, v, dropout=0.25) / exact for _ in range(200)])
    assert ((ratios < 1e-6) | ((ratios - 4 / 3).abs() < 1e-4)).all()
    assert (ratios == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)


# -------------------------------------------------------------------- with heads


def twin(attention: MultiHeadAttention, dim: int, dtype: torch.dtype) -> nn.MultiheadAttention:
    """torch's own module with the same weights."""
    bias = attention.c_proj.bias is not None
    reference = nn.MultiheadAttention(dim, attention.heads, bias=bias, batch_first=True, dtype=dtype)
    with torch.no_grad():
        reference.in_proj_weight.copy_(attention.c_attn.weight)
        reference.out_proj.weight.copy_(attention.c_proj.weight)
        if bias:
            reference.in_proj_bias.copy_(attention.c_attn.bias)
            reference.out_proj.bias.copy_(attention.c_proj.bias)
    return reference


def module(dim: int = 12, heads: int = 3, dtype: torch.dtype = torch.float64, **options) -> MultiHeadAttention:
    attention = MultiHeadAttention(dim, heads, **options).to(dtype)
    if attention.c_attn.bias is not None:
        nn.init.normal_(attention.c_attn.bias)
        nn.init.normal_(attention.c_proj.bias)
    return attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("path", [0, 1], ids=["explicit", "fused"])
@pytest.mark.parametrize("bias", [False, True])
def test_is_torchs_multihead_attention(dtype: torch.dtype, path: int, bias: bool):
    attention, x = module(dtype=dtype, bias=bias), torch.randn(2, 5, 12, dtype=dtype)
    attention.path.fill_(path)
    reference, memory = twin(attention, 12, dtype), torch.randn(2, 7, 12, dtype=dtype)
    hidden, future = ~padding(7)[:, 0, 0], torch.ones(5, 5, dtype=torch.bool).triu(1)
    cases = [
        ((x,), {}, (x, x, x), {}),
        ((x,), {"causal": True}, (x, x, x), {"attn_mask": future}),
        ((x,), {"mask": padding()}, (x, x, x), {"key_padding_mask": ~padding()[:, 0, 0]}),
        ((x, memory), {}, (x, memory, memory), {}),
        ((x, memory), {"mask": padding(7)}, (x, memory, memory), {"key_padding_mask": hidden}),
    ]
    for ours, how, theirs, theirs_how in cases:
        expected, weights = reference(*theirs, average_attn_weights=False, **theirs_how)
        torch.testing.assert_close(attention(*ours, **how), expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(attention.weights(*ours, **how), weights, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("path", [0, 1], ids=["explicit", "fused"])
def test_the_future_does_not_leak(path: int):
    attention, x = module(), torch.randn(2, 6, 12, dtype=torch.float64, requires_grad=True)
    attention.path.fill_(path)
    y = attention(x, causal=True)
    for t in range(6):
        (g,) = torch.autograd.grad(y[:, t].sum(), x, retain_graph=True)
        assert g[:, t + 1 :].abs().sum() == 0
        assert (g[:, : t + 1].abs().sum(-1) > 0).all()
    changed = x.detach().clone()
    changed[:, 4:] += 100
    assert torch.equal(attention(changed, causal=True)[:, :4], y[:, :4])


@pytest.mark.parametrize("path", [0, 1], ids=["explicit", "fused"])
def test_what_is_masked_does_not_matter(path: int):
    attention, x, memory = module(), torch.randn(2, 3, 12, dtype=torch.float64), torch.randn(2, 5, 12, dtype=torch.float64)
    attention.path.fill_(path)
    y = attention(x, memory, mask=padding())
    noisy = memory.clone()
    noisy[1, 3:] = 1e3
    assert torch.equal(attention(x, noisy, mask=padding()), y)
    longer = torch.cat([memory, torch.randn(2, 4, 12, dtype=torch.float64)], 1)
    mask = torch.cat([padding(), torch.zeros(2, 1, 1, 4, dtype=torch.bool)], -1)
    torch.testing.assert_close(attention(x, longer, mask=mask), y)
    torch.testing.assert_close(attention(x[1:], memory[1:, :3]), y[1:])


@pytest.mark.parametrize("steps", [[1] * 7, [3, 1, 1, 2], [4, 3], [7]], ids=str)
@pytest.mark.parametrize("train", [False, True])
def test_a_cache_changes_nothing(steps: list[int], train: bool):
    attention, x = module().train(train), torch.randn(2, 7, 12, dtype=torch.float64)
    cache, whole = Cache(), attention(x, causal=True)
    assert len(cache) == 0
    parts = [attention(part, causal=True, cache=cache) for part in x.split(steps, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    assert len(cache) == 7


def test_a_memory_is_looked_at_once():
    attention, x, memory = module(), torch.randn(2, 4, 12, dtype=torch.float64), torch.randn(2, 5, 12, dtype=torch.float64)
    cache, whole = Cache(), attention(x, memory, mask=padding())
    first = attention(x[:, :1], memory, mask=padding(), cache=cache)
    rest = attention(x[:, 1:], torch.full_like(memory, torch.nan), mask=padding(), cache=cache)
    torch.testing.assert_close(torch.cat([first, rest], 1), whole)
    assert len(cache) == 5


def test_a_cache_follows_a_search():
    attention, x = module(), torch.randn(3, 4, 12, dtype=torch.float64)
    cache, chosen = Cache(), torch.tensor([2, 2, 0, 1])
    attention(x[:, :3], causal=True, cache=cache)
    cache.select(chosen)
    torch.testing.assert_close(attention(x[chosen, 3:], causal=True, cache=cache), attention(x, causal=True)[chosen, 3:])


# -------------------------------------------------------------------- which of the two


def test_the_first_training_step_decides_and_the_checkpoint_tells():
    attention, x = module(dtype=torch.float32), torch.randn(2, 5, 12)
    attention.eval()(x)
    with torch.no_grad():
        attention.train()(x)
    assert attention.path == -1, "only what is trained is timed"
    attention(x)
    assert attention.path in (0, 1)
    assert attention.state_dict()["path"] == attention.path
    assert all(p.grad is None for p in attention.parameters())


@pytest.mark.parametrize("path", [0, 1])
def test_what_was_decided_is_kept_to(path: int):
    """Bit for bit, whatever this process would have found."""
    attention = module(dtype=torch.float32, heads=2)
    attention.load_state_dict({**attention.state_dict(), "path": torch.tensor(path, dtype=torch.int8)})
    x, way = torch.randn(4, 64, 12), (explicit_attention, fused_attention)[path]
    expected = attention.c_proj(way(*attention.project(x), causal=True).transpose(1, 2).flatten(2))
    assert torch.equal(attention(x, causal=True), expected)
    assert attention.path == path


def test_timing_draws_nothing_and_leaves_no_gradient():
    q, k, v = (x.float().requires_grad_() for x in qkv())
    torch.manual_seed(5)
    before = torch.get_rng_state()
    answer = prefers_fused(q, k, v, padding(), causal=True, dropout=0.3)
    assert torch.equal(torch.get_rng_state(), before)
    assert q.grad is None
    assert prefers_fused(q, k, v, padding(), causal=True, dropout=0.3) == answer


def test_without_gradients_nothing_is_timed():
    q, k, v = qkv()
    assert prefers_fused(q, k, v)
    with torch.no_grad():
        assert prefers_fused(*(x.requires_grad_() for x in (q, k, v)))
    assert torch.equal(attend(q, k, v), fused_attention(q, k, v))


def test_deterministic_means_by_no_clock():
    q, k, v = (x.requires_grad_() for x in qkv())
    torch.use_deterministic_algorithms(True)
    try:
        assert not prefers_fused(q, k, v)
        assert torch.equal(attend(q, k, v), explicit_attention(q, k, v))
    finally:
        torch.use_deterministic_algorithms(False)


def test_heads_must_share_evenly():
    with pytest.raises(AssertionError, match="shared"):
        MultiHeadAttention(10, 3)
