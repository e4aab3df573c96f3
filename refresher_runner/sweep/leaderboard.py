"""Runs as a leaderboard: a row for each configuration, only the keys that vary, mean and spread over seeds, the best and its ties.

Any folder of runs will do: a sweep's, finished or not, or one in which runs have gathered over the months. Runs are compared where that
means something, by the same goal on the same data. Free of torch and Hydra.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from refresher_runner.engine.options import configuration
from refresher_runner.engine.rundir import RunDir
from refresher_runner.errors import RunError
from refresher_runner.runs import ABSENT, Summary, select, summarise
from refresher_runner.sweep.folder import Job, SweepDir

CHOICES = ("model.name", "data.name", "optimizer.name")  # what else differs between two of these follows from the choice
DOUBT = 0.05  # of Welch's test: configurations that it cannot tell from the best at this level tie with it
STATES = ("finished", "running", "pending", "pruned", "interrupted", "crashed", "failed")  # the order in which they are told

Place = Literal["best", "front", "tie", ""]


@dataclass(frozen=True)
class Objective:
    """What configurations are ranked by: a tag of the validation split without its `val/`, or `parameters`."""

    metric: str
    mode: Literal["min", "max"]

    @property
    def tag(self) -> str:
        return self.metric if self.metric == "parameters" else f"val/{self.metric}"

    def of(self, run: Summary) -> float | None:
        """The goal at its best; anything else as it was at the goal's best; None before that, or where it is not finite."""
        if self.metric == "parameters":
            value = run.record.get("parameters")
        elif self.metric == run.goal.get("metric"):
            value = run.best
        else:
            value = run.at_best(self.tag)
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None

    def loss(self, value: float) -> float:
        """Less is better."""
        return value if self.mode == "min" else -value


@dataclass(frozen=True)
class Score:
    """What a configuration reached: the mean over its seeds, and their standard deviation (of a sample), which two seeds have."""

    mean: float
    spread: float | None
    seeds: int

    def __str__(self) -> str:
        if self.spread is None:
            return f"{self.mean:,.0f}" if abs(self.mean) >= 10_000 else f"{self.mean:.4g}"
        digits = 4 if not self.spread else max(0, 1 - math.floor(math.log10(self.spread)))  # two that count, of the spread
        return f"{self.mean:.{digits}f} ± {self.spread:.{digits}f}"


@dataclass(frozen=True)
class Row:
    """A configuration and its runs, which differ in their seeds; scores are those of its finished runs."""

    values: Mapping[str, Any]  # of the keys that vary
    runs: tuple[Summary, ...]
    scores: tuple[Score | None, ...]  # one for each objective; None where no run has finished
    tested: Score | None  # the first objective on the test split, which decides nothing
    so_far: float | None  # where no run has finished: the first objective's best yet
    place: Place = ""

    @property
    def state(self) -> str:
        counted = Counter(run.state for run in self.runs)
        states = sorted(counted, key=lambda state: (STATES.index(state) if state in STATES else len(STATES), state))
        return states[0] if len(states) == 1 else ", ".join(f"{counted[state]} {state}" for state in states)

    @property
    def seeds(self) -> tuple[int, int]:
        """How many have finished, and how many there are."""
        return len({run.config.get("seed") for run in self.runs if run.state == "finished"}), len(
            {run.config.get("seed") for run in self.runs}
        )

    def best_run(self, objectives: Sequence[Objective]) -> RunDir | None:
        """Of its runs that have reached anything, finished ones first."""
        reached = (
            [
                (run.state != "finished", objectives[0].loss(value), run.run)
                for run in self.runs
                for value in [objectives[0].of(run)]
                if value is not None
            ]
            if objectives
            else []
        )
        return min(reached, key=lambda found: found[:2])[2] if reached else None

    @property
    def steps(self) -> int | None:
        """Of the run that has come furthest."""
        return max((run.status["step"] for run in self.runs if isinstance(run.status.get("step"), int)), default=None)


