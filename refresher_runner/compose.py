"""The command line as a configuration: Hydra composes, and whatever goes wrong becomes one line with a cure.

Hydra and OmegaConf are imported here, in `blame` and in `sweep`, and nowhere else.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.hydra import Hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import setup_globals
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException
from omegaconf.resolvers import oc

from refresher_runner.engine.rundir import RunDir
from refresher_runner.errors import ConfigError, RunError, did_you_mean
from refresher_runner.registry import DATASETS, MODELS, OPTIMIZERS
from refresher_runner.settings import Settings, absent, check

CONFIG = "config"  # conf/config.yaml
LONGEST, DEEPEST = 10_000, 20  # characters and brackets of an override: beyond these the parsers take seconds, or the whole stack
_FAULTS = (  # what composing raises, by trial
    *(HydraException, OmegaConfBaseException, yaml.YAMLError, RecursionError, UserWarning),
    *(ValueError, TypeError, LookupError, AttributeError, AssertionError, OSError),
)
_SECRET = "refresher_environment"  # stands for what came from the environment while a configuration is made ready to be stored


def compose(overrides: Sequence[str], config_dir: Path | None = None) -> tuple[dict[str, Any], str]:
    """The configuration, resolved, as plain containers; and the YAML to store, in which `${oc.env:...}` stays as it was written.

    How a sweep launches its runs, and what a preset was measured to reach, are no part of what is stored of one.

    Raises ConfigError, with nothing created.
    """
    with explained(overrides, config_dir):
        for override in parse(overrides):
            if override.is_hydra_override() and override.key_or_group != "hydra.searchpath":
                raise ConfigError(
                    "is of use only with -m, --cfg or --info", key=override.key_or_group, cure="outputs=DIR says where runs go"
                )
        config = loader(config_dir).load_configuration(CONFIG, list(overrides), RunMode.RUN)
        with open_dict(config):
            del config["hydra"]
        return _resolve(config)


def compose_stored(run: RunDir, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], str]:
    """The configuration that a run was made with, and `overrides` of single keys; otherwise as `compose`.

    A key that came to the top of the configuration since then has today's value; of what a model or a data set was not asked then,
    nobody knows. The file may come from elsewhere, so nothing in it is run, and aliases, which a few bytes can unfold into gigabytes,
    are refused. Raises RunError and ConfigError.
    """
    try:
        text = run.config.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise RunError("holds YAML aliases, so no run has written it", key=str(run.config))
        config = OmegaConf.create(text)
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        raise RunError(f"cannot be read ({_say(error)})", key=str(run.config)) from error
    if not isinstance(config, DictConfig):
        raise RunError("is not a configuration", key=str(run.config))
    for key, value in OmegaConf.load(folders()["main"] / f"{CONFIG}.yaml").items():
        if key not in ("defaults", "hydra"):
            config.setdefault(key, value)
    OmegaConf.set_struct(config, True)
    written = keys_of(OmegaConf.to_container(config, resolve=False))
    with explained((), None):
        parsed = parse(overrides)
        for override in parsed:
            _refuse(override, {}, config)
        ConfigLoaderImpl._apply_overrides_to_config(parsed, config)
        resolved, stored = _resolve(config)
    if unasked := next((key for key in absent(resolved) if key not in written), ""):
        cure = f"write {unasked} into {run.config} as it was then; run.json names the commit"
        raise RunError("this run was made by an older refresher, which did not ask for it", key=unasked, cure=cure)
    return resolved, stored


def checked(config: Mapping[str, Any], stored: str) -> Settings:
    """`settings.check`, in whose errors nothing that came out of the environment is shown."""
    try:
        return check(config)
    except ConfigError as error:
        written = keys_of(OmegaConf.to_container(OmegaConf.create(stored), resolve=False))
        for key, value in written.items():
            if f"{key}.".startswith(f"{error.key}.") and isinstance(value, str) and "${" in value:
                raise ConfigError("what the environment holds is not allowed here", key=key, value=value) from None
        raise


def print_config(overrides: Sequence[str], config_dir: Path | None, *, part: str, package: str | None, resolve: bool) -> None:
    """Hydra's `--cfg`: the configuration (`job`), Hydra's own (`hydra`), or both (`all`), as YAML. Raises ConfigError."""
    with explained(overrides, config_dir):
        try:
            with redirect_stderr(StringIO()):
                Hydra("refresher", loader(config_dir)).show_cfg(CONFIG, list(overrides), part, package, resolve)
        except SystemExit:  # how Hydra says it
            raise ConfigError("no such part of the configuration", key="--package", value=package) from None


def print_info(overrides: Sequence[str], config_dir: Path | None, *, info: str) -> None:
    """Hydra's `--info`: how the configuration is put together. Raises ConfigError."""
    with explained(overrides, config_dir):
        Hydra("refresher", loader(config_dir)).show_info(info, CONFIG, list(overrides))


