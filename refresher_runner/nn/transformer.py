"""A transformer's encoder in layers, and text as vectors that know one another.

Vaswani et al., "Attention Is All You Need", 2017, section 3. https://arxiv.org/abs/1706.03762
Devlin et al., "BERT", 2019, for how weights begin. https://arxiv.org/abs/1810.04805

Letters: B samples, T tokens, C = dim numbers a token.
"""

from __future__ import annotations

from torch import Tensor, nn

from refresher_runner.nn.attention import MultiHeadAttention
from refresher_runner.nn.dropout import Dropout
from refresher_runner.vocabulary import PAD


class Layer(nn.Module):
    """What the others know, then what follows from it; each is added, then normed, or normed first: (B, T, C) -> (B, T, C)"""

    def __init__(self, dim: int, attention: MultiHeadAttention, dropout: float, norm: str):
        super().__init__()
        self.attention, self.norm_1 = attention, nn.LayerNorm(dim)
        self.mlp, self.norm_2 = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)), nn.LayerNorm(dim)
        self.dropout, self.pre = Dropout(dropout), norm == "pre"

    def forward(self, x: Tensor, mask: Tensor | None = None, maps: list[Tensor] | None = None) -> Tensor:
        if maps is not None:
            maps.append(self.attention.weights(self.norm_1(x) if self.pre else x, mask=mask))
        if self.pre:
            x = x + self.dropout(self.attention(self.norm_1(x), mask=mask))
            return x + self.dropout(self.mlp(self.norm_2(x)))
        x = self.norm_1(x + self.dropout(self.attention(x, mask=mask)))
        return self.norm_2(x + self.dropout(self.mlp(x)))


class TextEncoder(nn.Module):
    """tokens (B, T), T <= block_size -> vectors (B, T, C); nothing looks at PAD, whose own vectors mean nothing."""

    def __init__(self, vocab_size: int, block_size: int, *, dim: int, depth: int, heads: int, dropout: float):
        super().__init__()
        self.token, self.position = nn.Embedding(vocab_size, dim), nn.Embedding(block_size, dim)
        self.layers = nn.ModuleList(Layer(dim, MultiHeadAttention(dim, heads, dropout), dropout, "pre") for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.apply(initialise)

    def forward(self, tokens: Tensor) -> Tensor:
        x, present = self.token(tokens) + self.position.weight[: tokens.shape[1]], (tokens != PAD)[:, None, None]
        for layer in self.layers:
            x = layer(x, present)
        return self.norm(x)


def initialise(module: nn.Module) -> None:
    """As the authors' code does."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
