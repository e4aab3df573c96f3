"""Whole runs on handwritten digits, in this process: what they leave, what every option does to them, what is made of them after."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from refresher_runner import run as verbs
from refresher_runner.cli import main
from refresher_runner.compose import checked, compose, compose_stored, groups
from refresher_runner.engine import checkpoint
from refresher_runner.engine.rundir import RunDir
from refresher_runner.models.cnn import CNN
from refresher_runner.registry import MODELS, OPTIMIZERS
from refresher_runner.settings import flatten
from refresher_runner.spec import Spec
from tests.inside import trained as train
from tests.models.build import build

SMOKE = ["trainer=smoke", "trainer.threads=1", "trainer.device=cpu"]
README = Path(__file__).parents[1] / "README.md"  # a text
QUIET = [*SMOKE, "trainer.loggers=[]"]
SCHEDULES = ("constant", "linear", "cosine", "one_cycle", "inverse_sqrt")


pytestmark = pytest.mark.usefixtures("as_it_was")


def series(run: RunDir, tag: str) -> dict[int, float]:
    """A metric by step."""
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line[tag] for line in lines if tag in line}


def state(run: RunDir, name: str = "last") -> dict[str, Any]:
    return checkpoint.load(run.checkpoints / f"{name}.pt")


FEW = [f"data.{split}_count=64" for split in ("train", "val", "test")]


WITHOUT_CLASSES = {  # what is shown instead of a confusion matrix
    "word2vec": "likeness",
    "latent_diffusion": "read_colour",
    "clip": "zero_shot_confusion_matrix",
}


def on_digits(model: str) -> list[str]:
    """A model's own data set if it comes with the package, a small one; a short text; else digits."""
    data = compose([f"model={model}"])[0]["data"]
    small = {
        "digits": [],
        "shapes": ["data.root=shapes", *FEW, "data.size=64"],
        "captioned_shapes": [*FEW, "data.batch_size=32"],
        "dates": [*FEW, "data.batch_size=32"],
        "python_docs": ["data=text_file", "data.root=text.txt", "data.tokens=characters", "data.block_size=32"],
        "interactions": ["data.users=48", "data.items=40", "data.events=8", "data.block_size=6", "data.stride=6", "data.batch_size=16"],
        "python_words": ["data.block_size=100", "data.val_fraction=0.005", "data.test_fraction=0.005"],
    }
    drawn = {
        "clip": ["model.width=8"],
        "vae": ["data=digits", "model.width=8", "model.judged=20"],
        "ddpm": ["data=digits", "model.width=8", "model.samples=4", "model.steps=3", "model.judged=20"],
        "latent_diffusion": [
            "judge=null",
            "model.width=8",
            "model.autoencoder_steps=1",
            "model.samples=4",
            "model.steps=3",
            "model.judged=20",
        ],
    }
    return [f"model={model}", *small.get(data["name"], ["data=digits"]), *drawn.get(model, [])]


# ---------------------------------------------------------------- every model


