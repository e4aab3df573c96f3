"""SIGINT and SIGTERM as a flag that the pipeline polls: finish the step, save, leave. Free of torch, and installed before it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from types import FrameType

from refresher_runner.errors import Interrupted

_received = 0


def install() -> None:
    """Catch SIGINT and SIGTERM from now on. A second SIGINT leaves at once; whatever was saved stays whole."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(signum) is not signal.SIG_IGN:  # a shell's background job ignores SIGINT on purpose
            signal.signal(signum, _remember)


def received() -> int:
    """The signal that asks the run to stop, or 0."""
    return _received


def poll() -> None:
    """Raise Interrupted if a signal came: for the stretches of a run in which there is nothing to save."""
    if _received:
        raise Interrupted(_received)


def stop_with_parent() -> None:
    """Linux: ask to be stopped, as by SIGTERM, when the process that started this one is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _remember(signum: int, frame: FrameType | None) -> None:
    global _received
    if _received and signum == signal.SIGINT:
        os._exit(128 + signum)
    _received = signum
