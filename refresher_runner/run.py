"""Where configuration, data, task and trainer meet: the verbs train, resume, test, predict and export. Free of torch until one is used."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from refresher_runner.engine import signals
from refresher_runner.engine.launch import as_rank, launch
from refresher_runner.engine.outcome import held
from refresher_runner.engine.rundir import RunDir, write_atomically
from refresher_runner.errors import CheckpointError, ConfigError, Interrupted, TrainingError
from refresher_runner.judges import judge_for
from refresher_runner.registry import DATASETS, MODELS, OPTIMIZERS
from refresher_runner.report import Prediction
from refresher_runner.restore import Saved, borrow, check_data, check_fit, load_pretrained, newest, pretrained, saved_by
from refresher_runner.settings import Settings, check, flatten, refuse_changes
from refresher_runner.spec import DataModule, Loader, Placement

if TYPE_CHECKING:
    import torch

    from refresher_runner.engine.distributed import World
    from refresher_runner.engine.loggers import Loggers
    from refresher_runner.engine.trainer import Trainer
    from refresher_runner.task import Task

__all__ = ["Settings", "check", "export", "predict", "resume", "test", "train"]


def train(settings: Settings, *, stored: str, command: Sequence[str]) -> RunDir:
    """A new run: train, validate, test. `stored` is the text of its config.yaml. Raises a RefresherError."""
    return _train(None, settings, stored, command)


def resume(run: RunDir, settings: Settings, *, stored: str, command: Sequence[str]) -> RunDir:
    """Go on with a run exactly where its newest checkpoint stands. A finished run goes on only if it was changed, say made longer."""
    changed = refuse_changes(_parse(run.config.read_text(encoding="utf-8")), _parse(stored))
    if not changed and run.read_status().get("state") == "finished":
        return run
    if "LOCAL_RANK" not in os.environ:
        with run.locked():  # someone else's run is refused at once, not after the seconds that torch takes
            pass
    return _train(run, settings, stored, command)


def test(run: RunDir, settings: Settings, *, checkpoint: str) -> dict[str, float]:
    """Metrics of a run's checkpoint (`best`, `last` or a file) on the test split, as the run itself saw it. Nothing on disk changes."""
    from refresher_runner.engine.evaluate import evaluate

    computer = _computer(settings)
    saved = saved_by(run, checkpoint)
    data = _data(settings, saved)
    check_data(data.spec, saved)
    data.prepare()
    task = _restored(saved, settings, computer)
    if task.draws:
        task.judge, task.reader = judge_for(settings, data, computer.device), data.reader
    loader = _loaders(data, settings, computer)["test"]
    report = evaluate(task, loader, "test", device=computer.device, precision=computer.precision, seed=settings.run.seed)
    return {tag: value for tag, value in report.items() if isinstance(value, float)}


def predict(run: RunDir, settings: Settings, inputs: Sequence[str], *, checkpoint: str) -> Iterator[Prediction]:
    """What a run's model says of each input, one after another. The data set is not needed."""
    import torch

    from refresher_runner.engine.evaluate import autocast

    computer = _computer(settings)
    task = _restored(saved_by(run, checkpoint), settings, computer)
    with torch.no_grad(), autocast(computer.device, computer.precision):  # as the run itself judged it
        yield from task.eval().predict(list(inputs))


def export(run: RunDir, settings: Settings, file: Path, *, checkpoint: str) -> None:
    """What a run has learnt, in a file that other programs read. Raises UsageError where its model knows no such format."""
    computer = _computer(settings)
    _restored(saved_by(run, checkpoint), settings, computer).export(file)


# -------------------------------------------------------------------- set-up


@dataclass(frozen=True)
class Computer:
    """The device, the precision and the processes of a run."""

    device: torch.device
    precision: str
    world: World


def _computer(settings: Settings) -> Computer:
    """Torch made ready, and seeded. Raises ConfigError for a device or a precision that this machine lacks."""
    from refresher_runner.engine.device import choose_device, choose_precision, prepare_torch, seed_everything
    from refresher_runner.engine.distributed import World

    world = World.from_environment()
    device = choose_device(settings.trainer.device, world.local_rank)
    precision = choose_precision(settings.trainer.precision, device)
    prepare_torch(settings.trainer, device)
    seed_everything(settings.run.seed)
    return Computer(device, precision, world)


def _train(run: RunDir | None, settings: Settings, stored: str, command: Sequence[str]) -> RunDir:
    if settings.trainer.devices > 1 and "LOCAL_RANK" not in os.environ:
        return _launch(run, settings, command)
    with as_rank():
        return _work(run, settings, stored, command)


