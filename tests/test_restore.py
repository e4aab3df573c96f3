"""Weights of one run that another begins from, and what must be the same where a run is tested or gone on with."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
from pathlib import Path

import pytest
import torch

from refresher_runner.cli import main
from refresher_runner.engine import checkpoint
from refresher_runner.engine.rundir import RunDir
from refresher_runner.errors import CheckpointError
from refresher_runner.restore import load_pretrained, pretrained
from refresher_runner.spec import DetectionSpec
from tests.inside import trained
from tests.models.build import COLOUR, DIGITS, build
from tests.processes import Command, appears, differences, left, only_run

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


def test_where_classes_are_others_what_tells_them_apart_stays_new() -> None:
    """Ten classes there and here, but not the same: what was learnt of a 3 is no beginning for a shirt."""
    saved = pretrained(str(train("model=cnn")))
    clothes = dataclasses.replace(DIGITS, classes=tuple("abcdefghij"))
    task = build("cnn", clothes)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    told = load_pretrained(task, saved, clothes)
    assert told.endswith("; new: network.classes")
    for name, value in task.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, (before if "classes" in name else saved.weights)[name]), name
    assert "new:" not in load_pretrained(task, saved, DIGITS)


SCENES = DetectionSpec(3, 64, ("disc", "square", "triangle"))


@pytest.mark.parametrize(
    ("model", "spec", "layers"),
    [
        ("mlp", DIGITS, ["network.2"]),
        ("cnn", DIGITS, ["network.classes"]),
        ("resnet", DIGITS, ["network.classes"]),
        ("yolo", SCENES, [f"network.heads.{i}.classes.1" for i in range(3)]),
        ("yolo_v1", SCENES, ["network.head"]),
        ("ddpm", DIGITS, ["network.label"]),
    ],
)
def test_every_model_of_classes_names_the_layers_that_tell_them_apart(model: str, spec: object, layers: list[str]) -> None:
    task = build(model, spec)  # type: ignore[arg-type]
    names = {id(module): name for name, module in task.named_modules()}
    assert [names[id(layer)] for layer in task.class_layers()] == layers


@pytest.mark.parametrize(
    ("where", "code", "said"),
    [
        ("nowhere", 2, "init_from=nowhere: is neither a run nor a checkpoint"),
        ("notes.pt", 3, "notes.pt: damaged, or not a checkpoint"),
        ("last", 2, "init_from=last: would be another run with every run that is made"),
        ("unjudged", 2, "init_from=unjudged: this run has no best checkpoint yet"),
    ],
)
def test_what_is_no_run_is_refused_and_nothing_is_made(where: str, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("notes.pt").write_text("not a checkpoint", encoding="utf-8")
    Path("unjudged").mkdir()
    Path("unjudged", "config.yaml").touch()
    assert main(["train", *SMOKE, "model=mlp", f"init_from={where}"]) == code
    error, *hint = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {said}")
    assert bool(hint) == (code == 2)
    assert not list(Path().glob("outputs/*/*/*"))


def test_a_sweep_begins_from_no_run_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-m", *SMOKE, "model=mlp", "init_from=last", "seed=1,2"]) == 2
    assert "init_from=last" in capsys.readouterr().err
    assert not Path("outputs").exists()


def test_a_run_records_what_it_began_from() -> None:
    first = train("model=mlp")
    best = first.checkpoints / "best.pt"
    assert train("model=mlp").read_record()["origin"] is None
    assert train("model=mlp", f"init_from={first}").read_record()["origin"] == {
        "path": str(best.resolve()),
        "run": first.read_record()["id"],
        "step": checkpoint.load(best)["progress"]["step"],
        "sha256": hashlib.sha256(best.read_bytes()).hexdigest(),
    }


def test_a_run_killed_before_it_saved_begins_again_from_the_same_weights(tmp_path: Path) -> None:
    first = train("model=cnn").path.resolve()
    typed = ["train", *SMOKE, "model=cnn", f"init_from={first}", "seed=4"]
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    assert Command(*typed, folder=tmp_path / "whole").wait() == 0
    command = Command(*typed, folder=tmp_path / "killed")
    assert command.killed_when(appears(tmp_path / "killed", "status.json"))
    whole, killed = only_run(tmp_path / "whole"), only_run(tmp_path / "killed")
    assert whole and killed
    assert not any(killed.checkpoints.glob("*.pt"))
    best = first / "checkpoints" / "best.pt"
    kept = best.read_bytes()
    checkpoint.save({**checkpoint.load(best), "progress": {"step": 1}}, best)
    resumed = Command("resume", str(killed.path), folder=tmp_path / "killed")
    assert resumed.wait() == 3
    assert "init_from=" in resumed.said
    assert "has changed since this run began with it" in resumed.said
    best.write_bytes(kept)
    assert Command("resume", str(killed.path), folder=tmp_path / "killed").wait() == 0
    assert differences(left(whole), left(killed)) == []


def test_a_checkpoint_whose_data_nobody_knows_can_be_begun_from() -> None:
    """Its weights alone are wanted; to go on with it, or to test it, one has to know."""
    first = train("model=mlp")
    best = first.checkpoints / "best.pt"
    checkpoint.save({**checkpoint.load(best), "spec": {"kind": "OfAPlugin", "classes": tuple("0123456789")}}, best)
    assert "new:" not in train("model=mlp", f"init_from={first}").log.read_text(encoding="utf-8")
    assert main(["test", str(first)]) == 3


@pytest.mark.parametrize("name", ["ema", "spec", "progress"])
def test_a_checkpoint_with_a_list_for_a_mapping_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = train("model=mlp")
    last = first.checkpoints / "last.pt"
    checkpoint.save({**checkpoint.load(last), name: [1, 2]}, last)
    capsys.readouterr()
    for typed in (["test", str(first), "--checkpoint", "last"], ["train", *SMOKE, "model=mlp", f"init_from={last}"]):
        assert main(typed) == 3
        assert capsys.readouterr().err.startswith(f"error: {last}: not a checkpoint of this version of refresher")


def test_averages_of_another_shape_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    first = train("model=mlp", "trainer.ema_decay=0.5")
    last = first.checkpoints / "last.pt"
    state = checkpoint.load(last)
    name = next(iter(state["ema"]))
    checkpoint.save({**state, "ema": {**state["ema"], name: torch.zeros(3)}}, last)
    capsys.readouterr()
    assert main(["test", str(first), "--checkpoint", "last"]) == 3
    assert f"{name} is (3,) in the checkpoint" in capsys.readouterr().err


# -------------------------------------------------------------------- the data must be those that were learnt from


def lay_out(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True)
        for n in range(8):
            (root / name / f"{n}.txt").write_text(f"a {name} {n}", encoding="utf-8")


FOLDER = ["model=bert", "data=text_folder", "data.tokens=characters", "data.block_size=16", "data.batch_size=4", "model.dim=32"]


@pytest.mark.parametrize("typed", [["test"], ["resume", "trainer.duration=6 steps"]])
def test_data_of_other_classes_are_refused(typed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """As many, of the same letters, under other names: every number would be of something else."""
    lay_out(Path("texts"), "with", "without")
    lay_out(Path("others"), "with", "without")
    Path("others", "without").rename(Path("others", "thou"))
    run = train(*FOLDER, "data.root=texts")
    verb, *more = typed
    capsys.readouterr()
    assert main([verb, str(run), "data.root=others", *more]) == 3
    error, hint = capsys.readouterr().err.splitlines()
    pattern = r"error: data: has classes \('thou', 'with'\), and .* learnt from \('with', 'without'\)"
    assert re.fullmatch(pattern, error), error
    assert "new run" in hint
    assert run.read_status()["state"] == "finished", "nothing happened to it"
    Path("others", "thou").rename(Path("others", "without"))
    assert main([verb, str(run), "data.root=others", *more]) == 0


def test_pictures_of_other_classes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for root, names in (("one", ("a", "b")), ("two", ("b", "c"))):
        for name in names:
            Path(root, name).mkdir(parents=True)
            for n in range(8):
                Image.effect_noise((8, 8), 50).save(Path(root, name, f"{n}.png"))
    run = train("model=mlp", "data=image_folder", "data.root=one", "data.size=8", "data.channels=1", "data.batch_size=4", "data.workers=0")
    capsys.readouterr()
    assert main(["test", str(run), "data.root=two"]) == 3
    assert "has classes ('b', 'c')" in capsys.readouterr().err


def test_damage_of_a_run_of_text_is_told_and_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    """Its vocabulary comes out of the checkpoint too."""
    lay_out(Path("texts"), "with", "without")
    run = train(*FOLDER, "data.root=texts", "trainer.save_every=1 steps")
    last, previous = (run.checkpoints / f"{name}.pt" for name in ("last", "previous"))
    spec = checkpoint.load(last)["spec"]
    for n in range(8):
        Path("texts", "with", f"{n}.txt").write_text(f"a with {n % 2}", encoding="utf-8")  # fewer letters than were learnt
    last.write_bytes(last.read_bytes()[:1000])
    capsys.readouterr()
    assert main(["resume", str(run), "trainer.duration=6 steps"]) == 0
    [warning] = [line for line in "".join(capsys.readouterr()).splitlines() if line.startswith("warning")]
    assert "last.pt" in warning and "previous.pt" in warning
    assert (run.read_status()["state"], run.read_status()["step"]) == ("finished", 6)
    assert checkpoint.load(last)["spec"] == spec

    for path in (last, previous):
        path.write_bytes(path.read_bytes()[:1000])
    assert main(["resume", str(run), "trainer.duration=8 steps"]) == 3
    status = run.read_status()
    assert (status["state"], status["exit_code"]) == ("failed", 3)
    assert "last.pt" in status["error"]


# -------------------------------------------------------------------- text


def test_another_vocabulary_than_the_one_that_is_kept_cannot_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(Path("texts"), "with", "without")
    first = train(*FOLDER, "data.root=texts")
    capsys.readouterr()
    assert main(["train", *SMOKE, *FOLDER, "data.root=texts", "data.tokens=subwords", f"init_from={first}"]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "error: data.tokens=subwords: the checkpoint's vocabulary is of characters"
    assert "data.tokens=characters" in hint
    assert [run.path for run in RunDir.all("outputs")] == [first.path]


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
