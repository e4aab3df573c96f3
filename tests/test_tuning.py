"""`tune-lr` by the command line: what it says, what it leaves, and what it leaves alone."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from refresher_runner.cli import main
from refresher_runner.compose import compose
from refresher_runner.engine.metrics_file import read_metrics
from refresher_runner.engine.rundir import RunDir
from refresher_runner.registry import OPTIMIZERS
from refresher_runner.settings import check

pytestmark = pytest.mark.usefixtures("as_it_was")

SMALL = ["model=mlp", "model.hidden=[16]", "trainer.threads=1", "data.batch_size=32"]


def said(capsys: pytest.CaptureFixture[str], *typed: str) -> list[str]:
    capsys.readouterr()
    assert main(["tune-lr", *typed]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("optimizer", OPTIMIZERS.names())
def test_every_optimizer_has_a_rate_to_suggest_and_the_command_that_trains_with_it(
    optimizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = said(capsys, *SMALL, f"optimizer={optimizer}", "trainer.loggers=[]", "tags=[a b]", "optimizer.lr=1e-3", "--steps", "60")
    command = shlex.split(lines[-1].removeprefix("next: "))
    assert command[:2] == ["refresher", "train"]
    assert "tags=[a b]" in command
    assert sum(word.startswith("optimizer.lr=") for word in command) == 1
    suggested = check(compose(command[2:])[0]).optimizer.options["lr"]
    fastest, lowest = map(float, re.findall(r"at (\S+)", lines[1]))
    assert suggested == pytest.approx(lowest / 4, rel=0.06)
    assert 1e-7 <= fastest <= 1
    picture = Path(lines[-2].removeprefix("curve: "))
    with Image.open(picture) as file:
        file.verify()


def test_a_test_of_rates_is_no_run_and_trains_no_judge(capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["model=vae", "data=digits", "model.width=8", "trainer.threads=1", "data.batch_size=32"]
    lines = said(capsys, *typed, "--steps", "24", "--low", "1e-5", "--high", "1e-2")
    assert RunDir.all("outputs") == []
    folder = Path(lines[-2].removeprefix("curve: ")).parents[1]
    assert {file.name for file in Path("outputs").iterdir()} == {"tune_lr"}, "neither a judge nor a run"
    assert [file for file in (folder / "tensorboard").iterdir() if "tfevents" in file.name]
    points = read_metrics(folder / "metrics.jsonl")
    assert [point["tune_lr/lr"] for point in points[:24]] == pytest.approx([1e-5 * 1000 ** (k / 23) for k in range(24)])
    assert points[-1]["tune_lr/curve"]["x_scale"] == "log"
    assert "the loss was not lost: try --high" in lines[0]


@pytest.mark.parametrize(
    ("typed", "error"),
    [
        (["--low", "1", "--high", "0.1"], "error: --low=1: should be more than 0 and less than --high"),
        (["optimizer.lrr=1"], "error: optimizer.lrr: unknown key"),
        (["optimizer.lr=1,2"], "error: optimizer.lr=1,2: these are several values"),
    ],
)
def test_mistakes(typed: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune-lr", *SMALL, *typed]) == 2
    assert capsys.readouterr().err.splitlines()[0] == error
    assert list(Path().iterdir()) == []
