"""What produced a run, so that a number never stands without its conditions. Free of torch until a device is named."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any


def record_of(command: Sequence[str], *, seed: int, checksums: dict[str, str], **more: Any) -> dict[str, Any]:
    """run.json: id, command, commit, versions of every installed package, data checksums, machine."""
    import torch

    return {
        "id": uuid.uuid4().hex,
        **sitting_of(command),
        "seed": seed,
        "python": sys.version.split()[0],
        "versions": installed_versions(),
        "checksums": checksums,
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **more,
    }


def sitting_of(command: Sequence[str], **more: Any) -> dict[str, Any]:
    """One stretch of a run, from a start or a resume to the next: its command, its time, and the commit it came from."""
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"command": ["refresher", *command], "started": started, "git": git_state(), **more}


def git_state() -> dict[str, Any]:
    """Commit of the folder the command was given in, and whether files differ from it; empty outside a repository."""
    commit = _git("rev-parse", "HEAD")
    return {"commit": commit.strip(), "dirty": bool(_git("status", "--porcelain"))} if commit else {}


def git_diff() -> str:
    """What differs from the commit."""
    return _git("diff", "HEAD")


def installed_versions() -> dict[str, str]:
    """Every installed distribution's version, by name."""
    found = {(d.metadata["Name"] or "").lower(): d.version for d in importlib.metadata.distributions()}
    return dict(sorted((name, version) for name, version in found.items() if name))


def cpu_name() -> str:
    """The processor as the system calls it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), platform.machine())
    except OSError:
        return platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    """Output of a git command; empty where git or the repository is missing."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, errors="replace", timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
