"""Examples of several processes as one batch, for losses in which every example meets all others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

_alone = False


def rank_and_size() -> tuple[int, int]:
    """Of this process among those that have met; 0 and 1 where it is alone."""
    met = dist.is_available() and dist.is_initialized() and not _alone
    return (dist.get_rank(), dist.get_world_size()) if met else (0, 1)


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process computes what the others do not, and must not wait for them."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


class Shares(NamedTuple):
    """How many examples each process has, and which process this is."""

    counts: list[int]
    rank: int

    @staticmethod
    def of(count: int, device: torch.device) -> Shares:
        """Where this process has `count`; without others, these are all, and so where nothing is learnt, and others are elsewhere."""
        rank, size = rank_and_size()
        if size == 1 or not torch.is_grad_enabled():
            return Shares([count], 0)
        counts = torch.zeros(size, dtype=torch.long, device=device)
        counts[rank] = count
        dist.all_reduce(counts)
        return Shares(counts.tolist(), rank)

    @property
    def own(self) -> slice:
        """The place of this process's examples among all."""
        begin = sum(self.counts[: self.rank])
        return slice(begin, begin + self.counts[self.rank])

    @property
    def weight(self) -> float:
        """Of a mean over this process's examples, in an average over processes that is to be the mean over all examples."""
        return self.counts[self.rank] * len(self.counts) / max(1, sum(self.counts))


def together(x: Tensor, shares: Shares) -> Tensor:
    """Rows (count, ...) of every process, one after another: (sum of counts, ...), the same on each.

    The gradient of a row is the sum of what every process says of it: where each computes one loss of all rows, and gradients of
    parameters are averaged over the processes, as DDP does, they are those of this loss in one process.
    """
    return x if len(shares.counts) == 1 else _Together.apply(x, shares)  # type: ignore[no-any-return]


def gathered(x: Tensor) -> Tensor:
    """The same where every process has as many rows, in training and out of it: (processes * B, ...) of (B, ...)."""
    rank, size = rank_and_size()
    return together(x, Shares([len(x)] * size, rank))


class _Together(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shares: Shares) -> Tensor:
        ctx.own = shares.own
        padded = x.new_zeros(max(shares.counts), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in shares.counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, shares.counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[ctx.own], None
