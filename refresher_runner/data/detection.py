"""Pictures with boxes: what a set of them reads, how they are laid into squares, augmented, and made into batches.

Boxes are x1 y1 x2 y2. A picture in its square is C x S x S, with n boxes in pixels of the square. Free of torch, numpy and Pillow
until `prepare`; of torchvision, which takes seconds to import, unless training pictures are augmented.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from refresher_runner.errors import ConfigError
from refresher_runner.pictures import GREY, letterbox, open_picture
from refresher_runner.schema import Fraction
from refresher_runner.spec import DataModule, DetectionBatch, DetectionSpec, Placement

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor
    from torchvision.tv_tensors import BoundingBoxes

    from refresher_runner.data.loaders import FileLoader

    SceneLoader = FileLoader["Square", DetectionBatch]
    Part = tuple[Tensor, Tensor, Tensor]  # boxes (n, 4) as far as they are seen, the areas (n,) they would have whole, labels (n,)

LEAST_SHARE = 0.1  # of a box's area: where augmentation leaves less of it, what is left shows too little to be named
LEAST_SIDE = 2  # pixels: likewise
LUMA = 0.2989, 0.587, 0.114  # of red, green and blue in grey, as torchvision has them


class Scene(NamedTuple):
    """One picture and what is in it: a file, or pixels (H, W, C) uint8; boxes (n, 4) float32 in the picture's own pixels; labels
    (n,) int64.
    """

    picture: Path | NDArray
    boxes: NDArray
    labels: NDArray


class Splits(NamedTuple):
    """What a set holds, and the digests of what was read."""

    train: list[Scene]
    val: list[Scene]
    test: list[Scene]
    checksums: dict[str, str]


class Square(NamedTuple):
    """A picture in its square: pixels (C, S, S) in 0..255, uint8 or float; boxes (n, 4) float32; labels (n,) int64."""

    pixels: Tensor
    boxes: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Augment:
    """What is drawn for each training picture.

    With probability `mosaic` it shares its square with three others; else it is magnified by 1 - scale to 1 + scale and shifted by
    up to `translate` of the square. In a mosaic each is magnified likewise, and cut out where chance has it. Then mirrored, left to
    right and top to bottom; then brightness, contrast and saturation are multiplied by 1 - colour to 1 + colour.
    """

    mosaic: Fraction
    flip: bool
    flip_vertical: bool
    scale: Fraction
    translate: Fraction
    colour: Fraction

    def __bool__(self) -> bool:
        return any(astuple(self))


class Dropped:
    """Annotations of one set that were left out, counted by why, with the first file of each kind."""

    def __init__(self, name: str):
        self.name = name
        self.counts: dict[str, int] = {}
        self.first: dict[str, Path] = {}

    def add(self, why: str, source: Path, count: int = 1) -> None:
        if count:
            self.counts[why] = self.counts.get(why, 0) + count
            self.first.setdefault(why, source)

    def tell(self) -> None:
        """One line to the log, if there is anything to tell."""
        if self.counts:
            kinds = ", ".join(f"{count} {why} (first in {self.first[why]})" for why, count in self.counts.items())
            logging.getLogger(__name__).warning("%s: %d annotations left out: %s", self.name, sum(self.counts.values()), kinds)


def sound_boxes(boxes: NDArray, labels: NDArray, width: float, height: float, source: Path, dropped: Dropped) -> tuple[NDArray, NDArray]:
    """Boxes (n, 4) clipped to their picture, and their labels, without those that are no numbers or have no area in it."""
    import numpy as np

    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and told as no number
        boxes, labels = np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(labels, np.int64).reshape(-1)
    inside = boxes.clip(0, np.array([width, height] * 2, np.float32))
    finite = np.isfinite(boxes).all(1)
    solid, seen = ((box[:, :2] < box[:, 2:]).all(1) for box in (boxes, inside))
    for why, bad in (
        ("not a number", ~finite),
        ("zero area", finite & ~solid),
        ("outside the picture", finite & solid & ~seen),
    ):
        dropped.add(why, source, int(bad.sum()))
    keep = finite & solid & seen
    return inside[keep], labels[keep]


def lay(scene: Scene, spec: DetectionSpec) -> Square:
    """A scene in its square. Raises DataError naming a file that cannot be read."""
    import torch
    from PIL import Image

    picture = open_picture(scene.picture, spec.channels) if isinstance(scene.picture, Path) else Image.fromarray(scene.picture)
    pixels, how = letterbox(picture, spec.size)
    boxes = how.to_square(torch.tensor(scene.boxes, dtype=torch.float32).view(-1, 4)).clamp_(0, spec.size)
    return Square(pixels, boxes, torch.tensor(scene.labels, dtype=torch.int64))


@dataclass(frozen=True)
class Squares:
    """The pictures of one split, laid out already or when they are asked for, each augmented by draws of its own."""

    spec: DetectionSpec
    items: list[Scene] | list[Square]
    augment: Augment | None = None

    def __call__(self, index: int) -> Square:
        """Raises DataError naming a file that cannot be read."""
        square, augment = self.plain(index), self.augment
        if not augment:
            return square
        if random.random() < augment.mosaic:
            others = [self.plain(random.randrange(len(self.items))) for _ in range(3)]
            square = mosaic([square, *others], augment.scale)
        elif augment.scale or augment.translate:
            square = moved(square, augment.scale, augment.translate)
        square = flipped(square, augment.flip and random.random() < 0.5, augment.flip_vertical and random.random() < 0.5)
        if augment.colour:
            square = square._replace(pixels=coloured(square.pixels, *(_gain(augment.colour) for _ in range(3))))
        return square

    def plain(self, index: int) -> Square:
        item = self.items[index]
        return item if isinstance(item, Square) else lay(item, self.spec)

    def collate(self, squares: list[Square]) -> DetectionBatch:
        import torch

        images = torch.empty(len(squares), self.spec.channels, self.spec.size, self.spec.size)  # a rank's share may be none
        for i, square in enumerate(squares):
            images[i] = square.pixels
        boxes = torch.cat([torch.empty(0, 4), *(square.boxes for square in squares)])
        labels = torch.cat([torch.empty(0, dtype=torch.int64), *(square.labels for square in squares)])
        owners = torch.repeat_interleave(torch.tensor([len(square.labels) for square in squares], dtype=torch.int64))
        return DetectionBatch(images.div_(255), boxes, labels, owners)


@dataclass
class DetectionSet(DataModule[DetectionSpec]):
    """A set that `read` lists, served by `FileLoader`s; with `cache` its pictures are read once and held, 8 bits a value."""

    spec: DetectionSpec
    read: Callable[[], Splits]
    batch_size: int
    eval_batch_size: int
    augment: Augment
    cache: bool
    workers: int | None
    timeout: int
    splits: dict[str, Squares] = field(default_factory=dict, init=False)
    digests: dict[str, str] = field(default_factory=dict, init=False)

    def prepare(self) -> None:
        """Raises DataError naming a file; with `cache` ConfigError where the pictures are too many to be held."""
        if self.splits:
            return
        read = self.read()
        scenes = {"train": read.train, "val": read.val, "test": read.test}
        self.splits = {split: Squares(self.spec, self._held(some) if self.cache else some) for split, some in scenes.items()}
        self.digests = read.checksums

    def checksums(self) -> dict[str, str]:
        return self.digests

    def train_loader(self, placement: Placement) -> SceneLoader:
        if self.augment:
            import torchvision.transforms.v2  # noqa: F401 - here, so that workers need not
        return self._loader("train", self.batch_size, placement, self.augment)

    def val_loader(self, placement: Placement) -> SceneLoader:
        return self._loader("val", self.eval_batch_size, placement)

    def test_loader(self, placement: Placement) -> SceneLoader:
        return self._loader("test", self.eval_batch_size, placement)

    def _loader(self, split: str, batch_size: int, placement: Placement, augment: Augment | None = None) -> SceneLoader:
        from refresher_runner.data.loaders import FileLoader, Order

        assert self.splits, "prepare() comes first"
        squares = replace(self.splits[split], augment=augment)
        order = Order(len(squares.items), batch_size, placement, train=split == "train")
        return FileLoader(squares, squares.collate, order, workers=self.workers, timeout=self.timeout)

    def _held(self, scenes: list[Scene]) -> list[Square]:
        """The scenes in their squares, all pixels in one tensor, which worker processes share."""
        import torch

        shape = len(scenes), self.spec.channels, self.spec.size, self.spec.size
        try:
            held = torch.empty(shape, dtype=torch.uint8)
        except RuntimeError:
            problem = f"{len(scenes)} pictures take {math.prod(shape) / 2**30:.0f} GiB, which cannot be had"
            raise ConfigError(problem, key="data.cache", value=True, cure="data.cache=false, or a smaller data.size") from None
        squares = []
        for pixels, scene in zip(held, scenes, strict=True):
            square = lay(scene, self.spec)
            squares.append(square._replace(pixels=pixels.copy_(square.pixels)))
        return squares


# ---------------------------------------------------------------- augmentation


def mosaic(squares: list[Square], scale: float) -> Square:
    """Four pictures around a random centre (Bochkovskiy et al., 2020, section 3.3), each magnified and cut out at random.

    Drawn at its final size, a quarter at a time: on the usual canvas of twice the size most of what is drawn is cut away again.
    """
    canvas, size = _grey(squares[0]), squares[0].pixels.shape[-1]
    x, y = (round(random.uniform(0.25, 0.75) * size) for _ in range(2))
    quarters = [(across, down) for down in ((0, y), (y, size)) for across in ((0, x), (x, size))]
    parts = []
    for square, quarter in zip(squares, quarters, strict=True):
        gain = _gain(scale)
        begin = [low + random.uniform(0, high - low - gain * size) for low, high in quarter]
        parts.append(_paste(canvas, square, gain, begin, quarter))
    return _drawn(canvas, parts)


def moved(square: Square, scale: float, translate: float) -> Square:
    """Magnified about the middle, then shifted, on grey."""
    canvas, size, gain = _grey(square), square.pixels.shape[-1], _gain(scale)
    begin = [(size - gain * size) / 2 + random.uniform(-translate, translate) * size for _ in range(2)]
    return _drawn(canvas, [_paste(canvas, square, gain, begin, [(0, size)] * 2)])


def flipped(square: Square, across: bool, down: bool) -> Square:
    """Mirrored, left to right and top to bottom."""
    from torchvision.transforms.v2 import functional as F

    pixels, boxes = square.pixels, _boxes(square)
    if across:
        pixels, boxes = F.horizontal_flip(pixels), F.horizontal_flip(boxes)
    if down:
        pixels, boxes = F.vertical_flip(pixels), F.vertical_flip(boxes)
    return Square(pixels, boxes.as_subclass(type(pixels)), square.labels)


def coloured(pixels: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    """Pixels (3, S, S) as v2.ColorJitter's three steps would leave them, float and unrounded.

    But for clipping each is linear, so the three are a multiple of the picture, of its grey and of one constant. Without matrix
    products or sums of floats, whose last bit would depend on the number of threads.
    """
    image = pixels.float()
    red, green, blue = image
    grey = (red * LUMA[0]).add_(green * LUMA[1]).add_(blue * LUMA[2])
    mean = sum(weight * int(channel.sum()) for weight, channel in zip(LUMA, pixels, strict=True)) / grey.numel()
    grey.mul_(brightness * contrast * (1 - saturation)).add_(brightness * (1 - contrast) * mean)
    return image.mul_(brightness * contrast * saturation).add_(grey).clamp_(0, 255)


def _gain(spread: float) -> float:
    return random.uniform(1 - spread, 1 + spread)


def _grey(square: Square) -> Tensor:
    import torch

    return torch.full_like(square.pixels, GREY)


def _boxes(square: Square) -> BoundingBoxes:
    from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

    return BoundingBoxes(square.boxes, format=BoundingBoxFormat.XYXY, canvas_size=square.pixels.shape[-2:])  # type: ignore[call-overload]


def _paste(canvas: Tensor, square: Square, gain: float, begin: list[float], room: Sequence[tuple[int, int]]) -> Part:
    """Draw what falls into the canvas' rectangle `room` of a picture, magnified by `gain` and begun at `begin`, each as (x, y)."""
    from torchvision.transforms.v2 import functional as F

    (left, right, x, x_end), (top, bottom, y, y_end) = (
        _span(gain, b, square.pixels.shape[-1], *ends) for b, ends in zip(begin, room, strict=True)
    )
    if x == x_end or y == y_end:
        return square.boxes[:0], square.boxes[:0, 0], square.labels[:0]
    cut = {"top": top, "left": left, "height": bottom - top, "width": right - left, "size": [y_end - y, x_end - x], "antialias": True}
    canvas[:, y:y_end, x:x_end] = F.resized_crop(square.pixels, **cut)
    boxes = F.resized_crop(_boxes(square), **cut).as_subclass(type(canvas)) + square.boxes.new_tensor([x, y, x, y])
    return boxes, _sides(square.boxes).prod(1) * ((x_end - x) / (right - left) * (y_end - y) / (bottom - top)), square.labels


def _span(gain: float, begin: float, size: int, low: int, high: int) -> tuple[int, int, int, int]:
    """Along one side: which pixels of a picture, and where they come to lie between `low` and `high`, both as (first, end)."""
    first, end = max(low, round(begin)), min(high, round(begin + gain * size))
    if first >= end:
        return 0, 0, low, low
    start = min(max(0, round((first - begin) / gain)), size - 1)
    return start, min(size, max(start + 1, round((end - begin) / gain))), first, end


def _sides(boxes: Tensor) -> Tensor:
    """Widths and heights (n, 2)."""
    return boxes[:, 2:] - boxes[:, :2]


def _drawn(canvas: Tensor, parts: list[Part]) -> Square:
    """The canvas with those of the boxes on it that can still be recognised."""
    import torch

    boxes, wholes, labels = (torch.cat(some) for some in zip(*parts, strict=True))
    sides = _sides(boxes)
    keep = (sides.prod(1) >= LEAST_SHARE * wholes) & (sides.amin(1) >= LEAST_SIDE)
    return Square(canvas, boxes[keep], labels[keep])
