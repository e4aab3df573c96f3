"""What counting alone knows of a text: baselines for models of language. Letters: V tokens in the vocabulary, B windows of T tokens."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from refresher_runner.spec import TextBatch

LARGEST = 4096  # tokens of a vocabulary whose pairs are counted
PRIOR = 0.1  # added to every count


class NGrams(nn.Module):
    """How often each token, and each pair of neighbours, occurred in training, saved with the weights; gaps are filled from that."""

    unigrams: Tensor  # (V,), of each token
    bigrams: Tensor  # (V, V), of each before each; empty where V is large

    def __init__(self, vocab_size: int):
        super().__init__()
        self.pairs = vocab_size <= LARGEST  # whether pairs are counted
        self.register_buffer("unigrams", torch.zeros(vocab_size, dtype=torch.int64))
        self.register_buffer("bigrams", torch.zeros((vocab_size, vocab_size) if self.pairs else (0, 0), dtype=torch.int32))

    def count(self, batch: TextBatch) -> None:
        """The tokens and pairs of these windows, and of those of the other ranks. In evaluation, nothing."""
        if not self.training:
            return
        before, after = (of_all_ranks(part).flatten() for part in batch)
        self.unigrams.index_add_(0, after, torch.ones_like(after))
        if self.pairs:
            self.bigrams.view(-1).index_add_(0, before * len(self.unigrams) + after, torch.ones_like(after, dtype=torch.int32))

    def fill(self, batch: TextBatch, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """The log p of every token at each position (B, n), up to a constant: by unigrams and by bigrams, (B, n, V) each.

        By unigrams it does not depend on the text. By bigrams the text is a Markov chain whose true neighbours are given, hidden or
        not: p(x | before, after) ~ p(x | before) p(after | x).
        """
        unigram = (self.unigrams + PRIOR).log().expand(*positions.shape, -1)
        if not self.pairs:
            return unigram, None
        before = batch.tokens.gather(1, (positions - 1).clamp(min=0))
        after = batch.targets.gather(1, positions)
        first = (positions == 0)[..., None]  # of the window: its neighbour before is not known
        following = torch.where(first, self.unigrams, self.bigrams[before])  # (B, n, V)
        leading = (self.bigrams.mT[after] + PRIOR).log() - (self.unigrams + PRIOR * len(self.unigrams)).log()
        return unigram, (following + PRIOR).log() + leading


def of_all_ranks(part: Tensor) -> Tensor:
    """Tensors of one shape, one from each rank, concatenated on every rank."""
    if not dist.is_initialized():
        return part
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)
