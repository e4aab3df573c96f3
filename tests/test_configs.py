"""Every file of YAML composes, and says exactly what the signature it fills asks for."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from refresher_runner.compose import compose, folders, groups
from refresher_runner.engine.options import RunOptions, schema_of
from refresher_runner.registry import DATASETS, MODELS
from refresher_runner.settings import GROUPS, OPTIONS, check, schema_for

CONF = folders()["main"]
GROUPS_OF_FILES = groups()
CHOICES = [(group, name) for group in GROUPS_OF_FILES for name in GROUPS_OF_FILES[group]]
COMPONENTS = [(group, name) for group, name in CHOICES if group in GROUPS]


def model_for(data: str) -> str:
    gives = DATASETS.signature(data).yields
    assert gives is not None
    return next(name for name in MODELS.names() if issubclass(gives, MODELS.signature(name).spec or object))


def begun_from(group: str, name: str) -> str:
    """The builder's own file that a file begins with: itself, or what its defaults list names."""
    return OmegaConf.load(CONF / group / f"{name}.yaml").get("defaults", [name])[0] if group in ("optimizer", "data") else name


@pytest.mark.parametrize(("group", "name"), CHOICES, ids=[f"{group}={name}" for group, name in CHOICES])
def test_every_choice_composes_and_is_sound(group: str, name: str) -> None:
    companion = [f"model={model_for(begun_from(group, name))}"] if group == "data" else []
    config, stored = compose([*companion, f"{group}={name}"])
    check(config)
    del config["sweep"], config["measured"]  # how runs are launched, and what others reached, is no part of one
    assert OmegaConf.to_container(OmegaConf.create(stored), resolve=True) == config
    if group in GROUPS:
        assert config[group]["name"] == begun_from(group, name)


@pytest.mark.parametrize(("group", "name"), COMPONENTS, ids=[f"{group}={name}" for group, name in COMPONENTS])
def test_keys_are_the_signature(group: str, name: str) -> None:
    companion = [f"model={model_for(begun_from(group, name))}"] if group == "data" else []
    config, _ = compose([*companion, f"{group}={name}"])
    assert set(config[group]) == set(schema_for(config, group))


def test_keys_of_the_top_and_of_the_trainer_are_their_options() -> None:
    config, _ = compose(["experiment=digits_cnn"])
    assert set(config) == {*schema_of(RunOptions), *GROUPS, *OPTIONS}
    for group in OPTIONS:
        assert set(config[group]) == set(schema_for(config, group))


@pytest.mark.parametrize("group", GROUPS)
def test_a_name_is_a_file_is_a_builder(group: str) -> None:
    files = set(GROUPS_OF_FILES[group])
    assert {begun_from(group, name) for name in files} == set(GROUPS[group].names())
    assert files >= set(GROUPS[group].names())


@pytest.mark.parametrize("file", sorted(CONF.rglob("*.yaml")), ids=lambda file: str(file.relative_to(CONF)))
def test_the_first_line_is_a_command_that_composes(file: Path) -> None:
    line = next(line for line in file.read_text(encoding="utf-8").splitlines() if "@package" not in line)
    assert line.startswith("# refresher train"), "a file of YAML begins with the command that uses it"
    words = shlex.split(line.removeprefix("# refresher train").partition(": ")[0])
    if file.parent != CONF:
        check(compose([word for word in words if word != "-m" and "," not in word])[0])


def test_a_model_picks_companions_and_the_command_line_picks_others() -> None:
    assert compose(["model=resnet"])[0]["data"]["name"] == "cifar10"
    assert compose(["model=resnet", "data=digits"])[0]["data"]["name"] == "digits"
    assert compose(["data=digits", "model=resnet"])[0]["data"]["name"] == "digits"
