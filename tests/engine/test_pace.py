"""What fits into a time, by arithmetic; and that a pace is measured as the steps of a run take it, without a trace."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from refresher_runner.engine.pace import Pace, Plan, Timed, measure, plan
from tests.engine.toy import Points, ToyLoader, options, schedule, trainer, weights

FLAT = schedule(warmup_steps=0)


@pytest.mark.parametrize(
    ("seconds", "pace", "changes", "expected"),
    [
        # 100 s, less a test of 10 s, less 4 evaluations of 2 s: 82 s
        (100, Pace(0.1, 2, 10), {"duration": "400 steps", "validate_every": "100 steps"}, Plan(820, 205, 0)),
        # 10 evaluations of 5 s would take half of the 100 s: a quarter is 5 of them
        (100, Pace(0.1, 5, 0), {"duration": "400 steps", "validate_every": "40 steps"}, Plan(750, 150, 0)),
        # one evaluation takes more than a quarter, and there is one
        (100, Pace(0.1, 40, 40), {"duration": "400 steps", "validate_every": "40 steps"}, Plan(200, 200, 0)),
        # 8 steps an epoch: 3 epochs, looked at each
        (11, Pace(0.1, 0.5, 0.5), {"duration": "3 epochs", "validate_every": "1 epochs"}, Plan(90, 30, 0)),
        # a length in time, looked at five times
        (100, Pace(0.1, 1, 0), {"duration": "100 seconds", "validate_every": "20 seconds"}, Plan(950, 190, 0)),
        # of which 250 steps are 25 seconds
        (100, Pace(0.1, 1, 0), {"duration": "100 seconds", "validate_every": "250 steps"}, Plan(960, 240, 0)),
        # nothing is left
        (-3, Pace(0.1, 1, 1), {"duration": "400 steps", "validate_every": "100 steps"}, Plan(1, 1, 0)),
    ],
)
def test_a_plan_is_what_fits(seconds: float, pace: Pace, changes: dict[str, object], expected: Plan) -> None:
    assert plan(seconds, pace, options(**changes), FLAT, 8) == expected


@pytest.mark.parametrize(("length", "warmup_steps"), [("1000 steps", 10), ("200 steps", 50), ("50 steps", 100), ("100000 steps", 1)])
def test_a_warm_up_keeps_its_share_of_the_length_and_grows_no_longer(length: str, warmup_steps: int) -> None:
    made = plan(10, Pace(0.1, 1e-6, 0), options(duration=length, validate_every=length), schedule(warmup_steps=100), 8)
    assert (made.steps, made.warmup_steps) == (99, warmup_steps)


class Slow(ToyLoader):
    """A batch takes so many seconds to come."""

    wait = 0.004

    def batches(self, epoch: int, start: int = 0) -> Iterator[Points]:
        for batch in super().batches(epoch, start):
            time.sleep(self.wait)
            yield batch


def test_a_pace_is_that_of_the_run_and_leaves_no_trace(tmp_path: Path) -> None:
    val, test = Timed(Slow(32)), Slow(320)
    made = trainer(tmp_path, train=Slow(), val=val, decay=0.5, duration="1000000 steps", log_every=3)
    before = weights(made.task).clone()
    pace = measure(made, val, test, 0.2)
    assert torch.equal(weights(made.task), before), "at learning rates of nothing nothing is learnt"
    assert pace.step >= 0.004
    assert pace.evaluation >= 4 * 0.004
    assert pace.ending >= 40 * 0.004
    assert pace.ending - pace.evaluation == pytest.approx(36 / 4 * val.seconds)
    assert made.progress.step * pace.step < 0.2 + made.progress.step * 0.1, "about as long as it was told"
    assert made.sink.series("val/loss")  # type: ignore[attr-defined]
