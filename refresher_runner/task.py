"""The contract between a paper and the pipeline.

A task is a paper's network together with its objective. It knows nothing of trainers, loggers, configurations or devices; the
trainer knows nothing of papers. `step` is the sentence of the abstract, in code.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from refresher_runner.errors import UsageError
from refresher_runner.report import Loggable, Prediction, Report


@dataclass(frozen=True)
class Output:
    """What one step gives: the loss to descend, and what metrics compare."""

    loss: Tensor  # scalar, mean over the batch
    parts: Mapping[str, Tensor] = field(default_factory=dict)  # named scalars worth a curve, detached
    preds: Any = None  # what metrics compare with targets; made only when not self.training
    targets: Any = None


@dataclass(frozen=True)
class Goal:
    """The metric that decides best.pt, early stopping and what a sweep optimises."""

    metric: str = "loss"
    mode: Literal["min", "max"] = "min"

    def better(self, value: float, best: float | None) -> bool:
        """NaN and infinities are never better, and anything finite is better than nothing."""
        if not math.isfinite(value):
            return False
        return best is None or (value < best if self.mode == "min" else value > best)


class Metric(Protocol):
    """Torchmetrics objects fit as they are. Of several ranks each updates its own; `compute` gives, on each, the value of them all."""

    def update(self, preds: Any, targets: Any, /) -> None: ...
    def compute(self) -> Loggable | Tensor | Mapping[str, Loggable | Tensor]: ...


class Judge(Protocol):
    """Another network's opinion of pictures that a task has drawn: images (B, C, H, W) -> features (B, D), logits (B, K)."""

    name: str

    def __call__(self, images: Tensor, /) -> tuple[Tensor, Tensor]: ...


class Reader(Protocol):
    """What pictures show, by rule: pixels (B, C, H, W) in [0, 1] -> the value of each aspect that a CaptionSpec names, (B, A) int64, -1 for
    one that is not there. What can be told in several ways is told as in `asked` (B, A), as far as it is true.
    """

    def __call__(self, pixels: Tensor, asked: Tensor, /) -> Tensor: ...


@runtime_checkable
class Scorer(Protocol):
    """Who puts pictures and captions into one space, each of length 1: images (B, C, S, S) and captions (B, T) -> (B, D)."""

    def encode_image(self, images: Tensor, /) -> Tensor: ...
    def encode_text(self, captions: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Borrowed:
    """A part of a task that begins with the weights of another run: the option that names the run, the run, the part, what the names of its
    weights begin with there, and whether it reads words, which must then be the same.
    """

    key: str
    run: str
    part: nn.Module
    prefix: str = ""
    words: bool = False


class Task(nn.Module, ABC):
    """A network and its objective. Only `step` must be written; the rest is what a paper can be seen and used by."""

    goal = Goal()
    partial: ClassVar[bool] = False  # whether a step may leave some parameters without a gradient, as where phases follow one another
    draws: ClassVar[bool] = False  # whether it draws pictures that a judge can have an opinion of
    judge: Judge | None = None  # given by who runs such a task; it is no part of the task's state
    reader: Reader | None = None  # likewise
    scorer: Scorer | None = None  # likewise

    @abstractmethod
    def step(self, batch: Any) -> Output:
        """The objective on one batch."""

    def forward(self, batch: Any) -> Output:
        """`step`, under the name that torch's wrappers call."""
        return self.step(batch)

    def metrics(self) -> dict[str, Metric]:
        """Fresh for every evaluation, so there is nothing to reset."""
        return {}

    def observe(self, batch: Any) -> Report:
        """What is worth seeing of one batch, once per evaluation: samples, boxes, attention, mistakes."""
        return {}

    def predict(self, inputs: Sequence[str]) -> Iterable[Prediction]:
        """The `predict` verb: paths, words, prompts or ids. Raises UsageError or DataError, naming the input."""
        raise UsageError(f"{type(self).__name__} has nothing to predict from", cure="use `refresher test RUN` instead")

    def borrowed(self) -> Sequence[Borrowed]:
        """Parts that a new run takes from others."""
        return ()

    def class_layers(self) -> Sequence[nn.Module]:
        """Those whose rows are the classes, said or told, if any: new under `init_from` where classes are others, AdamW's under Muon."""
        return ()

    def export(self, file: Path) -> None:
        """What was learnt, in a format of the field that other programs read. Raises UsageError, and DataError naming the file."""
        raise UsageError(f"{type(self).__name__} has no format to be exported in", cure="its weights are in the run's checkpoints")

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Decay matrices and kernels, spare biases and norms."""
        params = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in params if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
        ]
        return [g for g in groups if g["params"]]
