"""Hydra's launchers and sweepers around our jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from refresher_runner.cli import main
from tests.sweep.commands import QUICK, TROUBLED, only_sweep, refresher, states

SUBMITIT = "hydra_plugins.hydra_submitit_launcher"
JOBLIB = "hydra_plugins.hydra_joblib_launcher"
RAY = "hydra_plugins.hydra_ray_launcher"


def test_slurm_composes(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(SUBMITIT, reason="hydra-submitit-launcher is not installed: pip install 'refresher-runner[slurm]'")
    typed = [
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.partition=gpu",
        "hydra.launcher.gpus_per_node=1",
        "hydra.launcher.timeout_min=90",
    ]
    assert main(["train", "--cfg", "hydra", "--package", "hydra.launcher", *typed]) == 0
    said = capsys.readouterr().out
    assert {"partition: gpu", "gpus_per_node: 1", "timeout_min: 90"} <= set(said.splitlines())


def test_our_own_launcher_composes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--cfg", "hydra", "--package", "hydra.launcher", "hydra/launcher=slots"]) == 0
    assert "_target_: hydra_plugins.refresher_slots.Slots" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "module"), [("basic", None), ("submitit_local", SUBMITIT), ("joblib", JOBLIB), ("ray", RAY)])
def test_a_launcher_starts_our_jobs_wherever_it_likes(launcher: str, module: str | None, tmp_path: Path) -> None:
    """One of them fails, which costs the others nothing; what is resumed is launched the same way."""
    if module:
        pytest.importorskip(module, reason=f"hydra/launcher={launcher} is not installed")
    typed = [*TROUBLED, "model.trouble=none,segfaults", "seed=1,2", "trainer.duration=5 steps", f"hydra/launcher={launcher}"]
    said = refresher("train", "-m", *typed, cwd=tmp_path, code=1)
    sweep = only_sweep(tmp_path)
    assert states(sweep) == ["finished", "finished", "failed", "failed"]
    assert said.partition("log of failure")[2].count("ended by SIGSEGV") == 2
    refresher("resume", str(sweep.path), cwd=tmp_path)
    assert [len(job.sittings) for job in sweep.jobs()] == [1, 1, 2, 2]
    assert states(sweep) == ["finished"] * 4


@pytest.mark.slow
def test_a_sweeper_s_points_run_on_our_slots(tmp_path: Path) -> None:
    said = refresher("train", "-m", "hydra/sweeper=basic", "model=mlp", "seed=1,2", *QUICK, "sweep.jobs=2", cwd=tmp_path)
    sweep = only_sweep(tmp_path)
    assert states(sweep) == ["finished", "finished"]
    assert sweep.record["kind"] == "hydra/sweeper"
    assert "1 configuration, 2 runs" in said
