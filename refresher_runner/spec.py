"""What a data set promises (specs) and yields (batches), and how batches are asked for (loaders, data modules).

A spec is known before anything is downloaded, but for what is learnt from the data, a vocabulary say: a model is built from it, and a
checkpoint carries it. Free of torch until a picture is read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

from refresher_runner.features import Column, Log, Table
from refresher_runner.pictures import Letterbox, letterbox, read_picture
from refresher_runner.vocabulary import BEGIN, END, PAD, Vocabulary

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True)
class Spec:
    """What a data set promises. One subclass a kind of batch."""

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for a checkpoint."""
        return {"kind": type(self).__name__, **asdict(self)}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Spec:
        kinds = {kind.__name__: kind for kind in _subclasses(Spec)}
        return kinds[values["kind"]](**{name: _field(value) for name, value in values.items() if name != "kind"})


@dataclass(frozen=True)
class ImageSpec(Spec):
    """Square pictures with one label each.

    `mean` and `std` are per channel, of pixels in [0, 1]: a batch holds (pixels - mean) / std.
    """

    channels: int
    size: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1], (..., C, H, W) -> what the model sees."""
        mean, std = (pixels.new_tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return (pixels - mean) / std

    def pixels(self, images: Tensor) -> Tensor:
        """What the model sees, (..., C, H, W) -> pixels in [0, 1]."""
        mean, std = (images.new_tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return (images * std + mean).clamp(0, 1)

    def read(self, path: str | Path) -> Tensor:
        """A picture file as one image (C, H, W) of a batch: resized to fit, centre-cropped to a square, normalised.

        Raises DataError, naming the file, when it is absent, damaged or not a picture.
        """
        return self.normalise(read_picture(path, self.channels, self.size))


@dataclass(frozen=True)
class CaptionSpec(ImageSpec):
    """Square pictures with a caption each, at most `block_size` tokens of a vocabulary that begins with vocabulary.SPECIAL.

    `prompts` are captions that a picture of each class could have; none for a class that no caption names. `aspects` are what is known
    of every picture beside its caption, by name, and the values that each has.
    """

    vocabulary: Vocabulary
    block_size: int
    prompts: tuple[tuple[str, ...], ...] = ()
    aspects: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Captions (N) -> tokens (N, T) int64, T = block_size: BEGIN, as many as fit, END, then PAD."""
        import torch

        tokens = torch.full((len(captions), self.block_size), PAD)
        for row, caption in zip(tokens, captions, strict=True):
            numbers = self.vocabulary.encode(plain(caption))[: self.block_size - 2]
            row[: len(numbers) + 2] = torch.tensor([BEGIN, *numbers, END])
        return tokens

    def decode(self, tokens: Tensor) -> list[str]:
        """Tokens (N, T) -> captions."""
        return [self.vocabulary.decode(row) for row in tokens.tolist()]


def plain(caption: str) -> str:
    """A caption as it is read: small letters, one space between words."""
    return " ".join(caption.lower().split())


class CaptionBatch(NamedTuple):
    """images (B, C, S, S) float, normalised by the spec; labels (B,) int64; captions (B, T) int64, as `CaptionSpec.encode` has them;
    truth (B, A) int64: the value of each aspect, -1 where there is none; meanings (B,) int64: captions with one number say the same.
    """

    images: Tensor
    labels: Tensor
    captions: Tensor
    truth: Tensor
    meanings: Tensor


@dataclass(frozen=True)
class DetectionSpec(Spec):
    """Square pictures with any number of labelled boxes each. A batch holds pixels in [0, 1]."""

    channels: int
    size: int
    classes: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def fit(self, picture: Image) -> tuple[Tensor, Letterbox]:
        """A picture as one image (C, S, S) of a batch, letter-boxed, and how."""
        pixels, how = letterbox(picture, self.size)
        return pixels.float() / 255, how


