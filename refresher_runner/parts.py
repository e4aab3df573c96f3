"""What a run is made of: a computer, data, a task, loaders and, of these, a trainer. Free of torch until one is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from refresher_runner.engine import signals
from refresher_runner.engine.rundir import RunDir
from refresher_runner.errors import ConfigError
from refresher_runner.registry import DATASETS, MODELS, OPTIMIZERS
from refresher_runner.restore import Saved, borrow, check_data, check_fit, load_pretrained, pretrained
from refresher_runner.settings import Settings
from refresher_runner.spec import DataModule, Loader, Placement

if TYPE_CHECKING:
    import torch

    from refresher_runner.engine.distributed import World
    from refresher_runner.engine.loggers import Loggers
    from refresher_runner.engine.trainer import Trainer
    from refresher_runner.task import Task


@dataclass(frozen=True)
class Computer:
    """The device, the precision and the processes of a run."""

    device: torch.device
    precision: str
    world: World


@dataclass(frozen=True)
class Parts:
    """A task and its data, on a computer; `origins` tells whose weights it begins with, by the option that named them, `begun` in words."""

    computer: Computer
    data: DataModule[Any]
    task: Task
    origins: Mapping[str, dict[str, Any]]
    begun: Sequence[str]


def computer_for(settings: Settings) -> Computer:
    """Torch made ready, and seeded. Raises ConfigError for a device or a precision that this machine lacks."""
    from refresher_runner.engine.device import choose_device, choose_precision, prepare_torch, seed_everything
    from refresher_runner.engine.distributed import World

    world = World.from_environment()
    device = choose_device(settings.trainer.device, world.local_rank)
    precision = choose_precision(settings.trainer.precision, device)
    prepare_torch(settings.trainer, device)
    seed_everything(settings.run.seed)
    return Computer(device, precision, world)


def data_for(settings: Settings, saved: Saved | None) -> DataModule[Any]:
    """The data set, its spec known; one that is learnt keeps the vocabulary of what is gone on from, or begun from."""
    data = DATASETS.builder(settings.data.name)(**settings.data.options)
    if data.learnt:
        if saved:
            data.adopt(saved.spec)
        data.prepare()
    return data


def assemble(settings: Settings, computer: Computer, saved: Saved | None = None) -> Parts:
    """Data that are prepared, and a task: new, or of the kind that was `saved`, whose weights it does not have yet.

    Raises DataError and CheckpointError where data or weights do not fit.
    """
    source = pretrained(settings.run.init_from) if settings.run.init_from and saved is None else None
    data = data_for(settings, saved or source)
    if saved:
        check_data(data.spec, saved)
    task = MODELS.builder(settings.model.name)(data.spec, **settings.model.options)
    if saved:
        check_fit(task, saved.state["task"], saved.path)
    begun = [load_pretrained(task, source, data.spec)] if source else []
    origins = {"init_from": source.origin()} if source else {}
    if saved is None:
        borrowed = borrow(task, data.spec)
        begun += [f"begins with all of {key}={of['path']}" for key, of in borrowed.items()]
        origins |= borrowed
    del source  # as large as the model, or more
    signals.poll()
    data.prepare()
    signals.poll()
    return Parts(computer, data, task, origins, begun)


def loaders_for(data: DataModule[Any], settings: Settings, computer: Computer) -> Mapping[str, Loader]:
    """The three splits as this rank sees them. Raises ConfigError where an epoch would not hold a step."""
    from refresher_runner.engine.limit import FirstBatches

    options, world = settings.trainer, computer.world
    placement = Placement(str(computer.device), settings.run.seed, world.rank, world.size)
    loaders: dict[str, Loader] = {
        "train": data.train_loader(placement),
        "val": data.val_loader(placement),
        "test": data.test_loader(placement),
    }
    if options.limit_batches is not None:
        loaders = {split: FirstBatches(loader, options.limit_batches) for split, loader in loaders.items()}
    if options.overfit_batches is not None:
        same = FirstBatches(loaders["train"], options.overfit_batches, always_epoch=0)
        loaders |= {"train": same, "val": same}
    if len(loaders["train"]) < options.accumulate:
        problem = f"an epoch has {len(loaders['train'])} batches, fewer than one step accumulates"
        raise ConfigError(
            problem, key="trainer.accumulate", value=options.accumulate, cure="accumulate less, or use a smaller data.batch_size"
        )
    return loaders


def trainer_for(
    run: RunDir,
    parts: Parts,
    settings: Settings,
    *,
    loaders: Mapping[str, Loader],
    sink: Loggers,
    run_id: str = "",
    stored: str = "",
) -> Trainer:
    """A trainer at the beginning of a run, its task where it computes."""
    import torch

    from refresher_runner.engine.trainer import Trainer

    torch.autograd.set_detect_anomaly(settings.trainer.anomaly)
    return Trainer(
        parts.task,
        partial(OPTIMIZERS.builder(settings.optimizer.name), **settings.optimizer.options),
        schedule=settings.schedule,
        options=settings.trainer,
        train=loaders["train"],
        val=loaders["val"],
        run=run,
        sink=sink,
        identity={"run": run_id, "spec": parts.data.spec.to_dict(), "config": stored},
        device=parts.computer.device,
        precision=parts.computer.precision,
        seed=settings.run.seed,
        world=parts.computer.world,
    )


def restored(saved: Saved, settings: Settings, computer: Computer) -> Task:
    """The task of a run with the weights of one of its checkpoints."""
    task = MODELS.builder(settings.model.name)(saved.spec, **settings.model.options)
    check_fit(task, saved.weights, saved.path)
    task.load_state_dict(saved.weights)
    return place(task, settings, computer)


def place(task: Task, settings: Settings, computer: Computer) -> Task:
    """Where and how it computes."""
    import torch

    task.to(computer.device)
    if settings.trainer.channels_last and settings.trainer.strategy != "fsdp":  # which shards contiguous parameters only
        task.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return task
