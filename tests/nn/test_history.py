"""Nothing of a history foretells itself, and what is hidden says nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from refresher_runner.nn.history import Recency, Recurrent, SelfAttention

KINDS = {
    "recency": lambda: Recency(8, 6),
    "gru": lambda: Recurrent(8, 1, 0.0),
    "attention": lambda: SelfAttention(8, 2, 2, 0.0),
}
every = pytest.mark.parametrize("kind", KINDS)


def made(kind: str) -> nn.Module:
    return KINDS[kind]().eval()


@every
def test_a_place_is_made_of_what_is_before_it(kind: str):
    history, x, there = made(kind), torch.randn(2, 6, 8), torch.ones(2, 6, dtype=torch.bool)
    h = history(x, there)
    assert h.shape == (2, 7, 8)
    for event in range(6):
        other = x.clone()
        other[:, event] = torch.randn(2, 8)
        changed = (history(other, there) - h).abs().amax((0, 2)) > 1e-6
        assert changed.tolist() == [False] * (event + 1) + [True] * (6 - event)


@every
def test_what_is_hidden_says_nothing(kind: str):
    history, x = made(kind), torch.randn(1, 6, 8)
    there = torch.tensor([[True, False, True, True, False, True]])
    other = torch.where(there[..., None], x, torch.randn(1, 6, 8))
    assert torch.equal(history(x, there), history(other, there))


@every
def test_what_comes_after_a_short_history_says_nothing(kind: str):
    """Rows are padded after their last event."""
    history, x = made(kind), torch.randn(1, 6, 8)
    there = torch.arange(6)[None] < 4
    alone = history(x[:, :4], there[:, :4]) if kind != "recency" else Recency.forward(_cut(history), x[:, :4], there[:, :4])
    torch.testing.assert_close(history(x, there)[:, :5], alone)


def _cut(history: nn.Module) -> Recency:
    short = Recency(8, 4)
    with torch.no_grad():
        short.log_weights.copy_(history.log_weights[:4])  # type: ignore[index]
    return short


def test_recency_is_a_sum_by_age():
    history, x = Recency(3, 4), torch.randn(1, 4, 3)
    with torch.no_grad():
        history.log_weights.copy_(torch.tensor([0.3, -0.2, -1.0, -2.0]))
        history.begin.copy_(torch.randn(3))
    there = torch.tensor([[True, True, False, True]])
    w = history.log_weights.exp()
    h = history(x, there)
    torch.testing.assert_close(h[0, 0], history.begin)
    expected = (w[0] * x[0, 3] + w[2] * x[0, 1] + w[3] * x[0, 0]) / (w[0] + w[2] + w[3]).sqrt() + history.begin
    torch.testing.assert_close(h[0, 4], expected)


def test_recency_begins_as_a_power():
    assert torch.allclose(Recency(3, 5).log_weights.exp(), 0.9 ** torch.arange(5.0))
    assert Recency(3, 0)(torch.zeros(2, 0, 3), torch.zeros(2, 0, dtype=torch.bool)).shape == (2, 1, 3)
