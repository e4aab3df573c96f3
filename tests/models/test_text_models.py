"""Laws that hold for every model that learns from running text."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from refresher_runner.errors import ConfigError
from refresher_runner.nn.attention import MultiHeadAttention
from refresher_runner.registry import MODELS
from refresher_runner.report import Matrix, Text
from refresher_runner.spec import TextSpec
from tests.models.build import build, options
from tests.models.text import CHARACTERS, SUBWORDS, text_batch

NAMES = [name for name in MODELS.names() if issubclass(TextSpec, MODELS.signature(name).spec or ())]
SMALL = {"depth": 2, "dim": 32, "dropout": 0.0}

every = pytest.mark.parametrize("name", NAMES)


def test_all_are_here():
    assert NAMES == ["bert", "gpt"]


@every
def test_config_and_signature_have_the_same_keys(name: str):
    assert list(options(name)) == list(MODELS.signature(name).options)


@every
@pytest.mark.parametrize("spec", [CHARACTERS, SUBWORDS], ids=["characters", "subwords"])
def test_step_trains_every_parameter(name: str, spec: TextSpec):
    task = build(name, spec, dropout=0.1)
    loss = task.step(text_batch(spec)).loss
    loss.backward()
    assert loss.shape == ()
    assert loss.item() == pytest.approx(torch.tensor(len(spec.vocabulary)).log().item(), rel=0.1), "an untrained model knows nothing"
    for parameter, tensor in task.named_parameters():
        assert tensor.grad is not None, parameter
        assert torch.isfinite(tensor.grad).all(), parameter
        assert tensor.grad.any(), parameter


@every
def test_one_seed_one_model(name: str):
    torch.manual_seed(3)
    first = build(name, CHARACTERS).state_dict()
    torch.manual_seed(3)
    second, other = build(name, CHARACTERS).state_dict(), build(name, CHARACTERS).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@every
def test_learns_one_batch_by_heart(name: str):
    task, data = build(name, CHARACTERS, **SMALL), text_batch()
    optimizer = torch.optim.Adam(task.parameters(), lr=3e-3)
    for _ in range(200):
        torch.manual_seed(0)  # BERT hides the same tokens every time
        optimizer.zero_grad()
        loss = task.step(data).loss
        loss.backward()
        optimizer.step()
    assert loss < (0.3 if name == "gpt" else 0.05)  # GPT's includes the beginnings of windows, which nothing foretells


@every
def test_dropout_is_for_training_alone(name: str):
    task, data = build(name, CHARACTERS, **SMALL | {"dropout": 0.5}), text_batch()

    def loss() -> Tensor:
        torch.manual_seed(0)
        return task.step(data).loss

    task.eval()
    exact = loss()
    assert loss() == exact
    assert task.train().step(data).loss != exact
    dropped = [module for module in task.modules() if isinstance(module, MultiHeadAttention)]
    assert {module.dropout for module in dropped} == {0.5}


@every
def test_state_dict_round_trip(name: str):
    data, one, two = text_batch(), build(name, CHARACTERS), build(name, CHARACTERS)
    one.step(data).loss.backward()
    two.load_state_dict(one.state_dict())
    losses = []
    for task in (one.eval(), two.eval()):
        torch.manual_seed(0)
        losses.append(task.step(data).loss)
    assert losses[0] == losses[1]


@every
def test_bf16(name: str):
    task, data = build(name, CHARACTERS).eval(), text_batch()
    torch.manual_seed(0)
    exact = task.step(data).loss
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        output = task.step(data)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, exact, atol=0.02, rtol=0.01)
    assert all(torch.isfinite(p.grad).all() for p in task.parameters() if p.grad is not None)


@every
@pytest.mark.parametrize("spec", [CHARACTERS, SUBWORDS], ids=["characters", "subwords"])
def test_looking_moves_nothing_and_shows_text_and_attention(name: str, spec: TextSpec):
    task, data = build(name, spec, heads=2).eval(), text_batch(spec)
    before = {key: value.clone() for key, value in task.state_dict().items()}
    with torch.no_grad():
        report = task.observe(data)
    assert all(torch.equal(before[key], value) for key, value in task.state_dict().items())
    assert list(report) == ["samples", "attention/head1", "attention/head2"]
    assert isinstance(report["samples"], Text)
    for head in (1, 2):
        shown = report[f"attention/head{head}"]
        assert isinstance(shown, Matrix)
        assert shown.values.shape == (spec.block_size, spec.block_size)
        assert len(shown.rows) == len(shown.columns) == spec.block_size
        torch.testing.assert_close(shown.values.sum(1), torch.ones(spec.block_size))


@every
@pytest.mark.parametrize("spec", [CHARACTERS, SUBWORDS], ids=["characters", "subwords"])
def test_metrics_are_fresh_and_hold_the_goal(name: str, spec: TextSpec):
    task, data = build(name, spec), text_batch(spec)
    assert task.step(data).preds is None
    output = task.eval().step(data)
    for _ in range(2):
        metrics = task.metrics()
        assert task.goal.metric in {"loss", *metrics}
        for metric in metrics.values():
            metric.update(output.preds, output.targets)
        found = {key: metric.compute() for key, metric in metrics.items()}
        assert found["perplexity"].item() == pytest.approx(output.loss.exp().item(), rel=1e-4)
        assert ("bits_per_character" in found) == bool(spec.vocabulary.merges)
        assert isinstance(found["confusion_matrix"], Matrix)


@every
def test_decay_is_for_matrices(name: str):
    decayed, spared = build(name, CHARACTERS).param_groups(0.1)
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in spared["params"]} == {1}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)


@every
def test_heads_that_cannot_share_are_refused(name: str):
    with pytest.raises(ConfigError, match="cannot be shared") as caught:
        build(name, CHARACTERS, heads=3)
    assert caught.value.key == "model.heads"
    assert caught.value.cure


@every
def test_the_way_attention_goes_is_settled_by_the_first_step(name: str):
    task = build(name, CHARACTERS)
    ways = [module for module in task.modules() if isinstance(module, MultiHeadAttention)]
    assert [int(module.path) for module in ways] == [-1] * 4
    task.step(text_batch())
    assert len({int(module.path) for module in ways}) == 1, "equal layers go the same way"
    assert ways[0].path >= 0


def copied(layer: nn.TransformerEncoderLayer, attention: MultiHeadAttention, linears: list[nn.Module], norms: list[nn.Module]) -> None:
    """A layer of torch's own with the weights of one of ours."""
    pairs = [
        (layer.self_attn.in_proj_weight, attention.c_attn.weight),
        (layer.self_attn.in_proj_bias, attention.c_attn.bias),
        (layer.self_attn.out_proj.weight, attention.c_proj.weight),
        (layer.self_attn.out_proj.bias, attention.c_proj.bias),
    ]
    for theirs, ours in zip([layer.linear1, layer.linear2, layer.norm1, layer.norm2], [*linears, *norms], strict=True):
        pairs += [(theirs.weight, ours.weight), (theirs.bias, ours.bias)]
    with torch.no_grad():
        for theirs, ours in pairs:
            theirs.copy_(ours)


@every
def test_blocks_are_torchs_own(name: str):
    """Pre-norm and causal in GPT, post-norm and looking both ways in the paper's BERT."""
    changes = {"bias": True} if name == "gpt" else {"norm": "post"}
    task = build(name, CHARACTERS, dropout=0.0, positions="learned", **changes).double()
    for parameter in task.parameters():  # biases and norms that do nothing would prove nothing
        nn.init.normal_(parameter, std=0.3)
    block = task.get_submodule("transformer.h.0" if name == "gpt" else "encoder.layers.0")
    parts = (
        (block.attn, [block.mlp.c_fc, block.mlp.c_proj], [block.ln_1, block.ln_2])
        if name == "gpt"
        else (block.attention, [block.mlp[0], block.mlp[2]], [block.norm_1, block.norm_2])
    )
    layer = nn.TransformerEncoderLayer(
        128, 4, 512, dropout=0.0, activation="gelu", batch_first=True, norm_first=name == "gpt", dtype=torch.float64
    )
    copied(layer, *parts)
    x = torch.randn(2, 7, 128, dtype=torch.float64)
    future = torch.ones(7, 7, dtype=torch.bool).triu(1) if name == "gpt" else None
    torch.testing.assert_close(block(x), layer(x, src_mask=future))
