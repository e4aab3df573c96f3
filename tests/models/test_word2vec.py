"""word2vec's equations against direct computation, its trees, draws and windows, and what its vectors are asked."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from refresher_runner.engine.optim import RowSGD
from refresher_runner.errors import ConfigError, UsageError
from refresher_runner.models.word2vec import (
    FullSoftmax,
    HierarchicalSoftmax,
    NegativeSampling,
    Windows,
    Word2Vec,
    build_word2vec,
    keep_probability,
)
from refresher_runner.nn.alias import Alias
from refresher_runner.nn.huffman import huffman
from refresher_runner.nn.word_blocks import Blocks, cbow_loss, skip_gram_loss
from refresher_runner.nn.word_vectors import read_vectors
from refresher_runner.spec import CorpusBatch, CorpusSpec

COUNTS = (50, 20, 9, 9, 5, 3, 2, 2, 1)
WORDS = ("the", "king", "queen", "man", "woman", "crown", "rules", "walks", "rarely")
SPEC = CorpusSpec(WORDS, COUNTS)
WINDOW = 2
SENTENCES = torch.tensor([[0, 1, 5, 6, 0, 3, 7], [2, 4, 0, 8, 1, 1, 2]])


def word2vec(spec: CorpusSpec = SPEC, **changes) -> Word2Vec:
    options = {
        "architecture": "skip_gram",
        "output": "negative",
        "dim": 6,
        "window": WINDOW,
        "negatives": 3,
        "shared_negatives": 0,
        "subsample": None,
    }
    return build_word2vec(spec, **{**options, **changes})


def stirred(task: Word2Vec) -> Word2Vec:
    """With tables that are no longer zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return task


def batch(words: Tensor = SENTENCES) -> CorpusBatch:
    return CorpusBatch(words, torch.zeros(0, 2).long(), torch.zeros(0), torch.zeros(0, 4).long(), torch.zeros(0).long())


def drawn(words: Tensor, sentence: Tensor, reach: Tensor) -> tuple[Windows, list[tuple[int, list[int]]]]:
    """Windows of words (T,) of sentences (T,) that look so far (T,), and by loops every word with those it sees."""
    where, far, number = sentence.tolist(), reach.tolist(), len(words)
    seen = [[j for j in range(number) if 0 < abs(j - i) <= far[i] and where[j] == where[i]] for i in range(number)]
    sides = ([sum(side * (j - i) > 0 for j in row) for i, row in enumerate(seen)] for side in (-1, 1))
    return Windows(words, *map(torch.tensor, sides)), [(words[i].item(), words[row].tolist()) for i, row in enumerate(seen)]


# -------------------------------------------------------------------- trees and draws


def test_huffmans_walks_are_a_code_within_a_bit_of_the_entropy():
    walks = huffman(COUNTS)
    codes = {"".join("+" if turn > 0 else "-" for _, turn in walk) for walk in walks}
    assert len(codes) == len(COUNTS)
    assert not any(a != b and b.startswith(a) for a in codes for b in codes), "no word lies on the way to another"
    assert sum(2.0 ** -len(walk) for walk in walks) == 1
    p = torch.tensor(COUNTS, dtype=torch.float64) / sum(COUNTS)
    entropy = -(p * p.log2()).sum().item()
    length = sum(p[word].item() * len(walk) for word, walk in enumerate(walks))
    assert entropy <= length < entropy + 1
    assert {node for walk in walks for node, _ in walk} == set(range(len(COUNTS) - 1))


@pytest.mark.parametrize("weights", [COUNTS, (1,), (1, 1, 1), (1000, 1, 1, 1)])
def test_alias_draws_exactly_by_weight(weights):
    alias, count = Alias(torch.tensor(weights)), len(weights)
    p = alias.kept.double() / count
    p = p.index_add(0, alias.other, (1 - alias.kept.double()) / count)
    torch.testing.assert_close(p, torch.tensor(weights, dtype=torch.float64) / sum(weights), atol=1e-7, rtol=1e-6)


def test_negatives_are_drawn_by_frequency_to_the_three_quarters():
    torch.manual_seed(0)
    drawn = word2vec().output.draw(200_000).bincount(minlength=len(COUNTS)) / 200_000  # type: ignore[operator]
    p = torch.tensor(COUNTS) ** 0.75
    torch.testing.assert_close(drawn, p / p.sum(), atol=5e-3, rtol=0)


