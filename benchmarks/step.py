"""Time of one optimizer step on digits at batch 64: the pipeline, a hand-written loop, Lightning's default Trainer.

python -m benchmarks.step SIDE [cnn | mlp] prints microseconds per step. All sides train the same plain network (no batch norm, of the
MLP no dropout) on the same digits with Adam, clipping at norm 1 and a cosine schedule. The pipeline's figure is wall time between its first
and its last report, logging included; the hand-written loop's is its wall time, over tensors permuted once an epoch, with no logging at
all. `kernels` is what no loop can save: forward and backward of one batch alone, again and again, in the pipeline's memory format.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

EPOCHS = 40
CLIP = 1.0
LR = 2e-3
MODEL = sys.argv[2] if len(sys.argv) > 2 else "cnn"
CHOICE = [f"model={MODEL}", "model.batch_norm=false", "data=digits", "data.pad=0", "optimizer=adam", f"optimizer.lr={LR}"]


def pipeline() -> float:
    """The command itself, every logger on, validating once at the end."""
    from refresher_runner.cli import main

    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"trainer.duration={EPOCHS} epochs", f"trainer.validate_every={EPOCHS} epochs", f"trainer.grad_clip={CLIP}"]
        code = main(["train", *CHOICE, *overrides, "trainer.test=false", f"outputs={folder}"])
        assert code == 0
        lines = [json.loads(line) for line in next(Path(folder).rglob("metrics.jsonl")).read_text().splitlines()]
    rows = [(line["step"], line["time"]) for line in lines if "train/loss" in line]
    (first, started), (last, ended) = rows[0], rows[-1]
    return (ended - started) / (last - first) * 1e6


def digits() -> tuple[Any, Any, Any]:
    """The same network and the same training tensors as the pipeline's."""
    import torch

    from refresher_runner.compose import compose
    from refresher_runner.registry import DATASETS, MODELS
    from refresher_runner.settings import check
    from refresher_runner.spec import Placement

    settings = check(compose(CHOICE)[0])
    data = DATASETS.builder("digits")(**settings.data.options)
    data.prepare()
    torch.manual_seed(0)
    task = MODELS.builder(MODEL)(data.spec, **settings.model.options)
    batches = list(data.train_loader(Placement()).batches(0))
    return task.network, torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])


def hand() -> float:
    import torch
    import torch.nn.functional as F
    from torch import nn

    network, images, labels = digits()
    optimizer = torch.optim.Adam(network.parameters(), LR, fused=True)
    steps = len(images) // 64
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * steps)
    times = []
    for _ in range(EPOCHS):
        started = time.perf_counter()
        order = torch.randperm(len(images))
        for x, y in zip(images[order].split(64), labels[order].split(64), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            nn.utils.clip_grad_norm_(network.parameters(), CLIP)
            optimizer.step()
            schedule.step()
        times.append((time.perf_counter() - started) / steps)
    return statistics.median(times[1:]) * 1e6


def kernels() -> float:
    import torch
    import torch.nn.functional as F

    network, images, labels = digits()
    network.to(memory_format=torch.channels_last)
    x, y = images[:64], labels[:64]
    times = []
    for _ in range(EPOCHS * 20):
        started = time.perf_counter()
        network.zero_grad()
        F.cross_entropy(network(x), y).backward()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


def lightning() -> float:
    import logging

    import lightning as L
    import torch
    import torch.nn.functional as F
    from torch.utils.data import DataLoader, TensorDataset

    logging.disable(logging.WARNING)
    network, images, labels = digits()
    steps = len(images) // 64

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def training_step(self, batch: Any, index: int) -> Any:
            loss = F.cross_entropy(self.network(batch[0]), batch[1])
            self.log("train_loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), LR)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * steps)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    class Clock(L.Callback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_train_epoch_start(self, *_: object) -> None:
            self.started = time.perf_counter()

        def on_train_epoch_end(self, *_: object) -> None:
            self.times.append((time.perf_counter() - self.started) / steps)

    clock = Clock()
    loader = DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(max_epochs=EPOCHS, accelerator="cpu", gradient_clip_val=CLIP, callbacks=[clock], default_root_dir=folder)
        trainer.fit(Module(), loader)
    return statistics.median(clock.times[1:]) * 1e6


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    print({"pipeline": pipeline, "hand": hand, "kernels": kernels, "lightning": lightning}[sys.argv[1]]())
