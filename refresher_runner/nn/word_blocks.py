"""Negative sampling in blocks of successive words: matrix products, and gradients by hand.

A block of D words and the c words on either side of it are S = D + 2c successive words, which neighbouring blocks overlap in. All
products of the D with the S are one small matrix, of which the band within reach is what a window sees; products with the M negatives
that the block shares are another. Gradients are sparse: the rows that were looked up, as often as they were.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

SIZE = 16  # words of a block, or twice the window where that is more: with a window of 5 either side, a block sees 26 words


class Blocks(NamedTuple):
    """around (b D + 2c,): the words of b blocks, the last of them filled up with what sees nothing, and c fillers on either side;
    band (b D + 2c, 2c + 1) float: of each the weights that it gives to the words at -c, ... c from it; number (b, D, 1): how many it sees.
    """

    around: Tensor
    band: Tensor
    number: Tensor
    words: int  # without fillers

    @classmethod
    def of(cls, words: Tensor, left: Tensor, right: Tensor, *, window: int, mean: bool = False) -> Blocks:
        """Of words (T,), each of which sees so many to the left and to the right of it (T,) with a weight of 1, or of one's share."""
        size = max(SIZE, 2 * window)
        fill = -len(words) % size
        kind = F.pad(left * (window + 1) + right, (window, window + fill))
        number = F.pad((left + right).float(), (0, fill)).view(-1, size, 1)
        around = F.pad(words, (window, window + fill))
        return cls(around, _weights(window, mean, words.device).index_select(0, kind), number, len(words))

    @property
    def shape(self) -> tuple[int, int, int]:
        """b, D, c"""
        return self.number.shape[0], self.number.shape[1], self.band.shape[1] // 2

    @property
    def centres(self) -> Tensor:
        """The words of the blocks: (b D,)"""
        return self.inside(self.around)

    def inside(self, rows: Tensor) -> Tensor:
        """Without the c at either end: (b D + 2c, ...) -> (b D, ...)"""
        b, size, c = self.shape
        return rows[c : c + b * size]

    def framed(self, dim: int) -> Tensor:
        """Room for rows of what is inside, between zeros: (b D + 2c, C)"""
        b, size, c = self.shape
        rows = self.band.new_empty(len(self.around), dim)
        rows[:c].zero_()
        rows[c + b * size :].zero_()
        return rows

    def overlapping(self, rows: Tensor) -> Tensor:
        """What belongs to `around`, (b D + 2c, C), as blocks see it: (b, S, C), without a copy."""
        b, size, c = self.shape
        return rows.as_strided((b, size + 2 * c, rows.shape[1]), (size * rows.stride(0), *rows.stride()))

    def matrices(self, band: Tensor) -> Tensor:
        """Weights that each word gives to those around it (b D + 2c, 2c + 1) as matrices (b, D, S)."""
        return self._spread(self.inside(band))

    def adjoint(self, band: Tensor) -> Tensor:
        """The same of weights that each word is given by those around it: what is at (i, o) there is at (i + o, -o) of `band`."""
        b, size, c = self.shape
        return self._spread(band.as_strided((b * size, 2 * c + 1), (2 * c + 1, 2 * c), band.storage_offset() + 2 * c))

    def diagonals(self, matrices: Tensor) -> Tensor:
        """The inverse of `matrices`."""
        b, size, _ = self.shape
        band = matrices.new_zeros(self.band.shape)
        self.inside(band).view(b, size, -1).copy_(self._diagonals(matrices))
        return band

    def _spread(self, band: Tensor) -> Tensor:
        b, size, c = self.shape
        matrices = band.new_zeros(b, size, size + 2 * c)
        self._diagonals(matrices).copy_(band.as_strided((b, size, 2 * c + 1), (size * band.stride(0), *band.stride())))
        return matrices

    def _diagonals(self, matrices: Tensor) -> Tensor:
        """Of each row i of (b, D, S) what is at i, ... i + 2c: (b, D, 2c + 1), without a copy."""
        b, size, s = matrices.shape
        return matrices.as_strided((b, size, s - size + 1), (size * s, s + 1, 1))


@cache
def _weights(window: int, mean: bool, device: torch.device) -> Tensor:
    """What a word gives to those at -c, ... c from it, by how many it sees to its left and right: ((c + 1)^2, 2c + 1)"""
    ends, offset = torch.arange(window + 1, device=device), torch.arange(-window, window + 1, device=device)
    seen = (offset >= -ends[:, None, None]) & (offset <= ends[:, None]) & (offset != 0)  # left, right, offset
    return (seen / seen.sum(2, keepdim=True).clamp(min=1) if mean else seen.float()).flatten(0, 1)


