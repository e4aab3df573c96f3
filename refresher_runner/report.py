"""What a run can show. A report maps tags to these; loggers dispatch on the type, and nothing else does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Union

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Images:
    """pixels (N, C, H, W) in [0, 1], C = 1 or 3; one caption each, or none at all."""

    pixels: Tensor
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Matrix:
    """values (R, C) with names for rows and columns; counts for a confusion matrix (row = true, column = predicted)."""

    values: Tensor
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    row_title: str = "true"
    column_title: str = "predicted"


@dataclass(frozen=True)
class Curve:
    """Named lines over one x: x (N,), each line (N,); and values of x that are worth a name."""

    x: Tensor
    lines: Mapping[str, Tensor]
    x_title: str = "x"
    y_title: str = "y"
    x_scale: Literal["linear", "log"] = "linear"
    marks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PRCurve:
    """Precision against recall of each class, from counts at thresholds: four tensors (K, T), thresholds (T,) in [0, 1]."""

    classes: tuple[str, ...]
    thresholds: Tensor
    true_positives: Tensor
    false_positives: Tensor
    true_negatives: Tensor
    false_negatives: Tensor

    @property
    def precision(self) -> Tensor:
        """(K, T); 1 where nothing is predicted."""
        predicted = self.true_positives + self.false_positives
        return (self.true_positives / predicted.clamp(min=1)).where(predicted > 0, predicted.new_ones(()).double())

    @property
    def recall(self) -> Tensor:
        """(K, T); 0 where the class is absent."""
        return self.true_positives / (self.true_positives + self.false_negatives).clamp(min=1)


@dataclass(frozen=True)
class Text:
    """Markdown."""

    markdown: str


@dataclass(frozen=True)
class Embedding:
    """vectors (N, D) with a label each, and a picture each (N, C, H, W) in [0, 1] and a group each, to be coloured by, if given."""

    vectors: Tensor
    labels: tuple[str, ...]
    images: Tensor | None = None
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Histogram:
    """values of any shape, shown as a distribution."""

    values: Tensor


Loggable = Union[float, Images, Matrix, Curve, PRCurve, Text, Embedding, Histogram]
Report = Mapping[str, Loggable]


@dataclass(frozen=True)
class Prediction:
    """What `predict` shows for one input: a row of named values, and a report of pictures and the like to be written."""

    input: str
    values: Mapping[str, object]
    report: Report = field(default_factory=dict)
