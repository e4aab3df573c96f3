"""What every logger is: the trainer hands each the same report, and none can change training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from refresher_runner.report import Report

if TYPE_CHECKING:
    from refresher_runner.task import Task


class Logger(ABC):
    """Only `log` has to be written."""

    @abstractmethod
    def log(self, report: Report, step: int) -> None:
        """One point of a run: what it shows after `step` optimizer steps. May raise OSError."""

    def begin(self, task: Task, batch: Any, *, config: Mapping[str, Any], graph: bool) -> None:  # noqa: B027
        """Once, before the first step of a new run; not when it is resumed. `config` has dotted keys."""

    def finish(self, tested: Mapping[str, float]) -> None:  # noqa: B027
        """Once, when training and testing are over. `tested` is empty without a test."""

    def flush(self) -> None:  # noqa: B027
        """What was logged is to survive whatever comes: a checkpoint is about to be written."""

    def close(self) -> None:  # noqa: B027
        """The last call, also when training failed."""