def _work(run: RunDir | None, settings: Settings, stored: str, command: Sequence[str]) -> RunDir:
    """What each process of a run does."""
    computer = _computer(settings)
    world = computer.world
    with ExitStack() as ending:
        ending.callback(world.leave)
        warnings: list[str] = []
        saved = None
        if run is not None:
            ending.enter_context(held(run, world))
            saved = newest(run, warnings.append)
        source = pretrained(settings.run.init_from) if settings.run.init_from and saved is None else None
        data = _data(settings, saved or source)
        if saved:
            check_data(data.spec, saved)
        task = MODELS.builder(settings.model.name)(data.spec, **settings.model.options)
        if saved:
            check_fit(task, saved.state["task"], saved.path)
        begun = [load_pretrained(task, source, data.spec)] if source else []
        origins = {"init_from": source.origin()} if source else {}
        if saved is None:
            origins |= borrow(task, data.spec)
        del source  # as large as the model, or more
        signals.poll()
        data.prepare()
        signals.poll()
        if task.draws:
            task.judge, task.reader = judge_for(settings, data, computer.device), data.reader
        world.join(computer.device)
        loaders = _loaders(data, settings, computer)
        if run is None:
            run = RunDir(world.from_main(str(_create(settings)) if world.is_main else ""))
            ending.enter_context(held(run, world))
        made = task, data, computer
        run_id, sink = _open(run, settings, stored, command, *made, saved=saved, origins=origins, warnings=warnings)
        try:
            for line in (*begun, *(f"begins with all of {key}={of['path']}" for key, of in origins.items() if key != "init_from")):
                sink.say(line)
            trainer = _trainer(run, run_id, settings, stored, *made, loaders=loaders, saved=saved, sink=sink)
            del saved
            trainer.fit()
            tested = _test_best(trainer, loaders["test"]) if settings.trainer.test else {}
            sink.finish(tested)
            if world.is_main:
                run.write_status("finished", step=trainer.progress.step, exit_code=0, test=tested)
        finally:
            sink.close()
    return run


def _data(settings: Settings, saved: Saved | None) -> DataModule[Any]:
    """The data set, its spec known; one that is learnt keeps the vocabulary of what is gone on from, or begun from."""
    data = DATASETS.builder(settings.data.name)(**settings.data.options)
    if data.learnt:
        if saved:
            data.adopt(saved.spec)
        data.prepare()
    return data


def _create(settings: Settings) -> RunDir:
    run = RunDir.create(settings.run.outputs, settings.model.name, settings.data.name)
    if told := os.environ.get("REFRESHER_RUN_FILE"):
        write_atomically(Path(told), str(run.path.resolve()))
    return run


def _loaders(data: DataModule[Any], settings: Settings, computer: Computer) -> Mapping[str, Loader]:
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


def _open(
    run: RunDir,
    settings: Settings,
    stored: str,
    command: Sequence[str],
    task: Task,
    data: DataModule[Any],
    computer: Computer,
    *,
    saved: Saved | None,
    origins: Mapping[str, dict[str, Any]],
    warnings: Sequence[str],
) -> tuple[str, Loggers]:
    """The run's id, and its logs, cut to where it goes on from."""
    from refresher_runner.engine import checkpoint
    from refresher_runner.engine.loggers import Loggers, open_loggers, rewind

    world = computer.world
    resumed = "id" in run.read_record()
    run_id = world.from_main(_identify(run, settings, command, task, data, computer, origins) if world.is_main else "")
    if not world.is_main:
        return run_id, Loggers([])
    checkpoint.clean(run, damaged=bool(warnings))
    if resumed:
        _note_sitting(run, command, computer)
    write_atomically(run.config, stored)
    run.write_status("running", exit_code=None, error=None, test=None)
    rewind(run, saved.state["logged"] if saved else 0, flatten(_parse(stored)))
    sink = open_loggers(run, settings.trainer.loggers, title=f"{settings.model.name} on {settings.data.name}")
    for warning in warnings:
        sink.warn(warning)
    return run_id, sink


def _trainer(
    run: RunDir,
    run_id: str,
    settings: Settings,
    stored: str,
    task: Task,
    data: DataModule[Any],
    computer: Computer,
    *,
    loaders: Mapping[str, Loader],
    saved: Saved | None,
    sink: Loggers,
) -> Trainer:
    """A trainer that stands where the run was saved, or at its beginning."""
    import torch

    from refresher_runner.engine.trainer import Trainer

    _place(task, settings, computer)
    torch.autograd.set_detect_anomaly(settings.trainer.anomaly)
    if not saved:
        sink.begin(task, next(loaders["train"].batches(0)), stored=stored, config=flatten(_parse(stored)), graph=settings.trainer.graph)
    trainer = Trainer(
        task,
        partial(OPTIMIZERS.builder(settings.optimizer.name), **settings.optimizer.options),
        schedule=settings.schedule,
        options=settings.trainer,
        train=loaders["train"],
        val=loaders["val"],
        run=run,
        sink=sink,
        identity={"run": run_id, "spec": data.spec.to_dict(), "config": stored},
        device=computer.device,
        precision=computer.precision,
        seed=settings.run.seed,
        world=computer.world,
    )
    if saved:
        trainer.load_state_dict(saved.state)
        sink.say(f"resumed {run} at step {trainer.progress.step}")
    return trainer


