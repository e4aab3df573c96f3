"""Attention: what a token takes from others, weighed by how well its query fits their keys.

Vaswani et al., "Attention Is All You Need", 2017, section 3.2. https://arxiv.org/abs/1706.03762

Letters: B samples, T tokens that ask, S tokens that are asked, D numbers per head; q (..., T, D) queries, k (..., S, D) keys,
v (..., S, D) values. A mask is bool, broadcastable to (..., T, S), True where a token may look; causal: token t of the last T of S
looks at none after itself. A token that may look nowhere takes zeros.

The same function can be computed as it is written or by torch's fused kernel. On GPUs the fused one is faster; on CPUs it depends on
shape and precision, up to six times either way, so the first training step times both. What was chosen is a buffer of the module and
travels in its checkpoint: the two differ in the last bits, and a resumed run must go on with the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refresher_runner.errors import ConfigError
from refresher_runner.nn.dropout import dropout as drop


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(D) + hidden), eq. 1, where hidden is as good as -inf wherever the mask says no: (..., T, S)"""
    product, scale = q @ k.mT, 1 / math.sqrt(q.shape[-1])
    allowed = _allowed(q, k, mask, causal)
    if allowed is None:
        return (product * scale).softmax(-1)
    hidden = torch.zeros(allowed.shape, dtype=product.dtype, device=q.device).masked_fill(~allowed, torch.finfo(product.dtype).min)
    weights = torch.add(hidden, product, alpha=scale).softmax(-1)  # in one pass over T x S: these are the largest tensors of a model
    return weights if mask is None else weights * allowed.any(-1, keepdim=True)


def explicit_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False, dropout: float = 0.0
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, eq. 1, as it is written; dropout is of the weights: (..., T, D)"""
    return drop(attention_weights(q, k, mask, causal=causal), dropout) @ v


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False, dropout: float = 0.0) -> Tensor:
    """The same by torch's kernel, which never holds all T x S weights at once."""
    if mask is None and causal and q.shape[-2] == k.shape[-2]:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=_allowed(q, k, mask, causal), dropout_p=dropout)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False, dropout: float = 0.0, fused: bool | None = None
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, eq. 1: (..., T, D). `fused` says which way; None: the faster."""
    if fused is None:
        fused = prefers_fused(q, k, v, mask, causal=causal, dropout=dropout)
    return (fused_attention if fused else explicit_attention)(q, k, v, mask, causal=causal, dropout=dropout)


def _allowed(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool) -> Tensor | None:
    """The mask and causality together; None: every token looks everywhere."""
    t, s = q.shape[-2], k.shape[-2]
    if not causal or t == 1:
        return mask
    place = torch.arange(s, dtype=torch.float32, device=q.device)  # which vector units compare faster than int64
    past = place <= place[s - t :, None]
    return past if mask is None else past & mask


# -------------------------------------------------------------------- which of the two

MARGIN = 1.25  # the explicit way must be so many times as fast as the fused: what is nearly even should not depend on the hour
_timed: dict[tuple[object, ...], bool] = {}  # what this process has found


def prefers_fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False, dropout: float = 0.0) -> bool:
    """Whether the fused way is the faster. Timed, forward and backward, for training on a CPU; a rule elsewhere.

    The rule is fused; but explicit in training on a CPU where it is compiled or traced, since torch's compiler fuses what is written and
    cannot mend the fused one's slow backward pass, and where `torch.use_deterministic_algorithms` asks that nothing depend on a clock.
    """
    if q.device.type != "cpu" or not (torch.is_grad_enabled() and q.requires_grad):
        return True
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    if traced or torch.are_deterministic_algorithms_enabled():
        return False
    shapes = q.shape, k.shape, v.shape, None if mask is None else mask.shape
    key = *shapes, q.dtype, causal, dropout > 0, torch.is_autocast_enabled("cpu"), torch.get_num_threads()
    if key not in _timed:
        _timed[key] = _time_both(q, k, v, mask, causal=causal, dropout=dropout)
    return _timed[key]


def _time_both(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool, dropout: float) -> bool:
    """The best of a few turns each, taken alternately. Random numbers drawn by dropout are given back."""
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    ways: list[Callable[..., Tensor]] = [explicit_attention, fused_attention]
    best, random_state = [math.inf, math.inf], torch.get_rng_state()
    begin = time.perf_counter()
    for turn in range(8):
        for i, way in enumerate(ways):
            start = time.perf_counter()
            y = way(*inputs, mask, causal=causal, dropout=dropout)
            torch.autograd.grad(y, inputs, torch.ones_like(y))
            if turn:  # the first is to warm up
                best[i] = min(best[i], time.perf_counter() - start)
        if turn >= 3 and time.perf_counter() - begin > 0.5:
            break
    torch.set_rng_state(random_state)
    return best[1] <= MARGIN * best[0]


# -------------------------------------------------------------------- with heads


class Cache:
    """The keys and values (B, heads, S, D) of all tokens so far, so that the next need not compute them anew. Empty at first."""

    def __init__(self) -> None:
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    def __len__(self) -> int:
        return 0 if self.k is None else self.k.shape[-2]

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Those of more tokens; gives all."""
        self.k = k if self.k is None else torch.cat([self.k, k], -2)
        self.v = v if self.v is None else torch.cat([self.v, v], -2)
        return self.k, self.v

    def select(self, samples: Tensor) -> None:
        """Keep samples (N,) of the B, repeated or dropped as a search goes on with them."""
        if self.k is not None and self.v is not None:
            self.k, self.v = self.k[samples], self.v[samples]


