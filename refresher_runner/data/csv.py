"""Your own tables: one of events, and, if you have them, one of users and one of items, with a column for every feature.

visits.csv   user,item,time          who came to what and when; the time is a number, or left out: then the file's order is
items.csv    item,title,genres,year  `data.item_columns={genres: category, title: text, year: number}`
users.csv    user,city,age
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Literal

from refresher_runner.data.events import Events, Interactions, InteractionSet, Kept, numbered
from refresher_runner.data.fetch import sha256
from refresher_runner.data.tables import table
from refresher_runner.errors import ConfigError, DataError, did_you_mean
from refresher_runner.features import Kind, Table
from refresher_runner.registry import DATASETS
from refresher_runner.schema import Fraction, NonNegative, Positive
from refresher_runner.spec import DataModule, InteractionSpec


@DATASETS.register("csv")
def build_csv(
    *,
    root: str,
    events: str,
    user: str,
    item: str,
    time: str | None,
    users: str | None,
    user_columns: dict[str, Literal["category", "number", "text", "picture"]],
    items: str | None,
    title: str | None,
    item_columns: dict[str, Literal["category", "number", "text", "picture"]],
    separator: str,
    listed_by: str,
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
    """Your own events, users and items, out of tables of text. Raises ConfigError where columns have no table."""
    for key, file, columns in (("users", users, user_columns), ("items", items, item_columns)):
        if file is None and columns:
            raise ConfigError(
                "has no file that these could be in", key=f"data.{key[:-1]}_columns", value=columns, cure=f"data.{key}={key}.csv"
            )
    if len(separator) != 1:
        raise ConfigError("should be one sign", key="data.separator", value=separator, cure="data.separator=';'")
    files = Files(Path(root), separator, text_vectors)
    kept = Kept(split, val_count, test_count, cold_fraction, split_seed)

    def read(_: object) -> Interactions:
        log = files.columns(events, [user, item] + ([time] if time else []))
        who, what = log[user], log[item]
        people, user_place = files.table(users, user, None, user_columns, who, listed_by)
        things, item_place = files.table(items, item, title, item_columns, what, listed_by)
        return Interactions(people, things, _events(log, user_place, item_place, user, item, time), files.digests)

    return InteractionSet(read, block_size, batch_size, eval_batch_size, stride, kept)


def _events(log: dict[str, list[str]], users: dict[str, int], items: dict[str, int], user: str, item: str, time: str | None) -> Events:
    import torch

    try:
        times = [int(float(t)) for t in log[time]] if time else list(range(len(log[user])))
    except (ValueError, OverflowError):
        bad = next(t for t in log[time or ""] if not t.replace(".", "", 1).lstrip("-").isdecimal())
        raise DataError(f"column '{time}' holds '{bad}'", key="data.time", cure="seconds as numbers, or data.time=null") from None
    return Events(torch.tensor([users[u] for u in log[user]]), torch.tensor([items[i] for i in log[item]]), torch.tensor(times))


class Files:
    """Tables of text in a folder, each with a line of names first; remembers the digests of what was read."""

    def __init__(self, root: Path, separator: str, text_vectors: str | None):
        self.root, self.separator, self.text_vectors, self.digests = root, separator, text_vectors, dict[str, str]()

    def columns(self, file: str, wanted: list[str]) -> dict[str, list[str]]:
        """Column by column. Raises DataError naming the file, where it is absent, empty, or lacks a column."""
        path = self.root / file
        try:
            content = path.read_bytes()
            rows = list(csv.reader(content.decode("utf-8-sig").splitlines(), delimiter=self.separator))
        except (OSError, UnicodeDecodeError) as error:
            problem = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
            raise DataError(problem, key=str(path), cure="set data.root to the folder of your tables") from None
        self.digests[file] = sha256(content)
        if len(rows) < 2:
            raise DataError("holds no rows below its line of names", key=str(path))
        header, width = rows[0], len(rows[0])
        for name in wanted:
            if name not in header:
                raise DataError(f"has no column '{name}'", key=str(path), cure=did_you_mean(name, header))
        for number, row in enumerate(rows[1:], 2):
            if row and len(row) != width:
                raise DataError(
                    f"line {number} has {len(row)} parts, and the first {width}", key=str(path), cure="mend the line, or take it away"
                )
        return {name: [row[header.index(name)] for row in rows[1:] if row] for name in wanted}

    def table(
        self, file: str | None, key: str, title: str | None, kinds: dict[str, Kind], known: list[str], listed_by: str
    ) -> tuple[Table, dict[str, int]]:
        """Rows for all that events know, and for all that the file tells of; and the place of each key."""
        told = self.columns(file, [key, *kinds, *([title] if title else [])]) if file else {key: []}
        keys, place = numbered([*known, *told[key]])
        row = {name: number for number, name in enumerate(told[key])}
        said = {name: [told[name][row[k]] if k in row else "" for k in keys] for name in [*kinds, *([title] if title else [])]}
        names, taken = [], set[str]()
        for k, name in zip(keys, said[title] if title else keys, strict=True):
            names.append(name if name and name not in taken else f"{name} [{k}]" if name else k)
            taken.add(names[-1])
        return table(names, said, kinds, listed_by=listed_by, folder=self.root, vectors=self.text_vectors), place