def _identify(
    run: RunDir,
    settings: Settings,
    command: Sequence[str],
    task: Task,
    data: DataModule[Any],
    computer: Computer,
    origins: Mapping[str, dict[str, Any]],
) -> str:
    """The run's id, out of run.json, which is written where there is none yet.

    Raises CheckpointError where a run that has saved nothing yet would begin with other weights than it did.
    """
    from refresher_runner.engine.record import git_diff, record_of

    facts = run.read_record()
    if "id" not in facts:
        run.diff.write_text(git_diff(), encoding="utf-8")
        parameters = sum(p.numel() for p in task.parameters())
        machine = {"device": str(computer.device), "precision": computer.precision, "processes": computer.world.size}
        begun = {"origin": origins.get("init_from"), "borrowed": {key: of for key, of in origins.items() if key != "init_from"}}
        facts = record_of(command, seed=settings.run.seed, checksums=data.checksums(), parameters=parameters, **begun, **machine)
        write_atomically(run.record, json.dumps(facts, indent=2) + "\n")
    known = {"init_from": facts.get("origin"), **facts.get("borrowed", {})}
    for key, of in origins.items():
        if (known.get(key) or of)["sha256"] != of["sha256"]:
            problem = "has changed since this run began with it"
            raise CheckpointError(problem, key=key, value=of["path"], cure="start a new run with refresher train")
    return facts["id"]


def _note_sitting(run: RunDir, command: Sequence[str], computer: Computer) -> None:
    """In run.json: that the run went on, by which command, from which code and where."""
    from refresher_runner.engine.record import sitting_of

    facts = run.read_record()
    sitting = sitting_of(command, device=str(computer.device), precision=computer.precision, processes=computer.world.size)
    write_atomically(run.record, json.dumps({**facts, "resumed": [*facts.get("resumed", []), sitting]}, indent=2) + "\n")


# -------------------------------------------------------------------- the end of a run


def _test_best(trainer: Trainer, loader: Loader) -> dict[str, float]:
    """The best checkpoint on the test split, logged and returned; the task is left with its weights."""
    from refresher_runner.engine import checkpoint

    found = trainer.progress.best is not None
    if found:
        trainer.world.wait()  # rank 0 may be writing still
        best = checkpoint.load(trainer.run.checkpoints / "best.pt", trainer.identity["run"])
        trainer.load_weights(best["task"])
    else:
        trainer.sink.warn("no evaluation left a best checkpoint, so the last weights are tested")
    report = trainer.evaluate(loader, "test", averaged=not found)
    trainer.sink.log(report, trainer.progress.step)
    return {tag: value for tag, value in report.items() if isinstance(value, float)}


def _parse(text: str) -> Any:
    """A stored configuration as plain containers, its secrets still unresolved."""
    return OmegaConf.to_container(OmegaConf.create(text))


def _restored(saved: Saved, settings: Settings, computer: Computer) -> Task:
    """The task of a run with the weights of one of its checkpoints."""
    task = MODELS.builder(settings.model.name)(saved.spec, **settings.model.options)
    check_fit(task, saved.weights, saved.path)
    task.load_state_dict(saved.weights)
    return _place(task, settings, computer)


def _place(task: Task, settings: Settings, computer: Computer) -> Task:
    """Where and how it computes."""
    import torch

    task.to(computer.device)
    if settings.trainer.channels_last and settings.trainer.strategy != "fsdp":  # which shards contiguous parameters only
        task.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return task


def _launch(run: RunDir | None, settings: Settings, command: Sequence[str]) -> RunDir:
    """The same command in `trainer.devices` processes. Raises what the first of them to fail failed with."""
    from refresher_runner.engine.device import choose_device, choose_precision

    device = choose_device(settings.trainer.device, settings.trainer.devices - 1)
    choose_precision(settings.trainer.precision, device)
    made, error = launch(settings.trainer.devices, command)
    run = run or (RunDir(made) if made else None)
    state = run.read_status().get("state") if run else None
    if error is None and run is not None and state == "finished":
        return run
    error = error or TrainingError("the processes ended before the run did", key=str(run))
    if isinstance(error, Interrupted) and run is not None:
        error.cure = f"refresher resume {run} goes on from step {run.read_status().get('step', 0)}"
    elif run is not None and state not in ("interrupted", "finished"):
        run.write_status("failed", exit_code=error.exit_code, error=str(error))
    raise error
