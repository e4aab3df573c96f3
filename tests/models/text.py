"""A small text, its specs, and batches of it."""

from __future__ import annotations

import torch

from refresher_runner.data.subwords import learn_subwords
from refresher_runner.spec import TextBatch, TextSpec
from refresher_runner.vocabulary import characters

TEXT = "She sells sea shells by the sea shore.\nThe shells she sells are sea shells, I'm sure.\n" * 4
CHARACTERS = TextSpec(characters(TEXT), 16)
SUBWORDS = TextSpec(learn_subwords([TEXT], 280), 12)


def text_batch(spec: TextSpec = CHARACTERS, size: int = 4) -> TextBatch:
    """Windows of the text, one after another."""
    numbers = torch.tensor(spec.vocabulary.encode(TEXT))
    windows = torch.stack([numbers[i * spec.block_size : (i + 1) * spec.block_size + 1] for i in range(size)])
    return TextBatch(windows[:, :-1], windows[:, 1:])
