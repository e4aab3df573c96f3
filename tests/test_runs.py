"""Runs written by hand, read back as a table and side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from refresher_runner.engine.rundir import RunDir
from refresher_runner.errors import RunError, UsageError
from refresher_runner.runs import compare, find, summarise


def make_run(outputs: Path, name: str, *, lr: float, best: float | None, state: str = "finished", mode: str = "max", **more: Any) -> RunDir:
    run = RunDir(outputs / "cnn" / "digits" / name)
    run.path.mkdir(parents=True)
    optimizer = {"name": "adam", "lr": lr}
    config = {"seed": more.get("seed", 0), "tags": more.get("tags", []), "model": {"name": "cnn"}, "optimizer": optimizer}
    run.config.write_text(yaml.safe_dump(config), encoding="utf-8")
    record = {
        "id": name,
        "git": {"commit": more.get("commit", "a" * 40)},
        "versions": {"torch": more.get("torch", "2.15")},
        "parameters": 7,
    }
    run.record.write_text(json.dumps(record), encoding="utf-8")
    test = {"test/accuracy": best} if best is not None else None
    goal = {"metric": "accuracy", "mode": mode, "best": best, "best_step": 20}
    run.status.write_text(json.dumps({"state": state, "step": 40, "goal": goal, "test": test}), encoding="utf-8")
    lines = [{"step": 20, "val/accuracy": best, "val/loss": 0.5}, {"step": 40, "val/accuracy": 0.25, "val/loss": 0.75, "train/loss": 0.1}]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 60, "val/ac', encoding="utf-8")
    return run


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    make_run(tmp_path, "2026-01-01_00-00-00_aaaa", lr=0.01, best=0.75, tags=["baseline"])
    make_run(tmp_path, "2026-01-02_00-00-00_bbbb", lr=0.001, best=0.875, seed=1)
    make_run(tmp_path, "2026-01-03_00-00-00_cccc", lr=1e-5, best=None, state="failed", torch="2.16")
    return tmp_path


def names(found: list[Any]) -> list[str]:
    return [summary.run.path.name[-4:] for summary in found]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, ["aaaa", "bbbb", "cccc"]),
        ({"sort": "goal"}, ["bbbb", "aaaa", "cccc"]),
        ({"sort": "optimizer.lr"}, ["cccc", "bbbb", "aaaa"]),
        ({"state": "failed"}, ["cccc"]),
        ({"tag": "baseline"}, ["aaaa"]),
        ({"tag": "base"}, []),
        ({"filters": {"model": "cnn", "seed": "1"}}, ["bbbb"]),
        ({"filters": {"optimizer.lr": "1e-3"}}, ["bbbb"]),
        ({"filters": {"optimizer.lr": "0.010"}}, ["aaaa"]),
        ({"filters": {"model": "mlp"}}, []),
    ],
)
def test_find(outputs: Path, asked: dict[str, Any], expected: list[str]) -> None:
    assert names(find(outputs, **asked)) == expected


def test_goal_sorts_small_first_where_small_is_good(tmp_path: Path) -> None:
    for name, best in (("aaaa", 0.5), ("bbbb", 0.25), ("cccc", float("nan"))):
        make_run(tmp_path, name, lr=0.1, best=best, mode="min")
    assert names(find(tmp_path, sort="goal")) == ["bbbb", "aaaa", "cccc"]


def test_unknown_keys_and_folders_are_refused(outputs: Path) -> None:
    with pytest.raises(UsageError) as refused:
        find(outputs, filters={"optimizer.lrr": "1"})
    assert "optimizer.lr'" in refused.value.cure
    with pytest.raises(UsageError):
        find(outputs, sort="nope")
    with pytest.raises(RunError):
        find(outputs / "absent")


def test_a_summary_survives_what_a_crash_leaves(outputs: Path) -> None:
    run = RunDir.find("last", outputs)
    run.status.write_text('{"state": "runn', encoding="utf-8")
    run.record.write_text("", encoding="utf-8")
    summary = summarise(run)
    assert (summary.state, summary.best, summary.tested, summary.value("model")) == ("unknown", None, None, "cnn")
    run.config.write_text("a: [", encoding="utf-8")
    with pytest.raises(RunError):
        summarise(run)


def test_running_without_its_process_reads_as_crashed(tmp_path: Path) -> None:
    make_run(tmp_path, "aaaa", lr=0.1, best=0.5, state="running")
    assert [summary.state for summary in find(tmp_path, state="crashed")] == ["crashed"]


def test_compare_shows_what_differs_and_every_metric(outputs: Path) -> None:
    found = compare(find(outputs))
    assert found["configuration"] == {
        "seed": ["0", "1", "0"],
        "tags": ["['baseline']", "[]", "[]"],
        "optimizer.lr": ["0.01", "0.001", "1e-05"],
    }
    assert found["code"] == {}
    assert found["environment"] == {"torch": ["2.15", "2.15", "2.16"]}
    metrics = found["metrics"]
    assert metrics["best val/accuracy"] == ["0.75", "0.875", "-"]
    assert metrics["val/accuracy"] == ["0.25", "0.25", "0.25"], "the last value, and the line that was cut off does not count"
    assert "train/loss" not in metrics
