"""What a picture of coloured shapes shows, read by rule: no network that could be as mistaken as the one that drew it.

    pixels less the ground -> what share of each is covered, and by which colour -> connected regions, the two largest of them
    region -> its colour; its area and centre; the shape that, as large and there, covers the same pixels best; where it is

Where shapes merge, fall to pieces or are pale they are read as what they have become: a picture that no caption describes agrees with none.

Letters: B pictures, S pixels of a side, M regions of all pictures together; places and radii in pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from refresher_runner.data.scenes import ASPECTS, COLOURS, PLACES, RELATIONS, SHAPES, SIZES

COVERED = 0.5  # of a pixel, from which on it is of a region
LEAST = 0.25  # of the smallest shape's area that a region must have
TILTS = (-6.0, 0.0, 6.0)  # degrees by which outlines are tried, either way
WINDOW = 0.56  # sides of the picture: the largest shape's diameter and a little more
FINE = 3  # a pixel's cover is measured on so many times as many points
AREA = {"circle": math.pi, "square": 2.0, "triangle": 0.75 * math.sqrt(3), "cross": 2.044}  # of radius 1
ARM, LENGTH = 0.325, 0.946  # of a cross of radius 1: half its arm's width, and from its middle to its end
MIDDLE = 0.13  # in sides of the picture: who is no farther from the middle either way is in the middle


class Regions(NamedTuple):
    """owners (M,), the picture of each; covers (M, S, S) in [0, 1]; colours (M,), numbers in COLOURS."""

    owners: Tensor
    covers: Tensor
    colours: Tensor


def read(pixels: Tensor, asked: Tensor) -> Tensor:
    """Pixels (B, 3, S, S) in [0, 1] -> the value of each of ASPECTS (B, A), -1 where there is none. Of the two ways to tell a scene of two
    things it is told the one that agrees more with `asked` (B, A). With more than two things, nothing is where a caption could say.
    """
    pixels, size = pixels.float(), pixels.shape[-1]
    ground = pixels.flatten(2).median(-1).values[..., None, None]
    regions, crowded = _regions(pixels, ground)
    centres, shapes, radii = _outlines(regions.covers)
    halves = pixels.new_tensor([*SIZES.values()]).log().unfold(0, 2, 1).mean(-1).exp()  # between two sizes
    found = torch.stack([torch.bucketize(radii / size, halves), regions.colours, shapes], 1).cpu()
    owners, centres, asked_, crowded = regions.owners.cpu(), centres.cpu() / size, asked.cpu(), crowded.cpu()
    told = torch.full((len(pixels), len(ASPECTS)), -1)
    for i in range(len(pixels)):
        mine = (owners == i).nonzero().flatten()
        if len(mine) == 1:
            told[i, :3], told[i, 3] = found[mine[0]], _place(centres[mine[0]])
        elif len(mine) == 2:
            ways = []
            for one, other in (mine, mine.flip(0)):
                where = -1 if crowded[i] else _relation(centres[other] - centres[one])
                ways.append(torch.tensor([*found[one], where, *found[other]]))
            told[i] = max(ways, key=lambda way: int((way == asked_[i]).sum()))
    return told.to(asked.device)


def _regions(pixels: Tensor, ground: Tensor) -> tuple[Regions, Tensor]:
    """The two largest of each picture, and whether there are more: (B,)"""
    b, _, s, _ = pixels.shape
    palette = pixels.new_tensor([*COLOURS.values()]) / 255
    away, towards = pixels - ground, palette[None, :, :, None, None] - ground[:, None]  # (B, 3, S, S), (B, K, 3, 1, 1)
    along = (away[:, None] * towards).sum(2)  # (B, K, S, S)
    likeness = along / (towards.norm(dim=2) * away.norm(dim=1, keepdim=True).clamp(min=1e-6))
    share = (along / towards.square().sum(2)).gather(1, likeness.argmax(1, keepdim=True))[:, 0]
    numbers = _numbered(share > COVERED)  # (B, S, S), 0 where nothing is
    counts = torch.zeros(b, s * s + 1, dtype=torch.int64, device=pixels.device)
    counts.scatter_add_(1, numbers.flatten(1), torch.ones_like(numbers.flatten(1)))
    counts[:, 0] = 0
    areas, names = counts.topk(3, dim=1)
    there = areas >= LEAST * min(AREA.values()) * (min(SIZES.values()) * s) ** 2
    owners, rank = there[:, :2].nonzero(as_tuple=True)
    inside = numbers[owners] == names[owners, rank][:, None, None]  # (M, S, S)
    core = inside & (_spread(~inside) < 0.5)
    core = torch.where(core.any((1, 2), keepdim=True), core, inside).float()[:, None]
    mean = (pixels[owners] * core).sum((2, 3)) / core.sum((2, 3))  # (M, 3)
    towards = mean[..., None, None] - ground[owners]
    covers = (away[owners] * towards).sum(1) / towards.square().sum(1).clamp(min=1e-6)
    near = (_spread(inside) > 0.5) & ((numbers[owners] == 0) | inside)
    covers = covers.clamp(0, 1) * near
    return Regions(owners, covers, torch.cdist(mean, palette).argmin(1)), there[:, 2]


def _numbered(mask: Tensor) -> Tensor:
    """Connected pixels (B, S, S) have one number, the largest of their places + 1; others 0. Corners do not connect."""
    numbers = torch.arange(1, mask[0].numel() + 1, device=mask.device).view(mask[0].shape) * mask
    while True:
        padded = F.pad(numbers, (1, 1, 1, 1))
        sides = padded[:, 1:-1, 2:], padded[:, 1:-1, :-2], padded[:, 2:, 1:-1], padded[:, :-2, 1:-1]
        grown = torch.stack([numbers, *sides]).amax(0) * mask
        if torch.equal(grown, numbers):
            return numbers
        numbers = grown


def _spread(mask: Tensor) -> Tensor:
    """One pixel farther all around: (M, S, S) as numbers 0 and 1"""
    return F.max_pool2d(mask.float()[:, None], 3, 1, 1)[:, 0] if len(mask) else mask.float()


def _outlines(covers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of covers (M, S, S) the centres (M, 2), x and y, the shapes (M,) and the radii (M,)."""
    s, device = covers.shape[-1], covers.device
    area, place = covers.sum((1, 2)).clamp(min=1e-6), torch.arange(s, device=device) + 0.5
    centres = torch.stack([(covers.sum(1) * place).sum(1), (covers.sum(2) * place).sum(1)], 1) / area[:, None]
    window = min(s, math.ceil(WINDOW * s))  # of the picture, around the centre of each
    begin = (centres - window / 2).round().clamp(0, s - window).long()
    columns, rows = (begin[:, i, None] + torch.arange(window, device=device) for i in range(2))  # (M, W)
    covers = covers[torch.arange(len(covers), device=device)[:, None, None], rows[:, :, None], columns[:, None, :]]
    fine = (torch.arange(window * FINE, device=device) + 0.5) / FINE - (centres - begin)[..., None]  # (M, 2, 3 W), from the centres
    errors = covers.new_full((len(SHAPES), len(covers)), math.inf)
    for i, shape in enumerate(SHAPES):
        radius = (area / AREA[shape]).sqrt()[:, None, None]
        u, v = fine[:, 0, None, :] / radius, fine[:, 1, :, None] / radius
        for tilt in TILTS:
            cos, sin = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
            inside = _inside(shape, cos * u + sin * v, cos * v - sin * u)
            cover = F.avg_pool2d(inside.float()[:, None], FINE)[:, 0] if len(covers) else covers
            errors[i] = torch.minimum(errors[i], (cover - covers).square().sum((1, 2)) / area)
    shapes = errors.argmin(0)
    return centres, shapes, (area / area.new_tensor([AREA[shape] for shape in SHAPES])[shapes]).sqrt()


