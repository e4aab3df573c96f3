"""Columns of features out of what files say. Free of torch and numpy until one is made."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refresher_runner.errors import DataError
from refresher_runner.features import Column, Kind, Table
from refresher_runner.pictures import read_picture

WORD = re.compile(r"\w+")
WORDS = 20_000  # different words of a column of text, the most frequent
LENGTH = 32  # words of a text
PICTURE_SIZE = 32  # pixels of a side


def table(
    names: Sequence[str],
    said: Mapping[str, Sequence[str]],
    kinds: Mapping[str, Kind],
    *,
    listed_by: str,
    folder: Path,
    vectors: str | None = None,
) -> Table:
    """Rows of these names; of each column what was said of every row, which may be nothing: ''.

    Of categories there may be several, `listed_by` a sign; a picture is a file in `folder`; words begin with the `vectors` of a file.
    Raises DataError, naming row and column, for a number that is none, and naming a file that is no picture, or holds no vectors.
    """
    made = [_column(name, kind, said[name], names, listed_by, folder, vectors) for name, kind in kinds.items()]
    return Table(tuple(names), tuple(column for column, _ in made), tuple(values for _, values in made))


def _column(
    name: str, kind: Kind, said: Sequence[str], rows: Sequence[str], listed_by: str, folder: Path, vectors: str | None
) -> tuple[Column, Any]:
    import torch

    if kind == "number":
        return Column(name, kind), _standardised(torch.tensor([_number(text, row, name) for text, row in zip(said, rows, strict=True)]))
    if kind == "picture":
        pictures = [read_picture(folder / text, 3, PICTURE_SIZE) if text else torch.ones(3, PICTURE_SIZE, PICTURE_SIZE) for text in said]
        return Column(name, kind), (torch.stack(pictures) * 255).round().byte()
    if kind == "category":
        lists = [[part for part in (text.split(listed_by) if listed_by else [text]) if part] for text in said]
        names = sorted({part for parts in lists for part in parts})
    else:
        lists = [WORD.findall(text.lower())[:LENGTH] for text in said]
        counts = Counter(word for words in lists for word in words)
        names = sorted(sorted(counts), key=lambda word: -counts[word])[:WORDS]
    known = _vectors(Path(vectors), names) if vectors and kind == "text" else None
    return Column(name, kind, tuple(names), known), _numbered(lists, names)


def _vectors(file: Path, words: Sequence[str]) -> Any:
    """(V, C) of words, out of a file of word2vec's; zeros of those that it lacks. Raises DataError where it has none of them."""
    import torch

    from refresher_runner.nn.word_vectors import read_vectors

    found = read_vectors(file)
    place = {word: number for number, word in enumerate(found.words)}
    numbers = torch.tensor([place.get(word, -1) for word in words])
    known = numbers >= 0
    if not known.any():
        raise DataError(
            "has a vector for none of the words", key=str(file), cure="vectors of words in small letters, or data.text_vectors=null"
        )
    logging.getLogger(__name__).info("%d of %d words have vectors", int(known.sum()), len(words))
    return found.vectors[numbers.clamp(min=0)] * known[:, None]


def _numbered(lists: Sequence[Sequence[str]], names: Sequence[str]) -> Any:
    """(N, W) int64: of every row the places of its parts among the names, then -1; unknown parts are left out."""
    import torch

    place = {name: number for number, name in enumerate(names)}
    rows = [[place[part] for part in parts if part in place] for parts in lists]
    width = max(1, *map(len, rows))
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows])


def _number(text: str, row: str, column: str) -> float:
    try:
        number = float(text or "nan")
    except ValueError:
        raise DataError(f"is no number, in column '{column}' of '{row}'", key=column, value=text, cure="a number, or nothing") from None
    return math.nan if math.isinf(number) else number


def _standardised(values: Any) -> Any:
    """(N,) -> (N, 1) of mean 0 and variance 1 over what is known; 0 for what is not, and where all are the same."""
    known = ~values.isnan()
    if not known.any():
        return values.nan_to_num(0)[:, None]
    centred = values - values[known].mean()
    deviation = centred[known].double().square().mean().sqrt().float()
    return (centred / deviation.clamp(min=1e-6)).nan_to_num(0)[:, None]
