"""What word vectors are judged by: WordSim-353 and analogies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric as TorchMetric
from torchmetrics import SpearmanCorrCoef

from refresher_runner.report import Matrix
from refresher_runner.task import Metric

NOWHERE = "none of them"  # where a wrong answer comes from


class Likeness(TorchMetric):
    """Spearman's correlation of cosines with people's ratings, over the pairs whose words are known, and how many these are, in [0, 1]."""

    full_state_update = False
    asked: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.correlation = SpearmanCorrCoef()
        self.add_state("asked", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("answered", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, preds: Any, targets: Any) -> None:
        known = preds.likeness.isfinite()
        if known.any():
            self.correlation.update(preds.likeness[known], targets.ratings[known])
        self.asked += len(known)
        self.answered += known.sum()

    def compute(self) -> dict[str, Tensor]:
        return {"spearman": self.correlation.compute(), "coverage": self.answered / self.asked}


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

    def compute(self) -> dict[str, Any]:
        states = (self.answers, self.questions, self.asked)  # lists, or, of several ranks, joined already
        answers, questions, asked = (torch.cat([*state]).cpu() if isinstance(state, list) else state.cpu() for state in states)
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
        counts = torch.zeros(len(self.sections), len(self.sections) + 1)
        counts.index_put_((own, column), torch.ones(len(own)), accumulate=True)
        shares = {
            name: right[here].float().mean() for section, name in enumerate(self.sections) if (here := known & (asked == section)).any()
        }
        return {
            "accuracy": right[known].float().mean() if known.any() else torch.tensor(torch.nan),
            "coverage": known.float().mean(),
            "sections": shares,
            "confusion_matrix": Matrix(counts, self.sections, (*self.sections, NOWHERE), "asked of", "answered from"),
        }


def word_metrics(sections: tuple[str, ...]) -> dict[str, Metric]:
    """Of `Answers` to the questions of a CorpusBatch."""
    return {"wordsim": Likeness(), "analogies": Analogies(sections)}  # type: ignore[dict-item]
