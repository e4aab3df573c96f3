"""Scores, ranks and losses over many against what they are by definition."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from refresher_runner.features import Column, Table
from refresher_runner.nn import retrieval, softmax
from refresher_runner.nn.features import FeatureEncoder
from refresher_runner.nn.retrieval import ranked, top_k
from refresher_runner.nn.scores import SCORES, CrossAttention
from refresher_runner.nn.softmax import linear_cross_entropy

# -------------------------------------------------------------------- a softmax in blocks


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("held", [1, 40, 10**6])
def test_the_cross_entropy_and_its_gradients(monkeypatch: pytest.MonkeyPatch, held: int, smoothing: float):
    monkeypatch.setitem(softmax.NUMBERS, "cpu", held)
    h, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((7, 5), (11, 5), (11,)))
    targets = torch.randint(11, (7,))
    ours = linear_cross_entropy(h, weight, bias, targets, smoothing)
    theirs = F.cross_entropy(h @ weight.T + bias, targets, label_smoothing=smoothing)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(torch.autograd.grad(3 * ours, (h, weight, bias)), torch.autograd.grad(3 * theirs, (h, weight, bias)), strict=True):
        torch.testing.assert_close(a, b)


def test_the_cross_entropy_in_half_precision():
    h, weight, bias, targets = torch.randn(9, 16, requires_grad=True), torch.randn(20, 16), torch.zeros(20), torch.randint(20, (9,))
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_cross_entropy(h, weight, bias, targets)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, F.cross_entropy(h @ weight.T, targets), atol=0.05, rtol=0.02)
    ours.backward()
    assert h.grad is not None
    assert h.grad.dtype == torch.float32


# -------------------------------------------------------------------- ranks


@pytest.mark.parametrize("held", [1, 30, 10**6])
def test_ranks_by_sorting(monkeypatch: pytest.MonkeyPatch, held: int):
    monkeypatch.setattr(retrieval, "NUMBERS", held)
    scores, queries, items = torch.randn(6, 12), 6, 12
    seen = torch.tensor([[0, 3], [0, 4], [2, 11], [5, 0], [5, 1], [5, 2]])
    wanted = torch.tensor([[0, 1], [1, 5], [1, 6], [2, 0], [3, 7], [4, 2], [5, 9]])
    ranks, losses, top = ranked(lambda some: scores[some].clone(), queries, items, wanted, seen, 4)
    for (query, item), rank, loss in zip(wanted.tolist(), ranks.tolist(), losses.tolist(), strict=True):
        hidden = seen[seen[:, 0] == query, 1].tolist()
        left = [i for i in scores[query].argsort(descending=True).tolist() if i not in hidden]
        assert left.index(item) == rank
        assert left[:4] == top[query].tolist()
        assert math.isclose(loss, -scores[query, left].log_softmax(0)[rank].item(), rel_tol=1e-5)


def test_a_tie_is_lost_and_what_is_no_number_is_the_worst():
    scores = torch.tensor([[1.0, 1.0, 1.0], [math.nan, 0.0, 1.0]])
    ranks, _, top = ranked(lambda some: scores[some].clone(), 2, 3, torch.tensor([[0, 0], [1, 0]]), torch.zeros(0, 2, dtype=torch.long), 2)
    assert ranks.tolist() == [2, 2]
    assert top[1].tolist() == [2, 1]


@pytest.mark.parametrize("held", [1, 100, 10**6])
def test_the_top_is_exact(monkeypatch: pytest.MonkeyPatch, held: int):
    monkeypatch.setattr(retrieval, "NUMBERS", held)
    queries, items = torch.randn(9, 5), torch.randn(301, 5)
    values, places = top_k(queries, items, 7)
    expected = (queries @ items.T).topk(7)
    torch.testing.assert_close(values, expected.values)
    assert torch.equal(places, expected.indices)
    assert top_k(queries, items[:3], 7)[1].shape == (9, 3)


def test_the_top_of_many_parts_and_of_half_precision(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retrieval, "ITEMS", 100)
    queries, items = torch.randn(9, 5), torch.randn(3001, 5).half()
    values, places = top_k(queries, items, 7)
    expected = (queries @ items.float().T).topk(7)
    torch.testing.assert_close(values, expected.values)
    torch.testing.assert_close((queries[:, None] * items.float()[places]).sum(-1), values)


# -------------------------------------------------------------------- scores


def by_pairs(name: str, score: torch.nn.Module, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    dot = (u * v).sum()
    if name == "cosine":
        return F.cosine_similarity(u, v, dim=0) / 0.25
    if name == "product":
        return dot + score.out(F.relu(score.hidden(u * v)))[0]
    if name == "mlp":
        weight = torch.cat([score.of_u.weight, score.of_v.weight], 1)
        return dot + score.out(F.relu(weight @ torch.cat([u, v]) + score.of_u.bias))[0]
    if name == "attention":
        products = torch.stack([(u + side) @ v for side in score.sides(u).chunk(score.facets)])
        return products.softmax(0) @ products
    return dot


@pytest.mark.parametrize("name", SCORES)
def test_a_score_of_many_is_that_of_each_pair(name: str):
    score, u, v = SCORES[name](6, 0.25), torch.randn(3, 6), torch.randn(4, 6)
    expected = torch.stack([torch.stack([by_pairs(name, score, a, b) for b in v]) for a in u])
    torch.testing.assert_close(score(u, v), expected)


def test_a_second_look_sees_candidates_and_the_past_alone():
    second, c, x = CrossAttention(8, 2).eval(), torch.randn(2, 5, 8), torch.randn(2, 4, 8)
    assert not second(c, x, torch.ones(2, 4, dtype=torch.bool)).any()  # at first it changes no order
    torch.nn.init.normal_(second.out.weight)
    there = torch.tensor([[True, True, False, False], [False] * 4])
    first = second(c, x, there)
    hidden = x.masked_fill(there[..., None], 0) + torch.where(there[..., None], x, torch.randn(2, 4, 8))
    torch.testing.assert_close(second(c, hidden, there), first)
    torch.testing.assert_close(second(c.flip(1), x, there), first.flip(1))
    assert torch.isfinite(first).all()  # also of who has no past


# -------------------------------------------------------------------- features

WORDS = Column("title", "text", ("a", "b", "c"))


def test_rows_are_sums_of_what_is_known_of_them():
    table = Table(
        ("x", "y"),
        (Column("kind", "category", ("p", "q")), WORDS, Column("size", "number")),
        (torch.tensor([[0, 1], [1, -1]]), torch.tensor([[2, 2, 0], [-1, -1, -1]]), torch.tensor([[0.5], [-0.5]])),
    )
    encoder = FeatureEncoder(table, 4, ids=True, text="bag", heads=2)
    kind, title, size = encoder.columns
    assert encoder.ids is not None
    number = size.out(torch.tanh(size.hidden(torch.tensor([0.5]))))
    p, q = kind.table.weight[:2]
    a, _, c, _ = title.table.weight
    torch.testing.assert_close(encoder(torch.tensor([1, 0]))[1], encoder.ids.weight[0] + (p + q) / 2 + (2 * c + a) / 3 + number)
    assert torch.equal(title(torch.tensor([1])), torch.zeros(1, 4))  # no word at all


def test_words_may_begin_with_vectors_from_elsewhere():
    vectors = torch.randn(3, 5)
    column = Column("title", "text", ("a", "b", "c"), vectors)
    encoder = FeatureEncoder(Table(("x",), (column,), (torch.tensor([[0, 2]]),)), 4, ids=False, text="bag", heads=2)
    title = encoder.columns[0]
    torch.testing.assert_close(encoder(torch.tensor([0]))[0], title.fit.weight @ (vectors[0] + vectors[2]) / 2)


def test_words_in_their_order():
    table = Table(("x", "y", "z"), (WORDS,), (torch.tensor([[0, 1, -1], [1, 0, -1], [-1, -1, -1]]),))
    encoder = FeatureEncoder(table, 4, ids=False, text="attention", heads=2).eval()
    x, y, z = encoder(torch.arange(3))
    assert not torch.allclose(x, y)
    assert torch.isfinite(z).all()


def test_pictures_and_nothing_at_all():
    pictures = Table(("x", "y"), (Column("look", "picture"),), (torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8),))
    assert FeatureEncoder(pictures, 4, ids=False, text="bag", heads=2)(torch.tensor([1, 0, 1])).shape == (3, 4)
    assert not FeatureEncoder(Table(("x",)), 4, ids=False, text="bag", heads=2)(torch.tensor([0])).any()