@dataclass(frozen=True)
class Board:
    """Configurations that can be compared, best first."""

    data: str
    objectives: tuple[Objective, ...]
    keys: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        runs = sum(len(row.runs) for row in self.rows)
        aims = [f"{objective.tag} ({'more' if objective.mode == 'max' else 'less'} is better)" for objective in self.objectives]
        return f"{self.data}: {' and '.join(aims) or 'not measured yet'}; {_count(len(self.rows), 'configuration')}, {_count(runs, 'run')}"

    @property
    def notes(self) -> list[str]:
        """How to read the marks; and that differences mean little where nothing tells how large chance is."""
        scored = [row.scores[0] for row in self.rows if row.scores and row.scores[0]]
        places = {row.place for row in self.rows}
        notes = []
        if "tie" in places:
            notes.append(f"tie: its seeds do not tell it from the best (Welch's t-test, {DOUBT:.0%})")
        if "front" in places:
            notes.append("front: no other is better in one and as good in the rest")
        if len(scored) > 1 and "front" not in places and all(score.seeds == 1 for score in scored):
            notes.append("one seed each, so nothing tells chance from difference: seed=0,1,2")
        if any(row.so_far is not None for row in self.rows):
            notes.append("(in brackets): the best so far of runs that have not finished")
        return notes


def boards(
    folder: Path,
    objectives: Sequence[Objective] = (),
    *,
    state: str | None = None,
    tag: str | None = None,
    filters: Mapping[str, str] | None = None,
    sort: str = "goal",
) -> list[Board]:
    """A board for each data set and goal below `folder`; all by the same `objectives`, the first deciding, where they are given.

    Rows are sorted by `goal`, by `date`, or by a key of the configuration. Raises UsageError and RunError.
    """
    entries = select(entries_of(folder), state=state, tag=tag, filters=filters, sort="date" if sort == "goal" else sort)
    objectives = objectives or _searched(folder)
    goals = {_kind(run): _goal(run) for run in entries if run.goal}
    groups: dict[tuple[str, tuple[Objective, ...]], list[Summary]] = {}
    for run in entries:
        wanted = tuple(objectives) or goals.get(_kind(run), ())
        groups.setdefault((str(run.value("data")), wanted), []).append(run)
    return [_board(data, wanted, runs, by_goal=sort == "goal") for (data, wanted), runs in groups.items()]


def entries_of(folder: Path) -> list[Summary]:
    """Every run below a folder, oldest first, with the jobs of sweeps that have not begun. Raises RunError."""
    if not folder.is_dir():
        raise RunError("no such folder", key="path", value=folder)
    jobs = [job for file in sorted(folder.rglob("sweep.json")) for job in SweepDir(file.parent).jobs()]
    runs = {run.path: summarise(run) for run in RunDir.all(folder)}
    for job in jobs:
        runs[job.run.path] = _of_job(runs.get(job.run.path) or summarise(job.run), job)
    return list(runs.values())


def varying(configs: Sequence[Mapping[str, Any]], typed: set[str]) -> tuple[str, ...]:
    """The keys in which configurations differ, without those that follow from the choice of a model, a data set or an optimizer.

    What was `typed` for a run is never left out.
    """
    every = dict.fromkeys([*CHOICES, *(key for config in configs for key in config)])
    differing = [key for key in every if len({text_of(config.get(key, ABSENT)) for config in configs}) > 1]
    kept: list[str] = []
    for key in differing:
        if not _follows(key, [choice for choice in kept if choice in CHOICES], configs) or key in typed:
            kept.append(key)
    return tuple(kept)


def tied(one: Score, other: Score) -> bool:
    """Whether Welch's t-test cannot tell the two means apart; of a single seed, only the same value is a tie."""
    if one.mean == other.mean:
        return True
    if one.spread is None or other.spread is None:
        return False
    shares = [score.spread**2 / score.seeds for score in (one, other) if score.spread is not None]
    if not sum(shares):
        return False
    from scipy.special import stdtr

    freedom = sum(shares) ** 2 / sum(share**2 / (score.seeds - 1) for share, score in zip(shares, (one, other), strict=True))
    return bool(2 * stdtr(freedom, -abs(one.mean - other.mean) / math.sqrt(sum(shares))) > DOUBT)


# -------------------------------------------------------------------- from runs to rows


