"""All loggers of a run as one, which the trainer knows. Free of torch until a run begins."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from refresher_runner.engine import metrics_file
from refresher_runner.engine.console import Console
from refresher_runner.engine.figures import Figures, Gallery
from refresher_runner.engine.logger import Logger
from refresher_runner.engine.metrics_file import CSV, JSONLines
from refresher_runner.engine.rundir import RunDir
from refresher_runner.report import Report, Text

if TYPE_CHECKING:
    from refresher_runner.task import Task


class Loggers:
    """Tells each logger. One that cannot write is warned of once, and never stops training; any other error is a mistake of ours."""

    def __init__(self, loggers: Sequence[Logger] = (), console: Console | None = None):
        self._loggers, self._console = loggers, console
        self._ill: set[Logger] = set()

    def log(self, report: Report, step: int) -> None:
        self._each(lambda logger: logger.log(report, step))

    def flush(self) -> None:
        """What was logged survives whatever comes; called before each checkpoint."""
        self._each(lambda logger: logger.flush())

    def close(self) -> None:
        self._each(lambda logger: logger.close())

    def say(self, text: str) -> None:
        if self._console:
            self._console.say(text)

    def warn(self, text: str) -> None:
        if self._console:
            self._console.warn(text)

    def begin(self, task: Task, batch: Any, *, stored: str, config: Mapping[str, Any], graph: bool) -> None:
        """A new run starts: its configuration, as text `stored` and here with dotted keys, and its model are the first report."""
        if not self._loggers:
            return  # a rank that only computes
        from refresher_runner.engine.summary import summarise

        self._each(lambda logger: logger.begin(task, batch, config=config, graph=graph))
        self.log({"config": Text(f"```yaml\n{stored.strip()}\n```"), "summary": summarise(task, batch)}, 0)

    def finish(self, tested: Mapping[str, float]) -> None:
        """The run is over. `tested` holds the numbers of the test, if there was one."""
        self._each(lambda logger: logger.finish(tested))

    def _each(self, tell: Callable[[Logger], None]) -> None:
        for logger in self._loggers:
            try:
                tell(logger)
            except OSError as error:
                if logger not in self._ill:
                    self._ill.add(logger)
                    self.warn(f"{type(logger).__name__} cannot write ({error.strerror or error}); training goes on")


def open_loggers(run: RunDir, names: Sequence[str], *, title: str) -> Loggers:
    """`names` as in `trainer.loggers`; metrics.jsonl, log.txt and figures/ are always written."""
    goal = run.read_status().get("goal", {})
    console = Console(run.log, sys.stdout if "console" in names else None, goal.get("metric", ""))
    gallery = Gallery()
    loggers: list[Logger] = [JSONLines(run.metrics)]  # the others may read it
    if "csv" in names:
        loggers.append(CSV(run.csv, run.metrics))
    if "tensorboard" in names:
        from refresher_runner.engine.tensorboard import TensorBoard

        loggers.append(TensorBoard(run.tensorboard, gallery, console.warn))
    loggers += [Figures(run.figures, gallery), console]
    console.say(f"{title}: {run}")
    return Loggers(loggers, console)


def rewind(run: RunDir, end: int, config: Mapping[str, Any]) -> None:
    """Make every record of a run end where metrics.jsonl had `end` bytes; figures are of the latest evaluation seen.

    `config` is what the run goes on with, with dotted keys.
    """
    metrics_file.rewind(run.metrics, end)
    run.csv.unlink(missing_ok=True)  # written anew when it is opened
    if run.tensorboard.is_dir():
        from refresher_runner.engine.tensorboard import rebuild

        rebuild(run.tensorboard, run.metrics, config)
