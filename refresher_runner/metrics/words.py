"""What word vectors are judged by: WordSim-353 and analogies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric as TorchMetric
from torchmetrics.functional import spearman_corrcoef

from refresher_runner.metrics.wrappers import Through
from refresher_runner.report import Matrix
from refresher_runner.task import Metric

NOWHERE = "none of them"  # where a wrong answer comes from


class Likeness(TorchMetric):
    """Spearman's correlation of cosines with people's ratings, over the pairs whose words are known, and how many these are, in [0, 1]."""

    full_state_update = False
    likeness: list[Tensor]
    ratings: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("likeness", "ratings"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, preds: Any, targets: Any) -> None:
        self.likeness.append(preds.likeness)
        self.ratings.append(targets.ratings)

    def compute(self) -> dict[str, Tensor]:
        likeness, ratings = joined(self.likeness), joined(self.ratings)
        known = likeness.isfinite()
        return {"spearman": spearman_corrcoef(likeness[known], ratings[known]), "coverage": known.float().mean()}


class Analogies(TorchMetric):
    """Accuracy over the questions whose words are known, of all and of each section; and where wrong answers come from.

    The matrix has a row for each section that is asked of and a column for each that holds the word answered: the same where that holds
    it, else the first. Right answers are counted on the diagonal.
    """

    full_state_update = False
    answers: list[Tensor]
    questions: list[Tensor]
    asked: list[Tensor]

    def __init__(self, sections: tuple[str, ...]):
        super().__init__()
        self.sections = sections
        for name in ("answers", "questions", "asked"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, preds: Any, targets: Any) -> None:
        self.answers.append(preds.words)
        self.questions.append(targets.analogies)
        self.asked.append(targets.sections)

    def compute(self) -> dict[str, Tensor]:
        answers, questions, asked = (joined(state).cpu() for state in (self.answers, self.questions, self.asked))
        known = answers >= 0
        right = known & (answers == questions[:, 3])
        holds = torch.zeros(len(self.sections), 1 + int(max(answers.max(), questions.max())), dtype=torch.bool)
        for section in range(len(self.sections)):
            words = questions[asked == section].unique()
            holds[section, words[words >= 0]] = True
        held = holds[:, answers[known]]  # (sections, answered)
        first = torch.where(held.any(0), held.int().argmax(0), len(self.sections))
        own = asked[known]
        column = torch.where(held[own, torch.arange(len(own))], own, first)
        counts = torch.zeros(len(self.sections), len(self.sections) + 1, dtype=torch.long)
        counts.index_put_((own, column), torch.ones_like(own), accumulate=True)
        asked_of = torch.stack([right[known & (asked == section)].float().mean() for section in range(len(self.sections))])
        return {"accuracy": right[known].float().mean(), "coverage": known.float().mean(), "shares": asked_of, "counts": counts}

    def show(self, value: Any) -> dict[str, Any]:
        """What is reported of it: sections of which nothing is known are left out."""
        shares = {name: share for name, share in zip(self.sections, value["shares"], strict=True) if share.isfinite()}
        matrix = Matrix(value["counts"], self.sections, (*self.sections, NOWHERE), "asked of", "answered from")
        return {"accuracy": value["accuracy"], "coverage": value["coverage"], "sections": shares, "confusion_matrix": matrix}


def word_metrics(sections: tuple[str, ...]) -> dict[str, Metric]:
    """Of `Answers` to the questions of a CorpusBatch."""
    analogies = Analogies(sections)
    return {"wordsim": Likeness(), "analogies": Through(analogies, show=analogies.show)}


def joined(state: list[Tensor] | Tensor) -> Tensor:
    """A state that is a list of batches, or of several ranks, which are one already."""
    return torch.cat([*state]) if isinstance(state, list) else state
