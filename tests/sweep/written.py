"""Runs written by hand, as training leaves them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from refresher_runner.engine.rundir import RunDir


def write_run(
    folder: Path,
    name: str,
    config: Mapping[str, Any],
    curve: Mapping[int, float] | None = None,
    *,
    state: str = "finished",
    metric: str = "accuracy",
    mode: str = "max",
    typed: tuple[str, ...] = (),
    tested: float | None = None,
    more: Mapping[str, float] | None = None,
    parameters: int = 7,
) -> RunDir:
    """A run whose goal took the values of `curve` (by step); `more` are other numbers of each evaluation."""
    run = RunDir(folder / name)
    run.path.mkdir(parents=True)
    base = {"seed": 0, "outputs": str(folder), "tags": [], "data": {"name": "digits"}, "trainer": {"threads": 1}}
    run.config.write_text(yaml.safe_dump({**base, **config}), encoding="utf-8")
    record = {"id": name, "started": f"2026-01-01T00:00:00+00:00 {name}", "command": ["train", *typed], "parameters": parameters}
    run.record.write_text(json.dumps(record), encoding="utf-8")
    goal: dict[str, Any] = {}
    if curve:
        finite = {step: value for step, value in curve.items() if value == value}
        best = max(finite, key=lambda step: finite[step] * (1 if mode == "max" else -1)) if finite else 0
        goal = {"metric": metric, "mode": mode, "best": finite.get(best), "best_step": best}
    status = {
        "state": state,
        "step": max(curve or {0: 0}),
        "goal": goal,
        "test": {f"test/{metric}": tested} if tested is not None else None,
    }
    run.status.write_text(json.dumps(status), encoding="utf-8")
    lines = [{"step": step, "time": 1.7e9 + step, "train/loss": 1 / (1 + step)} for step in curve or {}]
    lines += [
        {"step": step, "time": 1.7e9 + step, f"val/{metric}": value if value == value else "nan", **(more or {})}
        for step, value in (curve or {}).items()
    ]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return run


def chosen(model: str = "cnn", lr: float = 0.1, seed: int = 0, **options: Any) -> dict[str, Any]:
    """A configuration; `options` are the model's."""
    return {"seed": seed, "model": {"name": model, **options}, "optimizer": {"name": "adam", "lr": lr}}
