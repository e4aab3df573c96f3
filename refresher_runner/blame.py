"""Where a value of the configuration comes from: the files and overrides that set it, in the order in which they were merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import OmegaConf

from refresher_runner.compose import CONFIG, compose, explained, groups, keys_of, loader, nearest, parse
from refresher_runner.errors import ConfigError
from refresher_runner.settings import schema_for

_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


@dataclass(frozen=True)
class Setting:
    """One place that gives the key a value: a file, with the override that chose it if one did, or an override itself."""

    source: str
    value: Any


@dataclass(frozen=True)
class Blame:
    """A key: its value, what it may be, and every place that set it, in order."""

    key: str
    value: Any  # resolved
    type: str  # as the signature of what takes it says; empty for a group
    settings: list[Setting]  # the last one holds; it hid the others


def blame(key: str, overrides: Sequence[str], config_dir: Path | None = None) -> Blame:
    """Replay the composition for one key. Raises ConfigError."""
    config, _ = compose(overrides, config_dir)
    values = keys_of(config)
    if key not in values:
        raise ConfigError("unknown key", key=key, cure=nearest(key, list(values)))
    with explained(overrides, config_dir):
        choosing = {o.key_or_group: o for o in parse(overrides) if o.key_or_group in groups(config_dir) and not isinstance(o.value(), dict)}
        setting = [o for o in parse(overrides) if choosing.get(o.key_or_group) != o]
        chosen = {group: o.input_line or "" for group, o in choosing.items()}
        settings = [*_files(key, overrides, config_dir, chosen), *_overrides(key, setting)]
    return Blame(key, values[key], _type(key, config), settings)


def _files(key: str, overrides: Sequence[str], config_dir: Path | None, chosen: Mapping[str, str]) -> list[Setting]:
    reader = loader(config_dir)
    repository = CachingConfigRepository(reader.repository)
    settings = []
    for default in reader.compute_defaults_list(CONFIG, list(overrides), RunMode.RUN).defaults:
        loaded = reader._load_single_config(default, repository)
        values = keys_of(OmegaConf.to_container(loaded.config, resolve=False))
        if key in values and loaded.provider != "hydra":
            path, here = Path(loaded.path.removeprefix("file://"), f"{default.config_path}.yaml"), Path.cwd()
            file = str(path.relative_to(here) if path.is_relative_to(here) else path)
            by = chosen.get((default.config_path or "").rpartition("/")[0])
            settings.append(Setting(f"{file}, chosen by {by}" if by else file, values[key]))
    return settings


def _overrides(key: str, overrides: Sequence[Override]) -> list[Setting]:
    """Overrides of the key itself, of what holds it, or of what it holds."""
    settings = []
    for override in overrides:
        value = override.value()
        if override.key_or_group == key or override.key_or_group.startswith(f"{key}."):
            settings.append(Setting(override.input_line or "", value))
        elif key in (inside := keys_of(value, f"{override.key_or_group}.")):
            settings.append(Setting(override.input_line or "", inside[key]))
    return settings


def _type(key: str, config: dict[str, Any]) -> str:
    """What the key may hold, as written in the signature that takes it."""
    group, dot, name = key.partition(".")
    option = schema_for(config, group).get(name.partition(".")[0] if dot else group)
    return _words(option.annotation) if option else ""


def _words(annotation: Any) -> str:
    """`int >= 1`, `list of int >= 1`, `relu | gelu`, `float > 0 or null`."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = [
            f"{sign} {getattr(m, name):g}" for m in inside[1:] for name, sign in _SIGNS.items() if abs(getattr(m, name, 2**40)) < 2**40
        ]
        return " ".join([_words(inside[0]), " and ".join(limits)]).strip()
    if origin is Literal:
        return " | ".join(map(str, inside))
    if origin in (Union, UnionType):
        return " or ".join(map(_words, inside))
    if origin is not None:
        return f"{origin.__name__} of {', '.join('...' if i is Ellipsis else _words(i) for i in inside)}"
    return "null" if annotation is type(None) else getattr(annotation, "__name__", str(annotation)).lower()
