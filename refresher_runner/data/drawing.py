"""Pictures of circles, squares, triangles, stars, crosses and rings, among clutter and noise, and the box around each.

A picture is a function of (split_seed, split, index, level, size) alone. Free of numpy and Pillow until one is drawn.

Points of the plane are complex numbers, x + iy, in pixels from the upper left corner.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from refresher_runner.errors import ConfigError

if TYPE_CHECKING:
    from numpy.random import RandomState
    from numpy.typing import NDArray

    Loop = NDArray[Any]  # complex: the corners of a polygon

CLASSES = ("circle", "square", "triangle", "star", "cross", "ring")
FINE = 4  # pixels are drawn so many times finer, each way
LEAST_RADIUS = 5  # pixels: a star that a person still tells from a circle
TRIES = 8  # at a place for each shape
ROUND = 64  # corners of what is round
SHADES = (1.0, 1.0), (1.0, 0.5), (0.5, 1.0), (0.5, 0.6)  # saturation and value of the colours: vivid, dark, pale, dull
CHOICE = 8  # colours of which the one that stands out most is taken


class Level(NamedTuple):
    """How hard the pictures are."""

    most: int  # shapes in a picture, at least one
    radius: tuple[float, float]  # of the circle around a shape, in sides of the picture
    hidden: float  # share of a shape that others and the picture's edge may hide
    clutter: int  # lines and blobs behind the shapes, at most
    noise: float  # standard deviation, in grey levels


LEVELS = {
    "easy": Level(most=3, radius=(0.12, 0.22), hidden=0.05, clutter=0, noise=2.0),
    "medium": Level(most=6, radius=(0.08, 0.2), hidden=0.25, clutter=4, noise=6.0),
    "hard": Level(most=12, radius=(0.05, 0.18), hidden=0.4, clutter=10, noise=14.0),
}


# ---------------------------------------------------------------- a picture


class Drawn(NamedTuple):
    """The scenes of all splits, one after the other: of N pictures the number of shapes (N,) int64; of all M shapes the labels (M,)
    int64 and boxes (M, 4) float32; the pixels (N, S, S, 3) uint8.
    """

    counts: NDArray
    labels: NDArray
    boxes: NDArray
    pixels: NDArray


def draw_all(level: Level, counts: tuple[int, int, int], split_seed: int, size: int) -> Drawn:
    """Picture `index` of each split by draws of its own, from the one generator that numpy has frozen for good."""
    import numpy as np

    try:
        pixels = np.empty((sum(counts), size, size, 3), np.uint8)
    except (MemoryError, ValueError):
        raise ConfigError("more pictures than memory can hold", key="data.train_count", value=counts[0]) from None
    random, boxes, labels = np.random.RandomState(0), [], []
    places = ((split, index) for split, count in enumerate(counts) for index in range(count))
    for picture, place in zip(pixels, places, strict=True):
        random.seed([split_seed & 0xFFFFFFFF, split_seed >> 32, *place])
        picture[:], *found = draw(level, size, random)
        boxes.append(found[0])
        labels.append(found[1])
    return Drawn(np.array([len(some) for some in labels]), np.concatenate(labels), np.concatenate(boxes), pixels)


def draw(level: Level, size: int, random: RandomState) -> tuple[NDArray, NDArray, NDArray]:
    """Pixels (S, S, 3) uint8, boxes (n, 4) float32, labels (n,) int64: a background, clutter, shapes from back to front, noise.

    A box is that of the whole shape, as far as it lies inside the picture, whatever is drawn over it. Where a shape would hide too
    much of another, or would itself be too little inside, it is tried elsewhere, and in the end not drawn.
    """
    import numpy as np

    canvas, colours = _background(size, random)
    for _ in range(random.randint(level.clutter + 1)):
        loop = _blob(random) if random.random_sample() < 0.5 else _line(random)
        cover = cover_of(_placed([loop], random.uniform(0.06, 0.25) * size, 0, size, random), size)
        if cover:
            colours.append(_colour(colours, random))
            _paint(canvas, cover, colours[-1][:, None, None], opacity=random.uniform(0.4, 0.9))
    stack, boxes, labels = Stack(size, level), [], []
    wanted = random.randint(1, level.most + 1)
    smallest, largest = (max(LEAST_RADIUS, share * size) for share in level.radius)
    for _ in range(TRIES * wanted):
        label, radius = random.randint(len(CLASSES)), random.uniform(smallest, largest)
        loops = _placed(outline(CLASSES[label], random.random_sample()), radius, radius * (1 - level.hidden), size, random)
        cover = cover_of(loops, size)
        if cover and stack.add(cover, area(loops)):
            colours.append(_colour(colours, random))
            _paint(canvas, cover, _shaded(colours[-1], cover, random))
            boxes.append(cover.box)
            labels.append(label)
            if len(labels) == wanted:
                break
    grain = np.frombuffer(random.bytes(canvas.size), np.uint8).reshape(canvas.shape)
    canvas += _grains(level.noise).take(grain)
    np.clip(canvas, 0, 255, out=canvas)
    pixels = np.stack([*np.rint(canvas, out=canvas).astype(np.uint8)], axis=-1)
    return pixels, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64)


class Stack:
    """Which shape is seen at each pixel. No more of a shape than the level allows is hidden, by later ones or the picture's edge."""

    def __init__(self, size: int, level: Level):
        import numpy as np

        self.hidden = level.hidden
        self.front = np.zeros((size, size), np.uint8)  # 0 the background, n the n-th shape
        self.needed, self.seen = np.zeros((2, level.most + 1))  # pixels of each
        self.count = 0

    def add(self, cover: Cover, whole: float) -> bool:
        """A shape of `whole` pixels, of which `cover` lies inside the picture, on top of the others; False where it may not be."""
        import numpy as np

        number, inside = self.count + 1, cover.share >= 0.5
        self.needed[number], self.seen[number] = (1 - self.hidden) * whole, inside.sum()
        seen = self.seen - np.bincount(self.front[cover.where][inside], minlength=len(self.seen))
        if (seen < self.needed)[1:].any():
            self.needed[number] = self.seen[number] = 0
            return False
        self.front[cover.where][inside], self.seen, self.count = number, seen, number
        return True


