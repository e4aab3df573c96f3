"""Text as vectors, against torch's own encoder, and what padding may not do."""

from __future__ import annotations

import torch
from torch import nn

from refresher_runner.nn.transformer import TextEncoder
from refresher_runner.vocabulary import PAD


def encoder() -> TextEncoder:
    return TextEncoder(20, 9, dim=16, depth=2, heads=4, dropout=0.0).eval()


def test_padding_changes_no_vector():
    ours, tokens = encoder(), torch.randint(1, 20, (3, 5))
    padded = torch.cat([tokens, torch.full((3, 4), PAD)], 1)
    torch.testing.assert_close(ours(padded)[:, :5], ours(tokens), atol=1e-5, rtol=1e-5)


def test_every_token_looks_at_every_other():
    ours, tokens = encoder(), torch.randint(1, 19, (1, 6))
    for at in range(6):
        other = tokens.clone()
        other[0, at] += 1
        assert ((ours(other) - ours(tokens)).abs().amax(-1) > 1e-6).all()


def test_it_is_torchs():
    """nn.TransformerEncoder with the same weights, norm first."""
    ours, tokens = encoder(), torch.randint(1, 20, (3, 9))
    tokens[1, 4:] = PAD
    layer = nn.TransformerEncoderLayer(16, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    theirs = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16), enable_nested_tensor=False).eval()
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        nn.init.normal_(mine.mlp[0].weight, std=0.3)  # type: ignore[index,union-attr]
        other.self_attn.in_proj_weight, other.self_attn.in_proj_bias = mine.attention.c_attn.weight, mine.attention.c_attn.bias  # type: ignore[union-attr]
        other.self_attn.out_proj, other.norm1, other.norm2 = mine.attention.c_proj, mine.norm_1, mine.norm_2  # type: ignore[union-attr]
        other.linear1, other.linear2 = mine.mlp[0], mine.mlp[2]  # type: ignore[index,union-attr]
    x = ours.token(tokens) + ours.position.weight
    expected = theirs(x, src_key_padding_mask=tokens == PAD)
    torch.testing.assert_close(ours(tokens)[tokens != PAD], expected[tokens != PAD], atol=1e-5, rtol=1e-5)
