"""The summary of a model: its numbers in closed form, and no trace of having been made."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import nn

from refresher_runner.engine.summary import MOST_ROWS, summarise
from refresher_runner.task import Output, Task


class Net(Task):
    """Everything that a pass could change: batch statistics, random state, a counter."""

    def __init__(self, layers: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers)), nn.Linear(8, 5))
        self.passes = 0
        self.head[0].requires_grad_(layers == 1)

    def step(self, batch: Any) -> Output:
        self.passes += 1
        noise = torch.rand_like(batch[0]) + random.random() + np.random.rand()
        return Output(self.head(self.norm(self.conv(batch[0] + noise)).mean((2, 3))).square().mean())


BATCH = (torch.ones(4, 3, 16, 16),)


def rows(task: Task) -> dict[str, list[str]]:
    lines = summarise(task, BATCH).markdown.split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].removeprefix("- "): row[1:] for row in cells}


def test_shapes_parameters_and_flops_of_one_sample() -> None:
    found = rows(Net())
    conv = 2 * 8 * 3 * 9 * 16 * 16  # a multiplication and an addition for each weight at each place
    assert found["layer"] == ["type", "output", "parameters", "FLOPs"]
    assert found["conv"] == ["Conv2d", "4 x 8 x 16 x 16", "216", f"{conv / 1000:.3g} k"]
    assert found["norm"] == ["BatchNorm2d", "4 x 8 x 16 x 16", "16", "0"]
    assert found["head.0"] == ["Linear", "4 x 8", "72", "128"]
    assert found["head"] == ["Sequential", "4 x 5", "117", "208"]
    assert found["Net"] == ["", "", "349", f"{(conv + 208) / 1000:.3g} k"]


class Writer(Net):
    """What metrics compare takes a pass of its own."""

    def step(self, batch: Any) -> Output:
        output = super().step(batch)
        return output if self.training else Output(output.loss, preds=super().step(batch).loss)


def test_what_is_made_for_metrics_alone_is_not_counted() -> None:
    assert rows(Writer())["Writer"] == rows(Net())["Net"]


def test_it_leaves_no_trace() -> None:
    task = Net()
    task.norm.eval()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    summarise(task, BATCH)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])  # type: ignore[index]
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
    assert task.training
    assert not task.norm.training
    assert task.passes == 0
    assert all(p.grad is None for p in task.parameters())
    assert not any(module._forward_hooks for module in task.modules())


def test_a_large_model_is_shown_by_its_parts() -> None:
    found = rows(Net(layers=MOST_ROWS))
    assert [name for name in found if not name.startswith("-")] == ["layer", "conv", "norm", "head", "Net"]


def test_frozen_parameters_are_counted() -> None:
    assert "72 of the parameters are frozen" in summarise(Net(layers=2), BATCH).markdown
    assert "frozen" not in summarise(Net(), BATCH).markdown
