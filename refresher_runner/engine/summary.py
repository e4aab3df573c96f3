"""A model at a glance: what each layer gives, holds and costs."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from refresher_runner.engine.device import randomness_apart
from refresher_runner.engine.tables import table
from refresher_runner.nn.ranks import alone
from refresher_runner.report import Text
from refresher_runner.task import Task

MOST_ROWS = 40  # a model with more parts within two levels is shown by one


def summarise(task: Task, batch: Any) -> Text:
    """Layers (two levels deep, in order of first use) with output shape, parameters and FLOPs of one sample's forward pass.

    FLOPs count the multiplications and additions of matrix products, convolutions and attention, two for each pair. A copy of
    the task is run once without a trace in the task or in any random state.
    """
    device = next(task.parameters(), torch.empty(0)).device
    copied = copy.deepcopy(task).eval()
    copied.training = True  # of the task alone: what it makes for metrics, a whole translation say, is no part of its forward pass
    shapes: dict[str, str] = {}
    for name, module in copied.named_modules():
        module.register_forward_hook(partial(_note_shape, shapes, name))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), alone(), randomness_apart(0, device), warnings.catch_warnings(), counter:
        warnings.simplefilter("ignore")  # what a layer warns of is said when it is trained
        copied(batch)
    flops = {name: sum(counts.values()) / len(batch[0]) for name, counts in counter.get_flop_counts().items()}
    parts = [(name, module) for name, module in copied.named_modules() if 0 < len(name.split(".")) <= 2 and name]
    if len(parts) > MOST_ROWS:
        parts = [(name, module) for name, module in parts if "." not in name]
    top = type(task).__name__
    rows = [
        [_indented(name), type(module).__name__, shapes.get(name, ""), f"{_parameters(module):,}", _amount(flops.get(f"{top}.{name}", 0))]
        for name, module in parts
    ]
    total = [top, "", "", f"{_parameters(task):,}", _amount(flops.get("Global", 0))]
    frozen = sum(p.numel() for p in task.parameters() if not p.requires_grad)
    text = table(["layer", "type", "output", "parameters", "FLOPs"], [*rows, total], right=["parameters", "FLOPs"])
    return Text(text + (f"\n\n{frozen:,} of the parameters are frozen." if frozen else ""))


def _note_shape(shapes: dict[str, str], name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    shapes.setdefault(name, _shape(output))


def _shape(output: Any) -> str:
    """Of the first tensor of an output."""
    if isinstance(output, Tensor):
        return " x ".join(map(str, output.shape)) or "scalar"
    if isinstance(output, (tuple, list)) and output:
        return _shape(output[0])
    return ""


def _indented(name: str) -> str:
    return f"- {name}" if "." in name else name


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _amount(number: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.0f}"
