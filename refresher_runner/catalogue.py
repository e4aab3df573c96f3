"""What there is to choose from, and what this machine offers: the tables of `refresher list` and `refresher check`."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from refresher_runner import __version__
from refresher_runner.compose import groups
from refresher_runner.engine.record import cpu_name, installed_versions
from refresher_runner.registry import DATASETS, MODELS, OPTIMIZERS

_REGISTRIES = {"models": MODELS, "data": DATASETS, "optimizers": OPTIMIZERS}
_GROUPS = {"trainers": "trainer", "experiments": "experiment", "debug": "debug", "sweeps": "sweep"}
_LIBRARIES = ("torch", "torchvision", "torchmetrics", "tensorboard", "hydra-core", "omegaconf", "numpy", "scikit-learn", "pillow")


def catalogue(config_dir: Path | None = None) -> dict[str, dict[str, str]]:
    """Kind -> name -> one line: a builder's docstring, or the first comment of a file of YAML. Free of torch."""
    found = {title: {name: registry.signature(name).summary for name in registry.names()} for title, registry in _REGISTRIES.items()}
    files = groups(config_dir)
    return found | {title: {name: _first_comment(file) for name, file in files.get(group, {}).items()} for title, group in _GROUPS.items()}


def machine(outputs: Path) -> dict[str, str]:
    """Versions, processors, devices, data and the folder for runs, each as one line."""
    import torch

    versions = installed_versions()
    devices = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    facts = {
        "refresher": __version__,
        "python": f"{sys.version.split()[0]} ({sys.executable})",
        "platform": platform.platform(),
        "cpu": f"{cpu_name()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads",
        "accelerators": ", ".join(devices) or "none",
    }
    facts |= {name: versions.get(name, "not installed") for name in _LIBRARIES}
    return facts | {"outputs": f"{outputs.resolve()} ({_writable(outputs)})", "data": _data(Path(os.environ.get("REFRESHER_DATA", "data")))}


def _first_comment(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ").rstrip() for line in lines if line.startswith("#") and "@package" not in line), "")


def _writable(folder: Path) -> str:
    nearest = next(f for f in (folder.resolve(), *folder.resolve().parents) if f.exists())
    return "writable" if nearest.is_dir() and os.access(nearest, os.W_OK) else "not writable"


def _data(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder.resolve()} (absent: data sets are fetched on first use)"
    return f"{folder.resolve()} ({', '.join(sorted(p.name for p in folder.iterdir())) or 'empty'})"
