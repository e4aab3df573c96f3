"""Baselines that count, against counting by hand."""

import math
from itertools import pairwise

import pytest
import torch

from refresher_runner.nn import ngrams
from refresher_runner.nn.ngrams import PRIOR, NGrams
from refresher_runner.spec import TextBatch

A, B, C = range(3)


def batch(*windows: list[int]) -> TextBatch:
    """Each of T + 1 tokens."""
    rows = torch.tensor(windows)
    return TextBatch(rows[:, :-1], rows[:, 1:])


def counted(*batches: TextBatch, vocab_size: int = 3) -> NGrams:
    counts = NGrams(vocab_size)
    for b in batches:
        counts.count(b)
    return counts.eval()


def test_counts_by_hand():
    counts = counted(batch([A, B, A, C], [B, B, B, A]), batch([A, B, B, B]))
    assert counts.unigrams.tolist() == [2, 6, 1], "each token but the first of a window"
    assert counts.bigrams.tolist() == [[0, 2, 1], [2, 4, 0], [0, 0, 0]]


def test_evaluation_counts_nothing():
    counts = counted(batch([A, B]))
    counts.count(batch([A, B]))
    assert counts.unigrams.sum() == 1


def test_the_unigram_knows_no_text():
    counts = counted(batch([A, B, B, C]))
    unigram, _ = counts.fill(batch([A, B, C, A]), torch.tensor([[0, 2]]))
    assert unigram.shape == (1, 2, 3)
    expected = [math.log(n + PRIOR) for n in (0, 2, 1)]
    assert unigram[0].tolist() == [pytest.approx(expected)] * 2


def test_the_bigram_is_bayes_rule_for_a_chain():
    """p(x | before, after) = p(x | before) p(after | x) / sum over x, with every count raised by PRIOR."""
    text = [A, B, A, C, C, A, B, B, C, A, A, B, C]
    counts = counted(batch(text))
    pairs = [[PRIOR] * 3 for _ in range(3)]
    for before, after in pairwise(text):
        pairs[before][after] += 1
    follows = [text[1:].count(x) + 3 * PRIOR for x in range(3)]
    window = [B, A, C, B, A]
    for place in (1, 2, 3):
        before, after = window[place - 1], window[place + 1]
        expected = torch.tensor([pairs[before][x] * pairs[x][after] / follows[x] for x in range(3)])
        _, bigram = counts.fill(batch(window), torch.tensor([[place]]))
        assert bigram is not None
        torch.testing.assert_close(bigram[0, 0].softmax(-1), expected / expected.sum())


def test_at_the_beginning_of_a_window_nothing_is_before():
    text = [A, B, A, C, C, A, B, B, C, A, A, B, C]
    counts = counted(batch(text))
    unigrams = torch.tensor([text[1:].count(x) + PRIOR for x in range(3)])
    leads = torch.tensor([sum((a, b) == (x, C) for a, b in pairwise(text)) + PRIOR for x in range(3)])
    expected = unigrams * leads / (unigrams + 2 * PRIOR)
    _, bigram = counts.fill(batch([B, C, A]), torch.tensor([[0]]))
    assert bigram is not None
    torch.testing.assert_close(bigram[0, 0].softmax(-1), expected / expected.sum())


def test_pairs_of_a_large_vocabulary_are_not_counted(monkeypatch):
    monkeypatch.setattr(ngrams, "LARGEST", 2)
    counts = counted(batch([A, B, C]))
    assert counts.bigrams.numel() == 0
    assert counts.unigrams.tolist() == [0, 1, 1]
    assert counts.fill(batch([A, B, C]), torch.tensor([[0]]))[1] is None


def test_counts_are_saved_with_the_weights():
    counts, other = counted(batch([A, B, C])), NGrams(3)
    other.load_state_dict(counts.state_dict())
    assert torch.equal(other.bigrams, counts.bigrams)
