"""Weights out of checkpoints: a run's own, all of them, or another run's to begin from, where they fit. Free of torch until used."""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refresher_runner.engine.rundir import RunDir
from refresher_runner.errors import CheckpointError, ConfigError, DataError
from refresher_runner.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from refresher_runner.task import Task


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds, and where it lies."""

    path: Path
    state: dict[str, Any]

    @property
    def weights(self) -> dict[str, Tensor]:
        """What the run itself judged: averages, where it kept any."""
        return {**self.state["task"], **(self.state.get("ema") or {})}

    @cached_property
    def spec(self) -> Spec:
        """Of the data that the model learnt from. Raises CheckpointError where nobody here knows its kind."""
        try:
            return Spec.from_dict(self.state["spec"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"describes no known kind of data ({error})", key=str(self.path)) from None

    def origin(self) -> dict[str, Any]:
        """For the record of a run that begins from it: which file of which run, at which step, and its digest."""
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
        step = self.state.get("progress", {}).get("step")
        return {"path": str(self.path.resolve()), "run": self.state.get("run"), "step": step, "sha256": digest}


def saved_by(run: RunDir, name: str) -> Saved:
    """`best`, `last`, `previous`, or the checkpoint in a file. Raises CheckpointError."""
    return _read(run.checkpoints / f"{name}.pt" if name in ("best", "last", "previous") else Path(name))


def newest(run: RunDir, warn: Callable[[str], None]) -> Saved | None:
    """What a run goes on from; None where it has saved nothing. Raises CheckpointError where all that it saved is damaged."""
    from refresher_runner.engine import checkpoint

    state = checkpoint.load_newest(run, run.read_record().get("id", ""), warn)
    return None if state is None else Saved(run.checkpoints, state)


def pretrained(path: str, key: str = "init_from") -> Saved:
    """What `init_from`, or another key, names: the best checkpoint of a run, by its folder, or a checkpoint, by its file.

    Raises ConfigError where there is none, and CheckpointError where it is damaged.
    """
    file, run = Path(path), RunDir(path)
    if not file.is_file():
        file = run.checkpoints / "best.pt"
        if not run.config.is_file():
            problem, cure = "is neither a run nor a checkpoint", "refresher runs lists the runs there are"
            raise ConfigError(problem, key=key, value=path, cure=cure)
        if not file.is_file():
            problem, cure = "this run has no best checkpoint yet", f"{key}={run.checkpoints / 'last.pt'}, or another run"
            raise ConfigError(problem, key=key, value=path, cure=cure)
    return _read(file)


def load_pretrained(task: Task, saved: Saved, spec: Spec) -> str:
    """Every weight and statistic of the same name and shape is taken; returns a line that says how many, and what is new.

    Where the classes of the task's data, `spec`, are not those that were learnt, the layers that tell them apart stay new. Raises
    CheckpointError where nothing fits.
    """
    own = {name: value for name, value in task.state_dict().items() if value.is_floating_point()}  # counts and choices stay its own
    fitting = {name: value for name, value in saved.weights.items() if name in own and getattr(value, "shape", None) == own[name].shape}
    if list(getattr(spec, "classes", ())) != list(saved.state.get("spec", {}).get("classes", ())):
        told_apart = {id(parameter) for layer in task.class_layers() for parameter in layer.parameters()}
        others = {name for name, parameter in task.named_parameters() if id(parameter) in told_apart}
        fitting = {name: value for name, value in fitting.items() if name not in others}
    if not fitting:
        raise CheckpointError("holds no weight that fits this model", key=str(saved.path), cure="a run of the same model and sizes")
    task.load_state_dict(fitting, strict=False)
    new = sorted({name.rpartition(".")[0] or name for name in own.keys() - fitting.keys()})
    return f"begins with {len(fitting)} of {len(own)} tensors of {saved.path}" + (f"; new: {', '.join(new)}" if new else "")


def borrow(task: Task, spec: Spec) -> dict[str, dict[str, Any]]:
    """The parts that a task wants from other runs, all of their weights; returns the origin of each by the option that named it.

    Raises ConfigError where a run is absent or has learnt from other words, CheckpointError where its weights do not fit.
    """
    origins = {}
    for wanted in task.borrowed():
        saved = pretrained(wanted.run, wanted.key)
        if wanted.words and getattr(saved.spec, "vocabulary", None) != getattr(Spec.from_dict(spec.to_dict()), "vocabulary", None):
            raise ConfigError(
                "has learnt other words than these data have", key=wanted.key, value=wanted.run, cure="a run with the same data="
            )
        weights = {name.removeprefix(wanted.prefix): v for name, v in saved.weights.items() if name.startswith(wanted.prefix)}
        check_fit(wanted.part, weights, saved.path)
        wanted.part.load_state_dict(weights)
        origins[wanted.key] = saved.origin()
    return origins


def check_data(spec: Spec, saved: Saved) -> None:
    """The data at hand against those that a checkpoint learnt from. Raises DataError naming what differs first."""
    now, then = Spec.from_dict(spec.to_dict()), saved.spec  # both out of plain containers
    if type(now) is not type(then):
        raise DataError(f"is a {type(now).__name__}, and {saved.path} learnt from a {type(then).__name__}", key="data")
    for name in (field.name for field in fields(now)):
        here, there = getattr(now, name), getattr(then, name)
        if here != there:
            problem = f"has {name} {reprlib.repr(here)}, and {saved.path} learnt from {reprlib.repr(there)}"
            raise DataError(problem, key="data", cure="the data that the run learnt from, or a new run")


def check_fit(task: nn.Module, weights: dict[str, Any], path: Path) -> None:
    """Names and shapes of saved weights against the task's. Raises CheckpointError naming the first that differs."""
    own = {name: tuple(value.shape) for name, value in task.state_dict().items()}
    saved = {name: tuple(getattr(value, "shape", ("not a tensor",))) for name, value in weights.items()}
    for name in [*own, *saved]:
        if own.get(name) != saved.get(name):
            problem = f"{name} is {saved.get(name, 'absent')} in the checkpoint and {own.get(name, 'absent')} in the model"
            raise CheckpointError(problem, key=str(path), cure="the model's code or options changed since the run")


def _read(path: Path) -> Saved:
    from refresher_runner.engine import checkpoint

    return Saved(path, checkpoint.load(path))
