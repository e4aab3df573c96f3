"""What a preset was measured to reach, and the band in which another run of it is expected. Free of torch.

measured:                                        in conf/experiment/<name>.yaml, beside what was run
  seeds: [0, 1, 2]
  metrics:
    test/accuracy: [0.9948, 0.9944, 0.9947]      a value for each seed
  machine: 2 cores of an AMD EPYC, one thread, torch 2.15.0
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from refresher_runner.errors import ConfigError
from refresher_runner.schema import NonNegative

WITHIN = 0.95  # of runs of the same: the band


@dataclass(frozen=True)
class Measured:
    """Runs of one configuration that differ by their seeds; a seed is named twice where it ran twice, say on other cores."""

    seeds: list[NonNegative]
    metrics: dict[str, list[float]]
    machine: str

    def check(self) -> Measured:
        """Raises ConfigError where seeds and values do not belong together."""
        if len(self.seeds) < 2 or not self.metrics:
            raise ConfigError("a spread needs two runs and a metric", key="measured.seeds", value=self.seeds, cure="measure another seed")
        for tag, values in self.metrics.items():
            if len(values) != len(self.seeds):
                raise ConfigError(f"{len(values)} values for {len(self.seeds)} seeds", key=f"measured.metrics.{tag}", value=values)
        return self

    def bands(self) -> dict[str, Band]:
        return {tag: band(values) for tag, values in self.metrics.items()}


@dataclass(frozen=True)
class Band:
    """Mean and standard deviation of what was measured, and between what the next value of its kind lies, 95 times of 100."""

    mean: float
    spread: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


def band(values: list[float]) -> Band:
    """Mean -+ t s sqrt(1 + 1/n): the prediction interval of a normal distribution of which n values are known; t of n - 1 degrees."""
    n, mean, spread = len(values), statistics.fmean(values), statistics.stdev(values)
    reach = quantile(WITHIN, n - 1) * spread * math.sqrt(1 + 1 / n)
    return Band(mean, spread, mean - reach, mean + reach)


def quantile(share: float, degrees: int) -> float:
    """The t of which a share of Student's distribution lies between -t and t."""
    low, high = 0.0, 1.0
    while between(high, degrees) < share:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if between(middle, degrees) < share else (low, middle)
    return high


def between(t: float, degrees: int) -> float:
    """The share of Student's distribution between -t and t (Abramowitz and Stegun, 1964, 26.7.3 and 26.7.4)."""
    theta = math.atan(t / math.sqrt(degrees))
    cosine, sine = math.cos(theta), math.sin(theta)
    odd = degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(1 + odd, degrees, 2):  # 1 + cos^2 / 2 + 3 cos^4 / 8 ..., or cos + 2 cos^3 / 3 + ...
        total += term
        term *= k / (k + 1) * cosine**2
    return 2 / math.pi * (theta + sine * total) if odd else sine * total


def told(bands: Mapping[str, Band], reached: Mapping[str, float]) -> list[list[str]]:
    """A row for each metric: its name, what is reached, mean and spread, the band, and the verdict."""
    rows = []
    for tag, expected in bands.items():
        value = reached.get(tag)
        words = "not measured" if value is None else "pass" if expected.holds(value) else "FAIL"
        shown = "-" if value is None else f"{value:.5g}"
        rows.append([tag, shown, f"{expected.mean:.5g} +- {expected.spread:.2g}", f"{expected.low:.5g} to {expected.high:.5g}", words])
    return rows
