"""What a run survives: kills, damage, signals, a full disk, and being asked for the wrong thing. Every fault here is real."""

from __future__ import annotations

import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from refresher_runner.engine import checkpoint
from refresher_runner.engine.rundir import RunDir
from tests.processes import (
    DETECT,
    SAVE_EVERY,
    STEPS,
    TRAIN,
    Command,
    appears,
    differences,
    killed_and_resumed,
    left,
    lines,
    logged_step,
    logged_wrongly,
    newest_step,
    only_run,
    reports,
)

QUICK = ["train", "model=mlp", "data=digits", "trainer=smoke", "trainer.threads=1", "trainer.loggers=[]"]
FOR_EVER = ["train", "model=mlp", "data=digits", "trainer.duration=1000000 steps", "trainer.threads=1", "trainer.loggers=[]"]
SLOW_LOOKS = [*TRAIN, "data.eval_batch_size=1", "trainer.duration=6 steps", "trainer.validate_every=2 steps", "trainer.loggers=[]"]


class Alone:
    """A run that nobody disturbs: what it leaves, and the seconds it takes."""

    def __init__(self, folder: Path, *typed: str):
        self.folder = folder
        started = time.perf_counter()
        assert Command(*typed, folder=folder).wait() == 0
        self.seconds = time.perf_counter() - started
        self.run = run_in(folder)
        self.left = left(self.run)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return Alone(tmp_path_factory.mktemp("alone"), *TRAIN)


