"""Pictures with boxes in the layout of Ultralytics: `root/data.yaml` names the classes, and where the pictures of each split lie.

`.../images/.../a.jpg` has its boxes in `.../labels/.../a.txt`; where no folder is called images, they lie beside it. A picture
without that file holds nothing. A line is `class cx cy w h`, in shares of the picture's width and height, or
`class x1 y1 x2 y2 x3 y3 ...`, an outline, of which the box is taken. Pictures are turned as their camera says.

A relative path never leads out of the data set: `../` at its begin, as some tools write it, counts for nothing. An absolute path
and a symbolic link lead where they say: whoever wrote them meant it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any

from refresher_runner.data.detection import Augment, DetectionSet, Dropped, Scene, Splits, sound_boxes
from refresher_runner.data.voc import cut, listed, picture_size, refuse
from refresher_runner.errors import ConfigError, DataError
from refresher_runner.pictures import SUFFIXES
from refresher_runner.registry import DATASETS
from refresher_runner.schema import Fraction, NonNegative, Positive, Share
from refresher_runner.spec import DataModule, DetectionSpec

Corners = tuple[float, ...]  # x1 y1 x2 y2, in shares of the picture's width and height


@DATASETS.register("yolo_folder")
def build_yolo_folder(
    *,
    root: str,
    val_fraction: Share,
    test_fraction: Share,
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
    """Your own pictures with boxes, in the layout of Ultralytics' YOLO: a data.yaml, images and labels."""
    described, fractions = describe(Path(root)), {"test": test_fraction, "val": val_fraction}
    augment = Augment(mosaic, flip, flip_vertical, scale, translate, colour)
    return DetectionSet(
        DetectionSpec(3, size, described.classes),
        lambda: read_yolo(described, fractions, split_seed),
        batch_size,
        eval_batch_size,
        augment,
        cache,
        workers,
        timeout,
    )


@dataclass(frozen=True)
class Described:
    """A data.yaml: paths of the splits' pictures are relative to `base`, and stay inside `home`."""

    root: Path
    home: Path
    base: Path
    classes: tuple[str, ...]
    splits: dict[str, list[str]]

    def place(self, path: str, base: Path) -> Path:
        """Where a path of the data set leads, from `base` if it is relative."""
        place = Path(os.path.normpath(base / path))
        if os.path.isabs(path) or place.is_relative_to(self.home):
            return place
        return self.home.joinpath(*(part for part in Path(os.path.normpath(path)).parts if part != ".."))

    def labels(self, picture: Path) -> Path:
        """The file of a picture's boxes."""
        above = self.home if picture.is_relative_to(self.home) else Path(picture.anchor)
        *folders, name = picture.relative_to(above).parts
        for i in reversed(range(len(folders))):
            if folders[i] == "images":
                folders[i] = "labels"
                break
        return above.joinpath(*folders, name).with_suffix(".txt")


def describe(root: Path) -> Described:
    """Raises ConfigError for a folder without data.yaml, DataError for one that says too little."""
    import yaml

    file, root = root / "data.yaml", Path(os.path.abspath(root))
    if not file.is_file():
        problem, cure = "holds no data.yaml" if root.is_dir() else "no such folder", "the folder that holds data.yaml, images and labels"
        raise ConfigError(problem, key="data.root", value=root, cure=cure)
    try:
        values = yaml.safe_load(file.read_bytes())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"is not readable YAML ({error})", key=str(file)) from None
    if not isinstance(values, dict):
        raise DataError("holds no keys", key=str(file), cure="it says train: and names:")
    classes = _classes(values.get("names"), file)
    if values.get("nc") not in (None, len(classes)):
        raise DataError(f"nc is {values['nc']}, and names has {len(classes)}", key=str(file))
    splits: dict[str, list[str]] = {}
    for split in ("train", "val", "test"):
        paths = values.get(split)
        paths = [paths] if paths and isinstance(paths, str) else paths or []
        if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
            raise DataError(f"{split} is neither a path nor a list of paths", key=str(file))
        if paths:
            splits[split] = paths
    if "train" not in splits:
        raise DataError("has no train", key=str(file), cure="train: images/train, the folder of the training pictures")
    base = _base(root, values.get("path"))
    return Described(root, root if base.is_relative_to(root) else base, base, classes, splits)


