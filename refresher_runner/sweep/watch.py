"""How a sweep stands, while it runs: a live table on a terminal, a line for each job that ends elsewhere; and what failed, at the end."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from refresher_runner.console import print_table
from refresher_runner.runs import show
from refresher_runner.sweep.folder import DONE, Job

if TYPE_CHECKING:
    from rich.live import Live

REDRAWN = 0.5  # seconds between two looks at the jobs that run


class Watch:
    """Told of every job that ends, and asked often to look at those that run. `total` is None where nobody knows it yet."""

    def __init__(self, total: int | None, slots: int, done: Sequence[Job] = ()):
        self.total, self.slots = total, slots
        self.states = Counter(job.state for job in done)
        self.best: tuple[float, str] | None = None
        self.seconds: list[float] = []  # what jobs of this launch took
        self._drawn = 0.0
        self._live = _live() if sys.stdout.isatty() else None
        for job in done:
            self._judge(job)

    def __enter__(self) -> Watch:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def ended(self, job: Job) -> None:
        """One line on a job that has ended."""
        state, sitting = job.state, job.sittings[-1]
        took = (datetime.fromisoformat(sitting["ended"]) - datetime.fromisoformat(sitting["started"])).total_seconds()
        self.states[state] += 1
        self.seconds.append(took)
        self._judge(job)
        of = f" of {self.total}" if self.total else ""
        line = f"{self.states.total()}{of} {state:<8} {_goal(job):<20} {took:6.1f} s  {_name(job)}"
        left = f"; about {_clock(self.left([]))} left" if len(self.seconds) == 1 and self.left([]) else ""  # a table has it always
        self._say(line + left + (f"\n    {job.problem}" if job.problem else ""))

    def look(self, running: Sequence[Job]) -> None:
        """Redraw what runs, every now and then."""
        if self._live is None or time.monotonic() - self._drawn < REDRAWN:
            return
        self._drawn = time.monotonic()
        self._live.update(self._table(running), refresh=True)

    def left(self, running: Sequence[float]) -> float:
        """Seconds to the end, as the mean of the jobs that ended tells, where `running` jobs began so many seconds ago; 0: nobody knows."""
        if not self.total or not self.seconds:
            return 0.0
        mean = sum(self.seconds) / len(self.seconds)
        waiting = self.total - self.states.total() - len(running)
        return (waiting * mean + sum(max(0.0, mean - elapsed) for elapsed in running)) / self.slots

    def _judge(self, job: Job) -> None:
        goal = job.run.read_status().get("goal") or {}
        value = goal.get("best")
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            return
        better = self.best is None or (value < self.best[0] if goal.get("mode") == "min" else value > self.best[0])
        if better:
            self.best = value, f"{goal.get('metric')} {show(value)} ({_name(job)})"

    def _say(self, line: str) -> None:
        if self._live:
            self._live.console.print(line, markup=False, highlight=False)
        else:
            print(line, flush=True)

    def _table(self, running: Sequence[Job]) -> Any:
        from rich.box import SIMPLE_HEAD
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for column in ("running", "step", "goal", "seconds"):
            table.add_column(column)
        elapsed = []
        for job in running:
            began = datetime.fromisoformat(job.sittings[-1]["started"])
            elapsed.append((datetime.now().astimezone() - began).total_seconds())
            step = job.run.read_status().get("step", 0)
            table.add_row(Text(_name(job)), str(step), _goal(job), f"{elapsed[-1]:.0f}")
        counts = [f"{len(running)} running", *(f"{count} {state}" for state, count in self.states.items())]
        if self.total:
            counts.append(f"{self.total - self.states.total() - len(running)} to do")
        words = [", ".join(counts), f"best {self.best[1]}" if self.best else ""]
        left = self.left(elapsed)
        words.append(f"about {_clock(left)} left" if left else "")
        return Group(table, Text("; ".join(word for word in words if word)))


def print_failures(jobs: Sequence[Job]) -> None:
    """A row for every job that is not done: what it was, how it ended, and where to read on."""
    rows = [[str(job.number), _name(job), job.state, job.problem, str(_log(job))] for job in jobs if job.state not in DONE]
    if rows:
        print_table(["job", "overrides", "state", "problem", "log of failure"], rows)


def _live() -> Live:
    from rich.live import Live

    return Live(auto_refresh=False, transient=True)


def _log(job: Job) -> Any:
    """Where to read on: the run's log, where its traceback is, or else what its process printed."""
    return job.run.log if job.run.log.is_file() and job.run.read_status().get("state") == "failed" else job.output


def _name(job: Job) -> str:
    return " ".join(job.varies or job.overrides)


def _goal(job: Job) -> str:
    goal = job.run.read_status().get("goal") or {}
    return f"{goal['metric']} {show(goal.get('best'))}" if goal else ""


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
