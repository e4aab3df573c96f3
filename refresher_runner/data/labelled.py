"""Texts with a label each: Python's docstrings, texts of one's own in a folder for each class, and what such a set is.

A text of more than `block_size` tokens is read as far as these go. Free of torch and numpy until `prepare`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from refresher_runner.data.class_folders import ClassFolders
from refresher_runner.data.fetch import sha256
from refresher_runner.data.learnt import LearntSet, vocabulary_of
from refresher_runner.data.python_docs import entries, joined, written
from refresher_runner.data.sentences import SentenceLoader, Side, side
from refresher_runner.data.subwords import encode_all
from refresher_runner.data.text import Cut, content_of, decoded, parts_of
from refresher_runner.errors import DataError
from refresher_runner.registry import DATASETS
from refresher_runner.schema import Fraction, NonNegative, Positive, Share
from refresher_runner.spec import DataModule, LabelledTextBatch, LabelledTextSpec, Placement
from refresher_runner.vocabulary import Vocabulary

if TYPE_CHECKING:
    from numpy.typing import NDArray

Sample = tuple[str, int]  # a text and its label
KINDS = "topic", "module", "class", "function", "method"  # of what is documented


class Labelled(NamedTuple):
    """What was read: the vocabulary, the classes, the samples of each split, and the digests of the files."""

    vocabulary: Vocabulary
    classes: tuple[str, ...]
    splits: Mapping[str, Sequence[Sample]]
    checksums: dict[str, str]


@dataclass
class LabelledTextSet(LearntSet[LabelledTextSpec]):
    """Texts, each with a label."""

    spec: LabelledTextSpec = field(init=False)
    splits: dict[str, tuple[Side, NDArray]] = field(default_factory=dict, init=False)  # texts and labels

    def prepare(self) -> None:
        """Raises DataError naming a file or folder."""
        import numpy as np

        if self.splits:
            return
        found, splits, cut = self.read(self.known), {}, 0
        for split, samples in found.splits.items():
            if not samples:
                raise DataError(f"its {split} split holds no text", key="data", cure="a larger share for this split")
            numbers = _encoded(found.vocabulary, [text for text, _ in samples])
            cut += sum(len(text) > self.block_size for text in numbers)
            labels = np.array([label for _, label in samples], np.int64)
            splits[split] = side([text[: self.block_size] for text in numbers], len(found.vocabulary)), labels
        if cut:
            total = sum(len(labels) for _, labels in splits.values())
            logging.getLogger(__name__).warning("%d of %d texts are read up to data.block_size=%d tokens", cut, total, self.block_size)
        self.spec, self.splits = LabelledTextSpec(found.vocabulary, self.block_size, found.classes), splits
        self.digests = found.checksums

    def _loader(self, split: str, batch_size: int, placement: Placement) -> SentenceLoader[LabelledTextBatch]:
        assert self.splits, "prepare() comes first"
        texts, labels = self.splits[split]
        columns = texts.lengths, labels
        return SentenceLoader(LabelledTextBatch, [texts], batch_size, placement, train=split == "train", columns=columns)


def _encoded(vocabulary: Vocabulary, texts: Sequence[str]) -> list[list[int]]:
    return encode_all(vocabulary, texts) if vocabulary.merges else [vocabulary.encode(text) for text in texts]


# -------------------------------------------------------------------- Python's docstrings


@DATASETS.register("docstrings")
def build_docstrings(
    *,
    tokens: Literal["characters", "subwords"],
    vocab_size: Positive,
    block_size: Positive,
    batch_size: Positive,
    eval_batch_size: Positive,
    val_fraction: Share,
    test_fraction: Fraction,
) -> DataModule[LabelledTextSpec]:
    """What a piece of Python's documentation describes: a topic, module, class, function or method; 8,000 texts.

    Cut and encoded as `python_docs` with the same options, so that a model can be pre-trained on that and has seen no text of
    validation and test.
    """
    cut = Cut(val_fraction, test_fraction)
    return LabelledTextSet(lambda known: read_docstrings(tokens, vocab_size, cut, known), block_size, batch_size, eval_batch_size)


def read_docstrings(tokens: str, vocab_size: int, cut: Cut, known: Vocabulary | None = None) -> Labelled:
    """Entries without their headings, which would tell. One through which a cut goes is left out."""
    found = entries()
    vocabulary, parts, checksums = parts_of(joined(found), cut, tokens, vocab_size, known)
    ends = dict(zip(parts, accumulate(map(len, parts.values())), strict=True))
    splits: dict[str, list[Sample]] = {split: [] for split in ends}
    place = 0
    for entry in found:
        begin, place = place, place + len(written(entry))
        split = next(split for split, end in ends.items() if begin < end)
        if place <= ends[split]:
            splits[split].append((entry[1], KINDS.index(kind(entry[0]))))
    return Labelled(vocabulary, KINDS, splits, checksums)


def kind(heading: str) -> str:
    """Which of KINDS stands below a heading: a function whose first argument is the object or the class is a method."""
    if heading.startswith("help("):
        return "topic"
    if heading.startswith("class "):
        return "class"
    _, bracket, arguments = heading.partition("(")
    if not bracket:
        return "module"
    return "method" if re.match(r"(self|cls)\b", arguments) else "function"


# -------------------------------------------------------------------- texts of one's own


@DATASETS.register("text_folder")
def build_text_folder(
    *,
    root: str,
    tokens: Literal["characters", "subwords"],
    vocab_size: Positive,
    block_size: Positive,
    batch_size: Positive,
    eval_batch_size: Positive,
    val_fraction: Share,
    test_fraction: Share,
    split_seed: NonNegative,
) -> DataModule[LabelledTextSpec]:
    """Your own texts, in a folder for each class."""
    folders = ClassFolders(Path(root), "texts", frozenset({".txt"}))
    folders.classes()  # refused at once
    fractions = {"test": test_fraction, "val": val_fraction}
    return LabelledTextSet(
        lambda known: read_text_folder(folders, tokens, vocab_size, fractions, split_seed, known), block_size, batch_size, eval_batch_size
    )


def read_text_folder(
    folders: ClassFolders, tokens: str, vocab_size: int, fractions: dict[str, float], split_seed: int, known: Vocabulary | None = None
) -> Labelled:
    """A file a text. Raises DataError naming a file that is empty or not UTF-8, and what `vocabulary_of` does."""
    files = folders.splits(fractions, split_seed)
    contents = {file: content_of(file, "set data.root to folders of texts") for samples in files.values() for file, _ in samples}
    splits = {split: [(decoded(file, contents[file]).strip(), label) for file, label in samples] for split, samples in files.items()}
    every = "".join(text for samples in splits.values() for text, _ in samples)
    train = [text for text, _ in splits["train"]]
    vocabulary = vocabulary_of(every, train, tokens, vocab_size, known, source=str(folders.root))
    listing = "".join(f"{file.relative_to(folders.root).as_posix()} {sha256(content)}\n" for file, content in sorted(contents.items()))
    return Labelled(vocabulary, folders.classes(), splits, {"names and contents of the texts": sha256(listing.encode())})