def read_yolo(described: Described, fractions: Mapping[str, float], seed: int) -> Splits:
    """The splits that data.yaml names, and the others cut from training. Raises DataError, naming what is absent or damaged."""
    import numpy as np

    given = {split: _pictures(described, paths) for split, paths in described.splits.items()}
    pictures = sorted({picture for split in given.values() for picture in split})
    refuse([picture for picture in pictures if not picture.is_file()], len(pictures), "pictures")
    files = {picture: file for picture in pictures if (file := described.labels(picture)).is_file()}
    for split, members in given.items():
        if members and not any(picture in files for picture in members):
            cure = "labels lie beside images, in a folder called labels; an empty file says that a picture holds nothing"
            raise DataError(f"is absent, and no picture of {split} has a file of boxes", key=str(described.labels(members[0])), cure=cure)
    scenes, dropped, digest = {}, Dropped(str(described.root)), sha256()
    for picture in pictures:
        file, objects, (width, height) = files.get(picture, picture), [], (1, 1)
        if picture in files:
            content = file.read_bytes()
            digest.update(f"{file.name} {len(content)}\n".encode() + content)
            objects = read_labels(file, content, len(described.classes))
        if objects:
            width, height = picture_size(picture)
        boxes = np.array([corners for _, corners in objects], np.float64).reshape(-1, 4) * [width, height, width, height]
        labels = np.array([label for label, _ in objects], np.int64)
        scenes[picture] = Scene(picture, *sound_boxes(boxes, labels, width, height, file, dropped))
    dropped.tell()
    splits = cut(described.root, given, fractions, seed)
    checksums = {"labels": digest.hexdigest(), **listed(described.root, pictures)}
    train, val, test = ([scenes[picture] for picture in splits[split]] for split in ("train", "val", "test"))
    return Splits(train, val, test, checksums)


def read_labels(file: Path, content: bytes, num_classes: int) -> list[tuple[int, Corners]]:
    """The label and the box of every line. Raises DataError, naming file and line, on one that is no box of a known class."""
    objects = []
    for number, line in enumerate(_lines(file, content), 1):
        where, words = f"{file}:{number}", line.split()
        if not words:
            continue
        try:
            label, *rest = map(float, words)
        except ValueError:
            raise DataError("is not a line of numbers", key=where) from None
        if len(rest) != 4 and (len(rest) < 6 or len(rest) % 2):
            raise DataError(f"has {len(words)} numbers", key=where, cure="a line is `class cx cy w h`, or `class x1 y1 x2 y2 x3 y3 ...`")
        if not (0 <= label < num_classes and label.is_integer()):
            raise DataError(f"class {words[0]} is none of the {num_classes} that data.yaml names, counted from 0", key=where)
        if any(2 < abs(value) < inf for value in rest):
            raise DataError("is not in shares of the picture's width and height", key=where, cure="divide pixels by them")
        objects.append((int(label), _corners(rest)))
    return objects


def _corners(numbers: Sequence[float]) -> Corners:
    if not all(map(isfinite, numbers)):
        return (nan,) * 4
    if len(numbers) == 4:
        x, y, width, height = numbers
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    return min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])


def _pictures(described: Described, paths: Sequence[str]) -> list[Path]:
    """Those in folders, and those that a list names; its relative paths begin at the list."""
    pictures: list[Path] = []
    for path in paths:
        place = described.place(path, described.base)
        if place.is_dir():
            found = sorted(file for file in place.rglob("*") if file.suffix.lower() in SUFFIXES and file.name[0] != ".")
        elif place.is_file() and place.suffix == ".txt":
            lines = [line.strip() for line in _lines(place, place.read_bytes())]
            found = [described.place(line, place.parent) for line in lines if line]
        else:
            cure = "a folder of pictures, or a .txt that lists them"
            raise DataError(f"no such folder, though data.yaml names it as {path}", key=str(place), cure=cure)
        if not found:
            raise DataError("holds no pictures", key=str(place), cure=f"pictures end in {' '.join(sorted(SUFFIXES))}")
        pictures += found
    return list(dict.fromkeys(pictures))


def _classes(names: Any, file: Path) -> tuple[str, ...]:
    """From a list, or from a mapping of numbers."""
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(isinstance(name, str | int) for name in names.values()):
        raise DataError("names is neither a list of names nor a mapping of numbers to names", key=str(file), cure="names: [cat, dog]")
    if set(names) != set(range(len(names))):
        raise DataError(f"names has not every number from 0 to {len(names) - 1}", key=str(file))
    classes = tuple(str(names[label]) for label in range(len(names)))
    if len(set(classes)) < len(classes):
        raise DataError("names has one name twice", key=str(file))
    return classes


def _base(root: Path, path: Any) -> Path:
    """Where paths begin: data.yaml's `path`, if it is there, as it often is on its writer's machine only; else the root."""
    if not isinstance(path, str):
        return root
    base = Path(os.path.normpath(root / path))
    return base if base.is_dir() and (os.path.isabs(path) or base.is_relative_to(root)) else root


def _lines(file: Path, content: bytes) -> list[str]:
    try:
        return content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"is not text ({error})", key=str(file)) from None
