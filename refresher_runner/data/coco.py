"""Pictures with boxes in the layout of COCO: one JSON a split, and folders of pictures.

Lin et al., "Microsoft COCO: Common Objects in Context", 2014. https://arxiv.org/abs/1405.0312

A box is x y w h in pixels of the picture turned as its camera says, x and y of its left upper edge. What is marked as a crowd, one
box around many things, is left out. Labels count the categories in the order of their ids, of which COCO leaves some out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from refresher_runner.data.detection import Augment, DetectionSet, Dropped, Scene, Splits, sound_boxes
from refresher_runner.data.voc import cut, listed, picture_size, refuse
from refresher_runner.errors import ConfigError, DataError
from refresher_runner.registry import DATASETS
from refresher_runner.schema import Fraction, NonNegative, Positive, Share
from refresher_runner.spec import DataModule, DetectionSpec


@DATASETS.register("coco_folder")
def build_coco_folder(
    *,
    root: str,
    train: str | None,
    val: str | None,
    test: str | None,
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
    """COCO, or your own pictures with boxes in its layout: annotations/instances_*.json and folders of pictures."""
    folder, fractions = Path(root), {"test": test_fraction, "val": val_fraction}
    files = find_files(folder, {"train": train, "val": val, "test": test})
    smallest = min(files.values(), key=lambda file: file.stat().st_size)  # to read what they all say: COCO's largest takes many seconds
    categories = Json(smallest).categories()
    augment = Augment(mosaic, flip, flip_vertical, scale, translate, colour)
    return DetectionSet(
        DetectionSpec(3, size, tuple(categories.values())),
        lambda: read_coco(folder, files, categories, fractions, split_seed),
        batch_size,
        eval_batch_size,
        augment,
        cache,
        workers,
        timeout,
    )


class Json:
    """One file, whose parts are checked as they are asked for: a DataError names the part."""

    def __init__(self, file: Path):
        self.file = file
        try:
            content = file.read_bytes()
            self.digest, self.values = sha256(content).hexdigest(), json.loads(content)
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", key=str(file)) from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"is not JSON ({error})", key=str(file)) from None

    def wrong(self, where: str, problem: str) -> DataError:
        return DataError(problem, key=f"{self.file}: {where}")

    def records(self, key: str) -> list[Any]:
        records = self.values.get(key) if isinstance(self.values, dict) else None
        if not isinstance(records, list):
            raise self.wrong(key, "is absent" if records is None else "is not a list")
        for i, record in enumerate(records):
            if not isinstance(record, dict):
                raise self.wrong(f"{key}[{i}]", "is not an object with keys")
        return records

    def categories(self) -> dict[int, str]:
        """Id -> name, in the order of the ids."""
        found: dict[int, str] = {}
        for i, record in enumerate(self.records("categories")):
            number, name = record.get("id"), record.get("name")
            if type(number) is not int or number in found:
                raise self.wrong(f"categories[{i}].id", "is not a whole number, or one for the second time")
            if not isinstance(name, str) or not name or name in found.values():
                raise self.wrong(f"categories[{i}].name", "is not a name, or one for the second time")
            found[number] = name
        if not found:
            raise self.wrong("categories", "names no class")
        return dict(sorted(found.items()))


def find_files(root: Path, named: Mapping[str, str | None]) -> dict[str, Path]:
    """Each split's file: as named, or annotations/instances_<split>*.json. Raises ConfigError where there is none for training."""
    files = {}
    for split, name in named.items():
        found = [root / name] if name else sorted((root / "annotations").glob(f"instances_{split}*.json"))
        if name and not found[0].is_file():
            raise ConfigError("no such file in data.root", key=f"data.{split}", value=name, cure=f"a file below {root}, or null")
        if len(found) > 1:
            cure = f"name one, such as data.{split}={found[-1].relative_to(root)}"
            raise ConfigError(f"there are {', '.join(file.name for file in found)}", key=f"data.{split}", cure=cure)
        if found:
            files[split] = found[0]
    if "train" not in files:
        problem = "holds no annotations/instances_train*.json" if root.is_dir() else "no such folder"
        raise ConfigError(problem, key="data.root", value=root, cure="the folder that holds annotations; data.train names another file")
    return files


