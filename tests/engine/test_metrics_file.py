"""metrics.jsonl is whole after any end of a process, and what is read is what was logged."""

from __future__ import annotations

import csv
import json
import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from refresher_runner.engine.metrics_file import CSV, Journal, JSONLines, decode, encode, read_metrics, rewind
from refresher_runner.report import Curve, Embedding, Histogram, Images, Matrix, PRCurve, Text

NAMES = ("a", "b")
LOGGED: dict[str, Any] = {
    "train/loss": 0.1 + 0.2,
    "val/accuracy": 1e-300,
    "val/confusion_matrix": Matrix(torch.tensor([[5, 0], [2, 3]]), NAMES, NAMES),
    "val/attention": Matrix(torch.tensor([[0.25, math.inf]]), ("q",), NAMES, "query", "key"),
    "val/roc": Curve(torch.tensor([0.0, 1.0]), {"a": torch.tensor([0.5, math.nan])}, "fpr", "tpr"),
    "val/pr_curve": PRCurve(NAMES, torch.tensor([0.0, 1.0]), *(torch.tensor([[k, 1], [2, 3]]) for k in range(4))),
    "config": Text('seed: 0\n"quoted" é'),
    "val/samples": Images(torch.zeros(2, 1, 8, 8)),
    "val/vectors": Embedding(torch.zeros(3, 4), ("x", "y", "z")),
    "weights/w": Histogram(torch.zeros(7)),
}


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file grows beyond so many bytes: the kernel writes what fits and then refuses, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return vars(a).keys() == vars(b).keys() and all(map(same, vars(a).values(), vars(b).values())) if hasattr(a, "__dict__") else a == b


@pytest.mark.parametrize("tag", LOGGED)
def test_what_is_read_is_what_was_logged(tag: str) -> None:
    shown = LOGGED[tag]
    read = decode(json.loads(json.dumps(encode(shown), allow_nan=False)))
    assert same(shown, read) if not isinstance(shown, (Images, Embedding, Histogram)) else read is None


def test_pictures_leave_their_type_and_shape() -> None:
    assert encode(LOGGED["val/samples"]) == {"type": "Images", "shape": [2, 1, 8, 8]}
    assert encode(LOGGED["val/vectors"]) == {"type": "Embedding", "shape": [3, 4]}


def test_a_line_is_seen_by_others_at_once_and_is_strict_json(tmp_path: Path) -> None:
    logger = JSONLines(tmp_path / "metrics.jsonl")
    for step, loss in enumerate([1.0, math.nan, math.inf, -math.inf]):
        logger.log({"train/loss": loss}, step)
        assert len((tmp_path / "metrics.jsonl").read_bytes().splitlines()) == step + 1

    def no_constants(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    raw = [json.loads(line, parse_constant=no_constants) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["train/loss"] for line in raw] == [1.0, "nan", "inf", "-inf"]
    read = [line["train/loss"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert read[0] == 1.0
    assert math.isnan(read[1])
    assert read[2:] == [math.inf, -math.inf]
    logger.close()


def test_a_line_cut_anywhere_costs_that_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    logger = JSONLines(path)
    for step in range(3):
        logger.log(LOGGED, step)
    logger.close()
    whole = path.read_bytes()
    last = len(whole) - len(whole.splitlines(keepends=True)[-1])
    for cut in range(last, len(whole), 37):
        path.write_bytes(whole[:cut])
        assert [line["step"] for line in read_metrics(path)] == [0, 1]
        rewind(path, last)
        assert path.read_bytes() == whole[:last]


def end_of(path: Path, step: int) -> int:
    """Bytes of a metrics.jsonl up to `step`, as the checkpoint of that step remembers them."""
    texts = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    return sum(len(text) for text in texts if text.endswith(b"\n") and json.loads(text)["step"] <= step and b'"test/' not in text)


def test_rewind_leaves_what_lies_behind(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    logger = JSONLines(path)
    for step in (0, 5, 10, 10, 15):
        logger.log({"train/loss": float(step)}, step)
    logger.log({"test/loss": 0.0}, 15)
    logger.close()
    lines = path.read_bytes().splitlines(keepends=True)
    for step, kept in ((15, 5), (14, 4), (10, 4), (9, 2), (0, 1), (-1, 0)):
        path.write_bytes(b"".join(lines))
        rewind(path, end_of(path, step))
        assert path.read_bytes() == b"".join(lines[:kept])
        rewind(path, 10**6)
        assert path.read_bytes() == b"".join(lines[:kept])
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]
    rewind(tmp_path / "absent.jsonl", 3)


@pytest.mark.parametrize("room", [0, 1, 9, 10, 11, 25, 29])
def test_what_a_full_disk_refuses_is_written_when_there_is_room(tmp_path: Path, room: int) -> None:
    path = tmp_path / "file"
    journal = Journal(path)
    with disk_of(room):
        for k in range(3):
            try:
                journal.write(b"%09d\n" % k)
            except OSError:
                assert path.stat().st_size % 10 == 0  # never half a record
    journal.write(b"%09d\n" % 3)
    journal.close()
    assert path.read_bytes() == b"".join(b"%09d\n" % k for k in range(4))


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def test_csv_has_a_row_for_each_report_and_grows_columns(tmp_path: Path) -> None:
    truth, path = tmp_path / "metrics.jsonl", tmp_path / "metrics.csv"
    lines, table = JSONLines(truth), CSV(path, truth)
    reports: list[tuple[dict[str, Any], int]] = [
        ({"config": Text("x")}, 0),
        ({"train/loss": 2.5}, 5),
        ({"train/loss": 0.1 + 0.2}, 10),
        ({"val/loss": math.nan, 'val/recall/"a", b': 1.0, "val/confusion_matrix": LOGGED["val/confusion_matrix"]}, 10),
        ({"train/loss": 1.0}, 15),
    ]
    for report, step in reports:
        lines.log(report, step)
        table.log(report, step)
    expected = [
        {"step": "5", "train/loss": "2.5"},
        {"step": "10", "train/loss": repr(0.1 + 0.2)},
        {"step": "10", "val/loss": "nan", 'val/recall/"a", b': "1.0"},
        {"step": "15", "train/loss": "1.0"},
    ]
    assert rows(path) == expected
    rewind(truth, end_of(truth, 10))
    CSV(path, truth)
    assert rows(path) == expected[:3]
    lines.close()


def test_csv_is_whole_again_when_there_is_room(tmp_path: Path) -> None:
    truth, path = tmp_path / "metrics.jsonl", tmp_path / "metrics.csv"
    lines, table = JSONLines(truth), CSV(path, truth)
    lines.log({"train/loss": 0.0}, 0)
    table.log({"train/loss": 0.0}, 0)
    for step in range(1, 60):
        report = {"train/loss": float(step), **({"val/loss": 1.0} if step % 20 == 0 else {})}
        with disk_of(200 if step < 50 else 10**6):
            for logger in (lines, table):
                with suppress(OSError):
                    logger.log(report, step)
    lines.close()
    table.close()
    assert [row["step"] for row in rows(path)] == [str(step) for step in range(60)]
