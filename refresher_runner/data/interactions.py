"""Users who choose items by a law that is known: drawn on the spot, so that the best that any model can do is known too.

A user of a group g, aged a, who came to the item j last, comes to one of the items i that they do not know yet with probability

    p(i | g, a, j) ~ exp(taste[g, genre(i)] + a slope[genre(i)] + appeal(i) + follow [i is the sequel of j])

Every law is in the features: a group and an age tell all of a user, a genre and an appeal all of an item but its sequel, and every item
is the sequel of one other of its genre. The best ten items are those of the largest p, and the mean of the sum of their p is the largest
mean recall at ten, whatever the model.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from refresher_runner.data.events import Events, Interactions, InteractionSet, Kept
from refresher_runner.data.tables import table
from refresher_runner.errors import ConfigError
from refresher_runner.registry import DATASETS
from refresher_runner.schema import Fraction, NonNegative, Positive
from refresher_runner.spec import DataModule, InteractionSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

GROUPS = "artists", "builders", "farmers", "nurses", "sailors", "teachers"
GENRES = "ballads", "crime", "dreams", "fables", "letters", "plays", "travels", "voyages"
WORDS = (
    "amber",
    "bright",
    "calm",
    "dark",
    "early",
    "faint",
    "green",
    "hollow",
    "iron",
    "kind",
    "late",
    "mild",
    "narrow",
    "old",
    "pale",
    "quiet",
)
TASTE, SLOPE, APPEAL, FOLLOW = 1.5, 1.0, 1.0, 5.0  # how much each of the four weighs
CHOSEN = 10  # items of which the best recall is told


@DATASETS.register("interactions")
def build_interactions(
    *,
    users: Positive,
    items: Positive,
    events: Positive,
    draw_seed: NonNegative,
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
    """Users and items whose law of preference is known, and so the best possible recall: drawn on the spot, nothing to download."""
    if events >= items:
        problem = f"of a user, and data.items={items} leaves nothing that they do not know yet"
        raise ConfigError(problem, key="data.events", value=events, cure="fewer events than items")
    kept = Kept(split, val_count, test_count, cold_fraction, split_seed)
    return InteractionSet(lambda _: draw(users, items, events, draw_seed), block_size, batch_size, eval_batch_size, stride, kept)


class Law:
    """What users and items are, and how these attract those. `draws` is numpy's old generator, frozen for good."""

    def __init__(self, users: int, items: int, seed: int):
        import numpy as np

        self.draws = np.random.RandomState(seed % 2**32)
        self.group, self.age = self.draws.randint(len(GROUPS), size=users), self.draws.randn(users)
        self.genre, self.appeal = np.arange(items) % len(GENRES), self.draws.randn(items)
        taste, slope = self.draws.randn(len(GROUPS), len(GENRES)), self.draws.randn(len(GENRES))
        by_genre = TASTE * taste[self.group] + SLOPE * self.age[:, None] * slope  # (U, genres)
        self.liking = by_genre[:, self.genre] + APPEAL * self.appeal  # (U, N)
        self.sequel = (np.arange(items) + len(GENRES)) % items

    def probabilities(self, known: NDArray, last: NDArray) -> NDArray:
        """P (U, N) of each user's next item, of those not known (U, N); last (U,), -1 where there is none yet."""
        import numpy as np

        score = np.where(known, -np.inf, self.liking)
        came = last >= 0
        score[came, self.sequel[last[came]]] += FOLLOW
        weights = np.exp(score - score.max(1, keepdims=True))
        return weights / weights.sum(1, keepdims=True)


def draw(users: int, items: int, events: int, seed: int) -> Interactions:
    """So many events of every user. The best recall is that of the last of them."""
    import numpy as np
    import torch

    law = Law(users, items, seed)
    known, last, chosen, best = np.zeros((users, items), bool), np.full(users, -1), [], 0.0
    for _ in range(events):
        p = law.probabilities(known, last)
        best = float(np.sort(p, 1)[:, -CHOSEN:].sum(1).mean())
        last = (p.cumsum(1) < law.draws.rand(users, 1)).sum(1).clip(max=items - 1)
        known[np.arange(users), last] = True
        chosen.append(last)
    what = np.stack(chosen, 1)
    log = Events(torch.arange(users).repeat_interleave(events), torch.from_numpy(what).flatten(), torch.arange(events).repeat(users))
    digest = hashlib.sha256(np.ascontiguousarray(what, "<i8").tobytes()).hexdigest()
    return Interactions(*_tables(law), log, {"interactions": digest}, best)


def _tables(law: Law):
    names = [str(user + 1) for user in range(len(law.group))]
    said = {"group": [GROUPS[g] for g in law.group], "age": [f"{45 + 12 * age:.3f}" for age in law.age]}
    users = table(names, said, {"group": "category", "age": "number"}, listed_by="", folder=Path())
    words = [[WORDS[(item // len(WORDS) ** power) % len(WORDS)] for power in (1, 0)] for item in range(len(law.genre))]
    titles = [f"{' '.join(pair)} {GENRES[genre]} {item + 1}" for item, (pair, genre) in enumerate(zip(words, law.genre, strict=True))]
    texts = [title.rpartition(" ")[0] for title in titles]
    said = {"genre": [GENRES[g] for g in law.genre], "title": texts, "appeal": [f"{appeal:.3f}" for appeal in law.appeal]}
    return users, table(titles, said, {"genre": "category", "title": "text", "appeal": "number"}, listed_by="", folder=Path())