@pytest.mark.parametrize("model", MODELS.names())
def test_every_model_leaves_a_whole_run(model: str, judges: Path, capsys: pytest.CaptureFixture[str]) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    Path("notes.txt").write_text("one\n", encoding="utf-8")
    for words in (["init", "-q"], ["add", "notes.txt"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    Path("notes.txt").write_text("two\n", encoding="utf-8")
    Path("text.txt").write_text(README.read_text(encoding="utf-8"), encoding="utf-8")
    Path("outputs").mkdir()
    Path("outputs/judges").symlink_to(judges)
    typed = [*on_digits(model), *SMOKE]
    run = train(*typed)

    config, stored = compose(typed)
    del config["sweep"]  # how it was launched
    assert compose_stored(run) == (config, stored)
    record = run.read_record()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert record["git"] == {"commit": commit, "dirty": True}
    assert "-one\n+two\n" in run.diff.read_text(encoding="utf-8")
    assert record["command"] == ["refresher", "train", *typed]
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert record["checksums"]
    assert all(len(digest) == 64 for digest in record["checksums"].values())
    assert (record["device"], record["precision"], record["processes"], record["threads"]) == ("cpu", "fp32", 1, 1)

    best = state(run, "best")
    network = MODELS.builder(model)(Spec.from_dict(best["spec"]), **checked(*compose(typed)).model.options)
    assert record["parameters"] == sum(p.numel() for p in network.parameters())
    assert best["config"] == run.config.read_text(encoding="utf-8")
    assert (run.checkpoints / "last.pt").is_file()

    status = run.read_status()
    assert (status["state"], status["exit_code"], status["step"], status["error"]) == ("finished", 0, 4, None)
    goal = f"val/{status['goal']['metric']}"
    assert status["goal"]["best"] == series(run, goal)[status["goal"]["best_step"]]
    assert sorted(series(run, "train/loss")) == [1, 2, 3, 4]
    assert sorted(series(run, "val/loss")) == [2, 4]
    assert all(math.isfinite(value) for value in status["test"].values())
    assert status["test"]["test/loss"] == series(run, "test/loss")[4]
    assert run.csv.read_text(encoding="utf-8").splitlines()[0].startswith("step,")
    assert f"{status['goal']['best']:.4g}" in run.log.read_text(encoding="utf-8")
    assert [file.name for file in run.tensorboard.iterdir() if "tfevents" in file.name]
    for picture in run.figures.glob("*.png"):
        with Image.open(picture) as file:
            file.verify()
    picture = WITHOUT_CLASSES.get(model, "confusion_matrix")
    assert {f"val_{picture}.png", f"test_{picture}.png"} <= {picture.name for picture in run.figures.iterdir()}

    measured = verbs.test(run, checked(*compose_stored(run)), checkpoint="best")
    timed = {tag for tag in measured if tag.startswith("test/speed/")}
    assert measured.keys() == status["test"].keys()
    assert all(measured[tag] == status["test"][tag] for tag in measured.keys() - timed), "measured again, it is the same"
    capsys.readouterr()
    assert main(["test", str(run)]) == 0
    assert f"{measured['test/loss']:.6g}" in capsys.readouterr().out


# ---------------------------------------------------------------- every option


def changed(run: RunDir) -> bool:
    """Whether an average differs from what it averages."""
    saved = state(run)
    return any(not torch.equal(saved["task"][name], value) for name, value in saved["ema"].items())


def events(run: RunDir) -> dict[str, Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run.tensorboard)).Reload().Tags()


OPTIONS: dict[str, tuple[list[str], Callable[[RunDir], bool]]] = {
    "accumulate": (["trainer.accumulate=2"], lambda run: series(run, "progress/epoch")[4] == 4),
    "anomaly": (["trainer.anomaly=true"], lambda run: torch.is_anomaly_enabled()),
    "bf16": (["trainer.precision=bf16"], lambda run: run.read_record()["precision"] == "bf16"),
    "auto precision": (["trainer.precision=auto"], lambda run: run.read_record()["precision"] in ("bf16", "fp32")),
    "channels_last": (["trainer.channels_last=true", "model=cnn"], lambda run: run.read_status()["step"] == 4),
    "deterministic": (["trainer.deterministic=true"], lambda run: torch.are_deterministic_algorithms_enabled()),
    "budget": (
        ["trainer.budget=1 seconds", "trainer.validate_every=1 minutes"],
        lambda run: run.read_status()["step"] == run.read_record()["budget"]["steps"],
    ),
    "duration in epochs": (["trainer.duration=3 epochs"], lambda run: run.read_status()["step"] == 6),
    "ema_decay": (["trainer.ema_decay=0.5"], changed),
    "grad_clip": (["trainer.grad_clip=0.1"], lambda run: series(run, "optim/grad_norm")[4] > 0.1),
    "graph": (["trainer.graph=true", "trainer.loggers=[tensorboard]"], lambda run: events(run)["graph"]),
    "histograms": (
        ["trainer.histograms=true", "trainer.loggers=[tensorboard]"],
        lambda run: any(tag.startswith("grads/") for tag in events(run)["histograms"]),
    ),
    "limit_batches": (["trainer.limit_batches=1"], lambda run: series(run, "progress/epoch")[4] == 4),
    "log_every": (["trainer.log_every=3"], lambda run: sorted(series(run, "train/loss")) == [3, 4]),
    "loggers": ([], lambda run: not run.csv.exists() and not run.tensorboard.exists() and run.metrics.is_file()),
    "overfit_batches": (["trainer.overfit_batches=1", "trainer.test=false"], lambda run: series(run, "progress/epoch")[4] == 4),
    "patience": (["trainer.patience=1", "optimizer.lr=1e-12", "trainer.duration=90 steps"], lambda run: run.read_status()["step"] == 4),
    "save_every": (["trainer.save_every=3 steps"], lambda run: state(run, "previous")["progress"]["step"] == 3),
    "test": (["trainer.test=false"], lambda run: run.read_status()["test"] == {} and not series(run, "test/loss")),
    "threads": (["trainer.threads=2"], lambda run: torch.get_num_threads() == 2),
}


@pytest.mark.parametrize(("typed", "holds"), OPTIONS.values(), ids=OPTIONS)
def test_every_option_of_the_trainer(typed: list[str], holds: Callable[[RunDir], bool]) -> None:
    run = train("model=mlp", *QUIET, *typed)
    assert run.read_status()["state"] == "finished"
    assert holds(run)


def test_no_option_of_the_trainer_is_forgotten() -> None:
    tried = {word.partition("=")[0].removeprefix("trainer.") for typed, _ in OPTIONS.values() for word in [*typed, *SMOKE]}
    assert set(compose([])[0]["trainer"]) - tried == {"compile", "devices", "strategy", "profile"}, "which have tests of their own"


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cnn", "gpt"])
def test_a_compiled_run_is_the_plain_one_to_rounding(model: str) -> None:
    chosen = [f"model={model}", "model.dropout=0", "trainer.precision=fp32", *QUIET]
    plain, compiled = train(*chosen), train(*chosen, "trainer.compile=true")
    assert series(compiled, "val/loss") == pytest.approx(series(plain, "val/loss"), rel=1e-4)
    assert state(compiled)["task"].keys() == state(plain)["task"].keys()


@pytest.mark.parametrize("optimizer", OPTIMIZERS.names())
def test_every_optimizer_learns(optimizer: str) -> None:
    run = train("model=mlp", f"optimizer={optimizer}", *QUIET, "trainer.duration=12 steps", "trainer.limit_batches=4", "optimizer.lr=5e-3")
    losses = series(run, "train/loss")
    assert losses[12] < losses[1]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule(schedule: str) -> None:
    warmup_steps = 0 if schedule == "one_cycle" else 2
    steps = ["trainer.duration=20 steps", "trainer.validate_every=20 steps"]
    run = train("model=mlp", *QUIET, *steps, f"optimizer.schedule={schedule}", f"optimizer.warmup_steps={warmup_steps}")
    lrs = series(run, "optim/lr")
    assert max(lrs.values()) == pytest.approx(compose([])[0]["optimizer"]["lr"])
    assert lrs[1] < lrs[3], "it warms up"
    assert (lrs[20] == lrs[7]) == (schedule == "constant")


@pytest.mark.parametrize("preset", groups()["debug"])
def test_every_debug_preset(preset: str) -> None:
    run = train("model=mlp", f"debug={preset}", "trainer.threads=1", "trainer.loggers=[]")
    status, losses = run.read_status(), series(run, "train/loss")
    assert status["state"] == "finished"
    facts = {
        "one_step": status["step"] == 1,
        "overfit": losses[max(losses)] < losses[min(losses)] / 5,
        "profile": (run.path / "profile" / "trace.json").is_file(),
    }
    assert facts.get(preset, True)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize(
    ("typed", "problem"),
    [
        ("trainer.precision=fp16", "trainer.precision=fp16: fp16 needs a GPU"),
        pytest.param(
            "trainer.device=cuda",
            "trainer.device=cuda: this machine has no such device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has it"),
        ),
    ],
)
def test_what_the_machine_lacks_is_refused_before_a_folder_is_made(
    typed: str, problem: str, devices: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "model=mlp", *QUIET, f"trainer.devices={devices}", typed]) == 2
    said = capsys.readouterr()
    assert said.err.splitlines()[0] == f"error: {problem}"
    assert len(said.err.splitlines()) == 2
    assert list(Path().iterdir()) == []


