"""What is measured of translations, against counts by hand, sacrebleu's own functions, and scores known from papers' definitions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from refresher_runner.metrics.translation import translation_metrics, up_to_end
from refresher_runner.report import Matrix, Text
from refresher_runner.vocabulary import BEGIN, END, PAD, SPECIAL, Vocabulary, characters

LETTERS = characters("abcdefghijklmnopqrstuvwxyz .,", SPECIAL)
TRUE = ["the cat sat on the mat", "a dog is not a cat", "there is a red house near the river", "we go home", "no one was there"]
WRITTEN = ["the cat sat on a mat", "a dog is not a cat", "there is the house by a red river", "we went", "no no no no"]


def rows(sentences: Sequence[str], vocabulary: Vocabulary = LETTERS) -> Tensor:
    """As a decoder leaves them: END, then PAD."""
    numbers = [torch.tensor([*vocabulary.encode(sentence), END]) for sentence in sentences]
    return nn.utils.rnn.pad_sequence(numbers, batch_first=True, padding_value=PAD)


def tokens(count: int) -> tuple[Tensor, Tensor]:
    """Logits (N, V) and what is true (N,)."""
    true = torch.arange(count) % len(LETTERS)
    return torch.randn(count, len(LETTERS)), true


def measure(written: Sequence[str], true: Sequence[str], batch: int = 2) -> dict[str, Any]:
    metrics, (logits, labels) = translation_metrics(LETTERS), tokens(len(true))
    for start in range(0, len(true), batch):
        part = slice(start, start + batch)
        for metric in metrics.values():
            metric.update((logits[part], rows(written[part])), (labels[part], rows(true[part])))
    return {name: metric.compute() for name, metric in metrics.items()}


def n_grams(sequence: Sequence[Any], n: int) -> Counter[tuple[Any, ...]]:
    return Counter(tuple(sequence[i : i + n]) for i in range(len(sequence) - n + 1))


def bleu(written: Sequence[str], true: Sequence[str]) -> float:
    """Papineni et al., section 2: the geometric mean of clipped precisions of 1 to 4 words, times the brevity penalty."""
    logs = 0.0
    for n in (1, 2, 3, 4):
        pairs = [(n_grams(a.split(), n), n_grams(b.split(), n)) for a, b in zip(written, true, strict=True)]
        logs += math.log(sum((a & b).total() for a, b in pairs) / sum(a.total() for a, _ in pairs))
    lengths = [sum(len(sentence.split()) for sentence in side) for side in (written, true)]
    return 100 * math.exp(logs / 4 + min(0.0, 1 - lengths[1] / lengths[0]))


def chrf(written: Sequence[str], true: Sequence[str]) -> float:
    """Popovic, section 2, with beta = 2 and 1 to 6 characters, spaces left out: precision and recall are means over the lengths."""
    precision, recall = 0.0, 0.0
    for n in range(1, 7):
        pairs = [(n_grams(a.replace(" ", ""), n), n_grams(b.replace(" ", ""), n)) for a, b in zip(written, true, strict=True)]
        both = sum((a & b).total() for a, b in pairs)
        precision += both / sum(a.total() for a, _ in pairs) / 6
        recall += both / sum(b.total() for _, b in pairs) / 6
    return 100 * 5 * precision * recall / (4 * precision + recall)


def test_by_hand():
    found = measure(WRITTEN, TRUE)
    assert found["exact_match"].item() == pytest.approx(1 / 5)
    assert found["bleu"].item() == pytest.approx(bleu(WRITTEN, TRUE))
    assert found["chrf"].item() == pytest.approx(chrf(WRITTEN, TRUE))


def test_two_sentences_counted_with_a_pencil():
    """Words: 8 of 10 right; pairs: 5 of 8; threes: 3 of 6; fours: 2 of 4. As long as the truth."""
    found = measure(["a b c d e f", "a b x y"], ["a b c d e g", "a b c x"])
    assert found["bleu"].item() == pytest.approx(100 * (8 / 10 * 5 / 8 * 3 / 6 * 2 / 4) ** 0.25)


def test_what_is_short_is_punished():
    whole, most = measure(TRUE, TRUE), measure(["the cat sat", "on it we sit"], ["the cat sat on the mat", "on it we sit all day"])
    assert most["bleu"].item() == pytest.approx(100 * math.exp(1 - 12 / 7))
    assert (whole["exact_match"], whole["bleu"], whole["chrf"]) == (1, pytest.approx(100), pytest.approx(100))


def test_are_sacrebleus_own():
    """Punctuation and all."""
    true = ["well, it is. so be it.", "yes.", "now, then, go."]
    written = ["well it is so. be it .", "yes.", "now, then. go"]
    found = measure(written, true)
    assert found["bleu"].item() == pytest.approx(sacrebleu.corpus_bleu(written, [true]).score)
    assert found["chrf"].item() == pytest.approx(sacrebleu.corpus_chrf(written, [true]).score)


def test_signatures_are_kept():
    found = measure(WRITTEN, TRUE)["signatures"]
    assert isinstance(found, Text)
    version = sacrebleu.__version__
    assert found.markdown == (
        f"BLEU `nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}`, "
        f"chrF `nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version}`"
    )


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_batches_change_nothing(batch: int):
    one, other = measure(WRITTEN, TRUE), measure(WRITTEN, TRUE, batch)
    assert [one[name] for name in ("exact_match", "bleu", "chrf")] == [other[name] for name in ("exact_match", "bleu", "chrf")]


def test_a_sentence_is_what_comes_before_its_first_end():
    a, b, c = LETTERS.encode("abc")
    written = torch.tensor([[a, b, END, PAD], [END, a, b, END], [a, b, c, a], [PAD, a, END, PAD]])
    expected = [a, b, END, END, a, b, c, a, END, PAD, a, END]
    assert up_to_end(written).tolist() == expected
    metrics = translation_metrics(LETTERS)
    true = torch.tensor([[a, b, END, PAD, PAD], [END, PAD, PAD, PAD, PAD], [a, b, c, a, END], [a, END, PAD, PAD, PAD]])
    for metric in metrics.values():
        metric.update((tokens(4)[0], written), (tokens(4)[1], true))
    assert metrics["exact_match"].compute() == 1  # PAD has no letters


def test_nothing_written_is_nothing_right():
    found = measure(["", ""], ["abc", "the cat sat on the mat"])
    assert (found["exact_match"], found["bleu"], found["chrf"]) == (0, 0, 0)


def test_subwords_are_compared_as_text():
    """Two ways to cut the same word."""
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel
    from tokenizers.models import BPE

    pieces = (*SPECIAL, "o", "n", "e", "on", "ne", "one")
    tokenizer = Tokenizer(BPE({piece: i for i, piece in enumerate(pieces)}, [("o", "n"), ("n", "e"), ("on", "e")]))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.decoder = ByteLevel()
    vocabulary = Vocabulary(pieces, tokenizer.to_str())
    metric = translation_metrics(vocabulary)["exact_match"]
    metric.update((torch.zeros(0), torch.tensor([[4, 8, END], [7, 5, END]])), (torch.zeros(0), torch.tensor([[9, END], [9, END]])))
    assert metric.compute() == 0.5


def test_tokens_are_measured_as_a_language_models():
    torch.manual_seed(0)
    found = measure(WRITTEN, TRUE)
    torch.manual_seed(0)
    logits, labels = tokens(len(TRUE))
    assert found["accuracy"].item() == pytest.approx((logits.argmax(-1) == labels).float().mean().item())
    assert found["perplexity"].item() == pytest.approx(nn.functional.cross_entropy(logits, labels).exp().item(), rel=1e-5)
    assert isinstance(found["confusion_matrix"], Matrix)
    assert found["confusion_matrix"].values.sum() == len(TRUE)
    assert BEGIN not in labels[2:]


def _rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    share = slice(rank, None, 2) if rank < 2 else slice(0, 0)  # the last has nothing to look at
    metrics = translation_metrics(LETTERS)
    for written, true in zip(WRITTEN[share], TRUE[share], strict=True):
        for name in ("exact_match", "bleu", "chrf"):
            metrics[name].update((torch.zeros(0), rows([written])), (torch.zeros(0), rows([true])))
    found = torch.stack([metrics[name].compute() for name in ("exact_match", "bleu", "chrf")])
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_three_ranks_see_the_whole(tmp_path: Path):
    """With unequal numbers of sentences, and none at all."""
    mp.spawn(_rank, (3, str(tmp_path)), nprocs=3)
    found = measure(WRITTEN, TRUE)
    whole = torch.stack([found[name] for name in ("exact_match", "bleu", "chrf")])
    for rank in range(3):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt", weights_only=True), whole)
