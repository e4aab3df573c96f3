"""The command line in processes that can be killed, and all that a run leaves in a form that can be compared.

Processes are forked from a server that has imported torch and the rest already, so that hundreds are affordable; what runs in one,
and what a signal does to it, is the same as for `refresher` typed by hand.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from refresher_runner.engine import checkpoint
from refresher_runner.engine.rundir import RunDir

SAVE_EVERY = 3  # steps
DRAWS = ["model=cnn", "data=digits", "data.pad=1", "data.batch_size=32", "model.dropout=0.3", "model.batch_norm=true"]
KEEPS = ["trainer.ema_decay=0.9", "trainer.accumulate=2", "trainer.grad_clip=1", "optimizer=adamw", "trainer.threads=1"]
STEPS = 45
TURNS = [
    f"trainer.duration={STEPS} steps",
    "trainer.validate_every=7 steps",
    f"trainer.save_every={SAVE_EVERY} steps",
    "trainer.log_every=4",
]
# every draw and every state there is; saves, evaluations and turns of epochs come often
TRAIN = ["train", *DRAWS, "model.channels=[4,8]", "model.hidden=16", *KEEPS, *TURNS]
SCENES = ["data.root=drawn", "data.size=64", "data.train_count=96", "data.val_count=16", "data.test_count=16", "data.batch_size=8"]
CHANCE = ["data.mosaic=0.5", "data.scale=0.2", "data.translate=0.1", "data.colour=0.2"]
DETECT = ["train", "model=yolo", *SCENES, *CHANCE, "model.width=8", "model.depth=1", *KEEPS, *TURNS]
PICTURES = ["data.size=8", "data.batch_size=32", "judge=null"]
DRAWN = ["model.width=8", "model.multipliers=[1,2]", "model.attention=[2]", "model.depth=1", "model.samples=2", "model.steps=2"]
DENOISE = ["train", "model=ddpm", *PICTURES, *DRAWN, *KEEPS, *TURNS]
IMPORTED: list[str] = [
    *("refresher_runner.cli", "refresher_runner.compose", "refresher_runner.run", "refresher_runner.engine.trainer"),
    *("refresher_runner.engine.summary", "refresher_runner.engine.tensorboard", "refresher_runner.models.cnn"),
    *("refresher_runner.data.images", "sklearn.datasets", "torchmetrics.classification", "matplotlib.backends.backend_agg"),
    *("refresher_runner.models.yolo", "refresher_runner.models.ddpm", "refresher_runner.metrics.detection", "torchvision.transforms.v2"),
    *("matplotlib.figure", "torch.utils.flop_counter", "PIL.JpegImagePlugin", "antlr4", "filelock"),
]

_SPEED = re.compile(r"[./]speed/")  # of training, and of what an evaluation measures

os.environ["OMP_NUM_THREADS"] = "1"
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(IMPORTED)


class Command:
    """`refresher <typed>` as it runs in `folder`; `said` is all it printed."""

    def __init__(self, *typed: str, folder: Path, **environment: str):
        self._said = folder / f"said.{time.monotonic_ns()}"
        self.process: ForkServerProcess = _context.Process(target=_main, args=(typed, folder, self._said, environment))
        self.process.start()

    @property
    def said(self) -> str:
        return self._said.read_text(encoding="utf-8") if self._said.is_file() else ""

    def wait(self, seconds: float = 120) -> int:
        """Its exit code; minus the number of the signal that ended it."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, "it hangs"
        return self.process.exitcode

    def send(self, signum: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signum)

    def killed_after(self, seconds: float) -> bool:
        """Killed, unless it ended before."""
        self.process.join(seconds)
        return self._kill()

    def killed_when(self, seen: Callable[[], bool], seconds: float = 60) -> bool:
        """Killed at the instant something is seen, unless it ended before."""
        end = time.monotonic() + seconds
        while self.process.is_alive() and time.monotonic() < end and not seen():
            pass
        return self._kill()

    def _kill(self) -> bool:
        self.process.kill()
        return self.wait() == -signal.SIGKILL


