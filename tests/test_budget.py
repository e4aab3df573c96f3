"""A run with a budget: the numbers it chose are those of a run that was asked for them, and it keeps them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
import yaml

from refresher_runner.cli import main
from refresher_runner.compose import compose
from refresher_runner.engine import checkpoint
from refresher_runner.engine.optim import lr_factor
from refresher_runner.engine.options import ScheduleOptions
from refresher_runner.engine.rundir import RunDir
from refresher_runner.settings import check
from tests.inside import trained

pytestmark = pytest.mark.usefixtures("as_it_was")

SMALL = ["model=mlp", "model.hidden=[8]", "trainer.threads=1", "trainer.loggers=[]", "data.batch_size=256"]


def typed_by(run: RunDir) -> list[str]:
    chosen = run.read_record()["budget"]
    length = [f"trainer.duration={chosen['steps']} steps", f"trainer.validate_every={chosen['validate_every']} steps"]
    return [*SMALL, *length, f"optimizer.warmup_steps={chosen['warmup_steps']}"]


def test_a_budget_is_the_run_of_the_numbers_it_chose_bit_for_bit() -> None:
    """Dropout and order draw alike, so measuring left no trace; the schedule ends; the choice is told, and kept by a resume."""
    run = trained(*SMALL, "model.dropout=0.3", "optimizer.warmup_steps=100", "trainer.budget=3 seconds")
    chosen = run.read_record()["budget"]
    assert yaml.safe_load(run.config.read_text(encoding="utf-8"))["trainer"]["budget"] == "3 seconds"
    assert chosen["steps"] % chosen["validate_every"] == 0
    assert run.read_status()["step"] == chosen["steps"]
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    annealed = lr_factor(ScheduleOptions("cosine", chosen["warmup_steps"], 0.0), chosen["steps"] - 1, chosen["steps"])
    assert [line["optim/lr"] for line in lines if "optim/lr" in line][-1] == annealed * compose([])[0]["optimizer"]["lr"]
    assert f"{chosen['steps']} steps of " in run.log.read_text(encoding="utf-8")

    plain = trained(*typed_by(run), "model.dropout=0.3")
    states = [checkpoint.load(made.checkpoints / "last.pt") for made in (run, plain)]
    assert all(torch.equal(value, states[1]["task"][name]) for name, value in states[0]["task"].items())
    every, looked = chosen["validate_every"], [line["step"] for line in lines if "val/loss" in line]
    assert looked == list(range(every, chosen["steps"] + 1, every))

    assert main(["resume", str(run.path), "trainer.save_every=1 hours"]) == 0
    assert run.read_record()["budget"] == chosen
    assert run.read_status()["step"] == chosen["steps"]
    assert main(["resume", str(run.path), "trainer.budget=1 seconds"]) == 0
    more = run.read_record()["budget"]
    assert (more["asked"], run.read_status()["step"]) == ("1 seconds", more["steps"])
    assert more["steps"] > chosen["steps"]


def test_a_length_in_time_is_a_budget() -> None:
    for typed in (["trainer.budget=5 minutes"], ["trainer.duration=5 minutes"]):
        options = check(compose(typed)[0]).trainer
        assert str(options.budget) == "5 minutes"
    assert check(compose([])[0]).trainer.budget is None


@pytest.mark.parametrize("value", ["5 steps", "3 epochs", "5", "-1 minutes", "0 seconds", "soon"])
def test_a_budget_is_a_time(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"trainer.budget={value}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: trainer.budget={value}: should be")
    assert list(Path().iterdir()) == []


def test_a_budget_that_is_too_small_does_the_least_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(*SMALL, "trainer.loggers=[console]", "trainer.budget=0.01 seconds", "trainer.limit_batches=2")
    assert run.read_status()["step"] == 1
    assert "of 0.01 seconds are spent; 1 steps of" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_a_budget_is_kept(model: str) -> None:
    """Within a fifth, of a machine that others use too; benchmarks/RESULTS.md has what one reaches alone."""
    began = time.monotonic()
    trained(f"model={model}", "trainer.threads=1", "trainer.budget=20 seconds")
    assert 16 < time.monotonic() - began < 24
