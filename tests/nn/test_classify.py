from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from refresher_runner.errors import DataError
from refresher_runner.nn.classify import Classifier, feature_maps, kernels, picture_files
from refresher_runner.report import Embedding, Images
from refresher_runner.spec import ImageBatch, ImageSpec

SPEC = ImageSpec(1, 2, ("dark", "grey", "light"), (0.5,), (0.25,))


class Brightness(nn.Module):
    """Logits from the mean pixel: -1, 0 and 1 times ten of it."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([-10.0, 0.0, 10.0]))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((1, 2, 3))[:, None] * self.scale


@pytest.fixture
def task() -> Classifier:
    return Classifier(SPEC, Brightness()).eval()


def test_mistakes_come_most_confident_first(task: Classifier):
    means = torch.tensor([-0.1, 0.3, -0.2, 0.05])
    images = means[:, None, None, None].expand(4, 1, 2, 2)
    shown = task.observe(ImageBatch(images, torch.tensor([0, 0, 1, 1])))["mistakes"]
    assert isinstance(shown, Images)
    e = np.exp
    p = [e(3) / (e(3) + 1 + e(-3)), e(2) / (e(2) + 1 + e(-2)), e(0.5) / (e(0.5) + 1 + e(-0.5))]
    assert shown.captions == (
        f"dark taken for light, {p[0]:.2f}",
        f"grey taken for dark, {p[1]:.2f}",
        f"grey taken for light, {p[2]:.2f}",
    )
    torch.testing.assert_close(shown.pixels[:, 0, 0, 0], torch.tensor([0.3, -0.2, 0.05]) * 0.25 + 0.5)


def test_at_most_sixteen_mistakes_and_none_where_all_is_right(task: Classifier):
    images = torch.ones(40, 1, 2, 2)
    assert "mistakes" not in task.observe(ImageBatch(images, torch.full((40,), 2)))
    assert len(task.observe(ImageBatch(images, torch.zeros(40, dtype=torch.int64)))["mistakes"].captions) == 16


def test_features_are_what_the_last_layer_is_given() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    images, labels = torch.randn(300, 1, 2, 2), torch.arange(300) % 3
    shown = Classifier(SPEC, network).eval().observe(ImageBatch(images, labels))["features"]
    assert isinstance(shown, Embedding)
    torch.testing.assert_close(shown.vectors, network[:3](images)[:256])
    assert shown.labels == (SPEC.classes * 100)[:256]
    assert shown.images is not None
    torch.testing.assert_close(shown.images, (images[:256] * 0.25 + 0.5).clamp(0, 1))


def _picture(path: Path, value: int, mode: str = "L") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (6, 4), value if mode == "L" else (value,) * 3).save(path)
    return str(path)


def test_predict_reads_files_and_folders_in_order(task: Classifier, tmp_path: Path):
    _picture(tmp_path / "more" / "b.png", 255)
    _picture(tmp_path / "more" / "a" / "z.JPG", 0, "RGB")
    (tmp_path / "more" / "notes.txt").write_text("no picture")
    first = _picture(tmp_path / "dark.png", 0)
    rows = list(task.predict([first, str(tmp_path / "more")]))
    assert [Path(row.input).name for row in rows] == ["dark.png", "z.JPG", "b.png"]
    assert [row.values["class"] for row in rows] == ["dark", "dark", "light"]
    p = torch.tensor([20.0, 0.0, -20.0]).softmax(0)
    assert rows[0].values == {
        "class": "dark",
        "probability": pytest.approx(p[0].item()),
        "runner_up": "grey",
        "runner_up_probability": pytest.approx(p[1].item()),
    }
    shown = rows[2].report["picture"]
    assert isinstance(shown, Images)
    assert shown.captions == ("light, 1.00",)
    assert torch.equal(shown.pixels, torch.ones(1, 1, 2, 2))


def test_predict_names_the_file_it_cannot_read(task: Classifier, tmp_path: Path):
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    (tmp_path / "empty").mkdir()
    for path in (damaged, tmp_path / "absent.png", tmp_path / "empty"):
        with pytest.raises(DataError, match=str(path)):
            list(task.predict([str(path)]))


def test_folders_are_sorted_whatever_order_files_came_in(tmp_path: Path):
    for name in ("c.png", "a.png", "b/0.png"):
        _picture(tmp_path / name, 0)
    assert [str(f.relative_to(tmp_path)) for f in picture_files([str(tmp_path)])] == ["a.png", "b/0.png", "c.png"]


def test_kernels_show_zero_as_grey():
    weight = torch.tensor([-2.0, 0.0, 1.0]).view(3, 1, 1, 1)
    assert kernels(weight).pixels.flatten().tolist() == [0.0, 0.5, 0.75]
    assert kernels(torch.zeros(1, 3, 2, 2)).pixels.unique().tolist() == [0.5]
    assert len(kernels(torch.zeros(100, 1, 2, 2)).pixels) == 64


def test_feature_maps_span_the_layer():
    x = torch.tensor([[[1.0, 2.0]], [[3.0, 5.0]]])
    assert feature_maps(x).pixels.tolist() == [[[[0.0, 0.25]]], [[[0.5, 1.0]]]]
    assert not feature_maps(torch.ones(2, 1, 2)).pixels.any()
