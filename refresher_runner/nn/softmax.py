"""A softmax over very many: its cross-entropy and gradients block by block, so that no more scores are held than a cache does.

Letters: K examples, N classes, D numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

NUMBERS = {"cpu": 1 << 22}  # scores held at once
MANY = 1 << 27  # likewise on an accelerator, where small products are slow


class Drawn(NamedTuple):
    """Of classes that are a sample of more: log_q (N,), log of how often each was to be expected, and which each is, `classes` (N,); and
    which is true, `examples` (K,). What is there twice is no other class.
    """

    log_q: Tensor
    classes: Tensor
    examples: Tensor


def linear_cross_entropy(
    h: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, smoothing: float = 0.0, drawn: Drawn | None = None
) -> Tensor:
    """The mean over K of cross_entropy(h weight^T + bias, targets): h (K, D), weight (N, D), bias (N,), targets (K,).

    A share `smoothing` of every target is spread over all classes. Of a sample, log_q is taken from the scores of all but the target.
    """
    if torch.is_autocast_enabled(h.device.type):
        dtype = torch.get_autocast_dtype(h.device.type)
        h, weight = h.to(dtype), weight.to(dtype)
    return _LinearCrossEntropy.apply(h, weight, bias, targets, smoothing, *(drawn or (None, None, None)))  # type: ignore[no-any-return]


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradients are made with the loss, while the scores are at hand: g = softmax - target gives g W, g^T h and the sum of g.

    They are divided by K and multiplied by what comes from behind at the end, in single precision: in half, softmax / K is often zero.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        smoothing: float,
        log_q: Tensor | None,
        classes: Tensor | None,
        examples: Tensor | None,
    ) -> Tensor:
        count, number = len(h), len(weight)
        size = max(1, NUMBERS.get(h.device.type, MANY) // number)
        loss = torch.zeros((), device=h.device)
        grads = torch.zeros_like(h, dtype=torch.float32), torch.zeros_like(weight, dtype=torch.float32), torch.zeros_like(bias)
        with torch.autocast(h.device.type, enabled=False):
            for begin in range(0, count, size):
                some, target = h[begin : begin + size], targets[begin : begin + size, None]
                scores = (some @ weight.T).float().add_(bias)
                true = scores.gather(1, target)
                if log_q is not None and classes is not None and examples is not None:
                    scores.sub_(log_q).masked_fill_(examples[begin : begin + size, None] == classes, -torch.inf).scatter_(1, target, true)
                log_z = scores.logsumexp(1, keepdim=True)
                loss += (log_z - (1 - smoothing) * true).sum()
                if smoothing:
                    loss -= smoothing * scores.mean(1).sum()
                if not any(ctx.needs_input_grad):
                    continue
                g = scores.sub_(log_z).exp_()
                if smoothing:
                    g -= smoothing / number
                g.scatter_add_(1, target, g.new_full((), smoothing - 1).expand_as(target))
                grads[2].add_(g.sum(0))
                g = g.to(h.dtype)
                grads[0][begin : begin + size] = g @ weight
                grads[1].add_(g.T @ some)
        ctx.save_for_backward(*grads)
        ctx.dtypes, ctx.count = (h.dtype, weight.dtype, bias.dtype), count
        return loss / count

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grads = (grad * (grad_loss / ctx.count) for grad in ctx.saved_tensors)
        return *(grad.to(dtype) for grad, dtype in zip(grads, ctx.dtypes, strict=True)), None, None, None, None, None
