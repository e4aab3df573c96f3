"""Bidirectional encoder representations from transformers: text understood from both sides.

Devlin, Chang, Lee and Toutanova, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", 2019.
https://arxiv.org/abs/1810.04805

The encoder of the transformer alone. Pre-training (section 3.1): some tokens of a text are hidden, and every token, looking at all
others before and after it, helps to say what they were. Fine-tuning (section 3.2): the same encoder, and one layer more, says what a
text is about. Which of the two is learnt follows from the data: running text, or texts with labels.

    tokens, some hidden -> embedding, positions -> norm -> depth x (attention, MLP) -> the hidden ones' vectors -> their tokens
    tokens              -> the same                                                -> mean of all vectors      -> classes

Differs: windows of one text, not pairs of sentences, so there are no segments, no [CLS], no [SEP] and no next-sentence prediction, and
a class is read from the mean of all tokens, not from [CLS]. As configured, the norm stands before attention and MLP, positions are
rotary (see `nn/attention`) and 30 % of the tokens are asked for (Wettig et al., "Should You Mask 15% in Masked Language Modeling?", 2023.
https://arxiv.org/abs/2202.08005): for a small model and minutes of training. `model.norm=post
model.positions=learned model.mask_fraction=0.15 model.dropout=0.1` is the paper's.

Letters: B samples, T tokens, C = dim numbers a token, n of the T are asked for, V tokens in the vocabulary; number V is [MASK];
K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refresher_runner.errors import UsageError
from refresher_runner.nn.attention import MultiHeadAttention, RotaryAttention, check_heads
from refresher_runner.nn.dropout import Dropout
from refresher_runner.nn.ngrams import NGrams
from refresher_runner.nn.tokens import cell, token_names
from refresher_runner.nn.transformer import Layer, initialise
from refresher_runner.registry import MODELS
from refresher_runner.report import Matrix, Prediction, Report, Text
from refresher_runner.schema import Fraction, Positive, Share
from refresher_runner.spec import LabelledTextBatch, LabelledTextSpec, TextBatch, TextSpec
from refresher_runner.task import Goal, Metric, Output, Task

MASK = "[MASK]"
LEGIBLE = 32  # tokens on the axes of a map of attention
CANDIDATES = 5  # that a prediction shows for each [MASK]
SHOWN = 8  # mistakes of a batch


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


class Encoder(nn.Module):
    """tokens (B, T), T <= block_size -> vectors (B, T, C)"""

    def __init__(self, spec: TextSpec | LabelledTextSpec, *, depth: int, heads: int, dim: int, dropout: float, norm: str, positions: str):
        super().__init__()
        attention = RotaryAttention if positions == "rotary" else MultiHeadAttention
        self.token = nn.Embedding(len(spec.vocabulary) + 1, dim)
        self.position = nn.Embedding(spec.block_size, dim) if positions == "learned" else None
        self.norm, self.dropout = nn.LayerNorm(dim), Dropout(dropout)
        self.layers = nn.ModuleList(Layer(dim, attention(dim, heads, dropout), dropout, norm) for _ in range(depth))
        self.norm_f = nn.LayerNorm(dim) if norm == "pre" else nn.Identity()
        self.apply(initialise)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, maps: list[Tensor] | None = None) -> Tensor:
        """A mask, broadcastable to (B, 1, T, T), is False where there is no token. Into `maps` goes what each layer's heads look at."""
        x = self.token(tokens)
        if self.position is not None:
            x = x + self.position.weight[: tokens.shape[1]]
        x = self.dropout(self.norm(x))
        for layer in self.layers:
            x = layer(x, mask, maps)
        return self.norm_f(x)


class TokenHead(nn.Module):
    """Vectors (..., C) -> logits (..., V), by the embedding (V + 1, C) of the tokens itself; [MASK] is no answer."""

    def __init__(self, vocab_size: int, dim: int):
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim))  # as in the authors' code
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.apply(initialise)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return F.linear(self.transform(x), embedding[:-1], self.bias)


# -------------------------------------------------------------------- pre-training


