"""Options of `predict`: those of a model that change nothing learnt, checked as its configuration is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from refresher_runner.cli import main
from refresher_runner.compose import compose
from refresher_runner.errors import ConfigError, UsageError
from refresher_runner.predictions import write
from refresher_runner.registry import MODELS
from refresher_runner.report import Embedding, Images, Prediction
from refresher_runner.schema import PositiveFloat, typed
from refresher_runner.settings import check, choose_later
from tests.inside import trained


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("4", int, 4),
        ("0.5", float, 0.5),
        ("3", str, "3"),
        ("null", PositiveFloat | None, None),
        ("[1, 2.5]", tuple[float, ...], [1, 2.5]),
        ("a red: circle", str, "a red: circle"),
        ("true", str, "true"),
        ("ddim", Literal["ddim", "dpm"], "ddim"),
        ("many", int, "many"),  # for `check` to refuse
        ("[1", str, "[1"),
    ],
)
def test_a_word_is_what_is_wanted(text: str, annotation: Any, value: Any) -> None:
    assert typed(text, annotation) == value


def config() -> dict[str, Any]:
    return compose(["model=ddpm"])[0]


def test_what_changes_nothing_learnt_can_be_chosen() -> None:
    before = config()
    changed = choose_later(before, {"guidance": "4", "sampler": "ddim", "steps": "7", "seed": "3"})
    assert check(changed).model.options == {**check(before).model.options, "guidance": 4.0, "sampler": "ddim", "steps": 7}
    assert check(changed).run.seed == 3
    assert before == config(), "nothing else changes"


@pytest.mark.parametrize(("name", "hint"), [("width", ""), ("guidnce", "guidance"), ("num_timesteps", "")])
def test_what_was_learnt_with_cannot(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match="is no option of predict") as caught:
        choose_later(config(), {name: "2"})
    assert caught.value.key == f"--{name}"
    assert hint in caught.value.cure


@pytest.mark.parametrize(("name", "value"), [("guidance", "-1"), ("steps", "0"), ("sampler", "heun"), ("steps", "many"), ("seed", "-1")])
def test_values_are_checked(name: str, value: str) -> None:
    changed = choose_later(config(), {name: value})
    with pytest.raises(ConfigError) as caught:
        check(changed)
    assert caught.value.key == (name if name == "seed" else f"model.{name}")


def test_only_what_draws_or_shows_can_be_chosen_later() -> None:
    later = {name: [key for key, option in MODELS.signature(name).options.items() if option.later] for name in MODELS.names()}
    assert {name for name, options in later.items() if options} == {"ddpm", "latent_diffusion", "vae"}
    assert not {"target", "schedule", "num_timesteps", "latents", "beta"} & {key for options in later.values() for key in options}


@pytest.mark.usefixtures("as_it_was")
def test_options_stand_among_the_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["judge=null", "trainer=smoke", "trainer.threads=1", "trainer.loggers=[]", "trainer.test=false"]
    run = trained("model=vae", "data=digits", "model.width=8", "model.latents=3", *quick)
    assert main(["predict", "last", "--truncation=0.5", "2", "--output", "out", "3", "--seed", "4"]) == 0
    rows = json.loads(Path("out/predictions.json").read_text(encoding="utf-8"))
    assert [(row["input"], row["truncation"]) for row in rows] == [("2", 0.5), ("3", 0.5)]
    capsys.readouterr()
    refused = {"--frames": "--frames: needs a value", "--size=3": "--size=3: is no option"}
    for word, told in refused.items():
        assert main(["predict", str(run), "2", word]) == 2
        assert told in capsys.readouterr().err
    assert main(["predict", str(run), "--frames=3"]) == 2
    assert "nothing to predict from" in capsys.readouterr().err


def test_pictures_are_shown_and_vectors_kept(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    codes = torch.randn(3, 4)
    report = {"drawn": Images(torch.rand(2, 3, 8, 8)), "codes": Embedding(codes, ("a",) * 3)}
    made = [Prediction(f"input {i}", {}, report) for i in range(2)]
    rows = write(made, tmp_path / "out")
    np.testing.assert_array_equal(np.load(rows[1]["codes"]), codes.numpy())
    shown = EventAccumulator(str(tmp_path / "out"), size_guidance={"images": 0}).Reload()
    assert len(shown.Tags()["images"]) == 2
    assert all("input" in tag for tag in shown.Tags()["images"])
    write([Prediction("nothing to see", {"value": 1.0})], tmp_path / "plain")
    assert {file.name for file in (tmp_path / "plain").iterdir()} == {"predictions.json", "predictions.csv"}
