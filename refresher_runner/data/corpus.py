"""A corpus as a sequence of words, for what learns from which words stand near which: read as a stream, kept as numbers.

Free of torch and numpy until `prepare`. One pass over the text counts the words and numbers them as they come; then the rare ones are
left out and the others numbered anew, the most frequent first.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from refresher_runner.data.fetch import Published, fetch
from refresher_runner.data.learnt import LearntSet
from refresher_runner.data.python_docs import read_python_docs
from refresher_runner.data.streams import CHARACTERS, read_files
from refresher_runner.data.text import Cut
from refresher_runner.errors import ConfigError
from refresher_runner.registry import DATASETS
from refresher_runner.schema import Fraction, Positive, Share
from refresher_runner.spec import CorpusBatch, CorpusSpec, DataModule, Placement, Spec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from refresher_runner.data.loaders import Order

TEXT8 = Published("word2vec/text8.zip", "https://mattmahoney.net/dc/text8.zip", sha1="6c70299b93b7e1f927b42cd8f6ac1a31547c7a2e")
GENSIM = "https://raw.githubusercontent.com/piskvorky/gensim/develop/gensim/test/test_data"
WORDSIM = Published(
    "word2vec/wordsim353.tsv", f"{GENSIM}/wordsim353.tsv", "f92a022fc2537793a15bc3a8c162ebcd74990e033a228bb6388cb71e4c0b1e1d"
)
ANALOGIES = Published(
    "word2vec/questions-words.txt", f"{GENSIM}/questions-words.txt", "8c29b3332afc46f3fb8be04cb5297bf96f39aa7131272dff57869b4485b22a36"
)

WORD = re.compile(r"[^\W\d_]+")  # letters of any script, one after another
SPLIT_SEED = 0  # which sentences and questions are of which split does not depend on the run's seed


class Questions(NamedTuple):
    """What people say of words. pairs (P, 2), ratings (P,); analogies (Q, 4): a is to b as c is to d, sections (Q,). Unknown words: -1."""

    pairs: NDArray
    ratings: NDArray
    analogies: NDArray
    sections: NDArray


class Counted(NamedTuple):
    """A text as numbers (N,) int32 of its words, the most frequent first; how often each comes; and the digest of what was read."""

    words: tuple[str, ...]
    counts: tuple[int, ...]
    numbers: NDArray
    checksums: dict[str, str]


@dataclass
class CorpusSet(LearntSet[CorpusSpec]):
    """Sentences of `block_size` successive words each, wherever sentences really end."""

    cut: Cut
    questions_root: str | None
    spec: CorpusSpec = field(init=False)
    numbers: NDArray | None = field(default=None, init=False)  # (N, block_size) int32
    splits: dict[str, NDArray] = field(default_factory=dict, init=False)  # rows of `numbers`
    questions: dict[str, Questions] = field(default_factory=dict, init=False)

    def adopt(self, spec: Spec) -> None:
        self.known = spec if isinstance(spec, CorpusSpec) else None

    def prepare(self) -> None:
        """Raises DataError naming a file, and ConfigError where too little is left."""
        if self.splits:
            return
        words, counts, numbers, self.digests = self.read(self.known)
        sentences = len(numbers) // self.block_size
        self.splits = self._cut(sentences)
        self.numbers = numbers[: sentences * self.block_size].reshape(sentences, self.block_size)
        sections: tuple[str, ...] = ()
        if self.questions_root is not None:
            sections, asked = read_questions(self.questions_root, words)
            self.questions = halves(asked)
            self.digests |= {file.path: file.sha256 for file in (WORDSIM, ANALOGIES)}
        self.spec = CorpusSpec(words, counts, sections)

    def _loader(self, split: str, batch_size: int, placement: Placement) -> CorpusLoader:
        from refresher_runner.data.loaders import Order

        assert self.numbers is not None, "prepare() comes first"
        rows = self.splits[split]
        order = Order(len(rows), batch_size, placement, train=split == "train")
        return CorpusLoader(self.numbers, rows, order, self.questions.get(split, no_questions()))

    def _cut(self, sentences: int) -> dict[str, NDArray]:
        import numpy as np

        val, test = (max(1, round(share * sentences)) if share else 0 for share in (self.cut.val, self.cut.test))
        if val + test >= sentences:
            problem = f"{next(iter(self.digests))} has {sentences} sentences of so many words, too few for every split"
            raise ConfigError(problem, key="data.block_size", value=self.block_size, cure="a smaller data.block_size, or a longer text")
        order = np.random.default_rng(SPLIT_SEED).permutation(sentences).astype(np.int32)
        splits = {"val": np.sort(order[:val]), "test": np.sort(order[val : val + test]), "train": np.sort(order[val + test :])}
        return splits if test else {**splits, "test": splits["val"]}  # of which other questions are asked


class CorpusLoader:
    """Batches of sentences (N, L), held in memory; in evaluation each with its share of the questions."""

    def __init__(self, numbers: NDArray, rows: NDArray, order: Order, questions: Questions):
        import torch

        self.numbers, self.rows, self.order = torch.from_numpy(numbers), torch.from_numpy(rows), order
        self.device = order.placement.device
        if self.device.startswith("cuda"):
            self.numbers, self.rows = self.numbers.to(self.device), self.rows.to(self.device)
        self.questions = [torch.from_numpy(part) for part in questions]

    def __len__(self) -> int:
        return len(self.order)

    def batches(self, epoch: int, start: int = 0) -> Iterator[CorpusBatch]:
        rank, world = self.order.placement.rank, self.order.placement.world_size
        for number, batch in enumerate(self.order.batches(epoch)[start:], start):
            words = self.numbers.index_select(0, self.rows[batch.to(self.rows.device)]).long().to(self.device)
            share = slice(number + rank * len(self), None, len(self) * world)
            yield CorpusBatch(words, *(part[share].to(self.device) for part in self.questions))


# -------------------------------------------------------------------- words


def counted(source: str, read: Callable[[Callable[[bytes], None]], Iterable[str]], min_count: int, known: CorpusSpec | None) -> Counted:
    """What `read` gives, pieces of text that are cut between words, in small letters; to what it is given go the bytes that it reads.

    Raises ConfigError where fewer than two words are left.
    """
    digest = hashlib.sha256()
    words, counts, numbers = count(map(str.lower, read(digest.update)), min_count, known)
    if len(words) < 2:
        problem = f"leaves {len(words)} words of {source}"
        raise ConfigError(problem, key="data.min_count", value=min_count, cure="a smaller data.min_count, or a longer text")
    return Counted(words, counts, numbers, {source: digest.hexdigest()})


def count(texts: Iterable[str], min_count: int, known: CorpusSpec | None = None) -> tuple[tuple[str, ...], tuple[int, ...], NDArray]:
    """Words that come `min_count` times or more, the most frequent first; how often each comes; and the text, by their numbers, int32.

    `known` words, if any, are kept as they are numbered and counted there.
    """
    import numpy as np

    place: defaultdict[str, int] = defaultdict(None, {word: n for n, word in enumerate(known.words)} if known else {})
    place.default_factory = place.__len__
    numbers, end = np.empty(CHARACTERS, np.int32), 0
    for text in texts:
        found = WORD.findall(text)
        if end + len(found) > len(numbers):
            longer = np.empty(8 * end + len(found), np.int32)  # addresses alone until written, while every copy leaves memory behind
            longer[:end] = numbers[:end]
            numbers = longer
        numbers[end : end + len(found)] = np.fromiter(map(place.__getitem__, found), np.int32, len(found))
        end += len(found)
    numbers = numbers[:end]
    if known:
        anew = np.arange(len(place), dtype=np.int32)
        anew[len(known.words) :] = -1
        return known.words, known.counts, _renumbered(numbers, anew)
    counts = np.zeros(len(place), np.int64)
    for begin in range(0, end, CHARACTERS):  # what is counted at once is copied, as numbers twice as long
        counts += np.bincount(numbers[begin : begin + CHARACTERS], minlength=len(place))
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] >= min_count]
    anew = np.full(len(place), -1, np.int32)
    anew[order] = np.arange(len(order), dtype=np.int32)
    words = list(place)
    return tuple(words[n] for n in order), tuple(counts[order].tolist()), _renumbered(numbers, anew)


def _renumbered(numbers: NDArray, anew: NDArray) -> NDArray:
    """Every number by its new one, without those that have none, -1; in place, piece by piece, since a corpus may be large."""
    end = 0
    for begin in range(0, len(numbers), CHARACTERS):
        piece = anew[numbers[begin : begin + CHARACTERS]]
        piece = piece[piece >= 0]
        numbers[end : end + len(piece)] = piece
        end += len(piece)
    return numbers[:end]


# -------------------------------------------------------------------- questions


def read_questions(root: str, words: tuple[str, ...]) -> tuple[tuple[str, ...], Questions]:
    """WordSim-353 (Finkelstein et al., 2002) and the analogies of Mikolov et al., 2013a: names of their sections, and the questions.

    Raises DataError where a file is absent or damaged, and cannot be had.
    """
    import numpy as np

    place = {word: number for number, word in enumerate(words)}
    rated = [line.lower().split("\t") for line in fetch(root, WORDSIM).decode().splitlines() if not line.startswith("#")]
    sections: list[str] = []
    asked: list[tuple[int, list[str]]] = []
    for line in fetch(root, ANALOGIES).decode().splitlines():
        if line.startswith(":"):
            sections.append(line[1:].strip())
        else:
            asked.append((len(sections) - 1, line.lower().split()))
    questions = Questions(
        np.array([[place.get(word, -1) for word in row[:2]] for row in rated]),
        np.array([float(row[2]) for row in rated], np.float32),
        np.array([[place.get(word, -1) for word in question] for _, question in asked]),
        np.array([section for section, _ in asked]),
    )
    return tuple(sections), questions


def halves(questions: Questions) -> dict[str, Questions]:
    """One half to choose by, one to report."""
    import numpy as np

    draws = np.random.default_rng(SPLIT_SEED)
    first, second = (draws.permutation(len(part)) for part in (questions.pairs, questions.analogies))
    return {
        split: Questions(*(part[order[half::2]] for part, order in zip(questions, (first, first, second, second), strict=True)))
        for half, split in enumerate(("val", "test"))
    }


def no_questions() -> Questions:
    """Of a corpus that nothing is asked of."""
    import numpy as np

    return Questions(np.zeros((0, 2), np.int64), np.zeros(0, np.float32), np.zeros((0, 4), np.int64), np.zeros(0, np.int64))


# -------------------------------------------------------------------- data sets


@DATASETS.register("python_words")
def build_python_words(
    *,
    min_count: Positive,
    block_size: Positive,
    batch_size: Positive,
    eval_batch_size: Positive,
    val_fraction: Share,
    test_fraction: Fraction,
) -> DataModule[CorpusSpec]:
    """The words of Python's own documentation, as it is installed; 0.3 million."""

    def read(digest: Callable[[bytes], None]) -> list[str]:
        content = read_python_docs().content
        digest(content.encode())
        return [content]

    cut = Cut(val_fraction, test_fraction)
    return CorpusSet(
        lambda known: counted("documentation of Python", read, min_count, known), block_size, batch_size, eval_batch_size, cut, None
    )