# ---------------------------------------------------------------- outlines


def outline(kind: str, form: float) -> list[Loop]:
    """The loops around a shape of radius 1 about 0, the second a hole; `form` in [0, 1) is how slender its parts are."""
    import numpy as np

    if kind == "cross":
        arm = complex(1, 0.38 - 0.12 * form)  # a corner of the arm to the right
        corners = np.array([arm.conjugate(), arm, complex(arm.imag, arm.imag)]) / abs(arm)
        return [(np.array([[1], [1j], [-1], [-1j]]) * corners).reshape(-1)]
    count = {"square": 4, "triangle": 3, "star": 10}.get(kind, ROUND)
    corners = np.exp(2j * np.pi * np.arange(count) / count)
    if kind == "star":
        corners[1::2] *= 0.5 - 0.12 * form
    return [corners, (0.45 + 0.2 * form) * corners] if kind == "ring" else [corners]


def area(loops: list[Loop]) -> float:
    """Of the first loop less the others."""
    first, *holes = (abs(((loop[:-1].conj() * loop[1:]).sum() + loop[-1].conj() * loop[0]).imag) / 2 for loop in loops)
    return first - sum(holes)


def _line(random: RandomState) -> Loop:
    """A stroke of length 2 about 0."""
    import numpy as np

    thick = random.uniform(0.02, 0.07)
    return np.array([complex(1, thick), complex(1, -thick), complex(-1, -thick), complex(-1, thick)])


