from __future__ import annotations

import torch

from refresher_runner.models.mlp import MLP
from tests.models.build import batch, build


def test_as_written_on_paper():
    task, data = build("mlp", hidden=[6, 5], activation="tanh"), batch()
    assert isinstance(task, MLP)
    (w1, b1), (w2, b2), (w3, b3) = [(layer.weight, layer.bias) for layer in task.modules() if isinstance(layer, torch.nn.Linear)]
    x = data.images.reshape(16, 64)
    expected = torch.tanh(torch.tanh(x @ w1.T + b1) @ w2.T + b2) @ w3.T + b3
    torch.testing.assert_close(task.eval().step(data).preds, expected)


def test_without_hidden_layers_it_is_linear():
    task, data = build("mlp", hidden=[]).eval(), batch()
    assert isinstance(task, MLP)
    one, two = task.network(data.images), task.network(2 * data.images)
    zero = task.network(0 * data.images)
    torch.testing.assert_close(two - one, one - zero)
    assert task.observe(data)["weights"].pixels.shape == (10, 1, 8, 8)


def test_batch_norm_and_dropout():
    data = batch()
    task = build("mlp", batch_norm=True, dropout=0.5)
    assert task.step(data).loss != task.step(data).loss  # two draws
    task.eval()
    assert torch.equal(task.step(data).loss, task.step(data).loss)
    assert build("mlp", dropout=1.0).step(data).loss > 0
