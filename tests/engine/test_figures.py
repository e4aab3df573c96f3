"""Pictures show the numbers they are drawn from: read back pixel by pixel."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from refresher_runner.engine.figures import BLUES, Figures, Gallery, draw
from refresher_runner.report import Curve, Histogram, Images, Matrix, PRCurve, Text


def pixels(png: bytes | None) -> np.ndarray:
    assert png is not None
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def names(k: int) -> tuple[str, ...]:
    return tuple(f"class {i}" for i in range(k))


def cells(picture: np.ndarray, k: int) -> np.ndarray:
    """The colour of each cell, from just inside its corner; the frame is the first long black line."""
    dark = (picture.sum(-1) == 0).sum(1)
    top = int(np.argmax(dark > 200)) + 1
    left = int(np.argmax(picture[top + 20].sum(-1) == 0)) + 1
    right = left + int(np.argmax(picture[top - 1, left:].sum(-1) != 0)) - 1
    cell = (right - left) // k
    return np.array([[picture[top + row * cell + 1, left + column * cell + 1] for column in range(k)] for row in range(k)])


@pytest.mark.parametrize("k", [2, 10, 20, 100])
def test_a_confusion_matrix_is_coloured_by_the_share_of_its_row(k: int) -> None:
    counts = torch.randint(0, 9, (k, k)) * (torch.rand(k, k) < 0.3)
    counts[1] = 0  # a class that is absent
    counts[0] = 0
    counts[0, -1] = 40  # a class that is always taken for another
    seen = cells(pixels(draw(Matrix(counts, names(k), names(k)), "val/confusion_matrix")), k)
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    stops = torch.linspace(0, 1, len(BLUES))
    expected = np.stack([np.interp(share, stops, channel) for channel in zip(*BLUES, strict=True)], -1)
    assert np.abs(seen - expected).max() <= 0.51


def test_cells_are_written_up_to_twenty_classes() -> None:
    for k, is_written in ((20, True), (21, False)):
        zeros = pixels(draw(Matrix(torch.zeros(k, k, dtype=torch.long), names(k), names(k)), "t"))
        middle = zeros[200:300, 200:300].reshape(-1, 3)
        assert (len(np.unique(middle, axis=0)) > 1) == is_written


def test_every_cell_shows_its_own_count() -> None:
    """A matrix with one other count differs inside that cell alone, if the shares and the total stay."""
    counts = torch.diag(torch.full((5,), 7))
    other = counts.clone()
    other[2, 2], other[3, 3] = 8, 6
    a, b = (pixels(draw(Matrix(c, names(5), names(5)), "t")) for c in (counts, other))
    rows, columns = np.nonzero((a != b).any(-1))
    cell = 250 // 5 if 250 // 5 > 62 else 62
    assert len(rows)
    assert np.ptp(rows) < 2 * cell
    assert np.ptp(columns) < 2 * cell


def test_any_matrix_can_be_drawn() -> None:
    odd = ("$a_b$", "T-shirt/top", "", "数字", "a very long name " * 9)
    values = torch.tensor([[0.0, float("nan"), float("inf"), -2.0, 1.0]]).expand(5, 5)
    for matrix in (
        Matrix(values, odd, odd),
        Matrix(torch.ones(5, 5, dtype=torch.long) * 123_456_789, odd, odd),
        Matrix(torch.rand(3, 40), names(3), names(40), "target", "source"),
        Matrix(torch.zeros(1, 1, dtype=torch.long), ("one",), ("one",)),
        Matrix(torch.ones(300, 300, dtype=torch.long), names(300), names(300)),
    ):
        assert max(pixels(draw(matrix, "title")).shape) < 2000


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_matrices_and_lines_of_half_precision_are_drawn(kind: torch.dtype) -> None:
    values, x = torch.tensor([[0.5, -2.0], [1.0, 4.0]]), torch.arange(4.0)
    matrices = [Matrix(values.to(kind), names(2), names(2)) for kind in (kind, torch.float32)]
    curves = [Curve(x.to(kind), {"y": (x / 2).to(kind)}, "x", "y") for kind in (kind, torch.float32)]
    for half, single in (matrices, curves):
        assert (pixels(draw(half, "title")) == pixels(draw(single, "title"))).all()


def test_small_pictures_are_enlarged_and_stay_what_they_are() -> None:
    images = torch.rand(3, 1, 8, 8)
    grid = pixels(draw(Images(images), "digits"))
    step = 12 * 8 + 8  # ceil(96 / 8) pixels for each, and a gap
    for k in range(3):
        top, left = 8 + k // 2 * step, 8 + k % 2 * step  # as square as may be
        seen = grid[top : top + 96, left : left + 96]
        expected = (images[k] * 255).round().repeat_interleave(12, 1).repeat_interleave(12, 2).permute(1, 2, 0).expand(-1, -1, 3)
        assert np.array_equal(seen, expected.numpy())


def test_wide_pictures_are_laid_in_a_square_too() -> None:
    height, width, _ = pixels(draw(Images(torch.rand(8, 3, 100, 200)), "pairs")).shape
    assert 0.5 < width / height < 2


def test_colours_keep_their_order_and_values_are_cut_to_their_range() -> None:
    image = torch.stack([torch.full((100, 100), v) for v in (2.0, 0.2, -1.0)])[None]
    assert pixels(draw(Images(image), "x"))[50, 50].tolist() == [255, 51, 0]


def test_captions_are_below_their_pictures() -> None:
    images = torch.ones(2, 3, 96, 128)
    grid = pixels(draw(Images(images, ("seven", "")), "x"))
    ink = grid.sum(-1) < 600
    assert not ink[:104].any()
    assert ink[104:, :140].any()
    assert not ink[104:, 140:].any()
    assert pixels(draw(Images(images, ("w" * 500, "many words " * 50)), "x")).shape[1] == grid.shape[1]


def test_of_very_many_pictures_the_first_are_shown() -> None:
    assert draw(Images(torch.zeros(200, 1, 8, 8)), "x") == draw(Images(torch.zeros(64, 1, 8, 8)), "x")


def test_lines_can_be_drawn_whatever_they_are_called() -> None:
    x = torch.linspace(0, 1, 5)
    pr = PRCurve(("$a", "b_"), x, *torch.randint(0, 9, (4, 2, 5)).unbind())
    many = PRCurve(names(30), x, *torch.randint(0, 9, (4, 30, 5)).unbind())
    for shown in (Curve(x, {"$x^2": x**2, "_y": x}, "t", "y"), Curve(x, {"one": x}), pr, many):
        assert pixels(draw(shown, "val/$curve")).shape == (500, 750, 3)


def test_what_is_not_a_picture_is_not_drawn() -> None:
    assert draw(1.0, "x") is draw(Text("x"), "x") is draw(Histogram(torch.zeros(3)), "x") is None


def test_a_picture_is_drawn_once_and_the_latest_is_kept(tmp_path: Path) -> None:
    gallery = Gallery()
    figures = Figures(tmp_path / "figures", gallery)
    first, second = (Matrix(torch.eye(2).long() * k, names(2), names(2)) for k in (3, 4))
    assert gallery.png("val/m", first) is gallery.png("val/m", first)
    figures.log({"val/m": first, "val/loss": 1.0}, 5)
    assert (tmp_path / "figures" / "val_m.png").read_bytes() == gallery.png("val/m", first)
    figures.log({"val/m": second}, 10)
    assert (tmp_path / "figures" / "val_m.png").read_bytes() == draw(second, "val/m") != draw(first, "val/m")
    curve = PRCurve(names(2), torch.linspace(0, 1, 5), *torch.randint(0, 9, (4, 2, 5)).unbind())
    figures.log({"val/pr_curve": curve}, 10)
    figures.close()
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["val_m.png", "val_pr_curve.png"]
