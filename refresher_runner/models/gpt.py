"""A generative pre-trained transformer: text as the product of what comes next.

Radford, Narasimhan, Salimans and Sutskever, "Improving Language Understanding by Generative Pre-Training", 2018.
https://cdn.openai.com/research-covers/language-unsupervised/language_understanding_paper.pdf
Radford, Wu, Child, Luan, Amodei and Sutskever, "Language Models are Unsupervised Multitask Learners", 2019 (GPT-2).
https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf

The decoder of the transformer alone: every token looks at itself and those before it, and says what the next one is. Learning to
continue text, whatever it is, teaches what is in it.

    tokens -> embedding, positions -> depth x (attention, MLP) -> norm -> the embedding again -> logits

From the second paper (section 2.3): the norm stands before attention and MLP, with one more at the end, and what is added to the
residual stream starts smaller, by the root of how often something is. Modules are named as in the published weights of GPT-2.

Differs: positions may be rotary (Su et al., "RoFormer", 2021. https://arxiv.org/abs/2104.09864), which turn queries and keys so that
their product depends on how far apart they are; linear layers may go without bias; generation keeps keys and values (see `generate`).

Letters: B samples, T tokens, S tokens with those before, C = dim numbers a token, D of a head, V tokens in the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from textwrap import indent
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refresher_runner.errors import UsageError
from refresher_runner.nn.attention import Cache, MultiHeadAttention, RotaryAttention, check_heads
from refresher_runner.nn.dropout import Dropout
from refresher_runner.nn.tokens import token_names
from refresher_runner.registry import MODELS
from refresher_runner.report import Matrix, Prediction, Report, Text
from refresher_runner.schema import Fraction, NonNegativeFloat, Positive
from refresher_runner.spec import TextBatch, TextSpec
from refresher_runner.task import Metric, Output, Task

LEGIBLE = 32  # tokens on the axes of a map of attention
PROMPT = 16  # tokens that a sample begins with


class MLP(nn.Module):
    """Four times as many numbers between: (B, T, C) -> (B, T, C)"""

    def __init__(self, dim: int, bias: bool):
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(dim, 4 * dim, bias), nn.Linear(4 * dim, dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class Block(nn.Module):
    """What others know, then what follows from it; both are added: (B, T, C) -> (B, T, C)"""

    def __init__(self, dim: int, attention: MultiHeadAttention, dropout: float, bias: bool):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(dim, bias=bias), attention
        self.ln_2, self.mlp = nn.LayerNorm(dim, bias=bias), MLP(dim, bias)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, cache: Cache | None = None, maps: list[Tensor] | None = None) -> Tensor:
        if maps is not None:
            maps.append(self.attn.weights(self.ln_1(x), causal=True))
        x = x + self.dropout(self.attn(self.ln_1(x), causal=True, cache=cache))
        return x + self.dropout(self.mlp(self.ln_2(x)))


class Decoder(nn.Module):
    """tokens (B, T) -> logits (B, T, V) of each one's next"""

    def __init__(self, spec: TextSpec, *, depth: int, heads: int, dim: int, positions: str, dropout: float, bias: bool):
        super().__init__()
        attention = RotaryAttention if positions == "rotary" else MultiHeadAttention
        self.wte = nn.Embedding(len(spec.vocabulary), dim)
        self.wpe = nn.Embedding(spec.block_size, dim) if positions == "learned" else None
        self.dropout = Dropout(dropout)
        self.h = nn.ModuleList(Block(dim, attention(dim, heads, dropout, bias), dropout, bias) for _ in range(depth))
        self.ln_f = nn.LayerNorm(dim, bias=bias)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth))
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor, caches: Sequence[Cache] | None = None, maps: list[Tensor] | None = None) -> Tensor:
        """With caches, one a block, `tokens` follow those that they have seen. Into `maps` goes what each block's heads look at."""
        start = len(caches[0]) if caches else 0
        x = self.wte(tokens)
        if self.wpe is not None:
            x = x + self.wpe.weight[start : start + tokens.shape[1]]
        x = self.dropout(x)
        for i, block in enumerate(self.h):
            x = block(x, caches[i] if caches else None, maps)
        return F.linear(self.ln_f(x), self.wte.weight)


def truncate(logits: Tensor, top_k: int | None, top_p: float) -> Tensor:
    """Logits (B, V) with -inf for all but the `top_k` likeliest (None: all), and of these the fewest that together have `top_p`.

    The latter is nucleus sampling (Holtzman et al., 2020. https://arxiv.org/abs/1904.09751). The likeliest is always kept.
    """
    ordered, index = logits.sort(dim=-1, descending=True, stable=True)
    kept = torch.ones_like(ordered, dtype=torch.bool)
    if top_k is not None:
        kept[:, top_k:] = False
    if top_p < 1:
        p = ordered.masked_fill(~kept, -torch.inf).softmax(-1)
        kept &= p.cumsum(-1) - p < top_p  # what all that are likelier have together
        kept[:, 0] = True
    return logits.masked_fill(~torch.zeros_like(kept).scatter(-1, index, kept), -torch.inf)


