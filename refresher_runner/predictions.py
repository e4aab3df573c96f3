"""What `predict` leaves: a table as CSV and JSON, and every picture as PNG."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from refresher_runner.errors import UsageError
from refresher_runner.report import Prediction, Text


def write(predictions: Iterable[Prediction], folder: Path) -> list[dict[str, Any]]:
    """A row for each prediction, with the paths of its pictures. Pictures are written as they come, and all lie in `folder` once the
    last is there: an input that cannot be read leaves nothing. Raises UsageError where the folder cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.tmp.", dir=folder.parent) as name:
            aside = Path(name)
            rows = [_row(number, prediction, folder, aside) for number, prediction in enumerate(predictions)]
            (aside / "predictions.json").write_text(json.dumps(rows, indent=2, default=str) + "\n", encoding="utf-8")
            with open(aside / "predictions.csv", "w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(dict.fromkeys(column for row in rows for column in row)))
                writer.writeheader()
                writer.writerows(rows)
            folder.mkdir(exist_ok=True)
            for file in aside.iterdir():
                os.replace(file, folder / file.name)
    except OSError as error:
        raise UsageError(f"cannot be written ({error.strerror})", key="--output", value=folder, cure="name another folder") from None
    return rows


def _row(number: int, prediction: Prediction, folder: Path, aside: Path) -> dict[str, Any]:
    """The values of one prediction, and what of its report can be written: `<number>_<tag>.png`, or `.md` for a text.

    It is written `aside`, and named as it will lie in `folder`.
    """
    from refresher_runner.engine.figures import draw, write_png

    row: dict[str, Any] = {"input": prediction.input, **prediction.values}
    for tag, shown in prediction.report.items():
        name = f"{number:04d}_{tag.replace('/', '_')}"
        if isinstance(shown, float):
            row[tag] = shown
        elif isinstance(shown, Text):
            row[tag] = str(folder / f"{name}.md")
            (aside / f"{name}.md").write_text(shown.markdown, encoding="utf-8")
        elif (png := draw(shown, f"{prediction.input}: {tag}")) is not None:
            row[tag] = str(folder / f"{name}.png")
            write_png(png, aside / f"{name}.png")
    return row
