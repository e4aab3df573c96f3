"""Files of word vectors, against their format."""

from __future__ import annotations

import struct

import pytest
import torch

from refresher_runner.errors import DataError
from refresher_runner.nn.word_vectors import read_vectors, write_vectors


def test_the_text_format_is_word2vecs(tmp_path):
    write_vectors(tmp_path / "v.txt", ("a", "naïve"), torch.tensor([[1.0, -0.5], [0.25, 3.0]]))
    assert (tmp_path / "v.txt").read_text(encoding="utf-8") == "2 2\na 1 -0.5\nnaïve 0.25 3\n"


def test_the_binary_format_is_word2vecs(tmp_path):
    write_vectors(tmp_path / "v.bin", ("a", "naïve"), torch.tensor([[1.0, -0.5], [0.25, 3.0]]))
    expected = b"2 2\na " + struct.pack("<2f", 1, -0.5) + b"\n" + "naïve ".encode() + struct.pack("<2f", 0.25, 3) + b"\n"
    assert (tmp_path / "v.bin").read_bytes() == expected


@pytest.mark.parametrize("name", ["v.txt", "v.bin"])
def test_a_file_that_breaks_off_is_refused(name, tmp_path):
    write_vectors(tmp_path / name, ("a", "b"), torch.randn(2, 8))
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-20])
    with pytest.raises(DataError, match=name):
        read_vectors(tmp_path / name)


def test_a_file_that_cannot_be_had_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_vectors(tmp_path / "absent.txt")
    with pytest.raises(DataError, match="cannot be written"):
        write_vectors(tmp_path / "absent" / "v.txt", ("a",), torch.ones(1, 1))
