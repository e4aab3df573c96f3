"""Several processes are one run: the same numbers, one voice, one error, no orphan. Real processes, gloo on the CPU."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import chain, islice
from pathlib import Path

import pytest
import torch

from refresher_runner.data.text import build_text_file
from refresher_runner.engine import checkpoint
from refresher_runner.engine.rundir import RunDir
from refresher_runner.registry import OPTIMIZERS
from refresher_runner.spec import Placement
from refresher_runner.sweep.folder import SweepDir

DRAWS = [
    *("model=cnn", "model.dropout=0", "model.batch_norm=false", "data=digits"),
    *("data.pad=1", "data.flip=true", "optimizer=sgd", "optimizer.lr=0.05"),
]
SHORT = ["trainer=smoke", "trainer.limit_batches=3", "trainer.threads=1", "trainer.device=cpu"]
SAME = [*DRAWS, *SHORT, "trainer.channels_last=true", "trainer.ema_decay=0.8", "trainer.grad_clip=0.5"]
TWO = ["trainer.devices=2"]

DOOMED = """
import os, signal
from refresher_runner.registry import OPTIMIZERS
from refresher_runner.engine.optim import build_sgd

@OPTIMIZERS.register("doomed")
def build_doomed(task, *, lr: float):
    '''One rank fails where the other does not.'''
    if os.environ["RANK"] == "1":
        {deed}
    return build_sgd(task, lr=lr, momentum=0.0, nesterov=False, weight_decay=0.0)
"""


def start(typed: Sequence[str], folder: Path, launcher: Sequence[str] = ("-m", "refresher_runner")) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *launcher, *typed], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def said(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    """All that was printed, once every process has ended."""
    out, err = process.communicate(timeout=180)
    assert process.returncode == code, err
    assert "Traceback" not in out + err
    return out, err


def workers(folder: Path) -> list[int]:
    """Processes of ours that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve() == folder and b"refresher_runner" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:  # gone since
            continue
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.1)


def series(run: RunDir, tag: str) -> list[float]:
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return [line[tag] for line in lines if tag in line]


def weights(run: RunDir, name: str) -> torch.Tensor:
    return torch.cat([value.flatten() for value in checkpoint.load(run.checkpoints / f"{name}.pt")["task"].values()])