def _board(data: str, objectives: tuple[Objective, ...], runs: Sequence[Summary], *, by_goal: bool) -> Board:
    groups: dict[str, list[Summary]] = {}
    for run in runs:
        groups.setdefault(text_of(configuration(run.config)), []).append(run)
    configs = [configuration(group[0].config) for group in groups.values()]
    keys = varying(configs, set().union(*(typed_for(run) for run in runs)))
    rows = [
        _row({key: config.get(key, ABSENT) for key in keys}, group, objectives)
        for config, group in zip(configs, groups.values(), strict=True)
    ]
    rows = _placed(rows, objectives)
    return Board(data, objectives, keys, tuple(sorted(rows, key=lambda row: _rank(row, objectives)) if by_goal else rows))


def _row(values: Mapping[str, Any], runs: Sequence[Summary], objectives: Sequence[Objective]) -> Row:
    newest = {run.config.get("seed"): run for run in runs if run.state == "finished"}  # a repetition is no further evidence
    finished = list(newest.values())
    scores = tuple(_score([objective.of(run) for run in finished]) for objective in objectives)
    so_far = None
    if objectives and not finished:
        reached = [value for run in runs if (value := objectives[0].of(run)) is not None]
        so_far = min(reached, key=objectives[0].loss, default=None)
    return Row(values, tuple(runs), scores, _score([run.tested for run in finished]), so_far)


def _score(values: Sequence[float | None]) -> Score | None:
    found = [value for value in values if value is not None and math.isfinite(value)]
    if not found:
        return None
    return Score(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None, len(found))


def _placed(rows: Sequence[Row], objectives: Sequence[Objective]) -> list[Row]:
    """The best and its ties; of several objectives, those that no other row beats in all of them (the Pareto front)."""
    losses = {n: [o.loss(s.mean) for o, s in zip(objectives, row.scores, strict=True) if s] for n, row in enumerate(rows)}
    whole = {n: values for n, values in losses.items() if values and len(values) == len(objectives)}
    if not whole:
        return list(rows)
    if len(objectives) > 1:
        front = {n for n, mine in whole.items() if not any(_dominates(others, mine) for others in whole.values())}
        return [replace(row, place="front") if n in front else row for n, row in enumerate(rows)]
    best = min(whole, key=lambda n: whole[n])
    champion = rows[best].scores[0]
    assert champion is not None
    ties = {n for n in whole if (score := rows[n].scores[0]) and tied(champion, score)}
    return [replace(row, place="best" if n == best else "tie" if n in ties else "") for n, row in enumerate(rows)]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))


def _rank(row: Row, objectives: Sequence[Objective]) -> tuple[bool, bool, float]:
    """What has finished, by its mean; then what has reached something, by that; then the rest, as it came."""
    if row.scores and row.scores[0]:
        return (False, row.place != "front" and len(objectives) > 1, objectives[0].loss(row.scores[0].mean))
    return (True, row.so_far is None, objectives[0].loss(row.so_far) if row.so_far is not None else 0.0)


def _of_job(run: Summary, job: Job) -> Summary:
    """What the launcher knows of a run: that it waits, was pruned, or what was typed for it."""
    return replace(run, status={**run.status, "state": job.state}, record={**run.record, "command": ["train", *job.overrides]})


def typed_for(run: Summary) -> set[str]:
    """Keys of the configuration that the run's own command sets; of a group, its name."""
    keys = {word.partition("=")[0].lstrip("+~") for word in run.record.get("command") or [] if "=" in word}
    return {key if key in run.config else f"{key}.name" for key in keys}


def _follows(key: str, choices: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a key has one value wherever these choices are the same."""
    seen: dict[str, str] = {}
    return all(
        seen.setdefault(text_of([config.get(choice, ABSENT) for choice in choices]), value) == value
        for config in configs
        for value in [text_of(config.get(key, ABSENT))]
    )


def _searched(folder: Path) -> list[Objective]:
    """What a sweep says it is searching for; nothing where it is the goals of its models."""
    told = SweepDir(folder).record.get("objectives") or []
    return [Objective(**objective) for objective in told]


def _kind(run: Summary) -> tuple[Any, Any]:
    return run.value("model"), run.value("data")


def _goal(run: Summary) -> tuple[Objective, ...]:
    return (Objective(run.goal["metric"], run.goal["mode"]),)


def text_of(value: Any) -> str:
    """By which values, and configurations, are the same or not."""
    return json.dumps(value, sort_keys=True, default=str)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
