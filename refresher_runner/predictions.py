"""What `predict` leaves: a table as CSV and JSON, every picture as PNG and for TensorBoard, vectors as numpy's .npy."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refresher_runner.errors import UsageError
from refresher_runner.report import Embedding, Images, Prediction, Report, Text

if TYPE_CHECKING:
    from refresher_runner.engine.logger import Logger


def write(predictions: Iterable[Prediction], folder: Path) -> list[dict[str, Any]]:
    """A row for each prediction, with the paths of its pictures. Pictures are written as they come, and all lie in `folder` once the
    last is there: an input that cannot be read leaves nothing. Raises UsageError where the folder cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.tmp.", dir=folder.parent) as name:
            aside = Path(name)
            with _board(aside) as show:
                rows = [_row(number, prediction, folder, aside, show) for number, prediction in enumerate(predictions)]
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


@contextmanager
def _board(folder: Path) -> Iterator[Callable[[Report, int], None]]:
    """What takes reports to a file of TensorBoard's, which is made, and TensorBoard imported, when the first comes."""
    opened: list[Logger] = []

    def show(report: Report, number: int) -> None:
        from refresher_runner.engine.figures import Gallery
        from refresher_runner.engine.tensorboard import TensorBoard

        if not opened:
            opened.append(TensorBoard(folder, Gallery(), lambda _: None))
        opened[0].log(report, number)

    try:
        yield show
    finally:
        for board in opened:
            board.close()


def _row(number: int, prediction: Prediction, folder: Path, aside: Path, show: Callable[[Report, int], None]) -> dict[str, Any]:
    """The values of one prediction, and what of its report can be written: `<number>_<tag>.png`, `.md` for a text, `.npy` for vectors.

    It is written `aside`, and named as it will lie in `folder`. Pictures are also shown, under the name of their input.
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
        elif isinstance(shown, Embedding):
            import numpy as np

            row[tag] = str(folder / f"{name}.npy")
            np.save(aside / f"{name}.npy", shown.vectors.cpu().numpy())
        elif (png := draw(shown, f"{prediction.input}: {tag}")) is not None:
            row[tag] = str(folder / f"{name}.png")
            write_png(png, aside / f"{name}.png")
            if isinstance(shown, Images):
                show({f"{tag}/{Path(prediction.input).name[:80]}": shown}, number)
    return row
