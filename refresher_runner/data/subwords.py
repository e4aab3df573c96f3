"""Subwords learnt from a text: byte-level byte-pair encoding, by the `tokenizers` library, which is imported when it is needed.

Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", 2016. https://arxiv.org/abs/1508.07909
On bytes (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019) there is no text that it cannot write.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from refresher_runner.errors import ConfigError
from refresher_runner.vocabulary import Vocabulary

if TYPE_CHECKING:
    from numpy.typing import NDArray

BYTES = 256  # tokens of one byte each, which every vocabulary has
PIECE = 2**16  # characters, or a few more, that are encoded at once


def learn_subwords(texts: Iterable[str], vocab_size: int, special: Sequence[str] = (), *, sentences: bool = False) -> Vocabulary:
    """The special tokens, the bytes, and the most frequent merges that occur at least twice: at most `vocab_size` in all.

    With `sentences` a first word is written like those within, and what is encoded must not begin with a space. A function of
    `texts` and the options alone. Raises ConfigError where the vocabulary could not even hold the bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < len(special) + BYTES:
        raise ConfigError(
            f"has no room for {BYTES} bytes{f' and {len(special)} special tokens' if special else ''}",
            key="data.vocab_size",
            value=vocab_size,
            cure=f"at least {len(special) + BYTES}; some thousands are usual",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=sentences)
    space = [decoders.Strip(" ", 1, 0)] if sentences else []
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), *space])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    numbers = tokenizer.get_vocab()
    return Vocabulary(tuple(sorted(numbers, key=numbers.__getitem__)), tokenizer.to_str())


def pieces(text: str) -> list[str]:
    """A text cut where no token crosses: after a line's end between two visible characters."""
    found, begin = [], 0
    while begin < len(text):
        end = min(begin + PIECE, len(text))
        while end < len(text) and not (text[end - 1] == "\n" and not text[end - 2].isspace() and not text[end].isspace()):
            end = text.find("\n", end) + 1 or len(text)
        found.append(text[begin:end])
        begin = end
    return found


def encode_text(vocabulary: Vocabulary, text: str) -> NDArray:
    """The numbers (N,) int32 of a long text, as `vocabulary.encode` has them, in a fraction of its memory and on all cores."""
    import numpy as np

    return _joined(encode_all(vocabulary, pieces(text)), np.int32)


def encode_sentences(vocabulary: Vocabulary, sentences: Sequence[str]) -> list[list[int]]:
    """The numbers of each sentence, as `vocabulary.encode` has them.

    No token crosses from one word into the next one's space, so each word is encoded once, however often it occurs.
    """
    words = sorted({word for sentence in sentences for word in sentence.split(" ")})
    known = dict(zip(words, encode_all(vocabulary, [f" {word}" for word in words]), strict=True))
    return [
        # Spaces in a row are tokens of their own, and none is set before an empty sentence.
        vocabulary.encode(sentence)
        if not sentence or "  " in sentence or sentence[0].isspace() or sentence[-1].isspace()
        else list(chain.from_iterable(known[word] for word in sentence.split(" ")))
        for sentence in sentences
    ]


def encode_all(vocabulary: Vocabulary, texts: Sequence[str]) -> list[list[int]]:
    """`vocabulary.encode` of each text, on all cores."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(vocabulary.merges)
    tokenizer.encode_special_tokens = True  # what looks like one is text
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def _joined(parts: list[list[int]], kind: type) -> NDArray:
    import numpy as np

    return np.fromiter(chain.from_iterable(parts), kind, sum(map(len, parts)))
