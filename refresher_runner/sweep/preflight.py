"""Before the first job: every kind of model that a sweep will train is built once, without memory for its weights.

This happens in a process of its own, `python -m refresher_runner.sweep.preflight ANSWER here RUN...`, so that a crash there harms nobody.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refresher_runner.engine import signals
from refresher_runner.engine.rundir import RunDir, read_json, write_atomically
from refresher_runner.errors import ConfigError, RefresherError
from refresher_runner.registry import DATASETS, MODELS, OPTIMIZERS
from refresher_runner.settings import Settings
from refresher_runner.spec import DataModule
from refresher_runner.sweep.folder import Point
from refresher_runner.sweep.processes import Processes

if TYPE_CHECKING:
    from refresher_runner.task import Task

PATIENCE = 10.0  # seconds without a word


@dataclass(frozen=True)
class Found:
    """What was built: the parameters of each point's model, the goals of the models, and the number of this machine's GPUs."""

    parameters: list[int]
    goals: list[dict[str, str]]
    gpus: int


def preflight(points: Sequence[Point], processes: Processes, *, here: bool = True) -> Found:
    """Build what the points need.

    Raises the error of the first that cannot be built; `here`: also where this machine lacks the device.
    """
    kinds = {_kind(point): point for point in reversed(points)}
    with tempfile.TemporaryDirectory() as folder:
        answer, said, runs = Path(folder, "answer"), Path(folder, "said"), []
        for number, point in enumerate(kinds.values()):
            run = RunDir(Path(folder, str(number)))
            run.path.mkdir()
            run.config.write_text(point.stored, encoding="utf-8")
            runs.append(str(run))
        said.touch()
        arguments = [str(answer), "here" if here else "anywhere", *runs]
        number = processes.start("refresher_runner.sweep.preflight", arguments, output=said, environment={}, threads=1)
        silent_until: float | None = time.monotonic() + PATIENCE
        while not (ended := dict(processes.ended(0.1))):
            signals.poll()
            if silent_until and time.monotonic() > silent_until:
                print(f"looking ahead: building what {len(points)} jobs will train", flush=True)
                silent_until = None
        found = read_json(answer)
        if not found:
            last = (said.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]
            raise ConfigError(f"the models cannot be built (exit code {ended[number]}): {last}", key="-m")
    if "problem" in found:
        error = ConfigError(found["problem"], cure=found["cure"])
        error.exit_code = found["exit_code"]
        raise error
    parameters = dict(zip(kinds, found["parameters"], strict=True))
    return Found([parameters[_kind(point)] for point in points], found["goals"], found["gpus"])


def _kind(point: Point) -> str:
    """Points of the same kind are built alike."""
    s = point.settings
    return repr((s.model, s.data, s.optimizer, s.trainer.device, s.trainer.devices, s.trainer.precision, s.run.init_from))


def _build(settings: Settings, data: DataModule[Any], here: bool) -> tuple[int, dict[str, str]]:
    """The number of parameters, and the goal, of a model that can be built, and be given to its optimizer. Raises a RefresherError."""
    import torch

    from refresher_runner.engine.device import choose_device, choose_precision
    from refresher_runner.restore import pretrained

    if here:
        device = choose_device(settings.trainer.device, settings.trainer.devices - 1)
        choose_precision(settings.trainer.precision, device)
    if settings.run.init_from:
        pretrained(settings.run.init_from)

    def build() -> Task:
        return MODELS.builder(settings.model.name)(data.spec, **settings.model.options)

    try:
        with torch.device("meta"):
            task = build()
    except RuntimeError:  # of some, a part depends on numbers that the meta device does not have
        task = build()
    OPTIMIZERS.builder(settings.optimizer.name)(task, **settings.optimizer.options)
    return sum(p.numel() for p in task.parameters()), asdict(task.goal)


def _data(settings: Settings) -> DataModule[Any]:
    """The data set, its spec known."""
    data = DATASETS.builder(settings.data.name)(**settings.data.options)
    if data.learnt:
        data.prepare()
    return data


def main() -> int:
    """Answer, in a file of JSON, with the parameters of every run's model, or with what is wrong with the first that has none."""
    from refresher_runner.compose import checked, compose_stored

    answer, where, *runs = sys.argv[1:]
    found: dict[str, Any] = {"parameters": [], "goals": []}
    data: dict[str, DataModule[Any]] = {}
    try:
        for run in runs:
            settings = checked(*compose_stored(RunDir(run)))
            try:
                kind = repr(settings.data)
                data[kind] = data.get(kind) or _data(settings)
                count, goal = _build(settings, data[kind], where == "here")
                found["parameters"].append(count)
                found["goals"].append(goal)
            except RefresherError:
                raise
            except Exception as error:
                first = (str(error).strip().splitlines() or [""])[0]
                problem = f"cannot be built as the sweep asks ({type(error).__name__}: {first})"
                cure = f"refresher train model={settings.model.name} with the same values shows where"
                raise ConfigError(problem, key="model", value=settings.model.name, cure=cure) from error
        import torch

        found["gpus"] = torch.cuda.device_count()
    except RefresherError as error:
        found = {"problem": error.problem, "cure": error.cure, "exit_code": error.exit_code}
    write_atomically(Path(answer), json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
