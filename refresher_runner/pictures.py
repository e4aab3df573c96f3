"""Files of pictures as they are read: turned upright, laid into a square, made tensors. Free of torch and PIL until one is read."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from refresher_runner.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}  # of files taken for pictures
GREY = 114  # around a photograph in its square


def open_picture(path: str | Path, channels: int, content: IO[bytes] | None = None) -> Image:
    """A picture file as 8-bit grey (1 channel) or RGB (3), turned as its camera says, on white where it is transparent.

    `content`, if it is given, is read instead, and the path is but its name. Raises DataError, naming the file, when it is absent,
    damaged or not a picture.
    """
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(content or path) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.mode.startswith("I"):  # 16 bits are scaled to 8
                picture = Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8))
            if picture.has_transparency_data:
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture.convert("RGBA"))
            return picture.convert({1: "L", 3: "RGB"}[channels])
    except FileNotFoundError:
        raise DataError("no such file", key=str(path)) from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"not a readable picture ({error})", key=str(path)) from None


def read_picture(path: str | Path, channels: int, size: int) -> Tensor:
    """Pixels (C, size, size) in [0, 1] of a picture file: shorter side resized to `size`, then the centre."""
    return to_tensor(fit(open_picture(path, channels), size)).float() / 255


def fit(picture: Image, size: int) -> Image:
    """Its shorter side resized to `size`, then the centre."""
    from PIL import Image, ImageOps

    return ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)


def to_tensor(picture: Image) -> Tensor:
    """Pixels (C, H, W) uint8."""
    import numpy as np
    import torch

    pixels = torch.from_numpy(np.array(picture, dtype=np.uint8))
    return pixels.view(picture.height, picture.width, -1).permute(2, 0, 1).contiguous()


class Letterbox(NamedTuple):
    """How a photograph of any shape was laid into a square: x in the square = scale * x in the photograph + left."""

    scale: float
    left: int
    top: int

    def to_square(self, boxes: Tensor) -> Tensor:
        """Boxes (..., 4), x1 y1 x2 y2, from the photograph's pixels to the square's."""
        return boxes * self.scale + boxes.new_tensor([self.left, self.top, self.left, self.top])

    def to_photo(self, boxes: Tensor) -> Tensor:
        """The inverse of `to_square`."""
        return (boxes - boxes.new_tensor([self.left, self.top, self.left, self.top])) / self.scale


def letterbox(picture: Image, size: int) -> tuple[Tensor, Letterbox]:
    """Pixels (C, size, size) uint8 of a picture resized as a whole, its shape kept, in the middle of a grey square."""
    from PIL import Image

    scale = size / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    left, top = (size - width) // 2, (size - height) // 2
    square = Image.new(picture.mode, (size, size), (GREY,) * len(picture.getbands()) if picture.mode == "RGB" else GREY)
    square.paste(picture.resize((width, height), Image.Resampling.BILINEAR), (left, top))
    return to_tensor(square), Letterbox(scale, left, top)
