"""Files of word vectors in the format of word2vec's own program, text or binary, which gensim and others read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from refresher_runner.errors import DataError


class WordVectors(NamedTuple):
    """words, and a vector each (V, C)"""

    words: tuple[str, ...]
    vectors: Tensor


def write_vectors(file: Path, words: Sequence[str], vectors: Tensor) -> None:
    """Words and their vectors (V, C): as text, or, to a file that ends in .bin, in binary. Raises DataError where it cannot be written."""
    values, part = vectors.numpy().astype(np.float32), file.with_name(f"{file.name}.part")
    try:
        with part.open("wb") as out:
            out.write(f"{len(words)} {values.shape[1]}\n".encode())
            for word, value in zip(words, values, strict=True):
                body = value.tobytes() if file.suffix == ".bin" else " ".join(f"{number:.6g}" for number in value).encode()
                out.write(word.encode() + b" " + body + b"\n")
        os.replace(part, file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DataError(f"cannot be written ({error.strerror})", key=str(file), cure="a file in a folder that is yours") from None


def read_vectors(file: Path) -> WordVectors:
    """The inverse. Raises DataError, naming the file, where it is absent or not such a file."""
    try:
        with file.open("rb") as text:
            count, dim = map(int, text.readline().split())
            if file.suffix == ".bin":
                return _binary(text.read(), count, dim)
            rows = [line.rstrip().decode().split(" ") for line in text]
        vectors = torch.tensor([[float(number) for number in row[1:]] for row in rows])
        if vectors.shape != (count, dim):
            raise ValueError(f"it says {count} vectors of {dim} numbers, and holds {tuple(vectors.shape)}")
        return WordVectors(tuple(row[0] for row in rows), vectors)
    except (OSError, ValueError) as error:
        problem = "no such file" if isinstance(error, FileNotFoundError) else f"holds no word vectors ({error})"
        raise DataError(problem, key=str(file), cure="a file as `refresher export` writes it, or gensim") from None


def _binary(content: bytes, count: int, dim: int) -> WordVectors:
    words, vectors, at = [], np.empty((count, dim), np.float32), 0
    for row in vectors:
        end = content.index(b" ", at)
        words.append(content[at:end].lstrip(b"\n").decode())
        at = end + 1 + row.nbytes
        row[:] = np.frombuffer(content[end + 1 : at], np.float32)
    return WordVectors(tuple(words), torch.from_numpy(vectors))
