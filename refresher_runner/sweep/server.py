"""A server of processes: it has imported torch and the pipeline once, and forks itself for each job, which so begins at once.

What it is told, and what it answers, are lines of JSON on its stdin and stdout:

    {"id": 3, "module": "refresher_runner", "arguments": [...], "folder": ".", "output": "...", "environment": {...}, "threads": 1}
    -> {"id": 3, "code": 0}
    {"id": 3, "signal": 15}
    {"import": "refresher_runner.models.cnn"}

A process runs as `python -m module arguments` would. The server itself computes nothing, so it has no threads and no device that a fork
could break. When nobody holds its stdin any more, it asks what still runs to stop, and leaves. Linux only.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from refresher_runner.engine import signals
from refresher_runner.registry import DATASETS, MODELS, OPTIMIZERS

GRACE = 30.0  # seconds from the wish that a process stop to its death: time for a step, and to save
IMPORTED = [
    *("refresher_runner.cli", "refresher_runner.compose", "refresher_runner.run", "refresher_runner.engine.trainer"),
    *("refresher_runner.engine.evaluate", "refresher_runner.engine.loggers", "refresher_runner.engine.summary"),
    *("refresher_runner.engine.checkpoint", "refresher_runner.engine.optim", "refresher_runner.engine.record", "pydantic"),
    *("refresher_runner.engine.tensorboard", "refresher_runner.engine.figures", "refresher_runner.engine.console"),
    *("torchmetrics.classification", "matplotlib.backends.backend_agg", "matplotlib.figure", "torch.utils.flop_counter"),
    *(
        "PIL.JpegImagePlugin",
        "PIL.PngImagePlugin",
        "PIL.GifImagePlugin",
        "PIL.PpmImagePlugin",
        "antlr4",
        "filelock",
        "rich.progress",
        "rich.table",
    ),
]


def main() -> None:
    """Serve until nobody asks any more."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what an import may print is no answer
    for name in IMPORTED:
        importlib.import_module(name)
    for registry in (MODELS, DATASETS, OPTIMIZERS):
        registry.names()  # reads the files of all builders, once for all
    request = _serve(answers)
    if request is not None:
        _work(request)


def _serve(answers: int) -> dict[str, Any] | None:
    """Answer requests; returns twice, as fork does: in a child with its request, and at the end with None."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, int] = {}  # id -> pid
    unread = b""
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _reap(running, answers)
        if 0 not in ready:
            continue
        read = os.read(0, 65536)
        if not read:
            _stop(running, answers)
            return None
        *lines, unread = (unread + read).split(b"\n")
        for line in lines:
            request = json.loads(line)
            if "signal" in request:
                if request["id"] in running:
                    _signal(running[request["id"]], request["signal"])
                continue
            if "import" in request:
                importlib.import_module(request["import"])
                continue
            gc.freeze()  # so that a child's collector does not touch, and thereby copy, what it shares
            server = os.getpid()
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for descriptor in (answers, woken, wake):
                    os.close(descriptor)
                return {**request, "server": server}
            running[request["id"]] = pid


def _reap(running: dict[int, int], answers: int) -> None:
    """Tell of every process that has ended; its exit code, or minus the signal that ended it."""
    for number, pid in list(running.items()):
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            _signal(pid, signal.SIGKILL)  # whatever it left behind, while its number is still its own
            del running[number]
            _answer(answers, id=number, code=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _stop(running: dict[int, int], answers: int) -> None:
    for pid in running.values():
        _signal(pid, signal.SIGTERM)
    end = time.monotonic() + GRACE
    while running:
        _reap(running, answers)
        if time.monotonic() > end:
            for pid in running.values():
                _signal(pid, signal.SIGKILL)
        time.sleep(0.02)


def _signal(pid: int, number: int) -> None:
    """To a process that we forked; death also to all that it has started, which any other signal is for itself to stop."""
    os.kill(pid, number)  # not reaped yet, so never another's
    if number == signal.SIGKILL:
        with suppress(ProcessLookupError, PermissionError):  # it died before it had a group
            os.killpg(pid, number)


def _answer(answers: int, **words: Any) -> None:
    try:
        os.write(answers, json.dumps(words).encode() + b"\n")
    except BrokenPipeError:
        return  # nobody listens any more


def _die_first() -> None:
    """Where memory runs out, the system is to end a job rather than who launches the others."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")


def _work(request: dict[str, Any]) -> NoReturn:
    """In the child: be the process that was asked for."""
    os.setsid()  # what it starts can be told from what others start; a terminal's signals go to the launcher alone
    os.chdir(request["folder"])
    signals.stop_with_parent()
    if os.getppid() != request["server"]:
        sys.exit(128 + signal.SIGTERM)
    _die_first()
    os.environ.update(request["environment"], OMP_NUM_THREADS=str(request["threads"]))
    said = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, stream in ((nothing, 0), (said, 1), (said, 2)):
        os.dup2(descriptor, stream)
    import torch

    torch.set_num_threads(request["threads"])
    sys.argv[1:] = request["arguments"]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    sys.exit(0)


if __name__ == "__main__":
    main()
