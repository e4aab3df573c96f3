"""Users and items as vectors, by what is known of them.

Letters: N rows of a table, M of them that are asked for, D = dim numbers a vector.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refresher_runner.features import Column, Table
from refresher_runner.nn.attention import MultiHeadAttention


class FeatureEncoder(nn.Module):
    """The sum of a vector for each row itself, if `ids`, and one for each of its features."""

    def __init__(self, table: Table, dim: int, *, ids: bool, text: str, heads: int):
        super().__init__()
        self.size, self.dim = len(table), dim
        self.ids = table_of(len(table), dim) if ids else None
        self.columns = nn.ModuleList(
            column_encoder(column, values, dim, text, heads) for column, values in zip(table.columns, table.values, strict=True)
        )

    def forward(self, rows: Tensor) -> Tensor:
        """Rows (M,) -> (M, D)"""
        found = [self.ids(rows)] if self.ids is not None else []
        found += [column(rows) for column in self.columns]
        return torch.stack(found).sum(0) if found else torch.zeros(len(rows), self.dim, device=rows.device)


def column_encoder(column: Column, values: Tensor, dim: int, text: str, heads: int) -> nn.Module:
    """For a column of this kind; `text` says how words are put together: bag or attention."""
    if column.kind == "number":
        return Number(values, dim)
    if column.kind == "picture":
        return Picture(values, dim)
    if column.kind == "text" and text == "attention":
        return Sentence(column, values, dim, heads)
    return Bag(column, values, dim)


def table_of(size: int, dim: int, padding_idx: int | None = None) -> nn.Embedding:
    """An embedding whose vectors begin with a length of about 1."""
    table = nn.Embedding(size, dim, padding_idx=padding_idx)
    with torch.no_grad():
        table.weight.normal_(std=dim**-0.5)
        if padding_idx is not None:
            table.weight[padding_idx] = 0
    return table


class Number(nn.Module):
    """One number as a curve through D dimensions."""

    values: Tensor

    def __init__(self, values: Tensor, dim: int, hidden: int = 16):
        super().__init__()
        self.register_buffer("values", values, persistent=False)
        self.hidden, self.out = nn.Linear(1, hidden), nn.Linear(hidden, dim)
        nn.init.normal_(self.hidden.weight)
        nn.init.normal_(self.hidden.bias)

    def forward(self, rows: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(self.values[rows])))


class Words(nn.Module):
    """A vector for each of a column's names; those that come with vectors begin with these, and a matrix fits them in."""

    values: Tensor

    def __init__(self, column: Column, values: Tensor, dim: int):
        super().__init__()
        number, width = len(column.names), dim if column.vectors is None else column.vectors.shape[1]
        self.register_buffer("values", values.where(values >= 0, number), persistent=False)
        self.table = table_of(number + 1, width, padding_idx=number)
        self.fit = nn.Identity() if column.vectors is None else nn.Linear(width, dim, bias=False)
        if column.vectors is not None:
            with torch.no_grad():
                self.table.weight[:number] = column.vectors


class Bag(Words):
    """The mean over a row's names, whatever their order."""

    def forward(self, rows: Tensor) -> Tensor:
        # In one pass, without a tensor of rows x names x dim.
        return self.fit(F.embedding_bag(self.values[rows], self.table.weight, mode="mean", padding_idx=self.table.padding_idx))


class Sentence(Words):
    """Words in their order, each looking at all: the mean over them of one block of a transformer."""

    def __init__(self, column: Column, values: Tensor, dim: int, heads: int):
        super().__init__(column, values, dim)
        self.places = nn.Parameter(torch.randn(values.shape[1], dim) * 0.02)
        self.norm1, self.attention = nn.LayerNorm(dim), MultiHeadAttention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, rows: Tensor) -> Tensor:
        words = self.values[rows]
        there = words != self.table.padding_idx  # (M, W)
        x = self.fit(self.table(words)) + self.places
        x = x + self.attention(self.norm1(x), mask=there[:, None, None])
        x = x + self.mlp(self.norm2(x))
        return (x * there[..., None]).sum(1) / there.sum(1, keepdim=True).clamp(min=1)


class Picture(nn.Module):
    """Three convolutions, each of half the size, and the mean over what is left."""

    values: Tensor

    def __init__(self, values: Tensor, dim: int, width: int = 16):
        super().__init__()
        self.register_buffer("values", values, persistent=False)
        channels = [values.shape[1], width, 2 * width, 4 * width]
        layers = [nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU()) for a, b in pairwise(channels)]
        self.net, self.out = nn.Sequential(*layers), nn.Linear(channels[-1], dim)

    def forward(self, rows: Tensor) -> Tensor:
        return self.out(self.net(self.values[rows].float() / 255).mean((2, 3)))
