"""Ranking by its definitions, by torchmetrics and scikit-learn; baselines by theirs, and by what is published of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity
from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_normalized_dcg, retrieval_recall

from refresher_runner.features import Column, Table
from refresher_runner.metrics.baselines import Baselines, compare, ease, item_knn
from refresher_runner.metrics.ranking import Alignment, MainCategories, Ranking, canonical_correlations, per_user, ranking_metrics
from refresher_runner.nn.retrieval import Ranked, ranked

NONE = torch.zeros(0, 2, dtype=torch.long)


def batch(users, wanted, seen=NONE):
    rows = torch.tensor([[row, 0, item] for row, item in wanted])
    return SimpleNamespace(users=torch.tensor(users), wanted=rows, seen=seen)


def preds(ranks, top, u=None, v=None):
    return Ranked(torch.tensor(ranks), torch.zeros(len(ranks)), torch.tensor(top), u, v)


def test_ranking_is_torchmetrics():
    scores = torch.rand(5, 80)  # torchmetrics takes a negative score for none at all
    wanted = [(0, 3), (1, 0), (1, 7), (1, 9), (2, 70), (3, 1), (4, 2), (4, 3)]
    pairs = torch.tensor(wanted)
    ranks, _, _ = ranked(lambda some: scores[some].clone(), 5, 80, pairs, NONE, 10)
    values = per_user(ranks, pairs[:, 0], 5)
    for user in range(5):
        relevant = torch.zeros(80, dtype=torch.bool)
        relevant[[item for row, item in wanted if row == user]] = True
        for k in (10, 50):
            assert values[f"hr{k}"][user] == retrieval_hit_rate(scores[user], relevant, k)
            torch.testing.assert_close(values[f"recall{k}"][user].float(), retrieval_recall(scores[user], relevant, k))
            torch.testing.assert_close(values[f"ndcg{k}"][user].float(), retrieval_normalized_dcg(scores[user], relevant, k))
        best = scores[user].argsort(descending=True).tolist().index(int(scores[user].where(relevant, scores.min() - 1).argmax()))
        assert values["mrr"][user] == 1 / (1 + best)


def test_batches_add_up_and_what_is_recommended_is_told():
    metric = Ranking(torch.tensor([50, 30, 10, 10, 0]))
    top = [[0, 1], [0, 2]]
    metric.update(preds([0, 12], top), batch([7, 8], [(0, 0), (1, 3)]))
    metric.update(preds([3], [[0, 1]]), batch([9], [(0, 4)]))
    found = metric.compute()
    assert found["hr10"] == found["recall10"] == torch.tensor(2 / 3, dtype=torch.float64)
    assert found["mrr"] == torch.tensor((1 + 1 / 13 + 1 / 4) / 3, dtype=torch.float64)
    assert found["coverage10"] == 3 / 5
    torch.testing.assert_close(found["popularity10"].item(), ((50 * 3 + 30 * 2 + 10) / 6) / ((50 + 10 + 0) / 3))
    assert {name: float(value) for name, value in found["groups"].items()} == {"head": 1.0, "tail": 0.0, "cold": 1.0}


def test_main_categories_are_counted():
    metric = MainCategories(("p", "q"), torch.tensor([0, 1, 1, -1]))
    metric.update(preds([0, 0, 0], [[1, 0], [3, 1]]), batch([0, 1], [(0, 0), (0, 2), (1, 2)]))
    assert metric.compute().tolist() == [[0, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert metric.show(metric.compute()).columns == ("p", "q", "none")
    whole = MainCategories(("p", "q"), torch.tensor([0, 1]))
    whole.update(preds([0], [[1, 0]]), batch([0], [(0, 0)]))
    assert whole.show(whole.compute()).values.tolist() == [[0, 1], [0, 0]]


def test_canonical_correlations_are_cosines_of_subspaces():
    u, v = torch.randn(50, 4, dtype=torch.float64), torch.randn(50, 3, dtype=torch.float64)
    q, r = (np.linalg.qr((x - x.mean(0)).numpy())[0] for x in (u, v))
    expected = np.linalg.svd(q.T @ r, compute_uv=False)
    assert np.allclose(canonical_correlations(u, v, ridge=1e-12).numpy(), expected)
    mixed = u @ torch.randn(4, 4, dtype=torch.float64) + 3
    torch.testing.assert_close(canonical_correlations(u, mixed), torch.ones(4, dtype=torch.float64), atol=1e-3, rtol=0)
    assert canonical_correlations(u, torch.zeros(50, 2, dtype=torch.float64)).isfinite().all()


def test_alignment_and_uniformity():
    metric, u = Alignment(), torch.nn.functional.normalize(torch.randn(6, 3), dim=1)
    metric.update(preds([0] * 6, [[0]], u, 5 * u), None)
    found = metric.compute()
    assert found["alignment"] < 1e-9
    pairs = [(a - b).square().sum().mul(-2).exp() for i, a in enumerate(u) for b in u[:i]]
    torch.testing.assert_close(found["uniformity"].float(), torch.stack(pairs).mean().log())


def test_a_table_without_categories_has_no_confusion_matrix():
    counts = torch.tensor([1, 2])
    assert "confusion_matrix" not in ranking_metrics(Table(("a", "b")), counts, None, {})
    table = Table(("a", "b"), (Column("kind", "category", ("p",)),), (torch.tensor([[0], [-1]]),))
    metrics = ranking_metrics(table, counts, 0.5, {})
    assert {"confusion_matrix", "recall10_of_best"} <= set(metrics)


# -------------------------------------------------------------------- baselines


@pytest.mark.parametrize("users", [6, 30])
def test_ease_is_the_least_squares_without_a_diagonal(users: int):
    """Column by column: the weights of item j on the others by ridge regression. With more users than items and with fewer."""
    items, ridge = 12, 3.0
    x = (torch.rand(users, items, dtype=torch.float64) < 0.4).double()
    b = torch.zeros(items, items, dtype=torch.float64)
    for j in range(items):
        others = [i for i in range(items) if i != j]
        a = x[:, others]
        b[others, j] = torch.linalg.solve(a.T @ a + ridge * torch.eye(items - 1, dtype=torch.float64), a.T @ x[:, j])
    unseen = x == 0
    torch.testing.assert_close(ease(x, x, ridge)[unseen], (x @ b)[unseen])
    weighted = x * torch.rand_like(x)
    torch.testing.assert_close(ease(x, weighted, ridge)[unseen], (weighted @ b)[unseen])


def test_item_knn_is_a_sum_of_cosines():
    x = (torch.rand(9, 7) < 0.5).float()
    x[:, 6] = 0  # nobody came to it
    torch.testing.assert_close(item_knn(x), x @ torch.from_numpy(cosine_similarity(x.T.numpy())))


def test_baselines_are_computed_once_for_the_same_questions(monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr("refresher_runner.metrics.baselines.compare", lambda *given: asked.append(given) or {"hr10": {}})
    known: dict = {}
    for _ in range(2):
        metric = Baselines(9, known)
        metric.update(None, batch([4, 2], [(0, 1), (1, 5)], torch.tensor([[0, 3], [1, 6], [1, 7]])))
        assert metric.compute() == {"hr10": {}}
    [(seen, wanted, users, items)] = asked
    assert (seen.tolist(), wanted.tolist(), users, items) == ([[0, 6], [0, 7], [1, 3]], [[0, 5], [1, 1]], 2, 9)


def test_the_last_event_weighs_most():
    histories = [torch.randperm(30)[: 3 + user % 4].tolist() for user in range(12)]
    seen = torch.tensor([(user, item) for user, items in enumerate(histories) for item in items])
    wanted = torch.tensor([(user, next(i for i in range(30) if i not in items)) for user, items in enumerate(histories)])
    x, recent = torch.zeros(12, 30), torch.zeros(12, 30)
    for user, items in enumerate(histories):
        x[user, items] = 1
        recent[user, items] = torch.tensor([0.9**age for age in range(len(items))]).flip(0)
    found = compare(seen, wanted, 12, 30)
    assert set(found["hr10"]) == {"popularity", "item_knn", "ease", "ease_recent"}
    for name, scores in (("ease_recent", ease(x, recent)), ("popularity", x.sum(0).expand(12, 30))):
        ranks, _, _ = ranked(lambda some, scores=scores: scores[some].clone(), 12, 30, wanted, seen, 10)
        torch.testing.assert_close(found["ndcg10"][name], per_user(ranks, wanted[:, 0], 12)["ndcg10"].mean())


def test_what_is_published_of_the_real_one(shared_data: Path):
    """Leave-last-out over 9,724 films, shared/data/README.md: HR@10 .0426, .0557, .0852; NDCG@10 .0194, .0260, .0376."""
    from refresher_runner.data.movielens import build_movielens
    from refresher_runner.spec import Placement

    cut = {"split": "last", "val_count": 1, "test_count": 1, "cold_fraction": 0.0, "split_seed": 0}
    sizes = {"block_size": 10, "stride": 10, "batch_size": 8, "eval_batch_size": 200}
    data = build_movielens(root=str(shared_data), version="ml-latest-small", min_rating=None, text_vectors=None, **cut, **sizes)
    data.prepare()
    metric = Baselines(9724, {})
    for questions in data.test_loader(Placement()).batches(0):
        metric.update(None, questions)
    found = metric.compute()
    for name, hr, ndcg in (("popularity", 0.0426, 0.0194), ("item_knn", 0.0557, 0.0260), ("ease", 0.0852, 0.0376)):
        assert abs(found["hr10"][name] - hr) < 0.0017  # one user
        assert abs(found["ndcg10"][name] - ndcg) < 0.0005
