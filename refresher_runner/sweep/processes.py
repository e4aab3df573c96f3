"""Where a sweep's processes come from: forked from a server that has imported everything, or started afresh. Free of torch."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from refresher_runner.engine import signals


class Processes(Protocol):
    """`python -m module arguments`, several at once, each told from the others by a number."""

    def expect(self, modules: Sequence[str]) -> None:
        """What processes to come will import: better once for all, before."""
        ...

    def start(self, module: str, arguments: Sequence[str], *, output: Path, environment: Mapping[str, str], threads: int) -> int:
        """Begin one whose stdout and stderr go to the end of `output`; its number."""
        ...

    def signal(self, number: int, signum: int) -> None:
        """SIGKILL is for all that the process has started, too; a process that has ended is left in peace."""
        ...

    def ended(self, timeout: float) -> list[tuple[int, int]]:
        """(number, exit code) of those that have ended since the last call, as soon as there is one; minus the signal that ended it."""
        ...

    def close(self) -> None:
        """Whatever still runs is asked to stop."""
        ...


def processes() -> Processes:
    """The best that this system offers."""
    return Forked() if sys.platform == "linux" else Spawned()


class Forked:
    """Forks of sweep/server.py. A server that dies, as by the hand of a job, is replaced; its jobs count as killed with it."""

    def __init__(self) -> None:
        self._expected: list[str] = []
        self._next = 0
        self._running: set[int] = set()
        self._serve()

    def _serve(self) -> None:
        self._unread = b""
        self._server = subprocess.Popen(
            [sys.executable, "-m", "refresher_runner.sweep.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # none to break by a fork
            start_new_session=True,  # Ctrl-C is for the launcher
        )
        for module in self._expected:
            self._tell(**{"import": module})

    def expect(self, modules: Sequence[str]) -> None:
        new = [module for module in dict.fromkeys(modules) if module not in self._expected]
        self._expected += new
        for module in new:
            self._tell(**{"import": module})

    def start(self, module: str, arguments: Sequence[str], *, output: Path, environment: Mapping[str, str], threads: int) -> int:
        self._next += 1
        self._running.add(self._next)
        words = {"module": module, "arguments": list(arguments), "output": str(output), "environment": dict(environment)}
        self._tell(id=self._next, folder=os.getcwd(), threads=threads, **words)
        return self._next

    def signal(self, number: int, signum: int) -> None:
        if number in self._running:
            self._tell(id=number, signal=signum)

    def ended(self, timeout: float) -> list[tuple[int, int]]:
        assert self._server.stdout is not None
        with suppress(InterruptedError):
            if not select.select([self._server.stdout], [], [], timeout)[0]:
                return []
        read = os.read(self._server.stdout.fileno(), 65536)
        if not read:
            return self._replace()
        *lines, self._unread = (self._unread + read).split(b"\n")
        found = [(answer["id"], answer["code"]) for answer in map(json.loads, lines)]
        self._running -= {number for number, _ in found}
        return found

    def close(self) -> None:
        if self._server.stdin and not self._server.stdin.closed:
            self._server.stdin.close()
            if not self._running:
                self._server.kill()  # it may be busy with imports that nobody waits for any more
            self._server.wait()
            assert self._server.stdout is not None
            self._server.stdout.close()

    def _tell(self, **words: Any) -> None:
        assert self._server.stdin is not None
        with suppress(BrokenPipeError):  # the server's death is seen where answers are read
            self._server.stdin.write(json.dumps(words).encode() + b"\n")
            self._server.stdin.flush()

    def _replace(self) -> list[tuple[int, int]]:
        self.close()
        lost, self._running = sorted(self._running), set()
        self._serve()
        return [(number, -signal.SIGKILL) for number in lost]


class Spawned:
    """Fresh interpreters."""

    def __init__(self) -> None:
        self._running: dict[int, subprocess.Popen[Any]] = {}
        self._next = 0

    def expect(self, modules: Sequence[str]) -> None:
        """Nothing is shared."""

    def start(self, module: str, arguments: Sequence[str], *, output: Path, environment: Mapping[str, str], threads: int) -> int:
        self._next += 1
        apart: dict[str, Any] = {"start_new_session": True, "preexec_fn": signals.stop_with_parent} if os.name == "posix" else {}
        with open(output, "ab") as said:
            self._running[self._next] = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment, "OMP_NUM_THREADS": str(threads)},
                **apart,
            )
        return self._next

    def signal(self, number: int, signum: int) -> None:
        if process := self._running.get(number):
            process.send_signal(signum)
            if signum == signal.SIGKILL and os.name == "posix":
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signum)

    def ended(self, timeout: float) -> list[tuple[int, int]]:
        end = time.monotonic() + timeout
        while True:
            found = [(number, process.returncode) for number, process in self._running.items() if process.poll() is not None]
            if found or time.monotonic() >= end:
                break
            time.sleep(0.02)
        for number, _ in found:
            del self._running[number]
        return found

    def close(self) -> None:
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            process.wait()
        self._running.clear()