def test_frequent_words_are_left_out():
    """As the authors' program: (sqrt(f / t) + 1) t / f."""
    f, t = torch.tensor([0.9, 0.09, 0.01], dtype=torch.float64), 0.01
    expected = ((f / t).sqrt() + 1) * t / f
    torch.testing.assert_close(keep_probability(1000 * f, t), expected.clamp(max=1))
    assert keep_probability(1000 * f, t)[2] == 1


# -------------------------------------------------------------------- windows


def test_windows_see_near_words_of_their_own_sentence():
    task = word2vec()
    torch.manual_seed(0)
    torch.rand(SENTENCES.shape)
    reach = torch.randint(1, WINDOW + 1, (SENTENCES.numel(),))
    expected, pairs = drawn(SENTENCES.flatten(), torch.arange(2).repeat_interleave(7), reach)
    torch.manual_seed(0)
    windows = task.windows(SENTENCES)
    for found, part in zip(windows, expected, strict=True):
        assert torch.equal(found, part)
    neighbours, seen = windows.neighbours(WINDOW)
    assert [(word, row[mask].tolist()) for word, row, mask in zip(windows.words.tolist(), neighbours, seen, strict=True)] == pairs
    assert {1, 2} == set(reach.tolist())


def test_windows_are_of_what_is_kept():
    task = word2vec(subsample=0.01)
    torch.manual_seed(0)
    kept = torch.rand(SENTENCES.shape) < task.keep[SENTENCES]
    kept[0, :2] = True
    assert 2 < kept.sum() < kept.numel()
    reach = torch.randint(1, WINDOW + 1, (int(kept.sum()),))
    expected, _ = drawn(SENTENCES[kept], torch.arange(2)[:, None].expand(2, 7)[kept], reach)
    torch.manual_seed(0)
    for found, part in zip(task.windows(SENTENCES), expected, strict=True):
        assert torch.equal(found, part)


@pytest.mark.parametrize("mean", [False, True])
def test_blocks_see_what_windows_see(mean):
    torch.manual_seed(0)
    windows, pairs = drawn(torch.arange(75), torch.arange(75) // 10, torch.randint(1, 6, (75,)))
    blocks = Blocks.of(*windows, window=5, mean=mean)
    near, weights = blocks.near(blocks.around), blocks.inside(blocks.band)  # (T, 2c + 1)
    assert [(i, near[i][weights[i] > 0].tolist()) for i in range(75)] == pairs
    number = blocks.number.flatten()
    assert torch.equal(number[:75], torch.tensor([float(len(row)) for _, row in pairs]))
    torch.testing.assert_close(weights.sum(1), number.clamp(max=1 if mean else 10))
    assert len(weights) > 75
    assert weights[75:].sum() == 0, "fillers see nothing"


@pytest.mark.parametrize("window", [1, 5, 20])
def test_sums_and_products_of_a_band_are_those_of_its_matrix(window):
    torch.manual_seed(0)
    windows, _ = drawn(torch.arange(75), torch.zeros(75).long(), torch.ones(75).long())
    blocks = Blocks.of(*windows, window=window)
    length = len(blocks.around)
    rows, band = torch.randn(length, 3, dtype=torch.float64), torch.zeros(length, 2 * window + 1, dtype=torch.float64)
    blocks.inside(band).normal_()
    matrix = torch.zeros(length, length + 2 * window, dtype=torch.float64)  # of each place its weights, c to the right
    for i, weights in enumerate(band):
        matrix[i, i : i + 2 * window + 1] = weights
    matrix = matrix[:, window : window + length]

    def inside(x):
        return x[window : length - window]

    torch.testing.assert_close(blocks.weighed(rows, blocks.place, blocks.inside(band)), inside(matrix @ rows))
    torch.testing.assert_close(blocks.weighed(rows, blocks.place, blocks.given(band)), inside(matrix.T @ rows))
    products = blocks.products(inside(rows).contiguous(), rows)
    assert torch.equal(products[:window], torch.zeros(window, 2 * window + 1, dtype=torch.float64))
    assert torch.equal(products[length - window :], torch.zeros(window, 2 * window + 1, dtype=torch.float64))
    torch.testing.assert_close((products * band).sum(), (rows @ rows.T * matrix).sum())


# -------------------------------------------------------------------- the three outputs


@pytest.mark.parametrize("output", ["full", "hierarchical"])
def test_probabilities_of_all_words_sum_to_one(output):
    task = stirred(word2vec(output=output))
    h = torch.randn(4, 6)
    log_p = task.output(h, torch.arange(len(WORDS)).expand(4, -1))
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(4))


