"""Pictures of what a run shows, as PNG: drawn once, shown in TensorBoard and kept in the run's figures/ alike.

Matrices and grids are painted with Pillow, in hundredths of a second, so that looking often costs little; matplotlib takes a
hundred times as long and draws what is rare: curves.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refresher_runner.engine.logger import Logger
from refresher_runner.nn.pictures import font_of
from refresher_runner.report import Curve, Images, Loggable, Matrix, PRCurve, Report

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont
    from torch import Tensor

MOST_IMAGES = 64  # of a grid
SMALLEST_SIDE = 96  # pixels of a picture in a grid: smaller ones are enlarged
MOST_LINES_NAMED = 20  # of a plot
LARGEST_WRITTEN = 20  # rows or columns of a matrix whose cells hold text
LARGEST_SIDE = 1600  # pixels that the cells of a matrix may take, if each can have three

BLUES = ((247, 251, 255), (198, 219, 239), (107, 174, 214), (33, 113, 181), (8, 48, 107))  # for shares
VIRIDIS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))  # for values of either sign


class Gallery:
    """The newest picture of each tag, so that loggers that show the same report draw it once."""

    def __init__(self) -> None:
        self._drawn: dict[str, tuple[Loggable, bytes | None]] = {}

    def png(self, tag: str, shown: Loggable) -> bytes | None:
        """None for what is not a picture."""
        if tag not in self._drawn or self._drawn[tag][0] is not shown:
            self._drawn[tag] = (shown, draw(shown, tag))
        return self._drawn[tag][1]


class Figures(Logger):
    """figures/val_confusion_matrix.png and the like, each of the latest evaluation; precision-recall curves when the run ends."""

    def __init__(self, folder: Path, gallery: Gallery):
        self._folder, self._gallery = folder, gallery
        self._at_the_end: dict[str, PRCurve] = {}

    def log(self, report: Report, step: int) -> None:
        for tag, shown in report.items():
            if isinstance(shown, PRCurve):
                self._at_the_end[tag] = shown
            else:
                self._write(tag, shown)

    def close(self) -> None:
        for tag, shown in self._at_the_end.items():
            self._write(tag, shown)

    def _write(self, tag: str, shown: Loggable) -> None:
        if (png := self._gallery.png(tag, shown)) is not None:
            write_png(png, self._folder / f"{tag.replace('/', '_')}.png")


def write_png(png: bytes, path: Path) -> None:
    """Whoever looks sees the old picture or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    aside.write_bytes(png)
    os.replace(aside, path)


def draw(shown: Loggable, title: str) -> bytes | None:
    """PNG; None for numbers, text, distributions and vectors."""
    if isinstance(shown, Images):
        return _png(_grid(shown))
    if isinstance(shown, Matrix):
        return _png(_matrix(shown, title))
    return _lines(shown, title) if isinstance(shown, (Curve, PRCurve)) else None


# -------------------------------------------------------------------- matrices


def _array(values: Tensor) -> NDArray:
    """In a type that numpy knows too, which bf16 is not."""
    values = values.detach().cpu()
    return (values.float() if values.is_floating_point() and values.element_size() < 4 else values).numpy()


