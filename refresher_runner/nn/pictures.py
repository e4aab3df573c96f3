"""Pictures that come in as files, and pictures that go out with boxes drawn on them."""

from __future__ import annotations

import colorsys
import importlib.util
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from refresher_runner.errors import DataError
from refresher_runner.pictures import SUFFIXES, to_tensor

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

READABLE = 320  # pixels of a picture's longer side: on smaller ones a name would hide what it names


def is_picture(text: str) -> bool:
    """Whether it names a picture, by its suffix, or a folder, which is there."""
    return Path(text).suffix.lower() in SUFFIXES or Path(text).is_dir()


def picture_files(inputs: Sequence[str]) -> list[Path]:
    """Files as they are given, folders as the pictures in and under them, sorted. Raises DataError."""
    files: list[Path] = []
    for path in map(Path, inputs):
        found = sorted(f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file()) if path.is_dir() else [path]
        if not found:
            raise DataError("has no pictures", key=str(path), cure=f"looked for {', '.join(sorted(SUFFIXES))}")
        files += found
    return files


def enlargement(height: int, width: int) -> int:
    """How many times as large a picture is drawn so that names can be read: once, or twice and more if it is small."""
    return math.ceil(READABLE / max(height, width))


def draw_boxes(pixels: Tensor, boxes: Tensor, labels: Tensor, captions: Sequence[str] = (), *, scale: int = 1) -> Tensor:
    """A picture (C, H, W) in [0, 1], C = 1 or 3, enlarged so many times, with boxes (n, 4) in its pixels: (3, scale * H, scale * W).

    Each frame has the colour of its label; captions, if there are any, stand on top. The first box hides what is under it.
    """
    from PIL import Image, ImageDraw

    frame = (pixels.detach().float().clamp(0, 1) * 255).round().byte().expand(3, -1, -1).permute(1, 2, 0)
    picture = Image.fromarray(frame.contiguous().cpu().numpy())
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    pen, side = ImageDraw.Draw(picture), min(picture.size)
    line, font = max(2, side // 240), font_of(max(11, side // 40))
    rows = list(zip((boxes.detach() * scale).tolist(), map(colour, labels.tolist()), captions or [""] * len(boxes), strict=True))[::-1]
    for (x1, y1, x2, y2), hue, _ in rows:
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=hue, width=line)
    for (x1, y1, _, _), hue, caption in rows:
        if caption:
            _write(pen, picture.size, x1, y1, caption, hue, font)
    return to_tensor(picture).float() / 255


def _write(pen: ImageDraw, size: tuple[int, int], x: float, y: float, text: str, plate: tuple[int, int, int], font: FreeTypeFont) -> None:
    """On a plate that stands on the corner (x, y) of a box, or hangs from it where the picture ends."""
    left, top, right, bottom = font.getbbox(text)
    width, height = right - left + 4, bottom - top + 4
    x = max(0, min(x, size[0] - width))
    y = y - height if y >= height else min(y, size[1] - height)
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=plate)
    red, green, blue = plate
    ink = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 128 else "black"
    pen.text((x + 2 - left, y + 2 - top), text, fill=ink, font=font)


def side_by_side(left: Tensor, right: Tensor) -> Tensor:
    """Two pictures (C, H, W) as one, (C, H, 2 W + 4), a white line between them."""
    return torch.cat([left, left.new_ones(*left.shape[:2], 4), right], -1)


def enlarged(cells: Tensor, size: int) -> Tensor:
    """A grid's cells (..., n, n) as squares of a picture: (..., size, size)"""
    side = size // cells.shape[-1]
    return cells.repeat_interleave(side, -1).repeat_interleave(side, -2)


def tinted(pixels: Tensor, labels: Tensor, *, lines: bool = False) -> Tensor:
    """A picture (C, S, S) in [0, 1] behind a grid of labels (n, n), each in its colour, -1 in none; `lines` between: (3, S, S)"""
    photo, size = pixels.float().expand(3, -1, -1), pixels.shape[-1]
    colours = photo.new_tensor([colour(label) for label in range(max(int(labels.max()), 0) + 1)]) / 255
    flat = enlarged(colours[labels.clamp(min=0)].permute(2, 0, 1), size)
    picture = torch.where(enlarged(labels, size) >= 0, (photo + flat) / 2, photo)
    edge = torch.arange(size, device=photo.device) % (size // labels.shape[-1]) == 0
    return picture.masked_fill(edge | edge[:, None], 1.0) if lines else picture


def colour(label: int) -> tuple[int, int, int]:
    """One for each class, the same in every picture; hues a golden angle apart, so that neighbours differ however many there are."""
    red, green, blue = colorsys.hsv_to_rgb((0.6 + label * (math.sqrt(5) - 1) / 2) % 1, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


@lru_cache
def font_of(size: int) -> FreeTypeFont:
    """The font that comes with matplotlib, found without importing it: it knows the letters of most languages."""
    from PIL import ImageFont

    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None
    assert spec.origin is not None
    return ImageFont.truetype(Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf", size)
