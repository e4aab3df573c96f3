"""A search: Optuna proposes points, the pool runs them, and hopeless ones are stopped while they run.

Nobody waits for a batch: a slot that is free gets the next proposal at once. The trials are on disk (search.log, Optuna's journal) as the
jobs are; each knows the other by the job's key. A trial that was cut off goes on with its job, under its own number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refresher_runner.engine.options import SweepOptions
from refresher_runner.errors import ConfigError, RunError
from refresher_runner.runs import summarise
from refresher_runner.sweep.folder import DONE, Job, Point, SweepDir
from refresher_runner.sweep.launching import create, modules, pool_for
from refresher_runner.sweep.leaderboard import Objective
from refresher_runner.sweep.points import options_of, point_of
from refresher_runner.sweep.pool import Pool
from refresher_runner.sweep.preflight import preflight
from refresher_runner.sweep.processes import Processes
from refresher_runner.sweep.samplers import GENERATION, distributions, evolved, pruner, refuse, sampler
from refresher_runner.sweep.space import Space, space_of

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import Trial

JOURNAL = "search.log"
AGAIN = "again"  # a trial that repeats one that failed, in a later sitting; it counts for that one


def search(typed: Sequence[str], config_dir: Path | None, source: Processes, folder: SweepDir | None = None) -> SweepDir:
    """A new search, or one that goes on in its `folder`. Raises ConfigError, with nothing begun, where it cannot be; and Interrupted."""
    space = space_of(typed, config_dir)
    points = [point_of([*space.fixed, *corner], (), config_dir) for corner in space.corners()]
    options = options_of(points[0], typed, config_dir)
    source.expect(modules(points))
    begun = _same(typed, points[0]) if options.resume and folder is None else folder
    found = preflight(points, source)
    objectives = objectives_of(options, found.goals)
    refuse(space, options, objectives)
    folder = begun or create(points[0], typed, config_dir, kind="search", **_told(objectives))
    with folder.locked():
        sitting = Search(folder, space, options, objectives, config_dir)
        with pool_for(folder, source, options, [p.settings for p in points], gpus=found.gpus, total=sitting.total) as pool:
            print(
                f"{folder}: {sitting.total} trials by {options.search}, {len(pool.slots)} at a time{_giving_up(options)}, of\n{space}",
                flush=True,
            )
            sitting.run(pool)
    return folder


def objectives_of(options: SweepOptions, goals: Sequence[Mapping[str, str]]) -> tuple[Objective, ...]:
    """What is asked for, `max accuracy` or `min parameters`; or the one goal that all models have. Raises ConfigError."""
    if options.objectives:
        found = []
        for text in options.objectives:
            mode, _, metric = text.partition(" ")
            if mode not in ("min", "max") or not metric.strip():
                raise ConfigError("should be such as 'max accuracy' or 'min parameters'", key="sweep.objectives", value=text)
            found.append(Objective(metric.strip().removeprefix("val/"), mode))  # type: ignore[arg-type]
        return tuple(found)
    asked = {(goal["metric"], goal["mode"]) for goal in goals}
    if len(asked) > 1:
        told = ", ".join(f"{mode} {metric}" for metric, mode in sorted(asked))
        raise ConfigError("these models have goals of their own", key="model", value=told, cure="sweep.objectives=['min loss']")
    return tuple(Objective(metric, mode) for metric, mode in asked)  # type: ignore[arg-type]


@dataclass
class Search:
    """One sitting of a search, in the folder of its sweep."""

    folder: SweepDir
    space: Space
    options: SweepOptions
    objectives: tuple[Objective, ...]
    config_dir: Path | None = None
    _trials: dict[str, list[Trial]] = field(default_factory=dict)  # by the key of the job that they wait for
    _looks: dict[str, Evaluations] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.study = study_in(self.folder, self.options, self.objectives)
        if self.options.search == "grid" and not self.study.trials:
            for point in self.space.grid():
                self.study.enqueue_trial(point)

    @property
    def total(self) -> int:
        """How many trials there are to be."""
        return self.options.trials or len(self.space.grid())

    def run(self, pool: Pool) -> None:
        """To the end. Raises Interrupted, with every trial on disk."""
        for job in self._left():
            pool.submit(job)
        while True:
            while pool.free and self._wants_more():
                if (job := self._propose()) is not None:
                    pool.submit(job)
            if not pool.busy:
                return
            if (done := pool.next_done(0.2)) is not None:
                self._tell(done)
            for job in pool.running:
                if self._is_hopeless(job):
                    pool.stop(job, "pruned")

    # -------------------------------------------------------------------- between the study and the jobs

    def _propose(self) -> Job | None:
        """The job of a new trial; None where it is one that is done, or under way, whose result is the trial's too."""
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        if self.options.search == "cmaes" and not any(trial.state == TrialState.WAITING for trial in trials):
            values, generation = evolved(self.options, self.space, self.objectives[0].mode, trials)
            self.study.enqueue_trial(values, user_attrs={GENERATION: generation})
        self.study.sampler = sampler(self.options, len(trials))
        trial = self.study.ask(distributions(self.space))
        varies = self.space.overrides(trial.params)
        point = point_of([*self.space.fixed, *varies], varies, self.config_dir)
        job = self.folder.add(point)
        trial.set_user_attr("job", job.key)
        under_way = job.key in self._trials
        self._trials.setdefault(job.key, []).append(trial)
        if job.state in DONE and not under_way:
            self._tell(job)
        return None if under_way or job.state in DONE else job

    def _wants_more(self) -> bool:
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        waiting = sum(trial.state == TrialState.WAITING for trial in trials)
        asked = sum(trial.state != TrialState.WAITING and AGAIN not in trial.user_attrs for trial in trials)
        return bool(waiting) or asked < self.total

    def _left(self) -> list[Job]:
        """Jobs of trials that were cut off; and what failed before is tried again."""
        from optuna.trial import Trial, TrialState

        found: dict[str, Job] = {}
        repeated = {trial.user_attrs.get(AGAIN) for trial in self.study.trials}
        for trial in self.study.trials:
            job = self.folder.job(str(trial.user_attrs.get("job", "")))
            cut_short = trial.state == TrialState.RUNNING and job is None  # killed between the proposal and the job
            if cut_short:
                self.study.tell(trial.number, state=TrialState.FAIL)
            if cut_short or (trial.state == TrialState.FAIL and trial.number not in repeated):
                kept = {key: value for key, value in trial.user_attrs.items() if key == GENERATION}
                self.study.enqueue_trial(trial.params, user_attrs={**kept, AGAIN: trial.number})
            elif trial.state == TrialState.RUNNING and job is not None:
                self._trials.setdefault(job.key, []).append(Trial(self.study, trial._trial_id))
                found[job.key] = job
        for job in found.values():
            if job.state in DONE:
                self._tell(job)
        return [job for job in found.values() if job.key in self._trials]

    def _tell(self, job: Job) -> None:
        """A job has ended, and so have the trials that waited for it."""
        from optuna.trial import TrialState

        self._is_hopeless(job)  # reports its last evaluations
        run = summarise(job.run)
        values = [objective.of(run) for objective in self.objectives]
        for trial in self._trials.pop(job.key, []):
            if job.state == "finished" and all(value is not None for value in values):
                self.study.tell(trial, values)  # type: ignore[arg-type]
            else:
                self.study.tell(trial, state=TrialState.PRUNED if job.state == "pruned" else TrialState.FAIL)

    def _is_hopeless(self, job: Job) -> bool:
        """Whether the pruner gives up on a job, after the evaluations that it has made since it was last asked."""
        if self.options.prune is None or job.key not in self._trials:
            return False
        trial = self._trials[job.key][0]
        look = self._looks.setdefault(job.key, Evaluations(job.run.metrics, self.objectives[0]))
        known = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        for number, value in look.new():
            if number not in known:
                trial.report(value, number)
                if trial.should_prune():
                    return True
        return False


