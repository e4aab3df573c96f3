"""PASCAL VOC, and sets of one's own in its layout: `JPEGImages/*`, `Annotations/*.xml`, `ImageSets/Main/{train,val,test}.txt`.

Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", 2010. https://doi.org/10.1007/s11263-009-0275-4

VOC writes a box as its first and last pixel, counted from 1. Taking 1 from xmin and ymin makes x1 y1 x2 y2 edges of pixels: a box
around all of a picture is 0 0 W H. A box whose corners share a column or a row would be a pixel thick; drawn by hand it is a slip
of the mouse, and counts as one without area. Coordinates are those of the picture turned as its camera says.
"""

from __future__ import annotations

import http.client
import logging
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple
from xml.etree import ElementTree

from refresher_runner.data.detection import Augment, DetectionSet, Dropped, Scene, Splits, sound_boxes
from refresher_runner.data.images import stratified
from refresher_runner.errors import ConfigError, DataError
from refresher_runner.pictures import SUFFIXES
from refresher_runner.registry import DATASETS
from refresher_runner.schema import Fraction, NonNegative, Positive, Share
from refresher_runner.spec import DataModule, DetectionSpec

VOC = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep sofa train tvmonitor"
)
CLASSES = tuple(VOC.split())


@DATASETS.register("voc")
def build_voc(
    *,
    root: str,
    year: Literal[2007, 2012],
    difficult: bool,
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
    """PASCAL VOC: photographs with boxes around 20 kinds of things; 9,963 of 2007, 11,540 of 2012 (Everingham et al. 2010)."""
    augment = Augment(mosaic, flip, flip_vertical, scale, translate, colour)
    return DetectionSet(
        DetectionSpec(3, size, CLASSES),
        lambda: read_voc(Path(root), year, difficult, test_fraction, split_seed),
        batch_size,
        eval_batch_size,
        augment,
        cache,
        workers,
        timeout,
    )


@DATASETS.register("voc_folder")
def build_voc_folder(
    *,
    root: str,
    difficult: bool,
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
    """Your own pictures with boxes, in the layout of PASCAL VOC."""
    folder, fractions = Path(root), {"test": test_fraction, "val": val_fraction}
    classes = class_names(folder)
    augment = Augment(mosaic, flip, flip_vertical, scale, translate, colour)
    return DetectionSet(
        DetectionSpec(3, size, classes),
        lambda: read_folder(folder, classes, difficult, fractions, split_seed),
        batch_size,
        eval_batch_size,
        augment,
        cache,
        workers,
        timeout,
    )


class Marked(NamedTuple):
    """An object as an annotation has it: xmin ymin xmax ymax are numbers as written."""

    name: str
    corners: tuple[float, ...]
    difficult: bool


class Annotation(NamedTuple):
    """What a file says of its picture: (width, height), where it does, and the objects."""

    size: tuple[int, int] | None
    objects: list[Marked]


class _NoDoctype(ElementTree.TreeBuilder):
    """Entities, which can swell a small file to gigabytes, need a DOCTYPE; no annotation does."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it has a DOCTYPE")


def read_annotation(file: Path, content: bytes) -> Annotation:
    """Raises DataError, naming the file, on what is not an annotation."""
    try:
        tree: Any = ElementTree.fromstring(content, ElementTree.XMLParser(target=_NoDoctype()))
        if tree.tag != "annotation":
            raise ValueError(f"it is <{tree.tag}>, not <annotation>")
        objects = []
        for node in tree.iterfind("object"):
            name, box = node.findtext("name", "").strip(), node.find("bndbox")
            if not name or box is None:
                raise ValueError(f"object {len(objects) + 1} has no {'bndbox' if name else 'name'}")
            corners = tuple(_number(box.findtext(tag, "")) for tag in ("xmin", "ymin", "xmax", "ymax"))
            objects.append(Marked(name, corners, node.findtext("difficult", "").strip() == "1"))
        sides = [tree.findtext(f"size/{side}", "").strip() for side in ("width", "height")]
        return Annotation((int(sides[0]), int(sides[1])) if all(map(str.isdecimal, sides)) else None, objects)
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise DataError(f"is not a sound annotation: {error}", key=str(file)) from None


def class_names(root: Path) -> tuple[str, ...]:
    """All names in the annotations, sorted."""
    files = _annotations(root)
    if not files or not (root / "JPEGImages").is_dir():
        problem = "holds no Annotations/*.xml" if root.is_dir() and not files else "holds no JPEGImages" if files else "no such folder"
        raise ConfigError(problem, key="data.root", value=root, cure="the folder that holds JPEGImages and Annotations, as VOC2007 does")
    names = {thing.name for file in files for thing in read_annotation(file, _content(file)).objects}
    if not names:
        raise DataError("no annotation holds an object", key=str(root / "Annotations"))
    return tuple(sorted(names))


def read_folder(root: Path, classes: Sequence[str], difficult: bool, fractions: Mapping[str, float], seed: int) -> Splits:
    """The splits that have a list, and the others cut from training, which without one is whatever no other list names."""
    lists = {split: _names(root, split) for split in ("train", "val", "test")}
    given = {split: names for split, names in lists.items() if names is not None}
    if "train" not in given:
        others = {name for names in given.values() for name in names}
        pool = _names(root, "trainval") or [file.stem for file in _annotations(root)]
        given["train"] = [name for name in pool if name not in others]
    return read_lists(root, cut(root, given, fractions, seed), classes, difficult)


def read_voc(root: Path, year: int, difficult: bool, test_fraction: float, seed: int) -> Splits:
    """The official lists. The test of 2012 was never published: a share of that year's validation pictures takes its place."""
    fetch_voc(root, year)
    folder = root / "VOCdevkit" / f"VOC{year}"
    given = {split: _names(folder, split) or [] for split in ("train", "val", "test")[: 3 if year == 2007 else 2]}
    if year == 2012:
        rest, taken = stratified([0] * len(given["val"]), test_fraction, seed)
        given["val"], given["test"] = [given["val"][i] for i in rest], [given["val"][i] for i in taken]
    return read_lists(folder, cut(folder, given, {}, seed), CLASSES, difficult)


def fetch_voc(root: Path, year: int) -> None:
    """Have `root/VOCdevkit`, unpacked by torchvision from archives that it downloads and verifies. Nobody is asked if it is whole."""
    from filelock import FileLock

    folder = root / "VOCdevkit" / f"VOC{year}"
    archives = {"trainval": ("train", "val")} | ({"test": ("test",)} if year == 2007 else {})
    for archive, splits in archives.items():
        if _whole(folder, splits):
            continue
        where = ""
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / f"VOC{year}.lock"):
                if _whole(folder, splits):  # somebody was quicker
                    continue
                from torchvision.datasets import voc  # takes seconds to import

                published = voc.DATASET_YEAR_DICT[f"{year}-test" if archive == "test" else str(year)]
                where = f"download {published['url']} to {root / published['filename']}, or "
                logging.getLogger(__name__).info("downloading %s to %s", published["url"], root)
                voc.VOCDetection(str(root), year=str(year), image_set=archive, download=True)
        except (OSError, RuntimeError, http.client.HTTPException, tarfile.TarError) as error:
            cure = f"{where}set data.root to the folder that has VOCdevkit/VOC{year}"
            problem = f"has not all pictures of {' and '.join(splits)}, and they cannot be downloaded ({error})"
            raise DataError(problem, key=str(folder), cure=cure) from None


def read_lists(root: Path, lists: Mapping[str, list[str]], classes: Sequence[str], difficult: bool) -> Splits:
    """The pictures and annotations of every split. Raises DataError, naming what is absent or damaged."""
    import numpy as np

    names = sorted({name for split in lists.values() for name in split})
    found, label_of = _pictures(root), {name: label for label, name in enumerate(classes)}
    refuse([root / "JPEGImages" / f"{name}.jpg" for name in names if name not in found], len(names), "pictures")
    refuse([file for name in names if not (file := _annotation(root, name)).is_file()], len(names), "annotations")
    scenes, dropped, resized, digest = {}, Dropped(str(root)), [], sha256()
    for name in names:
        picture, file = found[name], _annotation(root, name)
        content = _content(file)
        digest.update(content)
        size, objects = read_annotation(file, content)
        objects = [thing for thing in objects if difficult or not thing.difficult]
        boxes = np.array([thing.corners for thing in objects], np.float64).reshape(-1, 4)
        boxes[(boxes[:, 2:] > boxes[:, :2]).all(1), :2] -= 1  # from the first pixel to its edge; slips of the mouse stay without area
        for thing in objects:
            if thing.name not in label_of:
                raise DataError(f"'{thing.name}' is none of the {len(classes)} classes", key=str(file))
        labels = np.array([label_of[thing.name] for thing in objects], np.int64)
        width, height = picture_size(picture)
        if size is not None and size != (width, height):
            resized.append(file)
        scenes[name] = Scene(picture, *sound_boxes(boxes, labels, width, height, file, dropped))
    if resized:
        told = "%s: %d annotations tell another size than their pictures have, the first of them %s; their boxes are used as they are"
        logging.getLogger(__name__).warning(told, root, len(resized), resized[0])
    dropped.tell()
    checksums = {"annotations": digest.hexdigest(), **listed(root, (found[name] for name in names))}
    train, val, test = ([scenes[name] for name in lists[split]] for split in ("train", "val", "test"))
    return Splits(train, val, test, checksums)


def cut(root: Path, given: Mapping[str, list[Any]], fractions: Mapping[str, float], seed: int) -> dict[str, list[Any]]:
    """Pictures of every split: as given, or else cut from the training pictures by `seed`. Raises DataError on one without any."""
    splits, rest = dict(given), given["train"]
    for split, fraction in fractions.items():
        if split not in splits:
            kept, taken = stratified([0] * len(rest), fraction, seed) if rest else ((), ())
            splits[split], rest = [rest[i] for i in taken], [rest[i] for i in kept]
    splits["train"] = rest
    for split, pictures in splits.items():
        if not pictures:
            raise DataError(f"has no pictures for a {split} split", key=str(root), cure="each split needs a picture or more")
    return splits


def refuse(absent: Sequence[Path], count: int, what: str) -> None:
    """Raises DataError, naming the first of the files that are absent, if there are any."""
    if absent:
        raise DataError(f"is not there: {len(absent)} of {count} {what} are absent", key=str(absent[0]))


def picture_size(file: Path) -> tuple[int, int]:
    """(width, height) of a picture turned as its camera says, from the head of its file. Raises DataError, naming it."""
    from PIL import Image

    try:
        with Image.open(file) as picture:
            if picture.format == "TIFF":
                picture.load()  # turns it: not every Pillow does so before
            width, height = picture.size
            turned = Image.Image.getexif(picture).get(0x0112) in (5, 6, 7, 8)  # the class's own would decode the pixels of a PNG
            return (height, width) if turned else (width, height)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"not a readable picture ({error})", key=str(file)) from None


