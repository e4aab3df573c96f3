"""A run on disk: its folder, its lock, its status, and the record of what produced it. Free of torch.

outputs/<model>/<data>/<date>_<time>_<4 hex>/
  config.yaml   run.json   diff.patch   status.json   metrics.jsonl   metrics.csv   log.txt
  checkpoints/last.pt previous.pt best.pt (damaged.pt: a last.pt that could not be read)      tensorboard/      figures/
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from refresher_runner.errors import RunError

STATES = ("running", "finished", "failed", "interrupted")


class RunDir:
    """One run's folder. Names of the files in it are said here and nowhere else."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.record = self.path / "run.json"
        self.diff = self.path / "diff.patch"
        self.status = self.path / "status.json"
        self.metrics = self.path / "metrics.jsonl"
        self.csv = self.path / "metrics.csv"
        self.log = self.path / "log.txt"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.figures = self.path / "figures"

    @classmethod
    def create(cls, outputs: str | Path, model: str, data: str) -> RunDir:
        """A folder that no other run has, however many start in the same second. Raises RunError where none can be made."""
        parent = Path(outputs) / model / data
        try:
            parent.mkdir(parents=True, exist_ok=True)
            while True:
                path = parent / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{secrets.token_hex(2)}"
                try:
                    path.mkdir(exist_ok=False)
                except FileExistsError:
                    continue
                run = cls(path)
                run.checkpoints.mkdir()
                return run
        except OSError as error:
            raise RunError(f"no run can be written here ({error.strerror})", key="outputs", value=outputs, cure="set outputs=DIR") from None

    @classmethod
    def find(cls, path: str | Path, outputs: str | Path = "outputs") -> RunDir:
        """The run at `path`; the word `last` is the newest run under `outputs`. Raises RunError."""
        if str(path) == "last":
            runs = cls.all(outputs)
            if not runs:
                raise RunError("there is no run here yet", key="outputs", value=outputs, cure="refresher train model=cnn")
            return runs[-1]
        run = cls(path)
        if not run.config.is_file():
            raise RunError("not a run: it holds no config.yaml", key="run", value=path, cure="refresher runs lists the runs there are")
        return run

    @classmethod
    def all(cls, outputs: str | Path = "outputs") -> list[RunDir]:
        """Every run below `outputs`, oldest first."""
        found = [cls(config.parent) for config in Path(outputs).rglob("config.yaml")]
        return sorted((run for run in found if run.record.is_file()), key=lambda run: (run.began(), run.path.name, str(run.path)))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process works on a run. Free again the instant its holder dies. Raises RunError naming host and pid."""
        from filelock import FileLock, Timeout

        holder = self.path / ".lock.holder"
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0.2, poll_interval=0.02)  # whoever only looks whether it is free holds it for an instant
        except Timeout:
            held = holder.read_text(encoding="utf-8").strip() if holder.is_file() else "another process"
            raise RunError(f"in use by {held}", key="run", value=self.path, cure="wait for it, or stop it") from None
        except OSError as error:
            raise RunError(f"cannot be written ({error.strerror})", key="run", value=self.path) from None
        try:
            holder.write_text(f"pid {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()

    def is_locked(self) -> bool:
        """Whether a process works on this run now."""
        from filelock import FileLock, Timeout

        if not (self.path / ".lock").exists():
            return False
        try:
            with FileLock(self.path / ".lock", timeout=0):
                return False
        except (Timeout, OSError):
            return True

    def read_status(self) -> dict[str, Any]:
        """status.json, with what is true now: `running` without a holder of the lock reads as `crashed`, which can be resumed."""
        status = read_json(self.status)
        if status.get("state") == "running" and not self.is_locked():
            status["state"] = "crashed"
        return status

    def logged(self) -> int:
        """Bytes of metrics.jsonl: where a run that goes on from here goes on logging."""
        return self.metrics.stat().st_size if self.metrics.is_file() else 0

    def write_status(self, state: str, **fields: Any) -> None:
        """Merged into status.json, atomically."""
        assert state in STATES
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        write_atomically(self.status, json.dumps({**read_json(self.status), **fields, "state": state, "updated": now}, indent=2) + "\n")

    def read_record(self) -> dict[str, Any]:
        """run.json."""
        return read_json(self.record)

    def began(self) -> str:
        """When, as text that sorts by time."""
        return str(self.read_record().get("started", ""))

    def __str__(self) -> str:
        return str(self.path)


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; empty where the file is absent or was cut off."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_atomically(path: Path, text: str) -> None:
    """Written beside and made durable, then renamed: a reader, even after a power cut, sees the old file or the new one."""
    aside = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    try:
        with open(aside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
