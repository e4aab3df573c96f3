"""Negative sampling in blocks of successive words: sums over windows, matrix products, and gradients by hand.

Who stands near whom in a text is a band: word i gives a weight to each of those at i - c ... i + c, and what a window sums up is a bag of
rows of a table. Products of words with all that stand near them are those of SIZE words with SIZE + 2c, of which the diagonals within reach
are the window's; products with the M negatives that SHARE words have together are a matrix. Gradients are sparse: the rows that were
looked up, as often as they were.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

SIZE = 16  # words whose neighbours are looked at together: with a window of 5 either side, a product of 16 with 26
SHARE = 64  # words of a block, which share negatives: a multiple of SIZE


class Blocks(NamedTuple):
    """around (T + 2c,): the T = b D words of b blocks, the last of them filled up with what sees nothing, and c fillers on either side;
    place (T + 2c,): 0, 1, 2, ...; band (T + 2c, 2c + 1) float: of each the weights that it gives to the words at -c, ... c from it;
    number (b, D) float: how many it sees.
    """

    around: Tensor
    place: Tensor
    band: Tensor
    number: Tensor
    words: int  # without fillers

    @classmethod
    def of(cls, words: Tensor, left: Tensor, right: Tensor, *, window: int, mean: bool = False) -> Blocks:
        """Of words, each of which sees so many to the left and to the right of it, all (words,), with a weight of 1, or of one's share."""
        fill = -len(words) % SHARE
        kind = F.pad(left * (window + 1) + right, (window, window + fill))
        number = F.pad((left + right).float(), (0, fill)).view(-1, SHARE)
        around = F.pad(words, (window, window + fill))
        place = torch.arange(len(around), device=words.device)
        return cls(around, place, _weights(window, mean, words.device).index_select(0, kind), number, len(words))

    @property
    def window(self) -> int:
        """How far a word sees at most: c"""
        return self.band.shape[1] // 2

    @property
    def centres(self) -> Tensor:
        """The words of the blocks: (T,)"""
        return self.inside(self.around)

    def inside(self, rows: Tensor) -> Tensor:
        """Without the c at either end: (T + 2c, ...) -> (T, ...)"""
        return rows[self.window : len(rows) - self.window]

    def near(self, rows: Tensor) -> Tensor:
        """What stands at -c, ... c from each, without a copy: (T + 2c,) -> (T, 2c + 1)"""
        return rows.unfold(0, 2 * self.window + 1, 1)

    def weighed(self, table: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """Of each word the sum of those rows of a table whose numbers, index (T + 2c,), stand near it, in their weights (T, 2c + 1)."""
        return F.embedding_bag(self.near(index), table.detach(), per_sample_weights=weights, mode="sum")

    def given(self, band: Tensor) -> Tensor:
        """What each is given by those at -c, ... c from it, (T, 2c + 1): at (i, o) there is what is at (i + o, -o) of `band`."""
        c = self.window
        return band.as_strided((len(band) - 2 * c, 2 * c + 1), (2 * c + 1, 2 * c), band.storage_offset() + 2 * c)

    def products(self, centre: Tensor, around: Tensor) -> Tensor:
        """Of each word's row (T, C) with the rows near it (T + 2c, C): a band (T + 2c, 2c + 1)."""
        c, dim = self.window, centre.shape[1]
        seen = around.as_strided((len(centre) // SIZE, SIZE + 2 * c, dim), (SIZE * dim, dim, 1))
        matrices = torch.bmm(centre.view(-1, SIZE, dim), seen.mT)
        band = matrices.new_empty(self.band.shape)
        band[:c].zero_()
        band[len(band) - c :].zero_()
        diagonals = matrices.as_strided(  # of row i what is at i, ... i + 2c
            (len(matrices), SIZE, 2 * c + 1), (SIZE * (SIZE + 2 * c), SIZE + 2 * c + 1, 1)
        )
        self.inside(band).view(-1, SIZE, 2 * c + 1).copy_(diagonals)
        return band


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
        b, m = noise.shape
        rows, context = v.index_select(0, blocks.around), u.index_select(0, blocks.around)
        centre, false = blocks.inside(rows), u.index_select(0, noise.view(-1)).view(b, m, -1)
        of_block = centre.view(b, -1, v.shape[1])
        said, drawn = blocks.band / blocks.words, blocks.number[:, None] * (weight / blocks.words)

        loss, d_true, d_false = _told(blocks.products(centre, context), said, torch.bmm(false, of_block.mT), drawn)

        d_v = blocks.weighed(context, blocks.place, blocks.inside(d_true))
        d_v.view_as(of_block).baddbmm_(d_false.mT, false)
        d_u = torch.cat([blocks.weighed(rows, blocks.place, blocks.given(d_true)), torch.bmm(d_false, of_block).flatten(0, 1)])
        ctx.parts = (blocks.centres, d_v, v.shape), (torch.cat([blocks.centres, noise.view(-1)]), d_u, u.shape)
        return loss


class _CBOW(_RowByRow):
    @staticmethod
    def forward(ctx: Any, v: Tensor, u: Tensor, blocks: Blocks, noise: Tensor, weight: float) -> Tensor:
        b, m = noise.shape
        h = blocks.weighed(v, blocks.around, blocks.inside(blocks.band))
        rows = u.index_select(0, blocks.around)
        true, false = blocks.inside(rows), u.index_select(0, noise.view(-1)).view(b, m, -1)
        of_block = h.view(b, -1, v.shape[1])
        said = blocks.number.clamp(max=1) / blocks.words  # a word that sees nothing has nothing to be told by
        drawn = said[:, None] * weight

        d_u = u.new_empty(len(h) + b * m, v.shape[1])
        d_u_true, d_u_false = d_u.split([len(h), b * m])
        true_score = torch.mul(h, true, out=d_u_true).sum(1).view_as(said)  # in the gradient's memory, for a while
        loss, d_true, d_false = _told(true_score, said, torch.bmm(false, of_block.mT), drawn)

        d_true = d_true.view(-1, 1)
        torch.mul(d_true, h, out=d_u_true)
        torch.bmm(d_false, of_block, out=d_u_false.view_as(false))
        d_h = true.mul_(d_true)  # and so in `rows`, what stands outside of which has no weight
        d_h.view_as(of_block).baddbmm_(d_false.mT, false)
        del h, of_block  # whose memory, still in the cache, is d_v's
        d_v = blocks.weighed(rows, blocks.place, blocks.given(blocks.band))
        ctx.parts = (blocks.centres, d_v, v.shape), (torch.cat([blocks.centres, noise.view(-1)]), d_u, u.shape)
        return loss


def _told(true: Tensor, said: Tensor, false: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, - sum of said log sigma(true) - sum of drawn log sigma(-false), and its derivatives by the scores, which are spent."""
    p_true, p_false = true.sigmoid_(), false.neg_().sigmoid_()  # of being right
    loss = _surprise(p_true, said) + _surprise(p_false, drawn)
    return loss, p_true.sub_(1).mul_(said), p_false.sub_(1).mul_(-drawn)


def _surprise(p: Tensor, weights: Tensor) -> Tensor:
    """- sum of weights log p, where no p counts as less than the smallest number"""
    return -(p.clamp(min=torch.finfo(p.dtype).tiny).log_() * weights).sum()
