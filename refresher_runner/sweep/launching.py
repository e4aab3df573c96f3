"""What every way of launching a sweep needs: which engines were chosen, the sweep's folder, and a pool for its jobs. Free of torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from refresher_runner.compose import loader, parse
from refresher_runner.engine.options import SweepOptions
from refresher_runner.errors import Interrupted
from refresher_runner.registry import DATASETS, MODELS, OPTIMIZERS
from refresher_runner.settings import Settings
from refresher_runner.sweep.boards import write_boards
from refresher_runner.sweep.folder import DONE, Point, SweepDir
from refresher_runner.sweep.pool import Pool, slots
from refresher_runner.sweep.processes import Processes
from refresher_runner.sweep.watch import Watch

ENGINES = {"hydra/launcher", "hydra/sweeper"}


def engines(typed: Sequence[str], config_dir: Path | None) -> set[str]:
    """Which of Hydra's plugins are chosen."""
    return {o.key_or_group for o in parse(typed, loader(config_dir))} & ENGINES


def create(first: Point, typed: Sequence[str], config_dir: Path | None, *, kind: str, **facts: object) -> SweepDir:
    """The folder of a new sweep, which knows what was typed."""
    flags = ["--config-dir", str(config_dir)] if config_dir else []
    command = ["train", "-m", *flags, *typed]
    words = [word for word in typed if not word.startswith("sweep.resume")]
    where = str(config_dir) if config_dir else None
    return SweepDir.create(first.settings.run.outputs, command=command, overrides=words, config_dir=where, kind=kind, **facts)


@contextmanager
def pool_for(
    folder: SweepDir, source: Processes, options: SweepOptions, settings: Sequence[Settings], *, gpus: int, total: int | None = None
) -> Iterator[Pool]:
    """A pool for a sweep's jobs, which are shown as they run; `settings` of jobs to come say what they compute on. Raises Interrupted."""
    done = [job for job in folder.jobs() if job.state in DONE]
    places = slots(options, _gpus(settings, gpus), total - len(done) if total else None, max(s.trainer.devices for s in settings))
    limit = options.time_limit.seconds if options.time_limit else None
    try:
        with Watch(total, len(places), done) as watch, Pool(source, places, limit, watch) as pool:
            yield pool
    except Interrupted as stop:
        write_boards(folder.path)
        stop.cure = f"refresher resume {folder} goes on with it"
        raise


def modules(points: Sequence[Point]) -> list[str]:
    """Where the builders live that these points name, as far as they are ours: what others wrote is imported in the jobs alone."""
    found = []
    for registry, kind in ((MODELS, "model"), (DATASETS, "data"), (OPTIMIZERS, "optimizer")):
        found += [registry.module(getattr(point.settings, kind).name) for point in points]
    return [module for module in dict.fromkeys(found) if module]


def _gpus(settings: Sequence[Settings], count: int) -> list[str]:
    """Names of the GPUs to share out; none where no job wants any, or where jobs name theirs."""
    wanted = any(s.trainer.device in ("auto", "cuda") for s in settings) and not any(":" in s.trainer.device for s in settings)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (visible.split(",") if visible else [str(i) for i in range(count)])[:count] if wanted else []
