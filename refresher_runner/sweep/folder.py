"""A sweep on disk and its jobs: what is done, what is to do, and how a job is known. Free of torch and Hydra.

<outputs>/sweeps/<date>_<time>_<4 hex>/
  sweep.json                  what was typed, once and for all
  001_cnn_0.01_3fa9c1d2e0/    a job: its number, what varies, its key; the folder is a run's, as any run's (see engine/rundir.py), with
    job.json                  what the launcher knows of it: the key, the overrides, and each sitting with how it ended
    output.txt                all that its processes printed

A job's folder holds its config.yaml from the beginning, so `refresher resume` of that folder is the job, whether it has not begun, was
interrupted or has failed. run.json comes when it has begun.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from refresher_runner.engine.rundir import RunDir, read_json, write_atomically
from refresher_runner.errors import RunError
from refresher_runner.settings import Settings, flatten

SWEEPS = "sweeps"  # below `outputs`
DONE = ("finished", "pruned")
NO_IDENTITY = ("outputs",)  # where a run lies does not make it another


@dataclass(frozen=True)
class Point:
    """One point of a sweep: what is typed for it, which of that the sweep varies, the text of its config.yaml, and what that means."""

    overrides: tuple[str, ...]
    varies: tuple[str, ...]
    stored: str
    settings: Settings

    @property
    def key(self) -> str:
        """What a job is known by: a hash of its resolved configuration, ten hexadecimal digits."""
        return key_of(self.stored)

    def __str__(self) -> str:
        return " ".join(self.varies or self.overrides)


def key_of(stored: str) -> str:
    """The hash of a config.yaml, the same for every order of its keys and wherever its run lies."""
    values = flatten(yaml.load(stored, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    known = {key: value for key, value in values.items() if key not in NO_IDENTITY}
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:10]


class Job:
    """One point of a sweep in its folder. Every property is read from disk, so it is true now, for whoever looks."""

    def __init__(self, path: str | Path):
        self.run = RunDir(path)
        self.file = self.run.path / "job.json"
        self.output = self.run.path / "output.txt"

    @property
    def record(self) -> dict[str, Any]:
        """job.json."""
        return read_json(self.file)

    @property
    def key(self) -> str:
        return str(self.record.get("key", ""))

    @property
    def number(self) -> int:
        return int(self.record.get("number", 0))

    @property
    def overrides(self) -> list[str]:
        """Everything typed for this point."""
        return list(self.record.get("overrides", []))

    @property
    def varies(self) -> list[str]:
        """Those overrides that differ from job to job."""
        return list(self.record.get("varies", []))

    @property
    def sittings(self) -> list[dict[str, Any]]:
        """Each stretch of work: when it `started` and `ended`, its `exit_code`, the `state` it left, and the `problem` if there was one."""
        return list(self.record.get("sittings", []))

    @property
    def state(self) -> str:
        """pending, running, finished, pruned, failed, interrupted (by a signal, or by a launcher that was killed) or crashed."""
        sitting = (self.sittings or [{}])[-1]
        state = self.run.read_status().get("state")
        if state in ("finished", "running"):
            return str(state)
        if sitting and "ended" not in sitting:
            return "interrupted"
        return str(sitting.get("state") or state or "pending")

    @property
    def goal(self) -> float | None:
        """Best value of the goal's metric; None before the first evaluation."""
        return (self.run.read_status().get("goal") or {}).get("best")

    @property
    def problem(self) -> str:
        """Why the last sitting failed, in one line."""
        return str((self.sittings or [{}])[-1].get("problem", ""))

    def begin(self, **facts: Any) -> None:
        """A sitting, in job.json."""
        self._write([*self.sittings, {"started": _now(), **facts}])

    def end(self, state: str, **facts: Any) -> None:
        """The end of the last sitting, in job.json."""
        *before, last = self.sittings
        self._write([*before, {**last, "ended": _now(), "state": state, **facts}])

    def _write(self, sittings: Sequence[Mapping[str, Any]]) -> None:
        write_atomically(self.file, json.dumps({**self.record, "sittings": sittings}, indent=2) + "\n")

    def __str__(self) -> str:
        return str(self.run)


class SweepDir:
    """A sweep's folder."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.file = self.path / "sweep.json"

    @classmethod
    def create(cls, outputs: str | Path, **facts: Any) -> SweepDir:
        """A folder that no other sweep has; `facts` are what sweep.json says. Raises RunError where none can be made."""
        parent = Path(outputs) / SWEEPS
        try:
            parent.mkdir(parents=True, exist_ok=True)
            path = parent / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{secrets.token_hex(2)}"
            path.mkdir()
            sweep = cls(path)
            write_atomically(sweep.file, json.dumps({"format": 1, "started": _now(), **facts}, indent=2) + "\n")
        except OSError as error:
            raise RunError(
                f"no sweep can be written here ({error.strerror})", key="outputs", value=outputs, cure="set outputs=DIR"
            ) from None
        return sweep

    @classmethod
    def all(cls, outputs: str | Path) -> list[SweepDir]:
        """Every sweep of `outputs`, oldest first."""
        return [cls(file.parent) for file in sorted(Path(outputs, SWEEPS).glob("*/sweep.json"))]

    @staticmethod
    def is_sweep(path: str | Path) -> bool:
        return Path(path, "sweep.json").is_file()

    @property
    def record(self) -> dict[str, Any]:
        """sweep.json."""
        return read_json(self.file)

    def jobs(self) -> list[Job]:
        """Every job, in the order of their numbers."""
        found = [Job(file.parent) for file in self.path.glob("*/job.json")]
        return sorted(found, key=lambda job: (job.number, job.run.path.name))

    def job(self, key: str) -> Job | None:
        """The job of this key."""
        return next((Job(self.path / "_".join(name)) for name in self._names() if name[-1] == key), None)

    def add(self, point: Point, **facts: Any) -> Job:
        """The job of a point: the one that the sweep has, or a new one, whose `facts` job.json says."""
        if known := self.job(point.key):
            return known
        number = 1 + max((int(name[0]) for name in self._names() if name[0].isdigit()), default=0)
        job = Job(self.path / "_".join([f"{number:03d}", *_label(point.varies), point.key]))
        job.run.checkpoints.mkdir(parents=True, exist_ok=True)
        write_atomically(job.run.config, point.stored)
        said = {"number": number, "key": point.key, "overrides": point.overrides, "varies": point.varies, **facts, "sittings": []}
        write_atomically(job.file, json.dumps(said, indent=2) + "\n")
        return job

    def _names(self) -> list[list[str]]:
        """The parts of the names of all folders of jobs: the number first, the key last."""
        return [file.parent.name.split("_") for file in self.path.glob("*_*/job.json")]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process launches a sweep's jobs. Raises RunError naming host and pid."""
        with RunDir(self.path).locked():
            yield

    def __str__(self) -> str:
        return str(self.path)


def _label(varies: Sequence[str], longest: int = 40) -> list[str]:
    """The values that vary, fit for the name of a folder; nothing where none is left of them."""
    words = [re.sub(r"[^\w.+-]+", "-", override.partition("=")[2]).strip("-.") for override in varies]
    text = "_".join(word for word in words if word)[:longest].rstrip("-._")
    return [text] if text else []


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")
