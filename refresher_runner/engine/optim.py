"""Optimizers by name, and the learning rate over a run.

Every optimizer is torch's own, in its fused form where there is one; every builder takes a task and asks it which parameters
decay.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from refresher_runner.engine.distributed import shard_like
from refresher_runner.engine.options import ScheduleOptions
from refresher_runner.errors import ConfigError
from refresher_runner.registry import OPTIMIZERS
from refresher_runner.schema import Decay, NonNegativeFloat, Positive, PositiveFloat
from refresher_runner.task import Task


@OPTIMIZERS.register("adam")
def build_adam(
    task: Task, *, lr: PositiveFloat, betas: tuple[Decay, Decay], eps: PositiveFloat, weight_decay: NonNegativeFloat
) -> Optimizer:
    """Adam (Kingma and Ba, 2015); weight_decay is added to the gradient."""
    refuse_sparse(task, "adam")
    return torch.optim.Adam(task.param_groups(weight_decay), lr=lr, betas=betas, eps=eps, fused=True)


@OPTIMIZERS.register("adamw")
def build_adamw(
    task: Task, *, lr: PositiveFloat, betas: tuple[Decay, Decay], eps: PositiveFloat, weight_decay: NonNegativeFloat
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""
    refuse_sparse(task, "adamw")
    return torch.optim.AdamW(task.param_groups(weight_decay), lr=lr, betas=betas, eps=eps, fused=True)


@OPTIMIZERS.register("sgd")
def build_sgd(task: Task, *, lr: PositiveFloat, momentum: Decay, nesterov: bool, weight_decay: NonNegativeFloat) -> Optimizer:
    """Stochastic gradient descent with (Nesterov's) momentum."""
    refuse_sparse(task, "sgd")
    groups = task.param_groups(weight_decay)
    fused = not any(hasattr(p, "device_mesh") for p in task.parameters())  # torch's fused SGD knows no shards
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0, fused=fused)


@OPTIMIZERS.register("rmsprop")
def build_rmsprop(
    task: Task, *, lr: PositiveFloat, alpha: Decay, eps: PositiveFloat, momentum: Decay, weight_decay: NonNegativeFloat
) -> Optimizer:
    """RMSprop (Tieleman and Hinton, 2012, lecture 6.5)."""
    refuse_sparse(task, "rmsprop")
    return torch.optim.RMSprop(task.param_groups(weight_decay), lr=lr, alpha=alpha, eps=eps, momentum=momentum, foreach=True)


@OPTIMIZERS.register("muon")
def build_muon(
    task: Task, *, lr: PositiveFloat, momentum: Decay, nesterov: bool, ns_steps: Positive, weight_decay: NonNegativeFloat
) -> Optimizer | Together:
    """Muon (Jordan et al., 2024) for the matrices between, AdamW for all else, embeddings and what says the classes too.

    One lr suits both (Liu et al., 2025, eq. 4).
    """
    refuse_sparse(task, "muon")
    ends = [*(module for module in task.modules() if isinstance(module, nn.Embedding)), *task.class_layers()]
    spared = {parameter for module in ends for parameter in module.parameters()}
    matrices, others = [], []
    for group in task.param_groups(weight_decay):
        for param in group["params"]:
            chosen = matrices if param.ndim == 2 and param not in spared else others
            chosen.append({"params": [param], "weight_decay": group["weight_decay"]})
    parts: list[Optimizer] = []
    if matrices:
        parts.append(
            torch.optim.Muon(matrices, lr=lr, momentum=momentum, nesterov=nesterov, ns_steps=ns_steps, adjust_lr_fn="match_rms_adamw")
        )
    if others:
        parts.append(torch.optim.AdamW(others, lr=lr, fused=True))
    return Together(parts)


def refuse_sparse(task: Task, name: str) -> None:
    """Raises ConfigError where a table's gradients are sparse, which an optimizer that keeps moments of every row cannot take."""
    if any(isinstance(module, nn.Embedding) and module.sparse for module in task.modules()):
        problem = f"{type(task).__name__} gives gradients of the rows that it looked up alone"
        raise ConfigError(problem, key="optimizer", value=name, cure="optimizer=row_sgd")


@OPTIMIZERS.register("row_sgd")
def build_row_sgd(task: Task, *, lr: PositiveFloat, max_step: PositiveFloat | None) -> Optimizer:
    """Gradient descent for tables of which a step looks up some rows, none of which moves far at once; without weight decay."""
    return RowSGD(task.parameters(), lr=lr, max_step=max_step)


class RowSGD(Optimizer):
    """w -= lr g for each row that was looked up. The more often it was, the longer its step, since what a batch says of it comes at once
    where plain descent would hear it one after another, each word the better for the last; so a row's step is bounded:

        step = lr sum g / (1 + lr sum |g| / max_step)

    over all that is said of it, which is shorter than `max_step`, and as in plain descent where little is said. Gradients are sparse
    (rows, 2-d) or dense; of a dense one each row is said once.
    """

    def __init__(self, params: Iterable[Tensor], *, lr: float, max_step: float | None):
        super().__init__(params, {"lr": lr, "max_step": max_step})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    _step_rows(param, param.grad, group["lr"], group["max_step"])


