"""What someone came to so far, as a vector at every place of it, so that one pass learns from all of them.

Each takes events x (B, L, D), and which of these are there to be seen (B, L), and gives h (B, L + 1, D): h at place t is made of the events
before t, and at place 0 of none.

Letters: B histories of L events, D = dim numbers an event.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from refresher_runner.nn.attention import RotaryAttention
from refresher_runner.nn.dropout import dropout as drop


class Begun(nn.Module):
    """Before the first event stands a vector that is learnt; another stands for an event that is not to be seen."""

    def __init__(self, dim: int):
        super().__init__()
        self.begin, self.hidden = nn.Parameter(torch.randn(dim) * 0.02), nn.Parameter(torch.randn(dim) * 0.02)

    def begun(self, x: Tensor, there: Tensor) -> Tensor:
        """(B, L + 1, D)"""
        begin = self.begin.expand(len(x), 1, -1)
        return torch.cat([begin.to(x.dtype), torch.where(there[..., None], x, self.hidden.to(x.dtype))], 1)


class Recency(nn.Module):
    """A sum in which the weight of an event depends on how long ago it was, counted in events: w_1 for the last, w_2 for the one before.

    The weights are positive and learnt; they begin as `decay` to the power of the age. A sum over many events is divided by the root of
    its weight: more events say more, but not as much more.
    """

    def __init__(self, dim: int, length: int, decay: float = 0.9):
        super().__init__()
        self.begin = nn.Parameter(torch.zeros(dim))
        self.log_weights = nn.Parameter(torch.arange(length) * torch.tensor(decay).log())
        age = torch.arange(length + 1)[:, None] - torch.arange(length) - 1  # of event s at place t: t - s - 1
        self.register_buffer("age", age, persistent=False)

    age: Tensor

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        if not x.shape[1]:
            return self.begin.expand(len(x), 1, -1)
        weights = self.log_weights.exp()[self.age.clamp(min=0)] * (self.age >= 0)  # (L + 1, L)
        weights = weights * there[:, None]
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-6).sqrt()
        return weights @ x + self.begin


class Recurrent(Begun):
    """A gated recurrent unit (Cho et al., 2014), as GRU4Rec has it (Hidasi et al., 2016)."""

    def __init__(self, dim: int, depth: int, dropout: float):
        super().__init__(dim)
        self.gru = nn.GRU(dim, dim, depth, batch_first=True, dropout=dropout if depth > 1 else 0.0)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        return self.out(self.gru(self.begun(x, there))[0])


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); no event looks at a later one."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.norm1, self.attention = nn.LayerNorm(dim), RotaryAttention(dim, heads, dropout)
        self.norm2, self.mlp = nn.LayerNorm(dim), nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        rate = self.dropout if self.training else 0.0
        x = x + drop(self.attention(self.norm1(x), causal=True), rate)
        return x + drop(self.mlp(self.norm2(x)), rate)


class SelfAttention(Begun):
    """Self-attention over the past (Kang and McAuley, "Self-Attentive Sequential Recommendation", 2018. https://arxiv.org/abs/1808.09781).

    Differs: positions are rotations, so that an event is known by how long ago it was, wherever a history is cut.
    """

    def __init__(self, dim: int, heads: int, depth: int, dropout: float):
        super().__init__(dim)
        self.blocks, self.norm = nn.Sequential(*(Block(dim, heads, dropout) for _ in range(depth))), nn.LayerNorm(dim)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        return self.norm(self.blocks(self.begun(x, there)))
