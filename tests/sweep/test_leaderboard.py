"""A leaderboard against tables computed by hand, and its ties against scipy's own test."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest
from scipy.stats import ttest_ind

from refresher_runner.cli import main
from refresher_runner.errors import UsageError
from refresher_runner.sweep.boards import csv_text, markdown, write_boards
from refresher_runner.sweep.folder import SweepDir
from refresher_runner.sweep.leaderboard import Objective, Score, boards, tied, varying
from refresher_runner.sweep.points import point_of
from tests.sweep.written import chosen, write_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two learning rates of three seeds, and a third that has not finished."""
    for lr, reached in ((0.1, (0.90, 0.92, 0.94)), (0.01, (0.91, 0.93, 0.89)), (0.001, (0.5, 0.5, 0.5))):
        for seed, value in enumerate(reached):
            write_run(tmp_path, f"{lr}_{seed}", chosen(lr=lr, seed=seed), {10: value - 0.1, 20: value}, tested=value - 0.05)
    write_run(tmp_path, "slow", chosen(lr=1.0), {10: 0.99}, state="crashed")
    return tmp_path


def test_mean_and_spread_over_seeds(folder: Path) -> None:
    [board] = boards(folder)
    assert board.keys == ("optimizer.lr",)
    assert board.objectives == (Objective("accuracy", "max"),)
    first, second, third, last = board.rows
    assert [row.values["optimizer.lr"] for row in board.rows] == [0.1, 0.01, 0.001, 1.0]
    assert [row.place for row in board.rows] == ["best", "tie", "", ""]
    score = first.scores[0]
    assert score is not None
    assert (score.mean, score.spread, score.seeds) == (pytest.approx(0.92), pytest.approx(0.02), 3)  # ((.02² + 0 + .02²) / 2)^½
    assert second.scores[0] is not None
    assert second.scores[0].mean == pytest.approx(0.91)
    assert first.tested is not None
    assert first.tested.mean == pytest.approx(0.87)
    assert third.scores[0] == Score(0.5, 0.0, 3)
    assert (last.scores, last.so_far, last.state, last.steps) == ((None,), 0.99, "crashed", 10)
    assert board.title == "digits: val/accuracy (more is better); 4 configurations, 10 runs"


def test_the_table_as_it_is_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(folder), "--format", "markdown"]) == 0
    expected = """\
**digits: val/accuracy (more is better); 4 configurations, 10 runs**

|      | optimizer.lr | val/accuracy    | test/accuracy   |  seeds | step | state    |
|------|--------------|-----------------|-----------------|-------:|-----:|----------|
| best | 0.1          | 0.920 ± 0.020   | 0.870 ± 0.020   |      3 |   20 | finished |
| tie  | 0.01         | 0.910 ± 0.020   | 0.860 ± 0.020   |      3 |   20 | finished |
|      | 0.001        | 0.5000 ± 0.0000 | 0.4500 ± 0.0000 |      3 |   20 | finished |
|      | 1            | (0.99)          | -               | 0 of 1 |   10 | crashed  |

tie: its seeds do not tell it from the best (Welch's t-test, 5%)

(in brackets): the best so far of runs that have not finished
"""
    assert capsys.readouterr().out == expected
    assert main(["runs", str(folder)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["best", "0.1", "0.920", "±", "0.020", "0.870", "±", "0.020", "3", "20", "finished"] in lines
    assert ["best", "run:", str(folder / "0.1_2")] in lines


def test_csv_holds_numbers(folder: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(boards(folder)))))
    assert [row["optimizer.lr"] for row in rows] == ["0.1", "0.01", "0.001", "1.0"]
    assert float(rows[0]["val/accuracy"]) == pytest.approx(0.92)
    assert float(rows[0]["val/accuracy.spread"]) == pytest.approx(0.02)
    assert rows[0]["run"] == str(folder / "0.1_2")
    assert (rows[3]["val/accuracy"], rows[3]["val/accuracy.seeds"], rows[3]["so_far"], rows[3]["state"]) == ("", "0", "0.99", "crashed")


def test_less_can_be_better_and_what_never_was_a_number_is_no_score(tmp_path: Path) -> None:
    for lr, value in ((0.1, 0.5), (0.01, 0.25), (1.0, math.nan)):
        write_run(tmp_path, str(lr), chosen(lr=lr), {10: value}, metric="loss", mode="min")
    [board] = boards(tmp_path)
    assert [(row.values["optimizer.lr"], row.place) for row in board.rows] == [(0.01, "best"), (0.1, ""), (1.0, "")]
    assert board.rows[2].scores == (None,)
    assert "seed=0,1,2" in board.notes[0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0.9, 0.91, 0.92), (0.8, 0.81, 0.82)),
        ((0.9, 0.91, 0.92), (0.88, 0.9, 0.92)),
        ((0.9, 0.95), (0.8, 0.85)),
        ((0.90, 0.9001, 0.9002, 0.9001), (0.6, 0.9, 0.3)),
        ((1.0, 2.0, 3.0), (2.1, 2.2, 2.0)),
        ((1.0, 1.1, 0.9, 1.05), (0.7, 0.9, 0.8)),
    ],
)
def test_ties_are_what_welch_cannot_tell(one: tuple[float, ...], other: tuple[float, ...]) -> None:
    def score(values: tuple[float, ...]) -> Score:
        mean = sum(values) / len(values)
        return Score(mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)), len(values))

    expected = ttest_ind(one, other, equal_var=False).pvalue > 0.05
    assert tied(score(one), score(other)) is tied(score(other), score(one)) is bool(expected)


