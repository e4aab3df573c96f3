"""The command line, in process where it can be: what it prints, what it leaves, and its exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from refresher_runner import __version__
from refresher_runner.blame import blame
from refresher_runner.cli import main
from refresher_runner.compose import compose, compose_stored
from refresher_runner.engine.rundir import RunDir
from refresher_runner.errors import RunError

QUICK = ["trainer=smoke", "trainer.threads=1", "trainer.loggers=[]"]
PLUGIN = Path(__file__).parent / "plugin"


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Commands that run install signal handlers; pytest wants its own back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one run was trained."""
    folder = tmp_path_factory.mktemp("trained")
    command = [sys.executable, "-m", "refresher_runner", "train", "model=mlp", "optimizer.lr=1e-3", "tags=[first]", *QUICK]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def in_trained(trained: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.chdir(trained)
    return RunDir.find("last")


def say(capsys: pytest.CaptureFixture[str], *typed: str, code: int = 0) -> str:
    assert main(list(typed)) == code
    return capsys.readouterr().out


def python(code: str, **environment: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, check=True, capture_output=True, text=True)
    return done.stdout


# ---------------------------------------------------------------- looking


@pytest.mark.parametrize("typed", [["--help"], ["train", "--help"], ["--version"], ["list"], ["show", "model=mlp"], []])
def test_looking_is_free_of_torch(typed: list[str]) -> None:
    code = f"import sys; from refresher_runner.cli import main; print(main({typed}), 'torch' in sys.modules, 'hydra' in sys.modules)"
    last = python(code).splitlines()[-1]
    assert last.startswith("0 False")
    if typed and typed[0] not in ("list", "show"):
        assert last == "0 False False"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    said = say(capsys, "--help")
    assert all(
        verb in said
        for verb in (
            "train",
            "resume",
            "test",
            "predict",
            "list",
            "show",
            "runs",
            "compare",
            "tensorboard",
            "check",
            "tune-lr",
            "reproduce",
        )
    )
    assert say(capsys, "--version").strip() == f"refresher {__version__}"


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    said = say(capsys, "list")
    assert re.search(r"^mlp +\S.*Rumelhart", said, re.MULTILINE)
    assert re.search(r"^smoke +refresher train", said, re.MULTILINE)
    assert {"cnn", "mlp", "resnet"} <= set(say(capsys, "list", "models", "--names").split())
    assert "mlp" not in say(capsys, "list", "optimizers", "--names").split()


def test_show_prints_what_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert say(capsys, "show", "model=mlp", "optimizer.lr=0.5") == compose(["model=mlp", "optimizer.lr=0.5"])[1]


def test_show_blames(capsys: pytest.CaptureFixture[str]) -> None:
    said = say(capsys, "show", "optimizer.lr", "optimizer=sgd", "optimizer.lr=0.5", "optimizer.lr=0.25").splitlines()
    assert said[0] == "optimizer.lr: 0.25   (float > 0)"
    assert [line.split()[-1] for line in said[1:]] == ["0.25", "0.5", "0.1"]
    assert "sgd.yaml, chosen by optimizer=sgd" in said[3]


@pytest.mark.parametrize(
    ("key", "overrides", "sources"),
    [
        ("trainer.duration", ["trainer=smoke"], ["default.yaml", "smoke.yaml"]),
        ("trainer.duration", ["debug=limit", "trainer.duration=1 steps"], ["default.yaml", "limit.yaml", "trainer.duration=1 steps"]),
        ("seed", ["++seed=3"], ["config.yaml", "++seed=3"]),
        ("optimizer.lr", ["optimizer={lr: 0.5}"], ["adam.yaml", "optimizer={lr: 0.5}"]),
    ],
)
def test_blame_names_every_source_in_order(key: str, overrides: list[str], sources: list[str]) -> None:
    found = blame(key, overrides)
    assert all(source in setting.source for source, setting in zip(sources, found.settings, strict=True))
    assert found.settings[-1].value == found.value


def test_hydra_prints_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert say(capsys, "train", "--cfg", "job", "--package", "optimizer.lr", "optimizer.lr=0.5").strip() == "0.5"
    assert "sweeper:" in say(capsys, "train", "--cfg", "hydra")
    assert "optimizer/adam" in say(capsys, "train", "--info", "defaults")


def test_a_folder_of_yaml_adds_choices(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "mine" / "trainer").mkdir(parents=True)
    (here / "mine" / "trainer" / "long.yaml").write_text(
        "# mine: for weekends\ndefaults: [default]\nduration: 48 hours\n", encoding="utf-8"
    )
    for flag in ("--config-dir", "-cd"):
        assert say(capsys, "show", "trainer.duration", flag, "mine", "trainer=long").startswith("trainer.duration: 48 hours")
    assert "for weekends" in say(capsys, "list", "trainers", "--config-dir", "mine")


def test_a_file_of_yaml_that_cannot_be_read_is_named_with_its_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "mine" / "model").mkdir(parents=True)
    (here / "mine" / "model" / "broken.yaml").write_text("# @package _global_\nmodel:\n  - a: 1\n name: x\n", encoding="utf-8")
    assert main(["train", "model=broken", "--config-dir", "mine"]) == 2
    said = capsys.readouterr().err
    assert "mine/model/broken.yaml, line 4: expected <block end>" in said
    assert said.startswith("error: ")
    assert [path.name for path in here.iterdir()] == ["mine"]