class BERT(Task):
    """Say what is hidden. Beside it run two baselines, which count the tokens and pairs of all that it is trained on."""

    goal = Goal("accuracy", "max")

    def __init__(self, spec: TextSpec, encoder: Encoder, mask_fraction: float):
        super().__init__()
        self.spec, self.encoder, self.mask_fraction = spec, encoder, mask_fraction
        self.mask = len(spec.vocabulary)
        self.head, self.counts = TokenHead(self.mask, encoder.token.embedding_dim), NGrams(self.mask)

    def step(self, batch: TextBatch) -> Output:
        """- log p(hidden token | what is left of the text)"""
        read = hide(batch.tokens, self.mask_fraction, self.mask)
        truth = batch.tokens.gather(1, read.positions)
        logits = self.fill(read)
        loss = F.cross_entropy(logits.flatten(0, 1), truth.flatten())
        self.counts.count(batch)
        if self.training:
            return Output(loss)
        return Output(loss, preds=Guesses(logits.float(), *self.counts.fill(batch, read.positions)), targets=truth)

    def fill(self, read: Hidden) -> Tensor:
        """Logits (B, n, V) of what stood at the positions that are asked for; no other is computed."""
        x = self.encoder(read.tokens)
        return self.head(x.gather(1, read.positions[..., None].expand(-1, -1, x.shape[-1])), self.encoder.token.weight)

    def metrics(self) -> dict[str, Metric]:
        """Of the hidden tokens alone, with the accuracy of the baselines on the same."""
        from refresher_runner.metrics.language import TokenAccuracy, language_metrics  # imports torchmetrics, which takes seconds
        from refresher_runner.metrics.wrappers import Through

        counted = ["unigram", "bigram"] if self.counts.pairs else ["unigram"]
        baselines = {f"accuracy_{name}": Through(TokenAccuracy(), prepare=attrgetter(name)) for name in counted}
        return language_metrics(self.spec.vocabulary, prepare=attrgetter("model")) | baselines

    def observe(self, batch: TextBatch) -> Report:
        """A window with what was hidden, filled and true, and what each head of the last layer looks at there."""
        read, maps = hide(batch.tokens[:1], self.mask_fraction, self.mask), []
        filled = read.tokens.scatter(1, read.positions, self.fill(read).argmax(-1))
        self.encoder(read.tokens[:, :LEGIBLE], maps=maps)
        lines = {"read": read.tokens, "filled": filled, "true": batch.tokens[:1]}
        names = self._names(read.tokens[0, :LEGIBLE])
        return {
            "samples": Text("".join(f"    {name:8}{''.join(self._names(tokens[0]))}\n" for name, tokens in lines.items())),
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
        tokens = torch.tensor([numbers], device=self.counts.unigrams.device)
        return Hidden(tokens, (tokens == self.mask).nonzero()[:, 1][None])

    def _names(self, tokens: Tensor) -> tuple[str, ...]:
        """Of tokens (T,) as they can be read, [MASK] as a box."""
        known = iter(token_names(self.spec.vocabulary, tokens[tokens != self.mask].tolist()))
        return tuple("□" if token == self.mask else next(known) for token in tokens.tolist())


# -------------------------------------------------------------------- fine-tuning


class BERTClassifier(Task):
    """Say what a text is. `init_from` begins with the encoder of a run that was pre-trained."""

    goal = Goal("accuracy", "max")

    def __init__(self, spec: LabelledTextSpec, encoder: Encoder, dropout: float):
        super().__init__()
        self.spec, self.encoder, self.dropout = spec, encoder, Dropout(dropout)
        self.classes = nn.Linear(encoder.token.embedding_dim, len(spec.classes)).apply(initialise)

    def step(self, batch: LabelledTextBatch) -> Output:
        """- log p(label | text)"""
        logits = self.logits(batch.tokens, batch.lengths)
        loss = F.cross_entropy(logits, batch.labels)
        return Output(loss) if self.training else Output(loss, preds=logits.float(), targets=batch.labels)

    def logits(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """(B, T), (B,) -> (B, K): of the mean of each text's vectors."""
        real = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        x = self.encoder(tokens, real[:, None, None])
        mean = (x * real[..., None]).sum(1) / lengths[:, None]
        return self.classes(self.dropout(mean))

    def class_layers(self) -> list[nn.Module]:
        return [self.classes]

    def metrics(self) -> dict[str, Metric]:
        from refresher_runner.metrics.classification import classification_metrics  # imports torchmetrics, which takes seconds

        return classification_metrics(self.spec.classes)

    def observe(self, batch: LabelledTextBatch) -> Report:
        """The most confident mistakes of the batch."""
        p, predicted = self.logits(batch.tokens, batch.lengths).float().softmax(-1).max(-1)
        wrong = (predicted != batch.labels).nonzero().flatten()
        worst = wrong[p[wrong].argsort(descending=True)][:SHOWN].tolist()
        names = [cell(name) for name in self.spec.classes]
        texts = {i: cell(self.spec.vocabulary.decode(batch.tokens[i, : batch.lengths[i]].tolist())) for i in worst}
        rows = [f"| {texts[i]} | {names[batch.labels[i]]} | {names[predicted[i]]}, {p[i]:.2f} |" for i in worst]
        return {"mistakes": Text("\n".join(["| text | true | taken for |", "|---|---|---|", *rows]))} if rows else {}

    def predict(self, inputs: Sequence[str]) -> Iterator[Prediction]:
        """The two likeliest classes of each text, of whose tokens the block's are read.

        Raises UsageError for one that is empty, or holds a character that the model does not know.
        """
        device = self.classes.weight.device
        for text in inputs:
            numbers = self.spec.vocabulary.encode(text)[: self.spec.block_size]
            if not numbers:
                raise UsageError("is empty", key="input", value=text, cure="give a text")
            logits = self.logits(torch.tensor([numbers], device=device), torch.tensor([len(numbers)], device=device))
            p, best = logits.float().softmax(-1)[0].topk(2)
            (first, second), names = best.tolist(), self.spec.classes
            values = {"class": names[first], "probability": p[0].item()}
            yield Prediction(text, values | {"runner_up": names[second], "runner_up_probability": p[1].item()})


# -------------------------------------------------------------------- the builder


@MODELS.register("bert")
def build_bert(
    spec: TextSpec | LabelledTextSpec,
    *,
    depth: Positive,
    heads: Positive,
    dim: Positive,
    norm: Literal["pre", "post"],
    positions: Literal["rotary", "learned"],
    dropout: Fraction,
    mask_fraction: Share,
) -> BERT | BERTClassifier:
    """Encoder-only transformer (Devlin et al., 2019).

    Raises ConfigError where `dim` cannot be shared among the heads, or not be turned in pairs.
    """
    check_heads(dim, heads, rotary=positions == "rotary")
    encoder = Encoder(spec, depth=depth, heads=heads, dim=dim, dropout=dropout, norm=norm, positions=positions)
    return BERT(spec, encoder, mask_fraction) if isinstance(spec, TextSpec) else BERTClassifier(spec, encoder, dropout)