def test_the_full_softmax_is_equation_2():
    task = stirred(word2vec(output="full"))
    assert isinstance(task.output, FullSoftmax)
    h, u = torch.randn(6), task.output.u.weight.detach()
    expected = math.log(math.exp(u[4] @ h) / sum(math.exp(row @ h) for row in u))
    assert task.output(h[None], torch.tensor([[4]])).item() == pytest.approx(expected, abs=1e-5)


def test_the_hierarchical_softmax_is_equation_3():
    task = stirred(word2vec(output="hierarchical"))
    assert isinstance(task.output, HierarchicalSoftmax)
    h, u = torch.randn(6), task.output.u.weight.detach()
    expected = sum(math.log(1 / (1 + math.exp(-turn * (u[node] @ h)))) for node, turn in huffman(COUNTS)[7])
    assert task.output(h[None], torch.tensor([[7]])).item() == pytest.approx(expected, abs=1e-5)


def test_negative_sampling_is_equation_4():
    task = stirred(word2vec())
    assert isinstance(task.output, NegativeSampling)
    h, u, words = torch.randn(2, 6), task.output.u.weight.detach(), torch.tensor([[1, 2], [8, 0]])
    torch.manual_seed(5)
    noise = task.output.draw(2, 2, 3)
    torch.manual_seed(5)
    found = task.output(h, words).detach()
    for i in range(2):
        for j in range(2):
            true = math.log(1 / (1 + math.exp(-(u[words[i, j]] @ h[i]))))
            false = sum(math.log(1 / (1 + math.exp(u[k] @ h[i]))) for k in noise[i, j])
            assert found[i, j].item() == pytest.approx(true + false, abs=1e-5)


@pytest.mark.parametrize("architecture", ["skip_gram", "cbow"])
def test_the_loss_is_the_mean_over_words(architecture):
    """2013b, eq. 1, by loops over words and those they see."""
    task = stirred(word2vec(architecture=architecture, output="full"))
    torch.manual_seed(0)
    windows, pairs = drawn(SENTENCES.flatten(), torch.arange(2).repeat_interleave(7), torch.randint(1, WINDOW + 1, (SENTENCES.numel(),)))
    v, log_p = task.v.weight, lambda h: F.log_softmax(h @ task.output.u.weight.T, 0)  # type: ignore[union-attr]
    total = torch.tensor(0.0)
    for word, seen in pairs:
        if architecture == "skip_gram":
            total += sum(log_p(v[word])[other] for other in seen)
        elif seen:
            total += log_p(v[seen].mean(0))[word]
    torch.testing.assert_close(task.loss(windows), -total / len(windows.words))


