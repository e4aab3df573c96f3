"""A length in time becomes numbers of steps before a run begins, so that its schedule ends where it ends.

What is left of the time, from when the command began, holds the steps, the evaluations and the test. A run with a budget is the run of the
numbers that were chosen, bit for bit. Its config.yaml holds what was asked, run.json what was measured and chosen, which a run that goes on
keeps. Free of torch until used.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from refresher_runner.engine.rundir import RunDir
from refresher_runner.parts import Parts, trainer_for
from refresher_runner.schema import Duration
from refresher_runner.settings import Settings
from refresher_runner.spec import Loader

if TYPE_CHECKING:
    from refresher_runner.engine.pace import Pace

MEASURED = 0.05  # of a budget: how long steps are measured
LONGEST_MEASURED = 20.0  # seconds


def choose(
    settings: Settings, parts: Parts, loaders: Mapping[str, Loader], *, began: float, kept: Mapping[str, Any] | None, done: int
) -> dict[str, Any]:
    """What run.json keeps of a budget: what was asked, measured and chosen; empty where there is none.

    `began` is when the command did, by time.monotonic(); `kept` is what run.json has, which holds as long as the same is asked; a run that
    goes on after `done` steps and is asked for another budget has all of it from here.
    """
    budget = settings.trainer.budget
    if budget is None:
        return {}
    if kept and kept["asked"] == str(budget):
        return dict(kept)
    from refresher_runner.engine.pace import plan

    pace = _pace(settings, parts, loaders, min(MEASURED * budget.seconds, LONGEST_MEASURED))
    spent = parts.computer.world.from_main(time.monotonic() - began)
    steps_per_epoch = len(loaders["train"]) // settings.trainer.accumulate
    chosen = plan(budget.seconds - spent, pace, settings.trainer, settings.schedule, steps_per_epoch)
    seconds = {"spent": spent, **asdict(pace)}
    warmup_steps = settings.schedule.warmup_steps if done else chosen.warmup_steps
    return {"asked": str(budget), "seconds": seconds, **asdict(chosen), "steps": done + chosen.steps, "warmup_steps": warmup_steps}


def within(settings: Settings, chosen: Mapping[str, Any]) -> Settings:
    """Settings with the numbers that `choose` chose."""
    if not chosen:
        return settings
    length, every = Duration(chosen["steps"], "steps"), Duration(chosen["validate_every"], "steps")
    trainer = replace(settings.trainer, duration=length, validate_every=every, budget=None)
    return replace(settings, trainer=trainer, schedule=replace(settings.schedule, warmup_steps=chosen["warmup_steps"]))


def as_overrides(chosen: Mapping[str, Any]) -> list[str]:
    """The numbers as one would type them."""
    length = [f"trainer.duration={chosen['steps']} steps", f"trainer.validate_every={chosen['validate_every']} steps"]
    return ["trainer.budget=null", *length, f"optimizer.warmup_steps={chosen['warmup_steps']}"]


def tell(chosen: Mapping[str, Any], done: int) -> str:
    """What was chosen, in a line, and why; and whether the least that a run does is too much."""
    seconds, every, steps = chosen["seconds"], chosen["validate_every"], chosen["steps"] - done
    evaluations = steps // every
    needed = seconds["spent"] + steps * seconds["step"] + evaluations * seconds["evaluation"] + seconds["ending"]
    words = [
        f"{seconds['spent']:.1f} s of {chosen['asked']} are spent",
        f"{steps} steps of {1000 * seconds['step']:.3g} ms, {chosen['warmup_steps']} of them to warm up",
        f"an evaluation of {seconds['evaluation']:.2g} s every {every}",
        f"a test of {seconds['ending']:.2g} s",
        f"until {needed:.0f} s",
    ]
    return f"budget: {'; '.join(words)}"


def _pace(settings: Settings, parts: Parts, loaders: Mapping[str, Loader], seconds: float) -> Pace:
    """Measured on a copy, in a folder for nothing else; whatever is drawn, the run draws as if nothing had been."""
    from refresher_runner.engine.device import randomness_apart
    from refresher_runner.engine.loggers import Loggers, open_loggers
    from refresher_runner.engine.pace import Timed, measure

    trial = replace(settings, trainer=replace(settings.trainer, duration=Duration(1e9, "steps"), profile=False))
    names = [name for name in settings.trainer.loggers if name != "console"]
    val = Timed(loaders["val"])
    with tempfile.TemporaryDirectory() as folder, randomness_apart(settings.run.seed, parts.computer.device):
        run = RunDir(folder)
        run.checkpoints.mkdir()
        sink = open_loggers(run, names, title="a trial") if parts.computer.world.is_main else Loggers()
        try:
            of_trial = replace(parts, task=copy.deepcopy(parts.task))
            trainer = trainer_for(run, of_trial, trial, loaders={**loaders, "val": val}, sink=sink)
            return measure(trainer, val, loaders["test"] if settings.trainer.test else None, seconds)
        finally:
            sink.close()
