"""Two towers: a user and an item as vectors of one space, so that the best of millions of items are found by one product.

Covington, Adams and Sargin, "Deep Neural Networks for YouTube Recommendations", 2016. https://doi.org/10.1145/2959100.2959190
Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", 2019.
https://doi.org/10.1145/3298689.3346996
Huang et al., "Embedding-based Retrieval in Facebook Search", 2020. https://arxiv.org/abs/2006.11632

    u(x)      of a user x: features, and the items that they came to so far, in their order
    v(y)      of an item y: features, and a vector of its own
    s(x, y)   = <u(x), v(y)> + b(y)
    P(y | x)  = exp s(x, y) / sum over all items y' of exp s(x, y')

Learnt is log P of what users came to next, or a bound of it by fewer items: those of the batch, which come as often as they are popular,
so that from s of each is taken log of how often it was to be expected there (Yi et al., section 3: the logQ correction).

Differs: the true item, which is always there, is corrected by nothing, so that the sum over a batch has the mean of the sum over all items
(Khrylchenko et al., "Correcting the LogQ Correction", 2025. https://arxiv.org/abs/2507.09331, say so too); how often an item comes is
counted, not estimated from a stream; a history foretells at every place, as Kang and McAuley, 2018, train theirs.

Letters: B rows, L events of a history, K examples, C candidates that an example is told from, N items, D = dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refresher_runner.errors import ConfigError
from refresher_runner.models.two_tower.objectives import OBJECTIVES, Told
from refresher_runner.models.two_tower.serving import recommended, shown, written
from refresher_runner.nn.attention import check_heads
from refresher_runner.nn.dropout import Dropout
from refresher_runner.nn.features import FeatureEncoder
from refresher_runner.nn.history import Recency, Recurrent, SelfAttention
from refresher_runner.nn.ranks import Shares, together
from refresher_runner.nn.retrieval import Ranked, ranked
from refresher_runner.nn.scores import SCORES, CrossAttention, Dot
from refresher_runner.nn.softmax import Drawn, linear_cross_entropy
from refresher_runner.registry import MODELS
from refresher_runner.report import Prediction, Report
from refresher_runner.schema import Decay, NonNegative, Positive, PositiveFloat
from refresher_runner.spec import InteractionBatch, InteractionSpec
from refresher_runner.task import Goal, Metric, Output, Task

RERANKED = 128  # examples of a step that the second look learns from
RECOMMENDED = 10  # items of a user that metrics look at

# -------------------------------------------------------------------- towers


class Head(nn.Sequential):
    """Hidden layers of these widths, and one to `dim` numbers; nothing at all where there are none."""

    def __init__(self, dim: int, widths: Sequence[int], dropout: float):
        layers: list[nn.Module] = []
        for a, b in pairwise([dim, *widths]):
            layers += [nn.Linear(a, b), nn.GELU(), Dropout(dropout)]
        super().__init__(*layers, *([nn.Linear(widths[-1], dim)] if widths else []))


class ItemTower(nn.Module):
    """v(y), (M, D), of items (M,)"""

    def __init__(self, features: FeatureEncoder, head: Head):
        super().__init__()
        self.features, self.head = features, head

    def forward(self, items: Tensor) -> Tensor:
        return self.head(self.features(items))


class UserTower(nn.Module):
    """u(x), (B, L + 1, D): of users (B,), and their histories of events x (B, L, D), after 0, 1, ... L of these."""

    def __init__(self, features: FeatureEncoder, history: nn.Module | None, head: Head, event_dropout: float):
        super().__init__()
        self.features, self.history, self.head, self.event_dropout = features, history, head, event_dropout

    def forward(self, users: Tensor, x: Tensor, there: Tensor) -> Tensor:
        if self.training and self.event_dropout:
            there = there & (torch.rand(there.shape, device=there.device) >= self.event_dropout)
        h = self.features(users)[:, None]
        if self.history is not None:
            h = self.history(x, there) + h
        return self.head(h).expand(-1, x.shape[1] + 1, -1)


class Scored(NamedTuple):
    """scores (K, C) of examples and candidates, of which true (K,) are right; v (C, D) of the candidates"""

    scores: Tensor
    true: Tensor
    v: Tensor


class Seen(NamedTuple):
    """What examples are seen as: u (K, D); events x (B, L, D) and which are there (B, L); row and place (K,) of each."""

    u: Tensor
    x: Tensor
    there: Tensor
    row: Tensor
    place: Tensor


# -------------------------------------------------------------------- the task


class TwoTower(Task):
    """Foretell the items that users come to next."""

    goal = Goal("ndcg10", "max")
    steps: Tensor
    log_p: Tensor

    def __init__(
        self,
        spec: InteractionSpec,
        user: UserTower,
        item: ItemTower,
        own: ItemTower | None,
        score: nn.Module,
        second: CrossAttention | None,
        *,
        objective: str,
        negatives: int,
        label_smoothing: float,
        dropout: float,
        copied: bool,
        tower_steps: int,
        rerank: int,
    ):
        super().__init__()
        self.spec, self.objective, self.negatives, self.label_smoothing = spec, objective, negatives, label_smoothing
        self.copied, self.tower_steps, self.rerank = copied, tower_steps, rerank
        self.user, self.item, self.own, self.dropout = user, item, own, Dropout(dropout)
        self.bias = nn.Parameter(torch.zeros(len(spec.items)))
        self.dot, self.score, self.second = score if isinstance(score, Dot) else Dot(), score, second
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))  # of training so far
        p = spec.log.counts.double() / spec.log.counts.sum().clamp(min=1)
        self.register_buffer("log_p", p.clamp(min=1e-30).log().float(), persistent=False)
        self.known_baselines: dict[str, Any] = {}

    # ---------------------------------------------------------------- phases

    @property
    def joint(self) -> bool:
        """Whether the towers have had their steps, and what stands on them is learnt too."""
        return not self.tower_steps or bool(self.steps >= self.tower_steps)

    def _enter(self) -> None:
        """One more step; the first of the joint phase gives the users' own view of items what the item tower has learnt."""
        if self.own is not None and self.copied and self.steps == self.tower_steps:
            self.own.load_state_dict(self.item.state_dict())
        self.steps += 1

    def _idle(self) -> Tensor | float:
        """Zero, of the parameters that this phase leaves alone: several processes must agree on who has a gradient."""
        if not self.tower_steps or self.steps > self.tower_steps:
            return 0.0
        waiting = [self.score, self.second, self.own if self.copied else None]
        return sum((p.sum() * 0.0 for module in waiting if module is not None for p in module.parameters()), 0.0)

    # ---------------------------------------------------------------- the objective

    def step(self, batch: InteractionBatch) -> Output:
        """- log P(y | x), mean over what is wanted, or what stands for it; in evaluation among all that is not seen."""
        if not self.training:
            preds = self.ranked(batch)
            return Output(preds.losses.mean(), preds=preds, targets=batch)
        joint = self.joint
        self._enter()
        seen, score = self.seen(batch, joint), self.score if joint else self.dot
        second = self.second if joint else None
        learn = self._over_all if self.objective == "softmax" else self._over_some
        loss, scored = learn(self.dropout(seen.u), batch.wanted[:, 2], score, keep=second is not None)
        if second is None or scored is None:
            return Output(loss + self._idle())
        again = self._second_loss(second, seen, scored)
        return Output(loss + again, {"retrieval": loss.detach(), "rerank": again.detach()})

    def _over_all(self, u: Tensor, items: Tensor, score: nn.Module, *, keep: bool) -> tuple[Tensor, Scored | None]:
        """- log softmax over all items; scores, if they are to be kept."""
        v, weight = self.item(self.every()), Shares.of(len(items), items.device).weight
        if isinstance(score, Dot) and not keep:
            return linear_cross_entropy(*score.sides(u, v), self.bias, items, self.label_smoothing) * weight, None
        scores = score(u, v) + self.bias
        return F.cross_entropy(scores, items, label_smoothing=self.label_smoothing) * weight, Scored(scores, items, v)

    def _over_some(self, u: Tensor, items: Tensor, score: nn.Module, *, keep: bool) -> tuple[Tensor, Scored | None]:
        """An objective in which every example of the batch meets every item of it, whichever process has them, and some that are drawn."""
        shares = Shares.of(len(items), items.device)
        items, u = together(items, shares), together(u, shares)
        candidates = torch.cat([items, torch.randint(len(self.spec.items), (self.negatives,), device=items.device)])
        v, bias, log_q = self.item(candidates), self.bias[candidates], self.log_q(candidates, len(items))
        true = torch.arange(len(items), device=items.device)
        if isinstance(score, Dot) and self.objective == "sampled_softmax" and not keep:  # the same as below, without a tensor of K x C
            return linear_cross_entropy(*score.sides(u, v), bias, true, drawn=Drawn(log_q, candidates, items)), None
        scores = score(u, v) + bias
        loss = OBJECTIVES[self.objective](Told(scores, true, candidates == items[:, None], log_q))
        return loss, Scored(scores[shares.own], true[shares.own], v)

    def log_q(self, candidates: Tensor, examples: int) -> Tensor:
        """Log of how often (C,) each was to be expected: among the others of the batch, by popularity, and among those drawn, evenly."""
        drawn = math.log(max(self.negatives, 1e-30) / len(self.spec.items))
        log_p = self.log_p[candidates] + math.log(max(examples - 1, 1e-30))
        return torch.logaddexp(log_p, log_p.new_full((), drawn))

    def _second_loss(self, second: CrossAttention, seen: Seen, scored: Scored) -> Tensor:
        """Cross-entropy of the true item among the best of the candidates, by the second look at them, for some examples."""
        scores, true, v = scored
        some = torch.randperm(len(true), device=true.device)[:RERANKED]
        of_true = scores.detach()[some].scatter(1, true[some, None], math.inf)
        best = of_true.topk(min(self.rerank, of_true.shape[1]), 1).indices  # the true one first
        first = scores[some].gather(1, best)
        return F.cross_entropy(first + second(v[best], *self._past(seen, some)), best.new_zeros(len(some)))

    def _past(self, seen: Seen, some: Tensor) -> tuple[Tensor, Tensor]:
        """Events (Q, L, D) of these examples, and which come before what is foretold (Q, L)."""
        row, place = seen.row[some], seen.place[some]
        before = torch.arange(seen.x.shape[1], device=row.device) < place[:, None]
        return seen.x[row], seen.there[row] & before

    # ---------------------------------------------------------------- towers

    def every(self) -> Tensor:
        """All items (N,)"""
        return torch.arange(len(self.spec.items), device=self.bias.device)

    def seen(self, batch: InteractionBatch, joint: bool) -> Seen:
        """Histories as vectors of items, by the item tower itself, or the users' own view of items; and users as these let them be seen."""
        there = batch.events >= 0
        if self.user.history is None and self.second is None:
            x = self.bias.new_zeros(*batch.events.shape, 1)
        else:
            view = self.own if self.own is not None and (joint or not self.copied) else self.item
            x = self.dropout(view(batch.events.clamp(min=0).flatten()).unflatten(0, batch.events.shape)) * there[..., None]
        row, place = batch.wanted[:, 0], batch.wanted[:, 1]
        return Seen(self.user(batch.users, x, there)[row, place], x, there, row, place)

    def products(self, v: Tensor) -> Tensor:
        """Vectors of items (N, D) as a product with a user's sees them."""
        return self.score.sides(v, v)[1] if isinstance(self.score, Dot) else v

    # ---------------------------------------------------------------- looking

    def ranked(self, batch: InteractionBatch) -> Ranked:
        """What is wanted among all items; each row has one place."""
        joint, rows = self.joint, torch.arange(len(batch.users), device=batch.users.device)
        seen = self.seen(batch, joint)
        first = torch.searchsorted(seen.row.contiguous(), rows)
        v, score = self.item(self.every()), self.score if joint else self.dot
        second = self.second if joint else None

        def scores(some: slice) -> Tensor:
            return score(seen.u[first[some]], v) + self.bias

        def again(some: slice, scores: Tensor) -> Tensor:
            assert second is not None
            value, best = scores.topk(min(self.rerank, scores.shape[1]), 1)
            value = value + second(v[best], *self._past(seen, first[some]))
            value = value - value.amin(1, keepdim=True) + value.new_tensor(1.0)  # above all the others
            rest = scores - scores.amax(1, keepdim=True)
            return rest.scatter(1, best, value.where(scores.gather(1, best) > -math.inf, -math.inf))

        wanted = batch.wanted[:, [0, 2]]
        ranks, losses, top = ranked(scores, len(rows), len(v), wanted, batch.seen, RECOMMENDED, again if second else None)
        return Ranked(ranks, losses, top, seen.u, v[wanted[:, 1]])

    def metrics(self) -> dict[str, Metric]:
        from refresher_runner.metrics.ranking import ranking_metrics  # imports torchmetrics, which takes seconds

        return ranking_metrics(self.spec.items, self.spec.log.counts, self.spec.best_recall, self.known_baselines)

    def observe(self, batch: InteractionBatch) -> Report:
        """Some users with their history and what is recommended, and where items lie."""
        return shown(self, batch)

    # ---------------------------------------------------------------- serving

    def predict(self, inputs: Sequence[str]) -> Iterator[Prediction]:
        """`user:42`: what is recommended; `item:Toy Story (1995)`: what is like it. Raises UsageError for what is not known."""
        yield from recommended(self, inputs)

    def export(self, file: Path) -> None:
        """Vectors of items as `serving.written` has them; of towers whose score is no product, these alone."""
        written(self, file)


