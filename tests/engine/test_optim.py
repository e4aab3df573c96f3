"""Optimizers against torch's own, schedules against torch's schedulers and the papers' formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from refresher_runner.compose import checked, compose
from refresher_runner.engine.optim import RowSGD, Together, clip_gradients, lr_factor
from refresher_runner.errors import ConfigError
from refresher_runner.models.word2vec import build_word2vec
from refresher_runner.registry import OPTIMIZERS
from refresher_runner.spec import CorpusSpec, LabelledTextSpec
from tests.engine.toy import Toy, schedule
from tests.models.build import DIGITS, build
from tests.models.text import CHARACTERS

BETAS = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
REFERENCE = {
    "adam": (lambda p: torch.optim.Adam(p, 1e-2), BETAS),
    "adamw": (lambda p: torch.optim.AdamW(p, 1e-2), BETAS),
    "sgd": (lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9, nesterov=True), {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "rmsprop": (lambda p: torch.optim.RMSprop(p, 1e-2), {"alpha": 0.99, "eps": 1e-8, "momentum": 0.0, "weight_decay": 0.1}),
}


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("length", [0.0, 0.4, 1 - 1e-7, 1.0, 1 + 1e-7, 7.0, math.inf, math.nan])
def test_gradients_are_clipped_as_by_torch(length: float, sparse: bool) -> None:
    def parameters() -> list[nn.Parameter]:
        torch.manual_seed(0)
        gradients = torch.randn(3, 4), torch.randn(5)
        whole = nn.utils.get_total_norm(gradients)
        found = [nn.Parameter(torch.zeros_like(gradient)) for gradient in (*gradients, torch.empty(2))]
        for p, gradient in zip(found, gradients, strict=False):  # the last has none
            p.grad = (gradient / whole * length).to_sparse() if sparse else gradient / whole * length
        return found

    ours, theirs = parameters(), parameters()
    norms = clip_gradients(ours, 1.0), nn.utils.clip_grad_norm_(theirs, 1.0)
    torch.testing.assert_close(*norms, rtol=5e-7, atol=0, equal_nan=True)
    for p, q in zip(ours, theirs, strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=5e-7, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_an_optimizer_is_torchs_with_decay_on_matrices_alone(name: str) -> None:
    torch.manual_seed(0)
    ours, theirs = Toy(0.0), Toy(0.0)
    theirs.load_state_dict(ours.state_dict())
    make, options = REFERENCE[name]
    optimizer = OPTIMIZERS.builder(name)(ours, lr=1e-2, **options)
    reference = make(
        [
            {"params": [p for p in theirs.parameters() if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in theirs.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
    )
    for _ in range(5):
        x = torch.randn(16, 4)
        for task, stepper in ((ours, optimizer), (theirs, reference)):
            stepper.zero_grad()
            task.net(x).square().mean().backward()
            stepper.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_muon_orthogonalises_matrices_and_leaves_the_rest_to_adamw() -> None:
    task = Toy(0.0)
    before = {name: p.detach().clone() for name, p in task.named_parameters()}
    optimizer = OPTIMIZERS.builder("muon")(task, lr=1e-2, momentum=0.95, nesterov=True, ns_steps=5, weight_decay=0.0)
    assert isinstance(optimizer, Together)
    task.net(torch.randn(16, 4)).square().mean().backward()
    optimizer.step()
    change = before["net.0.weight"] - task.net[0].weight.detach()  # type: ignore[operator]
    singular = torch.linalg.svdvals(change)
    # Newton-Schulz brings singular values near 1; match_rms_adamw scales by 0.2 sqrt(max(rows, columns))
    assert torch.all((singular / (1e-2 * 0.2 * math.sqrt(8)) - 1).abs() < 0.35)
    bias = before["net.0.bias"] - task.net[0].bias.detach()  # type: ignore[operator]
    assert torch.allclose(bias.abs(), torch.full_like(bias, 1e-2), atol=1e-3)  # Adam's first step is lr * sign
    twin = OPTIMIZERS.builder("muon")(Toy(0.0), lr=1e-2, momentum=0.95, nesterov=True, ns_steps=5, weight_decay=0.0)
    twin.load_state_dict(optimizer.state_dict())
    momentum = [p.state_dict()["state"] for p in twin.parts]
    assert momentum[0][0]["momentum_buffer"].equal(optimizer.parts[0].state_dict()["state"][0]["momentum_buffer"])


def test_muon_takes_no_embedding() -> None:
    task = build("gpt", CHARACTERS, depth=1, dim=32)
    optimizer = OPTIMIZERS.builder("muon")(task, lr=1e-2, momentum=0.95, nesterov=True, ns_steps=5, weight_decay=0.0)
    assert isinstance(optimizer, Together)
    names = {parameter: name for name, parameter in task.named_parameters()}
    muon, adam = ({names[p] for group in part.param_groups for p in group["params"]} for part in optimizer.parts)
    assert muon == {f"transformer.h.0.{part}.weight" for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}
    assert "transformer.wte.weight" in adam
    assert muon | adam == set(names.values())


SHELLS = LabelledTextSpec(CHARACTERS.vocabulary, 16, ("sea", "shore"))
BLOCK = {f"encoder.layers.0.{part}.weight" for part in ("attention.c_attn", "attention.c_proj", "mlp.0", "mlp.2")}


@pytest.mark.parametrize(
    ("model", "spec", "expected"),
    [
        ("mlp", DIGITS, {"network.1.linear.weight"}),
        ("cnn", DIGITS, {"network.hidden.weight"}),
        ("bert", SHELLS, BLOCK),
        ("bert", CHARACTERS, BLOCK | {"head.transform.0.weight"}),  # whose answer is given by the embedding
    ],
)
def test_muon_takes_the_matrices_between_and_not_what_says_the_classes(model: str, spec: Any, expected: set[str]) -> None:
    task = build(model, spec, **({"depth": 1, "dim": 32} if model == "bert" else {}))
    optimizer = OPTIMIZERS.builder("muon")(task, lr=1e-2, momentum=0.95, nesterov=True, ns_steps=5, weight_decay=0.0)
    names = {parameter: name for name, parameter in task.named_parameters()}
    muon, adam = ({names[p] for group in part.param_groups for p in group["params"]} for part in optimizer.parts)
    assert muon == expected
    assert muon | adam == set(names.values())


def torch_factors(make, steps: int) -> list[float]:  # type: ignore[no-untyped-def]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    factors = []
    for _ in range(steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


def ours(steps: int, **options: object) -> list[float]:
    return [lr_factor(schedule(**options), step, steps) for step in range(steps)]


def test_cosine_is_torchs() -> None:
    expected = torch_factors(lambda o: lr_scheduler.CosineAnnealingLR(o, 50, eta_min=0.1), 50)
    assert ours(50, schedule="cosine", warmup_steps=0, final_lr=0.1) == pytest.approx(expected)


def test_linear_is_torchs() -> None:
    expected = torch_factors(lambda o: lr_scheduler.LinearLR(o, 1.0, 0.2, 50), 50)
    assert ours(50, schedule="linear", warmup_steps=0, final_lr=0.2) == pytest.approx(expected)


def test_one_cycle_is_torchs() -> None:
    make = lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=101, cycle_momentum=False, final_div_factor=4.0)  # noqa: E731
    expected = torch_factors(make, 100)
    got = [lr_factor(schedule(schedule="one_cycle", warmup_steps=0, final_lr=0.01), step, 100) for step in range(100)]
    assert got == pytest.approx(expected, abs=0.03)  # torch rounds the turning point to a whole step
    assert max(got) == pytest.approx(1.0)


def test_warmup_is_linear_and_joins_the_schedule() -> None:
    factors = ours(100, schedule="cosine", warmup_steps=10)
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == pytest.approx(1.0)
    rest = torch_factors(lambda o: lr_scheduler.CosineAnnealingLR(o, 90), 90)
    assert factors[10:] == pytest.approx(rest)


def test_inverse_sqrt_is_vaswanis_formula_scaled_to_peak_at_one() -> None:
    warmup = 40
    noam = [min((s + 1) ** -0.5, (s + 1) * warmup**-1.5) for s in range(400)]  # eq. 3 without d_model
    assert ours(400, schedule="inverse_sqrt", warmup_steps=warmup) == pytest.approx([f / max(noam) for f in noam])


def test_constant_is_constant() -> None:
    assert ours(10, schedule="constant", warmup_steps=0) == [1.0] * 10


@pytest.mark.parametrize("kind", ["linear", "cosine", "one_cycle"])
def test_a_schedule_begins_anew_at_its_restarts(kind):
    warmup = 0 if kind == "one_cycle" else 3
    both = schedule(schedule=kind, warmup_steps=warmup, final_lr=0.1, restarts=(20, 50))
    alone = schedule(schedule=kind, warmup_steps=warmup, final_lr=0.1)
    expected = [lr_factor(alone, step, length) for length in (20, 30, 10) for step in range(length)]
    assert [lr_factor(both, step, 60) for step in range(60)] == expected
    assert [lr_factor(both, step, 15) for step in range(15)] == [lr_factor(alone, step, 15) for step in range(15)]  # over before the first


def _row_sgd(grad: torch.Tensor, **options: Any) -> torch.Tensor:
    param = nn.Parameter(torch.arange(12.0).view(4, 3))
    param.grad = grad.clone()
    RowSGD([param], **options).step()
    return param.detach() - torch.arange(12.0).view(4, 3)


def test_row_sgd_is_torchs_sgd_where_steps_have_no_bound() -> None:
    rows, values = torch.tensor([[0, 2, 2]]), torch.randn(3, 3)
    grad = torch.sparse_coo_tensor(rows, values, (4, 3), check_invariants=True)
    param = nn.Parameter(torch.arange(12.0).view(4, 3))
    param.grad = grad
    torch.optim.SGD([param], lr=0.3).step()
    expected = param.detach() - torch.arange(12.0).view(4, 3)
    torch.testing.assert_close(_row_sgd(grad, lr=0.3, max_step=None), expected)
    torch.testing.assert_close(_row_sgd(grad.to_dense(), lr=0.3, max_step=None), expected)


@pytest.mark.parametrize("lr", [0.01, 1.0, 1000.0])
def test_row_sgd_moves_no_row_further_than_its_bound(lr: float) -> None:
    """lr sum g / (1 + lr sum |g| / max_step), row by row."""
    rows, values = [0, 2, 2, 2], torch.randn(4, 3)
    moved = _row_sgd(torch.sparse_coo_tensor(torch.tensor([rows]), values, (4, 3), check_invariants=True), lr=lr, max_step=0.5)
    for row in range(4):
        said = [value for at, value in zip(rows, values, strict=True) if at == row]
        whole = torch.stack(said).sum(0) if said else torch.zeros(3)
        expected = -lr * whole / (1 + lr * sum(float(v.norm()) for v in said) / 0.5)
        torch.testing.assert_close(moved[row], expected)
    assert (moved.norm(dim=1) < 0.5).all()


def test_row_sgd_takes_a_sparse_row_once_as_a_dense_one() -> None:
    grad = torch.sparse_coo_tensor(torch.tensor([[3, 1]]), torch.randn(2, 3), (4, 3), check_invariants=True)
    torch.testing.assert_close(_row_sgd(grad, lr=2.0, max_step=0.7), _row_sgd(grad.to_dense(), lr=2.0, max_step=0.7))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "rmsprop", "muon"])
def test_tables_of_which_rows_are_looked_up_want_an_optimizer_for_rows(name: str) -> None:
    settings = checked(*compose(["model=word2vec", f"optimizer={name}"]))
    task = build_word2vec(
        CorpusSpec(("a", "b"), (1, 1)),
        architecture="cbow",
        output="negative",
        dim=2,
        window=1,
        negatives=1,
        shared_negatives=0,
        subsample=None,
    )
    with pytest.raises(ConfigError, match="rows") as refused:
        OPTIMIZERS.builder(name)(task, **settings.optimizer.options)
    assert refused.value.cure == "optimizer=row_sgd"
