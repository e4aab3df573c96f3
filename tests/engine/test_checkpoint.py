"""Saved so that no crash loses one; read so that no damage and no stranger gets in."""

from __future__ import annotations

import errno
import io
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from refresher_runner.engine import checkpoint
from refresher_runner.engine.rundir import RunDir
from refresher_runner.errors import CheckpointError

STATE = {"run": "r", "task": {"w": torch.arange(3000.0)}, "progress": {"step": 3}, "random": {"python": random.getstate()}}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path)
    made.checkpoints.mkdir()
    return made


def save(run: RunDir, step: int, run_id: str = "r") -> None:
    state = {**STATE, "run": run_id, "progress": {"step": step}, "task": {"w": torch.arange(3000.0) + step}}
    checkpoint.save(state, run.checkpoints / "last.pt", run.checkpoints / "previous.pt")


def test_round_trip(run: RunDir) -> None:
    save(run, 1)
    state = checkpoint.load(run.checkpoints / "last.pt", "r")
    assert torch.equal(state["task"]["w"], torch.arange(3000.0) + 1)
    assert state["random"]["python"] == random.getstate() or state["random"]["python"][0] == 3
    assert oct((run.checkpoints / "last.pt").stat().st_mode)[-3:] == oct(0o666 & ~_umask())[-3:]


def test_the_one_before_is_kept(run: RunDir) -> None:
    for step in (1, 2, 3):
        save(run, step)
    assert checkpoint.load(run.checkpoints / "last.pt")["progress"]["step"] == 3
    assert checkpoint.load(run.checkpoints / "previous.pt")["progress"]["step"] == 2
    assert {p.name for p in run.checkpoints.iterdir()} == {"last.pt", "previous.pt"}


def damaged(data: bytes) -> list[bytes]:
    """Truncations at every page and at one byte, pages zeroed, random bits flipped, empty."""
    rng = random.Random(0)
    cuts = [data[:n] for n in (0, 1, *range(512, len(data), 512))]
    holes = [data[:n] + bytes(512) + data[n + 512 :] for n in range(0, len(data) - 512, 512) if any(data[n : n + 512])]
    flips = []
    for _ in range(300):
        position, bit = rng.randrange(len(data)), rng.randrange(8)
        flips.append(data[:position] + bytes([data[position] ^ (1 << bit)]) + data[position + 1 :])
    return [*cuts, *holes, *flips]


def test_damage_is_noticed_and_the_one_before_is_used(run: RunDir) -> None:
    save(run, 1)
    save(run, 2)
    last = run.checkpoints / "last.pt"
    whole = last.read_bytes()
    noticed = 0
    for data in damaged(whole):
        last.write_bytes(data)
        warnings: list[str] = []
        state = checkpoint.load_newest(run, "r", warnings.append)
        assert state is not None
        if state["progress"]["step"] == 1:
            noticed += 1
            assert len(warnings) == 1
            assert "last.pt" in warnings[0]
            assert "previous.pt" in warnings[0]
        else:  # a bit that carries nothing, in the padding of the archive: what was loaded is what was saved
            assert torch.equal(state["task"]["w"], torch.arange(3000.0) + 2)
            assert not warnings
    assert noticed > 200


@pytest.mark.parametrize("kind", ["directory", "dangling link", "another run's", "legacy", "compressed", "no tensors"])
def test_strangers_are_refused(run: RunDir, kind: str) -> None:
    save(run, 1)
    save(run, 2)
    last = run.checkpoints / "last.pt"
    last.unlink()
    if kind == "directory":
        last.mkdir()
    elif kind == "dangling link":
        last.symlink_to("nowhere")
    elif kind == "another run's":
        checkpoint.save({**STATE, "run": "other"}, last)
    elif kind == "legacy":
        torch.save({"format": 1, **STATE}, last, _use_new_zipfile_serialization=False)
    elif kind == "compressed":
        save(run, 2)
        last.write_bytes(_compressed(run.checkpoints / "previous.pt"))
    else:
        torch.save([1, 2], last)
    warnings: list[str] = []
    state = checkpoint.load_newest(run, "r", warnings.append)
    assert state is not None
    assert state["progress"]["step"] in (1, 2)
    assert len(warnings) == 1


