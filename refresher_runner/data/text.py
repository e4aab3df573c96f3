"""Running text: Tiny Shakespeare, a text of one's own, and what a set of text is: windows of successive tokens, from memory.

A text is cut in its own order: training first, then validation, then the test. Free of torch, numpy and `tokenizers` until `prepare`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from refresher_runner.data.fetch import Published, fetch, sha256
from refresher_runner.data.learnt import LearntSet, narrowest, vocabulary_of
from refresher_runner.data.subwords import encode_text, pieces
from refresher_runner.errors import ConfigError, DataError
from refresher_runner.registry import DATASETS
from refresher_runner.schema import Fraction, Positive, Share
from refresher_runner.spec import DataModule, Placement, TextBatch, TextSpec
from refresher_runner.vocabulary import Vocabulary

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from refresher_runner.data.loaders import Order

SHAKESPEARE = Published(
    "tinyshakespeare/input.txt",
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)


class Text(NamedTuple):
    """What was read, and the digests of its files."""

    content: str
    checksums: dict[str, str]


@dataclass(frozen=True)
class Cut:
    """Shares of a text: training before `val`, `val` before `test`, which there need not be."""

    val: float
    test: float

    def __post_init__(self) -> None:
        if self.val + self.test >= 1:
            problem = f"with data.val_fraction={self.val:g} leaves nothing to train on"
            raise ConfigError(problem, key="data.test_fraction", value=self.test, cure="shares that add up to less than 1")

    def __call__(self, content: str) -> dict[str, str]:
        val, test = (int(len(content) * (1 - share)) for share in (self.val + self.test, self.test))
        parts = {"train": content[:val], "val": content[val:test]}
        return parts | {"test": content[test:]} if self.test else parts


class Parts(NamedTuple):
    """A text that is cut: its vocabulary, the splits, and the digests of its files."""

    vocabulary: Vocabulary
    splits: dict[str, str]
    checksums: dict[str, str]


def parts_of(text: Text, cut: Cut, tokens: str, vocab_size: int, known: Vocabulary | None) -> Parts:
    """Raises what `vocabulary_of` does."""
    content, checksums = text
    splits = cut(content)
    return Parts(
        vocabulary_of(content, pieces(splits["train"]), tokens, vocab_size, known, source=next(iter(checksums))), splits, checksums
    )


@dataclass
class TextSet(LearntSet[TextSpec]):
    """A text, of whose splits every epoch reads all. Characters are those of all of it; subwords are learnt from its training part."""

    spec: TextSpec = field(init=False)
    splits: dict[str, NDArray] = field(default_factory=dict, init=False)  # numbers (N,), of the smallest type that holds them

    def prepare(self) -> None:
        """Raises DataError naming a file, and ConfigError where a split is shorter than a window."""
        if self.splits:
            return
        vocabulary, parts, digests = self.read(self.known)
        splits = {split: numbers(vocabulary, part) for split, part in parts.items()}
        for split, found in splits.items():
            self._check(split, len(found))
        self.spec, self.splits, self.digests = TextSpec(vocabulary, self.block_size), splits, digests

    def _loader(self, split: str, batch_size: int, placement: Placement) -> WindowLoader:
        import torch

        from refresher_runner.data.loaders import Order

        assert self.splits, "prepare() comes first"
        found, train = torch.from_numpy(self.splits[split]), split == "train"
        return WindowLoader(found, self.block_size, Order(windows(len(found), self.block_size, train), batch_size, placement, train=train))

    def _check(self, split: str, count: int) -> None:
        if windows(count, self.block_size, train=split == "train") < 1:
            name = {"train": "training", "val": "validation"}.get(split, split)
            raise ConfigError(
                f"the {name} split, {count} tokens, holds no window of so many",
                key="data.block_size",
                value=self.block_size,
                cure="a smaller data.block_size, a longer text, or a larger share for this split",
            )


def windows(count: int, block_size: int, train: bool) -> int:
    """How many windows of an epoch lie end to end in `count` tokens, the last of which is but a target; in training wherever they begin."""
    return max(0, count - (block_size if train else 1)) // block_size


class WindowLoader:
    """Batches of windows of one text (N,), held in memory, on the device if it is CUDA.

    The windows of an epoch lie end to end. In training they begin at a place in [0, block_size) that is drawn for each epoch, and come
    in random order. Evaluation goes through the text from its beginning; what is left at its end is too short for a window.
    """

    def __init__(self, numbers: Tensor, block_size: int, order: Order):
        from refresher_runner.data.loaders import BLOCK

        self.order, self.block_size, self.device = order, block_size, order.placement.device
        home = self.device if self.device.startswith("cuda") else "cpu"  # other accelerators would copy the overlapping view
        numbers = numbers.to(home)
        self.spans = numbers.as_strided((len(numbers) - block_size + 1, block_size), (1, 1))  # (N - T + 1, T)
        self.block = max(1, BLOCK // (2 * 8 * block_size * order.batch_size))  # batches made at once: tokens and targets, int64

    def __len__(self) -> int:
        return len(self.order)

    def batches(self, epoch: int, start: int = 0) -> Iterator[TextBatch]:
        import torch

        from refresher_runner.data.loaders import mix

        order, seed = self.order.batches(epoch), self.order.placement.seed
        shift = mix("windows", seed, epoch) % self.block_size if self.order.train else 0
        for first in range(start, len(order), self.block):
            block = order[first : first + self.block]
            begin = torch.cat(tuple(block)).to(self.spans.device) * self.block_size + shift
            both = (self.spans.index_select(0, begin + ahead).long().to(self.device) for ahead in (0, 1))
            yield from map(TextBatch, *(part.split([len(batch) for batch in block]) for part in both))


def numbers(vocabulary: Vocabulary, text: str) -> NDArray:
    """`vocabulary.encode` of a long text: (N,) uint8, int16 or int32. Every character must be known."""
    import numpy as np

    kind = narrowest(len(vocabulary))
    if vocabulary.merges:
        return encode_text(vocabulary, text).astype(kind)
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    table = np.zeros(1 + max(map(ord, vocabulary.tokens)), kind)
    table[[ord(token) for token in vocabulary.tokens]] = np.arange(len(vocabulary))
    return table[points]


@DATASETS.register("tiny_shakespeare")
def build_tiny_shakespeare(
    *,
    root: str,
    tokens: Literal["characters", "subwords"],
    vocab_size: Positive,
    block_size: Positive,
    batch_size: Positive,
    eval_batch_size: Positive,
    val_fraction: Share,
    test_fraction: Fraction,
) -> DataModule[TextSpec]:
    """Tiny Shakespeare: 1.1 MB of his plays (Karpathy 2015).

    With the shares 0.1 and 0 it is cut as nanoGPT cuts it, 1,003,854 characters to train and 111,540 to validate, which are then the
    test too: its figures are the best of what was chosen by them.
    """
    cut = Cut(val_fraction, test_fraction)
    return TextSet(lambda known: parts_of(read_shakespeare(root), cut, tokens, vocab_size, known), block_size, batch_size, eval_batch_size)


@DATASETS.register("text_file")
def build_text_file(
    *,
    root: str,
    tokens: Literal["characters", "subwords"],
    vocab_size: Positive,
    block_size: Positive,
    batch_size: Positive,
    eval_batch_size: Positive,
    val_fraction: Share,
    test_fraction: Fraction,
) -> DataModule[TextSpec]:
    """Your own text: a file, or a folder of .txt files."""
    cut = Cut(val_fraction, test_fraction)
    return TextSet(lambda known: parts_of(read_text(Path(root)), cut, tokens, vocab_size, known), block_size, batch_size, eval_batch_size)


def read_shakespeare(root: str) -> Text:
    """Raises DataError where the file is absent or damaged, and cannot be had."""
    return Text(fetch(root, SHAKESPEARE).decode(), {SHAKESPEARE.path: SHAKESPEARE.sha256})


def read_text(root: Path) -> Text:
    """A file, or all .txt files below a folder by their names, a blank line between two; their lines end as on Unix.

    Raises DataError naming a file that is absent, empty, or not UTF-8.
    """
    cure = "set data.root to a text file, or to a folder of .txt files"
    files = sorted(file for file in root.rglob("*.txt") if file.is_file()) if root.is_dir() else [root]
    if not files:
        raise DataError("holds no .txt file", key=str(root), cure=cure)
    digests, texts = {}, []
    for file in files:
        content = content_of(file, cure)
        digests[str(file.relative_to(root)) if root.is_dir() else file.name] = sha256(content)
        texts.append(decoded(file, content))
    return Text("\n\n".join([*(text.rstrip("\n") for text in texts[:-1]), texts[-1]]), digests)


def content_of(file: Path, cure: str) -> bytes:
    """Raises DataError, naming the file, where it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        problem = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise DataError(problem, key=str(file), cure=cure) from None


def decoded(file: Path, content: bytes) -> str:
    """Without a byte-order mark, every line ended by a line feed. Raises DataError, naming the file, where it is empty or not UTF-8."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8: byte {content[error.start]:#04x} at {error.start}"
        raise DataError(problem, key=str(file), cure="convert it, say by `iconv -f latin1 -t utf-8`, or take it away") from None
    if not text.strip():
        raise DataError("is empty", key=str(file), cure="put a text there, or take the file away")
    return text.replace("\r\n", "\n").replace("\r", "\n")