class GPT(Task):
    """Say what comes next, and go on with what was said."""

    def __init__(self, spec: TextSpec, transformer: Decoder, *, max_tokens: int, temperature: float, top_k: int | None, top_p: float):
        super().__init__()
        self.spec, self.transformer = spec, transformer
        self.max_tokens, self.temperature, self.top_k, self.top_p = max_tokens, temperature, top_k, top_p

    def step(self, batch: TextBatch) -> Output:
        """- log p(next token | tokens so far)"""
        logits = self.transformer(batch.tokens)
        loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
        return Output(loss) if self.training else Output(loss, preds=logits.float(), targets=batch.targets)

    @torch.no_grad()
    def generate(self, prompt: Tensor, max_tokens: int, temperature: float, top_k: int | None = None, top_p: float = 1.0) -> Tensor:
        """A prompt (B, T) with so many tokens after it, each drawn from softmax(logits / temperature), truncated; 0: the likeliest.

        The model looks at the last `block_size` tokens at most. When these are full, the oldest quarter is forgotten and the rest read
        anew, since its positions have changed; so each token is drawn in view of three quarters of a block or more.
        """
        tokens, block = prompt, self.spec.block_size
        caches, new = [Cache() for _ in self.transformer.h], prompt[:, -block:]
        for _ in range(max_tokens):
            if len(caches[0]) + new.shape[1] > block:
                caches, new = [Cache() for _ in self.transformer.h], tokens[:, -max(3 * block // 4, 1) :]
            logits = self.transformer(new, caches)[:, -1].float()
            if temperature == 0:
                new = logits.argmax(-1, keepdim=True)
            else:
                new = truncate(logits / temperature, top_k, top_p).softmax(-1).multinomial(1)
            tokens = torch.cat([tokens, new], 1)
        return tokens

    def metrics(self) -> dict[str, Metric]:
        from refresher_runner.metrics.language import language_metrics  # imports torchmetrics, which takes seconds

        return language_metrics(self.spec.vocabulary)

    def observe(self, batch: TextBatch) -> Report:
        """A text that goes on from the beginning of a window, and what each head of the last block looks at there."""
        window, maps = batch.tokens[:1], []
        beginning = window[:, :PROMPT]
        written = self._continue(beginning)
        self.transformer(window[:, :LEGIBLE], maps=maps)
        names = token_names(self.spec.vocabulary, window[0, :LEGIBLE].tolist())
        return {
            "samples": Text(_told(self.spec.vocabulary.decode(beginning[0].tolist()), written)),
            **{f"attention/head{i}": Matrix(w.float(), names, names, "token", "looks at") for i, w in enumerate(maps[-1][0], 1)},
        }

    def predict(self, inputs: Sequence[str]) -> Iterator[Prediction]:
        """Each prompt continued. Raises UsageError for one that is empty, or holds a character that the model does not know."""
        device = self.transformer.wte.weight.device
        for prompt in inputs:
            numbers = self.spec.vocabulary.encode(prompt)
            if not numbers:
                raise UsageError("is empty", key="input", value=prompt, cure="give a character to begin with")
            written = self._continue(torch.tensor([numbers], device=device))
            yield Prediction(prompt, {"continuation": written}, {"text": Text(_told(prompt, written))})

    def _continue(self, prompt: Tensor) -> str:
        """What is written after a prompt (1, T)."""
        tokens = self.generate(prompt, self.max_tokens, self.temperature, self.top_k, self.top_p)
        return self.spec.vocabulary.decode(tokens[0, prompt.shape[1] :].tolist())


def _told(prompt: str, written: str) -> str:
    """Markdown: a prompt and its continuation, told apart, every space and line as it is."""
    return indent(f"{prompt}▌{written}", "    ")


@MODELS.register("gpt")
def build_gpt(
    spec: TextSpec,
    *,
    depth: Positive,
    heads: Positive,
    dim: Positive,
    positions: Literal["learned", "rotary"],
    dropout: Fraction,
    bias: bool,
    max_tokens: Positive,
    temperature: NonNegativeFloat,
    top_k: Positive | None,
    top_p: Fraction,
) -> GPT:
    """Decoder-only transformer (Radford et al., 2018, 2019).

    Raises ConfigError where `dim` cannot be shared among the heads, or not be turned in pairs.
    """
    check_heads(dim, heads, rotary=positions == "rotary")
    decoder = Decoder(spec, depth=depth, heads=heads, dim=dim, positions=positions, dropout=dropout, bias=bias)
    return GPT(spec, decoder, max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
