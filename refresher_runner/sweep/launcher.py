"""A sweep's jobs as processes, one after another: what one does, down to a segmentation fault, costs the others nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refresher_runner.engine import signals
from refresher_runner.engine.rundir import RunDir
from refresher_runner.errors import Interrupted


@dataclass(frozen=True)
class Job:
    """One point of a sweep, and how it ended."""

    overrides: tuple[str, ...]
    exit_code: int  # negative: minus the signal that ended the process
    run: RunDir | None  # None when it ended before it had a folder

    @property
    def state(self) -> str:
        """The run's own word, whatever the exit code claims: only a run that says so is finished."""
        return str(self.run.read_status().get("state", "failed")) if self.run else "failed"

    @property
    def goal(self) -> float | None:
        """Best value of the goal's metric; None before the first evaluation."""
        return (self.run.read_status().get("goal") or {}).get("best") if self.run else None


def run_jobs(points: Sequence[Sequence[str]], flags: Sequence[str] = ()) -> list[Job]:
    """Each point's overrides as a job. Raises Interrupted when a signal stops the sweep."""
    jobs = []
    for number, overrides in enumerate(points, start=1):
        print(f"\njob {number} of {len(points)}: {' '.join(overrides)}", flush=True)
        jobs.append(run_job(overrides, flags))
        if signals.received():
            cure = f"refresher resume {jobs[-1].run} goes on with this job" if jobs[-1].run else ""
            raise Interrupted(signals.received(), f"the sweep was stopped in job {number} of {len(points)}", cure=cure)
    return jobs


def run_job(overrides: Sequence[str], flags: Sequence[str] = ()) -> Job:
    """`refresher train` in a process of its own, its output passed on. A signal to us is passed on too, and waited for."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder, "run")
        command = [sys.executable, "-m", "refresher_runner", "train", *flags, *overrides]
        dies_with_us: dict[str, Any] = {"preexec_fn": signals.stop_with_parent} if os.name == "posix" else {}
        process = subprocess.Popen(command, env={**os.environ, "REFRESHER_RUN_FILE": str(told)}, **dies_with_us)
        passed_on = False
        while True:
            try:
                code = process.wait(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                if signals.received() and not passed_on:
                    process.terminate()  # never SIGINT: the terminal has sent that to both, and a second one means `at once`
                    passed_on = True
        run = RunDir(os.path.relpath(told.read_text(encoding="utf-8").strip())) if told.is_file() else None
    return Job(tuple(overrides), code, run)
