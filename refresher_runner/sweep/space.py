"""What a search may try: an interval, or a choice, for each key that is searched. Free of torch and Optuna.

optimizer.lr=interval(1e-4,1e-1)         numbers between; on a log scale where the ends lie a hundredfold apart: tag(linear,interval(...))
model.hidden=int(interval(16,256))       whole numbers; on a log scale: tag(log,int(interval(16,256)))
model.dropout=range(0,0.5,0.1)           the same in steps
model=cnn,mlp                            one of these
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.types import RunMode

from refresher_runner.compose import CONFIG, explained, loader, parse
from refresher_runner.errors import ConfigError
from refresher_runner.sweep.points import of_sweep, searching

WIDE = 100  # ends so many times apart ask for a log scale
DIGITS = 4  # of a number that is tried: more are noise, and hard to read


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, ends included."""

    low: float
    high: float
    whole: bool
    log: bool
    step: float | None = None

    def corners(self) -> list[float]:
        return [self.low, self.high]

    @property
    def values(self) -> list[float]:
        """All of them, of an interval in steps."""
        assert self.step
        return [self.low + n * self.step for n in range(round((self.high - self.low) / self.step) + 1)]

    def text(self, value: float) -> str:
        """As it is typed."""
        if self.whole:
            return str(round(value))
        return repr(min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high))

    def to_unit(self, value: float) -> float:
        """Where a value lies between the ends, from 0 to 1."""
        low, high, at = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return (at - low) / (high - low)

    def from_unit(self, share: float) -> float:
        """The inverse; the nearest that can be."""
        low, high = (math.log(x) if self.log else x for x in (self.low, self.high))
        value = low + share * (high - low)
        value = min(max(math.exp(value) if self.log else value, self.low), self.high)
        step = self.step or (1 if self.whole else None)
        steps = self.low + round((value - self.low) / step) * step if step else value
        return int(steps) if self.whole else steps

    def __str__(self) -> str:
        scale = " on a log scale" if self.log else f" in steps of {self.step:g}" if self.step else ""
        return f"from {self.low:g} to {self.high:g}{', whole' if self.whole else ''}{scale}"


@dataclass(frozen=True)
class Choice:
    """One of a few values, as they are typed; nothing is nearer to one than to another."""

    values: tuple[str, ...]

    def corners(self) -> list[str]:
        return list(self.values)

    def text(self, value: str) -> str:
        return value

    def __str__(self) -> str:
        return f"one of {', '.join(self.values)}"


Parameter = Union[Interval, Choice]


@dataclass(frozen=True)
class Space:
    """What holds for every trial, and what each may choose."""

    fixed: tuple[str, ...]
    parameters: Mapping[str, Parameter]

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """The overrides of a point that vary."""
        return [f"{key}={parameter.text(values[key])}" for key, parameter in self.parameters.items()]

    def corners(self) -> list[list[str]]:
        """Points that between them have both ends of every interval, and every value of every choice."""
        each = {key: parameter.corners() for key, parameter in self.parameters.items()}
        count = max(map(len, each.values()))
        return [self.overrides({key: corners[min(n, len(corners) - 1)] for key, corners in each.items()}) for n in range(count)]

    def grid(self) -> list[dict[str, Any]]:
        """Every combination, of choices and of steps."""
        each = [[(key, value) for value in parameter.values] for key, parameter in self.parameters.items()]
        return [dict(combination) for combination in itertools.product(*each)]

    def __str__(self) -> str:
        return "\n".join(f"  {key}: {parameter}" for key, parameter in self.parameters.items())


def space_of(typed: Sequence[str], config_dir: Path | None = None) -> Space:
    """What is typed, and what `hydra.sweeper.params` of a file says. Raises ConfigError where nothing is left to search."""
    with explained(typed, config_dir, sweeping=True):
        config = loader(config_dir).load_configuration(CONFIG, list(typed), RunMode.MULTIRUN)
        written = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
        own = of_sweep(typed, config_dir)
        parsed = [o for o in parse([*written, *typed], loader(config_dir)) if not o.is_hydra_override() and o.input_line not in own]
        parameters = {o.get_key_element(): _parameter(o) for o in parsed if o.is_sweep_override()}
    if not parameters:
        raise ConfigError("there is nothing to search", key="-m", value=" ".join(typed), cure="such as optimizer.lr='interval(1e-4,1e-1)'")
    fixed = [o.input_line or "" for o in parsed if not o.is_sweep_override()]
    return Space((*searching(typed, config_dir), *fixed), parameters)


def _parameter(override: Override) -> Parameter:
    """Raises ConfigError for an interval that cannot be."""
    value, key = override.value(), override.key_or_group
    written = (override.input_line or "").partition("=")[2]
    if isinstance(value, IntervalSweep):
        assert value.start is not None and value.end is not None
        if unknown := sorted(value.tags - {"log", "linear"}):
            raise ConfigError("is not a scale", key=key, value=unknown[0], cure="tag(log,interval(a,b)) or tag(linear,interval(a,b))")
        if not value.start < value.end:
            raise ConfigError("should go from the smaller number to the larger", key=key, value=written)
        if "log" in value.tags and value.start <= 0:
            raise ConfigError("a log scale begins above 0", key=key, value=f"{value.start:g}")
        whole = isinstance(value.start, int) and isinstance(value.end, int)
        wide = value.start > 0 and value.end / value.start >= WIDE
        return Interval(value.start, value.end, whole, "log" in value.tags or (wide and "linear" not in value.tags))
    if isinstance(value, RangeSweep):
        numbers = [number if isinstance(number, int) else float(number) for number in value.range()]
        if len(numbers) > 1:
            whole = all(isinstance(number, int) for number in numbers)
            return Interval(min(numbers), max(numbers), whole, False, abs(float(value.step)))
    values = tuple(str(text) for text in override.sweep_string_iterator())
    if not values:
        raise ConfigError("is empty", key=key, value=written)
    return Choice(values)
