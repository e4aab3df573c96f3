"""Scenes of one or two coloured shapes, the words for them, and their pictures: what every picture shows is known.

    a small red circle on the left          a large blue square above a green triangle

What is said is all there is to know: who names no size means a medium one, who names no place means the middle. "a red circle left of a
blue square" and "a blue square right of a red circle" are two captions of one scene. Free of numpy and Pillow until one is drawn.
"""

from __future__ import annotations

import re
from itertools import permutations, product
from typing import TYPE_CHECKING, NamedTuple

from refresher_runner.data.drawing import cover_of, outline
from refresher_runner.errors import UsageError

if TYPE_CHECKING:
    from numpy.random import RandomState
    from numpy.typing import NDArray

SIZES = {"small": 0.12, "medium": 0.17, "large": 0.23}  # radius of the circle around a shape, in sides of the picture
COLOURS = {
    "red": (215, 45, 45),
    "green": (45, 175, 70),
    "blue": (60, 95, 230),
    "yellow": (230, 210, 50),
    "purple": (160, 65, 200),
    "white": (235, 235, 235),
}
SHAPES = "circle", "square", "triangle", "cross"
TURNS = {"circle": 0, "square": 45, "triangle": -90, "cross": 0}  # degrees that set an outline upright
PLACES = {"in the middle": (0, 0), "on the left": (-1, 0), "on the right": (1, 0), "at the top": (0, -1), "at the bottom": (0, 1)}
RELATIONS = {"left of": (1, 0), "right of": (-1, 0), "above": (0, 1), "below": (0, -1)}  # the way from the first thing to the other
UNSAID = "medium", "in the middle"


class Thing(NamedTuple):
    """A shape of one colour and size."""

    size: str
    colour: str
    shape: str


class Scene(NamedTuple):
    """A thing at one of PLACES, or in one of RELATIONS to an `other`."""

    thing: Thing
    where: str
    other: Thing | None = None


_WHERE = (*PLACES, *RELATIONS)
ASPECTS = (
    *(("size", tuple(SIZES)), ("colour", tuple(COLOURS)), ("shape", SHAPES), ("where", _WHERE)),
    *(("other size", tuple(SIZES)), ("other colour", tuple(COLOURS)), ("other shape", SHAPES)),
)  # of a scene, by name, with the values of each


# -------------------------------------------------------------------- words


def caption(scene: Scene) -> str:
    """What is said of a scene."""
    said = [*_named(scene.thing), scene.where, *(_named(scene.other) if scene.other else ())]
    return " ".join(word for word in said if word not in UNSAID)


def _named(thing: Thing) -> tuple[str, ...]:
    return "a", *thing


def parse(text: str) -> Scene:
    """The inverse of `caption`. Raises UsageError where a text is none."""
    found = _GRAMMAR.fullmatch(" ".join(text.lower().split()))
    if found is None:
        problem = f"{text!r} is no caption of shapes"
        raise UsageError(problem, cure="say it like 'a small red circle on the left' or 'a red circle above a large blue square'")
    size, colour, shape, place, relation, other_size, *other = found.groups()
    thing = Thing(size or UNSAID[0], colour, shape)
    return Scene(thing, relation, Thing(other_size or UNSAID[0], *other)) if relation else Scene(thing, place or UNSAID[1])


def _any(words: object) -> str:
    return f"({'|'.join(words)})"  # type: ignore[arg-type]


_THING = f"an? (?:{_any(SIZES)} )?{_any(COLOURS)} {_any(SHAPES)}"
_GRAMMAR = re.compile(f"{_THING}(?: {_any(PLACES)}| {_any(RELATIONS)} {_THING})?")


def turned(scene: Scene) -> Scene:
    """The same scene, told from the other thing."""
    if scene.other is None:
        return scene
    x, y = RELATIONS[scene.where]
    return Scene(scene.other, next(word for word, way in RELATIONS.items() if way == (-x, -y)), scene.thing)


def truth(scene: Scene) -> list[int]:
    """The value of each of ASPECTS, -1 for those of an other thing that is not there."""
    said = [*scene.thing, scene.where, *(scene.other or (None,) * 3)]
    return [values.index(word) if word else -1 for (_, values), word in zip(ASPECTS, said, strict=True)]


def things() -> list[Thing]:
    """All there are."""
    return [Thing(*words) for words in product(SIZES, COLOURS, SHAPES)]


def alone() -> list[Scene]:
    """All scenes of one thing."""
    return [Scene(thing, place) for thing, place in product(things(), PLACES)]


def pairs() -> list[Scene]:
    """All scenes of two things that differ, each told in one of its two ways."""
    return [Scene(one, where, other) for (one, other), where in product(permutations(things(), 2), ("left of", "above"))]


# -------------------------------------------------------------------- pictures


def draw(scene: Scene, size: int, random: RandomState) -> NDArray:
    """Pixels (3, S, S) uint8: the scene on a dark ground; where exactly, how exactly coloured, and the noise are drawn at random."""
    import numpy as np

    canvas = np.full((3, size, size), random.uniform(15, 55), np.float32)
    canvas += random.uniform(-8, 8, (3, 1, 1)).astype(np.float32)
    shapes = [thing for thing in (scene.thing, scene.other) if thing]
    radii = [SIZES[thing.size] * random.uniform(0.95, 1.05) for thing in shapes]
    for thing, radius, centre in zip(shapes, radii, _centres(scene, radii, random), strict=True):
        turn = np.exp(1j * np.deg2rad(TURNS[thing.shape] + random.uniform(-8, 8)))
        cover = cover_of([loop * (turn * radius * size) + centre * size for loop in outline(thing.shape, 0.3)], size)
        assert cover is not None, "a thing lies inside its picture"
        colour = np.array(COLOURS[thing.colour]) + random.uniform(-15, 15, 3)
        under = canvas[:, cover.where[0], cover.where[1]]
        under += cover.share * (colour.astype(np.float32)[:, None, None] - under)
    canvas += random.uniform(-7, 7, canvas.shape)
    return np.rint(canvas).clip(0, 255).astype(np.uint8)


def _centres(scene: Scene, radii: list[float], random: RandomState) -> list[complex]:
    """Where the things are, in sides of the picture: wholly inside, apart, and farther the way they are said to lie than across it."""
    if scene.other is None:
        (radius,) = radii
        far, near = random.uniform(radius, max(radius, 0.3)), random.uniform(0.44, 0.56, 2)
        x, y = (centre if not way else far if way < 0 else 1 - far for centre, way in zip(near, PLACES[scene.where], strict=True))
        return [complex(x, y)]
    (first, second), (x, y) = radii, RELATIONS[scene.where]
    gap = random.uniform(min(first + second + 0.04, 1 - first - second), 1 - first - second)  # between centres, along the way
    begin = random.uniform(first, 1 - second - gap)
    aside = random.uniform(-0.4, 0.4) * gap
    across = random.uniform(max(first, second - aside), min(1 - first, 1 - second - aside))
    start, end = complex(begin, across), complex(begin + gap, across + aside)
    if x + y < 0:  # against the axis: seen in a mirror
        start, end = complex(1 - start.real, start.imag), complex(1 - end.real, end.imag)
    return [start, end] if x else [complex(start.imag, start.real), complex(end.imag, end.real)]
