"""Checkpoints: written so that no crash loses one, read so that no damage and no stranger gets in.

A checkpoint holds only containers, numbers, strings and tensors. A save writes beside, syncs, renames and syncs the folder; the
checkpoint before stays as previous.pt. A load checks every byte (zip CRC) before torch sees the file, and never unpickles code.
"""

from __future__ import annotations

import errno
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from refresher_runner.engine.rundir import RunDir
from refresher_runner.errors import CheckpointError

FORMAT = 1


def save(state: Mapping[str, Any], path: Path, previous: Path | None = None) -> None:
    """Atomic and durable. Raises OSError, with everything saved before still in place."""
    aside = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    try:
        with open(aside, "wb") as file:
            try:
                torch.save({"format": FORMAT, **state}, file)
            except RuntimeError as error:  # torch's zip writer hides a full disk behind its own error
                raise _os_error(error) from error
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(path: Path, run_id: str | None = None) -> dict[str, Any]:
    """The verified contents of a checkpoint, on the CPU; of run `run_id`, if given. Raises CheckpointError naming the file."""
    if not path.is_file():
        raise CheckpointError("no such checkpoint", key=str(path))
    try:
        _verify(path)
        with open(path, "rb") as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged or foreign file makes torch raise any of a dozen types
        raise CheckpointError(f"damaged, or not a checkpoint ({type(error).__name__})", key=str(path)) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or not _is_whole(state):
        raise CheckpointError("not a checkpoint of this version of refresher", key=str(path))
    if run_id is not None and state.get("run") != run_id:
        raise CheckpointError("belongs to another run", key=str(path))
    return state


def load_newest(run: RunDir, run_id: str, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest whole checkpoint to go on from; None where none was ever written. Nothing on disk changes.

    Damage is told by one warning that names the bad file and the chosen one. Raises CheckpointError when all are bad.
    """
    candidates = [run.checkpoints / "last.pt", run.checkpoints / "previous.pt"]
    bad: list[CheckpointError] = []
    for path in candidates:
        if not os.path.lexists(path):
            continue
        try:
            state = load(path, run_id)
        except CheckpointError as error:
            bad.append(error)
            continue
        if bad:
            warn(f"{bad[0]}; going on from {path} instead")
        return state
    if bad:
        raise CheckpointError("; ".join(map(str, bad)), cure="no checkpoint of this run is whole; start a new run")
    return None


def clean(run: RunDir, *, damaged: bool) -> None:
    """Remove what a killed write left aside; put a `damaged` last.pt where no save can push it over previous.pt, the good one.

    Only while holding the run's lock.
    """
    for aside in run.path.rglob("*.tmp.*"):
        aside.unlink(missing_ok=True)
    if damaged:
        os.replace(run.checkpoints / "last.pt", run.checkpoints / "damaged.pt")


def _is_whole(state: Mapping[str, Any]) -> bool:
    """Whether what is read of a checkpoint by name is there, and of its kind."""
    return isinstance(state.get("task"), dict) and all(isinstance(state.get(name) or {}, dict) for name in ("ema", "spec", "progress"))


def _verify(path: Path) -> None:
    """Every record stored plainly, no larger than the file, and its CRC right: torch itself checks none of this."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        stored = all(record.compress_type == zipfile.ZIP_STORED for record in records)
        if not stored or sum(record.file_size for record in records) > path.stat().st_size:
            raise CheckpointError("not a plain archive", key=str(path))
        damaged = archive.testzip()
    if damaged is not None:
        raise CheckpointError(f"damaged at {damaged}", key=str(path))


def _os_error(error: BaseException | None) -> OSError:
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__context__
    return OSError(errno.EIO, "the checkpoint could not be written")
