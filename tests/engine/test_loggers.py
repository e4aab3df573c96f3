"""All loggers together: what a run leaves, a full disk, and a resumed run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from refresher_runner.engine.logger import Logger
from refresher_runner.engine.loggers import Loggers, open_loggers, rewind
from refresher_runner.engine.metrics_file import read_metrics
from refresher_runner.engine.rundir import RunDir
from refresher_runner.report import Matrix, Report
from tests.engine.test_metrics_file import disk_of, end_of, rows
from tests.engine.test_tensorboard import Run
from tests.engine.toy import Toy, ToyLoader

ALL = ("console", "csv", "tensorboard")
TRAINING: Report = {
    "train/loss": 1.0,
    "optim/lr": 0.001,
    "speed/samples_per_second": 5000.0,
    "progress/epoch": 0.5,
    "progress/fraction": 0.5,
}
EVALUATION: Report = {"val/loss": 0.5, "val/best": 0.5, "val/confusion_matrix": Matrix(torch.eye(2).long(), ("a", "b"), ("a", "b"))}


def opened(run: RunDir, names: tuple[str, ...] = ALL) -> Loggers:
    return open_loggers(run, names, title="toy on points")


def train(sink: Loggers, first: int, last: int) -> None:
    for step in range(first, last + 1):
        sink.log(TRAINING, step)
        if step % 2 == 0:
            sink.log(EVALUATION, step)
            sink.flush()


def test_what_a_run_leaves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(tmp_path)
    sink = opened(run)
    sink.begin(Toy(), next(ToyLoader().batches(0)), stored="seed: 0\nlr: 0.1\n", config={"seed": 0, "lr": 0.1}, graph=True)
    train(sink, 1, 4)
    sink.log({"test/loss": 0.25, "test/recall/a": 1.0}, 4)
    sink.finish({"test/loss": 0.25, "test/recall/a": 1.0})
    sink.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "log.txt", "metrics.csv", "metrics.jsonl", "tensorboard"]
    first = read_metrics(run.metrics)[0]
    assert first["step"] == 0
    assert first["config"]["markdown"] == "```yaml\nseed: 0\nlr: 0.1\n```"
    assert "| Linear" in first["summary"]["markdown"]
    assert len(rows(run.csv)) == 4 + 2 + 1
    told, warned = capsys.readouterr()
    assert warned == ""
    for words in (f"toy on points: {run}", "| Toy ", "val  step      2  loss 0.5 (best)", "| loss |  0.25 |", "| a     |      1 |"):
        assert words in told
    tags = {tag for tag, _ in Run(tmp_path).events()}
    assert {"train/loss", "val/confusion_matrix", "config/text_summary", "_hparams_/session_start_info"} <= tags


def test_loggers_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(tmp_path)
    sink = opened(run, ())
    train(sink, 1, 2)
    sink.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "log.txt", "metrics.jsonl"]
    assert capsys.readouterr().out == ""
    assert "val  step" in run.log.read_text()


def test_a_rank_that_only_computes_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    sink = Loggers()
    sink.begin(Toy(), None, stored="", config={}, graph=True)
    train(sink, 1, 2)
    sink.finish({})
    sink.say("x")
    sink.warn("x")
    sink.close()
    assert capsys.readouterr() == ("", "")


def test_a_resumed_run_leaves_what_an_unbroken_one_does(tmp_path: Path) -> None:
    unbroken, resumed = RunDir(tmp_path / "a"), RunDir(tmp_path / "b")
    for run in (unbroken, resumed):
        run.path.mkdir()
    sink = opened(unbroken)
    sink.begin(Toy(), next(ToyLoader().batches(0)), stored="lr: 0.1", config={"lr": 0.1}, graph=False)
    train(sink, 1, 8)
    sink.close()
    sink = opened(resumed)
    sink.begin(Toy(), next(ToyLoader().batches(0)), stored="lr: 0.1", config={"lr": 0.1}, graph=False)
    train(sink, 1, 5)
    sink.log({"test/loss": 0.1}, 5)
    sink.close()
    rewind(resumed, end_of(resumed.metrics, 4), {"lr": 0.1})
    sink = opened(resumed)
    train(sink, 5, 8)
    sink.close()
    a, b = ([{**line, "time": 0} for line in read_metrics(run.metrics)] for run in (unbroken, resumed))
    assert a == b
    assert unbroken.csv.read_text() == resumed.csv.read_text()
    assert Run(unbroken.path).events() == Run(resumed.path).events()
    rewind(resumed, 0, {})
    assert read_metrics(resumed.metrics) == []
    assert Run(resumed.path).events() == {}


def test_a_run_that_was_never_logged_can_be_rewound(tmp_path: Path) -> None:
    rewind(RunDir(tmp_path), 0, {})
    assert list(tmp_path.iterdir()) == []


def test_the_goal_is_known_after_a_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(tmp_path)
    run.write_status("running", goal={"metric": "loss", "mode": "min", "best": 0.5})
    sink = opened(run, ("console",))
    sink.log(EVALUATION, 2)
    sink.close()
    assert "loss 0.5 (best)" in capsys.readouterr().out


@pytest.mark.parametrize("room", [0, 300, 900, 3000])
def test_a_full_disk_is_warned_of_once_and_nothing_is_lost_when_there_is_room_again(
    tmp_path: Path, room: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path)
    sink = opened(run)
    with disk_of(room):
        train(sink, 1, 20)
    train(sink, 21, 30)
    sink.close()
    warnings = capsys.readouterr().err.splitlines()
    assert len({line.split()[1] for line in warnings}) == len(warnings) > 0
    assert all("training goes on" in line for line in warnings)
    steps = [line["step"] for line in read_metrics(run.metrics) if "train/loss" in line]
    assert steps == list(range(1, 31))
    assert [row["step"] for row in rows(run.csv) if "train/loss" in row] == [str(step) for step in steps]
    assert {step for tag, step in Run(tmp_path).events() if tag == "train/loss"} == set(steps)
    assert (run.figures / "val_confusion_matrix.png").stat().st_size > 1000


class Broken(Logger):
    def log(self, report: Report, step: int) -> None:
        raise KeyError("a mistake of ours")


def test_a_mistake_of_ours_is_not_hidden() -> None:
    with pytest.raises(KeyError):
        Loggers([Broken()]).log({}, 0)


def test_lines_are_seen_by_other_processes_while_training(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    sink = opened(run, ("csv",))
    for step in range(1, 4):
        sink.log(TRAINING, step)
        seen: list[Any] = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        assert [line["step"] for line in seen] == list(range(1, step + 1))
        assert len(rows(run.csv)) == step
    sink.close()
