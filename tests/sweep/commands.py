"""`refresher` as a process, with a model that goes wrong within reach."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from refresher_runner.engine.rundir import RunDir
from refresher_runner.sweep.folder import Job, SweepDir

HERE = Path(__file__).parent
QUICK = ["trainer=smoke", "trainer.loggers=[]"]
TROUBLED = ["--config-dir", str(HERE / "conf"), "modules=[troubled]", "model=troubled", *QUICK]


def start(*typed: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """Begun, in a session of its own."""
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    command, pipe = [sys.executable, "-m", "refresher_runner", *typed], subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def refresher(*typed: str, cwd: Path, code: int = 0, **environment: str) -> str:
    """What it prints, when it has ended with this exit code."""
    out, err = (process := start(*typed, cwd=cwd, **environment)).communicate(timeout=300)
    assert process.returncode == code, f"{out}\n{err}"
    return out + err


def only_sweep(folder: Path) -> SweepDir:
    [sweep] = SweepDir.all(folder / "outputs")
    return sweep


def states(sweep: SweepDir) -> list[str]:
    return [job.state for job in sweep.jobs()]


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def began(folder: Path) -> list[Job]:
    """Jobs that have trained a step."""
    return [job for sweep in SweepDir.all(folder / "outputs") for job in sweep.jobs() if RunDir(job.run.path).read_status().get("step")]
