"""Dropout: while training, every number becomes zero with probability p, and the others grow by 1 / (1 - p).

Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", 2014. https://jmlr.org/papers/v15/srivastava14a.html

torch's own, on a CPU, takes longer than the matrix products around it: it draws 32 bits for each number and more than once converts
what it drew. Here 16 bits decide, so that p is met to 2^-17, and nothing is converted.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dropout(x: Tensor, p: float) -> Tensor:
    """Of x of any shape; p in [0, 1]."""
    if p in (0.0, 1.0) or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    dropped = round(p * 2**16)  # of the 2^16 equally likely draws
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)  # four in each
    kept = torch.ge(draws[: x.numel()].view(x.shape), dropped - 2**15, out=torch.empty(x.shape, dtype=x.dtype))
    return x * kept.mul_(1 / (1 - dropped / 2**16))


class Dropout(nn.Module):
    """`dropout` while training, nothing else."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x

    def extra_repr(self) -> str:
        return f"p={self.p}"
