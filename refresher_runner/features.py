"""What is known of users and of items: tables with a name for every row and a column for every feature. Free of torch until compared."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["category", "number", "text", "picture"]


class Compared:
    """Equal where every field is, tensors number by number."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and all(_same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))  # type: ignore[arg-type]

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class Column(Compared):
    """A feature. What `values` of a table hold of it, a row each:

    category  (N, W) int64: up to W of its `names`, by their places there, then -1: an occupation, or a film's genres
    number    (N, 1) float: of mean 0 and variance 1 over the rows; 0 where it is not known
    text      (N, W) int64: words, by their places in `names`, then -1; a word may come with a vector, learnt elsewhere: `vectors` (V, C)
    picture   (N, C, S, S) uint8
    """

    name: str
    kind: Kind
    names: tuple[str, ...] = ()
    vectors: Tensor | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Table(Compared):
    """N users or items: a name each, and the values of each column."""

    names: tuple[str, ...]
    columns: tuple[Column, ...] = ()
    values: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"{len(self)} rows of {', '.join(column.name for column in self.columns) or 'names alone'}"

    def categories(self) -> tuple[Column, Tensor] | None:
        """The first column of categories, and of every row the first that it has (N,), -1 where none."""
        for column, values in zip(self.columns, self.values, strict=True):
            if column.kind == "category":
                return column, values[:, 0]
        return None


@dataclass(frozen=True, eq=False, repr=False)
class Log(Compared):
    """Who came to what, in order of time: user u to items (M,) from place ends[u - 1] on to before ends[u]; ends (U,).

    `counts` (N,) says how often each item is learnt from; what is kept for validation and test is not counted.
    """

    items: Tensor
    ends: Tensor
    counts: Tensor

    def __repr__(self) -> str:
        return f"{len(self.items)} events of {len(self.ends)} users"

    def of(self, user: int) -> Tensor:
        """The items (n,) of one user."""
        return self.items[int(self.ends[user - 1]) if user else 0 : int(self.ends[user])]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(_same, a, b))
    equal = getattr(a, "equal", None)
    return bool(equal(b) if equal and hasattr(b, "equal") else a == b)
