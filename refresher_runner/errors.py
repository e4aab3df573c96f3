"""Every error a user can cause, as one tree.

    RefresherError
    |- UsageError          exit 2   what was typed
    |  |- ConfigError                 a key or a value of the configuration
    |  '- RunError                    a run directory that is absent, busy, or does not fit the command
    |- DataError           exit 3   files of a data set
    |- CheckpointError     exit 3   files of a run
    |- TrainingError       exit 1   training itself failed; the run can be resumed
    '- Interrupted         exit 130 (SIGINT) or 143 (SIGTERM); the run can be resumed

A message is one line that names the key and the value; `cure` is one more line that says what to do. Mistakes of
programmers are assertions, not members of this tree.
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable

_NOTHING = object()


class RefresherError(Exception):
    """What is wrong, in one line with key and value; `cure` says what to do."""

    exit_code = 1

    def __init__(self, problem: str, *, key: str = "", value: object = _NOTHING, cure: str = ""):
        where = key if value is _NOTHING else f"{key}={_short(value)}"
        self.problem = " ".join(f"{where}: {problem}".split() if where else problem.split())
        self.key, self.cure = key, " ".join(cure.split())
        super().__init__(self.problem)


class UsageError(RefresherError):
    """What was typed."""

    exit_code = 2


class ConfigError(UsageError):
    """A key or a value of the configuration."""


class RunError(UsageError):
    """A run directory that is absent, busy, or does not fit the command."""


class DataError(RefresherError):
    """Files of a data set."""

    exit_code = 3


class CheckpointError(RefresherError):
    """Files of a run."""

    exit_code = 3


class TrainingError(RefresherError):
    """Training failed; the run can be resumed."""

    exit_code = 1


class Interrupted(RefresherError):
    """A signal came; the run can be resumed."""

    def __init__(self, signum: int, problem: str = "", *, cure: str = ""):
        super().__init__(problem or f"stopped by {signal.Signals(signum).name}", cure=cure)
        self.exit_code = 128 + signum


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The cure for a mistyped name: the nearest known one, or all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"known: {', '.join(known)}" if known else ""


def _short(value: object, limit: int = 80) -> str:
    """The value as one typed it, on one line, printable, at most `limit` characters."""
    text = "".join(c if c.isprintable() else "?" for c in " ".join(str(value).split()))
    return text if len(text) <= limit else text[: limit - 3] + "..."
