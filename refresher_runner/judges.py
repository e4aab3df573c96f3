"""Who judges drawn pictures: a classifier of the same data, another run's by name, or a small one that is trained once and kept; and, a
run of clip by name, whether they fit their captions.

The small one is an instrument, not a model to play with: its values are fixed here, so that runs on one data set, cut alike, are measured
alike. Free of torch until used.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refresher_runner.data.fetch import sha256
from refresher_runner.errors import CheckpointError, ConfigError
from refresher_runner.registry import MODELS
from refresher_runner.restore import check_fit, pretrained
from refresher_runner.settings import FREE_OF_DATA, Settings, check
from refresher_runner.spec import DataModule, ImageSpec, Placement, Spec

if TYPE_CHECKING:
    import torch

    from refresher_runner.nn.classify import Classifier
    from refresher_runner.nn.judge import Judge
    from refresher_runner.task import Scorer, Task

AUTO = "auto"
STEPS, LR = 1000, 3e-3
SMALL: dict[str, Any] = {
    "channels": (32, 64),
    "kernel": 3,
    "stride": 1,
    "padding": 1,
    "pool": 2,
    "pooling": "max",
    "activation": "relu",
    "batch_norm": True,
    "hidden": 64,
    "dropout": 0.3,
    "label_smoothing": 0.0,
}


def seat_judges(task: Task, settings: Settings, data: DataModule[Any], device: torch.device) -> None:
    """Whoever has an opinion of what a task draws, data being prepared. Raises as `judge_for` does."""
    if task.draws:
        task.judge, task.scorer, task.reader = judge_for(settings, data, device), scorer_for(settings, data, device), data.reader


def judge_for(settings: Settings, data: DataModule[Any], device: torch.device) -> Judge | None:
    """The judge that a configuration asks for, of data that are prepared; None where it wants none.

    Raises ConfigError or CheckpointError where the run that is named has none to give.
    """
    from refresher_runner.nn.classify import Classifier
    from refresher_runner.nn.judge import Judge

    wanted = settings.run.judge
    if wanted is None:
        return None
    if wanted != AUTO:
        task, name = _of_run(wanted, data.spec)
        if isinstance(task, Classifier):
            return Judge(task.to(device), name)
    return _small(settings, data, device)


def scorer_for(settings: Settings, data: DataModule[Any], device: torch.device) -> Scorer | None:
    """The run of clip that is named as the judge, to tell how well pictures fit captions; None where none is."""
    from refresher_runner.nn.judge import Matcher
    from refresher_runner.task import Scorer

    wanted = settings.run.judge
    task, _ = _of_run(wanted, data.spec) if wanted not in (None, AUTO) else (None, "")
    return Matcher(task.to(device)) if isinstance(task, Scorer) else None


def _of_run(name: str, spec: Spec) -> tuple[Task, str]:
    """The task of a run that can judge pictures of such data, and what to call it."""
    from omegaconf import OmegaConf

    from refresher_runner.nn.classify import Classifier
    from refresher_runner.task import Scorer

    saved = pretrained(name, "judge")
    if saved.spec != Spec.from_dict(spec.to_dict()):
        raise ConfigError("learnt from other data than this run does", key="judge", value=name, cure="a run with the same data=, or auto")
    model = check(OmegaConf.to_container(OmegaConf.create(saved.state["config"]), resolve=True)).model  # type: ignore[arg-type]
    task: Task = MODELS.builder(model.name)(saved.spec, **model.options)
    if not isinstance(task, Classifier | Scorer):
        cure = "a run of cnn, mlp, resnet or clip, or auto"
        raise ConfigError(f"is a run of {model.name}, no classifier", key="judge", value=name, cure=cure)
    check_fit(task, saved.weights, saved.path)
    task.load_state_dict(saved.weights)
    return task, f"{model.name}, {saved.path}"


def _small(settings: Settings, data: DataModule[Any], device: torch.device) -> Judge:
    """Out of <outputs>/judges, or trained and put there."""
    from filelock import FileLock

    from refresher_runner.engine import checkpoint
    from refresher_runner.engine.device import randomness_apart
    from refresher_runner.nn.judge import Judge

    spec = data.spec
    assert isinstance(spec, ImageSpec), "only pictures are judged"
    of_data = {key: value for key, value in settings.data.options.items() if f"data.{key}" not in FREE_OF_DATA}
    what = [spec.to_dict(), of_data, data.checksums(), SMALL, STEPS, LR]
    digest = sha256(json.dumps(what, sort_keys=True, default=str).encode())[:8]
    file = Path(settings.run.outputs) / "judges" / f"{settings.data.name}_{digest}.pt"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"), randomness_apart(0, device):
        classifier = MODELS.builder("cnn")(spec, **SMALL).to(device)
        try:
            state = checkpoint.load(file)
        except CheckpointError:  # absent or damaged
            accuracy = _train(classifier, data, device)
            state = {"task": classifier.state_dict(), "accuracy": accuracy}
            checkpoint.save(state, file)
    classifier.load_state_dict(state["task"])
    return Judge(classifier, f"a small CNN of {settings.data.name}, accuracy {state['accuracy']:.3f} on its validation part")


def _train(classifier: Classifier, data: DataModule[Any], device: torch.device) -> float:
    """STEPS steps of Adam at a rate that rises and falls, from seed 0; the accuracy on validation."""
    import torch

    from refresher_runner.engine import signals
    from refresher_runner.engine.optim import lr_factor
    from refresher_runner.engine.options import ScheduleOptions

    placement, schedule = Placement(str(device)), ScheduleOptions("one_cycle", 0, 0.0)
    loader = data.train_loader(placement)
    batches = (batch for epoch in range(STEPS) for batch in loader.batches(epoch))
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=LR, weight_decay=0.05, fused=True)
    for step in range(STEPS):
        signals.poll()
        for group in optimizer.param_groups:
            group["lr"] = LR * lr_factor(schedule, step, STEPS)
        optimizer.zero_grad()
        classifier.train().step(next(batches)).loss.backward()
        optimizer.step()
    right = total = 0
    with torch.no_grad():
        for batch in data.val_loader(placement).batches(0):
            right += int((classifier.eval().step(batch).preds.argmax(-1) == batch.labels).sum())
            total += len(batch.labels)
    return right / total