def listed(root: Path, pictures: Iterable[Path]) -> dict[str, str]:
    """One digest of all names and sizes: to read every picture would take as long as an epoch."""
    names = {file.relative_to(root) if file.is_relative_to(root) else file: file for file in pictures}
    listing = "".join(f"{name.as_posix()} {file.stat().st_size}\n" for name, file in sorted(names.items()))
    return {"names and sizes of the pictures": sha256(listing.encode()).hexdigest()}


def _names(root: Path, split: str) -> list[str] | None:
    """The names in a split's list; None where there is no list."""
    file = root / "ImageSets" / "Main" / f"{split}.txt"
    if not file.is_file():
        return None
    try:
        lines = _content(file).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"is not a list of names ({error})", key=str(file)) from None
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def _pictures(root: Path) -> dict[str, Path]:
    """Every picture by its name, which is that of the file without its end."""
    pictures: dict[str, Path] = {}
    for file in sorted((root / "JPEGImages").iterdir()):
        if file.suffix.lower() in SUFFIXES and file.name[0] != ".":
            if file.stem in pictures:
                raise DataError(f"and {pictures[file.stem].name} have one name, which must be one picture's", key=str(file))
            pictures[file.stem] = file
    return pictures


def _annotations(root: Path) -> list[Path]:
    return sorted(file for file in (root / "Annotations").glob("*.xml") if file.name[0] != ".")


def _annotation(root: Path, name: str) -> Path:
    return root / "Annotations" / f"{name}.xml"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"'{text.strip()}' is not a pixel's number") from None


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", key=str(file)) from None


def _whole(folder: Path, splits: Iterable[str]) -> bool:
    """Whether every picture that the lists of these splits name is there with its annotation."""
    lists = [_names(folder, split) for split in splits]
    if not all(lists) or not (folder / "JPEGImages").is_dir():
        return False
    pictures, annotations = _pictures(folder), {file.stem for file in _annotations(folder)}
    return all(name in pictures and name in annotations for names in lists if names for name in names)