@DATASETS.register("text8")
def build_text8(
    *,
    root: str,
    min_count: Positive,
    block_size: Positive,
    batch_size: Positive,
    eval_batch_size: Positive,
    val_fraction: Share,
    test_fraction: Fraction,
) -> DataModule[CorpusSpec]:
    """text8: 17 million words of the English Wikipedia of 2006 (Mahoney), judged by WordSim-353 and analogies."""

    def read(digest: Callable[[bytes], None]) -> Iterator[str]:
        fetch(root, TEXT8)
        return read_files(Path(root, TEXT8.path), digest)

    cut = Cut(val_fraction, test_fraction)
    return CorpusSet(lambda known: counted(TEXT8.path, read, min_count, known), block_size, batch_size, eval_batch_size, cut, root)


@DATASETS.register("corpus")
def build_corpus(
    *,
    root: str,
    questions: str | None,
    min_count: Positive,
    block_size: Positive,
    batch_size: Positive,
    eval_batch_size: Positive,
    val_fraction: Share,
    test_fraction: Fraction,
) -> DataModule[CorpusSpec]:
    """The words of your own text: a file, plain or packed, or a folder of such."""

    def read(digest: Callable[[bytes], None]) -> Iterator[str]:
        return read_files(Path(root), digest)

    cut = Cut(val_fraction, test_fraction)
    return CorpusSet(
        lambda known: counted(Path(root).name, read, min_count, known), block_size, batch_size, eval_batch_size, cut, questions
    )
