"""The range test of the learning rate, where its answer is known: gradient descent on a parabola."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from refresher_runner.engine.ramp import RangeTest, range_test, smooth
from refresher_runner.errors import ConfigError, TrainingError
from refresher_runner.task import Output, Task
from refresher_runner.tuning import ramp
from tests.engine.toy import Points, trainer

CURVATURE = 4.0


class Parabola(Task):
    """a w^2 / 2 and noise: descent shrinks w where lr < 2 / a, and blows it up beyond."""

    def __init__(self, noise: float = 0.0):
        super().__init__()
        self.w, self.noise = nn.Parameter(torch.tensor([3.0])), noise

    def step(self, batch: Points) -> Output:
        return Output((CURVATURE * self.w.square() / 2).sum() + self.noise * torch.randn(()))


def on_a_parabola(folder: Path, rates: list[float], noise: float = 0.0) -> RangeTest:
    made = trainer(folder, lambda: Parabola(noise), duration=f"{len(rates)} steps", log_every=len(rates) + 1)
    made.optimizer = torch.optim.SGD(made.task.parameters(), lr=0.5)
    made.base_lrs = [0.5]
    return range_test(made, 0.5, rates)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_parabola_is_lost_where_it_must_be(tmp_path: Path, noise: float) -> None:
    found = on_a_parabola(tmp_path, ramp(1e-5, 1e3, 400), noise)
    assert found.diverged
    assert found.lrs[-1] > 2 / CURVATURE, "below, every step comes nearer"
    assert found.lrs[-1] < 20 / CURVATURE
    assert found.steepest < found.lowest <= found.lrs[-1]
    assert found.suggestion == found.lowest / 4
    assert 0.05 / CURVATURE < found.suggestion < 2 / CURVATURE


def test_losses_are_those_of_descent_at_those_rates(tmp_path: Path) -> None:
    rates = ramp(1e-3, 0.3, 40)
    found = on_a_parabola(tmp_path, rates)
    w, expected = 3.0, []
    for rate in rates:
        expected.append(CURVATURE * w * w / 2)
        w -= rate * CURVATURE * w
    assert found.losses == pytest.approx(expected, rel=1e-4)
    assert (found.lrs, found.diverged) == (rates, False)


def test_groups_of_parameters_keep_their_shares_of_the_rate(tmp_path: Path) -> None:
    made = trainer(tmp_path, duration="30 steps", log_every=31)
    first, second = made.task.net[0], made.task.net[4]  # type: ignore[index]
    made.optimizer = torch.optim.SGD([{"params": first.parameters()}, {"params": second.parameters(), "lr": 0.03}], lr=0.3)
    made.base_lrs = [0.3, 0.03]
    seen: list[tuple[float, ...]] = []
    step = made.optimizer.step
    made.optimizer.step = lambda *a, **k: (seen.append(tuple(g["lr"] for g in made.optimizer.param_groups)), step(*a, **k))[1]  # type: ignore[method-assign]
    rates = ramp(1e-4, 1e-1, 30)
    range_test(made, 0.3, rates)
    assert seen == [pytest.approx((rate, rate / 10)) for rate in rates]


def test_what_cannot_be_learnt_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"lost at the learning rate \d+, before anything was learnt"):
        on_a_parabola(tmp_path, ramp(30, 3000, 40))


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 1.0), (2.0, 1.0)])
def test_a_ramp_goes_up(low: float, high: float) -> None:
    with pytest.raises(ConfigError):
        ramp(low, high, 20)


def test_a_ramp_grows_by_a_factor() -> None:
    assert ramp(1e-3, 10, 5) == pytest.approx([1e-3, 1e-2, 1e-1, 1, 10])


def test_smoothing_is_late_in_neither_direction() -> None:
    values = torch.randn(60).tolist()
    assert smooth([2.5] * 9, 0.8) == pytest.approx([2.5] * 9)
    impulse: list[float] = [0.0] * 30 + [1.0] + [0.0] * 30
    spread = smooth(impulse, 0.8)
    assert max(range(61), key=spread.__getitem__) == 30
    assert spread[20:30] == pytest.approx(spread[31:41][::-1], rel=0.1)
    assert torch.tensor(smooth(values, 0.9)).std() < torch.tensor(values).std() / 2