class MultiHeadAttention(nn.Module):
    """Several attentions side by side, each with `dim` / heads of the numbers, section 3.2.2.

    Self-attention of x (B, T, dim), or attention of x to a memory (B, S, dim). A mask is broadcastable to (B, heads, T, S); that of
    padding is `(tokens != PAD)[:, None, None]`.
    """

    path: Tensor  # (), -1 until timed, then 0: explicit, 1: fused

    def __init__(self, dim: int, heads: int, dropout: float = 0.0, bias: bool = True):
        super().__init__()
        assert dim % heads == 0, f"{dim} numbers cannot be shared among {heads} heads"
        self.heads, self.dropout = heads, dropout
        self.c_attn = nn.Linear(dim, 3 * dim, bias)  # W^Q, W^K and W^V as one product; named as in GPT-2's weights
        self.c_proj = nn.Linear(dim, dim, bias)  # W^O
        self.register_buffer("path", torch.tensor(-1, dtype=torch.int8))

    def forward(
        self, x: Tensor, memory: Tensor | None = None, *, mask: Tensor | None = None, causal: bool = False, cache: Cache | None = None
    ) -> Tensor:
        """(B, T, dim). With a cache, x is what follows the tokens that it has seen, and a memory is looked at the first time only."""
        q, k, v = self.project(x, memory, cache)
        dropout = self.dropout if self.training else 0.0
        y = attend(q, k, v, mask, causal=causal, dropout=dropout, fused=self._fused(q, k, v, mask, causal=causal, dropout=dropout))
        return self.c_proj(y.transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, memory: Tensor | None = None, *, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """What each head looks at: (B, heads, T, S)"""
        q, k, _ = self.project(x, memory)
        return attention_weights(q, k, mask, causal=causal)

    def project(self, x: Tensor, memory: Tensor | None = None, cache: Cache | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, heads, T, D) of x, keys and values (B, heads, S, D) of all that it may look at."""
        if memory is None:
            q, k, v = (self._split(part) for part in self.c_attn(x).chunk(3, -1))
            return q, *(cache.extend(k, v) if cache is not None else (k, v))
        dim = x.shape[-1]
        (w_q, w_kv), (b_q, b_kv) = self.c_attn.weight.split([dim, 2 * dim]), self._biases(dim)
        q = self._split(F.linear(x, w_q, b_q))
        if cache is not None and cache.k is not None and cache.v is not None:
            return q, cache.k, cache.v
        k, v = (self._split(part) for part in F.linear(memory, w_kv, b_kv).chunk(2, -1))
        return q, *(cache.extend(k, v) if cache is not None else (k, v))

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, dim) -> (B, heads, T, D)"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _biases(self, dim: int) -> tuple[Tensor | None, Tensor | None]:
        if self.c_attn.bias is None:
            return None, None
        of_q, of_kv = self.c_attn.bias.split([dim, 2 * dim])
        return of_q, of_kv

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool, dropout: float) -> bool | None:
        """What this module has kept to since its first training step on a CPU; None where there is nothing to keep to."""
        if not self.training or q.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        if self.path < 0:
            self.path.fill_(prefers_fused(q, k, v, mask, causal=causal, dropout=dropout))
        return bool(self.path)


def check_heads(dim: int, heads: int, *, rotary: bool = False, key: str = "model.heads") -> None:
    """Raises ConfigError, naming the key of a model, where `dim` cannot be shared among the heads, or not be turned in pairs."""
    if dim % heads:
        problem = f"model.dim={dim} cannot be shared evenly among them"
        raise ConfigError(problem, key=key, value=heads, cure="a divisor of model.dim")
    if rotary and dim // heads % 2:
        problem, cure = f"turns pairs of numbers, and a head has {dim // heads}", "learned, or an even model.dim / model.heads"
        raise ConfigError(problem, key="model.positions", value="rotary", cure=cure)


# -------------------------------------------------------------------- with positions


def rotate(x: Tensor, start: int) -> Tensor:
    """Positions start, start + 1, ... as angles: (..., T, D) -> (..., T, D)

    Numbers i and i + D/2 are a point of the plane, turned by position * 10000^(-2i/D) (Su et al., "RoFormer", 2021, section 3.2.2, which
    pairs neighbours. https://arxiv.org/abs/2104.09864).
    """
    t, d = x.shape[-2:]
    frequency = 10000 ** (-torch.arange(0, d, 2, device=x.device) / d)
    angle = torch.arange(start, start + t, device=x.device)[:, None] * frequency  # (T, D/2)
    (a, b), cos, sin = x.chunk(2, -1), angle.cos(), angle.sin()
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)


class RotaryAttention(MultiHeadAttention):
    """Self-attention whose queries and keys are turned by their positions. The last query's position is the last key's."""

    def project(self, x: Tensor, memory: Tensor | None = None, cache: Cache | None = None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().project(x, memory, cache)
        return rotate(q, k.shape[-2] - q.shape[-2]), rotate(k, 0), v
