"""How well a user's vector and an item's go together.

A score takes u (Q, D) and v (N, D) and gives (Q, N). The first two are products, which an index can search; the others meet every pair.

Letters: Q users, N items, M candidates of a user, L events, D = dim.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refresher_runner.nn.attention import MultiHeadAttention


class Dot(nn.Module):
    """<u, v>"""

    def sides(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors whose product is the score."""
        return u, v

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        u, v = self.sides(u, v)
        return u @ v.T


class Cosine(Dot):
    """<u, v> / (|u| |v| temperature)"""

    def __init__(self, temperature: float):
        super().__init__()
        self.temperature = temperature

    def sides(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(u, dim=-1) / self.temperature, F.normalize(v, dim=-1)


class Product(nn.Module):
    """<u, v> + MLP(u * v), number by number (He et al., "Neural Collaborative Filtering", 2017. https://arxiv.org/abs/1708.05031)"""

    def __init__(self, dim: int):
        super().__init__()
        self.hidden, self.out = nn.Linear(dim, dim), nn.Linear(dim, 1, bias=False)

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        w = self.hidden.weight  # (D, D): W (u * v) = (W * u) v, without a tensor of Q x N x D that is multiplied twice
        hidden = torch.einsum("qd,hd,nd->qnh", u, w, v) + self.hidden.bias
        return u @ v.T + self.out(F.relu(hidden)).squeeze(-1)


class Concatenation(nn.Module):
    """<u, v> + MLP([u, v])"""

    def __init__(self, dim: int):
        super().__init__()
        self.of_u, self.of_v = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False)  # halves of one matrix
        self.out = nn.Linear(dim, 1, bias=False)

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        return u @ v.T + self.out(F.relu(self.of_u(u)[:, None] + self.of_v(v))).squeeze(-1)


class Facets(nn.Module):
    """An item attends to several sides u_m of a user: sum over m of softmax_m(<u_m, v>) <u_m, v>, as Humeau et al. let a candidate attend
    to codes ("Poly-encoders", 2020. https://arxiv.org/abs/1905.01969).
    """

    def __init__(self, dim: int, facets: int = 4):
        super().__init__()
        self.facets, self.sides = facets, nn.Linear(dim, facets * dim)

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        products = (u[:, None] + self.sides(u).unflatten(-1, (self.facets, -1))) @ v.T  # (Q, facets, N)
        return (products.softmax(1) * products).sum(1)


SCORES: dict[str, Callable[[int, float], nn.Module]] = {
    "dot": lambda dim, temperature: Dot(),
    "cosine": lambda dim, temperature: Cosine(temperature),
    "product": lambda dim, temperature: Product(dim),
    "mlp": lambda dim, temperature: Concatenation(dim),
    "attention": lambda dim, temperature: Facets(dim),
}


class CrossAttention(nn.Module):
    """A second look at few candidates: each attends to what its user came to, and says how much better it is than its score."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), MultiHeadAttention(dim, heads)
        self.norm2, self.hidden, self.out = nn.LayerNorm(dim), nn.Linear(dim, dim), nn.Linear(dim, 1, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, candidates: Tensor, x: Tensor, there: Tensor) -> Tensor:
        """Candidates (Q, M, D), events x (Q, L, D), which are there (Q, L) -> (Q, M)"""
        c = candidates + self.attention(self.norm1(candidates), self.norm1(x), mask=there[:, None, None])
        return self.out(F.gelu(self.hidden(self.norm2(c)))).squeeze(-1)
