"""The learning rate range test (Smith, 2017, section 3.3), its rate growing by a factor a step: where the loss falls, and where it is lost.

Differs: Smith's rate grows by a sum, and he looks at the accuracy; a loss can be seen at every step, and rates are told by their orders of
magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from refresher_runner.engine import signals
from refresher_runner.engine.trainer import Trainer
from refresher_runner.errors import TrainingError

SMOOTHED = 0.04  # of the steps: the reach of the average, to either side
START, FEWEST = 0.1, 5  # of the steps, and at least so many: before anything is learnt
BELOW_LOWEST = 4.0  # the suggestion is so many times smaller than the rate at which the loss is lowest


@dataclass(frozen=True)
class RangeTest:
    """Learning rates and the loss at each, until the last or until what was learnt was lost."""

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]
    diverged: bool

    @property
    def lowest(self) -> float:
        """The rate at which the smoothed loss is lowest."""
        return self.lrs[min(range(len(self.lrs)), key=self.smoothed.__getitem__)]

    @property
    def steepest(self) -> float:
        """The rate at which the smoothed loss falls fastest, by the logarithm of the rate."""
        falls = [after - before for before, after in zip(self.smoothed[:-1], self.smoothed[1:], strict=True)]
        return self.lrs[min(range(len(falls)), key=falls.__getitem__)]

    @property
    def suggestion(self) -> float:
        """A quarter of the rate at which the smoothed loss is lowest."""
        return self.lowest / BELOW_LOWEST


def range_test(trainer: Trainer, lr: float, rates: Sequence[float]) -> RangeTest:
    """A step at each of `rates`, which stand for `lr`: every group of parameters keeps its own share of it.

    It stops where the loss is not finite, or its average is above the highest of the first tenth, by more than these differ among
    themselves: all that was learnt is lost. Raises TrainingError where that is so from the start.
    """
    trainer.begin()
    losses: list[float] = []
    start = max(FEWEST, math.ceil(START * len(rates)))
    keep, average, diverged = 1 - 1 / (1 + SMOOTHED * len(rates)), 0.0, False
    for rate, batches in zip(rates, trainer.steps(), strict=False):
        signals.poll()
        trainer.advance(batches, rate / lr)
        loss = trainer.window.latest()
        average = keep * average + (1 - keep) * loss
        now = average / (1 - keep ** (len(losses) + 1))  # Adam's correction of what begins with nothing
        diverged = not math.isfinite(loss) or (len(losses) >= start and now > 2 * max(losses[:start]) - min(losses[:start]))
        if diverged:
            break
        losses.append(loss)
    if len(losses) <= start:
        cure = "a smaller --low, or the model's objective is at fault: debug=anomaly names the operation"
        raise TrainingError(f"the loss was lost at the learning rate {rates[len(losses)]:.2g}, before anything was learnt", cure=cure)
    return RangeTest(list(rates[: len(losses)]), losses, smooth(losses, keep), diverged)


def smooth(values: Sequence[float], keep: float) -> list[float]:
    """An exponential moving average in either direction, one after the other, so that nothing is late."""
    for _ in range(2):
        average, weight, found = 0.0, 0.0, []
        for value in values:
            average, weight = keep * average + (1 - keep) * value, keep * weight + (1 - keep)
            found.append(average / weight)
        values = found[::-1]
    return list(values)