@pytest.fixture(scope="module")
def stopped(alone: Alone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was killed in the middle, with two checkpoints of different steps."""
    folder = tmp_path_factory.mktemp("stopped")
    command = Command(*TRAIN, folder=folder)
    assert command.killed_when(reports(folder, "train/loss", STEPS // 2))
    steps = [step_of(run_in(folder), name) for name in ("last", "previous")]
    assert steps[0] > steps[1] > 0
    return folder


@pytest.fixture
def here(stopped: Path, tmp_path: Path) -> Path:
    """A copy of the run that was killed."""
    shutil.copytree(stopped, tmp_path / "here", symlinks=True)
    return tmp_path / "here"


def run_in(folder: Path) -> RunDir:
    run = only_run(folder)
    assert run is not None, "there is no run"
    return run


def step_of(run: RunDir, name: str) -> int:
    return checkpoint.load(run.checkpoints / f"{name}.pt")["progress"]["step"]


def resume(folder: Path, *typed: str, code: int = 0) -> str:
    """What `refresher resume` of the run in a folder says."""
    command = Command("resume", str(run_in(folder).path.relative_to(folder)), *typed, folder=folder)
    assert command.wait() == code, command.said
    return command.said


def contents(folder: Path, *but: str) -> dict[str, tuple[bytes, int]]:
    """Every file below a folder, with the time of its last change; without the lock, and what commands said."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.name not in but and not path.name.startswith(("said.", ".lock"))]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in found}


def one_line(said: str, *words: str) -> None:
    """One error line that holds these words, and at most one hint."""
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said
    assert "Traceback" not in said
    assert all(word in errors[0] for word in words), errors[0]


def assert_same(folder: Path, alone: Alone) -> None:
    run = run_in(folder)
    assert differences(alone.left, left(run)) == []
    assert logged_wrongly(run) == []
    assert not [path for path in run.path.rglob("*") if ".tmp." in path.name or path.name == "rebuilding"]


# ---------------------------------------------------------------- kill -9


def test_a_run_killed_at_each_of_its_turns_is_the_run_left_alone(alone: Alone, tmp_path: Path) -> None:
    """Six kills of one run: before the first checkpoint, around saves, in an evaluation, and in the final test."""
    moments: list[Callable[[], Callable[[], bool]]] = [
        lambda: appears(tmp_path, "status.json"),
        lambda: appears(tmp_path, "checkpoints/last.pt.tmp"),
        lambda: appears(tmp_path, "checkpoints/previous.pt", times=2),
        lambda: appears(tmp_path, "checkpoints/best.pt"),
        lambda: appears(tmp_path, "metrics.jsonl", times=4),
        lambda: reports(tmp_path, "test/loss", STEPS),
    ]
    command = Command(*TRAIN, folder=tmp_path)
    for moment in moments:
        assert command.killed_when(moment()), command.said
        run = run_in(tmp_path)
        assert run.read_status().get("state", "crashed") == "crashed"
        assert logged_step(run) - newest_step(run) <= SAVE_EVERY
        assert not run.is_locked()
        command = Command("resume", str(run.path.relative_to(tmp_path)), folder=tmp_path)
    assert command.wait() == 0, command.said
    assert_same(tmp_path, alone)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_forty_kills_at_any_instant_change_no_bit(alone: Alone, tmp_path: Path, seed: int) -> None:
    draw, kills = random.Random(seed), 0
    while kills < 8:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        happened, problems = killed_and_resumed(TRAIN, folder, 8 - kills, draw, alone.seconds)
        assert problems == []
        assert_same(folder, alone)
        kills += happened


@pytest.mark.slow
def test_kills_change_no_bit_of_a_detector(tmp_path: Path) -> None:
    alone = Alone(tmp_path, *DETECT)
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    happened, problems = killed_and_resumed(DETECT, folder, 8, random.Random(0), alone.seconds)
    assert happened > 0
    assert problems == []
    assert_same(folder, alone)


def test_a_folder_in_which_nothing_was_begun_is_no_run(tmp_path: Path) -> None:
    RunDir.create(tmp_path / "outputs", "cnn", "digits")  # all there is when the kill comes first
    one_line(resume(tmp_path, code=2), "config.yaml")


def test_one_bit_is_a_difference(alone: Alone, tmp_path: Path) -> None:
    run = RunDir(shutil.copytree(alone.run.path, tmp_path / "copy"))
    state = checkpoint.load(run.checkpoints / "last.pt")
    state["random"]["torch"][-1] ^= 1
    checkpoint.save(state, run.checkpoints / "last.pt")
    assert differences(alone.left, left(run)) == ["last.random.torch"]


# ---------------------------------------------------------------- damage


def flip(path: Path) -> None:
    """One bit of the largest tensor; bits of the archive's padding carry nothing."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = archive.read(max(archive.infolist(), key=lambda record: record.file_size))
    data[data.index(largest) + len(largest) // 2] ^= 4
    path.write_bytes(data)


def hole(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:4096] + bytes(4096) + data[8192:])


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def another_runs(path: Path) -> None:
    checkpoint.save({**checkpoint.load(path), "run": "another"}, path)


@pytest.mark.parametrize(
    "damage", [flip, *(pytest.param(d, marks=pytest.mark.slow) for d in (hole, cut, empty, folder_instead, dangling, another_runs))]
)
def test_damage_is_told_and_costs_no_bit(alone: Alone, here: Path, damage: Callable[[Path], None]) -> None:
    run = run_in(here)
    before = step_of(run, "previous")
    damage(run.checkpoints / "last.pt")
    said = resume(here)
    [warning] = [line for line in said.splitlines() if line.startswith("warning")]
    assert "last.pt" in warning
    assert "previous.pt" in warning
    assert f"at step {before}" in said
    assert_same(here, alone)


@pytest.mark.slow
def test_a_damaged_checkpoint_never_takes_the_place_of_a_good_one(alone: Alone, here: Path) -> None:
    run = run_in(here)
    flip(run.checkpoints / "last.pt")
    good = step_of(run, "previous")
    command = Command("resume", str(run.path.relative_to(here)), folder=here)
    assert command.killed_when(appears(here, "checkpoints/damaged.pt"))
    assert step_of(run, "previous") == good
    resume(here)
    assert_same(here, alone)


def test_where_no_checkpoint_is_whole_nothing_is_begun(here: Path) -> None:
    run = run_in(here)
    for name in ("last", "previous"):
        flip(run.checkpoints / f"{name}.pt")
    before = contents(here, "status.json")
    one_line(resume(here, code=3), "last.pt", "previous.pt")
    assert contents(here, "status.json") == before
    assert run.read_status()["state"] == "failed"


# ---------------------------------------------------------------- signals


def handles(process: int, signum: int) -> bool:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(mask, 16) >> (signum - 1) & 1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_signal_before_torch_is_there_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "refresher_runner", *QUICK]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not handles(process.pid, signal.SIGTERM):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 143
    one_line(said, "SIGTERM")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("moment", "signum"),
    [
        pytest.param("status.json", signal.SIGINT, id="before the first step"),
        pytest.param("checkpoints/last.pt.tmp", signal.SIGTERM, id="in a save"),
        pytest.param("metrics.jsonl", signal.SIGINT, id="in an epoch", marks=pytest.mark.slow),
        pytest.param("figures/val", signal.SIGTERM, id="after an evaluation", marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_a_run_that_loses_nothing(alone: Alone, tmp_path: Path, moment: str, signum: int) -> None:
    command = Command(*TRAIN, folder=tmp_path)
    assert stopped_by(command, signum, appears(tmp_path, moment, times=2 if moment == "metrics.jsonl" else 1)) == 128 + signum
    run = run_in(tmp_path)
    status = run.read_status()
    assert (status["state"], status["exit_code"], status["step"]) == ("interrupted", 128 + signum, newest_step(run))
    one_line(command.said, signal.Signals(signum).name)
    assert f"goes on from step {newest_step(run)}" in command.said
    said = resume(tmp_path)
    assert f"at step {status['step']}" in said
    assert_same(tmp_path, alone)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["val", "test"])
def test_a_signal_while_looking(tmp_path: Path, where: str) -> None:
    """Evaluations of one picture at a time take longer than all else."""
    (tmp_path / "alone").mkdir()
    slow = Alone(tmp_path / "alone", *SLOW_LOOKS)
    (tmp_path / "here").mkdir()
    here = tmp_path / "here"
    command = Command(*SLOW_LOOKS, folder=here)
    seen = appears(here, "checkpoints/last.pt", times=2) if where == "val" else reports(here, "val/loss", 6)
    assert stopped_by(command, signal.SIGTERM, seen, after=0.05) == 143
    assert run_in(here).read_status()["state"] == "interrupted"
    resume(here)
    assert_same(here, slow)


def test_a_second_sigint_leaves_at_once_with_nothing_damaged(here: Path, alone: Alone) -> None:
    run = run_in(here)
    command = Command("resume", str(run.path.relative_to(here)), folder=here)
    stopped_by(command, signal.SIGINT, appears(here, "checkpoints/last.pt.tmp"), times=2)
    assert command.wait() == 130
    for path in run.checkpoints.glob("*.pt"):
        checkpoint.load(path)
    resume(here)
    assert_same(here, alone)


def stopped_by(command: Command, signum: int, seen: Callable[[], bool], *, times: int = 1, after: float = 0.0) -> int:
    """The exit code of a command that got a signal when something was seen."""
    while command.process.is_alive() and not seen():
        pass
    time.sleep(after)
    for _ in range(times):
        command.send(signum)
        time.sleep(0.001)
    return command.wait()


# ---------------------------------------------------------------- what a resume may do


def test_a_finished_run_stays_as_it_is_wherever_it_is(alone: Alone, tmp_path: Path) -> None:
    before = contents(alone.folder)
    resume(alone.folder)
    assert Command("resume", "last", folder=alone.folder).wait() == 0
    assert contents(alone.folder) == before
    moved = shutil.copytree(alone.run.path, tmp_path / "elsewhere")
    before = contents(moved)
    assert Command("resume", "elsewhere", folder=tmp_path).wait() == 0
    assert contents(moved) == before


@pytest.mark.parametrize(
    ("change", "was", "would"),
    [
        ("model.hidden=32", "16", "32"),
        ("data.pad=2", "1", "2"),
        ("data.batch_size=16", "32", "16"),
        ("seed=1", "0", "1"),
        ("optimizer.name=adam", "adamw", "adam"),
        ("trainer.accumulate=1", "2", "1"),
        ("trainer.ema_decay=null", "0.9", "None"),
    ],
)
def test_what_would_be_another_run_is_refused(alone: Alone, stopped: Path, change: str, was: str, would: str) -> None:
    for folder in (alone.folder, stopped):
        before = contents(folder)
        one_line(resume(folder, change, code=2), change.partition("=")[0], f"was {was}", f"would be {would}")
        assert contents(folder) == before


@pytest.mark.parametrize("name", ["nowhere", "outputs", "file", "last"])
def test_what_is_no_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "file").write_text("not a run")
    command = Command("resume", name, folder=tmp_path)
    assert command.wait() == 2
    one_line(command.said)


@pytest.mark.slow
def test_a_run_can_be_moved_and_made_longer_and_slower(here: Path) -> None:
    run = run_in(here)
    run.path.rename(here / "moved")
    step = newest_step(RunDir(here / "moved"))
    command = Command("resume", "moved", f"trainer.duration={STEPS + 5} steps", "optimizer.lr=1e-4", folder=here)
    assert command.wait() == 0, command.said
    moved = RunDir(here / "moved")
    assert f"at step {step}" in command.said
    assert moved.read_status()["step"] == STEPS + 5
    assert logged_wrongly(moved) == []
    assert "lr: 0.0001" in moved.config.read_text()


@pytest.mark.slow
def test_a_longer_run_is_as_if_it_had_been_meant(tmp_path: Path) -> None:
    """A constant rate knows no end: then 21 steps made 45 are 45, curves and all, but for how much of the run was over."""
    steady = [*TRAIN, "optimizer.schedule=constant"]
    for name in ("alone", "here"):
        (tmp_path / name).mkdir()
    alone = Alone(tmp_path / "alone", *steady)
    assert Command(*steady, "trainer.duration=21 steps", folder=tmp_path / "here").wait() == 0
    resume(tmp_path / "here", f"trainer.duration={STEPS} steps")
    run = run_in(tmp_path / "here")
    assert [key for key in differences(alone.left, left(run)) if "progress/fraction" not in key] == []
    assert logged_wrongly(run) == []


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(here: Path) -> None:
    step = newest_step(run_in(here))
    said = resume(here, "trainer.devices=2")
    run = run_in(here)
    assert f"at step {step}" in said
    assert run.read_status()["state"] == "finished"
    assert run.read_status()["step"] == STEPS
    assert logged_wrongly(run) == []


# ---------------------------------------------------------------- several at once


def test_eight_starts_in_one_second_are_eight_runs(tmp_path: Path) -> None:
    commands = [Command(*QUICK, "trainer.test=false", folder=tmp_path) for _ in range(8)]
    assert [command.wait() for command in commands] == [0] * 8
    runs = RunDir.all(tmp_path / "outputs")
    assert len(runs) == 8
    weights = [checkpoint.load(run.checkpoints / "last.pt")["task"] for run in runs]
    assert all(torch.equal(w[name], weights[0][name]) for w in weights for name in w)


def test_a_run_has_one_master_and_none_once_he_is_dead(tmp_path: Path) -> None:
    command = Command(*FOR_EVER, folder=tmp_path)
    while not reports(tmp_path, "train/loss", 1)():
        assert command.process.is_alive()
    one_line(resume(tmp_path, code=2), f"pid {command.process.pid}", os.uname().nodename)
    assert run_in(tmp_path).read_status()["state"] == "running"
    assert command.killed_after(0)
    assert run_in(tmp_path).read_status()["state"] == "crashed"
    resume(tmp_path, "trainer.duration=1 steps")


def test_looking_at_a_run_does_not_keep_it_from_being_resumed(tmp_path: Path) -> None:
    """Whether a run is locked can only be seen by locking it, for an instant."""
    run = RunDir.create(tmp_path, "m", "d")
    with run.locked():
        pass
    code = "import sys; from refresher_runner.engine.rundir import RunDir\nwhile True: RunDir(sys.argv[1]).is_locked()"
    watchers = [subprocess.Popen([sys.executable, "-c", code, str(run.path)]) for _ in range(2)]
    try:
        for _ in range(50):
            with run.locked():
                time.sleep(0.002)
    finally:
        for watcher in watchers:
            watcher.kill()
            watcher.wait()


# ---------------------------------------------------------------- honest, secret, safe, the same


def test_a_nan_ends_a_run_in_one_line_with_finite_checkpoints(tmp_path: Path) -> None:
    nan = ["optimizer=sgd", "optimizer.lr=1e30", "trainer.validate_every=1 steps", "trainer.loggers=[]"]
    command = Command("train", "model=cnn", "data=digits", "trainer.duration=50 steps", *nan, folder=tmp_path)
    assert command.wait() == 1
    one_line(command.said, "not finite")
    run = run_in(tmp_path)
    status = run.read_status()
    assert (status["state"], status["exit_code"]) == ("failed", 1)
    assert "not finite" in status["error"]
    for path in run.checkpoints.glob("*.pt"):
        assert all(value.isfinite().all() for value in checkpoint.load(path)["task"].values())
    assert all(math.isfinite(line["train/loss"]) for line in lines(run) if "train/loss" in line)


def test_no_secret_is_written(tmp_path: Path) -> None:
    command = Command(*QUICK[:-1], "tags=['${oc.env:SENTINEL}']", folder=tmp_path, SENTINEL="hunter2")
    assert command.wait() == 0, command.said
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"config.yaml", "run.json", "last.pt", "metrics.jsonl", "log.txt"} <= {path.name for path in files}
    assert any("tfevents" in path.name for path in files)
    assert [path for path in files if b"hunter2" in path.read_bytes()] == []


def test_the_same_command_is_the_same_bits_whatever_surrounds_it(alone: Alone, tmp_path: Path) -> None:
    (tmp_path / "deep" / "down").mkdir(parents=True)
    command = [sys.executable, "-m", "refresher_runner", *TRAIN, f"outputs={tmp_path / 'outputs'}"]
    environment = {**os.environ, "PYTHONHASHSEED": "4711", "TZ": "Asia/Tokyo", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=tmp_path / "deep" / "down", env=environment, capture_output=True, check=True)
    assert_same(tmp_path, alone)


class Gadget:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("verb", ["resume", "test", "predict"])
def test_a_gadget_in_a_checkpoint_runs_nothing(here: Path, verb: str) -> None:
    run = run_in(here)
    name = str(run.path.relative_to(here))
    for path in [*run.checkpoints.glob("*.pt"), here / "foreign.pt"]:
        torch.save({"format": checkpoint.FORMAT, "run": run.read_record()["id"], "task": {"w": Gadget(here / "owned")}}, path)
    (here / "input.png").write_bytes(b"")
    typed = {"resume": [], "test": ["--checkpoint", "foreign.pt"], "predict": ["input.png", "--checkpoint", "foreign.pt"]}
    command = Command(verb, name, *typed[verb], folder=here)
    assert command.wait() == 3, command.said
    one_line(command.said, ".pt")
    assert not (here / "owned").exists()


def test_status_is_honest_when_a_file_of_the_model_is_at_fault(tmp_path: Path) -> None:
    """An error that nobody foresaw: one line, the traceback in the run's log, and status.json tells."""
    (tmp_path / "faulty.py").write_text(
        "import refresher_runner.models.mlp as m\n"
        "def observe(self, batch):\n    raise ZeroDivisionError('of all things')\n"
        "m.MLP.observe = observe\n"
    )
    command = Command(*QUICK, "modules=[faulty]", folder=tmp_path)
    assert command.wait() == 1, command.said
    one_line(command.said, "ZeroDivisionError: of all things")
    run = run_in(tmp_path)
    status = run.read_status()
    assert (status["state"], status["exit_code"], status["error"]) == ("failed", 1, "ZeroDivisionError: of all things")
    assert "Traceback" in run.log.read_text()


# ---------------------------------------------------------------- a full disk


def test_a_disk_that_is_full_for_a_while_costs_no_bit(alone: Alone, tmp_path: Path) -> None:
    """No file can grow beyond a limit, which is lifted midway: checkpoints and logs are refused, and the run goes on."""
    command = Command(*TRAIN, folder=tmp_path)
    while not reports(tmp_path, "val/loss", 7)():
        assert command.process.is_alive()
    assert command.process.pid is not None
    resource.prlimit(command.process.pid, resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
    while "was not saved" not in command.said:
        assert command.process.is_alive()
    resource.prlimit(command.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert command.wait() == 0, command.said
    assert_same(tmp_path, alone)


FULL = """
import os, shutil, subprocess, sys
from pathlib import Path
disk, out, room = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}k", "tmpfs", str(disk)], check=True)
code = subprocess.run([sys.executable, "-m", "refresher_runner", *sys.argv[4:]], cwd=disk).returncode
subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
codes = [code]
runs = [*disk.glob("outputs/*/*/*/config.yaml")]
if code != 0 and runs:
    codes.append(subprocess.run([sys.executable, "-m", "refresher_runner", "resume", str(runs[0].parent)], cwd=disk).returncode)
shutil.copytree(disk, out)
print("codes", *codes)
"""


@pytest.mark.slow
@pytest.mark.parametrize("room", [4, 64, 256, 512, 1024])
def test_a_full_disk_loses_no_run(alone: Alone, tmp_path: Path, room: int) -> None:
    """Kilobytes for a run that needs some thousand: it ends with an error or without one, and with space it goes on to the same bits."""
    if not may_mount():
        pytest.skip("this machine allows no mounting")
    (tmp_path / "disk").mkdir()
    command = ["unshare", "-m", sys.executable, "-c", FULL, str(tmp_path / "disk"), str(tmp_path / "out"), str(room), *TRAIN]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    codes = [int(word) for word in done.stdout.splitlines()[-1].split()[1:]]
    if only_run(tmp_path / "out") is None or not run_in(tmp_path / "out").config.is_file():
        assert codes[0] in (1, 2)
        return
    assert codes[-1] == 0, done.stderr
    final = left(run_in(tmp_path / "out"))
    same = {key: value for key, value in final.items() if key.startswith("last.")}
    assert differences({key: value for key, value in alone.left.items() if key in same}, same) == []


def may_mount() -> bool:
    if not shutil.which("unshare"):
        return False
    return subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False).returncode == 0
