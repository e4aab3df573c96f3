"""MovieLens: which films people rated, one after another, in the layouts of ml-latest-small, ml-1m and ml-20m.

Harper and Konstan, "The MovieLens Datasets: History and Context", 2015. https://doi.org/10.1145/2827872

A rating counts as a visit, whatever it says, unless it is below `min_rating`. Who rated many films at once has events of one second, which
are put in the order of their films' numbers.
"""

from __future__ import annotations

import csv
import io
import logging
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from refresher_runner.data.events import Events, Interactions, InteractionSet, Kept
from refresher_runner.data.fetch import Published, fetch, sha256
from refresher_runner.data.tables import table
from refresher_runner.errors import DataError
from refresher_runner.features import Kind, Table
from refresher_runner.registry import DATASETS
from refresher_runner.schema import Fraction, NonNegative, Positive, PositiveFloat
from refresher_runner.spec import DataModule, InteractionSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

Version = Literal["ml-latest-small", "ml-1m", "ml-20m"]
DIGESTS = {
    "ml-latest-small": "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
    "ml-1m": "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
    "ml-20m": "96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3",
}
TITLE = re.compile(r"(.*?)\s*\((\d{4})\)\s*$")  # a film's, with its year
OCCUPATIONS = [  # by number, as the README of ml-1m lists them
    "other",
    "academic/educator",
    "artist",
    "clerical/admin",
    "college/grad student",
    "customer service",
    "doctor/health care",
    "executive/managerial",
    "farmer",
    "homemaker",
    "K-12 student",
    "lawyer",
    "programmer",
    "retired",
    "sales/marketing",
    "scientist",
    "self-employed",
    "technician/engineer",
    "tradesman/craftsman",
    "unemployed",
    "writer",
]


@DATASETS.register("movielens")
def build_movielens(
    *,
    root: str,
    version: Literal["ml-latest-small", "ml-1m", "ml-20m"],
    min_rating: PositiveFloat | None,
    text_vectors: str | None,
    split: Literal["last", "random"],
    val_count: Positive,
    test_count: NonNegative,
    cold_fraction: Fraction,
    split_seed: NonNegative,
    block_size: NonNegative,
    stride: Positive,
    batch_size: Positive,
    eval_batch_size: Positive,
) -> DataModule[InteractionSpec]:
    """MovieLens: films that people rated, with titles, years and genres (Harper and Konstan, 2015)."""
    kept = Kept(split, val_count, test_count, cold_fraction, split_seed)
    return InteractionSet(
        lambda _: read(root, version, min_rating or 0.0, text_vectors), block_size, batch_size, eval_batch_size, stride, kept
    )


def read(root: str, version: Version, min_rating: float, text_vectors: str | None = None) -> Interactions:
    """Every user and every film of which a rating counts. Raises DataError naming a file."""
    import numpy as np
    import torch

    names = ["ratings.dat", "movies.dat", "users.dat"] if version == "ml-1m" else ["ratings.csv", "movies.csv"]
    files = contents(root, version, names)
    ratings = _ratings(files[names[0]], names[0])
    ratings = ratings[ratings[:, 2] >= min_rating]
    if not len(ratings):
        raise DataError(f"holds no rating of {min_rating} or more", key=f"{version}/{names[0]}", cure="a smaller data.min_rating")
    user_ids, users = np.unique(ratings[:, 0].astype(np.int64), return_inverse=True)
    film_ids, films = np.unique(ratings[:, 1].astype(np.int64), return_inverse=True)
    events = Events(*(torch.from_numpy(part.astype(np.int64).reshape(-1)) for part in (users, films, ratings[:, 3])))
    people = _people(_rows(files["users.dat"], "latin-1", "::"), user_ids.tolist()) if version == "ml-1m" else _nameless(user_ids.tolist())
    how = ("latin-1", "::") if version == "ml-1m" else ("utf-8", ",")
    digests = {f"{version}/{name}": sha256(content) for name, content in files.items()}
    return Interactions(people, _films(_rows(files[names[1]], *how), film_ids.tolist(), text_vectors), events, digests)


def contents(root: str, version: Version, names: list[str]) -> Mapping[str, bytes]:
    """Files of the folder `root`/`version`, where it has them all, else of the archive beside it, which is downloaded if need be."""
    folder = Path(root, version)
    if all((folder / name).is_file() for name in names):
        return {name: (folder / name).read_bytes() for name in names}
    archive = fetch(root, Published(f"{version}.zip", f"https://files.grouplens.org/datasets/movielens/{version}.zip", DIGESTS[version]))
    with zipfile.ZipFile(io.BytesIO(archive)) as packed:
        return {name: packed.read(f"{version}/{name}") for name in names}


def _ratings(content: bytes, name: str) -> NDArray:
    """(M, 4): user, film, rating, time"""
    import numpy as np

    try:
        header = 0 if content[:1].isdigit() else 1
        ratings = np.loadtxt(io.BytesIO(content.replace(b"::", b",")), delimiter=",", skiprows=header, ndmin=2)
    except ValueError as error:
        raise DataError(f"is not a file of ratings ({error})", key=name, cure="get MovieLens again, or set data.version") from None
    if ratings.shape[1] != 4:
        raise DataError(f"has {ratings.shape[1]} columns, not user, film, rating and time", key=name, cure="get MovieLens again")
    return ratings


def _rows(content: bytes, encoding: str, separator: str) -> Iterator[list[str]]:
    """Rows of a table whose first column is a number."""
    text = content.decode(encoding)
    rows = csv.reader(io.StringIO(text)) if separator == "," else (line.split(separator) for line in text.splitlines())
    return (row for row in rows if row and row[0].isdecimal())


def _films(rows: Iterator[list[str]], ids: list[int], vectors: str | None) -> Table:
    """Names are titles with years; where several films have one, all but the first have their number too."""
    said = {int(number): (title, genres) for number, title, genres in rows}
    if unknown := [number for number in ids if number not in said]:
        logging.getLogger(__name__).warning("%d films have no title, film %d for one", len(unknown), unknown[0])
    names: dict[str, int] = {}
    columns: dict[str, list[str]] = {"genres": [], "title": [], "year": []}
    for number in ids:
        title, genres = said.get(number, (f"film {number}", ""))
        names[title if title not in names else f"{title} [{number}]"] = number
        parts = TITLE.match(title)
        columns["title"].append(parts[1] if parts else title)
        columns["year"].append(parts[2] if parts else "")
        columns["genres"].append(genres.replace("(no genres listed)", ""))
    kinds: dict[str, Kind] = {"genres": "category", "title": "text", "year": "number"}
    return table(list(names), columns, kinds, listed_by="|", folder=Path(), vectors=vectors)


def _people(rows: Iterator[list[str]], ids: list[int]) -> Table:
    """Of ml-1m: gender, age, occupation."""
    said = {int(row[0]): row for row in rows}
    chosen = [said[number] for number in ids]
    columns = {"gender": [r[1] for r in chosen], "age": [r[2] for r in chosen], "occupation": [OCCUPATIONS[int(r[3])] for r in chosen]}
    return table(
        [str(n) for n in ids], columns, {"gender": "category", "age": "number", "occupation": "category"}, listed_by="", folder=Path()
    )


def _nameless(ids: list[int]) -> Table:
    return Table(tuple(str(number) for number in ids))
