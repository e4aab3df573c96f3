"""Attention is all you need.

Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser and Polosukhin, "Attention Is All You Need", 2017.
https://arxiv.org/abs/1706.03762

A sentence is read by an encoder, every token looking at every other, and written by a decoder, token by token: each new one looks at
those written so far (causal self-attention) and at all that was read (cross-attention). There is no recurrence, so in training all
tokens of the target are predicted at once, each from the true ones before it (teacher forcing).

    source (B, S) -> Encoder -> memory (B, S, D) --.
    target (B, T) -> Decoder  <- cross-attention --'  -> hidden (B, T, D) -> shared embedding -> logits (B, T, V)

The learning rate rises for some steps and falls with the inverse square root of their number (section 5.3): `optimizer=translation`.

Differs: the loss of a batch is the sum over its target tokens divided by a constant, not by their number, so that accumulated batches
and several processes give what one whole batch gives. `norm=pre` normalises what enters a sub-layer (Xiong et al., 2020,
https://arxiv.org/abs/2002.04745), not what leaves it. What is written ends with the block, not 50 tokens after the source's length.

Letters: B pairs, S source tokens, T target tokens, D = dim, H heads, V tokens of the target's vocabulary, K hypotheses of a search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refresher_runner.errors import ConfigError, UsageError
from refresher_runner.nn.attention import Cache, MultiHeadAttention, check_heads
from refresher_runner.nn.dropout import Dropout
from refresher_runner.nn.tokens import cell, token_names
from refresher_runner.registry import MODELS
from refresher_runner.report import Matrix, Prediction, Report, Text
from refresher_runner.schema import Fraction, NonNegativeFloat, Positive
from refresher_runner.spec import PairBatch, PairSpec
from refresher_runner.task import Goal, Metric, Output, Task
from refresher_runner.vocabulary import BEGIN, END, PAD

SHOWN = 8  # sentences of a batch
LEGIBLE = 20  # tokens of either side of the pair whose attention is shown, if there is such a pair


def positions(count: int, dim: int) -> Tensor:
    """Section 3.5: PE(pos, 2i) = sin(pos / 10000^(2i / D)) and PE(pos, 2i + 1) = cos of the same: (count, D)"""
    angles = torch.arange(count)[:, None] / 10000 ** (torch.arange(0, dim, 2) / dim)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


class Residual(nn.Module):
    """Section 3.1: LayerNorm(x + Dropout(Sublayer(x))), or with the norm before, x + Dropout(Sublayer(LayerNorm(x)))."""

    def __init__(self, dim: int, dropout: float, norm: str):
        super().__init__()
        self.norm, self.dropout, self.pre = nn.LayerNorm(dim), Dropout(dropout), norm == "pre"

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre:
            return x + self.dropout(sublayer(self.norm(x)))
        return self.norm(x + self.dropout(sublayer(x)))


class FeedForward(nn.Sequential):
    """Eq. 2, at every position alike: max(0, x W_1 + b_1) W_2 + b_2"""

    def __init__(self, dim: int, hidden: int):
        super().__init__(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))


class EncoderLayer(nn.Module):
    """Every source token looks at every other, then thinks for itself: (B, S, D) -> (B, S, D)"""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float, norm: str):
        super().__init__()
        self.attention, self.feed_forward = MultiHeadAttention(dim, heads, bias=False), FeedForward(dim, hidden)
        self.residuals = nn.ModuleList(Residual(dim, dropout, norm) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        def look(x: Tensor) -> Tensor:
            if maps is not None:
                maps.append(self.attention.weights(x, mask=mask))
            return self.attention(x, mask=mask)

        x = self.residuals[0](x, look)
        return self.residuals[1](x, self.feed_forward)


class Encoder(nn.Module):
    """Layers on top of one another; with the norm before each, one more at the end: (B, S, D) -> (B, S, D)"""

    def __init__(self, depth: int, dim: int, heads: int, hidden: int, dropout: float, norm: str):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(dim, heads, hidden, dropout, norm) for _ in range(depth))
        self.norm = nn.LayerNorm(dim) if norm == "pre" else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, mask, maps)
        return self.norm(x)


class Memory(NamedTuple):
    """What was read: states (B, S, D), and where there is a token, mask (B, 1, 1, S)."""

    states: Tensor
    mask: Tensor


class LayerCache(NamedTuple):
    """A decoder layer's keys and values: of what was written, which grow, and of the memory, which are computed once."""

    past: Cache
    memory: Cache


