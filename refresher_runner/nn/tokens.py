"""Tokens as a person reads them."""

from __future__ import annotations

from collections.abc import Iterable

from refresher_runner.vocabulary import Vocabulary

VISIBLE = str.maketrans({" ": "␣", "\n": "↵", "\r": "␍", "\t": "→"})


def token_names(vocabulary: Vocabulary, numbers: Iterable[int]) -> tuple[str, ...]:
    """What each token decodes to, white space made visible; special tokens and parts of a character as the vocabulary has them."""
    names = []
    for number in numbers:
        text = vocabulary.decode([number])
        names.append(text.translate(VISIBLE) if text and "\N{REPLACEMENT CHARACTER}" not in text else vocabulary.tokens[number])
    return tuple(names)


def cell(text: str) -> str:
    """Text in a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