def parse(overrides: Sequence[str], config_loader: ConfigLoaderImpl | None = None) -> list[Override]:
    """Overrides by Hydra's grammar, refusing first what its parser cannot survive."""
    for text in overrides:
        depth = deepest = 0
        for character in text:
            depth += (character in "[{(") - (character in "]})")
            deepest = max(deepest, depth)
        if not text.isascii() and text != text.encode(errors="replace").decode():
            raise ConfigError("holds bytes that are not text", key=text.partition("=")[0])
        if len(text) > LONGEST or deepest > DEEPEST:
            how = f"longer than {LONGEST} characters" if len(text) > LONGEST else f"nested deeper than {DEEPEST} brackets"
            raise ConfigError(f"is {how}", key=text.partition("=")[0][:80], cure="put it into a file: --config-dir DIR")
    return OverridesParser.create(config_loader).parse_overrides(list(overrides))


def loader(config_dir: Path | None) -> ConfigLoaderImpl:
    """Hydra's reader of configurations, over every folder of `folders`."""
    return _loader(tuple(folders(config_dir).items()))


@cache
def _loader(sources: tuple[tuple[str, Path], ...]) -> ConfigLoaderImpl:
    version.setbase("1.3")
    setup_globals()
    Plugins.instance()  # knows how to read folders
    search_path = ConfigSearchPathImpl()
    search_path.append("hydra", "pkg://hydra.conf")
    for provider, folder in sources:
        search_path.append(provider, f"file://{folder}")
    search_path.append("schema", "structured://")
    return ConfigLoaderImpl(search_path)


def folders(config_dir: Path | None = None) -> dict[str, Path]:
    """Where YAML is looked for, by who provides it; the first that has a file wins.

    Ours; the user's `config_dir`; `conf/` of every installed package that offers a model, a data set or an optimizer, found without
    importing it.
    """
    ours = Path(__file__).parent / "conf"
    found = {"main": ours if ours.is_dir() else ours.parents[1] / "conf"}
    if config_dir is not None:
        if not config_dir.is_dir():
            raise ConfigError("no such folder", key="--config-dir", value=config_dir)
        found["command-line"] = config_dir.absolute()
    for registry in (MODELS, DATASETS, OPTIMIZERS):
        for point in importlib.metadata.entry_points(group=registry.group):
            package = point.module.partition(".")[0]
            spec = importlib.util.find_spec(package)
            for folder in (spec.submodule_search_locations if spec else None) or ():
                if Path(folder, "conf").is_dir():
                    found[package] = Path(folder, "conf")
    return found


def groups(config_dir: Path | None = None) -> dict[str, dict[str, Path]]:
    """Group -> choice -> its file, of every folder: what `group=choice` may say."""
    found: dict[str, dict[str, Path]] = {}
    for folder in folders(config_dir).values():
        for file in sorted(folder.glob("*/*.yaml")):
            found.setdefault(file.parent.name, {}).setdefault(file.stem, file)
    return found


@contextmanager
def explained(overrides: Sequence[str], config_dir: Path | None, *, sweeping: bool = False) -> Iterator[None]:
    """Whatever Hydra and OmegaConf raise inside, as a ConfigError that names key, value and cure."""
    try:
        parse(overrides)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Hydra warns of a folder that is absent, and goes on without
            yield
    except OverrideParseException as error:
        raise _unreadable(error, config_dir) from error
    except OmegaConfBaseException as error:
        raise ConfigError(_say(error), key=error.full_key or "") from error
    except _FAULTS as error:
        _find_fault([o for o in parse(overrides, loader(config_dir)) if not (sweeping and o.is_sweep_override())], config_dir)
        raise ConfigError(_say(error)) from error


def _find_fault(overrides: Sequence[Override], config_dir: Path | None) -> None:
    """Raise ConfigError for the first override that cannot be; return when the fault lies elsewhere."""
    choices = groups(config_dir)
    parsed = [o for o in overrides if not o.is_hydra_override()]
    chosen = [o for o in parsed if o.is_sweep_override() or (o.key_or_group in choices and not isinstance(o.value(), dict))]
    for override in chosen:
        _refuse(override, choices, None)
    try:
        base = loader(config_dir).load_configuration(CONFIG, [o.input_line or "" for o in chosen], RunMode.RUN)
    except _FAULTS:
        return  # a file is at fault
    for override in parsed:
        if override not in chosen:
            _refuse(override, choices, base)


def _refuse(override: Override, choices: Mapping[str, Mapping[str, Path]], base: DictConfig | None) -> None:
    """Raise ConfigError if this override, by itself, cannot be: not a choice of its group, or not a key of `base`."""
    key = override.key_or_group
    if override.is_sweep_override():
        raise ConfigError(
            "these are several values", key=override.input_line or key, cure=f"add -m to try each, or make a list: {key}=[...]"
        )
    value = override.get_value_element_as_str()
    typed, adds = override.value(), override.is_add() or override.is_force_add()
    if base is None:
        for name in typed if isinstance(typed, list) else [typed]:
            if name not in choices[key] and not override.is_delete():
                raise ConfigError(f"unknown {key}", key=key, value=name, cure=did_you_mean(str(name), choices[key]))
        if adds:
            raise ConfigError("is chosen already", key=key, value=value, cure=f"write {key}={value}")
        return
    known = keys_of(OmegaConf.to_container(base, resolve=False))
    for name in () if adds else (override.get_key_element(), *keys_of(typed if isinstance(typed, dict) else None, f"{key}.")):
        if name.lstrip("~") not in known:
            cure = _holder(value, choices) or nearest(name, list({*(k for k in known if not k.startswith("hydra")), *choices}))
            raise ConfigError("unknown key", key=name, cure=cure)
    if isinstance(known.get(key), dict) and not isinstance(typed, dict) and not override.is_delete():
        raise ConfigError("is a group of keys, not a value", key=key, value=value, cure=f"set one of its keys: {', '.join(known[key])}")