class DecoderLayer(nn.Module):
    """Every target token looks at itself and those before it, then at the memory, then thinks for itself: (B, T, D) -> (B, T, D)"""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float, norm: str):
        super().__init__()
        self.attention, self.cross_attention = (MultiHeadAttention(dim, heads, bias=False) for _ in range(2))
        self.feed_forward = FeedForward(dim, hidden)
        self.residuals = nn.ModuleList(Residual(dim, dropout, norm) for _ in range(3))

    def forward(self, x: Tensor, memory: Memory, cache: LayerCache | None = None, maps: list[Tensor] | None = None) -> Tensor:
        states, mask = memory

        def look_back(x: Tensor) -> Tensor:
            if maps is not None:
                maps.append(self.attention.weights(x, causal=True))
            return self.attention(x, causal=True, cache=cache and cache.past)

        def look_across(x: Tensor) -> Tensor:
            if maps is not None:
                maps.append(self.cross_attention.weights(x, states, mask=mask))
            return self.cross_attention(x, states, mask=mask, cache=cache and cache.memory)

        x = self.residuals[0](x, look_back)
        x = self.residuals[1](x, look_across)
        return self.residuals[2](x, self.feed_forward)


class Decoder(nn.Module):
    """As the encoder, with a memory: (B, T, D) -> (B, T, D). With caches, one a layer, x is what follows the tokens they have seen."""

    def __init__(self, depth: int, dim: int, heads: int, hidden: int, dropout: float, norm: str):
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(dim, heads, hidden, dropout, norm) for _ in range(depth))
        self.norm = nn.LayerNorm(dim) if norm == "pre" else nn.Identity()

    def forward(self, x: Tensor, memory: Memory, caches: Sequence[LayerCache] | None = None, maps: list[Tensor] | None = None) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x, memory, caches and caches[i], maps)
        return self.norm(x)


