"""The verb reproduce: a run once more from its own record, number by number; or a preset, against what was measured of it.

Free of torch until used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refresher_runner import run as verbs
from refresher_runner.bands import Band
from refresher_runner.engine.metrics_file import read_metrics
from refresher_runner.engine.rundir import RunDir
from refresher_runner.errors import CheckpointError, ConfigError, RunError
from refresher_runner.restore import pretrained
from refresher_runner.runs import environment
from refresher_runner.settings import Settings

NO_NUMBER = "speed/"  # in the tag of what a clock measured
OF_NO_MATTER = ("host",)  # of an environment

Point = tuple[int, str]  # step and tag


@dataclass(frozen=True)
class Reproduced:
    """Two runs beside each other."""

    run: RunDir
    compared: int  # numbers that either has logged
    parted: Point | None  # the first that differs, if any does
    rows: list[tuple[str, float | None, float | None, float]]  # of validation and test: then, now, relative difference, the largest first

    def within(self, tolerance: float) -> bool:
        """Whether every last number of validation and test is as it was; at a tolerance of 0, every number of the whole run."""
        return self.parted is None or (tolerance > 0 and all(row[-1] <= tolerance for row in self.rows))


def reproduce_run(then: RunDir, settings: Settings, *, stored: str, command: Sequence[str]) -> Reproduced:
    """The run again. Raises whatever training does."""
    return compare(then, verbs.train(settings, stored=stored, command=command))


def reproduce_preset(settings: Settings, *, stored: str, command: Sequence[str]) -> tuple[RunDir, Mapping[str, float], Mapping[str, Band]]:
    """A run of a preset, what it reached on the test split, and the bands that are expected.

    Raises ConfigError where nothing was measured.
    """
    if settings.measured is None:
        cure = "presets with a `measured:` in conf/experiment can be; refresher train runs this one"
        raise ConfigError("nothing was measured of this, so there is nothing to compare with", key="measured", value="null", cure=cure)
    made = verbs.train(settings, stored=stored, command=command)
    return made, made.read_status().get("test") or {}, settings.measured.bands()


def refuse_unfinished(run: RunDir) -> None:
    """Raises RunError where a run has no last numbers to be compared with."""
    state = run.read_status().get("state")
    if state != "finished":
        cure = "refresher resume goes on with it"
        raise RunError(f"is {state or 'of no state'}, so nobody knows where it ends", key="run", value=run.path, cure=cure)


def changes(run: RunDir, settings: Settings) -> list[str]:
    """A line on everything that is not as it was when the run began: code, versions, machine, data, and the weights it began with."""
    from refresher_runner.engine.record import git_diff, record_of
    from refresher_runner.parts import computer_for, data_for

    then, computer = run.read_record(), computer_for(settings)
    data = data_for(settings, pretrained(settings.run.init_from) if settings.run.init_from else None)
    data.prepare()
    machine = {"device": str(computer.device), "precision": computer.precision, "processes": settings.trainer.devices}
    now = record_of([], seed=settings.run.seed, checksums=data.checksums(), **machine)
    commits = [str((record.get("git") or {}).get("commit", "unknown"))[:12] for record in (then, now)]
    lines = [f"the commit was {commits[0]}, is {commits[1]}"] if commits[0] != commits[1] else []
    if run.diff.is_file() and run.diff.read_text(encoding="utf-8", errors="replace") != git_diff():
        lines.append(f"what is not committed differs: {run.diff} holds what it was")
    lines += _differences(environment(then), environment(now))
    for key, origin in {"init_from": then.get("origin"), **then.get("borrowed", {})}.items():
        lines += _of_origin(key, origin) if origin else []
    for sitting in then.get("resumed", []):
        if typed := [word for word in sitting.get("command", [])[3:] if "=" in word]:
            lines.append(f"it was changed on its way, at {sitting.get('started')}: {' '.join(typed)}")
    return lines


def compare(then: RunDir, now: RunDir) -> Reproduced:
    """Every number that both have logged, in order; and the last of each tag of validation and test."""
    old, new = numbers(then), numbers(now)
    parted = min((point for point in {**old, **new} if not _same(old.get(point), new.get(point))), default=None)
    before, after = ({tag: value for (_, tag), value in sorted(found.items())} for found in (old, new))
    tags = [tag for tag in {**before, **after} if tag.startswith(("val/", "test/"))]
    rows = [(tag, before.get(tag), after.get(tag), difference(before.get(tag), after.get(tag))) for tag in tags]
    return Reproduced(now, len({**old, **new}), parted, sorted(rows, key=lambda row: -row[-1]))


def numbers(run: RunDir) -> dict[Point, float]:
    """What a run has logged, but for what a clock says."""
    found = {}
    for line in read_metrics(run.metrics):
        found |= {(line["step"], tag): value for tag, value in line.items() if isinstance(value, float) and NO_NUMBER not in tag}
    return {point: value for point, value in found.items() if point[1] != "time"}


def difference(then: float | None, now: float | None) -> float:
    """|then - now|, as a share of the larger; infinite where one of them is absent or no number."""
    if _same(then, now):
        return 0.0
    if then is None or now is None or then - then != 0 or now - now != 0:
        return float("inf")
    return abs(then - now) / max(abs(then), abs(now))


def _same(then: float | None, now: float | None) -> bool:
    return then == now or (then is not None and now is not None and then != then and now != now)


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key) and key not in OF_NO_MATTER]
    return [f"{key} was {_word(then.get(key))}, is {_word(now.get(key))}" for key in keys]


def _of_origin(key: str, origin: Mapping[str, Any]) -> list[str]:
    try:
        now = pretrained(origin["path"], key).origin()
    except (CheckpointError, ConfigError) as error:
        return [str(error)]
    same = now["sha256"] == origin.get("sha256")
    return [] if same else [f"the weights that it began with by {key} have changed: {now['path']}"]


def _word(value: Any) -> str:
    return "absent" if value is None else str(value)
