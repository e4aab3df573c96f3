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
ITEMS = 1 << 17  # that queries are multiplied with at once
GROUP = 64  # scores of which one largest is found first


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
        tops.append(best(scores, min(k, items))[1])
        of_wanted = scores[asked[:, 0], asked[:, 1]]
        among = scores[asked[:, 0]]
        ranks.append((among >= of_wanted[:, None]).sum(1) - 1)
        losses.append(among.logsumexp(1) - of_wanted)
    return torch.cat(ranks), torch.cat(losses), torch.cat(tops)


def _within(pairs: Tensor, some: slice) -> Tensor:
    """The pairs of some queries, counted from the first of these."""
    begin, end = torch.searchsorted(pairs[:, 0].contiguous(), torch.tensor([some.start, some.stop], device=pairs.device)).tolist()
    return pairs[begin:end] - pairs.new_tensor([some.start, 0])


def best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row (Q, N): values (Q, k) and places (Q, k), the largest first; of equals, any.

    Of N scores few can be among them: those in the k groups of successive scores whose largest are the largest.
    """
    count = scores.shape[1]
    groups = count // GROUP
    if groups <= 2 * k:
        return scores.topk(min(k, count), dim=1)
    tail = torch.arange(groups * GROUP, count, device=scores.device)
    largest = scores[:, : groups * GROUP].unflatten(1, (groups, GROUP)).amax(2).topk(k, dim=1, sorted=False).indices  # (Q, k)
    places = (largest[..., None] * GROUP + torch.arange(GROUP, device=scores.device)).flatten(1)
    places = torch.cat([places, tail.expand(len(scores), -1)], 1)
    values, among = scores.gather(1, places).topk(k, dim=1)
    return values, places.gather(1, among)


def top_k(queries: Tensor, items: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest products of queries (Q, D) with items (N, D): values (Q, k) and places (Q, k), the best first. Exact.

    Items in half precision are multiplied in that of the queries, some at a time, so that they take no more memory than they do.
    """
    found = []
    for begin in range(0, len(items), ITEMS):
        some = items[begin : begin + ITEMS].to(queries.dtype)
        parts = [best(queries[rows] @ some.T, min(k, len(some))) for rows in blocks(len(queries), len(some))]
        values, places = (torch.cat(part) for part in zip(*parts, strict=True))
        found.append((values, places + begin))
    values, places = (torch.cat(part, 1) for part in zip(*found, strict=True))
    values, among = values.topk(min(k, len(items)), dim=1)
    return values, places.gather(1, among)
