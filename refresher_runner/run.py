"""Where configuration, data, task and trainer meet: the verbs train, resume, test, predict and export. Free of torch until one is used."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from refresher_runner.budget import choose, tell, within
from refresher_runner.engine.launch import as_rank, launch
from refresher_runner.engine.outcome import held
from refresher_runner.engine.rundir import RunDir, write_atomically
from refresher_runner.errors import CheckpointError, Interrupted, TrainingError
from refresher_runner.judges import seat_judges
from refresher_runner.parts import Computer, Parts, assemble, computer_for, data_for, loaders_for, place, restored, trainer_for
from refresher_runner.report import Prediction
from refresher_runner.restore import Saved, check_data, newest, saved_by
from refresher_runner.settings import Settings, check, flatten, refuse_changes
from refresher_runner.spec import Loader

if TYPE_CHECKING:
    from refresher_runner.engine.loggers import Loggers
    from refresher_runner.engine.trainer import Trainer

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

    computer = computer_for(settings)
    saved = saved_by(run, checkpoint)
    data = data_for(settings, saved)
    check_data(data.spec, saved)
    data.prepare()
    task = restored(saved, settings, computer)
    seat_judges(task, settings, data, computer.device)
    loader = loaders_for(data, settings, computer)["test"]
    report = evaluate(task, loader, "test", device=computer.device, precision=computer.precision, seed=settings.run.seed)
    return {tag: value for tag, value in report.items() if isinstance(value, float)}


def predict(run: RunDir, settings: Settings, inputs: Sequence[str], *, checkpoint: str) -> Iterator[Prediction]:
    """What a run's model says of each input, one after another. The data set is not needed."""
    import torch

    from refresher_runner.engine.evaluate import autocast

    computer = computer_for(settings)
    task = restored(saved_by(run, checkpoint), settings, computer)
    with torch.no_grad(), autocast(computer.device, computer.precision):  # as the run itself judged it
        yield from task.eval().predict(list(inputs))


def export(run: RunDir, settings: Settings, file: Path, *, checkpoint: str) -> None:
    """What a run has learnt, in a file that other programs read. Raises UsageError where its model knows no such format."""
    computer = computer_for(settings)
    restored(saved_by(run, checkpoint), settings, computer).export(file)


# -------------------------------------------------------------------- a run


def _train(run: RunDir | None, settings: Settings, stored: str, command: Sequence[str]) -> RunDir:
    began = time.monotonic()
    if settings.trainer.devices > 1 and "LOCAL_RANK" not in os.environ:
        return _launch(run, settings, command)
    with as_rank():
        return _work(run, settings, stored, command, began)


def _work(run: RunDir | None, settings: Settings, stored: str, command: Sequence[str], began: float) -> RunDir:
    """What each process of a run does."""
    computer = computer_for(settings)
    world = computer.world
    with ExitStack() as ending:
        ending.callback(world.leave)
        warnings: list[str] = []
        saved = None
        if run is not None:
            ending.enter_context(held(run, world))
            saved = newest(run, warnings.append)
        parts = assemble(settings, computer, saved)
        seat_judges(parts.task, settings, parts.data, computer.device)
        world.join(computer.device)
        loaders = loaders_for(parts.data, settings, computer)
        place(parts.task, settings, computer)
        done = saved.state["progress"]["step"] if saved else 0
        kept = run.read_record().get("budget") if run else None
        budget = choose(settings, parts, loaders, began=began, kept=kept, done=done)
        settings = within(settings, budget)
        if run is None:
            run = RunDir(world.from_main(str(_create(settings)) if world.is_main else ""))
            ending.enter_context(held(run, world))
        run_id, sink = _open(run, settings, stored, command, parts, saved=saved, budget=budget, warnings=warnings)
        try:
            for line in parts.begun:
                sink.say(line)
            if budget and budget != kept:
                sink.say(tell(budget, done))
            if not saved:
                batch = next(loaders["train"].batches(0))
                sink.begin(parts.task, batch, stored=stored, config=flatten(_parse(stored)), graph=settings.trainer.graph)
            trainer = trainer_for(run, parts, settings, loaders=loaders, sink=sink, run_id=run_id, stored=stored)
            if saved:
                trainer.load_state_dict(saved.state)
                sink.say(f"resumed {run} at step {trainer.progress.step}")
            del saved
            trainer.fit()
            tested = _test_best(trainer, loaders["test"]) if settings.trainer.test else {}
            sink.finish(tested)
            if world.is_main:
                run.write_status("finished", step=trainer.progress.step, exit_code=0, test=tested)
        finally:
            sink.close()
    return run


