"""How well a whole catalogue is put in order: what a user came to should stand at the top of all that they had not seen.

No item is left out at random: measured against a sample of the others, figures are larger, and tell another order of models (Krichene and
Rendle, "On Sampled Metrics for Item Recommendation", 2020. https://doi.org/10.1145/3394486.3403226).

Letters: Q users, K wanted items of them all, N items, k of the top.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric as TorchMetric

from refresher_runner.features import Table
from refresher_runner.metrics.baselines import Baselines
from refresher_runner.metrics.wrappers import Part, Through
from refresher_runner.report import Matrix
from refresher_runner.task import Metric

CUTS = 10, 50  # k
NOTHING = "none"  # the category of what has none


def per_user(ranks: Tensor, row: Tensor, users: int) -> dict[str, Tensor]:
    """Of ranks (K,) of the wanted items of each row (K,): a value (Q,) for every user.

    hr@k      whether any of a user's items is among the best k
    recall@k  their share, of at most k
    ndcg@k    sum over them of 1 / log2(rank + 2), of the largest that it could be
    mrr       1 / (rank + 1) of the best of them
    """

    def total(values: Tensor) -> Tensor:
        return torch.zeros(users, dtype=torch.float64, device=row.device).index_add_(0, row, values.double())

    wanted = total(torch.ones_like(ranks))
    found: dict[str, Tensor] = {}
    for k in CUTS:
        hit = (ranks < k).double()
        gain = 1 / torch.arange(2, k + 2, device=row.device).double().log2()
        most = torch.cat([gain.new_zeros(1), gain.cumsum(0)])[wanted.long().clamp(max=k)]
        found[f"hr{k}"] = (total(hit) > 0).double()
        found[f"recall{k}"] = total(hit) / wanted.clamp(max=k)
        found[f"ndcg{k}"] = total(hit / (ranks + 2).double().log2()) / most
    best = torch.full((users,), float("inf"), dtype=torch.float64, device=row.device).scatter_reduce_(0, row, ranks.double(), "amin")
    return {**found, "mrr": 1 / (best + 1)}


class Ranking(TorchMetric):
    """Means over users of `per_user`; and of what is recommended:

    coverage10    the share of all items that are among anybody's best ten
    popularity10  how often the best ten are learnt from, on average, over how often what is wanted is: 1 is without bias
    groups        recall of ten, over events: of head, the most popular items, which make half of what is learnt; of tail; of cold, which
                  nothing is learnt from
    """

    full_state_update = False
    sums: Tensor
    users: Tensor
    recommended: Tensor
    popularity: Tensor
    group_hits: Tensor
    group_events: Tensor

    def __init__(self, counts: Tensor):
        super().__init__()
        order = counts.argsort(descending=True, stable=True)
        head = torch.zeros_like(counts, dtype=torch.bool)
        head[order] = (counts[order].cumsum(0) - counts[order]) * 2 < counts.sum()
        self.counts = counts
        self.group = torch.where(counts == 0, 2, torch.where(head, 0, 1))
        self.names = [*(f"{name}{k}" for k in CUTS for name in ("hr", "recall", "ndcg")), "mrr"]
        width = len(self.names)
        for name, shape in (("sums", (width,)), ("popularity", (2, 2)), ("group_hits", (3,)), ("group_events", (3,)), ("users", ())):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("recommended", torch.zeros(len(counts), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, preds: Any, targets: Any) -> None:
        ranks, row, items = preds.ranks, targets.wanted[:, 0], targets.wanted[:, 2]
        values = per_user(ranks, row, len(targets.users))
        self.sums += torch.stack([values[name].sum() for name in self.names])
        self.users += len(targets.users)
        top, counts, group = preds.top[:, : CUTS[0]], self.counts.to(row.device), self.group.to(row.device)
        self.recommended += top.flatten().bincount(minlength=len(counts))
        for place, some in enumerate((top.flatten(), items)):
            self.popularity[place] += torch.stack([counts[some].sum(), torch.tensor(len(some), device=row.device)]).double()
        for state, some in ((self.group_events, group[items]), (self.group_hits, group[items[ranks < CUTS[0]]])):
            state += some.bincount(minlength=3).double()

    def compute(self) -> dict[str, Any]:
        shown, wanted = (total / number for total, number in self.popularity)
        groups = zip(("head", "tail", "cold"), self.group_hits, self.group_events, strict=True)
        return {
            **dict(zip(self.names, self.sums / self.users, strict=True)),
            f"coverage{CUTS[0]}": (self.recommended > 0).double().mean(),
            f"popularity{CUTS[0]}": shown / wanted.clamp(min=1e-9),
            "groups": {name: hits / events for name, hits, events in groups if events > 0},
        }


class MainCategories(TorchMetric):
    """Of each wanted item the first category, and that of the item recommended first: counts, row = true, column = predicted."""

    full_state_update = False
    counts: Tensor

    def __init__(self, names: tuple[str, ...], of_item: Tensor):
        super().__init__()
        self.names, self.of_item = names, of_item.where(of_item >= 0, len(names))
        self.add_state("counts", torch.zeros((len(names) + 1) ** 2, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, preds: Any, targets: Any) -> None:
        of_item = self.of_item.to(preds.top.device)
        true, predicted = of_item[targets.wanted[:, 2]], of_item[preds.top[targets.wanted[:, 0], 0]]
        self.counts += (true * (len(self.names) + 1) + predicted).bincount(minlength=len(self.counts))

    def compute(self) -> Tensor:
        return self.counts.view(len(self.names) + 1, -1)

    def show(self, counts: Tensor) -> Matrix:
        """Without what has no category, where that is nothing."""
        names = (*self.names, NOTHING)
        if not counts[-1].any() and not counts[:, -1].any():
            names, counts = names[:-1], counts[:-1, :-1]
        return Matrix(counts.cpu(), names, names)


class Alignment(TorchMetric):
    """How the vectors of both towers lie, over what is wanted.

    cca         the mean of the canonical correlations of u and v (Hotelling, 1936), in [0, 1]
    alignment   mean of || u - v ||^2 between those that belong together, on the unit sphere: small is good
    uniformity  log of the mean of exp(- 2 || v - v' ||^2) over pairs of items, on the unit sphere: small is good (both: Wang and Isola,
                "Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere", 2020.
                https://arxiv.org/abs/2005.10242)
    """

    full_state_update = False
    u: list[Tensor]
    v: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("u", "v"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, preds: Any, targets: Any) -> None:
        self.u.append(preds.u)
        self.v.append(preds.v)

    def compute(self) -> dict[str, Tensor]:
        u, v = (torch.cat([*state]).double() if isinstance(state, list) else state.double() for state in (self.u, self.v))
        unit_u, unit_v = (torch.nn.functional.normalize(x, dim=1) for x in (u, v))
        some = unit_v[:4096]
        apart = torch.pdist(some).square() if len(some) > 1 else some.new_zeros(1)
        return {
            "cca": canonical_correlations(u, v).mean(),
            "alignment": (unit_u - unit_v).square().sum(1).mean(),
            "uniformity": apart.mul(-2).exp().mean().log(),
        }


def canonical_correlations(u: Tensor, v: Tensor, ridge: float = 1e-6) -> Tensor:
    """Of columns u (K, D) and v (K, E), the largest first, min(D, E) of them: singular values of C_uu^(-1/2) C_uv C_vv^(-1/2).

    The ridge, a share of the mean variance, is for directions in which nothing varies.
    """
    u, v = u - u.mean(0), v - v.mean(0)
    whitened = []
    for x in (u, v):
        values, vectors = torch.linalg.eigh(x.T @ x)
        whitened.append(x @ (vectors / (values.clamp(min=0) + ridge * values.mean().clamp(min=1e-30)).sqrt()))
    return torch.linalg.svdvals(whitened[0].T @ whitened[1]).clamp(max=1)


def ranking_metrics(items: Table, counts: Tensor, best_recall: float | None, known: dict[str, Any]) -> dict[str, Metric]:
    """Of `Ranked` to an InteractionBatch. `known` keeps what the baselines reach, from one evaluation to the next."""
    whole, lie, rivals = Ranking(counts), Alignment(), Baselines(len(items), known)
    cut = CUTS[0]
    alone = *whole.names, f"coverage{cut}", f"popularity{cut}"
    metrics: dict[str, Metric] = {name: Part(whole, _entry(name)) for name in alone}
    if best_recall:
        metrics[f"recall{cut}_of_best"] = Part(whole, lambda value: value[f"recall{cut}"] / best_recall)
    metrics[f"recall{cut}_of"] = Part(whole, _entry("groups"))
    metrics |= {name: Part(lie, _entry(name)) for name in ("cca", "alignment", "uniformity")}
    metrics |= {f"{name}_of_baseline": Part(rivals, _entry(name)) for name in (f"hr{cut}", f"ndcg{cut}")}
    if categories := items.categories():
        confusion = MainCategories(categories[0].names, categories[1])
        metrics["confusion_matrix"] = Through(confusion, show=confusion.show)
    return metrics


def _entry(name: str) -> Any:
    def show(value: Mapping[str, Any]) -> Any:
        return value[name]

    return show
