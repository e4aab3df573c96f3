"""What a run can be told: the schemas of `conf/trainer`, of the schedule in `conf/optimizer`, of `conf/sweep`. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, TypeVar, get_type_hints

from refresher_runner.schema import REQUIRED, Decay, Duration, Fraction, NonNegative, Option, Positive, PositiveFloat, Time


@dataclass(frozen=True)
class TrainerOptions:
    """Values are in conf/trainer/default.yaml, each with a line on what it does."""

    duration: Duration
    budget: Time | None
    validate_every: Duration
    save_every: Duration
    log_every: Positive
    accumulate: Positive
    grad_clip: PositiveFloat | None
    ema_decay: Decay | None
    patience: Positive | None
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    channels_last: bool
    compile: bool
    device: str
    devices: Positive
    strategy: Literal["ddp", "fsdp"]
    threads: Positive | None
    deterministic: bool
    anomaly: bool
    profile: bool
    histograms: bool
    graph: bool
    limit_batches: Positive | None
    overfit_batches: Positive | None
    test: bool
    loggers: list[Literal["console", "csv", "tensorboard"]]


@dataclass(frozen=True)
class ScheduleOptions:
    """The learning rate over a run, as a factor of `optimizer.lr`; see `engine/optim.py`."""

    schedule: Literal["constant", "linear", "cosine", "one_cycle", "inverse_sqrt"]
    warmup_steps: NonNegative
    final_lr: Fraction
    restarts: tuple[NonNegative, ...] = ()  # as runs from before there were any


@dataclass(frozen=True)
class RunOptions:
    """The top of the configuration, beside the groups."""

    seed: NonNegative
    init_from: str | None
    judge: str | None
    outputs: str
    tags: list[str]
    modules: list[str]


@dataclass(frozen=True)
class SweepOptions:
    """Which runs are launched, and how many together; no part of any of them. Values are in conf/sweep/."""

    jobs: Positive | Literal["auto"]
    time_limit: Time | None
    resume: bool
    search: Literal["grid", "random", "tpe", "cmaes", "nsga2"]
    trials: Positive | None
    objectives: list[str]
    prune: Literal["median", "halving"] | None
    startup: Positive
    grace: Positive
    seed: NonNegative


Options = TypeVar("Options", TrainerOptions, ScheduleOptions, RunOptions, SweepOptions)


def schema_of(kind: type[Any]) -> dict[str, Option]:
    """The fields of an options class as a schema."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: Option(hints[field.name], REQUIRED if field.default is MISSING else field.default) for field in fields(kind)}


# What makes no other configuration: where a run lies, what is seen of it, and how its machine serves it.
BESIDE = {"outputs", "tags", "data.root", "data.workers", "data.timeout"}
BESIDE |= {f"trainer.{name}" for name in ("loggers", "threads", "save_every", "log_every", "graph", "profile", "histograms", "test")}


def configuration(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's configuration, with dotted keys: what it has in common with runs that differ from it in their seed alone."""
    return {key: value for key, value in config.items() if key != "seed" and key not in BESIDE}
