"""Looking at a task: metrics over a split, and what one batch shows. It leaves no trace in training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from refresher_runner.engine import signals
from refresher_runner.engine.device import DTYPES, randomness_apart
from refresher_runner.engine.distributed import SINGLE, World
from refresher_runner.errors import DataError
from refresher_runner.report import Loggable, Report
from refresher_runner.spec import Loader
from refresher_runner.task import Task


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The context of a forward pass; weights stay fp32."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, DTYPES[precision])


@torch.no_grad()
def evaluate(
    task: Task, loader: Loader, split: str, *, device: torch.device, precision: str = "fp32", seed: int = 0, world: World = SINGLE
) -> Report:
    """`split/loss`, `split/<metric>`, `split/<part>` and what `observe` shows of the first batch.

    Every rank evaluates its share; the report is whole on each. Raises Interrupted when a signal comes.
    """
    metrics = task.metrics()
    for metric in metrics.values():
        if isinstance(metric, nn.Module):
            metric.to(device)
    sums: dict[str, Tensor] = {}
    count, first = 0, None
    exact = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
    with randomness_apart(seed, device), _eval_mode(task):
        for batch in loader.batches(epoch=0):
            if world.size == 1:
                signals.poll()
            size = len(batch[0])
            if size == 0:
                continue
            first = batch if first is None else first
            with autocast(device, precision):
                output = task.step(batch)
            for name, value in {"loss": output.loss, **output.parts}.items():
                sums[name] = sums.get(name, 0) + value.detach().to(exact) * size
            count += size
            for metric in metrics.values():
                metric.update(output.preds, output.targets)
        totals = world.sum(torch.stack([*sums.values(), torch.tensor(float(count), device=device, dtype=exact)])) if sums else None
        if totals is None or totals[-1] == 0:
            raise DataError("the split is empty", key=split)
        means = (totals[:-1] / totals[-1]).tolist()
        report: dict[str, Loggable] = dict(zip(sums, means, strict=True))
        for name, metric in metrics.items():
            report |= _flat(name, metric.compute())
        if world.is_main and first is not None:
            with autocast(device, precision):
                report |= task.observe(first)
    return {f"{split}/{name}": value for name, value in report.items()}


@contextmanager
def _eval_mode(task: Task) -> Iterator[None]:
    training = task.training
    task.eval()
    try:
        yield
    finally:
        task.train(training)


def _flat(name: str, value: Any) -> dict[str, Loggable]:
    """A metric's value as reports hold it: tensors as floats, mappings as `name/key`."""
    if isinstance(value, Mapping):
        return {tag: v for key, inner in value.items() for tag, v in _flat(f"{name}/{key}", inner).items()}
    return {name: float(value) if isinstance(value, (Tensor, int)) else value}
