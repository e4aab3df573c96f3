"""How fast a run goes, measured by a few steps and one evaluation, and what of it fits into a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from refresher_runner.engine import signals
from refresher_runner.engine.options import ScheduleOptions, TrainerOptions
from refresher_runner.engine.trainer import Trainer
from refresher_runner.schema import Duration
from refresher_runner.spec import Loader

FIRST_STEPS = 3  # not counted: memory is claimed, kernels are chosen
MOST_LOOKING = 0.25  # of a budget, for evaluations


@dataclass(frozen=True)
class Pace:
    """Seconds."""

    step: float
    evaluation: float  # with its pictures, logs and checkpoints
    ending: float  # the test of the best checkpoint


@dataclass(frozen=True)
class Plan:
    """What a run does in its time: steps, the last of which is evaluated, and how many of them warm up."""

    steps: int
    validate_every: int
    warmup_steps: int


class Timed:
    """A loader that knows how long its batches were worked on: `seconds`, of the last epoch that was seen to its end."""

    def __init__(self, loader: Loader):
        self.loader, self.seconds = loader, 0.0

    def __len__(self) -> int:
        return len(self.loader)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        begun = time.perf_counter()
        yield from self.loader.batches(epoch, start)
        self.seconds = time.perf_counter() - begun


def measure(trainer: Trainer, val: Timed, test: Loader | None, seconds: float) -> Pace:
    """Steps for about so many seconds, at learning rates of nothing, then one evaluation, all as the run itself does them.

    `val` is the trainer's own; a test takes what an evaluation takes, but for the number of its batches. Every rank finds the same.
    """
    trainer.begin()
    steps = trainer.steps()
    _time(trainer, steps, FIRST_STEPS)
    spent, count, more = 0.0, 0, FIRST_STEPS
    while spent < seconds:
        spent, count = spent + _time(trainer, steps, more), count + more
        more = min(count, max(1, int(count * (seconds - spent) / spent)))
    trainer.task.metrics()  # imports what it needs, which takes seconds, and once
    begun = time.perf_counter()
    trainer.validate()
    evaluation = time.perf_counter() - begun
    ending = 0.0 if test is None else evaluation + val.seconds * (len(test) / len(val) - 1)
    return trainer.world.from_main(Pace(spent / count, evaluation, ending))


def plan(seconds: float, pace: Pace, options: TrainerOptions, schedule: ScheduleOptions, steps_per_epoch: int) -> Plan:
    """As many steps as fit into `seconds` beside evaluations and test; as many evaluations as the options have in their own length, if
    these take no more than a quarter of the time, but one at the end; a warm-up of its share of the length. At least one step.
    """

    def steps_of(duration: Duration) -> float:
        return duration.steps(steps_per_epoch) or (duration.seconds or 0.0) / pace.step

    length = steps_of(options.duration)
    wanted = round(length / steps_of(options.validate_every))
    left = seconds - pace.ending
    evaluations = max(1, min(wanted, int(MOST_LOOKING * left / pace.evaluation)))
    validate_every = max(1, int((left / evaluations - pace.evaluation) / pace.step))
    steps = evaluations * validate_every
    warmup_steps = min(schedule.warmup_steps, max(1, round(schedule.warmup_steps * steps / length)))
    return Plan(steps, validate_every, warmup_steps)


def _time(trainer: Trainer, steps: Iterator[list[Any]], count: int) -> float:
    """Seconds of so many steps; the slowest rank's."""
    begun = time.perf_counter()
    for _ in range(count):
        signals.poll()
        trainer.advance(next(steps), 0.0)
    if trainer.device.type != "cpu":
        torch.accelerator.synchronize(trainer.device)
    return trainer.world.largest(time.perf_counter() - begun, trainer.device)
