"""What two towers say: recommendations and likenesses with names, where items lie, vectors for other programs."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refresher_runner.errors import DataError, UsageError
from refresher_runner.nn.retrieval import Ranked, top_k
from refresher_runner.nn.word_vectors import write_vectors
from refresher_runner.report import Embedding, Prediction, Report, Text
from refresher_runner.spec import InteractionBatch, InteractionSpec

if TYPE_CHECKING:
    from refresher_runner.models.two_tower.task import ItemTower

TOLD = 10  # items that are told of each input
USERS = 8  # whose recommendations are told at every evaluation
LAST = 5  # events of a history that are told
LYING = 2000  # items in the projector, those that are learnt from most


class Towers(Protocol):
    """What is asked of a task here."""

    spec: InteractionSpec
    item: ItemTower
    bias: nn.Parameter

    def every(self) -> Tensor: ...
    def ranked(self, batch: InteractionBatch) -> Ranked: ...
    def products(self, v: Tensor) -> Tensor: ...


def shown(task: Towers, batch: InteractionBatch) -> Report:
    """A table of some users of a batch, and where the items lie, by their categories."""
    few = _first_rows(batch, USERS)
    top, names = task.ranked(few).top[:, :LAST].tolist(), task.spec.items.names
    rows = ["| user | came to | recommended | came to next |", "|---|---|---|---|"]
    for row, user in enumerate(few.users.tolist()):
        history = [item for item in few.events[row].tolist() if item >= 0][-LAST:]
        wanted = few.wanted[few.wanted[:, 0] == row, 2].tolist()
        cells = [_listed([names[item] for item in items]) for items in (history, top[row], wanted)]
        rows.append(f"| {_cell(task.spec.users.names[user])} | {' | '.join(cells)} |")
    order = task.spec.log.counts.argsort(descending=True, stable=True)[:LYING]
    vectors = task.products(task.item(task.every()))[order.to(task.bias.device)].float().cpu()
    labels = tuple(names[item] for item in order.tolist())
    groups = ()
    if categories := task.spec.items.categories():
        column, values = categories
        groups = tuple(column.names[value] if value >= 0 else "none" for value in values[order].tolist())
    return {"recommended": Text("\n".join(rows)), "items": Embedding(vectors, labels, groups=groups)}


def recommended(task: Towers, inputs: Sequence[str]) -> Iterator[Prediction]:
    """One after another. Raises UsageError for an input that is neither `user:NAME` nor `item:NAME`, or whose name is not known."""
    for asked in inputs:
        kind, _, name = asked.partition(":")
        name = name.strip().strip("\"'")
        if kind == "user":
            yield _for_user(task, asked, _place(task.spec.users.names, name, asked))
        elif kind == "item":
            yield _like_item(task, asked, _place(task.spec.items.names, name, asked))
        else:
            raise UsageError(
                "is neither a user nor an item", key="input", value=asked, cure=f"user:{task.spec.users.names[0]}, or item:NAME"
            )


def _place(names: Sequence[str], name: str, asked: str) -> int:
    try:
        return names.index(name)
    except ValueError:
        holding = [known for known in names if name and name.lower() in known.lower()]
        near = [*holding, *difflib.get_close_matches(name, names, n=1, cutoff=0.6), names[0]][0]
        raise UsageError("is not known", key="input", value=asked, cure=f"did you mean '{near}'?") from None


def _for_user(task: Towers, asked: str, user: int) -> Prediction:
    """By all that the user came to, which is not recommended anew."""
    known = task.spec.log.of(user).to(task.bias.device)
    length = min(len(known), task.spec.block_size)
    events = F.pad(known[len(known) - length :], (0, task.spec.block_size - length), value=-1)
    seen = torch.stack([torch.zeros_like(known), known], 1)
    wanted = torch.tensor([[0, length, 0]], device=known.device)  # of which the rank is of no interest
    batch = InteractionBatch(torch.tensor([user], device=known.device), events[None], wanted, seen)
    top = task.ranked(batch).top[0].tolist()[: min(TOLD, len(task.spec.items) - len(known))]
    names = [task.spec.items.names[item] for item in top]
    came = [task.spec.items.names[item] for item in known.tolist()[-LAST:]]
    table = "\n".join(["| | recommended |", "|---|---|", *(f"| {n} | {_cell(name)} |" for n, name in enumerate(names, 1))])
    values = {"recommended": names[0] if names else "", "then": "; ".join(names[1:]), "came to": "; ".join(came)}
    return Prediction(asked, values, {"recommended": Text(table)})


def _like_item(task: Towers, asked: str, item: int) -> Prediction:
    unit = F.normalize(task.item(task.every()).float(), dim=1)
    cosines, items = (found[0].tolist()[1:] for found in top_k(unit[item][None], unit, TOLD + 1))
    names = [task.spec.items.names[place] for place in items]
    rows = [f"| {_cell(name)} | {cosine:.3f} |" for name, cosine in zip(names, cosines, strict=True)]
    values = {"nearest": names[0], "cosine": cosines[0], "then": "; ".join(names[1:])}
    return Prediction(asked, values, {"like it": Text("\n".join(["| item | cosine |", "|---|---|", *rows]))})


def _first_rows(batch: InteractionBatch, number: int) -> InteractionBatch:
    wanted, seen = (pairs[pairs[:, 0] < number] for pairs in (batch.wanted, batch.seen))
    return InteractionBatch(batch.users[:number], batch.events[:number], wanted, seen)


def _listed(names: Sequence[str]) -> str:
    return "; ".join(map(_cell, names))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# -------------------------------------------------------------------- files


def written(task: Towers, file: Path) -> None:
    """Items and vectors, whose product with a user's is the score, by what the file's name ends in:

    .npz     names (N,), vectors (N, D), bias (N,): of numpy
    .faiss   an index that finds the largest products exactly: of FAISS, which must be installed (`pip install refresher-runner[faiss]`)
    .bin     and anything else, as text: of word2vec's own program, spaces in names written as underscores
    """
    with torch.no_grad():
        vectors = task.products(task.item(task.every())).float().cpu()
    names, bias = task.spec.items.names, task.bias.detach().float().cpu()
    if file.suffix == ".faiss":
        _write_index(file, torch.cat([vectors, bias[:, None]], 1))
    elif file.suffix == ".npz":
        import numpy as np

        part = file.with_name(f"{file.name}.part")
        try:
            with part.open("wb") as out:
                np.savez(out, names=np.array(names), vectors=vectors.numpy(), bias=bias.numpy())
            os.replace(part, file)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise DataError(f"cannot be written ({error.strerror})", key=str(file), cure="a file in a folder that is yours") from None
    else:
        write_vectors(file, ["_".join(name.split()) for name in names], vectors)


def _write_index(file: Path, vectors: Tensor) -> None:
    """A user's vector is asked with a last number of 1, for the bias."""
    try:
        import faiss  # type: ignore[import-not-found]
    except ImportError:
        cure = "pip install faiss-cpu, or export to a file that ends in .npz"
        raise UsageError("needs FAISS, which is not installed", key="file", value=file, cure=cure) from None
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors.numpy())
    try:
        faiss.write_index(index, str(file))
    except RuntimeError as error:
        raise DataError(f"cannot be written ({error})", key=str(file), cure="a file in a folder that is yours") from None
