"""Runs read back from disk: a table of many, or a few side by side. Free of torch; nothing here writes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from refresher_runner.engine.rundir import RunDir
from refresher_runner.errors import RunError, UsageError, did_you_mean
from refresher_runner.settings import flatten

ABSENT = "-"  # shown where a run has no value


@dataclass(frozen=True)
class Summary:
    """What is worth knowing of a run without opening its checkpoints."""

    run: RunDir
    config: dict[str, Any]  # dotted keys
    record: dict[str, Any]  # run.json
    status: dict[str, Any]  # status.json
    goal: dict[str, Any] = field(default_factory=dict)  # metric, mode, best, best_step; empty before the first evaluation

    @property
    def state(self) -> str:
        return str(self.status.get("state", "unknown"))

    @property
    def best(self) -> float | None:
        return self.goal.get("best")

    @property
    def tested(self) -> float | None:
        """The goal's metric on the test split."""
        return (self.status.get("test") or {}).get(f"test/{self.goal.get('metric')}")

    def at_best(self, tag: str) -> float | None:
        """A number as it was logged at the step at which the goal was best."""
        for line in self.lines():
            if line.get("step") == self.goal.get("best_step") and isinstance(line.get(tag), (int, float)):
                return line[tag]
        return None

    @property
    def tags(self) -> list[str]:
        return [str(tag) for tag in self.config.get("tags") or []]

    def lines(self) -> list[dict[str, Any]]:
        """What metrics.jsonl holds; what was cut off when the machine went down is left out."""
        from refresher_runner.engine.metrics_file import read_metrics

        return read_metrics(self.run.metrics)

    def value(self, key: str) -> Any:
        """A key of the configuration; a group's own name stands for the choice: `model` is `model.name`."""
        return self.config.get(key, self.config.get(f"{key}.name", ABSENT))


def summarise(run: RunDir) -> Summary:
    """Raises RunError where config.yaml is not one that a run has written."""
    try:
        config = yaml.load(run.config.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RunError(f"cannot be read ({type(error).__name__})", key=str(run.config)) from None
    if not isinstance(config, Mapping):
        raise RunError("is not a configuration", key=str(run.config))
    status = run.read_status()
    return Summary(run, flatten(config), run.read_record(), status, status.get("goal") or {})


def find(
    folder: Path, *, state: str | None = None, tag: str | None = None, filters: Mapping[str, str] | None = None, sort: str = "date"
) -> list[Summary]:
    """Runs under `folder` that fit; sorted by `date`, by `goal` (best first), or by a key of the configuration. Raises UsageError."""
    if not folder.is_dir():
        raise RunError("no such folder", key="path", value=folder)
    return select([summarise(run) for run in RunDir.all(folder)], state=state, tag=tag, filters=filters, sort=sort)


def select(
    found: Sequence[Summary],
    *,
    state: str | None = None,
    tag: str | None = None,
    filters: Mapping[str, str] | None = None,
    sort: str = "date",
) -> list[Summary]:
    """As `find`, of summaries that come by date."""
    known = {key for summary in found for key in summary.config} | {key.partition(".")[0] for summary in found for key in summary.config}
    for key in [*(filters or {}), *([] if sort in ("date", "goal") else [sort])]:
        if found and key not in known:
            raise UsageError("no run has this key", key=key, cure=did_you_mean(key, known | {"date", "goal"}))
    fitting = [
        summary
        for summary in found
        if (state is None or summary.state == state)
        and (tag is None or tag in summary.tags)
        and all(_same(summary.value(key), typed) for key, typed in (filters or {}).items())
    ]
    if sort == "goal":
        return sorted(fitting, key=_goodness)
    return fitting if sort == "date" else sorted(fitting, key=lambda summary: order(summary.value(sort)))


def compare(runs: Sequence[Summary]) -> dict[str, dict[str, list[str]]]:
    """Section -> row -> a value for each run: what differs in configuration, code and environment, then every metric."""
    return {
        "configuration": _differing([summary.config for summary in runs]),
        "code": _differing([_code(summary) for summary in runs]),
        "environment": _differing([environment(summary.record) for summary in runs]),
        "metrics": _rows([_metrics(summary) for summary in runs]),
    }


def show(value: Any) -> str:
    """A value as one reads it in a table."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return ABSENT if value is None or value == "" else str(value)


def _same(value: Any, typed: str) -> bool:
    try:
        return float(value) == float(typed)
    except (TypeError, ValueError):
        return str(value).lower() == typed.lower()


def _goodness(summary: Summary) -> tuple[bool, float]:
    best = summary.best
    if best is None or not math.isfinite(best):
        return (True, 0.0)
    return (False, best if summary.goal.get("mode") == "min" else -best)


def order(value: Any) -> tuple[bool, float, str]:
    """Numbers by size, before words by the alphabet."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (not is_number, float(value) if is_number else 0.0, str(value))


def _code(summary: Summary) -> dict[str, Any]:
    git = summary.record.get("git") or {}
    changed = summary.run.diff.read_text(encoding="utf-8", errors="replace").count("\n") if summary.run.diff.is_file() else 0
    return {"commit": str(git.get("commit", ""))[:12], "uncommitted lines of diff": changed}


def environment(record: Mapping[str, Any]) -> dict[str, Any]:
    """Where a run computed, by which versions, from which data: rows of run.json."""
    facts = ("python", "platform", "host", "cpu", "cores", "threads", "device", "precision", "processes")
    data = {f"sha256 {file}": digest for file, digest in (record.get("checksums") or {}).items()}
    return {fact: record.get(fact) for fact in facts} | dict(record.get("versions") or {}) | data


def _metrics(summary: Summary) -> dict[str, Any]:
    """The goal at its best, then the last value of everything measured on the validation and test splits."""
    found: dict[str, Any] = {}
    if summary.goal:
        found[f"best val/{summary.goal['metric']}"] = summary.best
        found["at step"] = summary.goal.get("best_step")
    last: dict[str, Any] = {}
    for line in summary.lines():
        last |= {tag: value for tag, value in line.items() if tag.startswith(("val/", "test/"))}
    numbers = {tag: value for tag, value in sorted(last.items(), key=_split_first) if isinstance(value, (int, float))}
    return found | numbers | {"steps": summary.status.get("step"), "parameters": summary.record.get("parameters")}


def _split_first(metric: tuple[str, Any]) -> tuple[bool, str]:
    return (not metric[0].startswith("val/"), metric[0])


def _rows(columns: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    keys = dict.fromkeys(key for column in columns for key in column)
    return {key: [show(column.get(key)) for column in columns] for key in keys}


def _differing(columns: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    return {key: values for key, values in _rows(columns).items() if len(set(values)) > 1}