def test_without_spread_only_the_same_is_a_tie() -> None:
    assert tied(Score(0.5, None, 1), Score(0.5, 0.1, 3))
    assert not tied(Score(0.5, None, 1), Score(0.51, 0.1, 3))
    assert not tied(Score(0.5, 0.0, 2), Score(0.51, 0.0, 2))


def test_a_repetition_is_no_further_seed(tmp_path: Path) -> None:
    for name, value in (("a", 0.5), ("b", 0.75)):
        write_run(tmp_path, name, chosen(), {10: value})
    [board] = boards(tmp_path)
    assert board.rows[0].scores == (Score(0.75, None, 1),)
    assert board.rows[0].seeds == (1, 1)


def test_only_keys_that_vary_and_do_not_follow_from_a_choice(tmp_path: Path) -> None:
    """A model brings options and companions of its own; what was typed is shown all the same."""
    write_run(tmp_path, "a", chosen("cnn", lr=0.1, channels=[8], dropout=0.3), {10: 0.5}, typed=("model=cnn", "optimizer.lr=0.1"))
    write_run(tmp_path, "b", chosen("cnn", lr=0.2, channels=[8], dropout=0.3), {10: 0.6}, typed=("model=cnn", "optimizer.lr=0.2"))
    gpt = chosen("mlp", lr=0.1, dropout=0.1, hidden=[8]) | {"trainer": {"threads": 4, "duration": "9 steps"}}
    write_run(tmp_path, "c", gpt, {10: 0.7}, typed=("model=mlp",))
    assert boards(tmp_path)[0].keys == ("model.name", "optimizer.lr")
    write_run(
        tmp_path,
        "d",
        chosen("bert", lr=0.3, dropout=0) | {"tags": ["x"], "outputs": "y"},
        {10: 0.7},
        typed=("model=bert", "model.dropout=0"),
    )
    assert boards(tmp_path)[0].keys == ("model.name", "model.dropout", "optimizer.lr")


def test_a_key_that_splits_a_choice_is_shown() -> None:
    configs = [{"model.name": "a", "x": 1, "y": 1}, {"model.name": "a", "x": 2, "y": 1}, {"model.name": "b", "x": 1, "y": 5}]
    assert varying(configs, set()) == ("model.name", "x")
    assert varying(configs, {"y"}) == ("model.name", "x", "y")
    assert varying(configs[:1], {"y"}) == ()


def test_data_sets_and_goals_are_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path, "a", chosen(), {10: 0.5})
    write_run(tmp_path, "b", chosen() | {"data": {"name": "mnist"}}, {10: 0.9})
    write_run(tmp_path, "c", chosen("vae"), {10: 90.0}, metric="bound", mode="min")
    write_run(tmp_path, "d", chosen("vae", lr=0.5), None, state="failed")
    found = {(board.data, board.objectives[0].metric): [len(row.runs) for row in board.rows] for board in boards(tmp_path)}
    assert found == {("digits", "accuracy"): [1], ("mnist", "accuracy"): [1], ("digits", "bound"): [1, 1]}


def test_several_objectives_have_a_front(tmp_path: Path) -> None:
    """By hand: (.9, 30) is beaten by (.9, 20); (.5, 10) and (.95, 40) by none."""
    for name, accuracy, size in (("a", 0.9, 30), ("b", 0.9, 20), ("c", 0.5, 10), ("d", 0.95, 40), ("e", 0.4, 10)):
        write_run(tmp_path, name, chosen(width=name), {10: 0.1, 20: accuracy}, more={"val/margin": accuracy / 2}, parameters=size)
    [board] = boards(tmp_path, [Objective("accuracy", "max"), Objective("parameters", "min")])
    assert [(row.values["model.width"], row.place) for row in board.rows] == [
        ("d", "front"),
        ("b", "front"),
        ("c", "front"),
        ("a", ""),
        ("e", ""),
    ]
    [board] = boards(tmp_path, [Objective("margin", "max")])
    score = board.rows[0].scores[0]
    assert score is not None
    assert score.mean == pytest.approx(0.475)


def test_jobs_of_a_sweep_that_have_not_begun_are_there(tmp_path: Path) -> None:
    sweep = SweepDir.create(tmp_path)
    for lr in (0.1, 0.2):
        sweep.add(point_of([f"optimizer.lr={lr}"], [f"optimizer.lr={lr}"]))
    [board] = boards(sweep.path)
    assert [(row.values, row.state, row.place) for row in board.rows] == [
        ({"optimizer.lr": 0.1}, "pending", ""),
        ({"optimizer.lr": 0.2}, "pending", ""),
    ]
    assert "not measured yet" in board.title
    assert [len(board.rows) for board in boards(tmp_path)] == [2]
    assert [len(board.rows) for board in boards(tmp_path, filters={"optimizer.lr": "0.1"}, state="pending")] == [1]
    write_boards(sweep.path)
    assert (sweep.path / "leaderboard.md").read_text(encoding="utf-8") == markdown([board])


def test_nothing_to_compare_is_no_error(tmp_path: Path) -> None:
    assert boards(tmp_path) == []
    assert csv_text([]) == "\n"
    write_run(tmp_path, "a", chosen(), None, state="failed")
    with pytest.raises(UsageError) as refused:
        boards(tmp_path, sort="optimizer.lrr")
    assert "optimizer.lr'" in refused.value.cure
