"""Laws that hold for every model that learns from pictures."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from refresher_runner.registry import MODELS, _inspect_signature
from refresher_runner.report import Embedding, Images, Matrix, PRCurve
from refresher_runner.spec import ImageSpec
from refresher_runner.task import Task
from tests.models.build import COLOUR, DIGITS, GREY, batch, build, options

NAMES = [name for name in MODELS.names() if MODELS.signature(name).spec is ImageSpec]
PARAMETERS = {"cnn": 22_650, "ddpm": 1_624_577, "mlp": 9_610, "resnet": 269_434, "vae": 457_889}  # on 8x8 digits, as conf/model has them
CLASSIFIERS = ["cnn", "mlp", "resnet"]

every = pytest.mark.parametrize("name", NAMES)
every_classifier = pytest.mark.parametrize("name", CLASSIFIERS)


def test_all_are_here():
    assert set(PARAMETERS) == set(NAMES)


@every
def test_parameters(name: str):
    assert sum(p.numel() for p in build(name).parameters()) == PARAMETERS[name]


@every
@pytest.mark.parametrize("spec", [DIGITS, GREY, COLOUR], ids=["8x8", "28x28", "3x32x32"])
def test_step_trains_every_parameter(name: str, spec: ImageSpec):
    task = build(name, spec)
    loss = task.step(batch(spec)).loss
    loss.backward()
    assert loss.shape == ()
    assert torch.isfinite(loss)
    for parameter, tensor in task.named_parameters():
        assert tensor.grad is not None, parameter
        assert torch.isfinite(tensor.grad).all(), parameter
        assert tensor.grad.any(), parameter


@every_classifier
def test_preds_are_made_for_metrics_alone(name: str):
    task, data = build(name), batch()
    assert task.step(data).preds is None
    output = task.eval().step(data)
    assert output.preds.shape == (16, 10)
    assert output.targets is data.labels
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.preds, data.labels))


@every_classifier
def test_label_smoothing_is_a_mixture_of_targets(name: str):
    task, data = build(name, label_smoothing=0.3).eval(), batch()
    output = task.step(data)
    log_p = output.preds.log_softmax(-1)
    target = 0.7 * torch.nn.functional.one_hot(data.labels, 10) + 0.03
    torch.testing.assert_close(output.loss, -(target * log_p).sum(-1).mean())


@every
def test_one_seed_one_model(name: str):
    torch.manual_seed(3)
    first = build(name).state_dict()
    torch.manual_seed(3)
    second = build(name).state_dict()
    other = build(name).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@every_classifier
def test_learns_one_batch_by_heart(name: str):
    task, data = build(name), batch()
    optimizer = torch.optim.Adam(task.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        task.step(data).loss.backward()
        optimizer.step()
    assert task.step(data).loss < 0.05


@every_classifier
def test_state_dict_round_trip(name: str):
    data, one, two = batch(), build(name), build(name)
    one.step(data)  # moves the buffers of batch norm
    two.load_state_dict(one.state_dict())
    assert torch.equal(one.eval().step(data).preds, two.eval().step(data).preds)


@every_classifier
@pytest.mark.parametrize("channels_last", [False, True])
def test_bf16(name: str, channels_last: bool):
    task, data = build(name).eval(), batch()
    exact = task.step(data)
    if channels_last:
        task.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.autocast("cpu", torch.bfloat16):
        output = task.step(data)
    output.loss.backward()
    assert output.preds.dtype == torch.float32  # metrics compute in fp32
    torch.testing.assert_close(output.preds, exact.preds, atol=0.1, rtol=0.1)
    assert all(torch.isfinite(p.grad).all() for p in task.parameters() if p.grad is not None)


@every_classifier
def test_looking_needs_no_gradient_and_moves_nothing(name: str):
    task, data = build(name).eval(), batch(size=40)
    before = {key: value.clone() for key, value in task.state_dict().items()}
    with torch.no_grad():
        report = task.observe(data)
    assert all(torch.equal(before[key], value) for key, value in task.state_dict().items())
    assert "mistakes" in report
    assert isinstance(report["features"], Embedding)
    for shown in (shown for tag, shown in report.items() if tag != "features"):
        assert isinstance(shown, Images)
        assert shown.pixels.shape[1] in (1, 3)
        assert 0 <= shown.pixels.min() <= shown.pixels.max() <= 1
        assert shown.captions == () or len(shown.captions) == len(shown.pixels)


@every_classifier
@pytest.mark.parametrize("spec", [DIGITS, COLOUR], ids=["10 classes", "3 classes"])
def test_metrics_are_fresh_and_hold_the_goal(name: str, spec: ImageSpec):
    task = build(name, spec).eval()
    output = task.step(batch(spec))
    once, twice = task.metrics(), task.metrics()
    assert task.goal.metric in once
    assert ("top5" in once) == (spec.num_classes > 5)
    for metric in once.values():
        metric.update(output.preds, output.targets)
    for name_, metric in twice.items():
        metric.update(output.preds, output.targets)
        value = metric.compute()
        if isinstance(value, dict):
            assert list(value) == list(spec.classes)
        else:
            assert isinstance(value, (Tensor, Matrix, PRCurve)), name_


@every
def test_config_and_signature_have_the_same_keys(name: str):
    assert list(options(name)) == list(MODELS.signature(name).options)


@every
def test_signature_is_read_without_importing(name: str):
    """What ast reads in a fresh process is what inspect sees here."""
    program = (
        "import sys; from refresher_runner.registry import MODELS\n"
        f"s = MODELS.signature({name!r}); assert 'torch' not in sys.modules\n"
        "print(s.summary, s.spec, [(k, repr(o.annotation)) for k, o in s.options.items()])"
    )
    read = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    s = _inspect_signature(MODELS.builder(name))
    assert read == f"{s.summary} {s.spec} {[(k, repr(o.annotation)) for k, o in s.options.items()]}"


@every
def test_decay_is_for_matrices(name: str):
    task: Task = build(name)
    decayed, spared = task.param_groups(0.1)
    assert {p.ndim for p in decayed["params"]} <= {2, 4}
    assert {p.ndim for p in spared["params"]} == {1}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
