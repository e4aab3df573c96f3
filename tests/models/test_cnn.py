from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from refresher_runner.errors import ConfigError
from refresher_runner.models.cnn import CNN, map_size, output_size
from refresher_runner.spec import ImageSpec
from tests.models.build import batch, build


def test_output_size_is_torchs():
    for n, f, s, p in itertools.product((1, 2, 5, 8, 13), (1, 2, 3, 5), (1, 2, 3), (0, 1, 2)):
        if n + 2 * p < f:
            assert output_size(n, f, s, p) < 1
            continue
        x = torch.zeros(1, 1, n, n)
        assert output_size(n, f, s, p) == nn.Conv2d(1, 1, f, stride=s, padding=p)(x).shape[-1], (n, f, s, p)
        if 2 * p <= f:
            assert output_size(n, f, s, p) == nn.MaxPool2d(f, stride=s, padding=p)(x).shape[-1], (n, f, s, p)


def test_first_stage_as_explicit_sums():
    """Convolution as in the book, then the largest of every 2x2, then relu."""
    task = build("cnn", batch_norm=False)
    assert isinstance(task, CNN)
    stage, x = task.network.stages[0], batch(size=1).images
    padded = torch.zeros(1, 10, 10)
    padded[:, 1:9, 1:9] = x[0]
    expected = torch.zeros(16, 4, 4)
    weight, bias = stage.conv.weight.detach(), stage.conv.bias.detach()
    for o, i, j in itertools.product(range(16), range(4), range(4)):
        window = [
            sum(weight[o, 0, u, v] * padded[0, y + u, x_ + v] for u in range(3) for v in range(3)) + bias[o]
            for y in (2 * i, 2 * i + 1)
            for x_ in (2 * j, 2 * j + 1)
        ]
        expected[o, i, j] = max(0.0, max(float(value) for value in window))
    torch.testing.assert_close(stage(x)[0].detach(), expected)


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"kernel": 11}, "model.kernel", ("convolution 1", "11x11", "8x8")),
        ({"kernel": 5, "padding": 0}, "model.kernel", ("convolution 2", "5x5", "2x2")),
        ({"channels": [4, 4, 4, 4]}, "model.pool", ("subsampling 4", "2x2", "1x1")),
        ({"pool": 9}, "model.pool", ("subsampling 1", "9x9", "8x8")),
        ({"channels": []}, "model.channels", ("at least one",)),
    ],
)
def test_a_geometry_that_shrinks_to_nothing_is_refused(changes: dict, key: str, words: tuple[str, ...]):
    with pytest.raises(ConfigError) as caught:
        build("cnn", **changes)
    assert caught.value.key == key
    assert caught.value.cure
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pool", [1, 2, 3])
def test_map_size_is_what_the_stages_make(kernel: int, stride: int, pool: int):
    """Wherever the check lets a geometry pass, it builds and runs, and wherever it does not, torch refuses too."""
    channels, spec = [2, 3], ImageSpec(1, 13, ("a", "b"), (0.0,), (1.0,))
    changes = {"channels": channels, "kernel": kernel, "stride": stride, "padding": 0, "pool": pool, "batch_norm": False}
    try:
        size = map_size(13, 2, f=kernel, s=stride, p=0, pool=pool)
    except ConfigError:
        layers = [nn.Conv2d(1, 1, kernel, stride), nn.MaxPool2d(pool)] * 2
        with pytest.raises(RuntimeError, match=r"too small|greater than"):
            nn.Sequential(*layers)(torch.zeros(1, 1, 13, 13))
    else:
        task = build("cnn", spec, **changes)
        assert isinstance(task, CNN)
        assert task.network.stages(torch.zeros(1, 1, 13, 13)).shape == (1, 3, size, size)
        assert task.eval().step(batch(spec)).preds.shape == (16, 2)


@pytest.mark.parametrize(
    "changes",
    [{"pooling": "avg"}, {"activation": "gelu"}, {"activation": "tanh"}, {"activation": "silu"}, {"batch_norm": False}, {"dropout": 0.5}],
    ids=str,
)
def test_every_option_changes_the_answer(changes: dict):
    """From the same weights."""
    data = batch()
    torch.manual_seed(1)
    plain = build("cnn").step(data).loss
    torch.manual_seed(1)
    changed = build("cnn", **changes).step(data).loss
    assert torch.isfinite(changed)
    assert changed != plain


def test_feature_maps_are_those_of_the_first_picture():
    task, data = build("cnn").eval(), batch()
    with torch.no_grad():
        report = task.observe(data)
    assert report["kernels"].pixels.shape == (16, 1, 3, 3)
    assert report["feature_maps/1"].pixels.shape == (16, 1, 4, 4)
    assert report["feature_maps/2"].pixels.shape == (32, 1, 2, 2)
    assert isinstance(task, CNN)
    maps = task.network.stages[0](data.images)[0, :, None].detach()
    torch.testing.assert_close(report["feature_maps/1"].pixels, (maps - maps.min()) / (maps.max() - maps.min()))
