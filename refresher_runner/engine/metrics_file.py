"""metrics.jsonl, the truth that every other record of a run is rebuilt from, and metrics.csv for spreadsheets. Free of torch.

A line is one report: {"step": 400, "time": 1700000000.0, "val/loss": 0.1, "val/confusion_matrix": {"type": "Matrix", ...}}.
Numbers are numbers, but for "nan", "inf" and "-inf", which JSON lacks; pictures, vectors and distributions leave a stub.
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from refresher_runner.engine.logger import Logger
from refresher_runner.report import Curve, Loggable, Matrix, PRCurve, Report, Text

WHOLE = {kind.__name__: kind for kind in (Matrix, Curve, PRCurve, Text)}  # kept in full


class Journal:
    """A binary file that grows by whole records and is visible to others at once.

    A record that does not fit on the disk is taken back, kept, and written with the next one that does.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        self._end = self._file.seek(0, os.SEEK_END)
        self._waiting = b""

    def write(self, record: bytes) -> None:
        """Raises OSError, with the file as it was."""
        self._waiting += record
        rest = memoryview(self._waiting)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(self._end)
            raise
        self._end += len(self._waiting)
        self._waiting = b""

    def flush(self) -> None:
        """On disk when this returns."""
        self.write(b"")
        os.fsync(self._file.fileno())

    def close(self) -> None:
        with self._file:
            self.write(b"")


class JSONLines(Logger):
    """A line for each report."""

    def __init__(self, path: Path):
        self._journal = Journal(path)

    def log(self, report: Report, step: int) -> None:
        line = {"step": step, "time": time.time(), **{tag: encode(shown) for tag, shown in report.items()}}
        self._journal.write(json.dumps(line, allow_nan=False).encode() + b"\n")

    def flush(self) -> None:
        self._journal.flush()

    def close(self) -> None:
        self._journal.close()


class CSV(Logger):
    """A row for each report that holds numbers, a column for each tag; `truth` is the metrics.jsonl written before it."""

    def __init__(self, path: Path, truth: Path):
        self._path, self._truth = path, truth
        self._rebuild()

    def log(self, report: Report, step: int) -> None:
        row = _numbers(report)
        if not row.keys() <= set(self._columns):
            self._rebuild()  # a header cannot grow in place
        elif row:
            self._append({"step": step, **row})

    def close(self) -> None:
        self._rebuild()  # whatever a full disk did to either file

    def _append(self, row: Mapping[str, Any]) -> None:
        columns, self._columns = self._columns, []  # where the disk is full, the file may be anything: the next report rebuilds it
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(_csv(columns, [row]))
        self._columns = columns

    def _rebuild(self) -> None:
        self._columns: list[str] = []
        rows = [row for line in read_metrics(self._truth) if (row := _numbers(line))]
        columns = list(dict.fromkeys(["step", *(tag for row in rows for tag in row)]))
        _replace(self._path, _csv(columns, [dict(zip(columns, columns, strict=True)), *rows]).encode())
        self._columns = columns


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl that are whole; "nan" and its like are floats again."""
    return [{k: float(v) if isinstance(v, str) else v for k, v in line.items()} for _, line in _lines(path)]


def rewind(path: Path, end: int) -> None:
    """Cut metrics.jsonl to its first `end` bytes, which are all that the checkpoint a run goes on from had behind it."""
    if path.is_file() and path.stat().st_size > end:
        os.truncate(path, end)


def encode(shown: Loggable) -> Any:
    """A loggable as JSON holds it."""
    if isinstance(shown, (int, float)):
        return _plain(shown)
    kind, values = type(shown).__name__, {f.name: getattr(shown, f.name) for f in fields(shown)}
    if kind in WHOLE:
        return {"type": kind, **{name: _plain(value) for name, value in values.items()}}
    return {"type": kind, "shape": list(next(iter(values.values())).shape)}


def decode(value: Any) -> Loggable | None:
    """The inverse of `encode`; None where only a stub was kept."""
    import torch

    if not isinstance(value, dict):
        return float(value)
    if value["type"] not in WHOLE:
        return None

    def restored(name: str, field: Any) -> Any:
        if isinstance(field, dict):
            return {key: restored("", inner) for key, inner in field.items()}
        if isinstance(field, (str, int, float)):
            return field
        names = name in ("rows", "columns", "classes")
        return tuple(field) if names else torch.tensor(_floats(field))

    return WHOLE[value["type"]](**{name: restored(name, field) for name, field in value.items() if name != "type"})


def _plain(value: Any) -> Any:
    """Containers, numbers and text; a tensor as nested lists."""
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, (int, str)) else _plain(value.tolist())


def _floats(value: Any) -> Any:
    """Nested lists with "nan" and its like as floats again."""
    return [_floats(inner) for inner in value] if isinstance(value, list) else float(value) if isinstance(value, str) else value


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _numbers(line: Mapping[str, Any]) -> dict[str, Any]:
    """What a spreadsheet shows of a report or of a line; empty where there is no metric."""
    row = {tag: value for tag, value in line.items() if isinstance(value, (int, float)) and tag != "time"}
    return row if row.keys() - {"step"} else {}


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Each whole line with what it says. A process or a machine that dies leaves at most a last one that is not."""
    found = []
    for text in path.read_bytes().splitlines(keepends=True) if path.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if text.endswith(b"\n") and isinstance(line, dict):
            found.append((text, line))
    return found


def _replace(path: Path, content: bytes) -> None:
    """Written beside and made durable, then renamed: a reader, and a run that goes on, find the old file or the new one."""
    aside = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    with open(aside, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