def skip_gram_loss(v: Tensor, u: Tensor, blocks: Blocks, noise: Tensor, weight: float) -> Tensor:
    """- 1/T sum of: log sigma(u_j v_i) over what i sees, and, for each, `weight` log sigma(-u_m v_i) over the block's noise (b, M).

    v and u are (V, C); their gradients are sparse.
    """
    return _SkipGram.apply(v, u, blocks, noise, weight)  # type: ignore[no-any-return]


def cbow_loss(v: Tensor, u: Tensor, blocks: Blocks, noise: Tensor, weight: float) -> Tensor:
    """The same with h_i, the mean v of what i sees (blocks of `mean`), in the place of v_i, and u_i as the one that is looked for."""
    return _CBOW.apply(v, u, blocks, noise, weight)  # type: ignore[no-any-return]


class _RowByRow(Function):
    """What its forward pass leaves in `ctx.parts`, rows, their gradients and the shape of their table, is given as sparse gradients."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        as_it_is = gradient.device.type == "cpu" and gradient == 1  # a device would have to be waited for
        tables = [
            torch.sparse_coo_tensor(rows[None], values if as_it_is else values * gradient, shape, check_invariants=False)
            for rows, values, shape in ctx.parts
        ]
        return *tables, None, None, None


class _SkipGram(_RowByRow):
    @staticmethod
    def forward(ctx: Any, v: Tensor, u: Tensor, blocks: Blocks, noise: Tensor, weight: float) -> Tensor:
        b, size, _ = blocks.shape
        rows = v.index_select(0, blocks.around)
        centre = blocks.inside(rows).view(b, size, -1)
        context = blocks.overlapping(u.index_select(0, blocks.around))
        false = u.index_select(0, noise.view(-1)).view(b, -1, v.shape[1])
        seen, drawn = blocks.matrices(blocks.band / blocks.words), blocks.number.mT * (weight / blocks.words)

        true_score = torch.bmm(centre, context.mT)  # (b, D, S)
        false_score = torch.bmm(false, centre.mT)  # (b, M, D)
        p_true, p_false = true_score.sigmoid_(), false_score.neg_().sigmoid_()  # of being right
        loss = _surprise(p_true, seen) + _surprise(p_false, drawn)

        d_true, d_false = p_true.sub_(1).mul_(seen), p_false.sub_(1).mul_(-drawn)
        d_centre = torch.bmm(d_true, context).baddbmm_(d_false.mT, false).flatten(0, 1)
        d_u = u.new_empty(b * size + noise.numel(), u.shape[1])
        torch.bmm(blocks.adjoint(blocks.diagonals(d_true)), blocks.overlapping(rows), out=d_u[: b * size].view_as(centre))
        torch.bmm(d_false, centre, out=d_u[b * size :].view_as(false))
        ctx.parts = (blocks.centres, d_centre, v.shape), (torch.cat([blocks.centres, noise.view(-1)]), d_u, u.shape)
        return loss


class _CBOW(_RowByRow):
    @staticmethod
    def forward(ctx: Any, v: Tensor, u: Tensor, blocks: Blocks, noise: Tensor, weight: float) -> Tensor:
        b, size, _ = blocks.shape
        h = torch.bmm(blocks.matrices(blocks.band), blocks.overlapping(v.index_select(0, blocks.around)))
        asked = torch.cat([blocks.centres, noise.view(-1)])
        true, false = u.index_select(0, asked).split([b * size, noise.numel()])
        true, false = true.view_as(h), false.view(b, -1, u.shape[1])
        said = blocks.number.clamp(max=1) / blocks.words  # (b, D, 1): a word that sees nothing has nothing to be told by
        drawn = said.mT * weight

        true_score = torch.einsum("bdc,bdc->bd", h, true)[..., None]
        false_score = torch.bmm(false, h.mT)  # (b, M, D)
        p_true, p_false = true_score.sigmoid_(), false_score.neg_().sigmoid_()  # of being right
        loss = _surprise(p_true, said) + _surprise(p_false, drawn)

        d_true, d_false = p_true.sub_(1).mul_(said), p_false.sub_(1).mul_(-drawn)
        d_around = blocks.framed(v.shape[1])
        d_h = blocks.inside(d_around).view_as(h)
        torch.bmm(d_false.mT, false, out=d_h).addcmul_(d_true, true)
        d_v = torch.bmm(blocks.adjoint(blocks.band), blocks.overlapping(d_around)).flatten(0, 1)
        d_u = u.new_empty(b * size + noise.numel(), u.shape[1])
        torch.mul(d_true, h, out=d_u[: b * size].view_as(h))
        torch.bmm(d_false, h, out=d_u[b * size :].view_as(false))
        ctx.parts = (blocks.centres, d_v, v.shape), (asked, d_u, u.shape)
        return loss


def _surprise(p: Tensor, weights: Tensor) -> Tensor:
    """- sum of weights log p, where no p counts as less than the smallest number"""
    return -(p.clamp(min=torch.finfo(p.dtype).tiny).log_() * weights).sum()