@MODELS.register("two_tower")
def build_two_tower(
    spec: InteractionSpec,
    *,
    dim: Positive,
    layers: list[Positive],
    user_ids: bool,
    item_ids: bool,
    text: Literal["bag", "attention"],
    history: Literal["none", "recency", "gru", "attention"],
    depth: Positive,
    heads: Positive,
    sharing: Literal["shared", "copied", "separate"],
    score: Literal["dot", "cosine", "product", "mlp", "attention"],
    objective: Literal["softmax", "sampled_softmax", "contrastive", "bpr", "triplet", "bce"],
    temperature: PositiveFloat,
    negatives: NonNegative,
    label_smoothing: Decay,
    dropout: Decay,
    event_dropout: Decay,
    tower_steps: NonNegative,
    rerank: NonNegative,
) -> TwoTower:
    """Two towers for retrieval (Covington et al., 2016; Yi et al., 2019; Huang et al., 2020). Raises ConfigError for options at odds."""
    check_heads(dim, heads)
    length = spec.block_size
    if history != "none" and not length:
        raise ConfigError("has no events to look at", key="model.history", value=history, cure="data.block_size=50, or model.history=none")
    if objective == "softmax" and negatives:
        cure = "model.negatives=0, or model.objective=sampled_softmax"
        raise ConfigError("needs none drawn: it is over all items", key="model.negatives", value=negatives, cure=cure)
    if objective != "softmax" and label_smoothing:
        cure = "model.label_smoothing=0.0, or model.objective=softmax"
        raise ConfigError(f"model.objective={objective} has no such share", key="model.label_smoothing", value=label_smoothing, cure=cure)

    def items() -> ItemTower:
        return ItemTower(FeatureEncoder(spec.items, dim, ids=item_ids, text=text, heads=heads), Head(dim, layers, dropout))

    histories: dict[str, Callable[[], nn.Module | None]] = {
        "none": lambda: None,
        "recency": lambda: Recency(dim, length),
        "gru": lambda: Recurrent(dim, depth, dropout),
        "attention": lambda: SelfAttention(dim, heads, depth, dropout),
    }
    people = FeatureEncoder(spec.users, dim, ids=user_ids, text=text, heads=heads)
    return TwoTower(
        spec,
        UserTower(people, histories[history](), Head(dim, layers, dropout), event_dropout),
        items(),
        items() if sharing != "shared" and history != "none" else None,
        SCORES[score](dim, temperature),
        CrossAttention(dim, heads) if rerank else None,
        objective=objective,
        negatives=negatives,
        label_smoothing=label_smoothing,
        dropout=dropout,
        copied=sharing == "copied",
        tower_steps=tower_steps,
        rerank=rerank,
    )
