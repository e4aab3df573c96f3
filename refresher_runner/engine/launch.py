"""A command in several processes of this machine, under PyTorch's elastic launcher: one voice, one error, no orphan. Free of torch.

The ranks leave their errors with the launcher, which tells the one that came first and is alone in telling.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from refresher_runner.engine import signals
from refresher_runner.engine.rundir import write_atomically
from refresher_runner.errors import Interrupted, RefresherError, TrainingError

LAUNCHER = "REFRESHER_LAUNCHER"  # in a rank's environment: the launcher's process, and the folder for errors


def launch(devices: int, arguments: Sequence[str]) -> tuple[Path | None, RefresherError | None]:
    """`python -m refresher_runner <arguments>` in `devices` processes: the run's folder if they made one, and what went wrong."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,  # what failed would fail again; `refresher resume` goes on from a checkpoint
    )
    error: RefresherError | None = None
    with tempfile.TemporaryDirectory() as folder:
        told = os.environ.get("REFRESHER_RUN_FILE", f"{folder}/run")
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
        with _environment(REFRESHER_RUN_FILE=told, REFRESHER_LAUNCHER=f"{os.getpid()}:{folder}", OMP_NUM_THREADS=threads):
            try:
                elastic_launch(config, sys.executable)("-m", "refresher_runner", *arguments)
            except ChildFailedError as failed:
                exits = {rank: failure.exitcode for rank, failure in failed.failures.items()}
                error = _told(Path(folder), exits)
            except SignalException as stopped:
                error = Interrupted(stopped.sigval.value)
        made = Path(os.path.relpath(Path(told).read_text(encoding="utf-8"))) if Path(told).is_file() else None
    return made, error


@contextmanager
def as_rank() -> Iterator[None]:
    """A rank that `launch` started ends here, silently, and when its launcher is killed; any other process is left as it is."""
    if LAUNCHER not in os.environ:
        yield
        return
    launcher, _, folder = os.environ[LAUNCHER].partition(":")
    signals.stop_with_parent()
    if os.getppid() != int(launcher):
        raise Interrupted(signal.SIGTERM)
    try:
        yield
    except Exception as error:
        left = error if isinstance(error, RefresherError) else TrainingError(f"{type(error).__name__}: {error}")
        words = {"problem": left.problem, "cure": left.cure, "exit_code": left.exit_code}
        write_atomically(Path(folder, f"error.{os.environ['RANK']}"), json.dumps(words))
        if os.environ.get("REFRESHER_TRACEBACK") == "1":
            raise
        sys.exit(left.exit_code)
    sys.exit(0)


def end_rank(code: int) -> NoReturn:
    """End this process, one of several of a run, once all it has to write is written.

    Python's own way of ending would wait for no thread of gloo's, and one that lets go of a tensor meanwhile aborts the process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _told(folder: Path, exits: Mapping[int, int]) -> RefresherError:
    """The error of the rank that failed first, whose echo the others' are; and who was killed, for such a rank leaves no word."""
    problems, cure, exit_code = [], "", TrainingError.exit_code
    files = sorted(folder.glob("error.*"), key=lambda file: file.stat().st_mtime_ns)
    if files:
        words = json.loads(files[0].read_text(encoding="utf-8"))
        problems, cure, exit_code = [words["problem"]], words["cure"], words["exit_code"]
    for rank, code in exits.items():
        if code < 0 and (-code != signal.SIGTERM or not files):  # SIGTERM is how the launcher stops those that are left
            problems.append(f"the process of rank {rank} was ended by {signal.Signals(-code).name}")
    error = TrainingError("; ".join(problems or [f"the processes ended with exit codes {list(exits.values())}"]), cure=cure)
    error.exit_code = exit_code
    return error


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """For child processes; and torch's launcher keeps silent, as we tell what it would."""
    before, silence = dict(os.environ), logging.root.manager.disable
    os.environ.update(variables)
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(silence)
        os.environ.clear()
        os.environ.update(before)