@pytest.mark.parametrize("architecture", ["skip_gram", "cbow"])
def test_blocks_are_the_definition_with_shared_negatives(architecture):
    """Loss and gradients of the path by hand, against autograd over one pair after another."""
    torch.manual_seed(0)
    words = torch.randint(40, (83,))
    windows, seen_by = drawn(words, torch.arange(83) // 20, torch.randint(1, 6, (83,)))
    v, u = (torch.randn(40, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    blocks = Blocks.of(*windows, window=5, mean=architecture == "cbow")
    b, size = blocks.number.shape
    noise, weight = torch.randint(40, (b, 9)), 5 / 9

    total = torch.tensor(0.0, dtype=torch.float64)
    for i, (word, seen) in enumerate(seen_by):
        pairs = [(v[word], other) for other in seen] if architecture == "skip_gram" else [(v[seen].mean(0), word)] if seen else []
        for h, target in pairs:
            total = total + F.logsigmoid(u[target] @ h) + weight * F.logsigmoid(-(u[noise[i // size]] @ h)).sum()
    expected = torch.autograd.grad(-total / 83, (v, u))

    exact = blocks._replace(band=blocks.band.double(), number=blocks.number.double())
    loss = (skip_gram_loss if architecture == "skip_gram" else cbow_loss)(v, u, exact, noise, weight)
    torch.testing.assert_close(loss, -total / 83, rtol=1e-6, atol=0)  # as exact as a share of 1/3 in float32
    found = torch.autograd.grad(3 * loss, (v, u))
    for dense, sparse in zip(expected, found, strict=True):
        assert sparse.is_sparse
        torch.testing.assert_close(sparse.to_dense(), 3 * dense, rtol=1e-6, atol=1e-6)


def test_shared_negatives_cost_as_much_as_each_pairs_own():
    """In expectation, over draws."""
    own, shared = stirred(word2vec(negatives=4)), stirred(word2vec(negatives=4, shared_negatives=8))
    windows = own.windows(SENTENCES)
    torch.manual_seed(0)
    with torch.no_grad():
        means = [torch.stack([loss(windows) for _ in range(3000)]).mean() for loss in (own.loss, shared.loss_in_blocks)]
    torch.testing.assert_close(means[0], means[1], rtol=0.02, atol=0)


# -------------------------------------------------------------------- learning


@pytest.mark.parametrize("architecture", ["skip_gram", "cbow"])
@pytest.mark.parametrize(("output", "shared"), [("full", 0), ("hierarchical", 0), ("negative", 0), ("negative", 16)])
def test_words_of_one_topic_come_together(architecture, output, shared):
    """Sentences of either of two topics, whose words never meet."""
    torch.manual_seed(0)
    spec = CorpusSpec(tuple("abcdefghij"), (10,) * 10)
    task = word2vec(spec, architecture=architecture, output=output, shared_negatives=shared)
    optimizer = RowSGD(task.parameters(), lr=10.0, max_step=0.5)
    topic = torch.arange(20)[:, None] % 2 * 5
    before = None
    for _ in range(60):
        data = batch(topic + torch.randint(5, (20, 12)))
        loss = task.step(data).loss
        before = loss.item() if before is None else before
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < before
    _, nearest = task.nearest(task.v.weight.detach(), torch.arange(10)[:, None], 4)
    assert ((nearest >= 5) == (torch.arange(10)[:, None] >= 5)).all()


def test_sharing_is_for_negative_sampling():
    with pytest.raises(ConfigError, match="draws no negatives"):
        word2vec(output="full", shared_negatives=8)


# -------------------------------------------------------------------- what vectors know


def told() -> Word2Vec:
    """With vectors whose sums are known: royal, male, female on axes of their own."""
    task = word2vec(dim=4)
    rows = {"king": [1, 1, 0, 0], "queen": [1, 0, 1, 0], "man": [0, 1, 0, 0], "woman": [0, 0, 1, 0], "crown": [1, 0, 0, 0.2]}
    with torch.no_grad():
        task.v.weight.zero_()
        task.v.weight[:, 3] = -1
        for word, row in rows.items():
            task.v.weight[SPEC.numbers[word]] = torch.tensor(row, dtype=torch.float32)
    return task.eval()


def test_sums_of_words_are_predicted():
    (sum_, word) = told().predict(["king - man + woman", "king"])
    assert (sum_.values["nearest"], word.values["nearest"]) == ("queen", "man")
    assert word.values["cosine"] == pytest.approx(math.sqrt(0.5))


@pytest.mark.parametrize(("asked", "said"), [("king + emperor", "emperor"), (" + ", "holds no word")])
def test_what_cannot_be_asked_is_said(asked, said):
    with pytest.raises(UsageError, match=said):
        list(told().predict([asked]))


def test_questions_are_answered_where_words_are_known():
    n = SPEC.numbers
    pairs = torch.tensor([[n["king"], n["queen"]], [n["king"], -1]])
    analogies = torch.tensor([[n["man"], n["woman"], n["king"], n["queen"]], [n["man"], -1, n["king"], n["queen"]]])
    answers = told().answers(CorpusBatch(SENTENCES, pairs, torch.ones(2), analogies, torch.zeros(2).long()))
    assert answers.likeness[0].item() == pytest.approx(0.5)
    assert answers.likeness[1].isnan()
    assert answers.words.tolist() == [n["queen"], -1]


@pytest.mark.parametrize("name", ["vectors.txt", "vectors.bin"])
def test_exported_vectors_are_read_back(name, tmp_path):
    task = stirred(word2vec())
    task.export(tmp_path / name)
    words, vectors = read_vectors(tmp_path / name)
    assert words == WORDS
    torch.testing.assert_close(vectors, task.v.weight.detach(), rtol=1e-5, atol=0)
    assert (tmp_path / name).read_bytes().startswith(b"9 6\nthe ")


def test_observed_are_neighbours_and_vectors():
    report = told().observe(batch())
    assert "| word | nearest |" in report["neighbours"].markdown  # type: ignore[union-attr]
    assert report["words"].labels == WORDS  # type: ignore[union-attr]
    torch.testing.assert_close(report["likeness"].values.diagonal(), torch.ones(16))  # type: ignore[union-attr]