def test_none_is_whole(run: RunDir) -> None:
    assert checkpoint.load_newest(run, "r", print) is None
    for name in ("last.pt", "previous.pt"):
        (run.checkpoints / name).write_bytes(b"PK")
    with pytest.raises(CheckpointError) as error:
        checkpoint.load_newest(run, "r", print)
    assert error.value.exit_code == 3


class Gadget:
    def __init__(self, call: tuple[object, tuple[object, ...]]):
        self.call = call

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("call", [(os.system, ("touch owned",)), (open, ("owned", "w")), (exec, ("open('owned','w')",))])
@pytest.mark.parametrize("depth", [0, 2])
def test_a_foreign_checkpoint_runs_nothing(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: tuple[object, tuple[object, ...]], depth: int
) -> None:
    monkeypatch.chdir(tmp_path)
    evil: object = Gadget(call)
    for _ in range(depth):
        evil = {"nested": [evil]}
    for zipped in (True, False):
        path = tmp_path / "evil.pt"
        torch.save({"format": 1, "task": {"w": evil}}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError):
            checkpoint.load(path)
    path.write_bytes(pickle.dumps(Gadget(call)))
    with pytest.raises(CheckpointError):
        checkpoint.load(path)
    assert not (tmp_path / "owned").exists()


def test_a_bomb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(200_000_000))
    with pytest.raises(CheckpointError, match="not a plain archive"):
        checkpoint.load(path)


def test_a_full_disk_costs_one_save(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full refuses every byte, as a full disk does."""
    save(run, 1)
    aside = run.checkpoints / f"last.pt.tmp.{os.getpid()}"
    aside.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space") as error:
        save(run, 2)
    assert error.value.errno == errno.ENOSPC
    assert {p.name for p in run.checkpoints.iterdir()} == {"last.pt"}
    assert checkpoint.load(run.checkpoints / "last.pt")["progress"]["step"] == 1


SAVE_TWICE = """
import sys, torch
from pathlib import Path
from refresher_runner.engine import checkpoint
folder = Path(sys.argv[1])
for step in (2, 3):
    checkpoint.save({"run": "r", "task": {"w": torch.arange(9.0)}, "progress": {"step": step}}, folder / "last.pt", folder / "previous.pt")
    print("saved", flush=True)
"""
CALLS = "write,fsync,rename,renameat,renameat2,unlink,unlinkat"


def test_the_order_of_a_save_is_durable(run: RunDir) -> None:
    """data fsync < rename < folder fsync < 'saved'."""
    lines = _traced(run, f"trace={CALLS},openat")
    events = [line for line in lines if str(run.checkpoints) in line or "fsync" in line or "saved" in line]
    kinds = re.compile(r"fsync|rename|unlink|write\(1")
    told = [kinds.search(line).group() for line in events if kinds.search(line)]  # type: ignore[union-attr]
    assert told == ["fsync", "rename", "fsync", "write(1", "fsync", "rename", "rename", "fsync", "write(1"]


@pytest.mark.slow
def test_killed_at_every_call_of_a_save_a_whole_checkpoint_remains(run: RunDir) -> None:
    save(run, 1)
    pristine = run.path / "pristine"
    shutil.copytree(run.checkpoints, pristine)
    for call in ("write", "fsync", "rename", "unlink"):
        for k in range(1, 60):
            shutil.rmtree(run.checkpoints)
            shutil.copytree(pristine, run.checkpoints)
            killed = _traced(run, f"trace={call}", "-e", f"inject={call}:signal=KILL:when={k}", "-P", str(run.checkpoints))
            state = checkpoint.load_newest(run, "r", print)
            assert state is not None, (call, k)
            for file in run.checkpoints.glob("*.pt"):
                checkpoint.load(file)
            if not any("killed by SIGKILL" in line for line in killed):
                break
        else:
            pytest.fail(f"{call}: never ran to its end")


def _traced(run: RunDir, what: str, *more: str) -> list[str]:
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    log = run.path / "strace.log"
    command = ["strace", "-f", "-y", "-o", str(log), "-e", what, *more, sys.executable, "-c", SAVE_TWICE, str(run.checkpoints)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "ptrace" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip("this machine allows no tracing")
    text = log.read_text()
    return text[text.find(str(run.checkpoints)) :].splitlines() if str(run.checkpoints) in text else text.splitlines()


def _compressed(path: Path) -> bytes:
    box = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(box, "w", zipfile.ZIP_DEFLATED) as target:
        for record in source.infolist():
            target.writestr(record.filename, source.read(record))
    return box.getvalue()


def _umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now