def _blob(random: RandomState) -> Loop:
    """A long lump about 0 that is like no class."""
    import numpy as np

    angle = 2 * np.pi * np.arange(ROUND // 2) / (ROUND // 2)
    radius = np.ones_like(angle)
    for waves in (2, 3, 5):
        radius += random.uniform(0.08, 0.2) * np.cos(waves * angle + random.uniform(0, 2 * np.pi))
    return radius * (np.cos(angle) + random.uniform(0.3, 0.5) * 1j * np.sin(angle))


def _placed(loops: list[Loop], radius: float, margin: float, size: int, random: RandomState) -> list[Loop]:
    """Turned at random, of this radius, about a point that is `margin` inside the picture or more."""
    import numpy as np

    turn, centre = np.exp(1j * random.uniform(0, 2 * np.pi)), complex(*random.uniform(margin, size - margin, 2))
    return [loop * (turn * radius) + centre for loop in loops]


class Cover(NamedTuple):
    """Where a shape is: rows and columns of the picture, what share of each pixel there it covers (h, w), and its box."""

    where: tuple[slice, slice]
    share: NDArray
    box: tuple[float, float, float, float]


def cover_of(loops: list[Loop], size: int) -> Cover | None:
    """What the loops enclose in a picture, measured on a grid FINE times finer; None where that is nothing."""
    import numpy as np
    from PIL import Image, ImageDraw

    outer = loops[0]
    left, top = (max(0, math.floor(part.min())) for part in (np.real(outer), np.imag(outer)))
    right, bottom = (min(size, math.ceil(part.max())) for part in (np.real(outer), np.imag(outer)))
    if left >= right or top >= bottom:
        return None
    fine = Image.new("L", ((right - left) * FINE, (bottom - top) * FINE))
    pen = ImageDraw.Draw(fine)
    for loop, fill in zip(loops, (255, 0), strict=False):
        corners = (loop - complex(left, top)) * FINE - (0.5 + 0.5j)  # Pillow's whole numbers are the middles of pixels
        pen.polygon(corners.view(np.float64).round().tolist(), fill=fill)
    box = fine.getbbox()
    if box is None:
        return None
    share = np.asarray(fine.reduce(FINE), np.float32) / 255
    x1, y1, x2, y2 = (side / FINE for side in box)
    return Cover((slice(top, bottom), slice(left, right)), share, (left + x1, top + y1, left + x2, top + y2))


# ---------------------------------------------------------------- colours


def _background(size: int, random: RandomState) -> tuple[NDArray, list[NDArray]]:
    """A gradient (3, S, S), and the colours at its ends."""
    import numpy as np

    ends = random.uniform(15, 240) + random.uniform(-60, 60, (2, 3))
    along = random.uniform(-1, 1, (2, 1))
    across, down = (along / abs(along).sum() * (ends[1] - ends[0])).astype(np.float32)[:, :, None]  # each (3, 1): of a whole side
    place = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    return (down * place)[:, :, None] + (across * place + ends.mean(0).astype(np.float32)[:, None])[:, None], [*ends]


@cache
def _palette() -> NDArray:
    """The colours (n, 3) of what is drawn: 32 hues, each vivid, dark, pale and dull."""
    import numpy as np

    hue = np.arange(32)[:, None] / 32
    pure = (abs((6 * hue + np.array([0, 4, 2])) % 6 - 3) - 1).clip(0, 1)
    return np.concatenate([255 * value * (1 - saturation * (1 - pure)) for saturation, value in SHADES])


def _colour(known: list[NDArray], random: RandomState) -> NDArray:
    """Of some colours, the one that is least like those that are there already."""
    import numpy as np

    some = _palette()[random.randint(len(_palette()), size=CHOICE)]
    return some[abs(some[:, None] - np.array(known)).sum(2).min(1).argmax()]


def _shaded(colour: NDArray, cover: Cover, random: RandomState) -> NDArray:
    """The colour (3, h, w), lighter to one side and darker to the other."""
    import numpy as np

    down, across = (slope * (np.arange(n) / n - 0.5) for slope, n in zip(random.uniform(-0.25, 0.25, 2), cover.share.shape, strict=True))
    return (1 + across + down[:, None]) * colour[:, None, None]


def _paint(canvas: NDArray, cover: Cover, colour: NDArray, opacity: float = 1.0) -> None:
    under = canvas[:, cover.where[0], cover.where[1]]
    under += opacity * cover.share * (colour - under)


@cache
def _grains(deviation: float) -> NDArray:
    """A triangular distribution of noise for the 256 values of a byte, whose halves are two dice of 16 sides."""
    import numpy as np

    byte = np.arange(256)
    return ((byte % 16 + byte // 16 - 15) * (deviation / math.sqrt(2 * (16**2 - 1) / 12))).astype(np.float32)
