"""What is measured of a model of language. Importing this imports torchmetrics, so tasks do it inside `metrics`.

Every metric takes logits (..., V) and targets (...,) of tokens in [0, V), or `IGNORE` where nothing is asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric as TorchMetric
from torchmetrics.utilities import dim_zero_cat

from refresher_runner.metrics.wrappers import Through
from refresher_runner.nn.tokens import token_names
from refresher_runner.report import Matrix
from refresher_runner.task import Metric
from refresher_runner.vocabulary import Vocabulary

IGNORE = -100  # as torch's cross_entropy has it
SHOWN = 19  # tokens in the confusion matrix: with "others" as many as can be written in


def language_metrics(
    vocabulary: Vocabulary, ignore: int = IGNORE, prepare: Callable[[Any], Tensor] = lambda logits: logits
) -> dict[str, Metric]:
    """Token accuracy, perplexity, bits per token and, where these are subwords, per character; and what the most frequent are taken for.

    `ignore` is a target that is not counted, PAD for instance; `prepare` makes logits of what a task gives as `preds`.
    """

    def matrix(found: Any) -> Matrix:
        top, counts = found
        names = token_names(vocabulary, top.tolist())
        return Matrix(counts.cpu(), names, (*names, "others"))

    numbers: dict[str, TorchMetric] = {
        "accuracy": TokenAccuracy(ignore),
        "perplexity": Perplexity(ignore),
        "bits_per_token": BitsPerToken(ignore),
    }
    if vocabulary.merges:
        numbers["bits_per_character"] = BitsPerCharacter(vocabulary, ignore)
    metrics: dict[str, Metric] = {name: Through(metric, prepare=prepare) for name, metric in numbers.items()}
    return metrics | {"confusion_matrix": Through(TokenConfusion(len(vocabulary), ignore), prepare=prepare, show=matrix)}


class TokenAccuracy(TorchMetric):
    """Share of the targets that are the likeliest token."""

    right: Tensor
    count: Tensor

    def __init__(self, ignore: int = IGNORE):
        super().__init__()
        self.ignore = ignore
        self.add_state("right", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        asked = targets != self.ignore
        self.right += ((logits.argmax(-1) == targets) & asked).sum()
        self.count += asked.sum()

    def compute(self) -> Tensor:
        return self.right / self.count


class Surprise(TorchMetric):
    """The mean of - log p(target), natural, over what it is shared among: tokens."""

    nll: Tensor
    count: Tensor

    def __init__(self, ignore: int = IGNORE):
        super().__init__()
        self.ignore = ignore
        self.add_state("nll", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        targets = targets.flatten()
        self.nll += F.cross_entropy(logits.flatten(0, -2), targets, ignore_index=self.ignore, reduction="sum")
        self.count += self.size(targets[targets != self.ignore])

    def size(self, targets: Tensor) -> Tensor | int:
        return len(targets)

    def compute(self) -> Tensor:
        return self.nll / self.count


class Perplexity(Surprise):
    """exp of the mean - log p: of how many equally likely tokens one would be as unsure."""

    def compute(self) -> Tensor:
        return super().compute().exp()


class BitsPerToken(Surprise):
    """The mean - log2 p."""

    def compute(self) -> Tensor:
        return super().compute() / math.log(2)


class BitsPerCharacter(BitsPerToken):
    """- log2 p of the whole text over its characters, so that vocabularies can be compared. Half of a character is none."""

    lengths: Tensor

    def __init__(self, vocabulary: Vocabulary, ignore: int = IGNORE):
        super().__init__(ignore)
        lengths = [len(vocabulary.decode([n]).replace("\N{REPLACEMENT CHARACTER}", "")) for n in range(len(vocabulary))]
        self.register_buffer("lengths", torch.tensor(lengths), persistent=False)

    def size(self, targets: Tensor) -> Tensor:
        return self.lengths[targets].sum()


class TokenConfusion(TorchMetric):
    """The K most frequent targets (K,), and how often each was taken for which of them, or in the last column for others: (K, K + 1)."""

    pairs: Any

    def __init__(self, vocab_size: int, ignore: int = IGNORE, shown: int = SHOWN):
        super().__init__()
        self.vocab_size, self.ignore, self.shown = vocab_size, ignore, shown
        self.add_state("pairs", [], dist_reduce_fx="cat")  # target * V + predicted, of every token

    def update(self, logits: Tensor, targets: Tensor) -> None:
        asked = targets != self.ignore
        self.pairs.append(targets[asked] * self.vocab_size + logits.argmax(-1)[asked])

    def compute(self) -> tuple[Tensor, Tensor]:
        pairs = dim_zero_cat(self.pairs)
        true, predicted = pairs // self.vocab_size, pairs % self.vocab_size
        frequency = true.bincount(minlength=self.vocab_size)
        k = min(self.shown, int(frequency.count_nonzero()))
        top = frequency.sort(dim=-1, descending=True, stable=True).indices[:k]
        place = torch.full((self.vocab_size,), k, device=pairs.device)  # of a token among the K; K: another
        place[top] = torch.arange(k, device=pairs.device)
        row, column = place[true], place[predicted]
        counts = (row * (k + 1) + column)[row < k].bincount(minlength=k * (k + 1)).view(k, k + 1)
        return top, counts