def _matrix(matrix: Matrix, title: str) -> Image:
    """Whole numbers are counts, coloured and written as shares of their row too; others are shown as they are."""
    import numpy as np
    from PIL import Image, ImageDraw

    values = _array(matrix.values)
    counts = not np.issubdtype(values.dtype, np.floating)
    finite = values[np.isfinite(values)]
    low, high = (0.0, 1.0) if counts or not finite.size else (float(finite.min()), float(finite.max()))
    shade = values / np.maximum(values.sum(1, keepdims=True), 1) if counts else (values - low) / max(high - low, 1e-12)
    colours = _colours(shade, BLUES if counts else VIRIDIS)

    rows, columns = values.shape
    side = max(rows, columns)
    cell = max(62, 250 // side) if side <= LARGEST_WRITTEN else max(3, min(14, LARGEST_SIDE // side))
    small, normal = font_of(max(8, min(12, cell - 3))), font_of(13)
    every = math.ceil(11 / cell)  # as many names as do not touch
    row_names, column_names = (tuple(_shorten(name, 180, small) for name in names) for names in (matrix.rows, matrix.columns))
    upright = max(map(small.getlength, column_names[::every])) > cell * every - 4
    left = 34 + math.ceil(max(map(small.getlength, row_names[::every])))
    below = math.ceil(max(map(small.getlength, column_names[::every]))) if upright else 16
    top, width, height = 48, columns * cell, rows * cell

    canvas = Image.new("RGB", (max(left + width + 80, 320), top + height + below + 34), "white")
    canvas.paste(Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST), (left, top))
    pen = ImageDraw.Draw(canvas)
    pen.rectangle((left - 1, top - 1, left + width, top + height), outline="black")
    if side <= LARGEST_WRITTEN:
        for row, column in np.ndindex(rows, columns):
            middle = (left + (column + 0.5) * cell, top + (row + 0.5) * cell)
            text = _cell_text(values[row, column].item(), float(shade[row, column]), counts)
            pen.text(
                middle,
                text,
                fill=_ink(colours[row, column], faint=counts and not values[row, column]),
                font=font_of(11),
                anchor="mm",
                align="center",
            )
    for row in range(0, rows, every):
        pen.text((left - 6, top + (row + 0.5) * cell), row_names[row], fill="black", font=small, anchor="rm")
    for column in range(0, columns, every):
        x = left + (column + 0.5) * cell
        if upright:
            _write_upright(canvas, x, top + height + 5, column_names[column], small)
        else:
            pen.text((x, top + height + 5), column_names[column], fill="black", font=small, anchor="ma")
    pen.text((left + width / 2, top + height + below + 12), matrix.column_title, fill="black", font=normal, anchor="ma")
    length = normal.getlength(matrix.row_title)
    _write_upright(canvas, 14, round(top + height / 2 - length / 2), matrix.row_title, normal)
    pen.text((left + width / 2, 8), "\n".join(_title(matrix, title, counts)), fill="black", font=normal, anchor="ma", align="center")
    _scale(canvas, pen, left + width + 14, top, height, low, high, counts)
    return canvas


def _title(matrix: Matrix, title: str, counts: bool) -> list[str]:
    if not counts or matrix.rows != matrix.columns:
        return [title]
    right, total = int(matrix.values.trace()), int(matrix.values.sum())
    return [title, f"{right} of {total} right ({_percent(right / max(total, 1))})"]


def _cell_text(value: float, share: float, counts: bool) -> str:
    if not counts:
        return f"{value:.2g}"
    count = int(value)
    short = str(count) if count < 100_000 else f"{count / 1000:.0f}k" if count < 10_000_000 else f"{count / 1_000_000:.0f}M"
    return f"{short}\n{_percent(share)}"


def _percent(share: float) -> str:
    """At most five characters; rounding makes neither an all nor a nothing of what is neither."""
    return f"{share:.0%}" if share in (0.0, 1.0) else f"{min(max(100 * share, 0.1), 99.9):.1f}%"


def _colours(shade: Any, palette: Sequence[tuple[int, int, int]]) -> Any:
    """(R, C) in [0, 1] -> (R, C, 3) of bytes; NaN takes the first colour."""
    import numpy as np

    shade, stops = np.nan_to_num(shade), np.linspace(0, 1, len(palette))
    return np.stack([np.interp(shade, stops, channel) for channel in zip(*palette, strict=True)], -1).round().astype(np.uint8)


def _ink(colour: Any, faint: bool) -> str:
    """What can be read on a colour; faint for what never happened, which should not catch the eye."""
    red, green, blue = (int(channel) for channel in colour)
    return "#a8b4c0" if faint else "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 128 else "black"


def _scale(canvas: Image, pen: ImageDraw, left: int, top: int, height: int, low: float, high: float, counts: bool) -> None:
    """What the colours mean, beside the matrix."""
    import numpy as np
    from PIL import Image

    bar = _colours(np.linspace(1, 0, height)[:, None], BLUES if counts else VIRIDIS)
    canvas.paste(Image.fromarray(bar).resize((12, height), Image.Resampling.NEAREST), (left, top))
    pen.rectangle((left - 1, top - 1, left + 12, top + height), outline="black")
    for part in (0.0, 0.5, 1.0):
        value = low + part * (high - low)
        pen.text(
            (left + 18, top + (1 - part) * height),
            f"{value:.0%}" if counts else f"{value:.3g}",
            fill="black",
            font=font_of(11),
            anchor="lm",
        )


