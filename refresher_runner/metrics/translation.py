"""What is measured of a translator. Importing this imports torchmetrics, so tasks do it inside `metrics`.

Of a batch of B pairs, N target tokens are predicted, each from the true ones before it, and B sentences are written, each from what was
written before. Preds are both: logits (N, V) and sentences (B, L) of tokens, each up to END; targets are the true tokens (N,) and
sentences (B, T), END and PAD included.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from torch import Tensor, nn
from torchmetrics import Metric as TorchMetric
from torchmetrics.utilities import dim_zero_cat

from refresher_runner.metrics.language import language_metrics
from refresher_runner.metrics.wrappers import Part
from refresher_runner.report import Text
from refresher_runner.task import Metric
from refresher_runner.vocabulary import END, Vocabulary

Pair = tuple[Tensor, Tensor]
TOKENS, SENTENCES = 0, 1  # of preds and of targets


def translation_metrics(vocabulary: Vocabulary) -> dict[str, Metric]:
    """Of sentences: the share that is exactly the target, BLEU (Papineni et al., 2002) and chrF (Popovic, 2015), from 0 to 100, with
    sacrebleu's signatures. Of tokens: what is measured of a language model.
    """
    whole = TranslationMeasures(vocabulary)

    def part(name: str) -> Metric:
        return Part(whole, lambda values: values[name])

    sentences = {name: part(name) for name in ("exact_match", "bleu", "chrf")}
    sentences["signatures"] = Part(whole, lambda values: Text(str(values["signatures"])))
    metrics: dict[str, Metric] = {name: Of(SENTENCES, metric) for name, metric in sentences.items()}
    return metrics | {name: Of(TOKENS, metric) for name, metric in language_metrics(vocabulary).items()}


class Of(nn.Module):
    """A metric of the tokens alone, or of the sentences."""

    def __init__(self, which: int, metric: Any):
        super().__init__()
        self.which, self.metric = which, metric

    def update(self, preds: Pair, targets: Pair) -> None:
        self.metric.update(preds[self.which], targets[self.which])

    def compute(self) -> Any:
        return self.metric.compute()


class TranslationMeasures(TorchMetric):
    """Every sentence of a split, and what sacrebleu says of them all, whatever rank they were written on.

    Sentences are kept as one row of tokens, each ended by END, which torchmetrics can gather from ranks of unequal numbers.
    """

    written: Any
    true: Any

    def __init__(self, vocabulary: Vocabulary):
        super().__init__()
        self.vocabulary = vocabulary
        for name in ("written", "true"):
            self.add_state(name, [], dist_reduce_fx="cat")
            getattr(self, name).append(torch.zeros(0, dtype=torch.int64))  # a rank without a sentence has as many of whole numbers

    def update(self, written: Tensor, true: Tensor) -> None:
        self.written.append(up_to_end(written))
        self.true.append(up_to_end(true))

    def compute(self) -> dict[str, Any]:
        written, true = (self._texts(dim_zero_cat(tokens)) for tokens in (self.written, self.true))
        bleu, chrf = BLEU(force=True), CHRF()  # force: no word about sentences that end in a full stop set apart
        found = {
            "exact_match": sum(a == b for a, b in zip(written, true, strict=True)) / max(len(true), 1),
            "bleu": bleu.corpus_score(written, [true]).score,
            "chrf": chrf.corpus_score(written, [true]).score,
        }
        signatures = f"BLEU `{bleu.get_signature()}`, chrF `{chrf.get_signature()}`"
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()} | {"signatures": signatures}

    def _texts(self, tokens: Tensor) -> list[str]:
        ends, numbers = ((tokens == END).nonzero().flatten() + 1).tolist(), tokens.tolist()
        return [self.vocabulary.decode(numbers[start:end]) for start, end in itertools.pairwise([0, *ends])]


def up_to_end(sentences: Tensor) -> Tensor:
    """Rows of tokens (B, L), one after another, each up to its first END; one without is given one."""
    rows = F.pad(sentences, (0, 1), value=END)
    ended = (rows == END).cumsum(-1)
    return rows[(ended == 0) | ((ended == 1) & (rows == END))]
