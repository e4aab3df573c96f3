"""The points of a grid, and the slots of a machine."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from refresher_runner.engine.options import SweepOptions
from refresher_runner.errors import ConfigError
from refresher_runner.schema import Time
from refresher_runner.sweep.points import grid, options_of
from refresher_runner.sweep.pool import Slot, cores, slots


def test_a_grid_is_every_combination_once_and_knows_what_varies() -> None:
    points = grid(["model=mlp,cnn", "optimizer.lr=range(1,3)", "trainer=smoke", "sweep.jobs=2"])
    expected = itertools.product(["model=mlp", "model=cnn"], ["optimizer.lr=1", "optimizer.lr=2"])
    assert [point.varies for point in points] == list(expected)
    assert {point.overrides[-1] for point in points} == {"trainer=smoke"}
    assert len({point.key for point in points}) == 4
    assert [(p.settings.model.name, p.settings.optimizer.options["lr"]) for p in points[:2]] == [("mlp", 1), ("mlp", 2)]


def test_what_is_the_same_job_is_one() -> None:
    points = grid(["optimizer.lr=0.5,1,5e-1"])
    assert [point.varies for point in points] == [("optimizer.lr=0.5",), ("optimizer.lr=1",)]


def test_a_glob_stands_for_its_choices() -> None:
    assert [point.varies for point in grid(["optimizer=glob(ada*)", "model=mlp"])] == [("optimizer=adam",), ("optimizer=adamw",)]


def test_what_a_file_sweeps(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nhydra:\n  sweeper:\n    params:\n      seed: 3,4\nsweep:\n  jobs: 5\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text, encoding="utf-8")
    points = grid(["experiment=mine"], tmp_path)
    assert [point.settings.run.seed for point in points] == [3, 4]
    assert options_of(points[0], ["experiment=mine"], tmp_path).jobs == 5
    assert options_of(points[0], ["experiment=mine", "sweep.jobs=6"], tmp_path).jobs == 6


def test_a_limit_is_a_time() -> None:
    [point] = grid(["model=mlp"])
    limit = options_of(point, ["sweep.time_limit=3 minutes"]).time_limit
    assert limit == Time(3.0, "minutes")
    assert limit.seconds == 180.0
    with pytest.raises(ConfigError, match=r"sweep\.time_limit=5 steps: should be a positive number and a unit of time"):
        options_of(point, ["sweep.time_limit=5 steps"])


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["seed=1,2", "optimizer.lr=1,-1"], r"optimizer\.lr=-1"),
        (["seed=1,x"], "seed=x"),
        (["seed=1,2", "model.widht=3"], r"unknown key|model\.widht"),
        (["sweep.jobs=1,2"], "sweep.jobs=1,2: is said once, of the whole sweep"),
        (["seed=range(3,3)"], "this sweep has no jobs"),
        (["sweep.jobs=0"], "sweep.jobs=0"),
    ],
)
def test_a_bad_value_anywhere_is_refused(typed: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        options_of(grid(typed)[0], typed)


@pytest.mark.parametrize(
    ("jobs", "gpus", "count", "devices", "expected"),
    [
        ("auto", ["0", "1", "2"], 9, 1, ["0", "1", "2"]),  # a GPU each
        ("auto", ["0", "1", "2"], 2, 1, ["0", "1"]),
        ("auto", ["4", "5", "6"], 9, 2, ["4,5"]),  # two for each job, and one is left over
        (4, ["0", "1"], None, 1, ["0", "1", "0", "1"]),  # shared, for who asks for it
        (3, [], 9, 1, [None, None, None]),
        (3, [], 1, 1, [None]),
    ],
)
def test_slots(
    jobs: int | str, gpus: list[str], count: int | None, devices: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = slots(told(jobs), gpus, count, devices)
    assert [slot.environment.get("CUDA_VISIBLE_DEVICES") for slot in found] == expected
    assert {slot.threads for slot in found} == {max(1, cores() // len(found))}


def test_one_s_own_word_on_threads_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert slots(told(2), []) == [Slot({}, 3)] * 2


def told(jobs: int | str) -> SweepOptions:
    values = dict.fromkeys(SweepOptions.__dataclass_fields__)
    return SweepOptions(**{**values, "jobs": jobs})  # type: ignore[arg-type]