def _write_upright(canvas: Image, x: float, top: int, text: str, font: FreeTypeFont) -> None:
    """Text that reads upwards, centred at x, its end at `top`."""
    from PIL import Image, ImageDraw

    _, _, width, height = font.getbbox(text, anchor="la")
    strip = Image.new("RGB", (max(math.ceil(width), 1), math.ceil(height) + 2), "white")
    ImageDraw.Draw(strip).text((0, 0), text, fill="black", font=font, anchor="la")
    canvas.paste(strip.rotate(90, expand=True), (round(x - strip.height / 2), top))


# -------------------------------------------------------------------- lines


def _lines(curve: Curve | PRCurve, title: str) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot, which keeps every figure for ever

    # class names are names, not formulas, whatever signs they hold
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = Figure((7.5, 5.0), layout="constrained")
        axes = figure.add_subplot()
        if isinstance(curve, PRCurve):
            drawn = {name: (r, p) for name, r, p in zip(curve.classes, curve.recall, curve.precision, strict=True)}
            axes.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        else:
            drawn = {name: (curve.x, y) for name, y in curve.lines.items()}
            axes.set(xlabel=curve.x_title, ylabel=curve.y_title, xscale=curve.x_scale)
            if curve.x_scale == "log":
                axes.xaxis.set_major_formatter("{x:g}")
            for number, (name, x) in enumerate(curve.marks.items(), start=len(drawn)):
                axes.axvline(x, label=f"{name} {x:.3g}", linestyle=":", color=f"C{number % 10}")
        named = len(drawn) <= MOST_LINES_NAMED
        for number, (name, (x, y)) in enumerate(drawn.items()):
            style: dict[str, Any] = (
                {"linestyle": "-" if number < 10 else "--"} if named else {"color": "tab:blue", "alpha": 0.25, "linewidth": 0.8}
            )
            axes.plot(_array(x), _array(y), label=name, **style)
        axes.grid(alpha=0.3)
        axes.set_title(title, fontsize=11)
        if (named and len(drawn) > 1) or getattr(curve, "marks", {}):
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=100, metadata={"Software": None})
    return file.getvalue()


# -------------------------------------------------------------------- pictures


def _grid(images: Images) -> Image:
    """Pictures in rows, enlarged until their pixels can be seen, each above its caption."""
    from PIL import Image, ImageDraw

    pixels = images.pixels[:MOST_IMAGES].detach().float().clamp(0, 1).cpu()
    n, _, height, width = pixels.shape
    scale = max(1, math.ceil(SMALLEST_SIDE / min(height, width)))
    cell_width = max(width * scale, 128 if images.captions else 0)
    font = font_of(12)
    captions = [_wrap(caption, cell_width, font) for caption in images.captions[:MOST_IMAGES]]
    line, gap = 15, 8
    cell_height = height * scale + line * max((len(c) for c in captions), default=0) + (4 if captions else 0)
    columns = min(8, max(1, math.ceil(math.sqrt(n * cell_height / cell_width))))  # TensorBoard fits the whole to a square
    rows = max(1, math.ceil(n / columns))
    size = (gap + columns * (cell_width + gap), gap + rows * (cell_height + gap))
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    for k in range(n):
        left, top = gap + k % columns * (cell_width + gap), gap + k // columns * (cell_height + gap)
        picture = _picture(pixels[k]).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        canvas.paste(picture, (left + (cell_width - width * scale) // 2, top))
        for number, text in enumerate(captions[k] if captions else []):
            middle = (left + cell_width / 2, top + height * scale + 4 + number * line)
            pen.text(middle, text, fill="black", font=font, anchor="ma")
    return canvas


def _picture(pixels: Tensor) -> Any:
    """(C, H, W) in [0, 1], C = 1 or 3 -> PIL."""
    from PIL import Image

    return Image.fromarray((pixels * 255).round().byte().expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def _wrap(caption: str, width: int, font: FreeTypeFont, most: int = 3) -> list[str]:
    """Lines that fit into so many pixels; what does not fit into `most` of them is cut."""
    lines = [""]
    for number, word in enumerate(caption.replace("\n", " \n ").split(" ")):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if word == "\n":
            lines.append("")
        elif number == 0 or font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    cut = lines[:most]
    if len(lines) > most:
        cut[-1] += " …"
    return [_shorten(line, width, font) for line in cut]


def _shorten(line: str, width: int, font: FreeTypeFont) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line}…"


def _png(image: Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