def _inside(shape: str, u: Tensor, v: Tensor) -> Tensor:
    """Whether points are inside the upright shape of radius 1 about 0; v goes down."""
    if shape == "circle":
        return u**2 + v**2 <= 1
    if shape == "square":
        return torch.maximum(u.abs(), v.abs()) <= math.sqrt(0.5)
    if shape == "triangle":
        return (v <= 0.5) & (math.sqrt(3) * u.abs() - v <= 1)
    long, wide = torch.maximum(u.abs(), v.abs()), torch.minimum(u.abs(), v.abs())
    return (long <= LENGTH) & (wide <= ARM)


def _place(centre: Tensor) -> int:
    """Of a thing alone: which of PLACES, a number in the values of `where`."""
    x, y = (centre - 0.5).tolist()
    if max(abs(x), abs(y)) <= MIDDLE:
        return 0
    way = (int(math.copysign(1, x)), 0) if abs(x) > abs(y) else (0, int(math.copysign(1, y)))
    return [*PLACES.values()].index(way)


def _relation(way: Tensor) -> int:
    """Of the first of two things to the other, which is so far from it: which of RELATIONS, a number in the values of `where`."""
    x, y = way.tolist()
    main = (int(math.copysign(1, x)), 0) if abs(x) > abs(y) else (0, int(math.copysign(1, y)))
    return len(PLACES) + [*RELATIONS.values()].index(main)
