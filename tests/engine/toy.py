"""The smallest task and data that the trainer can be tested with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from refresher_runner.engine.options import ScheduleOptions, TrainerOptions
from refresher_runner.engine.rundir import RunDir
from refresher_runner.engine.trainer import Trainer
from refresher_runner.report import Report
from refresher_runner.schema import Duration
from refresher_runner.task import Goal, Output, Task


class Points(NamedTuple):
    x: Tensor  # (B, 4)
    y: Tensor  # (B, 3)


class Toy(Task):
    """Regression with dropout, so that every draw counts."""

    goal = Goal("loss", "min")

    def __init__(self, dropout: float = 0.1, batch_norm: bool = False):
        super().__init__()
        norm = nn.BatchNorm1d(8) if batch_norm else nn.Identity()
        self.net = nn.Sequential(nn.Linear(4, 8), norm, nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3))

    def step(self, batch: Points) -> Output:
        error = (self.net(batch.x) - batch.y).square().mean()
        return Output(error, {"rmse": error.detach().sqrt()})

    def observe(self, batch: Points) -> Report:
        return {"noise": torch.rand(()).item()}  # looking draws too


class ToyLoader:
    """Points of a fixed law, shuffled by (seed, epoch)."""

    def __init__(self, size: int = 64, batch_size: int = 8, seed: int = 0, rank: int = 0, world_size: int = 1):
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(size, 4, generator=generator)
        self.y = torch.sin(self.x @ torch.randn(4, 3, generator=generator))
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size

    def __len__(self) -> int:
        return len(self.x) // self.batch_size

    def batches(self, epoch: int, start: int = 0) -> Iterator[Points]:
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(1000 * self.seed + epoch))
        share = self.batch_size // self.world_size
        for k in range(start, len(self)):
            index = order[k * self.batch_size : (k + 1) * self.batch_size][self.rank * share : (self.rank + 1) * share]
            yield Points(self.x[index], self.y[index])


class Tape:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.reports: list[tuple[int, dict[str, Any]]] = []
        self.warnings: list[str] = []

    def log(self, report: Report, step: int) -> None:
        self.reports.append((step, dict(report)))

    def flush(self) -> None: ...

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def series(self, tag: str) -> list[tuple[int, Any]]:
        return [(step, report[tag]) for step, report in self.reports if tag in report]


def options(**changes: Any) -> TrainerOptions:
    values: dict[str, Any] = {
        "duration": "20 steps",
        "budget": None,
        "validate_every": "10 steps",
        "save_every": "1 hours",
        "log_every": 5,
        "accumulate": 1,
        "grad_clip": None,
        "ema_decay": None,
        "patience": None,
        "precision": "fp32",
        "channels_last": False,
        "compile": False,
        "device": "cpu",
        "devices": 1,
        "strategy": "ddp",
        "threads": None,
        "deterministic": False,
        "anomaly": False,
        "profile": False,
        "histograms": False,
        "graph": False,
        "limit_batches": None,
        "overfit_batches": None,
        "test": True,
        "loggers": [],
    } | changes
    for name in ("duration", "validate_every", "save_every"):
        values[name] = Duration.parse(values[name])
    return TrainerOptions(**values)


def schedule(**changes: Any) -> ScheduleOptions:
    return ScheduleOptions(**{"schedule": "cosine", "warmup_steps": 3, "final_lr": 0.0, **changes})


def trainer(
    folder: Path, make: Callable[[], Task] = Toy, *, lr: float = 1e-2, decay: float = 0.01, seed: int = 0, **changes: Any
) -> Trainer:
    """A trainer for the toy; keywords are options of the trainer, or `train`, `val`, `schedule`, `world`, `precision`."""
    parts = {name: changes.pop(name) for name in ("train", "val", "world", "precision") if name in changes}
    lr_schedule = changes.pop("schedule", schedule())
    torch.manual_seed(seed)
    task = make()
    run = RunDir(folder)
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    return Trainer(
        task,
        lambda task: torch.optim.AdamW(task.parameters(), lr=lr, weight_decay=decay, fused=True),
        schedule=lr_schedule,
        options=options(**changes),
        run=run,
        sink=Tape(),
        identity={"run": "toy", "spec": {}, "config": ""},
        device=torch.device("cpu"),
        seed=seed,
        **{"train": ToyLoader(), "val": ToyLoader(32), **parts},
    )


def weights(task: Task) -> Tensor:
    return torch.cat([p.detach().flatten() for p in task.parameters()])
