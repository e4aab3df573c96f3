"""Negative sampling in blocks of successive words: matrix products, and gradients by hand.

A block of D words and the c words on either side of it are S = D + 2c successive words, which neighbouring blocks overlap in. All
products of the D with the S are one small matrix, of which the band within reach is what a window sees; products with the M negatives
that the block shares are another. Gradients are sparse: the rows that were looked up, as often as they were.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

SIZE = 14  # words of a block, or twice the window where that is more: with a window of 5 either side, a block sees 24 words


class Blocks(NamedTuple):
    """centres (b D,), the words of b blocks, the last of them filled up with what sees nothing; around (b D + 2c,), the same with c more
    on either side; seen (b, D, S) float: 1 where the word of a row looks at the word of a column, 0 elsewhere.
    """

    centres: Tensor
    around: Tensor
    seen: Tensor
    words: int  # without fillers

    @classmethod
    def of(cls, words: Tensor, sentence: Tensor, reach: Tensor, *, window: int) -> Blocks:
        """Of words (T,), each with its sentence (T,), ascending, and its reach (T,)."""
        size = max(SIZE, 2 * window)
        number = -(-len(words) // size)
        fill = number * size - len(words)
        around = F.pad(words, (window, window + fill))
        sentences = F.pad(sentence.int(), (window, window + fill), value=-1)  # small numbers are compared faster
        reach = F.pad(reach.to(torch.int16), (0, fill)).view(number, size, 1)  # a filler reaches nothing
        row = torch.arange(size, device=words.device, dtype=torch.int16)[:, None]
        apart = (torch.arange(-window, size + window, device=words.device, dtype=torch.int16) - row).abs()
        near = (apart <= reach) & (apart > 0)
        own = sentences[window : window + number * size].view(number, size, 1)
        same = _overlapping(sentences, number, size, window)[:, None] == own
        return cls(around[window : window + number * size], around, (near & same).float(), len(words))

    @property
    def number(self) -> int:
        return len(self.seen)

    @property
    def size(self) -> int:
        return self.seen.shape[1]

    def overlapping(self, rows: Tensor) -> Tensor:
        """What belongs to `around`, (b D + 2c, C), as blocks see it: (b, S, C), without a copy."""
        return _overlapping(rows, self.number, self.size, (len(self.around) - len(self.centres)) // 2)

    def fold(self, weights: Tensor, rows: Tensor, out: Tensor) -> None:
        """What blocks say of their words, weights (b, D, S) transposed times rows (b, D, C), summed into `out` (b D + 2c, C): the adjoint
        of `overlapping`.
        """
        b, d, c = self.number, self.size, rows.shape[2]
        margins = weights.shape[2] - d  # 2c, not more than D, so that the margins of two blocks do not overlap
        torch.bmm(weights[..., :d].mT, rows, out=out[: b * d].view(b, d, c))
        out[b * d :].zero_()
        out.as_strided((b, margins, c), (d * c, c, 1), out.storage_offset() + d * c).add_(torch.bmm(weights[..., d:].mT, rows))


def _overlapping(rows: Tensor, number: int, size: int, window: int) -> Tensor:
    rest = rows.shape[1:]
    step = rows.stride(0)
    return rows.as_strided((number, size + 2 * window, *rest), (size * step, step, *rows.stride()[1:]))


def skip_gram_loss(v: Tensor, u: Tensor, blocks: Blocks, noise: Tensor, weight: float) -> Tensor:
    """- 1/T sum of: log sigma(u_j v_i) over what i sees, and, for each, `weight` log sigma(-u_m v_i) over the block's noise (b, M).

    v and u are (V, C); their gradients are sparse.
    """
    return _SkipGram.apply(v, u, blocks, noise, weight)  # type: ignore[no-any-return]


def cbow_loss(v: Tensor, u: Tensor, blocks: Blocks, noise: Tensor, weight: float) -> Tensor:
    """The same with h_i, the mean v of what i sees, in the place of v_i, and u_i as the one word that is looked for."""
    return _CBOW.apply(v, u, blocks, noise, weight)  # type: ignore[no-any-return]


class _RowByRow(Function):
    """What its forward pass leaves in `ctx.parts`, rows, their gradients and the shape of their table, is given as sparse gradients."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        found = []
        for rows, values, shape in ctx.parts:
            if gradient.device.type != "cpu" or gradient != 1:  # a device would have to be waited for
                values = values * gradient
            found.append(torch.sparse_coo_tensor(rows[None], values, shape, check_invariants=False))
        return *found, None, None, None


