"""A sweep on disk: what a job is known by, what state it is in, and where it lies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from refresher_runner.compose import compose_stored
from refresher_runner.engine.rundir import RunDir
from refresher_runner.errors import RunError
from refresher_runner.sweep.folder import Job, SweepDir, key_of
from refresher_runner.sweep.points import point_of

MLP = ["model=mlp", "optimizer.lr=1e-2"]


@pytest.fixture
def folder(tmp_path: Path) -> SweepDir:
    return SweepDir.create(tmp_path, command=["train", "-m"], overrides=[])


@pytest.mark.parametrize(
    ("typed", "same"),
    [
        (["optimizer.lr=0.01", "model=mlp"], True),  # other words for the same values
        (["model=mlp", "data=digits", "optimizer.lr=1e-2", "seed=0"], True),
        ([*MLP, "outputs=elsewhere"], True),
        ([*MLP, "sweep.jobs=3"], True),
        ([*MLP, "seed=1"], False),
        ([*MLP, "model.hidden=[3]"], False),
        ([*MLP, "tags=[again]"], False),
    ],
)
def test_a_job_is_known_by_its_resolved_configuration(typed: list[str], same: bool) -> None:
    assert (point_of(typed).key == point_of(MLP).key) == same


def test_the_key_is_free_of_the_order_of_keys() -> None:
    assert key_of("a: {b: 1, c: [2]}\nd: x\n") == key_of("d: x\na:\n  c: [2]\n  b: 1\n") != key_of("d: x\na: {c: [2], b: 1.5}\n")


def test_what_comes_from_the_environment_is_no_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for value in ("one", "two"):
        monkeypatch.setenv("SECRET", value)
        keys.add(point_of([*MLP, "tags=[${oc.env:SECRET}]"]).key)
    assert len(keys) == 1


def test_a_point_is_added_once_and_lies_in_a_folder_with_its_values(folder: SweepDir) -> None:
    first, second = (point_of([*MLP, f"seed={seed}"], ["model=mlp", f"seed={seed}"]) for seed in (1, 2))
    jobs = [folder.add(first, parameters=9), folder.add(second), folder.add(first)]
    assert [job.run.path.name for job in folder.jobs()] == [f"001_mlp_1_{first.key}", f"002_mlp_2_{second.key}"]
    assert jobs[2].run.path == jobs[0].run.path
    assert (jobs[0].number, jobs[0].key, jobs[0].varies, jobs[0].record["parameters"]) == (1, first.key, ["model=mlp", "seed=1"], 9)
    found = folder.job(second.key)
    assert found is not None and found.run.path == jobs[1].run.path
    assert folder.job("0123456789") is None
    assert compose_stored(found.run)[1] == second.stored


def test_a_folder_has_a_name_that_every_system_takes(folder: SweepDir) -> None:
    point = point_of(MLP, ["data.root=/a b/../c", "tags=[x,'y']", "model.hidden=" + "9" * 300])
    name = folder.add(point).run.path.name
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-.+")
    assert len(name) < 64


def test_a_job_that_waits_is_no_run_yet(folder: SweepDir) -> None:
    job = folder.add(point_of(MLP))
    assert job.state == "pending"
    assert RunDir.all(folder.path) == []


@pytest.mark.parametrize(
    ("status", "sittings", "state"),
    [
        (None, [], "pending"),
        (None, [{}], "interrupted"),  # begun by a launcher that was killed
        (None, [{"ended": "now", "state": "failed"}], "failed"),
        ("finished", [{}], "finished"),  # whatever became of the launcher
        ("finished", [{"ended": "now", "state": "finished"}], "finished"),
        ("interrupted", [{"ended": "now", "state": "pruned"}], "pruned"),
        ("interrupted", [{"ended": "now", "state": "failed"}], "failed"),  # over its time limit
        ("failed", [{"ended": "now", "state": "failed"}, {}], "interrupted"),
        ("running", [{}], "interrupted"),  # nobody holds its lock
        ("failed", [], "failed"),  # resumed by hand
    ],
)
def test_the_state_of_a_job(status: str | None, sittings: list[dict[str, str]], state: str, tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.file.write_text(json.dumps({"sittings": [{"started": "before", **sitting} for sitting in sittings]}), encoding="utf-8")
    if status:
        job.run.write_status(status)
    assert job.state == state


def test_a_job_runs_as_long_as_its_lock_is_held(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.begin()
    job.run.write_status("running")
    with job.run.locked():
        assert job.state == "running"
    assert job.state == "interrupted"


def test_sittings_follow_one_another(folder: SweepDir) -> None:
    job = folder.add(point_of(MLP))
    job.begin(threads=2)
    job.end("failed", exit_code=1, problem="a loss")
    job.begin(threads=1)
    first, second = job.sittings
    assert (first["state"], first["problem"], first["exit_code"], first["threads"]) == ("failed", "a loss", 1, 2)
    assert first["started"] <= first["ended"] <= second["started"]
    assert "ended" not in second


def test_sweeps_are_found_and_held_by_one_alone(folder: SweepDir, tmp_path: Path) -> None:
    assert SweepDir.is_sweep(folder.path)
    assert not SweepDir.is_sweep(tmp_path)
    assert [found.path for found in SweepDir.all(tmp_path)] == [folder.path]
    with folder.locked(), pytest.raises(RunError, match="in use by pid"), SweepDir(folder.path).locked():
        pass


def test_where_no_sweep_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "sweeps").write_text("", encoding="utf-8")
    with pytest.raises(RunError, match="no sweep can be written here"):
        SweepDir.create(tmp_path)