# ---------------------------------------------------------------- laws


def test_the_same_command_gives_the_same_bits() -> None:
    """Draws of every kind: crops, mirrors, dropout, order. And another seed gives others."""
    typed = ["model=cnn", "model.dropout=0.3", "data.pad=1", "data.flip=true", "trainer.ema_decay=0.9", *QUIET]
    one, other, third = train(*typed), train(*typed), train(*typed, "seed=1")

    def same(a: RunDir, b: RunDir) -> bool:
        return all(torch.equal(value, state(b)["task"][name]) for name, value in state(a)["task"].items())

    assert same(one, other)
    assert not same(one, third)
    told = [{key: value for key, value in flatten(run.read_status()).items() if key != "updated"} for run in (one, other)]
    assert told[0] == told[1]


# ---------------------------------------------------------------- runs of an older refresher


def rewritten(run: RunDir, *absent: str) -> None:
    """Its config.yaml as it was before there were these keys."""
    config = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    for key in absent:
        *groups, name = key.split(".")
        del (config[groups[0]] if groups else config)[name]
    run.config.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def test_a_run_from_before_a_key_of_the_top_is_used_as_any() -> None:
    run = train("model=mlp", *QUIET)
    Image.effect_noise((8, 8), 50).save("picture.png")
    for typed in (["test", str(run)], ["predict", str(run), "picture.png"], ["resume", str(run), "trainer.duration=6 steps"]):
        rewritten(run, *({"init_from", "tags"} & {*yaml.safe_load(run.config.read_text(encoding="utf-8"))}))
        assert main(typed) == 0, typed
    assert run.read_status()["step"] == 6
    assert yaml.safe_load(run.config.read_text(encoding="utf-8"))["init_from"] is None