@pytest.mark.parametrize(("typed", "code"), [("--version", 0), ("--versoin", 2)])
def test_a_rank_ends_without_the_tear_down_in_which_threads_of_gloo_abort(tmp_path: Path, typed: str, code: int) -> None:
    program = "import atexit, sys; from refresher_runner.__main__ import main; atexit.register(print, 'torn down'); sys.exit(main())"
    environment = {**os.environ, "LOCAL_RANK": "0"}
    for variables, torn_down in ((os.environ, 1), (environment, 0)):
        done = subprocess.run(
            [sys.executable, "-c", program, typed], cwd=tmp_path, env=dict(variables), capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout.count("torn down")) == (code, torn_down)
        assert "refresher 0." in done.stdout if code == 0 else "error: " in done.stderr


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The run by one process."""
    folder = tmp_path_factory.mktemp("alone")
    said(start(["train", *SAME], folder))
    return RunDir.find("last", folder / "outputs")


def is_the_same(run: RunDir, other: RunDir) -> bool:
    for tag in ("train/loss", "val/loss", "val/accuracy", "test/loss", "optim/grad_norm", "optim/lr"):
        assert series(run, tag) == pytest.approx(series(other, tag), rel=1e-5), tag
    return all(torch.allclose(weights(run, name), weights(other, name), atol=1e-6) for name in ("best", "last"))


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_are_one(alone: RunDir, tmp_path: Path, strategy: str) -> None:
    out, err = said(start(["train", *SAME, *TWO, f"trainer.strategy={strategy}"], tmp_path))
    run = RunDir.find("last", tmp_path / "outputs")
    assert is_the_same(run, alone)
    assert run.read_record()["processes"] == 2
    assert run.read_status()["state"] == "finished"
    assert (out.count("run: outputs"), out.count("run:"), err) == (1, 1, "")


def test_two_processes_contrast_all_pairs(tmp_path: Path) -> None:
    """And the summary, which one of them makes, waits for none."""
    few = ["data.train_count=32", "data.val_count=8", "data.test_count=8", "data.batch_size=16", "model.width=8", "model.dropout=0"]
    said(start(["train", "model=clip", *few, "trainer.precision=fp32", *SHORT, *TWO], tmp_path))
    run = RunDir.find("last", tmp_path / "outputs")
    assert run.read_status()["state"] == "finished"
    assert 0 < series(run, "train/loss")[0] < 2 * math.log(16)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_change_phase_together(tmp_path: Path, strategy: str) -> None:
    """Parameters without a gradient, half of them in each phase, hold nobody up; and the scale is that of all pictures."""
    few = [
        "data.train_count=40",
        "data.val_count=8",
        "data.test_count=8",
        "data.batch_size=8",
        "judge=null",
        "model.samples=2",
        "model.judged=0",
    ]
    small = [
        "model.width=8",
        "model.dim=16",
        "model.text_depth=1",
        "model.autoencoder_width=8",
        "model.autoencoder_steps=2",
        "model.steps=2",
    ]
    typed = [
        "train",
        "model=latent_diffusion",
        *small,
        *few,
        *SHORT,
        "trainer.duration=5 steps",
        "trainer.log_every=1",
        "trainer.channels_last=false",
    ]
    scales = []
    for more in ([], [*TWO, f"trainer.strategy={strategy}"]):
        folder = tmp_path / str(len(more))
        folder.mkdir()
        said(start([*typed, *more], folder))
        run = RunDir.find("last", folder / "outputs")
        assert len(series(run, "train/reconstruction")) == 2
        assert len(series(run, "train/denoising")) == 3
        scales.append(checkpoint.load(run.checkpoints / "last.pt")["task"]["scale"].item())
    assert scales[1] == pytest.approx(scales[0], rel=0.05)  # the autoencoders of the two have drawn other z


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", sorted({*OPTIMIZERS.names()} - {"muon", "sgd"}))  # muon is refused, sgd is above
def test_every_optimizer_steps_on_shards(tmp_path: Path, optimizer: str) -> None:
    said(start(["train", "model=mlp", f"optimizer={optimizer}", *SHORT, *TWO, "trainer.strategy=fsdp", "trainer.loggers=[]"], tmp_path))


@pytest.mark.slow
def test_two_processes_begin_with_another_runs_weights_as_one_does(alone: RunDir, tmp_path: Path) -> None:
    begun = []
    for number, devices in enumerate(([], TWO)):
        (tmp_path / str(number)).mkdir()
        said(start(["train", *SAME, f"init_from={alone.path}", "seed=3", *devices], tmp_path / str(number)))
        begun.append(RunDir.find("last", tmp_path / str(number) / "outputs"))
    one, two = begun
    assert is_the_same(two, one)
    assert two.log.read_text(encoding="utf-8").count("begins with") == 1
    assert two.read_record()["origin"] == one.read_record()["origin"]
    assert two.read_record()["origin"]["run"] == alone.read_record()["id"]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["softmax", "sampled_softmax", "contrastive"])
def test_two_processes_are_one_batch_of_negatives(tmp_path: Path, objective: str) -> None:
    """Every example meets the items of the other process too, whichever has how many."""
    towers = [
        "model=two_tower",
        f"model.objective={objective}",
        "model.dropout=0",
        "model.event_dropout=0",
        "optimizer=sgd",
        "optimizer.lr=0.5",
    ]
    sizes = ["data.users=40", "data.items=30", "data.events=9", "data.block_size=5", "data.stride=5", "data.batch_size=8", "model.dim=8"]
    runs = []
    for number, devices in enumerate(([], TWO)):
        (tmp_path / str(number)).mkdir()
        said(start(["train", *towers, *sizes, *SHORT, *devices], tmp_path / str(number)))
        runs.append(RunDir.find("last", tmp_path / str(number) / "outputs"))
    for tag in ("train/loss", "val/loss", "val/ndcg10", "val/hr10_of_baseline/ease", "test/loss"):
        assert series(runs[0], tag) == pytest.approx(series(runs[1], tag), rel=1e-4), tag
    one, two = (weights(run, "last") for run in runs)
    assert torch.allclose(one, two, atol=1e-4)


def test_two_processes_count_all_that_they_train_on(tmp_path: Path) -> None:
    """Each counts what the other sees too: the windows of every global batch."""
    (tmp_path / "text.txt").write_text("She sells sea shells by the sea shore.\n" * 60, encoding="utf-8")
    options = {"tokens": "characters", "block_size": 16, "batch_size": 8, "eval_batch_size": 8, "val_fraction": 0.1, "test_fraction": 0.1}
    typed = [f"data.{key}={value}" for key, value in options.items()]
    bert = ["model=bert", "model.dim=32", "model.depth=1", "data=text_file", "data.root=text.txt"]
    said(start(["train", *bert, *typed, *SHORT, *TWO], tmp_path))
    task = checkpoint.load(RunDir.find("last", tmp_path / "outputs").checkpoints / "last.pt")["task"]

    data = build_text_file(root=str(tmp_path / "text.txt"), vocab_size=300, **options)
    data.prepare()
    epochs = (islice(data.train_loader(Placement()).batches(epoch), 3) for epoch in (0, 1))  # SHORT: four steps, three an epoch
    seen = [*islice(chain.from_iterable(epochs), 4)]
    v = len(data.spec.vocabulary)
    assert torch.equal(task["counts.unigrams"], torch.cat([batch.targets.flatten() for batch in seen]).bincount(minlength=v))
    pairs = torch.cat([(batch.tokens * v + batch.targets).flatten() for batch in seen]).bincount(minlength=v * v).view(v, v)
    assert torch.equal(task["counts.bigrams"].long(), pairs)


@pytest.mark.slow
def test_torchrun_by_hand(alone: RunDir, tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "refresher_runner"]
    out, _ = said(start(["train", *SAME], tmp_path, torchrun))
    run = RunDir.find("last", tmp_path / "outputs")
    assert is_the_same(run, alone)
    assert out.count("run:") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "code", "error"),
    [
        (["optimizer=sgd", "optimizer.lr=1e30"], 1, "error: the loss is not finite at step 2"),
        (["data=image_folder", "data.root=nowhere"], 2, "error: data.root=nowhere: no such folder"),
    ],
)
def test_what_goes_wrong_is_told_once(tmp_path: Path, typed: list[str], code: int, error: str) -> None:
    out, err = said(start(["train", "model=cnn", *SHORT, *TWO, "trainer.loggers=[]", *typed], tmp_path), code)
    assert (out, err.splitlines()[0], len(err.splitlines())) == ("", error, 2)
    assert workers(tmp_path) == []
    for run in RunDir.all(tmp_path / "outputs"):
        assert (run.read_status()["state"], run.read_status()["exit_code"]) == ("failed", code)
    assert bool(RunDir.all(tmp_path / "outputs")) == (code == 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("deed", "error"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "the process of rank 1 was ended by SIGKILL"),
        ("raise MemoryError", "error: out of memory"),
    ],
)
def test_a_rank_that_fails_alone_ends_the_run(tmp_path: Path, deed: str, error: str) -> None:
    (tmp_path / "doomed.py").write_text(DOOMED.format(deed=deed), encoding="utf-8")
    (tmp_path / "mine" / "optimizer").mkdir(parents=True)
    (tmp_path / "mine" / "optimizer" / "doomed.yaml").write_text(
        "name: doomed\nlr: 0.1\nschedule: constant\nwarmup_steps: 0\nfinal_lr: 0.0\n", encoding="utf-8"
    )
    typed = ["train", "--config-dir", "mine", "optimizer=doomed", "modules=[doomed]", "model=mlp", *SHORT, *TWO, "trainer.loggers=[]"]
    _, err = said(start(typed, tmp_path), 1)
    assert error in err
    assert err.count("error:") == 1
    [run] = RunDir.all(tmp_path / "outputs")
    assert run.read_status()["state"] == "failed"
    assert workers(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_launcher_leaves_a_run_to_resume_and_no_orphan(tmp_path: Path, number: signal.Signals) -> None:
    long = ["trainer.duration=1000000 steps", "trainer.save_every=10 steps", "trainer.threads=1", "trainer.loggers=[]"]
    process = start(["train", *DRAWS, *TWO, *long], tmp_path)
    wait_for(lambda: any(run.read_status().get("step", 0) > 0 for run in RunDir.all(tmp_path / "outputs")))
    [run] = RunDir.all(tmp_path / "outputs")
    process.send_signal(number)
    _, err = said(process, -9 if number == signal.SIGKILL else 128 + number)
    wait_for(lambda: workers(tmp_path) == [])
    assert run.read_status()["state"] == "interrupted"
    step = run.read_status()["step"]
    if number != signal.SIGKILL:
        assert err.splitlines()[-1] == f"hint: refresher resume {run.path.relative_to(tmp_path)} goes on from step {step}"
    said(start(["resume", str(run.path), f"trainer.duration={step + 3} steps"], tmp_path))
    assert (run.read_status()["state"], run.read_status()["step"]) == ("finished", step + 3)


@pytest.mark.slow
def test_a_sweep_of_runs_of_two_processes_of_which_one_fails(tmp_path: Path) -> None:
    typed = ["train", "-m", "model=mlp", "optimizer=sgd", "optimizer.lr=1e-2,1e30", *SHORT, *TWO, "trainer.loggers=[]"]
    out, _ = said(start(typed, tmp_path), 1)
    [sweep] = SweepDir.all(tmp_path / "outputs")
    assert [job.state for job in sweep.jobs()] == ["finished", "failed"]
    assert out.partition("log of failure")[2].partition("\n\n")[0].count("failed") == 1  # before the leaderboard
    assert sweep.jobs()[1].output.read_text(encoding="utf-8").count("error:") == 1
    assert [run.read_status()["state"] for run in RunDir.all(tmp_path / "outputs")] == ["finished", "failed"]
