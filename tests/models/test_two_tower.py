"""Two towers: objectives against what they are by definition, phases, what is recommended, and that it learns a law that is known."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from refresher_runner.data.interactions import build_interactions
from refresher_runner.errors import ConfigError, DataError, UsageError
from refresher_runner.models.two_tower.objectives import OBJECTIVES, Told, contrastive, sampled_softmax
from refresher_runner.models.two_tower.task import TwoTower, build_two_tower
from refresher_runner.nn.word_vectors import read_vectors
from refresher_runner.report import Embedding, Matrix, Text
from refresher_runner.spec import InteractionBatch, Placement
from tests.inside import trained

CONF = Path(__file__).parents[2] / "conf" / "model" / "two_tower.yaml"
OPTIONS = {key: value for key, value in yaml.safe_load(CONF.read_text(encoding="utf-8"))["model"].items() if key != "name"}
SMALL = {"dim": 8, "sharing": "shared", "dropout": 0.0, "event_dropout": 0.0}
HIDING = {"event_dropout": 0.4}
ITEMS = 24


@pytest.fixture(scope="module")
def data():
    cut = {"split": "last", "val_count": 1, "test_count": 1, "cold_fraction": 0.0, "split_seed": 0}
    sizes = {"block_size": 5, "stride": 5, "batch_size": 16, "eval_batch_size": 16}
    data = build_interactions(users=32, items=ITEMS, events=8, draw_seed=0, **cut, **sizes)
    data.prepare()
    return data


def made(data, **options: Any) -> TwoTower:
    torch.manual_seed(0)
    return build_two_tower(data.spec, **{**OPTIONS, **SMALL, **options})


def first(data, split: str = "train") -> InteractionBatch:
    return next(getattr(data, f"{split}_loader")(Placement()).batches(0))


# -------------------------------------------------------------------- objectives


def partition(told: Told) -> float:
    """Of one example, what stands for the sum over all items of exp s."""
    return math.exp(float(sampled_softmax(told)) + float(told.positive))


@pytest.mark.parametrize(("others", "drawn"), [(2, 0), (1, 1), (1, 2)])
def test_the_corrected_sample_has_the_mean_of_the_whole(data, others: int, drawn: int):
    """Over every batch that there could be, each as often as it comes, the sum over a sample is on average the sum over all items."""
    items = 4
    p, s, true = torch.tensor([0.5, 0.3, 0.15, 0.05]), torch.tensor([0.3, -1.0, 0.8, 2.0]), 2
    task = made(data, objective="sampled_softmax", negatives=drawn)
    task.log_p = p.log()
    task.spec = type("Spec", (), {"items": range(items)})()  # type: ignore[assignment]
    mean = 0.0
    for sample in itertools.product(range(items), repeat=others + drawn):
        chance = math.prod(float(p[i]) for i in sample[:others]) / items**drawn
        candidates = torch.tensor([true, *sample])
        told = Told(s[candidates][None], torch.tensor([0]), candidates[None] == true, task.log_q(candidates, 1 + others))
        mean += chance * partition(told)
    assert math.isclose(mean, float(s.exp().sum()), rel_tol=1e-5)


def test_a_large_sample_is_the_full_softmax():
    items, drawn = 30, 200_000
    p, s, true = torch.rand(items).softmax(0), torch.randn(items), 7
    candidates = torch.cat([torch.tensor([true]), torch.multinomial(p, drawn, replacement=True)])
    log_q = (p[candidates] * drawn).log()
    told = Told(s[candidates][None], torch.tensor([0]), candidates[None] == true, log_q)
    assert math.isclose(float(sampled_softmax(told)), float(-s.log_softmax(0)[true]), abs_tol=0.01)


def told() -> Told:
    items = torch.tensor([4, 2, 4, 1, 0])  # of which three examples and two that were drawn
    return Told(torch.randn(3, 5), torch.arange(3), items == items[:3, None], torch.randn(5))


@pytest.mark.parametrize("name", ["bpr", "triplet", "bce"])
def test_objectives_pair_by_pair(name: str):
    given = told()
    s, others = given.scores, [(i, j) for i in range(3) for j in range(5) if not given.same[i, j]]
    assert len(others) == 10
    each = {
        "bpr": lambda i, j: -F.logsigmoid(s[i, i] - s[i, j]),
        "triplet": lambda i, j: (1 + s[i, j] - s[i, i]).clamp(min=0),
        "bce": lambda i, j: -F.logsigmoid(-s[i, j]),
    }[name]
    expected = torch.stack([each(i, j) for i, j in others]).mean()
    if name == "bce":
        expected = expected - F.logsigmoid(s.diagonal()[:3]).mean()
    torch.testing.assert_close(OBJECTIVES[name](given), expected)


def test_contrastive_is_two_cross_entropies():
    scores = torch.randn(4, 4)
    given = Told(scores, torch.arange(4), torch.eye(4, dtype=torch.bool), torch.zeros(4))
    a, b = (F.cross_entropy(x, torch.arange(4)) for x in (scores, scores.T))
    torch.testing.assert_close(contrastive(given), (a + b) / 2)
    twice = given._replace(same=torch.eye(4, dtype=torch.bool) | (torch.tensor([0, 1, 1, 2]) == torch.tensor([0, 1, 1, 2])[:, None]))
    left = scores.masked_fill(twice.same & ~torch.eye(4, dtype=torch.bool), -math.inf)
    torch.testing.assert_close(contrastive(twice), (F.cross_entropy(left, torch.arange(4)) + F.cross_entropy(left.T, torch.arange(4))) / 2)


def test_the_softmax_is_over_all_items(data):
    task, batch = made(data), first(data)
    u = task.seen(batch, True).u
    scores = u @ task.item(task.every()).T + task.bias
    torch.testing.assert_close(task.step(batch).loss, F.cross_entropy(scores, batch.wanted[:, 2]))


@pytest.mark.parametrize("negatives", [0, 6])
def test_the_sampled_softmax_in_one_piece(data, negatives: int):
    """What is computed block by block is the objective, and so are its gradients."""
    task, batch = made(data, objective="sampled_softmax", negatives=negatives), first(data)
    torch.nn.init.normal_(task.bias)
    torch.manual_seed(1)
    ours = task.step(batch).loss
    torch.manual_seed(1)
    items = batch.wanted[:, 2]
    candidates = torch.cat([items, torch.randint(ITEMS, (negatives,))])
    scores = task.seen(batch, True).u @ task.item(candidates).T + task.bias[candidates]
    true, same = torch.arange(len(items)), candidates == items[:, None]
    theirs = sampled_softmax(Told(scores, true, same, task.log_q(candidates, len(items))))
    torch.testing.assert_close(ours, theirs)
    parameters = list(task.parameters())
    for a, b in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


# -------------------------------------------------------------------- every option


@pytest.mark.parametrize(
    "options",
    [
        *({"history": name} for name in ("none", "recency", "gru", "attention")),
        *({"score": name} for name in ("cosine", "product", "mlp", "attention")),
        *({"objective": name, "negatives": n} for name, n in zip(OBJECTIVES, (0, 0, 5, 5, 5), strict=True)),
        {"sharing": "separate", "history": "gru", "user_ids": True, "layers": [12]},
        {"sharing": "copied", "text": "attention"},
        {"rerank": 6, "objective": "sampled_softmax"},
        {"rerank": 6, "score": "mlp", "label_smoothing": 0.1},
    ],
    ids=str,
)
def test_every_parameter_is_learnt(data, options):
    task, batch = made(data, **HIDING, **options), first(data)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)  # what begins at zero hides what is before it for a step
    for _ in range(2):
        optimizer.zero_grad()
        task.step(batch).loss.backward()
        optimizer.step()
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name
    with torch.no_grad():
        output = task.eval().step(first(data, "val"))
    assert torch.isfinite(output.loss)
    metrics = task.metrics()
    for metric in metrics.values():
        metric.update(output.preds, output.targets)
    assert {task.goal.metric, "hr10", "recall10_of_best", "hr10_of_baseline"} <= set(metrics)
    assert isinstance(metrics["confusion_matrix"].compute(), Matrix)


def test_parameters(data):
    """Of items 24 ids, 8 genres and none, words, a number; of users 6 groups and none, a number; of a history 5 and one; and biases."""
    words = len(data.spec.items.columns[1].names)
    number = 16 + 16 + 16 * 8 + 8
    expected = (24 + 9 + words + 1) * 8 + number + 7 * 8 + number + 5 + 8 + 24
    assert sum(p.numel() for p in made(data).parameters()) == expected


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"dim": 9, "heads": 2}, "heads"),
        ({"negatives": 3}, "negatives"),
        ({"objective": "bpr", "label_smoothing": 0.1}, "label_smoothing"),
    ],
)
def test_options_at_odds(data, options, key):
    with pytest.raises(ConfigError, match=key):
        made(data, **options)


def test_learns_one_batch_by_heart(data):
    """But for the first events of users, which nothing tells of."""
    task, batch = made(data, user_ids=True, dim=32), first(data)
    optimizer = torch.optim.Adam(task.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        task.step(batch).loss.backward()
        optimizer.step()
    assert task.step(batch).loss < 1.3


# -------------------------------------------------------------------- phases


def test_towers_first_then_what_stands_on_them(data):
    task, batch = made(data, score="mlp", rerank=4, tower_steps=2, sharing="copied"), first(data)
    upper = [*task.score.parameters(), *task.second.parameters()]
    own = list(task.own.parameters())
    for _ in range(2):
        assert not task.joint
        task.zero_grad()
        task.step(batch).loss.backward()
        assert not any(p.grad.any() for p in [*upper, *own])
        with torch.no_grad():
            for p in task.item.parameters():
                p.sub_(p.grad)
    assert task.joint
    assert not torch.equal(task.own.features.ids.weight, task.item.features.ids.weight)
    task.zero_grad()
    task.step(batch).loss.backward()
    assert all(torch.equal(a, b) for a, b in zip(task.own.parameters(), task.item.parameters(), strict=True))  # begun with what was learnt
    assert all(any(p.grad.any() for p in part) for part in (task.score.parameters(), task.second.parameters(), own))
    again = made(data, score="mlp", rerank=4, tower_steps=2, sharing="copied")
    again.load_state_dict(task.state_dict())
    assert again.joint  # the phase is saved


def test_an_item_tower_begins_another_run(as_it_was):
    small = ["model=two_tower", "data.users=40", "data.items=30", "data.events=8", "data.block_size=6", "data.stride=5", "model.dim=8"]
    short = ["trainer.duration=2 steps", "trainer.threads=1", "trainer.device=cpu", "trainer.loggers=[]"]
    run = trained(*small, *short)
    other = trained(*small, *short, "model.history=gru", "trainer.duration=1 steps", "optimizer.lr=1e-12", f"init_from={run}")
    weights = [torch.load(r.checkpoints / "best.pt", weights_only=True)["task"] for r in (run, other)]
    name = "item.features.ids.weight"
    torch.testing.assert_close(weights[0][name], weights[1][name])


# -------------------------------------------------------------------- looking and serving


@pytest.mark.parametrize("options", [{}, {"score": "mlp"}, {"rerank": 5}, {"score": "cosine", "history": "attention"}], ids=str)
def test_what_is_seen_is_never_recommended(data, options):
    task, batch = made(data, **options).eval(), first(data, "test")
    if task.second is not None:
        torch.nn.init.normal_(task.second.out.weight)
    found = task.ranked(batch)
    known = {row: set(batch.seen[batch.seen[:, 0] == row, 1].tolist()) for row in range(len(batch.users))}
    for row, top in enumerate(found.top.tolist()):
        assert not known[row] & set(top)
        rank, item = int(found.ranks[row]), int(batch.wanted[row, 2])
        assert 0 <= rank < ITEMS - len(known[row])
        assert (item in top[:10]) == (rank < 10)
        assert rank >= 10 or top[rank] == item


def test_a_second_look_changes_the_order_of_the_best_alone(data):
    batch = first(data, "test")
    plain, again = made(data).eval(), made(data, rerank=5).eval()
    again.load_state_dict({**again.state_dict(), **plain.state_dict()})
    assert torch.equal(plain.ranked(batch).top, again.ranked(batch).top)  # as long as it says nothing
    torch.nn.init.normal_(again.second.out.weight, std=9)
    before, after = plain.ranked(batch).top, again.ranked(batch).top
    assert not torch.equal(before, after)
    assert torch.equal(before[:, :5].sort(1).values, after[:, :5].sort(1).values)
    assert torch.equal(before[:, 5:], after[:, 5:])


def test_the_loss_of_evaluation_is_among_what_is_not_seen(data):
    task, batch = made(data).eval(), first(data, "val")
    scores = task.seen(batch, True).u @ task.item(task.every()).T + task.bias
    scores[batch.seen[:, 0], batch.seen[:, 1]] = -math.inf
    torch.testing.assert_close(task.step(batch).loss, F.cross_entropy(scores, batch.wanted[:, 2]))


def test_observation(data):
    task, batch = made(data).eval(), first(data, "val")
    with torch.no_grad():
        report = task.observe(batch)
    text, items = report["recommended"], report["items"]
    assert isinstance(text, Text)
    assert text.markdown.count("\n") == 9  # a head of two lines, and eight users
    assert isinstance(items, Embedding)
    assert (len(items.vectors), len(items.labels), len(items.groups)) == (ITEMS,) * 3
    place = data.spec.items.names.index(items.labels[3])
    assert items.groups[3] == data.spec.items.columns[0].names[int(data.spec.items.values[0][place, 0])]


def test_prediction_for_a_user_is_by_all_that_is_known(data):
    task = made(data).eval()
    with torch.no_grad():
        [found] = task.predict(["user:3"])
        v = task.item(task.every())
        known = data.spec.log.of(2)
        events = known[-5:][None]
        u = task.user(torch.tensor([2]), v[events], torch.ones(1, 5, dtype=torch.bool))[0, -1]
    scores = v @ u + task.bias
    scores[known] = -math.inf
    best = [data.spec.items.names[i] for i in scores.topk(10).indices.tolist()]
    assert [found.values["recommended"], *str(found.values["then"]).split("; ")] == best


def test_prediction_of_what_is_like_an_item(data):
    task, name = made(data).eval(), data.spec.items.names[4]
    with torch.no_grad():
        [found] = task.predict([f'item:"{name}"'])
        cosines = F.cosine_similarity(task.item(task.every())[4][None], task.item(task.every()))
    cosines[4] = -2
    assert found.values["nearest"] == data.spec.items.names[int(cosines.argmax())]
    assert math.isclose(float(str(found.values["cosine"])), float(cosines.max()), abs_tol=1e-5)


@pytest.mark.parametrize(
    ("asked", "cure"),
    [
        ("42", "user:1"),
        ("user:99999", "did you mean"),
        ("item:ballads 1", "amber amber ballads 1"),
        ("item:ambre amber balads 1", "amber amber ballads 1"),
    ],
)
def test_what_is_not_known_is_said(data, asked, cure):
    with pytest.raises(UsageError) as refused:
        list(made(data).predict([asked]))
    assert cure in refused.value.cure


def test_vectors_for_other_programs(data, tmp_path: Path):
    task = made(data, score="cosine").eval()
    torch.nn.init.normal_(task.bias)
    task.export(tmp_path / "items.npz")
    with np.load(tmp_path / "items.npz") as file:
        names, vectors, bias = file["names"], torch.from_numpy(file["vectors"]), torch.from_numpy(file["bias"])
    u = torch.randn(3, 8)
    torch.testing.assert_close(task.score.sides(u, u)[0] @ vectors.T + bias, task.score(u, task.item(task.every())) + task.bias)
    assert tuple(names) == data.spec.items.names
    task.export(tmp_path / "items.txt")
    words, values = read_vectors(tmp_path / "items.txt")
    assert words[0] == "amber_amber_ballads_1"
    torch.testing.assert_close(values, vectors, atol=1e-5, rtol=1e-4)
    with pytest.raises(DataError, match="cannot be written"):
        task.export(tmp_path / "none" / "items.npz")


def test_an_index_needs_faiss(data, tmp_path: Path):
    try:
        import faiss
    except ImportError:
        with pytest.raises(UsageError, match="FAISS"):
            made(data).export(tmp_path / "items.faiss")
        return
    task = made(data)
    torch.nn.init.normal_(task.bias)
    task.export(tmp_path / "items.faiss")
    u = torch.randn(3, 8)
    found, _ = faiss.read_index(str(tmp_path / "items.faiss")).search(torch.cat([u, torch.ones(3, 1)], 1).numpy(), 4)
    torch.testing.assert_close(torch.from_numpy(found), (u @ task.item(task.every()).T + task.bias).topk(4).values)


# -------------------------------------------------------------------- a law that is known


@pytest.mark.slow
def test_reaches_nearly_the_best_that_is_possible(as_it_was):
    """Its own test users, 2,000, are .022 of the best recall either way."""
    run = trained("model=two_tower", "trainer.threads=1", "trainer.device=cpu", "trainer.loggers=[]")
    assert run.read_status()["test"]["test/recall10_of_best"] >= 0.9