def _create(settings: Settings) -> RunDir:
    run = RunDir.create(settings.run.outputs, settings.model.name, settings.data.name)
    if told := os.environ.get("REFRESHER_RUN_FILE"):
        write_atomically(Path(told), str(run.path.resolve()))
    return run


def _open(
    run: RunDir,
    settings: Settings,
    stored: str,
    command: Sequence[str],
    parts: Parts,
    *,
    saved: Saved | None,
    budget: Mapping[str, Any],
    warnings: Sequence[str],
) -> tuple[str, Loggers]:
    """The run's id, and its logs, cut to where it goes on from."""
    from refresher_runner.engine import checkpoint
    from refresher_runner.engine.loggers import Loggers, open_loggers, rewind

    world = parts.computer.world
    resumed = "id" in run.read_record()
    run_id = world.from_main(_identify(run, settings, command, parts, budget) if world.is_main else "")
    if not world.is_main:
        return run_id, Loggers([])
    checkpoint.clean(run, damaged=bool(warnings))
    if resumed:
        _note_sitting(run, command, parts.computer, budget)
    write_atomically(run.config, stored)
    run.write_status("running", exit_code=None, error=None, test=None)
    rewind(run, saved.state["logged"] if saved else 0, flatten(_parse(stored)))
    sink = open_loggers(run, settings.trainer.loggers, title=f"{settings.model.name} on {settings.data.name}")
    for warning in warnings:
        sink.warn(warning)
    return run_id, sink


def _identify(run: RunDir, settings: Settings, command: Sequence[str], parts: Parts, budget: Mapping[str, Any]) -> str:
    """The run's id, out of run.json, which is written where there is none yet.

    Raises CheckpointError where a run that has saved nothing yet would begin with other weights than it did.
    """
    from refresher_runner.engine.record import git_diff, record_of

    facts, computer = run.read_record(), parts.computer
    if "id" not in facts:
        run.diff.write_text(git_diff(), encoding="utf-8")
        machine = {"device": str(computer.device), "precision": computer.precision, "processes": computer.world.size}
        begun = {"origin": parts.origins.get("init_from"), "borrowed": {key: of for key, of in parts.origins.items() if key != "init_from"}}
        made = {"parameters": sum(p.numel() for p in parts.task.parameters()), **begun, "budget": budget or None}
        facts = record_of(command, seed=settings.run.seed, checksums=parts.data.checksums(), **made, **machine)
        write_atomically(run.record, json.dumps(facts, indent=2) + "\n")
    known = {"init_from": facts.get("origin"), **facts.get("borrowed", {})}
    for key, of in parts.origins.items():
        if (known.get(key) or of)["sha256"] != of["sha256"]:
            problem = "has changed since this run began with it"
            raise CheckpointError(problem, key=key, value=of["path"], cure="start a new run with refresher train")
    return facts["id"]


def _note_sitting(run: RunDir, command: Sequence[str], computer: Computer, budget: Mapping[str, Any]) -> None:
    """In run.json: that the run went on, by which command, from which code, where; and within which budget from now on."""
    from refresher_runner.engine.record import sitting_of

    facts = run.read_record()
    machine = {"device": str(computer.device), "precision": computer.precision, "processes": computer.world.size}
    sittings = [*facts.get("resumed", []), sitting_of(command, **machine)]
    write_atomically(run.record, json.dumps({**facts, "budget": budget or None, "resumed": sittings}, indent=2) + "\n")


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
