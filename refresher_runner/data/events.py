"""Who came to which item and when: what is kept for validation and test, and batches of what is learnt. Free of torch until `prepare`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from refresher_runner.data.learnt import LearntSet
from refresher_runner.errors import ConfigError
from refresher_runner.features import Log, Table
from refresher_runner.spec import InteractionBatch, InteractionSpec, Placement, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from refresher_runner.data.loaders import Order

Split = Literal["last", "random"]
TRAIN, VAL, TEST = 0, 1, 2  # parts of a log


class Events(NamedTuple):
    """users (M,), items (M,), times (M,) int64, in any order"""

    users: Tensor
    items: Tensor
    times: Tensor


class Interactions(NamedTuple):
    """What was read: tables of users and items, who came to what, the digests of files; and what no model can be better than."""

    users: Table
    items: Table
    events: Events
    checksums: dict[str, str]
    best_recall: float | None = None


@dataclass(frozen=True)
class Kept:
    """What is kept of every user for validation and test: so many events, the last or drawn at random, and all of some items."""

    split: Split
    val: int
    test: int
    cold_fraction: float
    seed: int


@dataclass
class InteractionSet(LearntSet[InteractionSpec]):
    """A history of at most `block_size` events foretells the next; a row asks for `stride` of these, one after another."""

    stride: int
    kept: Kept
    spec: InteractionSpec = field(init=False)
    parts: Tensor = field(init=False)  # (M,) of the log: TRAIN, VAL or TEST

    def adopt(self, spec: Spec) -> None:
        """Nothing: users and items are numbered as their names are ordered."""

    def prepare(self) -> None:
        """Raises DataError naming a file, and ConfigError where nothing is left to learn from or to be asked."""
        if hasattr(self, "spec"):
            return
        if self.stride > max(1, self.block_size):
            problem = f"more than a history of data.block_size={self.block_size} events can foretell with something before each"
            raise ConfigError(problem, key="data.stride", value=self.stride, cure=f"data.stride={max(1, self.block_size)} or less")
        found: Interactions = self.read(None)
        users, items = ordered(found.events)
        parts, kept = parted(users, items, self.kept, len(found.items))
        users, items, self.parts = users[kept], items[kept], parts[kept]
        learnt = items[self.parts == TRAIN]
        if not len(learnt) or not (self.parts == VAL).any():
            cure = "a smaller data.val_count, data.test_count or data.cold_fraction, or more events"
            raise ConfigError("leaves nothing to learn from, or nothing to ask for", key="data.val_count", value=self.kept.val, cure=cure)
        ends = users.bincount(minlength=len(found.users)).cumsum(0)
        log = Log(items, ends, learnt.bincount(minlength=len(found.items)))
        parts = {"val": VAL, "test": TEST} if self.kept.test else {"val": VAL}
        self.splits = {split: Questions.of(log, self.parts, part) for split, part in parts.items()}
        as_drawn = self.kept.split == "last" and not self.kept.cold_fraction
        self.spec = InteractionSpec(found.users, found.items, log, self.block_size, found.best_recall if as_drawn else None)
        self.digests = found.checksums

    def train_loader(self, placement: Placement) -> Windows:
        from refresher_runner.data.loaders import Order

        rows = Rows.of(self.spec.log, self.parts, self.block_size, self.stride)
        return Windows(rows, Order(len(rows.users), self.batch_size, placement, train=True))

    def _loader(self, split: str, batch_size: int, placement: Placement) -> Asked:
        from refresher_runner.data.loaders import Order

        questions = self.splits[split]
        return Asked(questions, self.block_size, Order(len(questions.users), batch_size, placement, train=False))


# -------------------------------------------------------------------- cuts


def ordered(events: Events) -> tuple[Tensor, Tensor]:
    """Users (M,) and items (M,), sorted by user, then time, then item; an item that a user comes back to counts the first time only."""
    import torch

    order = events.items.argsort(stable=True)
    for key in (events.times, events.users):
        order = order[key[order].argsort(stable=True)]
    who, what = events.users[order], events.items[order]
    pair = who * (what.max() + 1) + what
    by_pair = pair.argsort(stable=True)
    first = torch.ones_like(by_pair, dtype=torch.bool)
    first[by_pair[1:]] = pair[by_pair[1:]] != pair[by_pair[:-1]]
    return who[first], what[first]


def parted(users: Tensor, items: Tensor, kept: Kept, num_items: int) -> tuple[Tensor, Tensor]:
    """The part (M,) of each event of a log, and which events stay (M,) bool: of items kept cold none is learnt from.

    Of users with too few events for every part all are learnt from.
    """
    import torch

    draws = torch.Generator().manual_seed(kept.seed)
    counts = users.bincount()
    number, last = counts[users], counts.cumsum(0)[users] - 1
    rank = last - torch.arange(len(users))  # 0: the last of its user
    if kept.split == "random":
        drawn = torch.rand(len(users), generator=draws).argsort()
        by_user = drawn[users[drawn].argsort(stable=True)]
        rank = torch.empty_like(rank).scatter_(0, by_user, rank)
    enough = number > kept.val + kept.test
    parts = torch.where(enough & (rank < kept.test), TEST, torch.where(enough & (rank < kept.test + kept.val), VAL, TRAIN))
    cold = torch.rand(num_items, generator=draws) < kept.cold_fraction
    return parts.to(torch.uint8), ~(cold[items] & (parts == TRAIN))


# -------------------------------------------------------------------- training


class Rows(NamedTuple):
    """What is learnt, user after user (M,), and of R rows of it: whose each is, where its history begins, and where what it asks for
    begins and ends, each (R,).
    """

    items: Tensor
    users: Tensor
    begin: Tensor
    first: Tensor
    end: Tensor
    block_size: int

    @staticmethod
    def of(log: Log, parts: Tensor, block_size: int, stride: int) -> Rows:
        """Every event of training is asked for once; a row begins as far before what it asks for last as a history is long."""
        import torch

        learnt = parts == TRAIN
        who = torch.repeat_interleave(torch.arange(len(log.ends)), torch.diff(log.ends, prepend=log.ends.new_zeros(1)))[learnt]
        counts = who.bincount(minlength=len(log.ends))
        rows = -(-counts // stride)
        users = torch.repeat_interleave(torch.arange(len(counts)), rows)
        start, end = (counts.cumsum(0) - counts)[users], counts.cumsum(0)[users]
        first = start + (torch.arange(len(users)) - (rows.cumsum(0) - rows)[users]) * stride
        end = torch.minimum(first + stride, end)
        begin = torch.maximum(start, end - 1 - block_size)
        return Rows(log.items[learnt], users, begin, first, end, block_size)


class Windows:
    """Batches of rows, held in memory, on the device if it is CUDA."""

    def __init__(self, rows: Rows, order: Order):
        self.order, self.device = order, order.placement.device
        home = self.device if self.device.startswith("cuda") else "cpu"
        self.counts = rows.end - rows.first  # here, so that no batch asks the device how long it is
        self.rows = rows._replace(**{name: part.to(home) for name, part in rows._asdict().items() if name != "block_size"})

    def __len__(self) -> int:
        return len(self.order)

    def batches(self, epoch: int, start: int = 0) -> Iterator[InteractionBatch]:
        for index in self.order.batches(epoch)[start:]:
            yield InteractionBatch(*(part.to(self.device) for part in self.take(index)))

    def take(self, index: Tensor) -> InteractionBatch:
        """The rows of these numbers (B,)."""
        import torch

        rows, total = self.rows, int(self.counts[index].sum())
        index = index.to(rows.items.device)
        begin, first, end = rows.begin[index], rows.first[index], rows.end[index]
        place = begin[:, None] + torch.arange(rows.block_size, device=begin.device)
        inside = place < end[:, None] - 1
        events = torch.where(inside, rows.items[place.clamp(max=len(rows.items) - 1)], -1)
        counts = end - first
        row = torch.repeat_interleave(torch.arange(len(index), device=begin.device), counts, output_size=total)
        asked = torch.arange(total, device=begin.device) + (first - counts.cumsum(0) + counts)[row]
        wanted = torch.stack([row, asked - begin[row], rows.items[asked]], 1)
        return InteractionBatch(rows.users[index], events, wanted, wanted.new_zeros(0, 2))


# -------------------------------------------------------------------- validation and test


class Questions(NamedTuple):
    """Of each asked user (Q,): the items before, `known` (S,) up to before known_ends (Q,), and those to come, `wanted` (W,)."""

    users: Tensor
    known: Tensor
    known_ends: Tensor
    wanted: Tensor
    wanted_ends: Tensor

    @staticmethod
    def of(log: Log, parts: Tensor, part: int) -> Questions:
        """Those of whom an event is of this part; what they know is of the parts before."""
        import torch

        who = torch.repeat_interleave(torch.arange(len(log.ends)), torch.diff(log.ends, prepend=log.ends.new_zeros(1)))
        users = who[parts == part].unique()
        of_them = torch.zeros(len(log.ends), dtype=torch.bool).index_fill_(0, users, True)[who]
        before, now = of_them & (parts < part), of_them & (parts == part)
        ends = [who[some].bincount(minlength=len(log.ends)).cumsum(0)[users] for some in (before, now)]
        return Questions(users, log.items[before], ends[0], log.items[now], ends[1])


class Asked:
    """Batches of users, each with the history that is known, and all that is wanted after it."""

    def __init__(self, questions: Questions, block_size: int, order: Order):
        self.questions, self.block_size, self.order = questions, block_size, order

    def __len__(self) -> int:
        return len(self.order)

    def batches(self, epoch: int, start: int = 0) -> Iterator[InteractionBatch]:
        for index in self.order.batches(epoch)[start:]:
            yield InteractionBatch(*(part.to(self.order.placement.device) for part in self.take(index)))

    def take(self, index: Tensor) -> InteractionBatch:
        """The questions of these numbers (B,)."""
        import torch

        q, rows = self.questions, torch.arange(len(index))
        known, counts = _ragged(q.known, q.known_ends, index)
        wanted, asked = _ragged(q.wanted, q.wanted_ends, index)
        seen = torch.stack([torch.repeat_interleave(rows, counts), known], 1)
        length = counts.clamp(max=self.block_size)
        place = (counts.cumsum(0) - length)[:, None] + torch.arange(self.block_size)
        inside = torch.arange(self.block_size) < length[:, None]
        padded = torch.cat([known, known.new_full((1,), -1)])
        events = padded[torch.where(inside, place, len(known))]
        row = torch.repeat_interleave(rows, asked)
        return InteractionBatch(q.users[index], events, torch.stack([row, length[row], wanted], 1), seen)


def _ragged(values: Tensor, ends: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Of lists that lie one after another those of these numbers, and how long each is (B,)."""
    import torch

    counts = ends[index] - torch.where(index > 0, ends[index - 1], 0)
    total = int(counts.sum())
    place = torch.arange(total) + torch.repeat_interleave(ends[index] - counts.cumsum(0), counts, output_size=total)
    return values[place], counts


# -------------------------------------------------------------------- names


def numbered(names: list[str]) -> tuple[list[str], dict[str, int]]:
    """Different names in order, numbers by their value, and the place of each."""
    different = sorted(set(names), key=lambda name: (not name.isdecimal(), len(name) if name.isdecimal() else 0, name))
    return different, {name: place for place, name in enumerate(different)}
