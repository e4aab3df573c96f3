"""The best of a whole catalogue, exactly: scores block by block, what is seen left out, ranks and the top.

Letters: Q queries, N items, K wanted items, k of the top.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

NUMBERS = 1 << 22  # scores held at once: enough for a matrix product to be quick, few enough for a cache


class Ranked(NamedTuple):
    """ranks (K,) int64 of wanted items among all that their user has not seen, 0 the best, a tie lost; losses (K,), - log of a wanted
    item's share of the softmax over these; top (Q, k) int64, the best first; u (K, D) and v (K, D), the vectors of both towers.
    """

    ranks: Tensor
    losses: Tensor
    top: Tensor
    u: Tensor
    v: Tensor


def blocks(queries: int, items: int) -> Iterator[slice]:
    """Queries, some at a time."""
    size = max(1, NUMBERS // max(1, items))
    return (slice(begin, min(begin + size, queries)) for begin in range(0, queries, size))


def ranked(
    score: Callable[[slice], Tensor],
    queries: int,
    items: int,
    wanted: Tensor,
    seen: Tensor,
    k: int,
    again: Callable[[slice, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Ranks (K,), losses (K,) and top (Q, k). score: some queries -> (q, N); wanted (K, 2), seen (S, 2): a query, ascending, and an item.

    A score that is no number is the worst. `again` may score anew when what is seen has been left out, at -inf.
    """
    ranks, losses, tops = [], [], []
    for some in blocks(queries, items):
        asked, hidden = (_within(pairs, some) for pairs in (wanted, seen))
        scores = score(some).float().nan_to_num(-math.inf, posinf=math.inf, neginf=-math.inf)
        scores[hidden[:, 0], hidden[:, 1]] = -math.inf
        scores = again(some, scores) if again else scores
        tops.append(scores.topk(min(k, items), dim=1).indices)
        of_wanted = scores[asked[:, 0], asked[:, 1]]
        among = scores[asked[:, 0]]
        ranks.append((among >= of_wanted[:, None]).sum(1) - 1)
        losses.append(among.logsumexp(1) - of_wanted)
    return torch.cat(ranks), torch.cat(losses), torch.cat(tops)


def _within(pairs: Tensor, some: slice) -> Tensor:
    """The pairs of some queries, counted from the first of these."""
    begin, end = torch.searchsorted(pairs[:, 0].contiguous(), torch.tensor([some.start, some.stop], device=pairs.device)).tolist()
    return pairs[begin:end] - pairs.new_tensor([some.start, 0])


def top_k(queries: Tensor, items: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest products of queries (Q, D) with items (N, D): values (Q, k) and places (Q, k), the best first. Exact.

    Of N scores few are above the k-th best of a sample, so that a block is first compared with that, which is quick, and sorted after.
    """
    values, places = [], []
    for some in blocks(len(queries), len(items)):
        value, place = (queries[some] @ items.T).topk(min(k, len(items)), dim=1)
        values.append(value)
        places.append(place)
    return torch.cat(values), torch.cat(places)
