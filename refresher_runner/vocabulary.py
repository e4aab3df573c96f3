"""What the numbers that stand for text mean. Free of torch, and of the `tokenizers` library until subwords are asked for.

A token is a character, or a subword that byte-pair encoding learnt (Sennrich et al., 2016).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from refresher_runner.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, BEGIN, END, UNKNOWN = range(4)
SPECIAL = "[PAD]", "[BEGIN]", "[END]", "[UNKNOWN]"  # the first tokens of every vocabulary of sentences


@dataclass(frozen=True)
class Vocabulary:
    """`tokens` are V different strings, and a token's number is its place among them; `merges` is the JSON of the `tokenizers` library's
    Tokenizer, or empty where every token but the special ones is a character.
    """

    tokens: tuple[str, ...]
    merges: str = ""

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> list[int]:
        """Text to numbers in [0, V). Raises UsageError naming a character that is not known, unless there is a token for the unknown."""
        if self.merges:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        numbers, unknown = self._numbers, UNKNOWN if SPECIAL[UNKNOWN] in self._numbers else None
        try:
            return [numbers[c] for c in text] if unknown is None else [numbers.get(c, unknown) for c in text]
        except KeyError as error:
            known = "".join(token for token in self.tokens if len(token) == 1)
            raise UsageError(f"the character {error.args[0]!r} is not in the vocabulary", cure=f"it knows {known!r}") from None

    def decode(self, numbers: Iterable[int]) -> str:
        """The inverse of `encode`; special tokens are left out."""
        if self.merges:
            return self._tokenizer.decode(list(numbers), skip_special_tokens=True)
        return "".join(token for token in (self.tokens[n] for n in numbers) if token not in SPECIAL)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.merges)
        tokenizer.encode_special_tokens = True  # a text that says "[END]" says five characters, and does not end there
        return tokenizer


def characters(text: str, special: tuple[str, ...] = ()) -> Vocabulary:
    """Every character of a text, in the order of their code points, after the special tokens."""
    return Vocabulary((*special, *sorted(set(text))))