def _step_rows(param: Tensor, grad: Tensor, lr: float, max_step: float | None) -> None:
    if not grad.is_sparse:
        length = torch.linalg.vector_norm(grad.flatten(1) if grad.ndim > 1 else grad[:, None], dim=1)
        scale = lr / (1 + length * (lr / max_step)) if max_step else torch.full_like(length, lr)
        param.sub_(grad * scale.view(-1, *[1] * (grad.ndim - 1)))
        return
    rows, values = grad._indices()[0], grad._values()
    if max_step is None:
        param.index_add_(0, rows, values, alpha=-lr)
        return
    divisor = values.new_ones(len(param)).index_add_(0, rows, torch.linalg.vector_norm(values, dim=1), alpha=lr / max_step)
    scale = divisor.index_select(0, rows).reciprocal_().mul_(-lr)
    param.index_add_(0, rows, values.mul_(scale[:, None]))  # the gradient is spent


class Together:
    """Several optimizers that step as one, each over its own parameters."""

    def __init__(self, parts: Sequence[Optimizer]):
        self.parts = list(parts)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)


def restore(optimizer: Optimizer | Together, state: dict[str, Any]) -> None:
    """Whole moments into an optimizer, cut as its parameters are; of what was saved, the options chosen now override the rest."""
    chosen = [{key: value for key, value in group.items() if key not in ("params", "lr")} for group in optimizer.param_groups]
    if "state" in state:
        params = [param for group in optimizer.param_groups for param in group["params"]]
        cut = {i: {key: shard_like(value, params[i]) for key, value in values.items()} for i, values in state["state"].items()}
        state = {**state, "state": cut}
    optimizer.load_state_dict(state)
    for group, options in zip(optimizer.param_groups, chosen, strict=True):
        group.update(options)


def clip_gradients(params: Sequence[nn.Parameter], longest: float) -> Tensor:
    """Gradients scaled to a norm of at most `longest`, as by torch's `clip_grad_norm_`: the norm before.

    On a CPU, where to ask costs no wait for a device, those that are short enough are left alone, and products of vectors, which its
    library has as one call each, take half the time of norms.
    """
    grads = [p.grad for p in params if p.grad is not None]
    if grads and all(type(grad) is Tensor and grad.layout == torch.strided and grad.device.type == "cpu" for grad in grads):  # no shards
        norm = torch.stack([flat.dot(flat) for flat in (grad.flatten() for grad in grads)]).sum().sqrt()
        if norm <= longest - 1e-6:  # torch's factor is longest / (norm + 1e-6)
            return norm
    else:
        norm = nn.utils.get_total_norm(grads)
    nn.utils.clip_grads_with_norm_(params, longest, norm)
    return norm


def lr_factor(options: ScheduleOptions, step: int, total: float) -> float:
    """The learning rate at optimizer step `step` = 0, 1, ... of `total`, as a factor of `optimizer.lr`, in [0, 1].

    After `warmup_steps` of a linear rise:
      constant      1
      linear        a line from 1 to final_lr
      cosine        a half cosine from 1 to final_lr (Loshchilov and Hutter, 2017, eq. 5)
      one_cycle     cosines: 1/25 up to 1 in the first 30 %, then down to final_lr (Smith and Topin, 2018)
      inverse_sqrt  sqrt(warmup_steps / step) (Vaswani et al., 2017, eq. 3, scaled to peak at 1)

    At every step of `restarts` all of this begins anew, for the time until the next (Loshchilov and Hutter, 2017, section 3).
    """
    begin, total = _stretch(options.restarts, step, total)
    step, total = step - begin, total - begin
    warmup, end = options.warmup_steps, options.final_lr
    if step < warmup:
        return (step + 1) / warmup
    if options.schedule == "constant":
        return 1.0
    if options.schedule == "inverse_sqrt":
        return math.sqrt(max(warmup, 1) / (step + 1))
    done = min((step - warmup) / max(total - warmup, 1.0), 1.0)
    if options.schedule == "linear":
        return 1.0 + (end - 1.0) * done
    if options.schedule == "cosine":
        return _cosine(1.0, end, done)
    return _cosine(1 / 25, 1.0, done / 0.3) if done < 0.3 else _cosine(1.0, end, (done - 0.3) / 0.7)


def _stretch(restarts: Sequence[int], step: int, total: float) -> tuple[int, float]:
    """Between which two restarts, beginning and end of the run among them, a step lies."""
    return max(0, *(r for r in restarts if r <= step), 0), min(total, *(r for r in restarts if r > step), total)


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
