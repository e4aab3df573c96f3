"""What a value of the configuration may be: types with ranges, and the check of a mapping against a signature.

A builder's signature is the schema of its config, so the words for ranges live here, free of torch, and are used as
annotations: `width: Positive`, `dropout: Fraction`, `duration: Duration`, `activation: Literal["relu", "gelu"]`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

from annotated_types import Ge, Gt, Le, Lt

from refresher_runner.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from pydantic_core import CoreSchema

Positive = Annotated[int, Ge(1), Le(2**40)]
NonNegative = Annotated[int, Ge(0), Le(2**40)]
PositiveFloat = Annotated[float, Gt(0.0)]
NonNegativeFloat = Annotated[float, Ge(0.0)]
Fraction = Annotated[float, Ge(0.0), Le(1.0)]
Share = Annotated[float, Gt(0.0), Lt(1.0)]
Decay = Annotated[float, Ge(0.0), Lt(1.0)]

LATER = "may be chosen when a run is used"
T = TypeVar("T")
Later = Annotated[T, LATER]  # changes nothing that is learnt: an option of a model that `refresher predict RUN ... --option value` takes

Unit = Literal["steps", "epochs", "seconds", "minutes", "hours"]
_SECONDS = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0}


@dataclass(frozen=True)
class Duration:
    """A length of training with its unit: `10 epochs`, `2000 steps`, `5 minutes`."""

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, text: object) -> Duration:
        words = str(text).split()
        units = {u: u for u in get_args(Unit)} | {u[:-1]: u for u in get_args(Unit)}
        if len(words) == 2 and words[1] in units:
            try:
                amount = float(words[0])
            except ValueError:
                amount = -1.0
            whole = units[words[1]] in ("steps",)
            if 0 < amount < 1e12 and (amount == int(amount) or not whole):
                return cls(amount, units[words[1]])
        raise ValueError("should be a positive number and a unit, such as '10 epochs', '2000 steps' or '5 minutes'")

    @property
    def seconds(self) -> float | None:
        """Length in seconds; None when it is counted in steps or epochs."""
        return self.amount * _SECONDS[self.unit] if self.unit in _SECONDS else None

    def steps(self, steps_per_epoch: int) -> int | None:
        """Length in optimizer steps, at least 1; None when it is a time."""
        if self.unit == "steps":
            return int(self.amount)
        if self.unit == "epochs":
            return max(1, round(self.amount * steps_per_epoch))
        return None

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(cls.parse)


class Time(Duration):
    """A length of time, which a clock can tell: `30 seconds`, `5 minutes`."""

    @classmethod
    def parse(cls, text: object) -> Time:
        unit = str(text).split()[-1:]
        if not any(unit == [u] or unit == [u[:-1]] for u in _SECONDS):
            raise ValueError("should be a positive number and a unit of time, such as '30 seconds', '5 minutes' or '2 hours'")
        found = Duration.parse(text)
        return cls(found.amount, found.unit)

    @property
    def seconds(self) -> float:
        return self.amount * _SECONDS[self.unit]


REQUIRED: Any = object()


@dataclass(frozen=True)
class Option:
    """One keyword of a signature: what its value may be, and the value when a caller leaves it out."""

    annotation: Any
    default: Any = REQUIRED

    @property
    def later(self) -> bool:
        """Whether it may be chosen when a run is used."""
        return LATER in getattr(self.annotation, "__metadata__", ())


def check_value(value: Any, annotation: Any, key: str) -> Any:
    """The value as the annotated type. Strict: no word becomes a number, and NaN and infinity are refused.

    Raises ConfigError with key, value and what would be allowed.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    try:
        # JSON mode: strict about numbers and words, while a YAML list may fill a tuple.
        adapter = TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False))
    except Exception as error:  # pydantic refuses a config on types that bring their own schema
        if getattr(error, "code", "") != "type-adapter-config-unused":
            raise
        adapter = TypeAdapter(annotation)
    try:
        return adapter.validate_json(json.dumps(value))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = ".".join([key, *(str(part) for part in first["loc"] if isinstance(part, int))])
        said = [e["msg"].removeprefix("Input ").removeprefix("Value error, ") for e in error.errors(include_url=False)]
        raise ConfigError(" or ".join(dict.fromkeys(said)), key=at, value=value) from None
    except TypeError:
        raise ConfigError("is not a plain value", key=key, value=value) from None


def typed(text: str, annotation: Any) -> Any:
    """What a word on the command line stands for, where it is wanted as annotated: itself, or a number, a list, null as YAML has them."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    try:
        check_value(value, annotation, "")
    except ConfigError:
        try:
            return check_value(text, annotation, "")
        except ConfigError:
            return value
    return value


def check_options(values: Mapping[str, Any], options: Mapping[str, Option], prefix: str) -> dict[str, Any]:
    """`values` checked key by key against `options`: unknown, missing, wrong type, out of range.

    Raises ConfigError; returns keyword arguments in which every option has a value.
    """
    for name in values:
        if name not in options:
            cure = did_you_mean(name, options)
            raise ConfigError(f"unknown key; {prefix or 'the configuration'} has no '{name}'", key=_join(prefix, name), cure=cure)
    checked = {}
    for name, option in options.items():
        if name in values:
            checked[name] = check_value(values[name], option.annotation, _join(prefix, name))
        elif option.default is REQUIRED:
            raise ConfigError("needs a value", key=_join(prefix, name), cure=f"add {_join(prefix, name)}=...")
        else:
            checked[name] = option.default
    return checked


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else str(name)