class DetectionBatch(NamedTuple):
    """images (B, C, S, S) float in [0, 1]; of all their M boxes together: boxes (M, 4) float, x1 y1 x2 y2 in pixels of the square;
    labels (M,) int64; owners (M,) int64 in [0, B), ascending: the picture that a box belongs to.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor
    owners: Tensor


@dataclass(frozen=True)
class TextSpec(Spec):
    """Windows of `block_size` successive tokens of a text."""

    vocabulary: Vocabulary
    block_size: int


class TextBatch(NamedTuple):
    """tokens (B, T) int64, T = block_size; targets (B, T) int64: the token after each."""

    tokens: Tensor
    targets: Tensor


@dataclass(frozen=True)
class LabelledTextSpec(Spec):
    """Texts of at most `block_size` tokens, with one label each."""

    vocabulary: Vocabulary
    block_size: int
    classes: tuple[str, ...]


class LabelledTextBatch(NamedTuple):
    """tokens (B, T) int64, of each row the first of lengths (B,) int64, 1 <= length <= T <= block_size, then PAD; labels (B,) int64."""

    tokens: Tensor
    lengths: Tensor
    labels: Tensor


@dataclass(frozen=True)
class PairSpec(Spec):
    """Sentences and what each becomes, at most `block_size` tokens on either side, PAD, BEGIN and END included.

    Both vocabularies begin with vocabulary.SPECIAL; they may be one and the same.
    """

    source: Vocabulary
    target: Vocabulary
    block_size: int


class PairBatch(NamedTuple):
    """source (B, S) int64: a sentence, END, then PAD; target (B, T) int64: BEGIN, a sentence, END, then PAD. S, T <= block_size."""

    source: Tensor
    target: Tensor


@dataclass(frozen=True)
class CorpusSpec(Spec):
    """Sentences of words. `words` are V different ones, a word's number is its place among them, and `counts` tells how often each comes
    in the corpus, which never grows. What is asked of them in evaluation has `sections`; without any, nothing is asked.
    """

    words: tuple[str, ...]
    counts: tuple[int, ...]
    sections: tuple[str, ...] = ()

    @cached_property
    def numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}


class CorpusBatch(NamedTuple):
    """words (B, L) int64: of B sentences, L words each. Of evaluation: pairs (P, 2) int64 of words and their likeness, ratings (P,)
    float; analogies (Q, 4) int64, of which the first is to the second as the third to the fourth; sections (Q,) int64. A word that is
    not in the corpus is -1. In training P = Q = 0.
    """

    words: Tensor
    pairs: Tensor
    ratings: Tensor
    analogies: Tensor
    sections: Tensor


@dataclass(frozen=True)
class InteractionSpec(Spec):
    """Users, items, and which items each user came to, one after another; `block_size` of these at most foretell the next.

    The log holds every event, so that a user can be served from a checkpoint alone; a model learns from batches, never from the log.
    `best_recall` is the largest mean recall of ten items that the law behind the data allows, where it is known.
    """

    users: Table
    items: Table
    log: Log
    block_size: int
    best_recall: float | None = None


class InteractionBatch(NamedTuple):
    """users (B,) int64; events (B, L) int64: a history of items in order of time, then -1; wanted (K, 3) int64, rows ascending: a row,
    a place in [0, L], and an item, that is to be foretold from the events of the row before that place. Of evaluation also seen (S, 2)
    int64, rows ascending: a row, and an item that is not to be recommended there; in training S = 0.
    """

    users: Tensor
    events: Tensor
    wanted: Tensor
    seen: Tensor


class ImageBatch(NamedTuple):
    """images (B, C, H, W) float, normalised by the spec; labels (B,) int64."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Placement:
    """Where batches are wanted, and which part of each: this rank takes its share of every global batch."""

    device: str = "cpu"
    seed: int = 0
    rank: int = 0
    world_size: int = 1


class Loader(Protocol):
    """Batches of one split, in an order that is a function of (seed, epoch) alone."""

    def __len__(self) -> int:
        """Batches in an epoch."""
        ...

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of an epoch from batch `start` on, each a named tuple of tensors on the placement's device."""
        ...


S = TypeVar("S", bound=Spec, covariant=True)


class DataModule(ABC, Generic[S]):
    """One data set with its three splits. Constructing it reads nothing: `prepare` does."""

    spec: S
    batch_size: int
    reader: Callable[[Tensor, Tensor], Tensor] | None = None  # what pictures of such data show, by rule: a task's Reader
    learnt: ClassVar[bool] = False  # whether the spec is learnt from the data, and known only after `prepare`

    def adopt(self, spec: Spec) -> None:
        """Keep the vocabulary of this spec, out of a checkpoint. Called before `prepare`; only sets that are learnt have one to keep."""

    @abstractmethod
    def prepare(self) -> None:
        """Fetch, verify and load what the loaders need; safe to call from several processes. Raises DataError."""

    @abstractmethod
    def train_loader(self, placement: Placement) -> Loader: ...
    @abstractmethod
    def val_loader(self, placement: Placement) -> Loader: ...
    @abstractmethod
    def test_loader(self, placement: Placement) -> Loader: ...

    def checksums(self) -> dict[str, str]:
        """File name -> sha256 of what was read, for the run's record. After `prepare`."""
        return {}


def _subclasses(kind: type) -> list[type]:
    return [s for direct in kind.__subclasses__() for s in (direct, *_subclasses(direct))]


_PARTS = {frozenset(field.name for field in fields(kind)): kind for kind in (Vocabulary, Column, Table, Log)}


def _field(value: Any) -> Any:
    """A field of a spec as it was before it was put into plain containers."""
    if isinstance(value, Mapping):
        return _PARTS[frozenset(value)](**{name: _field(part) for name, part in value.items()})
    return tuple(map(_field, value)) if isinstance(value, (list, tuple)) else value
