"""What `predict` leaves: a table as CSV and JSON, and every picture as PNG."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refresher_runner.errors import UsageError
from refresher_runner.report import Prediction, Text


def write(predictions: Sequence[Prediction], folder: Path) -> list[dict[str, Any]]:
    """A row for each input, with the paths of its pictures. Raises UsageError where the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        rows = [_row(number, prediction, folder) for number, prediction in enumerate(predictions)]
        (folder / "predictions.json").write_text(json.dumps(rows, indent=2, default=str) + "\n", encoding="utf-8")
        with open(folder / "predictions.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(column for row in rows for column in row)))
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise UsageError(f"cannot be written ({error.strerror})", key="--output", value=folder, cure="name another folder") from None
    return rows


def _row(number: int, prediction: Prediction, folder: Path) -> dict[str, Any]:
    """The values of one input, and what of its report can be written: `<number>_<tag>.png`, or `.md` for a text."""
    from refresher_runner.engine.figures import draw, write_png

    row: dict[str, Any] = {"input": prediction.input, **prediction.values}
    for tag, shown in prediction.report.items():
        path = folder / f"{number:04d}_{tag.replace('/', '_')}.png"
        if isinstance(shown, float):
            row[tag] = shown
        elif isinstance(shown, Text):
            row[tag] = str(path.with_suffix(".md"))
            path.with_suffix(".md").write_text(shown.markdown, encoding="utf-8")
        elif (png := draw(shown, f"{prediction.input}: {tag}")) is not None:
            row[tag] = str(path)
            write_png(png, path)
    return row
