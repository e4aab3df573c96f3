"""A configuration, checked: all that can be refused before anything is created, downloaded or imported. Free of torch."""

from __future__ import annotations

import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from refresher_runner.bands import Measured
from refresher_runner.engine.options import RunOptions, ScheduleOptions, SweepOptions, TrainerOptions, schema_of
from refresher_runner.errors import ConfigError, UsageError, did_you_mean
from refresher_runner.registry import DATASETS, MODELS, OPTIMIZERS
from refresher_runner.schema import REQUIRED, Option, Time, check_options, check_value, typed

GROUPS = {"model": MODELS, "data": DATASETS, "optimizer": OPTIMIZERS}
OPTIONS = {"trainer": TrainerOptions, "sweep": SweepOptions, "measured": Measured}

# What a resumed run may not change: whatever would make its weights, or the order of its data, another run's.
FIXED = {
    "seed",
    "init_from",
    "optimizer.name",
    "trainer.accumulate",
    "trainer.ema_decay",
    "trainer.limit_batches",
    "trainer.overfit_batches",
}
FREE_OF_DATA = {"data.root", "data.workers", "data.timeout", "data.eval_batch_size"}

# What a run that is to be reproduced may change: where it computes, what of it is kept and shown.
INCIDENTAL = FREE_OF_DATA | {"outputs", "tags", "trainer.loggers", "trainer.save_every", "trainer.graph", "trainer.histograms"}
INCIDENTAL |= {"trainer.device", "trainer.devices", "trainer.threads", "trainer.precision", "trainer.compile", "trainer.deterministic"}


@dataclass(frozen=True)
class Component:
    """A builder's name, and keyword arguments that fit its signature."""

    name: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """A checked configuration."""

    model: Component
    data: Component
    optimizer: Component
    schedule: ScheduleOptions
    trainer: TrainerOptions
    run: RunOptions
    sweep: SweepOptions | None = None  # neither is part of a run that is stored
    measured: Measured | None = None


def check(config: Mapping[str, Any]) -> Settings:
    """Every key, type and range at every depth, and whether the data suit the model. Raises ConfigError."""
    top, schedule = schema_of(RunOptions), schema_of(ScheduleOptions)
    known = {*GROUPS, *OPTIONS, *top}
    for key in config:
        if key not in known:
            raise ConfigError("unknown key", key=str(key), cure=did_you_mean(str(key), known))
    run = RunOptions(**check_options({key: config[key] for key in config if key in top}, top, ""))
    trainer = TrainerOptions(**check_options(_group(config, "trainer"), schema_of(TrainerOptions), "trainer"))
    if trainer.budget is None and trainer.duration.seconds is not None:  # a length in time is a budget, however it is asked for
        trainer = replace(trainer, budget=Time(trainer.duration.amount, trainer.duration.unit))
    model, data = (_component(config, kind) for kind in ("model", "data"))
    optimizer = _component(config, "optimizer", extra=schedule)
    preset = config.get("measured")
    measured = Measured(**check_options(_group(config, "measured"), schema_of(Measured), "measured")).check() if preset else None
    sweep = SweepOptions(**check_options(_group(config, "sweep"), schema_of(SweepOptions), "sweep")) if "sweep" in config else None
    lr = ScheduleOptions(**{name: optimizer.options.pop(name) for name in schedule})
    _check_companions(model, data, optimizer, trainer)
    for key in ("init_from", "judge"):
        if getattr(run, key) == "last":
            problem, cure = "would be another run with every run that is made", "the folder of the run: refresher runs lists them"
            raise ConfigError(problem, key=key, value="last", cure=cure)
    if lr.schedule == "one_cycle" and lr.warmup_steps:
        problem = "one_cycle has a rise of its own"
        raise ConfigError(problem, key="optimizer.warmup_steps", value=lr.warmup_steps, cure="use optimizer.warmup_steps=0")
    return Settings(model, data, optimizer, lr, trainer, run, sweep, measured)


def choose_later(config: Mapping[str, Any], chosen: Mapping[str, str]) -> dict[str, Any]:
    """The configuration of a run with those options of its model, as they are typed, that may be chosen when it is used, and the seed.

    Raises UsageError for any other.
    """
    model = _component(config, "model").name
    options = {name: option for name, option in MODELS.signature(model).options.items() if option.later}
    changed = dict(config)
    for name, text in chosen.items():
        known = options.get(name) or (Option(int) if name == "seed" else None)
        if known is None:
            problem = f"is no option of predict; {model} takes {', '.join(f'--{option}' for option in (*options, 'seed'))}"
            raise UsageError(problem, key=f"--{name}", value=text, cure=did_you_mean(name, [*options, "seed"]))
        value = typed(text, known.annotation)
        changed |= {"seed": value} if name not in options else {"model": {**changed["model"], name: value}}
    return changed


