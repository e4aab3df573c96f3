"""Bidirectional encoder representations from transformers: text understood from both sides.

Devlin, Chang, Lee and Toutanova, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", 2019.
https://arxiv.org/abs/1810.04805

The encoder of the transformer alone. Some tokens of a text are hidden, and every token, looking at all others before and after it,
helps to say what they were (masked language modelling, section 3.1).

    tokens, some hidden -> embedding, positions -> norm -> depth x (attention, MLP) -> the hidden ones' vectors -> their tokens

Differs: windows of one text, not pairs of sentences, so there are no segments, no [CLS], no [SEP] and no next-sentence prediction.
What the paper adds on top for other tasks, a linear layer on [CLS], is not here.

Letters: B samples, T tokens, C = dim numbers a token, n of the T are asked for, V tokens in the vocabulary; number V is [MASK].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refresher_runner.errors import ConfigError, UsageError
from refresher_runner.nn.attention import MultiHeadAttention
from refresher_runner.nn.dropout import Dropout
from refresher_runner.nn.tokens import token_names
from refresher_runner.registry import MODELS
from refresher_runner.report import Matrix, Prediction, Report, Text
from refresher_runner.schema import Fraction, Positive, Share
from refresher_runner.spec import TextBatch, TextSpec
from refresher_runner.task import Goal, Metric, Output, Task

MASK = "[MASK]"
LEGIBLE = 32  # tokens on the axes of a map of attention
CANDIDATES = 5  # that a prediction shows for each [MASK]
LARGEST_COUNTED = 4096  # tokens of a vocabulary whose pairs are counted


class Hidden(NamedTuple):
    """What is asked of a text: tokens (B, T) as the model reads them, and positions (B, n) of those whose truth is asked for."""

    tokens: Tensor
    positions: Tensor


class Guesses(NamedTuple):
    """What is compared with the n true tokens: logits of the model, and log p of each baseline up to a constant; (B, n, V) each."""

    model: Tensor
    unigram: Tensor
    bigram: Tensor | None


def hide(tokens: Tensor, fraction: float, mask: int) -> Hidden:
    """Choose so many of each row's T tokens, at least one; 80 % of these become [MASK], 10 % a random token, 10 % stay (section 3.1).

    Random tokens are drawn from [0, mask), whatever the truth.
    """
    b, t = tokens.shape
    positions = torch.rand(b, t, device=tokens.device).topk(max(1, round(fraction * t)), -1).indices
    u, truth = torch.rand(positions.shape, device=tokens.device), tokens.gather(1, positions)
    shown = torch.where(u < 0.8, mask, torch.where(u < 0.9, torch.randint_like(truth, mask), truth))
    return Hidden(tokens.scatter(1, positions, shown), positions)


class Layer(nn.Module):
    """What the others know, then what follows from it; each is added, then normed: (B, T, C) -> (B, T, C)"""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.attention, self.norm_1 = MultiHeadAttention(dim, heads, dropout), nn.LayerNorm(dim)
        self.mlp, self.norm_2 = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)), nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        if maps is not None:
            maps.append(self.attention.weights(x))
        x = self.norm_1(x + self.dropout(self.attention(x)))
        return self.norm_2(x + self.dropout(self.mlp(x)))


class Encoder(nn.Module):
    """tokens (B, T), T <= block_size -> vectors (B, T, C), of which `logits` makes tokens"""

    def __init__(self, spec: TextSpec, *, depth: int, heads: int, dim: int, dropout: float):
        super().__init__()
        v = len(spec.vocabulary)
        self.token, self.position = nn.Embedding(v + 1, dim), nn.Embedding(spec.block_size, dim)
        self.norm, self.dropout = nn.LayerNorm(dim), Dropout(dropout)
        self.layers = nn.ModuleList(Layer(dim, heads, dropout) for _ in range(depth))
        self.transform = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim))  # as in the authors' code
        self.bias = nn.Parameter(torch.zeros(v))
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """Into `maps` goes what each layer's heads look at."""
        x = self.dropout(self.norm(self.token(tokens) + self.position.weight[: tokens.shape[1]]))
        for layer in self.layers:
            x = layer(x, maps)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., V), by the embedding itself; [MASK] is no answer."""
        return F.linear(self.transform(x), self.token.weight[:-1], self.bias)


class BERT(Task):
    """Say what is hidden. Beside it run two baselines, which count the tokens and pairs of all training batches."""

    goal = Goal("accuracy", "max")
    unigrams: Tensor  # (V,), times a token was seen
    bigrams: Tensor  # (V, V), times it was seen before another; empty where V is large

    def __init__(self, spec: TextSpec, encoder: Encoder, mask_fraction: float):
        super().__init__()
        self.spec, self.encoder, self.mask_fraction = spec, encoder, mask_fraction
        self.mask = v = len(spec.vocabulary)
        self.register_buffer("unigrams", torch.zeros(v, dtype=torch.int64))
        self.register_buffer("bigrams", torch.zeros((v, v) if v <= LARGEST_COUNTED else (0, 0), dtype=torch.int32))

    def step(self, batch: TextBatch) -> Output:
        """- log p(hidden token | what is left of the text)"""
        read = hide(batch.tokens, self.mask_fraction, self.mask)
        truth = batch.tokens.gather(1, read.positions)
        logits = self.fill(read)
        loss = F.cross_entropy(logits.flatten(0, 1), truth.flatten())
        if self.training:
            self._count(batch)
            return Output(loss)
        return Output(loss, preds=Guesses(logits.float(), *self._baselines(batch, read.positions)), targets=truth)

    def fill(self, read: Hidden) -> Tensor:
        """Logits (B, n, V) of what stood at the positions that are asked for; no other is computed."""
        x = self.encoder(read.tokens)
        return self.encoder.logits(x.gather(1, read.positions[..., None].expand(-1, -1, x.shape[-1])))

    def _count(self, batch: TextBatch) -> None:
        before, after = batch.tokens.flatten(), batch.targets.flatten()
        self.unigrams.index_add_(0, after, torch.ones_like(after))
        if len(self.bigrams):
            self.bigrams.view(-1).index_add_(0, before * self.mask + after, torch.ones_like(after, dtype=torch.int32))

    def _baselines(self, batch: TextBatch, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """For every token its log p at each position (B, n), up to a constant, with a tenth added to every count: two of (B, n, V).

        The unigram knows nothing of the text. The bigram takes it for a Markov chain and is told the true tokens beside, hidden or
        not: p(x | before, after) ~ p(x | before) p(after | x).
        """
        unigram = (self.unigrams + 0.1).log().expand(*positions.shape, -1)
        if not len(self.bigrams):
            return unigram, None
        before = batch.tokens.gather(1, (positions - 1).clamp(min=0))
        after = batch.targets.gather(1, positions)
        first = (positions == 0)[..., None]  # of the window: nothing is before it
        following = torch.where(first, self.unigrams, self.bigrams[before])  # (B, n, V)
        return unigram, (following + 0.1).log() + (self.bigrams.mT[after] + 0.1).log() - (self.unigrams + 0.1 * self.mask).log()

    def metrics(self) -> dict[str, Metric]:
        """Of the hidden tokens alone, with the accuracy of the baselines on the same."""
        from refresher_runner.metrics.classification import Through  # imports torchmetrics, which takes seconds
        from refresher_runner.metrics.language import TokenAccuracy, language_metrics

        counted = ["unigram", "bigram"] if len(self.bigrams) else ["unigram"]
        baselines = {f"accuracy_{name}": Through(TokenAccuracy(), prepare=attrgetter(name)) for name in counted}
        return language_metrics(self.spec.vocabulary, prepare=attrgetter("model")) | baselines

    def observe(self, batch: TextBatch) -> Report:
        """A window with what was hidden, filled and true, and what each head of the last layer looks at there."""
        read, maps = hide(batch.tokens[:1], self.mask_fraction, self.mask), []
        filled = read.tokens.scatter(1, read.positions, self.fill(read).argmax(-1))
        self.encoder(read.tokens[:, :LEGIBLE], maps)
        lines = {"read": read.tokens, "filled": filled, "true": batch.tokens[:1]}
        names = self._names(read.tokens[0, :LEGIBLE])
        return {
            "sample": Text("".join(f"    {name:8}{''.join(self._names(tokens[0]))}\n" for name, tokens in lines.items())),
            **{f"attention/head{i}": Matrix(w.float(), names, names, "token", "looks at") for i, w in enumerate(maps[-1][0], 1)},
        }

    def predict(self, inputs: Sequence[str]) -> Iterator[Prediction]:
        """Each text with every [MASK] filled, all at once, and what else each might have been.

        A [MASK] is one token. Of subwords, the space before a [MASK] is a part of it. Raises UsageError for a text without one, of
        more tokens than the block holds, or with a character that the model does not know.
        """
        for text in inputs:
            read = self._read(text)
            p, best = self.fill(read).float().softmax(-1)[0].topk(min(CANDIDATES, self.mask))
            filled = read.tokens[0].scatter(0, read.positions[0], best[:, 0])
            values: dict[str, object] = {"filled": self.spec.vocabulary.decode(filled.tolist())}
            for i, (chances, tokens) in enumerate(zip(p.tolist(), best.tolist(), strict=True), 1):
                names = token_names(self.spec.vocabulary, tokens)
                values[f"mask_{i}"] = ", ".join(f"{name} {chance:.2f}" for name, chance in zip(names, chances, strict=True))
            yield Prediction(text, values)

    def _read(self, text: str) -> Hidden:
        vocabulary, numbers = self.spec.vocabulary, []
        *parts, last = text.split(MASK)
        for part in parts:
            numbers += [*vocabulary.encode(part.removesuffix(" ") if vocabulary.merges else part), self.mask]
        numbers += vocabulary.encode(last)
        if not parts:
            raise UsageError(f"holds no {MASK}", key="input", value=text, cure=f"write {MASK} for every token to be filled in")
        if len(numbers) > self.spec.block_size:
            problem = f"is {len(numbers)} tokens long, and the model reads {self.spec.block_size} at most"
            raise UsageError(problem, key="input", value=text, cure="a shorter text, or a run with a larger data.block_size")
        tokens = torch.tensor([numbers], device=self.unigrams.device)
        return Hidden(tokens, (tokens == self.mask).nonzero()[:, 1][None])

    def _names(self, tokens: Tensor) -> tuple[str, ...]:
        """Of tokens (T,) as they can be read, [MASK] as a box."""
        known = iter(token_names(self.spec.vocabulary, tokens[tokens != self.mask].tolist()))
        return tuple("□" if token == self.mask else next(known) for token in tokens.tolist())


@MODELS.register("bert")
def build_bert(spec: TextSpec, *, depth: Positive, heads: Positive, dim: Positive, dropout: Fraction, mask_fraction: Share) -> BERT:
    """Encoder-only transformer (Devlin et al., 2019).

    Raises ConfigError where `dim` cannot be shared among the heads.
    """
    if dim % heads:
        problem = f"model.dim={dim} cannot be shared evenly among them"
        raise ConfigError(problem, key="model.heads", value=heads, cure="a divisor of model.dim")
    return BERT(spec, Encoder(spec, depth=depth, heads=heads, dim=dim, dropout=dropout), mask_fraction)
