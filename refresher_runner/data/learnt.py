"""What every set of text is: read whole, once, with a vocabulary that is learnt from it, or another run's. Free of numpy until used."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from refresher_runner.data.subwords import learn_subwords
from refresher_runner.errors import ConfigError, DataError
from refresher_runner.spec import DataModule, Loader, Placement, Spec
from refresher_runner.vocabulary import Vocabulary, characters

S = TypeVar("S", bound=Spec)


@dataclass
class LearntSet(DataModule[S]):
    """A set that is read whole, once, by `prepare`. Without a test split of its own it is tested on its validation split."""

    learnt: ClassVar[bool] = True

    read: Callable[[Any], Any]  # with what is `known`, a vocabulary mostly, or None: then with one of its own
    block_size: int
    batch_size: int
    eval_batch_size: int
    splits: dict[str, Any] = field(default_factory=dict, init=False)
    digests: dict[str, str] = field(default_factory=dict, init=False)
    known: Any = field(default=None, init=False)  # of a checkpoint, as `adopt` takes it out of its spec

    def adopt(self, spec: Spec) -> None:
        self.known = getattr(spec, "vocabulary", None)

    def checksums(self) -> dict[str, str]:
        return self.digests

    def train_loader(self, placement: Placement) -> Loader:
        return self._loader("train", self.batch_size, placement)

    def val_loader(self, placement: Placement) -> Loader:
        return self._loader("val", self.eval_batch_size, placement)

    def test_loader(self, placement: Placement) -> Loader:
        return self._loader("test" if "test" in self.splits else "val", self.eval_batch_size, placement)

    @abstractmethod
    def _loader(self, split: str, batch_size: int, placement: Placement) -> Loader: ...


def vocabulary_of(content: str, train: Sequence[str], tokens: str, vocab_size: int, known: Vocabulary | None, *, source: str) -> Vocabulary:
    """The one that is known, where it suits; else subwords of what is trained on, or the characters of all of a text.

    Raises ConfigError for options that contradict a known one, DataError, naming the source, for a character that it lacks.
    """
    if known is None:
        return learn_subwords(train, vocab_size) if tokens == "subwords" else characters(content)
    refuse_contradiction(known, tokens, vocab_size)
    if not known.merges and (strange := set(content).difference(known.tokens)):
        problem = f"holds {min(strange)!r}, a character that the vocabulary of the checkpoint lacks"
        raise DataError(problem, key=source, cure="text of its characters alone, or a new run with a vocabulary of its own")
    return known


def refuse_contradiction(known: Vocabulary, tokens: str, vocab_size: int) -> None:
    """Raises ConfigError where `data.tokens` or `data.vocab_size` ask for another vocabulary than the one that is known."""
    kind = "subwords" if known.merges else "characters"
    if tokens != kind:
        problem = f"the checkpoint's vocabulary is of {kind}"
        raise ConfigError(problem, key="data.tokens", value=tokens, cure=f"data.tokens={kind}, or a run without init_from")
    if known.merges and len(known) > vocab_size:
        problem = f"the checkpoint's vocabulary has {len(known)} subwords"
        cure = f"data.vocab_size={len(known)}, or a run without init_from"
        raise ConfigError(problem, key="data.vocab_size", value=vocab_size, cure=cure)


def narrowest(vocab_size: int) -> type[Any]:
    """The smallest of numpy's integers that holds every number below `vocab_size`."""
    import numpy as np

    return next(kind for kind in (np.uint8, np.int16, np.int32) if vocab_size <= np.iinfo(kind).max + 1)
