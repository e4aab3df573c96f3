"""The entry to every sweep: its points are checked, it gets a folder, its jobs are launched; or it goes on where it stood."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from refresher_runner.compose import checked, compose_stored
from refresher_runner.engine.options import SweepOptions
from refresher_runner.errors import ConfigError, RunError
from refresher_runner.sweep.folder import DONE, Job, Point, SweepDir
from refresher_runner.sweep.launching import create, engines, modules, pool_for
from refresher_runner.sweep.points import grid, of_sweep, options_of, said_of
from refresher_runner.sweep.preflight import preflight
from refresher_runner.sweep.processes import Processes, processes


def sweep(typed: Sequence[str], config_dir: Path | None = None, source: Processes | None = None) -> SweepDir:
    """Run every point, each in a process of its own. Raises ConfigError before the first if any point is wrong.

    A Hydra plugin that is chosen with `hydra/launcher` starts the jobs where it likes; one of `hydra/sweeper` decides on the points.
    """
    with _processes(source) as source:
        if "hydra/sweeper" in engines(typed, config_dir):
            from refresher_runner.sweep.plugins import hand_over

            return hand_over(typed, config_dir, source)
        if (asked := said_of(typed, config_dir)).search != "grid" or asked.prune:
            from refresher_runner.sweep.search import search

            return search(typed, config_dir, source)
        points = grid(typed, config_dir)
        source.expect(modules(points))
        options = options_of(points[0], typed, config_dir)
        begun = _same(points) if options.resume else None
        found = preflight(points, source, here=not engines(typed, config_dir))
        folder = begun or create(points[0], typed, config_dir, kind="grid", jobs=len(points))
        with folder.locked():
            jobs = [folder.add(point, parameters=count) for point, count in zip(points, found.parameters, strict=True)]
            _launch(folder, jobs, points, options, found.gpus, source)
    return folder


def resume(folder: SweepDir, typed: Sequence[str] = (), source: Processes | None = None) -> SweepDir:
    """Go on with a sweep: what is done is left alone, what was interrupted goes on, what failed or never began begins again.

    Raises ConfigError for overrides other than of `sweep`, which would make other jobs.
    """
    own = of_sweep(typed)
    if others := [word for word in typed if word not in own]:
        key, _, value = others[0].partition("=")
        raise ConfigError("would make other jobs", key=key, value=value, cure="start a new sweep with refresher train -m")
    record = folder.record
    before, config_dir = list(record.get("overrides", [])), Path(record["config_dir"]) if record.get("config_dir") else None
    if record.get("kind") == "search":
        from refresher_runner.sweep.search import search

        with _processes(source) as source:
            return search([*before, *own], config_dir, source, folder)
    with folder.locked(), _processes(source) as source:
        if len(folder.jobs()) < record.get("jobs", 0):  # killed while it was laid out
            for point in grid(before, config_dir):
                folder.add(point)
        jobs = folder.jobs()
        points = [_stored(job) for job in jobs if job.state not in DONE]
        if not points:
            return folder
        source.expect(modules(points))
        options = options_of(points[0], [*before, *own], config_dir)
        found = preflight(points, source, here=not engines(before, config_dir))
        _launch(folder, jobs, points, options, found.gpus, source)
    return folder


def _launch(folder: SweepDir, jobs: Sequence[Job], points: Sequence[Point], options: SweepOptions, gpus: int, source: Processes) -> None:
    """Every job that is not done, to its end."""
    left = [job for job in jobs if job.state not in DONE]
    record = folder.record
    typed, config_dir = list(record["overrides"]), Path(record["config_dir"]) if record["config_dir"] else None
    if engines(typed, config_dir):
        from refresher_runner.sweep.plugins import launch

        print(_announcement(folder, jobs, len(left)), flush=True)
        launch(folder, left, typed, config_dir, options.time_limit)
        return
    with pool_for(folder, source, options, [point.settings for point in points], gpus=gpus, total=len(jobs)) as pool:
        each = f", {len(pool.slots)} at a time with {pool.slots[0].threads} threads each"
        print(_announcement(folder, jobs, len(left)) + each.replace("1 threads", "1 thread"), flush=True)
        for job in left:
            pool.submit(job)
        while pool.busy:
            pool.next_done()


def _announcement(folder: SweepDir, jobs: Sequence[Job], left: int) -> str:
    """Where, how many, and how large."""
    counts = sorted({int(job.record.get("parameters", 0)) for job in jobs} - {0})
    sizes = f" of {counts[0]:,} parameters" if len(counts) == 1 else f" of {counts[0]:,} to {counts[-1]:,} parameters" if counts else ""
    done = f", {len(jobs) - left} done before" if left < len(jobs) else ""
    return f"{folder}: {len(jobs)} jobs{sizes}{done}"


@contextmanager
def _processes(source: Processes | None) -> Iterator[Processes]:
    """Those of the caller's, which stay open, or our own."""
    own = source or processes()
    try:
        yield own
    finally:
        if own is not source:
            own.close()


def _stored(job: Job) -> Point:
    """The point of a job on disk. Raises ConfigError where today's code cannot run it any more."""
    config, stored = compose_stored(job.run)
    return Point(tuple(job.overrides), tuple(job.varies), stored, checked(config, stored))


def _same(points: Sequence[Point]) -> SweepDir:
    """The newest sweep whose jobs are all among these points. Raises RunError."""
    keys, outputs = {point.key for point in points}, points[0].settings.run.outputs
    shared = 0
    for folder in reversed(SweepDir.all(outputs)):
        known = {job.key for job in folder.jobs()}
        if known and known <= keys:
            return folder
        shared = shared or len(known & keys)
    drifted = f"; one has {shared} of these {len(keys)}, and others, so its values or its configuration were not these" if shared else ""
    problem = f"no sweep in {outputs} has these jobs and no others{drifted}"
    raise RunError(problem, key="sweep.resume", value="true", cure="refresher resume SWEEP, or a new sweep without sweep.resume")
