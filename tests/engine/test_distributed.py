"""Two ranks are one, to rounding; and a checkpoint does not care how many wrote it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from refresher_runner.engine import checkpoint
from tests.engine.toy import Toy, ToyLoader, trainer, weights

ROOT = Path(__file__).parents[2]


def two_ranks(folder: Path, strategy: str, how: str = "fresh") -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tests.engine.ranks"]
    done = subprocess.run(
        [*command, str(folder), strategy, how],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_are_one(tmp_path: Path, strategy: str) -> None:
    one = trainer(
        tmp_path / "one", lambda: Toy(0.0), ema_decay=0.9, grad_clip=0.5, accumulate=2, duration="12 steps", train=ToyLoader(batch_size=16)
    )
    one.fit()
    two_ranks(tmp_path / "two", strategy)
    state = checkpoint.load(tmp_path / "two" / "checkpoints" / "last.pt")
    together = torch.cat([state["task"][name].flatten() for name, _ in one.task.named_parameters()])
    assert torch.allclose(weights(one.task), together, atol=1e-6)
    averaged = torch.cat([v.flatten() for v in state["ema"].values()])
    assert torch.allclose(torch.cat([v.flatten() for v in one.ema.shadow.values()]), averaged, atol=1e-6)  # type: ignore[union-attr]
    reports = torch.load(tmp_path / "two" / "reports.pt", weights_only=True)
    for tag in ("train/loss", "val/loss", "optim/grad_norm"):
        expected = one.sink.series(tag)  # type: ignore[attr-defined]
        assert [(s, pytest.approx(v, rel=1e-5)) for s, v in expected] == [(s, r[tag]) for s, r in reports if tag in r]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_what_one_rank_saved_two_can_resume_and_back(tmp_path: Path, strategy: str) -> None:
    parts = {"ema_decay": 0.9, "grad_clip": 0.5, "accumulate": 2, "train": ToyLoader(batch_size=16)}
    straight = trainer(tmp_path / "a", lambda: Toy(0.0), duration="20 steps", **parts)
    half = trainer(tmp_path / "b", lambda: Toy(0.0), duration="20 steps", **parts)
    half.total_steps = 20
    half._done = lambda: half.progress.step >= 6  # type: ignore[method-assign]
    half.fit()
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    two_ranks(tmp_path / "c", strategy, "resume")
    back = checkpoint.load(tmp_path / "c" / "checkpoints" / "last.pt")
    assert back["progress"]["step"] == 12
    last = trainer(tmp_path / "c", lambda: Toy(0.0), duration="12 steps", **parts)
    last.load_state_dict(back)
    assert last.progress.step == 12
    assert {k: v.shape for k, v in last.state_dict()["optimizer"]["state"][0].items()} == {
        k: v.shape for k, v in straight.state_dict()["optimizer"]["state"].get(0, back["optimizer"]["state"][0]).items()
    }


def test_ranks_agree_on_the_clock_and_draw_apart(tmp_path: Path) -> None:
    two_ranks(tmp_path, "fsdp", "timed")
    one, other = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for rank in (one, other):
        del rank["progress"]["elapsed"]  # each has its own clock, and rank 0's says when to look
    assert one["progress"] == other["progress"]
    assert one["lr"] == other["lr"]
    assert not torch.equal(one["draw"], other["draw"])
