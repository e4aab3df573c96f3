from __future__ import annotations

import pytest
import torch
from torch import nn

from refresher_runner.errors import ConfigError
from refresher_runner.models.resnet import ResNet
from refresher_runner.spec import ImageSpec
from tests.models.build import build

CIFAR = ImageSpec(3, 32, tuple("0123456789"), (0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize(("depth", "exact", "table_6"), [(20, 269_722, 0.27), (56, 853_018, 0.85), (110, 1_727_962, 1.7)])
def test_parameters_are_the_papers(depth: int, exact: int, table_6: float):
    count = sum(p.numel() for p in build("resnet", CIFAR, depth=depth).parameters())
    assert count == exact
    assert round(count / 1e6, 2 if table_6 < 1 else 1) == table_6


def test_projections_add_their_own():
    count = sum(p.numel() for p in build("resnet", CIFAR, shortcut="B").parameters())
    assert count == 269_722 + (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)


@pytest.mark.parametrize("depth", [20, 32])
def test_depth_counts_layers_with_weights(depth: int):
    layers = [m for m in build("resnet", CIFAR, depth=depth).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == depth


@pytest.mark.parametrize(
    ("depth", "cure"), [(1, "8 or 14"), (2, "8 or 14"), (7, "8 or 14"), (21, "20 or 26"), (50, None), (18, "14 or 20")]
)
def test_other_depths_are_refused(depth: int, cure: str | None):
    if cure is None:
        build("resnet", CIFAR, depth=depth)
        return
    with pytest.raises(ConfigError) as caught:
        build("resnet", CIFAR, depth=depth)
    assert caught.value.key == "model.depth"
    assert cure in caught.value.cure


@pytest.mark.parametrize("size", [7, 8, 28, 32])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_groups_halve_and_double(size: int, shortcut: str):
    spec = ImageSpec(3, size, ("a", "b"), (0.0,) * 3, (1.0,) * 3)
    task = build("resnet", spec, depth=8, width=4, shortcut=shortcut)
    assert isinstance(task, ResNet)
    x, half = task.network.stem(torch.randn(2, 3, size, size)), (size + 1) // 2
    shapes = [x.shape] + [(x := blocks(x)).shape for blocks in task.network.groups]
    assert shapes == [(2, 4, size, size), (2, 4, size, size), (2, 8, half, half), (2, 16, (half + 1) // 2, (half + 1) // 2)]