class Network(nn.Module):
    """Source (B, S) and target (B, T), which begins with BEGIN -> hidden (B, T, D), of which `logits` makes the next tokens.

    One matrix embeds the target's tokens, scaled by sqrt(D), and reads the logits (section 3.4); with one vocabulary for both sides,
    it embeds the source's too.
    """

    position: Tensor  # (block_size, D)

    def __init__(self, spec: PairSpec, *, dim: int, heads: int, depth: int, hidden: int, dropout: float, norm: str):
        super().__init__()
        stack = depth, dim, heads, hidden, dropout, norm
        self.target = nn.Embedding(len(spec.target), dim)
        self.source = self.target if spec.source == spec.target else nn.Embedding(len(spec.source), dim)
        self.register_buffer("position", positions(spec.block_size, dim), persistent=False)
        self.dropout = Dropout(dropout)
        self.encoder, self.decoder = Encoder(*stack), Decoder(*stack)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=dim**-0.5)  # so that the scaled ones are about as large as the positions

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.decode(target, self.encode(source))

    def encode(self, source: Tensor, maps: list[Tensor] | None = None) -> Memory:
        mask = (source != PAD)[:, None, None]
        return Memory(self.encoder(self._embed(self.source, source), mask, maps), mask)

    def decode(
        self, target: Tensor, memory: Memory, caches: Sequence[LayerCache] | None = None, maps: list[Tensor] | None = None
    ) -> Tensor:
        """PAD in the target needs no mask: nothing before looks at it. Into `maps` go the weights of every attention on the way."""
        x = self._embed(self.target, target, first=len(caches[0].past) if caches else 0)
        return self.decoder(x, memory, caches, maps)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)"""
        return F.linear(hidden, self.target.weight)

    def next(self, tokens: Tensor, memory: Memory, caches: Sequence[LayerCache]) -> Tensor:
        """The newest tokens (B,) -> log p of what comes after each (B, V), which is neither PAD nor BEGIN."""
        logits = self.logits(self.decode(tokens[:, None], memory, caches)[:, 0]).float()
        logits[:, [PAD, BEGIN]] = -torch.inf
        return logits.log_softmax(-1)

    def caches(self) -> list[LayerCache]:
        return [LayerCache(Cache(), Cache()) for _ in self.decoder.layers]

    def _embed(self, embedding: nn.Embedding, tokens: Tensor, first: int = 0) -> Tensor:
        x = embedding(tokens) * embedding.embedding_dim**0.5
        return self.dropout(x + self.position[first : first + tokens.shape[1]])


class Transformer(Task):
    """Predict every token of the target from those before it and the source; write by doing so again and again.

    The goal is chrF, which tells better from worse where the others do not: nearly nothing is exact and few runs of four words are
    right (BLEU) at the beginning of a translator's training, and the loss goes up while what is written still improves.
    """

    goal = Goal("chrf", "max")

    def __init__(self, spec: PairSpec, network: Network, *, label_smoothing: float, beam: int, length_penalty: float):
        super().__init__()
        self.spec, self.network, self.label_smoothing = spec, network, label_smoothing
        self.beam, self.length_penalty = beam, length_penalty

    def step(self, batch: PairBatch) -> Output:
        """Cross-entropy with 1 - eps of the target on the true token and eps on all evenly (section 5.4): the sum over tokens that are
        not PAD, over B and the block's size. `cross_entropy` is - log p of a true token, the mean over these tokens.
        """
        shown, true = batch.target[:, :-1], batch.target[:, 1:]
        real = true != PAD
        memory = self.network.encode(batch.source)
        logits = self.network.logits(self.network.decode(shown, memory)[real]).float()  # (N, V): of N tokens that are not PAD
        log_p, labels = logits.log_softmax(-1), true[real]
        nll, even = -log_p.gather(-1, labels[:, None])[:, 0], -log_p.sum(-1) / log_p.shape[-1]  # a mean is slow to go back through
        loss = ((1 - self.label_smoothing) * nll + self.label_smoothing * even).sum() / (len(true) * self.spec.block_size)
        if self.training:
            return Output(loss, {"cross_entropy": nll.detach().mean()})
        return Output(loss, preds=(log_p, self.write(memory)), targets=(labels, true))

    @torch.no_grad()
    def write(self, memory: Memory) -> Tensor:
        """The likeliest next token, then the next: (B, L), L < block_size; a sentence, END, then PAD."""
        b, device, caches = len(memory.states), memory.states.device, self.network.caches()
        token, done = torch.full((b,), BEGIN, device=device), torch.zeros(b, dtype=torch.bool, device=device)
        written = []
        while len(written) < self.spec.block_size - 1 and not done.all():
            token = self.network.next(token, memory, caches).argmax(-1).masked_fill(done, PAD)
            written.append(token)
            done = done | (token == END)
        return torch.stack(written, 1)

    @torch.no_grad()
    def search(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """Beam search (section 6.1): what was found (B, L), as `write` gives it, and its score (B,).

        K unfinished hypotheses are kept, the likeliest. One that is among the K likeliest when it ends is scored by log p / lp(n) of
        its n tokens, lp(n) = ((5 + n) / 6)^length_penalty (Wu et al., 2016, https://arxiv.org/abs/1609.08144); when K have ended, the
        best of these is the answer. With K = 1 that is what `write` gives.
        """
        b, k, device = len(memory.states), self.beam, memory.states.device
        longest, each = self.spec.block_size - 1, torch.arange(b, device=device)[:, None]
        memory, caches = Memory(*(part.repeat_interleave(k, 0) for part in memory)), self.network.caches()
        tokens, written = torch.full((b, k), BEGIN, device=device), torch.full((b, k, longest), PAD, device=device)
        log_p = torch.full((b, k), -torch.inf, device=device)
        best, score, ended = written[:, 0], log_p[:, 0].clone(), torch.zeros(b, dtype=torch.int64, device=device)
        log_p[:, 0] = 0.0  # all begin alike, so one is enough
        for n in range(1, longest + 1):
            following = self.network.next(tokens.flatten(), memory, caches).view(b, k, -1)  # (B, K, V)
            likeliest, index = (log_p[..., None] + following).flatten(1).topk(2 * k)  # (B, 2K), of which no more than K end
            parent, tokens = index // following.shape[-1], index % following.shape[-1]
            written = written[each, parent]
            written[..., n - 1] = tokens

            ends = (tokens == END) & (torch.arange(2 * k, device=device) < k) & likeliest.isfinite() & (ended < k)[:, None]
            found, at = (likeliest / ((5 + n) / 6) ** self.length_penalty).masked_fill(~ends, -torch.inf).max(-1)
            best = torch.where((found > score)[:, None], written[each[:, 0], at], best)
            score, ended = torch.maximum(found, score), ended + ends.sum(-1)
            if (ended >= k).all():
                break

            log_p, kept = likeliest.masked_fill(tokens == END, -torch.inf).topk(k)
            tokens, written = tokens[each, kept], written[each, kept]
            for cache in caches:
                cache.past.select((each * k + parent[each, kept]).flatten())  # the memory is the same for all K
        cut = ended == 0  # there was no room to end
        best = torch.where(cut[:, None], written[:, 0], best)
        score = torch.where(cut, log_p[:, 0] / ((5 + longest) / 6) ** self.length_penalty, score)
        return best[:, : int((best != PAD).sum(-1).max())], score

    def metrics(self) -> dict[str, Metric]:
        from refresher_runner.metrics.translation import translation_metrics  # imports torchmetrics, which takes seconds

        return translation_metrics(self.spec.target)

    def observe(self, batch: PairBatch) -> Report:
        """What every head of the last layers looks at in one pair, and a few sentences with what was written of them."""
        source, target = _fullest(batch, LEGIBLE)
        reading, writing = list[Tensor](), list[Tensor]()
        self.network.decode(target[None, :-1], self.network.encode(source[None], reading), maps=writing)
        read, shown = token_names(self.spec.source, source.tolist()), token_names(self.spec.target, target[:-1].tolist())
        maps = {
            "encoder": (reading[-1][0], read, read),
            "decoder": (writing[-2][0], shown, shown),
            "cross": (writing[-1][0], shown, read),
        }
        return {
            f"{name}_attention/head{head}": Matrix(weights.float(), rows, columns, "token", "looks at")
            for name, (heads, rows, columns) in maps.items()
            for head, weights in enumerate(heads, 1)
        } | {"sentences": self._table(PairBatch(*(side[:SHOWN] for side in batch)))}

    def predict(self, inputs: Sequence[str]) -> Iterator[Prediction]:
        """What is written of each sentence, and where the last layer looked meanwhile, the mean of its heads.

        Raises UsageError for a sentence of more tokens than the block holds.
        """
        device = next(self.parameters()).device
        for sentence in inputs:
            source = torch.tensor([[*self.spec.source.encode(sentence), END]], device=device)
            if source.shape[1] > self.spec.block_size:
                problem = f"is {source.shape[1]} tokens long with its end, and the model reads {self.spec.block_size} at most"
                cure = "one sentence at a time, or a run with a larger data.block_size"
                raise UsageError(problem, key="input", value=sentence, cure=cure)
            memory, maps = self.network.encode(source), list[Tensor]()
            written, score = self.search(memory)
            self.network.decode(F.pad(written, (1, 0), value=BEGIN)[:, :-1], memory, maps=maps)
            rows, columns = token_names(self.spec.target, written[0].tolist()), token_names(self.spec.source, source[0].tolist())
            looked = Matrix(maps[-1][0].mean(0).float(), rows, columns, "written", "looked at")
            values = {"output": self.spec.target.decode(written[0].tolist()), "score": score.item()}
            yield Prediction(sentence, values, {"attention": looked})

    def _table(self, batch: PairBatch) -> Text:
        written = self.write(self.network.encode(batch.source))
        columns = (self.spec.source, batch.source), (self.spec.target, batch.target), (self.spec.target, written)
        texts = [[cell(vocabulary.decode(row)) for row in rows.tolist()] for vocabulary, rows in columns]
        rows = [f"| {source} | {true} | {'' if true == said else said} |" for source, true, said in zip(*texts, strict=True)]
        return Text("\n".join(["| source | target | written, where it differs |", "|---|---|---|", *rows]))


def _fullest(batch: PairBatch, most: int) -> tuple[Tensor, Tensor]:
    """Source (S,) and target (T,) without PAD of the longest pair of a batch that is short enough, else of the shortest."""
    lengths = torch.maximum(*((side != PAD).sum(-1) for side in batch))
    fits = lengths <= most
    at = int(lengths.masked_fill(~fits, 0).argmax() if fits.any() else lengths.argmin())
    source, target = (side[at][side[at] != PAD] for side in batch)
    return source, target


@MODELS.register("transformer")
def build_transformer(
    spec: PairSpec,
    *,
    dim: Positive,
    heads: Positive,
    depth: Positive,
    hidden: Positive,
    dropout: Fraction,
    label_smoothing: Fraction,
    norm: Literal["post", "pre"],
    beam: Positive,
    length_penalty: NonNegativeFloat,
) -> Transformer:
    """Encoder and decoder of attention alone (Vaswani et al., 2017).

    Raises ConfigError where `dim` is odd, or cannot be shared among the heads.
    """
    if dim % 2:
        raise ConfigError("is odd, and positions are pairs of a sine and a cosine", key="model.dim", value=dim, cure=f"try {dim + 1}")
    check_heads(dim, heads)
    network = Network(spec, dim=dim, heads=heads, depth=depth, hidden=hidden, dropout=dropout, norm=norm)
    return Transformer(spec, network, label_smoothing=label_smoothing, beam=beam, length_penalty=length_penalty)
