"""The points of a sweep: what is typed for each, composed and checked. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.types import RunMode

from refresher_runner.compose import CONFIG, checked, compose, explained, loader, parse
from refresher_runner.engine import signals
from refresher_runner.engine.options import SweepOptions
from refresher_runner.errors import ConfigError
from refresher_runner.sweep.folder import Point


def point_of(overrides: Sequence[str], varies: Sequence[str] = (), config_dir: Path | None = None) -> Point:
    """One point, composed and checked. Raises ConfigError."""
    config, stored = compose(overrides, config_dir)
    return Point(tuple(overrides), tuple(varies), stored, checked(config, stored))


def grid(typed: Sequence[str], config_dir: Path | None = None) -> list[Point]:
    """Every combination of the values typed, and of those in `hydra.sweeper.params` of a file. Raises ConfigError if any is wrong."""
    with explained(typed, config_dir, sweeping=True):
        config = loader(config_dir).load_configuration(CONFIG, list(typed), RunMode.MULTIRUN)
        written = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
        everywhere, own = searching(typed, config_dir), of_sweep(typed, config_dir)
        parsed = [o for o in parse([*written, *typed], loader(config_dir)) if not o.is_hydra_override() and o.input_line not in own]
        [found] = BasicSweeper.split_arguments(parsed, None)
        combinations = [[*everywhere, *combination] for combination in found]
    if not combinations:
        raise ConfigError("this sweep has no jobs", key="-m", value=" ".join(typed), cure="one of its ranges or globs is empty")
    common = set.intersection(*map(set, combinations)) if len(combinations) > 1 else set()
    points: dict[str, Point] = {}
    for combination in combinations:
        signals.poll()
        point = point_of(combination, [o for o in combination if o not in common], config_dir)
        points.setdefault(point.key, point)  # two that are the same job are one
    return list(points.values())


def options_of(point: Point, typed: Sequence[str], config_dir: Path | None = None) -> SweepOptions:
    """What the command, or a file that it names, says of the whole sweep. Raises ConfigError."""
    options = point_of([*point.overrides, *of_sweep(typed, config_dir)], (), config_dir).settings.sweep
    assert options is not None
    return options


def said_of(typed: Sequence[str], config_dir: Path | None = None) -> SweepOptions:
    """The same, where the points are not known yet: what a file says that only they name is not heard."""
    options = point_of(of_sweep(typed, config_dir), (), config_dir).settings.sweep
    assert options is not None
    return options


def of_sweep(typed: Sequence[str], config_dir: Path | None = None) -> list[str]:
    """Those overrides that are of the sweep, and of none of its jobs. Raises ConfigError where one is itself swept."""
    found = []
    for override in parse(typed, loader(config_dir)):
        if override.key_or_group == "sweep" or override.key_or_group.startswith("sweep."):
            if override.is_sweep_override():
                raise ConfigError("is said once, of the whole sweep", key=override.input_line or override.key_or_group)
            found.append(override.input_line or "")
    return found


def searching(typed: Sequence[str], config_dir: Path | None = None) -> list[str]:
    """Where else to look for files, which holds for every job."""
    return [o.input_line or "" for o in parse(typed, loader(config_dir)) if o.key_or_group == "hydra.searchpath"]