def read_coco(root: Path, files: Mapping[str, Path], categories: dict[int, str], fractions: Mapping[str, float], seed: int) -> Splits:
    """The splits that have a file, and the others cut from training. Raises DataError, naming what is absent or malformed."""
    given, dropped, checksums = {}, Dropped(str(root)), {}
    for split, file in files.items():
        source = Json(file)
        if source.categories() != categories:
            raise source.wrong("categories", f"are not those of the other files: {', '.join(categories.values())}")
        given[split] = read_scenes(source, split, root, list(categories), dropped)
        checksums[os.path.relpath(file, root)] = source.digest
    dropped.tell()
    splits = cut(root, given, fractions, seed)
    pictures = {scene.picture for scenes in splits.values() for scene in scenes}
    return Splits(splits["train"], splits["val"], splits["test"], {**checksums, **listed(root, pictures)})


def read_scenes(source: Json, split: str, root: Path, categories: list[int], dropped: Dropped) -> list[Scene]:
    """The pictures that a file lists, in its order."""
    import numpy as np

    images: dict[int, dict[str, Any]] = {}
    for i, image in enumerate(source.records("images")):
        number, name = image.get("id"), image.get("file_name")
        if type(number) is not int or number in images:
            raise source.wrong(f"images[{i}].id", "is not a whole number, or one for the second time")
        if not isinstance(name, str) or os.path.isabs(name) or os.path.normpath(name).startswith(".."):
            raise source.wrong(f"images[{i}].file_name", "is not a path below the folder of pictures")
        images[number] = image
    label_of = {number: label for label, number in enumerate(categories)}
    boxes: dict[int, list[list[float]]] = {number: [] for number in images}
    labels: dict[int, list[int]] = {number: [] for number in images}
    for i, thing in enumerate(source.records("annotations")):
        box, number, category = thing.get("bbox"), thing.get("image_id"), thing.get("category_id")
        if not isinstance(box, list) or len(box) != 4 or not all(map(_fits, box)):
            raise source.wrong(f"annotations[{i}].bbox", "is not x y w h")
        if type(number) is not int:
            raise source.wrong(f"annotations[{i}].image_id", "is not a whole number")
        if type(category) is not int or category not in label_of:
            raise source.wrong(f"annotations[{i}].category_id", "is none of the categories' ids")
        if thing.get("iscrowd"):
            dropped.add("crowds", source.file)
        elif number not in images:
            dropped.add("of pictures not listed", source.file)
        else:
            boxes[number].append(box)
            labels[number].append(label_of[category])
    folder = _folder(source, split, root, [image["file_name"] for image in images.values()])
    scenes = []
    for number, image in images.items():
        width, height, picture = image.get("width"), image.get("height"), folder / image["file_name"]
        if type(width) is not int or type(height) is not int or not (0 < width < 2**31 and 0 < height < 2**31):
            width, height = picture_size(picture)
        edges = np.array(boxes[number], np.float64).reshape(-1, 4)
        edges[:, 2:] += edges[:, :2]
        scenes.append(Scene(picture, *sound_boxes(edges, np.array(labels[number], np.int64), width, height, source.file, dropped)))
    return scenes


def _fits(value: object) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def _folder(source: Json, split: str, root: Path, names: list[str]) -> Path:
    """Where the pictures lie: for instances_val2017.json in val2017, in val, below images or not; or beside the file; or in the root."""
    tails = dict.fromkeys([source.file.stem.removeprefix("instances_"), split])
    folders = [*(root / tail for tail in tails), *(root / "images" / tail for tail in tails), root / "images", source.file.parent, root]
    for folder in folders:
        if folder.is_dir() and any((folder / name).is_file() for name in names):
            refuse([folder / name for name in names if not (folder / name).is_file()], len(names), "pictures")
            return folder
    if not names:
        return root
    cure = f"the pictures lie in one of {', '.join(dict.fromkeys(os.path.relpath(folder, root) for folder in folders[:-1]))}"
    raise DataError(f"and {len(names) - 1} more pictures are in no folder of {root}", key=names[0], cure=cure)
