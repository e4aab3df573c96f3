"""Losses over a batch whose parts lie on several ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_size() -> tuple[int, int]:
    """Of this process among those that have met; 0 and 1 where it is alone."""
    met = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if met else (0, 1)


def gathered(x: Tensor) -> Tensor:
    """What every rank has, (B, ...) each, in the order of the ranks: (ranks * B, ...). Gradients go back to where it came from.

    There they are those of the sum of all ranks' losses; DDP takes the mean over the ranks.
    """
    return x if rank_and_size()[1] == 1 else _Gather.apply(x)  # type: ignore[return-value]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(rank_and_size()[1])]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        rank, size = rank_and_size()
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(size)[rank]
