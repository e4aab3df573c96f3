"""The verb tune-lr: a range test of the learning rate of a run to be, which leaves a curve and no run. Free of torch until used."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from refresher_runner.engine.rundir import RunDir
from refresher_runner.errors import ConfigError
from refresher_runner.parts import assemble, computer_for, loaders_for, place, trainer_for
from refresher_runner.report import Curve
from refresher_runner.schema import Duration
from refresher_runner.settings import Settings

if TYPE_CHECKING:
    from refresher_runner.engine.ramp import RangeTest

TAG = "tune_lr/curve"


@dataclass(frozen=True)
class Tuned:
    """What a range test found, and where its curve is."""

    found: RangeTest
    folder: Path
    picture: Path
    seconds: float


def tune_lr(settings: Settings, *, low: float | None, high: float | None, steps: int) -> Tuned:
    """Steps at rates from `low` to `high`; if not given, 10,000 times less and 1,000 times more than `optimizer.lr`.

    One process, whatever `trainer.devices` says: its batches are the same. No judge is asked or trained, and no checkpoint is written.
    Raises ConfigError where a rate is not positive or there is none between, and TrainingError where nothing can be learnt.
    """
    from refresher_runner.engine.loggers import Loggers
    from refresher_runner.engine.ramp import range_test

    lr = settings.optimizer.options["lr"]
    rates = ramp(low or lr / 1e4, high or lr * 1e3, steps)
    begun = time.perf_counter()
    one = replace(settings.trainer, duration=Duration(steps, "steps"), log_every=steps + 1, devices=1, ema_decay=None)
    settings = replace(settings, trainer=one)
    computer = computer_for(settings)
    parts = assemble(settings, computer)
    place(parts.task, settings, computer)
    loaders = loaders_for(parts.data, settings, computer)
    folder = RunDir.create(Path(settings.run.outputs) / "tune_lr", settings.model.name, settings.data.name)
    folder.checkpoints.rmdir()  # there will be none
    found = range_test(trainer_for(folder, parts, settings, loaders=loaders, sink=Loggers()), lr, rates)
    _show(found, folder, [name for name in settings.trainer.loggers if name != "console"])
    return Tuned(found, folder.path, folder.figures / f"{TAG.replace('/', '_')}.png", time.perf_counter() - begun)


def ramp(low: float, high: float, steps: int) -> list[float]:
    """Rates from `low` to `high`, each the same factor above the one before. Raises ConfigError."""
    if not 0 < low < high:
        raise ConfigError("should be more than 0 and less than --high", key="--low", value=f"{low:g}", cure=f"--high is {high:g}")
    return [low * (high / low) ** (step / (steps - 1)) for step in range(steps)]


def _show(found: RangeTest, folder: RunDir, names: Sequence[str]) -> None:
    """As curves over steps, and as one over rates: in TensorBoard, as a picture and in metrics.jsonl."""
    import torch

    from refresher_runner.engine.loggers import open_loggers

    sink = open_loggers(folder, names, title="learning rates")
    try:
        for step, (lr, loss, smoothed) in enumerate(zip(found.lrs, found.losses, found.smoothed, strict=True), start=1):
            sink.log({"tune_lr/loss": loss, "tune_lr/smoothed_loss": smoothed, "tune_lr/lr": lr}, step)
        lines = {"loss": torch.tensor(found.losses), "smoothed": torch.tensor(found.smoothed)}
        marks = {"suggestion": found.suggestion, "lowest": found.lowest, "steepest": found.steepest}
        sink.log({TAG: Curve(torch.tensor(found.lrs), lines, "optimizer.lr", "loss", x_scale="log", marks=marks)}, len(found.lrs))
    finally:
        sink.close()