class _SkipGram(_RowByRow):
    @staticmethod
    def forward(ctx: Any, v: Tensor, u: Tensor, blocks: Blocks, noise: Tensor, weight: float) -> Tensor:
        b, size, dim = blocks.number, blocks.size, v.shape[1]
        centre = v.index_select(0, blocks.centres).view(b, size, dim)
        context = blocks.overlapping(u.index_select(0, blocks.around))
        false = u.index_select(0, noise.view(-1)).view(b, -1, dim)
        seen, drawn = blocks.seen, blocks.seen.sum(2, keepdim=True) * weight

        true_score = torch.bmm(centre, context.mT)  # (b, D, S)
        false_score = torch.bmm(centre, false.mT)  # (b, D, M)
        p_true, p_false = true_score.sigmoid_(), false_score.neg_().sigmoid_()  # of being right
        loss = _surprise(p_true, seen) + _surprise(p_false, drawn)

        d_true = p_true.sub_(1).mul_(seen / blocks.words)
        d_false = p_false.sub_(1).mul_(drawn / -blocks.words)
        d_centre = torch.bmm(d_true, context).baddbmm_(d_false, false).view(-1, dim)
        d_u = u.new_empty(len(blocks.around) + noise.numel(), dim)
        blocks.fold(d_true, centre, d_u[: len(blocks.around)])
        torch.bmm(d_false.mT, centre, out=d_u[len(blocks.around) :].view(b, -1, dim))
        ctx.parts = (blocks.centres, d_centre, v.shape), (torch.cat([blocks.around, noise.view(-1)]), d_u, u.shape)
        return loss / blocks.words


class _CBOW(_RowByRow):
    @staticmethod
    def forward(ctx: Any, v: Tensor, u: Tensor, blocks: Blocks, noise: Tensor, weight: float) -> Tensor:
        b, size, dim = blocks.number, blocks.size, v.shape[1]
        number = blocks.seen.sum(2, keepdim=True)
        some = (number > 0).to(v.dtype)  # (b, D, 1): a word that sees nothing has nothing to be told by
        share = blocks.seen / number.clamp(min=1)
        h = torch.bmm(share, blocks.overlapping(v.index_select(0, blocks.around)))
        true = u.index_select(0, blocks.centres).view(b, size, dim)
        false = u.index_select(0, noise.view(-1)).view(b, -1, dim)

        true_score = (h * true).sum(2, keepdim=True)  # (b, D, 1)
        false_score = torch.bmm(h, false.mT)  # (b, D, M)
        p_true, p_false = true_score.sigmoid_(), false_score.neg_().sigmoid_()  # of being right
        loss = _surprise(p_true, some) + _surprise(p_false, some * weight)

        d_true = p_true.sub_(1).mul_(some / blocks.words)
        d_false = p_false.sub_(1).mul_(some * (-weight / blocks.words))
        d_h = (d_true * true).baddbmm_(d_false, false)
        d_v = v.new_empty(len(blocks.around), dim)
        blocks.fold(share, d_h, d_v)
        d_u = u.new_empty(len(blocks.centres) + noise.numel(), dim)
        torch.mul(d_true, h, out=d_u[: len(blocks.centres)].view(b, size, dim))
        torch.bmm(d_false.mT, h, out=d_u[len(blocks.centres) :].view(b, -1, dim))
        ctx.parts = (blocks.around, d_v, v.shape), (torch.cat([blocks.centres, noise.view(-1)]), d_u, u.shape)
        return loss / blocks.words


def _surprise(p: Tensor, weights: Tensor) -> Tensor:
    """- sum of weights log p, where no p counts as less than the smallest number"""
    return -(p.clamp(min=torch.finfo(p.dtype).tiny).log_() * weights).sum()
