"""A user's picture becomes the input that the data set would have given, whatever its file says and holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refresher_runner.errors import DataError
from refresher_runner.pictures import read_picture


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 16).reshape(4, 4).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    assert np.allclose(read_picture(tmp_path / "deep.png", 1, 4)[0], grey / 65535, atol=1 / 255)


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "glass.png")
    assert read_picture(tmp_path / "glass.png", 3, 4).eq(1).all()


def test_a_camera_held_sideways(tmp_path: Path) -> None:
    upright = np.zeros((4, 4), np.uint8)
    upright[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees clockwise to show
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "side.png", exif=exif)
    assert np.array_equal(read_picture(tmp_path / "side.png", 1, 4)[0] * 255, upright)


def test_no_picture_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "words.png").write_text("not a picture")
    for name in ("words.png", "absent.png"):
        with pytest.raises(DataError, match=name):
            read_picture(tmp_path / name, 3, 4)
