"""What there is to run, and to run on: `list`, `show` and `check`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from refresher_runner.cli.words import ConfigDir, app, complete_override
from refresher_runner.console import print_table, print_yaml
from refresher_runner.errors import UsageError


class Kind(str, Enum):
    """What `list` lists."""

    models, data, optimizers, trainers, experiments, debug = "models", "data", "optimizers", "trainers", "experiments", "debug"
    sweeps = "sweeps"


@app.command("list", rich_help_panel="Look")
def list_(
    kind: Annotated[Kind | None, typer.Argument(help="Only these.")] = None,
    names: Annotated[bool, typer.Option("--names", help="A name on each line, and nothing else.")] = False,
    config_dir: ConfigDir = None,
) -> int:
    """Models, data sets and everything else a run can choose, with a line on each."""
    from refresher_runner.catalogue import catalogue

    found = catalogue(config_dir)
    for title, choices in found.items() if kind is None else [(kind.value, found[kind.value])]:
        if names:
            print("\n".join(choices))
        elif choices:
            print_table([title, ""], [[name, summary] for name, summary in choices.items()])
    return 0


@app.command(rich_help_panel="Look")
def show(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY] [KEY=VALUE]", help="A dotted key, and what to change before looking.", autocompletion=complete_override
        ),
    ] = None,
    config_dir: ConfigDir = None,
) -> int:
    """The configuration of a run to be; or, with a KEY, its value, its type, and which file or override set it."""
    from refresher_runner.compose import checked, compose

    keys = [word for word in words or [] if "=" not in word and not word.startswith("~")]
    overrides = [word for word in words or [] if word not in keys]
    if len(keys) > 1:
        raise UsageError("one key at a time", key=" ".join(keys))
    config, stored = compose(overrides, config_dir)
    checked(config, stored)
    if not keys:
        print_yaml(stored)
        return 0
    from refresher_runner.blame import blame

    found = blame(keys[0], overrides, config_dir)
    print(f"{found.key}: {found.value}" + (f"   ({found.type})" if found.type else ""))
    for number, setting in enumerate(reversed(found.settings)):
        print(f"  {'over' if number else 'set by':<6} {setting.source}: {setting.value}")
    return 0


@app.command(rich_help_panel="Look")
def check(outputs: Annotated[Path, typer.Option(help="Where runs are to be written.")] = Path("outputs")) -> int:
    """What this machine offers: versions, devices, data, and whether runs can be written."""
    from refresher_runner.catalogue import machine

    print_table(["this machine", ""], [[name, value] for name, value in machine(outputs).items()])
    return 0
