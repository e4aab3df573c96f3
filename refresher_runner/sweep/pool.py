"""Jobs in processes, so many at a time, each on a slot of its own: what one does, down to a crash, costs the others nothing."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from refresher_runner.engine import signals
from refresher_runner.engine.options import SweepOptions
from refresher_runner.errors import Interrupted
from refresher_runner.sweep.folder import Job
from refresher_runner.sweep.processes import Processes
from refresher_runner.sweep.server import GRACE
from refresher_runner.sweep.watch import Watch


@dataclass(frozen=True)
class Slot:
    """A job's share of the machine: GPUs of its own, or else CPU threads."""

    environment: dict[str, str]
    threads: int


def cores() -> int:
    """Of the CPU, as far as this process may use them."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def slots(options: SweepOptions, gpus: Sequence[str], jobs: int | None = None, devices: int = 1) -> list[Slot]:
    """As many slots as jobs run at a time: `devices` of the GPUs each, in turn, and an equal share of the CPU's threads."""
    places = [",".join(gpus[i : i + devices]) for i in range(0, len(gpus) - devices + 1, devices)]
    wished = (len(places) or max(1, cores() // 2)) if options.jobs == "auto" else options.jobs
    count = max(1, min(wished, jobs if jobs is not None else wished))
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, cores() // count))
    return [Slot({"CUDA_VISIBLE_DEVICES": places[i % len(places)]} if places else {}, threads) for i in range(count)]


@dataclass
class _Running:
    """A job in a process."""

    job: Job
    slot: Slot
    begun: float
    verdict: str = ""  # the state that whoever stopped it says it is in
    problem: str = ""
    killed_at: float = float("inf")


@dataclass
class Pool:
    """`submit` jobs, and take the `next_done`, whichever it is; `watch` is told of it. Leaving the pool stops whatever still runs."""

    processes: Processes
    slots: list[Slot]
    time_limit: float | None = None  # seconds
    watch: Watch | None = None
    _queue: deque[Job] = field(default_factory=deque)
    _idle: list[Slot] = field(default_factory=list)
    _running: dict[int, _Running] = field(default_factory=dict)
    _ended: deque[Job] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._idle = list(self.slots)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_all()

    @property
    def free(self) -> int:
        """How many jobs would begin at once."""
        return max(0, len(self._idle) - len(self._queue))

    @property
    def busy(self) -> bool:
        """Whether there is anything to wait for."""
        return bool(self._queue or self._running or self._ended)

    @property
    def running(self) -> list[Job]:
        return [running.job for running in self._running.values()]

    def submit(self, job: Job) -> None:
        """It begins as soon as a slot is free. A job that has begun before goes on from its checkpoint."""
        self._queue.append(job)
        self._fill()

    def stop(self, job: Job, state: str) -> None:
        """Ask a running job to save and leave; it ends in this state, unless it has finished."""
        for number, running in self._running.items():
            if running.job.run.path == job.run.path and not running.verdict:
                self._ask(number, state)

    def next_done(self, timeout: float = float("inf")) -> Job | None:
        """The next job that has ended, in whatever way: its state says which. None after `timeout` seconds, or where none is left.

        Raises Interrupted when a signal asks the sweep to stop, after every job has saved and left.
        """
        end = time.monotonic() + timeout
        while not self._ended and (self._queue or self._running):
            if signum := signals.received():
                self._stop_all()
                raise Interrupted(signum, "the sweep was stopped")
            self._fill()
            self._wait()
            if time.monotonic() >= end:
                break
        return self._ended.popleft() if self._ended else None

    def _fill(self) -> None:
        for _ in range(len(self._queue)):
            if not self._idle:
                return
            job = self._queue.popleft()
            if job.run.is_locked():  # what a launcher before us has left behind, and still saves
                self._queue.append(job)
                continue
            slot = self._idle.pop(0)
            job.begin(threads=slot.threads, **slot.environment)
            command = ["resume", str(job.run)]
            number = self.processes.start(
                "refresher_runner", command, output=job.output, environment=slot.environment, threads=slot.threads
            )
            self._running[number] = _Running(job, slot, time.monotonic())

    def _wait(self) -> None:
        """A moment, or until a process ends; whoever is late is told so, and then killed."""
        for number, code in self.processes.ended(0.1):
            running = self._running.pop(number)
            self._idle.append(running.slot)
            _close(running, code)
            self._ended.append(running.job)
            if self.watch:
                self.watch.ended(running.job)
        now = time.monotonic()
        for number, running in self._running.items():
            if now > running.killed_at:
                self.processes.signal(number, signal.SIGKILL)
                running.killed_at = float("inf")
            elif self.time_limit and not running.verdict and now - running.begun > self.time_limit:
                running.problem = f"took longer than sweep.time_limit={self.time_limit:g} seconds"
                self._ask(number, "failed")
        if self.watch:
            self.watch.look(self.running)

    def _ask(self, number: int, verdict: str, grace: float = GRACE) -> None:
        self.processes.signal(number, signal.SIGTERM)
        self._running[number].verdict, self._running[number].killed_at = verdict, time.monotonic() + grace

    def _stop_all(self) -> None:
        """However long their steps take: whoever cannot wait sends SIGINT again."""
        self._queue.clear()
        for number, running in self._running.items():
            if not running.verdict:
                self._ask(number, "interrupted", float("inf"))
        while self._running:
            self._wait()


def _close(running: _Running, code: int) -> None:
    """How a job ended, into its record. The run's own word counts, whatever the exit code claims: only what says so is finished."""
    job, status = running.job, running.job.run.read_status()
    if status.get("state") == "finished":
        job.end("finished", exit_code=code)
    elif running.verdict:
        job.end(running.verdict, exit_code=code, **({"problem": running.problem} if running.problem else {}))
    else:
        job.end("failed", exit_code=code, problem=_problem(job, status.get("error"), code))


def _problem(job: Job, error: object, code: int) -> str:
    """Why a process ended, in a line."""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"ended by {name}" + (", as when memory runs out" if code == -signal.SIGKILL else "")
    if error:
        return str(error)
    lines = _last_lines(job.output)
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return said[-1] if said else f"exit code {code}, and the run did not finish"


def _last_lines(file: Path, size: int = 4096) -> list[str]:
    try:
        with open(file, "rb") as said:
            said.seek(max(0, said.seek(0, os.SEEK_END) - size))
            return said.read().decode(errors="replace").splitlines()
    except OSError:
        return []
