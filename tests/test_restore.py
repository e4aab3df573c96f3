"""Weights of one run that another begins from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from refresher_runner.cli import main
from refresher_runner.engine import checkpoint
from refresher_runner.engine.rundir import RunDir
from refresher_runner.errors import CheckpointError
from refresher_runner.restore import load_pretrained, pretrained
from tests.inside import trained
from tests.models.build import COLOUR, DIGITS, build

SMOKE = ["trainer=smoke", "trainer.threads=1", "trainer.device=cpu", "trainer.loggers=[console]"]
TEXT = ["data.tokens=characters", "data.block_size=16", "data.val_fraction=0.0005", "data.test_fraction=0.0005", "model.dim=32"]


pytestmark = pytest.mark.usefixtures("as_it_was")


def train(*typed: str) -> RunDir:
    return trained(*SMOKE, *typed)


def test_the_averages_are_taken_where_there_are_any() -> None:
    first = train("model=mlp", "trainer.ema_decay=0.5")
    task = build("mlp")
    last = first.checkpoints / "last.pt"
    told, saved = load_pretrained(task, pretrained(str(last)), DIGITS), checkpoint.load(last)
    assert any(not torch.equal(value, saved["task"][name]) for name, value in saved["ema"].items())
    for name, value in task.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, {**saved["task"], **saved["ema"]}[name]), name
    assert told.endswith(str(last)), "nothing is new"


def test_a_run_begins_with_the_weights_of_another() -> None:
    first = train("model=cnn")
    second = train("model=cnn", f"init_from={first}", "optimizer.lr=1e-12", "seed=5")
    saved, begun = (checkpoint.load(run.checkpoints / "best.pt")["task"] for run in (first, second))
    weights = [name for name in saved if name.endswith("weight")]
    assert weights
    for name in weights:
        torch.testing.assert_close(begun[name], saved[name], atol=1e-9, rtol=0)
    assert "begins with" in second.log.read_text(encoding="utf-8")
    by_file = train("model=cnn", f"init_from={first.checkpoints / 'best.pt'}", "optimizer.lr=1e-12", "seed=5")
    again = checkpoint.load(by_file.checkpoints / "best.pt")["task"]
    assert all(torch.equal(again[name], begun[name]) for name in again)


def test_what_does_not_fit_stays_new_and_is_told() -> None:
    first = train("model=cnn")
    task = build("cnn", COLOUR)  # three channels, three classes
    before = {name: value.clone() for name, value in task.state_dict().items()}
    saved = pretrained(str(first))
    told, saved = load_pretrained(task, saved, COLOUR), saved.weights
    taken = {name for name, value in task.state_dict().items() if name in saved and saved[name].shape == value.shape}
    assert 0 < len(taken) < len(before)
    for name, value in task.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, saved[name] if name in taken else before[name]), name
    assert all(name.rpartition(".")[0] in told.partition("new: ")[2] for name in before.keys() - taken)


def test_where_nothing_fits() -> None:
    first = train("model=mlp")
    with pytest.raises(CheckpointError, match="holds no weight that fits this model") as caught:
        load_pretrained(build("resnet", DIGITS), pretrained(str(first)), DIGITS)
    assert caught.value.cure


@pytest.mark.parametrize(("where", "code"), [("nowhere", 2), ("notes.pt", 3)])
def test_what_is_no_run_is_refused_and_nothing_is_made(where: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    Path("notes.pt").write_text("not a checkpoint", encoding="utf-8")
    assert main(["train", *SMOKE, "model=mlp", f"init_from={where}"]) == code
    assert where in capsys.readouterr().err
    assert not list(Path().glob("outputs/*/*/*"))


def test_text_keeps_the_vocabulary_of_the_run_it_begins_from() -> None:
    """A model pre-trained on one text is fine-tuned on others, and goes on when the first run is gone."""
    first = train("model=bert", "data=python_docs", *TEXT)
    for n in range(8):
        for name in ("with", "without"):
            Path("texts", name).mkdir(parents=True, exist_ok=True)
            Path("texts", name, f"{n}.txt").write_text(f"a {name} {n}", encoding="utf-8")
    own = ["data=text_folder", "data.root=texts", "data.tokens=characters", "data.block_size=16", "data.batch_size=4", "model.dim=32"]
    second = train("model=bert", *own, f"init_from={first}")
    saved = checkpoint.load(second.checkpoints / "last.pt")
    assert saved["spec"]["vocabulary"] == checkpoint.load(first.checkpoints / "best.pt")["spec"]["vocabulary"]
    assert saved["spec"]["kind"] == "LabelledTextSpec"
    assert "new: classes" in second.log.read_text(encoding="utf-8")

    shutil.rmtree(first.path)
    assert main(["test", str(second)]) == 0
    assert main(["resume", str(second), "trainer.duration=6 steps"]) == 0
    assert second.read_status()["step"] == 6
    assert checkpoint.load(second.checkpoints / "last.pt")["spec"] == saved["spec"]
    assert main(["resume", str(second), "init_from=null"]) == 2, "this would be another run"