def keys_of(values: Any, prefix: str = "") -> dict[str, Any]:
    """Every dotted key of nested containers, with its value: `optimizer`, `optimizer.betas`, `optimizer.betas.0`."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    found = {}
    for name, value in items:
        found[f"{prefix}{name}"] = value
        found |= keys_of(value, f"{prefix}{name}.")
    return found


def nearest(key: str, known: Sequence[str]) -> str:
    """The cure for a mistyped dotted key: the same last word elsewhere, or the nearest, among its neighbours if there are any."""
    parent, _, word = key.rpartition(".")
    same = [k for k in known if k.rpartition(".")[2] == word]
    if same:
        return f"did you mean {' or '.join(map(repr, same))}?"
    beside = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == parent]
    return did_you_mean(word, beside) if beside else did_you_mean(key, known)


def _holder(name: str, choices: Mapping[str, Mapping[str, Path]]) -> str:
    """The cure for a choice that is given without its group, or to a group that does not exist."""
    holders = [f"{group}={name}" for group, found in choices.items() if name in found]
    return f"did you mean {' or '.join(holders)}?" if holders else ""


def _unreadable(error: OverrideParseException, config_dir: Path | None) -> ConfigError:
    """What is wrong with an override that the grammar refuses, and what was probably meant."""
    key, equals, value = error.override.partition("=")
    if not equals:
        return ConfigError("is not of the form key=value", key=key, cure=_holder(key, groups(config_dir)))
    if error.__cause__ is not None:  # a function of the grammar refused its arguments
        return ConfigError(_say(error.__cause__), key=key, value=value)
    cure = f"""quote a text, for the value and for the shell: "{key}='{value}'\"""" if value.isprintable() else ""
    return ConfigError("cannot be read", key=key, value=value, cure=cure)


def _resolve(config: DictConfig) -> tuple[dict[str, Any], str]:
    _import_modules(config)
    raw = keys_of(OmegaConf.to_container(config, resolve=False))
    for key, value in raw.items():
        if value == "???":
            raise ConfigError("needs a value", key=key, cure=f"add {key}=...")
    try:
        resolved: Any = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        key = (error.full_key or "").replace("[", ".").replace("]", "")
        absent = str(error).split("'")[1] if isinstance(error, InterpolationKeyError) else ""
        raise ConfigError(_say(error), key=key, value=raw.get(key, ""), cure=nearest(absent, list(raw)) if absent else "") from error
    OmegaConf.register_new_resolver("oc.env", lambda *_: _SECRET, replace=True)
    try:
        public = {key: value for key, value in _public(config, resolved).items() if key not in ("sweep", "measured")}
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
    return {str(k): v for k, v in resolved.items()}, OmegaConf.to_yaml(OmegaConf.create(public))


def _import_modules(config: DictConfig) -> None:
    """Import `modules=[...]`, so that what they register is known; the working directory counts as in `python -m`."""
    modules = OmegaConf.select(config, "modules")
    if modules and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in modules if isinstance(modules, ListConfig) else ():
        try:
            importlib.import_module(str(name))
        except Exception as error:
            raise ConfigError(f"cannot be imported ({_say(error)})", key="modules", value=name) from error


def _public(node: DictConfig | ListConfig, resolved: Any) -> Any:
    """`resolved`, but with every value that came out of the environment as it was written in `node`."""
    raw: Any = OmegaConf.to_container(node, resolve=False)

    def item(key: Any) -> Any:
        if OmegaConf.is_interpolation(node, key):
            try:
                value = node[key]
                secret = _SECRET in str(OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value)
            except (OmegaConfBaseException, ValueError):  # it resolves, but not with another environment
                secret = True
            return raw[key] if secret else resolved[key]
        return _public(node[key], resolved[key]) if OmegaConf.is_config(node[key]) else resolved[key]

    return {key: item(key) for key in raw} if isinstance(raw, dict) else [item(i) for i in range(len(raw))]


def _say(error: BaseException) -> str:
    """The first sentence of what a library says, without its own advice; of a file of YAML, what is wrong and where."""
    if mark := getattr(error, "problem_mark", None):
        file = "" if mark.name.startswith("<") else f"{mark.name}, "  # <unicode string>: a text that was read already
        return f"{file}line {mark.line + 1}: {error.problem}"  # type: ignore[attr-defined]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0].removeprefix("KeyError raised while resolving interpolation: ") if lines else type(error).__name__)[:300]