@pytest.mark.parametrize("key", ["model.activation", "data.pad", "optimizer.warmup_steps", "trainer.histograms"])
def test_a_run_from_before_an_option_says_so(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What it was then, nobody knows: today's value may be another."""
    run = train("model=mlp", *QUIET)
    whole = run.config.read_text(encoding="utf-8")
    rewritten(run, key)
    for typed in (["test", str(run)], ["predict", str(run), "picture.png"], ["resume", str(run), "trainer.duration=6 steps"]):
        capsys.readouterr()
        assert main(typed) == 2
        error, hint = capsys.readouterr().err.splitlines()
        assert error == f"error: {key}: this run was made by an older refresher, which did not ask for it"
        assert f"write {key} into {run.config}" in hint
    run.config.write_text(whole, encoding="utf-8")
    assert main(["test", str(run)]) == 0
    assert main(["test", str(run), f"~{key}"]) == 2
    assert f"error: {key}: needs a value" in capsys.readouterr().err, "which the user took away"


# ---------------------------------------------------------------- predictions


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A CNN after two epochs: right about most digits, not about all."""
    folder = tmp_path_factory.mktemp("taught")
    assert main(["train", "model=cnn", "trainer.duration=2 epochs", "trainer.threads=1", "trainer.loggers=[]", f"outputs={folder}"]) == 0
    return RunDir.find("last", folder)


def test_predict_says_what_the_network_says(taught: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    Path("pictures").mkdir()
    values, labels = load_digits(return_X_y=True)
    files = []
    for number in range(0, 200, 5):
        files.append(f"pictures/{number:03d}.png")
        Image.fromarray((values[number].reshape(8, 8) * 255 / 16).round().astype("uint8")).save(files[-1])
    assert main(["predict", str(taught), "pictures"]) == 0
    rows = json.loads((taught.path / "predictions" / "predictions.json").read_text(encoding="utf-8"))
    assert [row["input"] for row in rows] == files, "a folder is the pictures in it"

    best = state(taught, "best")
    network = build("cnn")
    network.load_state_dict(best["task"])
    assert isinstance(network, CNN)
    pixels = torch.tensor(values[0:200:5] / 16 * 255).round().float().view(-1, 1, 8, 8) / 255
    mean, std = best["spec"]["mean"][0], best["spec"]["std"][0]
    with torch.no_grad():
        shares = network.eval().network((pixels - mean) / std).softmax(-1)
    assert [int(row["class"]) for row in rows] == shares.argmax(-1).tolist()
    assert [row["probability"] for row in rows] == pytest.approx(shares.max(-1).values.tolist(), abs=1e-5)
    right = sum(int(row["class"]) == label for row, label in zip(rows, labels[0:200:5], strict=True))
    assert right > 20, "of 40; it has learned something"
    assert "pictures/195.png" in capsys.readouterr().out


@pytest.mark.parametrize("bytes_kept", [0, 60, 300])
def test_predict_names_a_damaged_picture(taught: RunDir, capsys: pytest.CaptureFixture[str], bytes_kept: int) -> None:
    Image.effect_noise((40, 40), 50).save("whole.png")
    Path("cut.png").write_bytes(Path("whole.png").read_bytes()[:bytes_kept])
    assert main(["predict", str(taught), "whole.png", "cut.png", "--output", "out"]) == 3
    said = capsys.readouterr()
    assert said.err.startswith("error: cut.png: not a readable picture")
    assert "Traceback" not in said.err + said.out
    assert not Path("out").exists()
