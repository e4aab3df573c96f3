"""Every metric of language against scikit-learn, torch, or a sum by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as reference
import torch
from torch import Tensor

from refresher_runner.data.subwords import learn_subwords
from refresher_runner.metrics.language import TokenConfusion, language_metrics
from refresher_runner.report import Matrix
from refresher_runner.vocabulary import Vocabulary, characters

V = 30
VOCABULARY = characters("abcdefghijklmnopqrstuvwxyz .\n!")


def sample(ignore: int | None = None) -> tuple[Tensor, Tensor]:
    """Logits (8, 11, V), right more often than not, and targets (8, 11), the low numbers frequent."""
    targets = (torch.rand(8, 11) ** 2 * V).long()
    logits = torch.randn(8, 11, V) + 3 * torch.nn.functional.one_hot(targets, V)
    if ignore is not None:
        targets[torch.rand(8, 11) < 0.3] = ignore
    return logits, targets


def measure(logits: Tensor, targets: Tensor, parts: int = 3, vocabulary: Vocabulary = VOCABULARY, **options: Any) -> dict[str, Any]:
    metrics = language_metrics(vocabulary, **options)
    for some in zip(logits.chunk(parts), targets.chunk(parts), strict=True):
        for metric in metrics.values():
            metric.update(*some)
    return {name: metric.compute() for name, metric in metrics.items()}


@pytest.mark.parametrize("ignore", [None, 0, -100])
def test_numbers(ignore: int | None):
    logits, targets = sample(ignore)
    found = measure(logits, targets, **({} if ignore is None else {"ignore": ignore}))
    asked = targets != ignore if ignore is not None else torch.ones_like(targets, dtype=torch.bool)
    true, guessed = targets[asked], logits[asked].argmax(-1)
    nll = -logits[asked].double().log_softmax(-1)[torch.arange(len(true)), true].mean().item()
    assert found["accuracy"].item() == pytest.approx(reference.accuracy_score(true, guessed))
    assert found["perplexity"].item() == pytest.approx(math.exp(nll), rel=1e-5)
    assert found["bits_per_token"].item() == pytest.approx(nll / math.log(2), rel=1e-5)
    assert list(found) == ["accuracy", "perplexity", "bits_per_token", "confusion_matrix"]


def test_to_know_nothing_is_as_many_bits_as_the_vocabulary_has():
    found = measure(torch.zeros(4, 4, V), torch.randint(V, (4, 4)))
    assert found["perplexity"].item() == pytest.approx(V, rel=1e-5)
    assert found["bits_per_token"].item() == pytest.approx(math.log2(V), rel=1e-5)


def test_bits_per_character_do_not_depend_on_the_tokens():
    """A text of two lines, its subwords given such probabilities that each character costs half a bit."""
    text = "the sea, the sun, the sea.\n" * 2
    vocabulary = learn_subwords([text], 270)
    targets = torch.tensor([vocabulary.encode(text)])
    lengths = torch.tensor([len(vocabulary.decode([n])) for n in targets[0].tolist()])
    p = 0.5 ** (0.5 * lengths)
    rest = ((1 - p) / (len(vocabulary) - 1)).log()
    logits = rest[:, None].repeat(1, len(vocabulary))
    logits[torch.arange(len(p)), targets[0]] = p.log()
    found = measure(logits[None], targets, 1, vocabulary)
    assert found["bits_per_character"].item() == pytest.approx(0.5, rel=1e-5)
    assert found["bits_per_token"].item() == pytest.approx(0.5 * len(text) / targets.numel(), rel=1e-5)


def test_half_a_character_is_none():
    vocabulary = learn_subwords(["aaa"], 256)
    targets = torch.tensor([vocabulary.encode("é")])
    assert targets.shape == (1, 2)
    assert measure(torch.zeros(1, 2, 256), targets, 1, vocabulary)["bits_per_character"] == torch.inf


@pytest.mark.parametrize("ignore", [None, 0])
def test_confusion_of_the_most_frequent(ignore: int | None):
    logits, targets = sample(ignore)
    matrix = measure(logits, targets, **({} if ignore is None else {"ignore": ignore}))["confusion_matrix"]
    assert isinstance(matrix, Matrix)
    asked = targets != ignore if ignore is not None else torch.ones_like(targets, dtype=torch.bool)
    true, guessed = targets[asked].numpy(), logits.argmax(-1)[asked].numpy()
    counts = np.bincount(true, minlength=V)
    top = np.argsort(-counts, kind="stable")[:19]
    whole = reference.confusion_matrix(true, guessed, labels=range(V))
    np.testing.assert_array_equal(matrix.values[:, :-1], whole[np.ix_(top, top)])
    np.testing.assert_array_equal(matrix.values.sum(1), counts[top])
    assert matrix.columns == (*matrix.rows, "others")
    assert matrix.rows == tuple({" ": "␣", "\n": "↵"}.get(VOCABULARY.tokens[n], VOCABULARY.tokens[n]) for n in top)


def test_confusion_shows_no_token_that_never_was():
    targets = torch.tensor([[3, 3, 5]])
    top, counts = [value.tolist() for value in _confusion(torch.nn.functional.one_hot(torch.tensor([[3, 7, 5]]), V), targets)]
    assert top == [3, 5]
    assert counts == [[1, 0, 1], [0, 1, 0]]


def _confusion(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    metric = TokenConfusion(V)
    metric.update(logits, targets)
    return metric.compute()


def test_preds_may_hold_more_than_logits():
    logits, targets = sample()
    plain, prepared = measure(logits, targets), measure(logits * 2, targets, prepare=lambda preds: preds / 2)
    assert prepared["perplexity"] == plain["perplexity"]
    assert torch.equal(prepared["confusion_matrix"].values, plain["confusion_matrix"].values)
