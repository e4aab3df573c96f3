"""Curves of several runs: what is drawn, read back from the drawing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from refresher_runner.cli import main
from refresher_runner.errors import UsageError
from refresher_runner.runs import find
from refresher_runner.sweep.curves import draw_curves, mean_curve
from tests.sweep.written import chosen, write_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for model in ("cnn", "mlp"):
        for seed in (0, 1):
            write_run(tmp_path, f"{model}_{seed}", chosen(model, seed=seed), {10: 0.5, 20: 0.75 + seed / 8}, more={"val/loss": 0.5})
    return tmp_path


def test_means_are_over_the_steps_that_all_have() -> None:
    assert mean_curve([{1: 1.0, 2: 2.0, 3: 9.0}, {2: 4.0, 1: 0.0}]) == {1: 0.5, 2: 3.0}
    assert mean_curve([]) == {}


def test_a_panel_for_each_tag_and_a_name_for_each_configuration(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "curves.svg"
    draw_curves(find(folder), file)
    drawn = re.findall(r"<!-- (.*?) -->", file.read_text(encoding="utf-8"))
    for text in ("train/loss", "val/accuracy", "val/loss", "cnn (2 seeds)", "mlp (2 seeds)"):
        assert drawn.count(text) == 1
    draw_curves(find(folder), file, ["val/accuracy"])
    assert "val/loss" not in re.findall(r"<!-- (.*?) -->", file.read_text(encoding="utf-8"))


def test_compare_draws(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "curves.png"
    assert main(["compare", str(folder), "--plot", str(file)]) == 0
    assert f"curves: {file}" in capsys.readouterr().out
    with Image.open(file) as picture:
        assert picture.size[0] > picture.size[1] > 200
    assert main(["compare", str(folder / "cnn_0"), str(folder / "mlp_0")]) == 0
    assert main(["compare", str(folder / "cnn_0")]) == 2


@pytest.mark.parametrize(("file", "tags", "key"), [("a.gif", (), "--plot"), ("a.png", ("val/acuracy",), "--tag")])
def test_what_cannot_be_drawn_is_refused(folder: Path, file: str, tags: tuple[str, ...], key: str) -> None:
    with pytest.raises(UsageError) as refused:
        draw_curves(find(folder), folder / file, tags)
    assert refused.value.key == key
    assert "val/accuracy" in refused.value.cure or ".png" in refused.value.cure
