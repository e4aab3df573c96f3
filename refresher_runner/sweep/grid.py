"""The entry to every sweep: which points there are, and who runs them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from refresher_runner.compose import CONFIG, checked, compose, explained, loader, parse
from refresher_runner.errors import ConfigError
from refresher_runner.sweep.launcher import Job, run_job, run_jobs


def sweep(overrides: Sequence[str], config_dir: Path | None = None) -> list[Job]:
    """Run every point of a sweep, each in a process of its own. Raises ConfigError before the first if any point is wrong.

    A Hydra plugin that is chosen with `hydra/sweeper` or `hydra/launcher` decides on points, order and folders itself.
    """
    flags = ["--config-dir", str(config_dir)] if config_dir else []
    with explained(overrides, config_dir, sweeping=True):
        typed = parse(overrides, loader(config_dir))
        everywhere = [o.input_line or "" for o in typed if o.key_or_group == "hydra.searchpath"]
        plugins = {o.key_or_group for o in typed} & {"hydra/sweeper", "hydra/launcher"}
        points = [] if plugins else [[*everywhere, *point] for point in _grid(overrides, config_dir)]
    if plugins:
        return _hydra_sweep(overrides, config_dir, [*flags, *everywhere])
    if not points:
        raise ConfigError("this sweep has no jobs", key="-m", value=" ".join(overrides), cure="one of its ranges or globs is empty")
    for point in points:
        checked(*compose(point, config_dir))
    return run_jobs(points, flags)


def _grid(overrides: Sequence[str], config_dir: Path | None) -> list[list[str]]:
    """Every combination of the values typed, and of those in `hydra.sweeper.params` of a file."""
    config = loader(config_dir).load_configuration(CONFIG, list(overrides), RunMode.MULTIRUN)
    written = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    typed = [o for o in parse([*written, *overrides], loader(config_dir)) if not o.is_hydra_override()]
    [points] = BasicSweeper.split_arguments(typed, None)
    return [list(point) for point in points]


def _hydra_sweep(overrides: Sequence[str], config_dir: Path | None, flags: Sequence[str]) -> list[Job]:
    jobs: list[Job] = []

    def task(config: DictConfig) -> float | None:
        jobs.append(run_job(HydraConfig.get().overrides.task, flags))
        return jobs[-1].goal

    with explained(overrides, config_dir, sweeping=True):
        Hydra("refresher", loader(config_dir)).multirun(CONFIG, task, list(overrides), with_log_configuration=False)
    return jobs