def refuse_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a stored configuration was changed for a resume. Raises ConfigError for what would make it another run."""

    def other(key: str) -> bool:
        return key in FIXED or key.startswith("model.") or (key.startswith("data.") and key not in FREE_OF_DATA)

    return _refuse(before, after, other, "start a new run with refresher train")


def refuse_other_numbers(before: Mapping[str, Any], after: Mapping[str, Any], free: Collection[str] = ()) -> None:
    """Raises ConfigError where a run that is to be reproduced was changed in more than INCIDENTAL and `free` keys."""
    _refuse(before, after, lambda key: key not in INCIDENTAL and key not in free, "refresher train makes another run")


def _refuse(before: Mapping[str, Any], after: Mapping[str, Any], other: Callable[[str], bool], cure: str) -> bool:
    """Whether anything was changed."""
    old, new = flatten(before), flatten(after)
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if refused := [key for key in changed if other(key)]:
        told = "; ".join(f"{key} was {old.get(key)}, would be {new.get(key)}" for key in refused)
        raise ConfigError(f"this would be another run: {told}", cure=cure)
    return bool(changed)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a nested configuration."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return flat


def schema_for(config: Mapping[str, Any], group: str) -> dict[str, Option]:
    """The schema that a group of this configuration is checked against, `name` included."""
    if group in OPTIONS:
        return schema_of(OPTIONS[group])
    if group not in GROUPS:
        return schema_of(RunOptions)
    extra = schema_of(ScheduleOptions) if group == "optimizer" else {}
    return {"name": Option(str), **GROUPS[group].signature(_name(config, group)).options, **extra}


def absent(config: Mapping[str, Any]) -> list[str]:
    """Dotted keys of options that the groups of a configuration need and lack, as far as the names in these are known."""
    found = []
    for group in (*GROUPS, "trainer"):
        values = config.get(group)
        if isinstance(values, Mapping) and (group == "trainer" or values.get("name") in GROUPS[group].names()):
            options = schema_for(config, group).items()
            found += [f"{group}.{name}" for name, option in options if option.default is REQUIRED and name not in values]
    return found


def _component(config: Mapping[str, Any], kind: str, extra: Mapping[str, Option] | None = None) -> Component:
    name = _name(config, kind)
    values = {key: value for key, value in _group(config, kind).items() if key != "name"}
    return Component(name, check_options(values, {**GROUPS[kind].signature(name).options, **(extra or {})}, kind))


def _name(config: Mapping[str, Any], kind: str) -> str:
    group, registry = _group(config, kind), GROUPS[kind]
    name = check_value(group.get("name"), str, f"{kind}.name")
    if name not in registry.names():
        raise ConfigError(f"unknown {kind}", key=f"{kind}.name", value=name, cure=did_you_mean(name, registry.names()))
    return name


def _group(config: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    group = config.get(kind)
    if not isinstance(group, Mapping):
        raise ConfigError("should be a group of options", key=kind, value=group, cure=f"refresher list names the choices for {kind}")
    return group


def _check_companions(model: Component, data: Component, optimizer: Component, trainer: TrainerOptions) -> None:
    wants, gives = MODELS.signature(model.name).spec, DATASETS.signature(data.name).yields
    if wants is not None and gives is not None and not issubclass(gives, wants):
        fitting = [name for name in DATASETS.names() if issubclass(DATASETS.signature(name).yields or object, wants)]
        kinds = " or ".join(kind.__name__ for kind in typing.get_args(wants) or [wants])
        problem = f"model={model.name} learns from {kinds}, and this data set gives {gives.__name__}"
        raise ConfigError(problem, key="data", value=data.name, cure=f"data sets that fit: {', '.join(fitting)}")
    if optimizer.name == "muon" and trainer.strategy == "fsdp":
        raise ConfigError(
            "needs whole matrices, and fsdp keeps shards", key="optimizer", value="muon", cure="optimizer=adamw, or trainer.strategy=ddp"
        )
    if trainer.devices > 1 and (":" in trainer.device or trainer.device == "mps"):
        problem = f"{trainer.devices} devices cannot be this one"
        raise ConfigError(problem, key="trainer.device", value=trainer.device, cure="use trainer.device=cuda")
    batch_size = data.options.get("batch_size")
    if isinstance(batch_size, int) and batch_size % trainer.devices:
        problem = f"the global batch does not divide among {trainer.devices} devices"
        raise ConfigError(problem, key="data.batch_size", value=batch_size, cure=f"use a multiple of {trainer.devices}")
