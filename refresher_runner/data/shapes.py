"""Shapes: pictures drawn here, nothing downloaded, with a box around each circle, square, triangle, star, cross and ring.

A picture is a function of (split_seed, split, index, difficulty, size) alone. Pictures are drawn once and kept in one file, which is
verified before it is used and drawn anew where it is damaged. Free of numpy and Pillow until `prepare`.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from refresher_runner.data.detection import Augment, DetectionSet, Scene, Splits
from refresher_runner.data.drawing import CLASSES, LEVELS, Drawn, draw_all
from refresher_runner.errors import ConfigError
from refresher_runner.registry import DATASETS
from refresher_runner.schema import Fraction, NonNegative, Positive
from refresher_runner.spec import DataModule, DetectionSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1  # of what is drawn: another one never takes this one's files for its own
SIZES = 32, 1024  # pixels: in less a star is none, and more would not be seen


@DATASETS.register("shapes")
def build_shapes(
    *,
    root: str,
    difficulty: Literal["easy", "medium", "hard"],
    train_count: Positive,
    val_count: Positive,
    test_count: Positive,
    split_seed: NonNegative,
    size: Positive,
    batch_size: Positive,
    eval_batch_size: Positive,
    mosaic: Fraction,
    flip: bool,
    flip_vertical: bool,
    scale: Fraction,
    translate: Fraction,
    colour: Fraction,
    cache: bool,
    workers: NonNegative | None,
    timeout: NonNegative,
) -> DataModule[DetectionSpec]:
    """Circles, squares, triangles, stars, crosses and rings, drawn on first use: nothing to download."""
    if not SIZES[0] <= size <= SIZES[1]:
        raise ConfigError("cannot be drawn", key="data.size", value=size, cure=f"from {SIZES[0]} to {SIZES[1]} pixels")
    return DetectionSet(
        DetectionSpec(3, size, CLASSES),
        lambda: read_shapes(root, difficulty, (train_count, val_count, test_count), split_seed, size),
        batch_size,
        eval_batch_size,
        Augment(mosaic, flip, flip_vertical, scale, translate, colour),
        cache,
        workers,
        timeout,
    )


def read_shapes(root: str, difficulty: str, counts: tuple[int, int, int], split_seed: int, size: int) -> Splits:
    """The pictures from their file below `root`, drawn first where it is absent or damaged.

    Processes that come at once draw them once. Where nothing can be written they are drawn and not kept, with a warning.
    """
    from filelock import FileLock

    name = f"{difficulty}_{size}_{'-'.join(map(str, counts))}_{split_seed}.v{VERSION}"
    path, log = Path(root, "shapes", name), logging.getLogger(__name__)

    def drawn() -> tuple[str, Drawn]:
        log.info("drawing %d pictures for %s", sum(counts), path)
        made = draw_all(LEVELS[difficulty], counts, split_seed, size)
        return _digest(name, *(array.data for array in made)), made

    found = _load(path, sum(counts), size)
    try:
        if found is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                found = _load(path, sum(counts), size)  # somebody may have been quicker
                if found is None:
                    found = drawn()
                    _store(path, *found)
    except OSError as error:
        log.warning("%s: the pictures cannot be kept (%s), and are drawn for every run", path, error)
    digest, made = found or drawn()
    pictures, (train, val, _) = scenes(made), counts
    return Splits(pictures[:train], pictures[train : train + val], pictures[train + val :], {f"shapes/{name}": digest})


def scenes(drawn: Drawn) -> list[Scene]:
    """Picture by picture."""
    ends = drawn.counts.cumsum().tolist()
    return [Scene(p, drawn.boxes[i:j], drawn.labels[i:j]) for p, i, j in zip(drawn.pixels, [0, *ends], ends, strict=False)]


def _digest(name: str, *parts: memoryview) -> str:
    """Of the name too: what was renamed is not what it is called."""
    digest = hashlib.sha256(name.encode())
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _store(path: Path, digest: str, drawn: Drawn) -> None:
    """The digest, then the arrays' bytes. Written beside, then renamed: the file's own name never holds a part of it."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(digest.encode())
            for array in drawn:
                file.write(array.data)
        os.replace(part, path)
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise


def _load(path: Path, count: int, size: int) -> tuple[str, Drawn] | None:
    """None where the file is absent or not, to the last bit, what was written."""
    import numpy as np

    try:
        content = path.read_bytes()
    except OSError:
        return None
    start = 2 * hashlib.sha256().digest_size
    digest = _digest(path.name, memoryview(content)[start:])
    if digest.encode() != content[:start]:
        return None

    def take(kind: type, *shape: int) -> NDArray:
        nonlocal start
        array = np.frombuffer(content, kind, math.prod(shape), start).reshape(shape)
        start += array.nbytes
        return array

    counts = take(np.int64, count)
    shapes = int(counts.sum())
    return digest, Drawn(counts, take(np.int64, shapes), take(np.float32, shapes, 4), take(np.uint8, count, size, size, 3))
