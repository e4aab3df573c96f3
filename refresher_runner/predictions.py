"""What `predict` leaves: a table as CSV and JSON, and every picture as PNG."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refresher_runner.errors import UsageError
from refresher_runner.report import Images, Prediction, Text


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
    """The values of one input, and what its report wrote: `<number>_<tag>.png`, or `.md` for a text."""
    row: dict[str, Any] = {"input": prediction.input, **prediction.values}
    for tag, shown in prediction.report.items():
        path = folder / f"{number:04d}_{tag.replace('/', '_')}"
        if isinstance(shown, float):
            row[tag] = shown
        elif isinstance(shown, Text):
            row[tag] = f"{path}.md"
            Path(f"{path}.md").write_text(shown.markdown, encoding="utf-8")
        elif isinstance(shown, Images):
            row[tag] = f"{path}.png"
            _write_pictures(shown, Path(f"{path}.png"))
        else:
            row[tag] = f"{path}.png"
            _write_figure(shown, Path(f"{path}.png"))
    return row


def _write_pictures(images: Images, path: Path) -> None:
    """All of them in one file, in rows of eight."""
    from torchvision.utils import save_image

    save_image(images.pixels, path, nrow=8)
