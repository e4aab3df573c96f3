"""What a person sees of a run, and log.txt, which keeps all that was said with its time. Free of torch.

On a terminal training is one line that moves and evaluations stay above it; elsewhere every report is one plain line. When
nobody listens any more (a closed pipe, a lost terminal) training goes on in silence.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from refresher_runner.engine.logger import Logger
from refresher_runner.engine.tables import table
from refresher_runner.report import Report, Text

if TYPE_CHECKING:
    from rich.progress import Progress

    from refresher_runner.task import Task

MOST_PARTS = 4  # of the loss, in a line
MOST_CLASSES = 20  # with a row each after the test
SPEED = "test/speed/"


class Console(Logger):
    """`out` is None where nothing is to be shown; `goal` is the metric that decides which evaluation is the best."""

    def __init__(self, log: Path, out: TextIO | None, goal: str = ""):
        self._out, self._goal = out, goal
        self._log = open(log, "a", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115
        self._bar: Progress | None = None
        self._first: tuple[float, float] | None = None  # time and fraction of the first report of this sitting

    def log(self, report: Report, step: int) -> None:
        if "train/loss" in report:
            self._show_training(report, step)
        if "val/loss" in report:
            self.say(evaluation_line(report, step, self._goal))
        if isinstance(summary := report.get("summary"), Text):
            self.say(summary.markdown)

    def begin(self, task: Task, batch: Any, *, config: Mapping[str, Any], graph: bool) -> None:
        self._goal = task.goal.metric

    def finish(self, tested: Mapping[str, float]) -> None:
        if tested:
            self._stop_bar()
            self.say(tables_of_test(tested))

    def say(self, text: str) -> None:
        self._keep(text)
        self._print(text)

    def warn(self, text: str) -> None:
        self._keep(f"warning: {text}")
        with suppress(OSError, ValueError):  # stderr may be closed; log.txt has it
            print(f"warning: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self._stop_bar()
        self._log.close()

    def _show_training(self, report: Report, step: int) -> None:
        now, fraction = time.monotonic(), _number(report, "progress/fraction")
        self._first = self._first or (now, fraction)
        line = training_line(report, step, time_left(now - self._first[0], fraction - self._first[1], fraction))
        self._keep(line)
        if self._out is None or not _is_terminal(self._out):
            self._print(line)
            return
        try:
            self._bar = self._bar or _new_bar(self._out)
            self._bar.update(self._bar.task_ids[0], completed=fraction, description=_printable(line, self._out), refresh=True)
        except (OSError, ValueError):
            self._fall_silent()

    def _print(self, text: str) -> None:
        if self._out is None:
            return
        try:
            if self._bar is not None:
                self._bar.console.print(_printable(text, self._out), markup=False, highlight=False, soft_wrap=True)
            else:
                print(_printable(text, self._out), file=self._out, flush=True)
        except (OSError, ValueError):
            self._fall_silent()

    def _fall_silent(self) -> None:
        """Nobody listens. What is still in the stream's buffer must not become an error when the process ends."""
        out, self._out = self._out, None
        with suppress(OSError, ValueError):  # a stream without a descriptor has nothing to redirect
            assert out is not None
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), out.fileno())
        self._stop_bar()

    def _stop_bar(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            with suppress(OSError, ValueError):  # it clears its line, and the terminal may be gone
                bar.stop()

    def _keep(self, text: str) -> None:
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        with suppress(OSError, ValueError):  # a full disk, of which there is nowhere left to tell
            self._log.write("".join(f"{now}  {line}\n" for line in text.splitlines()))


def training_line(report: Report, step: int, left: str) -> str:
    """`step 50  epoch 0.25  loss 1.234  lr 0.001  5321 samples/s  1m02s left`."""
    losses = [(tag.partition("/")[2], value) for tag, value in report.items() if tag.startswith("train/") and isinstance(value, float)]
    words = [f"step {step:>6}", f"epoch {_number(report, 'progress/epoch'):.2f}"]
    words += [f"{name} {value:.4g}" for name, value in losses[: 1 + MOST_PARTS]]
    words += [f"lr {_number(report, 'optim/lr'):.3g}", f"{_number(report, 'speed/samples_per_second'):.0f} samples/s"]
    return "  ".join([*words, left] if left else words)


def evaluation_line(report: Report, step: int, goal: str) -> str:
    """`val  step 400  accuracy 0.9712 (best)  loss 0.0921 ...`, the goal first; what is measured for each class is left out."""
    values = {
        tag[4:]: value for tag, value in report.items() if tag.startswith("val/") and isinstance(value, float) and tag.count("/") == 1
    }
    best = values.pop("best", None)
    words = [f"{name} {values[name]:.4g}" for name in dict.fromkeys([goal, "loss", *values]) if name in values]
    if goal in values and best is not None:
        words[0] += " (best)" if values[goal] == best else f" (best {best:.4g})"
    return "  ".join(["val", f"step {step:>6}", *words])


def tables_of_test(tested: Mapping[str, float]) -> str:
    """What was measured on the test split, and for each class if they are few."""
    scalars = {tag[5:]: value for tag, value in tested.items() if tag.count("/") == 1 or tag.startswith(SPEED)}
    text = table(["test", "value"], [[name, f"{value:.4g}"] for name, value in scalars.items()], right=["value"])
    classes: dict[str, dict[str, float]] = {}
    for tag, value in tested.items():
        if tag[5:] not in scalars:
            _, metric, name = tag.split("/", 2)
            classes.setdefault(name, {})[metric] = value
    if not 0 < len(classes) <= MOST_CLASSES:
        return text
    metrics = list(dict.fromkeys(metric for values in classes.values() for metric in values))
    rows = [[name, *(f"{values[m]:.4g}" if m in values else "" for m in metrics)] for name, values in classes.items()]
    return f"{text}\n\n{table(['class', *metrics], rows, right=metrics)}"


def time_left(seconds: float, done: float, fraction: float) -> str:
    """`1m02s left`, when a share `done` of the run took so many seconds and `fraction` of it is over; empty while unknown."""
    if done <= 0:
        return ""
    left = round(seconds / done * (1 - fraction))
    minutes, hours, days = left // 60, left // 3600, left // 86400
    if days:
        return f"{days}d{hours % 24:02d}h left"
    if hours:
        return f"{hours}h{minutes % 60:02d}m left"
    return f"{minutes}m{left % 60:02d}s left" if minutes else f"{left}s left"


def _number(report: Report, tag: str) -> float:
    value = report[tag]
    assert isinstance(value, (int, float))
    return value


def _is_terminal(out: TextIO) -> bool:
    return not out.closed and out.isatty()


def _printable(text: str, out: TextIO) -> str:
    """What the stream's encoding lacks is spelled out."""
    encoding = out.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _new_bar(out: TextIO) -> Progress:
    from rich.console import Console as Terminal
    from rich.progress import Progress, TextColumn
    from rich.table import Column

    percent, line = Column(min_width=4, no_wrap=True), Column(no_wrap=True, overflow="ellipsis")
    columns = (
        TextColumn("{task.percentage:3.0f}%", table_column=percent),
        TextColumn("{task.description}", markup=False, table_column=line),
    )
    bar = Progress(*columns, console=Terminal(file=out), transient=True, auto_refresh=False)
    bar.add_task("", total=1.0)
    bar.start()
    return bar
