"""The band of a preset: its law against scipy's and against draws; what the settings refuse; that every preset lies in its own."""

from __future__ import annotations

import statistics

import pytest
import torch
from scipy.stats import t as student

from refresher_runner.bands import Measured, band, between, quantile, told
from refresher_runner.compose import compose, groups
from refresher_runner.errors import ConfigError
from refresher_runner.settings import check

MEASURED = "+measured={seeds: [0, 1, 2], metrics: {test/accuracy: [0.9, 0.92, 0.91]}, machine: here}".replace("+", "")


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 30])
def test_student_s_distribution_is_scipy_s(degrees: int) -> None:
    for share in (0.5, 0.9, 0.95, 0.99):
        assert quantile(share, degrees) == pytest.approx(student.ppf((1 + share) / 2, degrees), rel=1e-9)
    for t in (0.1, 1.0, 5.0):
        assert between(t, degrees) == pytest.approx(2 * student.cdf(t, degrees) - 1, rel=1e-9)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_band_holds_the_next_value_95_times_of_100(n: int) -> None:
    draws = torch.randn(2000, n + 1, dtype=torch.float64).tolist()
    held = statistics.fmean(band(values[:n]).holds(values[n]) for values in draws)
    assert held == pytest.approx(0.95, abs=0.02)


def test_a_band_by_hand() -> None:
    found = band([0.9, 0.92, 0.91])
    assert (found.mean, found.spread) == (pytest.approx(0.91), pytest.approx(0.01))
    assert found.high - found.mean == pytest.approx(4.302653 * 0.01 * (4 / 3) ** 0.5, rel=1e-6)
    rows = told({"test/accuracy": found, "test/f1": found, "test/loss": found}, {"test/accuracy": 0.95, "test/f1": 0.97})
    assert [row[-1] for row in rows] == ["pass", "FAIL", "not measured"]


def test_what_was_measured_is_checked_as_any_option_and_is_no_part_of_a_run() -> None:
    config, stored = compose([MEASURED])
    assert check(config).measured == Measured([0, 1, 2], {"test/accuracy": [0.9, 0.92, 0.91]}, "here")
    assert "measured" not in stored


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        ("measured={seeds: [0, 1], metrics: {test/loss: [1.0]}, machine: here}", "measured.metrics.test/loss"),
        ("measured={seeds: [0], metrics: {test/loss: [1.0]}, machine: here}", "measured.seeds"),
        ("measured={seeds: [0, 1], metrics: {}, machine: here}", "measured.seeds"),
        ("measured={seeds: [0, 1], metric: {}, machine: here}", "measured.metric"),
        ("measured={seeds: [0, 1], metrics: {test/loss: [1.0, a]}, machine: here}", "measured.metrics.1"),
        ("measured={seeds: [0, 1], metrics: {test/loss: [1.0, 2.0]}}", "measured.machine"),
        ("measured=3", "measured"),
    ],
)
def test_what_was_measured_wrongly_is_refused(typed: str, key: str) -> None:
    config, _ = compose([typed])
    with pytest.raises(ConfigError) as refused:
        check(config)
    assert refused.value.key == key


@pytest.mark.parametrize("name", groups()["experiment"])
def test_every_value_of_a_preset_lies_in_its_band(name: str) -> None:
    measured = check(compose([f"experiment={name}"])[0]).measured
    for tag, expected in measured.bands().items() if measured else ():
        assert measured is not None
        assert expected.spread > 0, "or nothing else would ever pass"
        assert all(expected.holds(value) for value in measured.metrics[tag])
