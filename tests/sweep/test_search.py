"""Searches over curves in closed form, run by a pool without processes; and one that is real."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cmaes import CMA
from optuna.trial import TrialState, create_trial

from refresher_runner.engine.options import SweepOptions
from refresher_runner.errors import ConfigError, Interrupted
from refresher_runner.sweep.folder import DONE, Job, SweepDir
from refresher_runner.sweep.leaderboard import Objective, boards
from refresher_runner.sweep.samplers import distributions, evolved, refuse
from refresher_runner.sweep.search import Evaluations, Search, objectives_of
from refresher_runner.sweep.space import Choice, Interval, Space, space_of

ACCURACY = (Objective("accuracy", "max"),)
TWO = Space(("model=mlp",), {"optimizer.lr": Interval(1e-4, 1.0, False, True), "model.dropout": Interval(0.0, 0.8, False, False)})
ONE = Space(("model=mlp",), {"optimizer.lr": Interval(1e-4, 1.0, False, True)})
GRID = Space(("model=mlp",), {"optimizer.lr": Choice(("0.1", "0.01", "0.001")), "model.dropout": Interval(0.0, 0.2, False, False, 0.1)})
Curve = Callable[[dict[str, float]], Sequence[float]]


def options(**changed: Any) -> SweepOptions:
    values = {"jobs": 1, "time_limit": None, "resume": False, "search": "tpe", "trials": 6, "objectives": [], "prune": None}
    return SweepOptions(**{**values, "startup": 3, "grace": 1, "seed": 0, **changed})


def peak(at: dict[str, float]) -> list[float]:
    """Accuracies of five evaluations; the best learning rate is 0.01, the best dropout 0.2."""
    distance = (math.log10(at["optimizer.lr"]) + 2) ** 2 + 4 * (at.get("model.dropout", 0.2) - 0.2) ** 2
    return [1 - distance / 10 - 1 / step for step in range(2, 7)]


class Closed:
    """A pool whose jobs log the next value of their curve each time that somebody waits; it is stopped after so many have ended."""

    def __init__(self, curve: Curve, slots: int = 1, stop_after: float = math.inf):
        self.curve, self.slots, self.stop_after = curve, slots, stop_after
        self.running: list[Job] = []
        self.idle = 0  # slots that somebody waited with, though there was more to do
        self._stopped: list[Job] = []
        self._done = 0

    @property
    def free(self) -> int:
        return self.slots - len(self.running)

    @property
    def busy(self) -> bool:
        return bool(self.running)

    def submit(self, job: Job) -> None:
        assert self.free
        job.begin()
        job.run.record.write_text(json.dumps({"parameters": 7, "started": str(job.number)}), encoding="utf-8")
        self.running.append(job)

    def stop(self, job: Job, state: str) -> None:
        assert state == "pruned"
        self._stopped.append(job)

    def next_done(self, timeout: float) -> Job | None:
        if self._done >= self.stop_after:
            for job in self.running:
                job.end("interrupted")
            raise Interrupted(15)
        for job in self.running:
            values = self.curve(chosen_by(job))
            logged = job.run.metrics.read_text(encoding="utf-8").count("\n") if job.run.metrics.is_file() else 0
            if job in self._stopped or logged == len(values):
                self._end(job, "pruned" if job in self._stopped else "finished", values[:logged])
                return job
            with open(job.run.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": logged + 1, "time": 0.0, "val/accuracy": values[logged]}) + "\n")
        return None

    def _end(self, job: Job, state: str, values: Sequence[float]) -> None:
        self.running.remove(job)
        self._done += 1
        goal = {"metric": "accuracy", "mode": "max", "best": max(values), "best_step": 1 + values.index(max(values))}
        job.run.write_status("finished" if state == "finished" else "interrupted", goal=goal, step=len(values))
        job.end(state)


def chosen_by(job: Job) -> dict[str, float]:
    return {key: float(value) for key, _, value in (word.partition("=") for word in job.varies)}


def searched(folder: SweepDir, space: Space, asked: SweepOptions, pool: Closed, objectives: tuple[Objective, ...] = ACCURACY) -> Search:
    search = Search(folder, space, asked, objectives)
    search.run(pool)  # type: ignore[arg-type]
    return search


@pytest.fixture
def folder(tmp_path: Path) -> SweepDir:
    return SweepDir.create(tmp_path)


# -------------------------------------------------------------------- what is searched


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("optimizer.lr=interval(1e-4,1e-1)", Interval(1e-4, 0.1, False, True)),
        ("optimizer.lr=interval(0.01,0.1)", Interval(0.01, 0.1, False, False)),
        ("optimizer.lr=tag(log,interval(0.01,0.1))", Interval(0.01, 0.1, False, True)),
        ("optimizer.lr=tag(linear,interval(1e-4,1e-1))", Interval(1e-4, 0.1, False, False)),
        ("model.dropout=interval(0,0.5)", Interval(0.0, 0.5, False, False)),
        ("model.hidden=int(interval(8,64))", Interval(8, 64, True, False)),
        ("model.hidden=range(8,65,8)", Interval(8, 64, True, False, 8.0)),
        ("model.dropout=range(0,0.5,0.1)", Interval(0.0, 0.4, False, False, 0.1)),
        ("model=cnn,mlp", Choice(("cnn", "mlp"))),
        ("model.hidden=choice(16,32)", Choice(("16", "32"))),
        ("model.channels=[8],[8,16]", Choice(("[8]", "[8,16]"))),
    ],
)
def test_what_is_typed_is_what_is_searched(typed: str, expected: Interval | Choice) -> None:
    space = space_of(["sweep=tpe", "seed=3", typed])
    assert space.fixed == ("seed=3",)
    assert space.parameters == {typed.partition("=")[0]: expected}


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        ("optimizer.lr=interval(1,0.1)", "optimizer.lr"),
        ("optimizer.lr=tag(log,interval(0,1))", "optimizer.lr"),
        ("optimizer.lr=tag(cubic,interval(0,1))", "optimizer.lr"),
        ("optimizer.lr=0.1", "-m"),
    ],
)
def test_what_cannot_be_searched_is_refused(typed: str, key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        space_of([typed])
    assert refused.value.key == key


def test_corners_have_both_ends_and_every_choice() -> None:
    space = Space((), {"a": Interval(1, 3, True, False), "b": Choice(("x", "y", "z"))})
    assert space.corners() == [["a=1", "b=x"], ["a=3", "b=y"], ["a=3", "b=z"]]
    assert len(GRID.grid()) == 9


@pytest.mark.parametrize("interval", [*TWO.parameters.values(), Interval(1, 1000, True, True), Interval(8, 64, True, False, 8)])
def test_the_unit_interval_is_an_interval_again(interval: Interval) -> None:
    for share in (0.0, 0.25, 0.5, 1.0):
        value = interval.from_unit(share)
        assert interval.low <= value <= interval.high
        assert interval.from_unit(interval.to_unit(value)) == pytest.approx(value)
    assert interval.to_unit(interval.low) == 0
    assert interval.to_unit(interval.high) == pytest.approx(1)


def test_numbers_are_typed_with_four_digits_and_stay_inside() -> None:
    assert Interval(0.0, 1.0, False, False).text(0.123456) == "0.1235"
    assert Interval(0.0, 0.12341, False, False).text(0.123405) == "0.1234"
    assert Interval(0.12341, 1.0, False, False).text(0.12341) == "0.12341"
    assert Interval(1, 9, True, False).text(3) == "3"


@pytest.mark.parametrize(
    ("space", "changed", "objectives", "key"),
    [
        (ONE, {"search": "grid", "trials": None}, ACCURACY, "optimizer.lr"),
        (GRID, {"search": "grid", "trials": 3}, ACCURACY, "sweep.trials"),
        (ONE, {"trials": None}, ACCURACY, "sweep.trials"),
        (ONE, {"search": "cmaes"}, ACCURACY, "optimizer.lr"),
        (GRID, {"search": "cmaes"}, ACCURACY, "optimizer.lr"),
        (ONE, {"prune": "median"}, ACCURACY * 2, "sweep.prune"),
        (TWO, {"search": "cmaes"}, ACCURACY * 2, "sweep.objectives"),
    ],
)
def test_searches_that_cannot_be_are_refused(space: Space, changed: dict[str, Any], objectives: Any, key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        refuse(space, options(**changed), objectives)
    assert refused.value.key == key


def test_objectives_are_typed_or_the_goal_that_all_models_have() -> None:
    accuracy, loss = {"metric": "accuracy", "mode": "max"}, {"metric": "loss", "mode": "min"}
    assert objectives_of(options(), [accuracy, accuracy]) == ACCURACY
    assert objectives_of(options(objectives=["max val/accuracy", "min parameters"]), [loss]) == (*ACCURACY, Objective("parameters", "min"))
    for asked, goals in ((options(), [accuracy, loss]), (options(objectives=["accuracy"]), [accuracy]), (options(objectives=["max "]), [])):
        with pytest.raises(ConfigError):
            objectives_of(asked, goals)


# -------------------------------------------------------------------- trials and jobs


@pytest.mark.parametrize("search", ["tpe", "cmaes"])
def test_a_search_that_was_stopped_tries_what_it_would_have_tried(tmp_path: Path, search: str) -> None:
    unbroken, broken = SweepDir.create(tmp_path / "a"), SweepDir.create(tmp_path / "b")
    asked = options(search=search, trials=7, startup=2)
    searched(unbroken, TWO, asked, Closed(peak))
    with pytest.raises(Interrupted):
        searched(broken, TWO, asked, Closed(peak, stop_after=3))
    assert [job.state for job in broken.jobs()] == ["finished"] * 3 + ["interrupted"]
    search_again = searched(broken, TWO, asked, Closed(peak))
    assert [job.varies for job in broken.jobs()] == [job.varies for job in unbroken.jobs()]
    assert len({tuple(job.varies) for job in broken.jobs()}) == 7
    assert [trial.state for trial in search_again.study.trials] == [TrialState.COMPLETE] * 7


def test_cma_es_is_that_of_its_authors_and_remembers_nothing() -> None:
    """Worked out from the trials each time, it stands where their own implementation stands that is told every generation as it comes."""
    asked = options(search="cmaes", seed=5)
    sphere = TWO.parameters["optimizer.lr"], TWO.parameters["model.dropout"]
    kept = CMA(mean=np.full(2, 0.5), sigma=1 / 6, bounds=np.array([[0.0, 1.0]] * 2), seed=0)
    trials: list[Any] = []
    for generation in range(4):
        told = []
        for _ in range(kept.population_size):
            values, number = evolved(asked, TWO, "max", trials)
            assert number == generation
            kept._rng = np.random.RandomState(asked.seed + len(trials))  # ours draws anew for each trial
            ask = kept.ask()
            assert [interval.from_unit(x) for interval, x in zip(sphere, ask, strict=True)] == pytest.approx(list(values.values()))  # type: ignore[union-attr]
            value = peak(values)[-1]
            dists = distributions(TWO)
            trials.append(create_trial(params=values, distributions=dists, value=value, user_attrs={"generation": generation}))
            told.append((ask, -value))
        kept.tell(told)
    assert trials[-1].value > 0.8


def test_hopeless_trials_are_stopped_and_marked(folder: SweepDir) -> None:
    search = searched(folder, TWO, options(trials=12, prune="halving"), Closed(peak))
    states = {job.key: job.state for job in folder.jobs()}
    trials = {str(trial.user_attrs["job"]): trial for trial in search.study.trials}
    pruned = {key for key, state in states.items() if state == "pruned"}
    assert 4 <= len(pruned) < 12
    assert {key for key, trial in trials.items() if trial.state == TrialState.PRUNED} == pruned
    for key in pruned:
        job = folder.job(key)
        assert job is not None
        logged = job.run.read_status()["step"]
        assert trials[key].intermediate_values == {n + 1: pytest.approx(v) for n, v in enumerate(peak(chosen_by(job))[:logged])}
        assert logged < 5
    [board] = boards(folder.path)
    assert [row.state for row in board.rows] == ["finished"] * (12 - len(pruned)) + ["pruned"] * len(pruned)


def test_the_median_prunes_what_is_worse_than_half_of_the_finished(folder: SweepDir) -> None:
    """By hand: after three that finished with .5, .6 and .7 at the second evaluation, .55 goes and .65 stays."""
    reached = iter([0.5, 0.6, 0.7, 0.55, 0.65])
    values: dict[str, float] = {}

    def flat(at: dict[str, float]) -> list[float]:
        return [values.setdefault(str(at), next(reached) if str(at) not in values else 0.0)] * 3

    searched(folder, ONE, options(search="random", trials=5, prune="median"), Closed(flat))
    assert [job.state for job in folder.jobs()] == ["finished", "finished", "finished", "pruned", "finished"]


def test_no_slot_waits_for_a_batch(folder: SweepDir) -> None:
    """Jobs of unlike lengths: whenever somebody waits, every slot is taken, as long as there is more to try."""
    taken: list[int] = []

    class Watched(Closed):
        def next_done(self, timeout: float) -> Job | None:
            taken.append(len(self.running))
            return super().next_done(timeout)

    searched(folder, ONE, options(trials=7), Watched(lambda at: [0.5] * (1 + int(at["optimizer.lr"] * 1e4) % 4), slots=3))
    assert set(taken[: taken.index(2)]) == {3}
    assert sorted(taken[taken.index(2) :], reverse=True) == taken[taken.index(2) :], "and then they run out"


def test_a_grid_is_tried_whole_and_can_be_pruned(folder: SweepDir) -> None:
    search = searched(folder, GRID, options(search="grid", trials=None, prune="halving"), Closed(peak, slots=2))
    assert len(folder.jobs()) == 9
    assert {tuple(chosen_by(job).values()) for job in folder.jobs()} == {(lr, d) for lr in (0.1, 0.01, 0.001) for d in (0.0, 0.1, 0.2)}
    assert not any(trial.state == TrialState.FAIL for trial in search.study.trials)
    assert "pruned" in {job.state for job in folder.jobs()}


def test_what_was_tried_before_is_not_run_again(folder: SweepDir) -> None:
    """Two values and six trials: two jobs, and each trial has its result."""
    search = searched(
        folder, Space((), {"optimizer.lr": Choice(("0.1", "0.01"))}), options(search="random", trials=6), Closed(peak, slots=2)
    )
    assert len(folder.jobs()) == 2
    assert {trial.params["optimizer.lr"]: trial.value for trial in search.study.trials} == {"0.1": peak({"optimizer.lr": 0.1})[-1]} | {
        "0.01": peak({"optimizer.lr": 0.01})[-1]
    }
    assert [trial.state for trial in search.study.trials] == [TrialState.COMPLETE] * 6


def test_what_failed_is_told_and_tried_again_in_the_next_sitting(folder: SweepDir) -> None:
    nan = searched(folder, ONE, options(trials=3), Closed(lambda at: [math.nan]))
    assert [trial.state for trial in nan.study.trials] == [TrialState.FAIL] * 3
    again = Search(folder, ONE, options(trials=4), ACCURACY)
    assert not again._left()
    waiting = [trial for trial in again.study.trials if trial.state == TrialState.WAITING]
    assert [trial.user_attrs["again"] for trial in waiting] == [0, 1, 2]


def test_a_trial_that_was_killed_before_it_had_a_job_is_made_up_for(folder: SweepDir) -> None:
    asked = options(trials=3)
    cut = Search(folder, ONE, asked, ACCURACY)
    cut.study.ask(distributions(ONE))
    search = searched(folder, ONE, asked, Closed(peak))
    assert [trial.state for trial in search.study.trials] == [TrialState.FAIL] + [TrialState.COMPLETE] * 3
    assert search.study.trials[1].params == search.study.trials[0].params
    assert len(folder.jobs()) == 3


def test_several_objectives(folder: SweepDir) -> None:
    objectives = (*ACCURACY, Objective("parameters", "min"))
    search = searched(folder, ONE, options(search="nsga2", trials=5), Closed(peak), objectives)
    assert all(
        trial.values == [pytest.approx(peak(chosen_by(job))[-1]), 7.0]
        for trial, job in zip(search.study.trials, folder.jobs(), strict=True)
    )


def test_evaluations_are_read_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    look = Evaluations(path, Objective("loss", "min"))
    assert look.new() == []
    path.write_text('{"step": 1, "train/loss": 1}\n{"step": 1, "val/loss": 0.5}\n{"step": 2, "val/lo', encoding="utf-8")
    assert look.new() == [(1, 0.5)]
    assert look.new() == []
    with open(path, "a", encoding="utf-8") as file:
        file.write('ss": "inf"}\n{"step": 3, "val/loss": 0.25}\n')
    assert look.new() == [(2, 0.5), (3, 0.25)]
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"step": 4, "val/loss": 0.75}\n')
    assert look.new() == [(4, 0.25)], "what it has reached"
    path.write_text('{"step": 1, "val/loss": "nan"}\n{"step": 2, "val/loss": 0.75}\n', encoding="utf-8")
    first, second = look.new()
    assert (first[0], math.isnan(first[1]), second) == (1, True, (2, 0.75)), "the run has gone back to a checkpoint"


@pytest.mark.slow
def test_a_real_search_is_pruned_stopped_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pruned runs are marked, and can be resumed as any run; a search is made longer by the same command that goes on with it."""
    monkeypatch.chdir(tmp_path)
    run = ["model=mlp", "trainer.duration=400 steps", "trainer.validate_every=40 steps", "trainer.threads=1", "trainer.loggers=[]"]
    search = ["sweep=random", "sweep.trials=5", "sweep.prune=halving", "sweep.jobs=2", "optimizer.lr=interval(1e-6,1)"]
    command = [sys.executable, "-m", "refresher_runner"]
    process = subprocess.Popen([*command, "train", "-m", *run, *search], stdout=subprocess.DEVNULL)
    while not any(job.state in DONE for folder in SweepDir.all("outputs") for job in folder.jobs()):
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    [folder] = SweepDir.all("outputs")
    assert subprocess.run([*command, "resume", str(folder), "sweep.trials=6"], check=False, capture_output=True).returncode == 0
    jobs = folder.jobs()
    assert len(jobs) == 6
    assert {job.state for job in jobs} == {"finished", "pruned"}
    pruned = next(job for job in jobs if job.state == "pruned")
    assert pruned.run.read_status()["step"] < 400
    assert subprocess.run([*command, "resume", str(pruned.run)], check=False, capture_output=True).returncode == 0
    assert (pruned.state, pruned.run.read_status()["step"]) == ("finished", 400)
