"""What needs no training by gradients, on the same users, the same items and the same split: what any model must be better than.

    popularity   how many users came to an item
    item_knn     sum over a user's items of their cosine with an item, both as columns of who came to what (Sarwar et al., "Item-based
                 Collaborative Filtering Recommendation Algorithms", 2001), over all items: there is no neighbourhood to choose
    ease         x B, where B without a diagonal makes || X - X B ||^2 + lambda || B ||^2 least (Steck, "Embarrassingly Shallow Autoencoders
                 for Sparse Data", 2019. https://arxiv.org/abs/1905.03375)
    ease_recent  the same B, of a user's items in the weights RECENT^0, RECENT^1, ..., the last first

Letters: U users, N items, X (U, N) of 0 and 1. They are fitted on all that is seen by the users
who are asked, that of validation too where it is the test that asks.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric as TorchMetric

from refresher_runner.nn.retrieval import ranked

LAMBDA = 300.0
RECENT = 0.9
CUT = 10
LARGEST = 1 << 27  # numbers of X: beyond, only popularity is told


def popularity(x: Tensor) -> Tensor:
    """(N,)"""
    return x.sum(0)


def item_knn(x: Tensor) -> Tensor:
    """Scores (U, N): x C, of the cosines C of columns"""
    unit = x / x.norm(dim=0).clamp(min=1)
    return (x @ unit.T) @ unit


def ease(x: Tensor, asked: Tensor, ridge: float = LAMBDA) -> Tensor:
    """Scores (Q, N) of histories asked (Q, N) by weights learnt from x (U, N), right for the items that a history lacks.

    B_ij = - P_ij / P_jj, where P = (X^T X + lambda)^-1 (Steck, eq. 8), and so (asked B)_j = - (asked P)_j / P_jj where asked_j is 0.
    Of the two inverses that are equal by Woodbury's identity, P = (1 - X^T (X X^T + lambda)^-1 X) / lambda, the smaller is taken.
    """
    users, items = x.shape
    if items <= users:
        p = torch.linalg.inv(x.T @ x + ridge * torch.eye(items, dtype=x.dtype, device=x.device))
        return -(asked @ p) / p.diagonal()
    inverse = torch.linalg.inv(x @ x.T + ridge * torch.eye(users, dtype=x.dtype, device=x.device))
    through = inverse @ x  # (U, N)
    diagonal = 1 - (x * through).sum(0)
    return -(asked - (asked @ x.T) @ through) / diagonal


def compare(seen: Tensor, wanted: Tensor, users: int, items: int) -> dict[str, dict[str, Tensor]]:
    """What each baseline reaches at CUT. seen (S, 2) and wanted (K, 2): a user, ascending, and an item, a user's in order of time."""
    from refresher_runner.metrics.ranking import per_user

    x = seen.new_zeros(users, items, dtype=torch.float32) if users * items <= LARGEST else None
    counts = seen[:, 1].bincount(minlength=items).float()
    scores = {"popularity": counts.expand(users, items)}
    if x is not None:
        x[seen[:, 0], seen[:, 1]] = 1
        age = seen[:, 0].bincount(minlength=users).cumsum(0)[seen[:, 0]] - 1 - torch.arange(len(seen), device=seen.device)
        recent = torch.zeros_like(x).index_put_((seen[:, 0], seen[:, 1]), RECENT ** age.float())
        scores |= {"item_knn": item_knn(x), "ease": ease(x, x), "ease_recent": ease(x, recent)}
    found: dict[str, dict[str, Tensor]] = {f"hr{CUT}": {}, f"ndcg{CUT}": {}}
    for name, score in scores.items():
        ranks, _, _ = ranked(lambda some, score=score: score[some].clone(), users, items, wanted, seen, CUT)
        values = per_user(ranks, wanted[:, 0], users)
        for metric in found:
            found[metric][name] = values[metric].mean()
    return found


class Baselines(TorchMetric):
    """`compare` on what an evaluation asks for. `known` holds what was found of the same questions before."""

    full_state_update = False
    seen: list[Tensor]
    wanted: list[Tensor]

    def __init__(self, num_items: int, known: dict[str, Any]):
        super().__init__()
        self.num_items, self.known = num_items, known
        for name in ("seen", "wanted"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, preds: Any, targets: Any) -> None:
        for state, pairs in ((self.seen, targets.seen), (self.wanted, targets.wanted[:, [0, 2]])):
            state.append(torch.stack([targets.users[pairs[:, 0]], pairs[:, 1]], 1))

    def compute(self) -> dict[str, dict[str, Tensor]]:
        seen, wanted = (torch.cat([*state]) if isinstance(state, list) else state for state in (self.seen, self.wanted))
        users, row = wanted[:, 0].unique(return_inverse=True)
        order = row.argsort(stable=True)
        wanted = torch.stack([row, wanted[:, 1]], 1)[order]
        row = torch.searchsorted(users, seen[:, 0].contiguous())
        order = row.argsort(stable=True)
        seen = torch.stack([row, seen[:, 1]], 1)[order]
        key = hashlib.sha256(seen.cpu().numpy().tobytes() + wanted.cpu().numpy().tobytes()).hexdigest()
        if key not in self.known:
            self.known[key] = compare(seen, wanted, len(users), self.num_items)
        return self.known[key]
