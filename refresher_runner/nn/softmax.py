"""A softmax over very many: its cross-entropy and gradients block by block, so that no more scores are held than a cache does.

Letters: K examples, N classes, D numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NUMBERS = {"cpu": 1 << 22}  # scores held at once
MANY = 1 << 27  # likewise on an accelerator, where small products are slow


def linear_cross_entropy(h: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """The mean over K of cross_entropy(h weight^T + bias, targets): h (K, D), weight (N, D), bias (N,), targets (K,).

    A share `smoothing` of every target is spread over all classes.
    """
    if torch.is_autocast_enabled(h.device.type):
        dtype = torch.get_autocast_dtype(h.device.type)
        h, weight = h.to(dtype), weight.to(dtype)
    return _LinearCrossEntropy.apply(h, weight, bias, targets, smoothing)  # type: ignore[no-any-return]


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradients are made with the loss, while the scores are at hand: g = (softmax - target) / K gives g W, g^T h and the sum of g."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        count, classes = len(h), len(weight)
        size = max(1, NUMBERS.get(h.device.type, MANY) // classes)
        loss = torch.zeros((), device=h.device)
        wanted = ctx.needs_input_grad
        grads = torch.zeros_like(h), torch.zeros_like(weight, dtype=torch.float32), torch.zeros_like(bias)
        with torch.autocast(h.device.type, enabled=False):
            for begin in range(0, count, size):
                some = h[begin : begin + size]
                target = targets[begin : begin + size, None]
                scores = (some @ weight.T).float().add_(bias)
                log_z = scores.logsumexp(1, keepdim=True)
                loss += (log_z - (1 - smoothing) * scores.gather(1, target)).sum()
                if smoothing:
                    loss -= smoothing * scores.mean(1).sum()
                if not any(wanted):
                    continue
                g = scores.sub_(log_z).exp_()
                if smoothing:
                    g -= smoothing / classes
                g.scatter_add_(1, target, g.new_full((), smoothing - 1).expand_as(target))
                g /= count
                grads[2].add_(g.sum(0))
                g = g.to(h.dtype)
                grads[0][begin : begin + size] = g @ weight
                grads[1].add_(g.T @ some)
        ctx.save_for_backward(*(grad.to(x.dtype) for grad, x in zip(grads, (h, weight, bias), strict=True)))
        return loss / count

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return *(grad * grad_loss.to(grad.dtype) for grad in ctx.saved_tensors), None, None