def test_check(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    said = say(capsys, "check")
    assert all(word in said for word in ("python", "torch", "cores", "outputs", "writable"))
    assert list(here.iterdir()) == []


# ---------------------------------------------------------------- configuration


def test_secrets_are_stored_as_they_were_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFRESHER_SECRET", "hunter2")
    overrides = [
        "tags=[plain,${seed},${oc.env:REFRESHER_SECRET}]",
        "outputs=x/${oc.env:REFRESHER_SECRET}",
        "+copy=${outputs}",
        "+all=${tags}",
    ]
    config, stored = compose(overrides)
    assert config["tags"] == ["plain", 0, "hunter2"]
    assert config["copy"] == config["outputs"] == "x/hunter2"
    assert "hunter2" not in stored
    assert "- 0\n- ${oc.env:REFRESHER_SECRET}" in stored, "what is no secret is resolved"


@pytest.mark.parametrize("typed", ["optimizer.lr=${oc.env:REFRESHER_SECRET}", "optimizer.betas=[0.9,${oc.env:REFRESHER_SECRET}]"])
def test_an_error_tells_no_secret(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    monkeypatch.setenv("REFRESHER_SECRET", "hunter2")
    for verb in (["train"], ["train", "-m"], ["show"]):
        assert main([*verb, typed]) == 2
        said = capsys.readouterr()
        assert "hunter2" not in said.out + said.err
        assert "${oc.env:REFRESHER_SECRET}" in said.err


def test_a_stored_configuration_reads_back_the_same(tmp_path: Path) -> None:
    config, stored = compose(["optimizer.lr=1e-5", "tags=['1e-3','on','2020-01-01','null']"])
    run = RunDir(tmp_path)
    run.config.write_text(stored, encoding="utf-8")
    del config["sweep"]  # how it was launched
    assert compose_stored(run) == (config, stored)
    assert compose_stored(run, ["optimizer.lr=0.5"])[0]["optimizer"]["lr"] == 0.5


@pytest.mark.parametrize("text", ["a: &x [1]\nb: *x\n", "a: [", "- 1\n", "!!python/object/apply:os.getcwd []", "a: ${", "\x00"])
def test_a_stored_configuration_from_elsewhere_is_refused(tmp_path: Path, text: str) -> None:
    run = RunDir(tmp_path)
    run.config.write_text(text, encoding="utf-8")
    with pytest.raises(RunError):
        compose_stored(run)


def test_modules_of_ones_own_are_imported(here: Path) -> None:
    (here / "my_models.py").write_text((PLUGIN / "refresher_tiny" / "__init__.py").read_text(encoding="utf-8"), encoding="utf-8")
    (here / "mine" / "model").mkdir(parents=True)
    (here / "mine" / "model" / "tiny.yaml").write_text("name: tiny\nwidth: 4\n", encoding="utf-8")
    code = "import sys; from refresher_runner.cli import main; sys.exit(main(sys.argv[1:]))"
    typed = ["show", "model.width", "--config-dir", "mine", "model=tiny", "modules=[my_models]"]
    done = subprocess.run([sys.executable, "-c", code, *typed], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("model.width: 4   (int >= 1)")


# ---------------------------------------------------------------- a plugin


def refresher(*typed: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "refresher_runner", *typed]
    return subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def test_a_plugin_is_a_file_a_yaml_and_an_entry_point(tmp_path: Path) -> None:
    path = {"PYTHONPATH": str(PLUGIN)}
    assert refresher("list", "models", cwd=tmp_path, **path).stdout.count("A tiny network, from a package of its own.") == 1
    assert "tiny.yaml" in refresher("show", "optimizer.lr", "model=tiny", cwd=tmp_path, **path).stdout
    refused = refresher("train", "model=tiny", "model.widht=3", cwd=tmp_path, **path)
    assert (refused.returncode, list(tmp_path.iterdir())) == (2, [])
    trained = refresher("train", "model=tiny", *QUICK, cwd=tmp_path, **path)
    assert trained.returncode == 0, trained.stderr
    assert RunDir.find("last", tmp_path / "outputs").read_status()["state"] == "finished"


# ---------------------------------------------------------------- runs


def test_train_says_where_the_run_is_and_what_to_do_next(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = say(capsys, "train", "model=mlp", "outputs=kept", *QUICK)
    run = RunDir.find("last", "kept")
    assert str(run) in said
    assert "refresher predict" in said
    assert run.read_record()["command"] == ["refresher", "train", "model=mlp", "outputs=kept", *QUICK]
    assert compose_stored(run)[0]["outputs"] == "kept"


def test_runs(in_trained: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    said = say(
        capsys, "runs", "--filter", "model=mlp", "--filter", "optimizer.lr=1e-3", "--tag", "first", "--sort", "goal", "--state", "finished"
    )
    assert str(in_trained) in said
    assert "optimizer.lr" in said.splitlines()[0]
    assert str(in_trained) not in say(capsys, "runs", "--filter", "model=cnn")
    assert str(in_trained) not in say(capsys, "runs", "--tag", "second")


def test_compare(in_trained: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    said = say(capsys, "compare", "last", str(in_trained))
    assert "configuration: the same" in said
    assert "val/loss" in said


def test_test_agrees_with_what_the_run_measured(in_trained: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    rows = dict(line.split() for line in say(capsys, "test", "last", "trainer.threads=1").splitlines()[2:] if line.strip())
    measured = in_trained.read_status()["test"]
    assert {tag: float(value) for tag, value in rows.items()} == pytest.approx(measured, rel=1e-4)


def test_predict_writes_tables_and_pictures(in_trained: RunDir, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name, shade in (("black.png", 0), ("white.png", 255)):
        Image.new("L", (11, 9), shade).save(tmp_path / name)
    inputs = [str(tmp_path / "black.png"), str(tmp_path / "white.png")]
    said = say(capsys, "predict", "last", *inputs, "--output", str(tmp_path / "out"), "--device", "cpu")
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    assert [row["input"] for row in rows] == inputs
    assert "black.png" in said
    assert (tmp_path / "out" / "predictions.csv").read_text(encoding="utf-8").count("\n") == 3
    for row in rows:
        with Image.open(row["picture"]) as picture:
            picture.verify()
    assert main(["predict", "last", str(tmp_path / "absent.png")]) == 3


def test_a_finished_run_is_left_alone_and_can_be_made_longer(in_trained: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.stat().st_mtime_ns for file in in_trained.path.rglob("*")}
    say(capsys, "resume", "last")
    assert {file: file.stat().st_mtime_ns for file in in_trained.path.rglob("*")} == before
    assert main(["resume", "last", "model.hidden=[3]"]) == 2
    say(capsys, "resume", "last", "trainer.duration=6 steps")
    assert in_trained.read_status()["step"] == 6


# ---------------------------------------------------------------- TensorBoard


def test_tensorboard_serves_this_machine_alone(
    in_trained: RunDir, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The command line that would be run, shown by an interpreter that only echoes it."""
    echo = in_trained.path / "echo"
    echo.write_text("#!/bin/sh\necho $@\n", encoding="utf-8")
    echo.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(echo))
    assert main(["tensorboard", str(in_trained), "--port", "7007"]) == 0
    said = capfd.readouterr()
    assert said.out.split() == ["-m", "tensorboard.main", "--logdir", str(in_trained), "--port", "7007", "--host", "127.0.0.1"]
    assert main(["tensorboard", str(in_trained), "--bind_all"]) == 0
    said = capfd.readouterr()
    assert "--bind_all" in said.out
    assert "no password" in said.err
