"""Weights out of checkpoints: a run's own, all of them, or another run's to begin from, where they fit. Free of torch until used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from refresher_runner.engine.rundir import RunDir
from refresher_runner.errors import CheckpointError
from refresher_runner.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor

    from refresher_runner.task import Task


class Saved(NamedTuple):
    """A checkpoint, where it lies, and the data that its model learnt from."""

    path: Path
    state: dict[str, Any]
    spec: Spec

    @property
    def weights(self) -> dict[str, Tensor]:
        """What the run itself judged: averages, where it kept any."""
        return {**self.state["task"], **(self.state.get("ema") or {})}


def saved_by(run: RunDir, name: str) -> Saved:
    """`best`, `last`, `previous`, or the checkpoint in a file. Raises CheckpointError."""
    return _read(run.checkpoints / f"{name}.pt" if name in ("best", "last", "previous") else Path(name))


def newest_spec(run: RunDir) -> Spec | None:
    """Of what a run would go on from; None where it has saved nothing. Raises CheckpointError where all that it saved is damaged."""
    from refresher_runner.engine import checkpoint

    run_id = run.read_record().get("id")
    state = checkpoint.load_newest(run, run_id, lambda warning: None) if run_id else None  # who goes on is told, not who looks
    return None if state is None else _spec_of(state, run.checkpoints)


def named(path: str) -> Saved:
    """The best checkpoint of a run, by its folder, or a checkpoint, by its file. Raises RunError or CheckpointError."""
    return _read(Path(path)) if Path(path).is_file() else saved_by(RunDir.find(path), "best")


def begin(task: Task, saved: Saved) -> str:
    """Every weight and statistic of the same name and shape is taken; returns a line that says how many, and what is new.

    Raises CheckpointError where none fits.
    """
    own = {name: value for name, value in task.state_dict().items() if value.is_floating_point()}  # counts and choices stay its own
    fitting = {name: value for name, value in saved.weights.items() if name in own and getattr(value, "shape", None) == own[name].shape}
    if not fitting:
        raise CheckpointError("holds no weight that fits this model", key=str(saved.path), cure="a run of the same model and sizes")
    task.load_state_dict(fitting, strict=False)
    new = sorted({name.rpartition(".")[0] or name for name in own.keys() - fitting.keys()})
    return f"begins with {len(fitting)} of {len(own)} tensors of {saved.path}" + (f"; new: {', '.join(new)}" if new else "")


def check_fit(task: Task, weights: dict[str, Any], run: RunDir) -> None:
    """Names and shapes of saved weights against the task's. Raises CheckpointError naming the first that differs."""
    own = {name: tuple(value.shape) for name, value in task.state_dict().items()}
    saved = {name: tuple(getattr(value, "shape", ("not a tensor",))) for name, value in weights.items()}
    for name in [*own, *saved]:
        if own.get(name) != saved.get(name):
            problem = f"{name} is {saved.get(name, 'absent')} in the checkpoint and {own.get(name, 'absent')} in the model"
            raise CheckpointError(problem, key=str(run), cure="the model's code or options changed since the run")


def _read(path: Path) -> Saved:
    from refresher_runner.engine import checkpoint

    state = checkpoint.load(path)
    return Saved(path, state, _spec_of(state, path))


def _spec_of(state: dict[str, Any], path: Path) -> Spec:
    try:
        return Spec.from_dict(state["spec"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"describes no known kind of data ({error})", key=str(path)) from None