def _main(typed: tuple[str, ...], folder: Path, said: Path, environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    for stream in (1, 2):
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from refresher_runner.cli import main

    sys.exit(main(typed))


def only_run(folder: Path) -> RunDir | None:
    """The run below `folder`, as soon as there is a directory."""
    found = [*folder.glob("outputs/*/*/*")]
    assert len(found) <= 1
    return RunDir(found[0]) if found else None


# ---------------------------------------------------------------- instants


def appears(folder: Path, name: str, times: int = 1) -> Callable[[], bool]:
    """Whether a file whose name begins so, below the run directory, has come into being, was replaced or has grown, so many times."""
    run = only_run(folder)
    before = set(_versions(run, name))
    known = set(before)

    def seen() -> bool:
        nonlocal run
        run = run or only_run(folder)
        known.update(_versions(run, name))
        return len(known) - len(before) >= times

    return seen


def _versions(run: RunDir | None, name: str) -> Iterator[tuple[str, int, int]]:
    if run is None:
        return
    with suppress(FileNotFoundError), os.scandir(run.path / os.path.dirname(name)) as entries:
        for entry in entries:
            if entry.name.startswith(os.path.basename(name)):
                with suppress(FileNotFoundError):  # gone since
                    yield entry.name, entry.inode(), entry.stat().st_mtime_ns


def reports(folder: Path, tag: str, step: int) -> Callable[[], bool]:
    """Whether a tag was logged at this step, or later."""

    def seen() -> bool:
        run = only_run(folder)
        return run is not None and any(tag in line and line["step"] >= step for line in lines(run))

    return seen


EVENTS = {  # what is looked for below the run directory, and how often it is seen in a sitting
    "config.yaml": 1,
    "run.json": 1,
    "status.json": 12,
    "status.json.tmp": 8,
    "metrics.jsonl": 21,
    "checkpoints/last.pt.tmp": 16,
    "checkpoints/last.pt": 16,
    "checkpoints/previous.pt": 16,
    "checkpoints/best.pt.tmp": 4,
    "checkpoints/best.pt": 4,
    "tensorboard/events": 15,
    "tensorboard/rebuilding": 1,
    "figures/val": 3,
    "figures/test": 1,
}


def killed_and_resumed(typed: Sequence[str], folder: Path, kills: int, draw: random.Random, sitting: float) -> tuple[int, list[str]]:
    """`refresher <typed>` in `folder`, killed at most so often and resumed to the end; the kills that came in time, and what went wrong.

    Instants are drawn evenly over what a sitting takes, in seconds, or are those at which something is seen.
    """
    happened, problems = 0, []
    while True:
        run = only_run(folder)
        if run is not None and not run.config.is_file():  # killed before there was anything to lose
            shutil.rmtree(run.path)
            run = None
        left = 1 - newest_step(run) / (2 * STEPS) if run else 1.0
        command = Command(*(["resume", str(run.path.relative_to(folder))] if run else typed), folder=folder)
        latest = draw.uniform(0, sitting * left)
        name = draw.choice(list(EVENTS))
        if happened < kills and (
            command.killed_when(appears(folder, name, draw.randint(1, EVENTS[name])), latest)
            if draw.random() < 0.5
            else command.killed_after(latest)
        ):
            happened += 1
            run = only_run(folder)
            if run is not None and logged_step(run) - newest_step(run) > SAVE_EVERY:
                problems.append(f"the save interval was lost: step {logged_step(run)} fell back to {newest_step(run)}")
            continue
        if command.wait() != 0:
            problems.append(command.said[-300:])
        return happened, problems


# ---------------------------------------------------------------- what is left


def newest_step(run: RunDir) -> int:
    """The step that the run would go on from."""
    state = checkpoint.load_newest(run, run.read_record().get("id", ""), print)
    return state["progress"]["step"] if state else 0


def logged_step(run: RunDir) -> int:
    """The last step of which anything was logged."""
    return max((line["step"] for line in lines(run)), default=0)


def lines(run: RunDir) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; of a run that was killed, perhaps without the last."""
    text = run.metrics.read_text(encoding="utf-8") if run.metrics.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def left(run: RunDir) -> dict[str, str]:
    """All that a finished run has on disk as flat keys and exact values, but for names, clocks and what depends on them."""
    found = {}
    for name in ("last", "best"):
        state = checkpoint.load(run.checkpoints / f"{name}.pt")
        found |= _flat({key: value for key, value in state.items() if key not in ("run", "config", "logged")}, name)
    found |= _flat([{k: v for k, v in line.items() if k not in ("time", "config")} for line in lines(run)], "metrics")
    status = run.read_status()
    found |= _flat({key: status[key] for key in ("state", "step", "goal", "test", "exit_code")}, "status")
    return {key: value for key, value in found.items() if not key.endswith(".elapsed") and not _SPEED.search(key)}


def _flat(value: Any, name: str) -> dict[str, str]:
    if isinstance(value, torch.Tensor):
        return {name: f"{value.dtype} {tuple(value.shape)} {value.contiguous().numpy().tobytes().hex()}"}
    if isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for k, inner in items for key, leaf in _flat(inner, f"{name}.{k}").items()}
    return {name: repr(value)}


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return [key for key in {**one, **other} if one.get(key) != other.get(key)]


def logged_wrongly(run: RunDir) -> list[str]:
    """Points that are not exactly once in metrics.jsonl and, for numbers, in what each reader of TensorBoard's files finds."""
    truth = [(tag, line["step"], value) for line in lines(run) for tag, value in line.items() if tag not in ("step", "time")]
    wrong = [f"metrics.jsonl: {tag} at {step}" for (tag, step), n in Counter((tag, step) for tag, step, _ in truth).items() if n != 1]
    numbers = sorted((tag, step, _single(value)) for tag, step, value in truth if isinstance(value, float))
    for reader in (_accumulated, _loaded) if run.tensorboard.is_dir() else ():
        shown = sorted((tag, step, value) for tag, step, value in reader(run.tensorboard))
        wrong += [f"{reader.__name__}: {point}" for point in set(shown) ^ set(numbers)]
        wrong += [f"{reader.__name__}: {point} {n} times" for point, n in Counter(shown).items() if n != 1]
    return wrong


def _single(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))


def _accumulated(folder: Path) -> Iterator[tuple[str, int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "images": 0}).Reload()
    for tag in events.Tags()["scalars"]:
        yield from ((tag, point.step, point.value) for point in events.Scalars(tag))


def _loaded(folder: Path) -> Iterator[tuple[str, int, float]]:
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    for file in sorted(folder.glob("*tfevents*")):
        for event in LegacyEventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    yield value.tag, event.step, value.simple_value