class Evaluations:
    """What a run has reached by each of its evaluations, as its metrics.jsonl grows, or is cut where it goes on from a checkpoint.

    Reached, for the best of all evaluations is what the run will be judged by.
    """

    def __init__(self, path: Path, objective: Objective):
        self.path, self.objective = path, objective
        self._restart()

    def new(self) -> list[tuple[int, float]]:
        """The number, from 1, of each evaluation since the last call, and the best until then; NaN before anything was finite."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        if size < self._read:
            self._restart()
        if size == self._read:
            return []
        with open(self.path, "rb") as file:
            file.seek(self._read)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        found = []
        for line in map(json.loads, whole.splitlines()):
            if (value := line.get(self.objective.tag)) is not None:
                self._count += 1
                if math.isfinite(float(value)):
                    known = [value, *([self._best] if math.isfinite(self._best) else [])]
                    self._best = min(known, key=self.objective.loss)
                found.append((self._count, self._best))
        return found

    def _restart(self) -> None:
        self._read = self._count = 0
        self._best = math.nan


def study_in(folder: SweepDir, options: SweepOptions, objectives: Sequence[Objective]) -> Study:
    """The study of a sweep, new or as it stands."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(
        study_name=folder.path.name,
        storage=JournalStorage(JournalFileBackend(str(folder.path / JOURNAL))),
        directions=["minimize" if objective.mode == "min" else "maximize" for objective in objectives],
        pruner=pruner(options),
        load_if_exists=True,
    )


def _same(typed: Sequence[str], first: Point) -> SweepDir:
    """The newest search of the same command. Raises RunError."""
    words = [word for word in typed if not word.startswith("sweep.")]
    outputs = first.settings.run.outputs
    for folder in reversed(SweepDir.all(outputs)):
        if (folder.path / JOURNAL).is_file() and [w for w in folder.record["overrides"] if not w.startswith("sweep.")] == words:
            return folder
    problem, cure = f"no search in {outputs} has this space", "refresher resume SWEEP, or a new search without sweep.resume"
    raise RunError(problem, key="sweep.resume", value="true", cure=cure)


def _told(objectives: Sequence[Objective]) -> dict[str, Any]:
    """What sweep.json says of them, for the leaderboard."""
    return {"objectives": [asdict(objective) for objective in objectives]}


def _giving_up(options: SweepOptions) -> str:
    return f", hopeless ones given up by {options.prune}" if options.prune else ""
