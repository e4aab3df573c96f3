"""Hydra's own engines around our jobs: launchers that start them elsewhere, and sweepers that choose the points.

    refresher train -m hydra/launcher=submitit_slurm ...     our points, started by Slurm
    refresher train -m hydra/sweeper=ax ...                  its points, launched by us

Wherever a job is started, it is the same: its folder in the sweep, found by the key of its configuration, in a process of its own.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from refresher_runner.compose import CONFIG, explained, loader, parse
from refresher_runner.errors import Interrupted, RefresherError, TrainingError
from refresher_runner.schema import Time
from refresher_runner.sweep.folder import DONE, Job, SweepDir
from refresher_runner.sweep.launching import create, engines, modules, pool_for
from refresher_runner.sweep.points import of_sweep, options_of, point_of, searching
from refresher_runner.sweep.pool import Pool, Slot, cores
from refresher_runner.sweep.preflight import preflight
from refresher_runner.sweep.processes import Processes, Spawned


class Work:
    """What Hydra calls a task: the job of a point, run to its end by whoever calls, be it on another machine."""

    def __init__(
        self, folder: SweepDir, config_dir: Path | None, everywhere: Sequence[str], time_limit: Time | None, pool: Pool | None = None
    ):
        self.folder = str(folder.path.resolve())
        self._pool = pool
        self.config_dir, self.everywhere, self.time_limit = config_dir, list(everywhere), time_limit.seconds if time_limit else None

    def job(self, overrides: Sequence[str]) -> Job:
        """The folder of the point that these overrides make."""
        point = point_of([*self.everywhere, *overrides], overrides, self.config_dir)
        return SweepDir(self.folder).add(point)

    def __call__(self, config: DictConfig) -> float:
        """The job's goal; not a number where it failed, which its folder explains."""
        job = self.job(HydraConfig.get().overrides.task)
        if job.state not in DONE:
            with Pool(Spawned(), [Slot({}, _threads())], self.time_limit) as pool:
                pool.submit(job)
                while pool.busy:
                    pool.next_done()
        return goal_of(job)

    def on_slots(self, points: Sequence[Sequence[str]]) -> list[float]:
        """The goals of a batch of points, whose jobs run side by side in the pool of whoever made this."""
        assert self._pool is not None
        jobs = [self.job(overrides) for overrides in points]
        for job in jobs:
            if job.state not in DONE:
                self._pool.submit(job)
        while self._pool.busy:
            self._pool.next_done()
        return [goal_of(job) for job in jobs]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_pool": None}  # which stays on this machine


def goal_of(job: Job) -> float:
    """For whoever optimises it."""
    return job.goal if job.state in DONE and job.goal is not None else math.nan


def launch(folder: SweepDir, jobs: Sequence[Job], typed: Sequence[str], config_dir: Path | None, time_limit: Time | None) -> None:
    """The jobs by the launcher that was chosen, which returns when all have ended. Raises TrainingError where the launcher itself fails."""
    hydra = Hydra("refresher", loader(config_dir))
    words = [*typed, *_ours(typed, f"hydra.sweep.dir={folder.path / 'hydra'}")]
    with explained(words, config_dir, sweeping=True):
        config = hydra.compose_config(CONFIG, words, RunMode.MULTIRUN, with_log_configuration=False)
        context = HydraContext(config_loader=loader(config_dir), callbacks=Callbacks(config))
        work = Work(folder, config_dir, searching(typed, config_dir), time_limit)
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=work, config=config)
    try:
        with _stopped_at_once():
            launcher.launch([job.overrides for job in jobs], initial_job_idx=0)
    except _Stop as stop:
        cure = f"what was launched elsewhere may go on: refresher runs {folder}; refresher resume {folder} launches the rest"
        raise Interrupted(stop.args[0], "the sweep is waited for no longer", cure=cure) from None
    except RefresherError:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        problem = f"the launcher stopped ({type(error).__name__}: {first})"
        raise TrainingError(problem, key="hydra/launcher", cure=f"refresher resume {folder}") from error


class _Stop(KeyboardInterrupt):
    """A signal, as what no launcher takes for the failure of a job."""


@contextmanager
def _stopped_at_once() -> Iterator[None]:
    """A launcher waits in code of its own, which does not ask whether a signal came: so the signal itself ends the wait."""

    def stop(number: int, frame: object) -> None:
        raise _Stop(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def hand_over(typed: Sequence[str], config_dir: Path | None, source: Processes) -> SweepDir:
    """A sweep whose points one of Hydra's sweepers chooses; on our slots, unless a launcher was chosen too."""
    everywhere, own = searching(typed, config_dir), of_sweep(typed, config_dir)
    fixed = [o.input_line or "" for o in parse(typed, loader(config_dir)) if not (o.is_hydra_override() or o.is_sweep_override())]
    first = point_of([*everywhere, *(word for word in fixed if word not in own)], (), config_dir)
    options = options_of(first, typed, config_dir)
    source.expect(modules([first]))
    found = preflight([first], source, here="hydra/launcher" not in engines(typed, config_dir))
    folder = create(first, typed, config_dir, kind="hydra/sweeper")
    words = [word for word in typed if word not in own]
    words += _ours(words, "hydra/launcher=slots", f"hydra.sweep.dir={folder.path / 'hydra'}")
    with folder.locked(), pool_for(folder, source, options, [first.settings], gpus=found.gpus) as pool:
        work = Work(folder, config_dir, everywhere, options.time_limit, pool)
        with explained(words, config_dir, sweeping=True):
            Hydra("refresher", loader(config_dir)).multirun(CONFIG, work, words, with_log_configuration=False)
    return folder


def _ours(typed: Sequence[str], *wanted: str) -> list[str]:
    """What we want of Hydra, unless it was typed."""
    keys = {word.partition("=")[0] for word in typed}
    return [word for word in wanted if word.partition("=")[0] not in keys]


def _threads() -> int:
    """Torch's threads in a job that somebody else has given its share of a machine."""
    for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return cores()
