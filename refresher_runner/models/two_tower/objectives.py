"""What an example is learnt by: its true item against others, of the batch and drawn.

Letters: K examples, C candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Told(NamedTuple):
    """scores (K, C) of examples and candidates, of which `true` (K,) are right; same (K, C), where a candidate is the very item, the right
    one included; log_q (C,), log of how often each candidate was to be expected among those drawn.
    """

    scores: Tensor
    true: Tensor
    same: Tensor
    log_q: Tensor

    @property
    def positive(self) -> Tensor:
        """(K, 1)"""
        return self.scores.gather(1, self.true[:, None])


def sampled_softmax(told: Told) -> Tensor:
    """- log exp s_i / (exp s_i + sum_j exp(s_j - log q_j)) over the candidates j that are other items."""
    others = (told.scores - told.log_q).masked_fill(told.same, -math.inf)
    return (torch.cat([told.positive, others], 1).logsumexp(1) - told.positive[:, 0]).mean()


def contrastive(told: Told) -> Tensor:
    """Of a batch's users and items the right pairs, from either side, all else being equal (InfoNCE: van den Oord et al., 2018)."""
    pairs = told.scores[:, : len(told.scores)]  # the candidates that are drawn are nobody's
    twice = told.same[:, : len(pairs)] & ~torch.eye(len(pairs), dtype=torch.bool, device=pairs.device)
    pairs, target = pairs.masked_fill(twice, -math.inf), told.true
    return (F.cross_entropy(pairs, target) + F.cross_entropy(pairs.T, target)) / 2


def bpr(told: Told) -> Tensor:
    """- log sigma(s_i - s_j), mean over the other items j (Rendle et al., "BPR", 2009. https://arxiv.org/abs/1205.2618)"""
    return _mean(-F.logsigmoid(told.positive - told.scores), ~told.same)


def triplet(told: Told, margin: float = 1.0) -> Tensor:
    """max(0, margin + s_j - s_i), mean over the other items j (Huang et al., section 2.2, who have distances for - s)"""
    return _mean(F.relu(margin + told.scores - told.positive), ~told.same)


def binary_cross_entropy(told: Told) -> Tensor:
    """- log sigma(s_i) - mean of log sigma(- s_j) over the other items j"""
    return -F.logsigmoid(told.positive).mean() - _mean(F.logsigmoid(-told.scores), ~told.same)


def _mean(values: Tensor, over: Tensor) -> Tensor:
    return (values * over).sum() / over.sum().clamp(min=1)


OBJECTIVES: dict[str, Callable[[Told], Tensor]] = {
    "sampled_softmax": sampled_softmax,
    "contrastive": contrastive,
    "bpr": bpr,
    "triplet": triplet,
    "bce": binary_cross_entropy,
}
