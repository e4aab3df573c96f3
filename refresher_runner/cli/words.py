"""What the commands share: the Typer app, the words that one types, and what completes them. Free of torch and Hydra."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refresher_runner import __version__

if TYPE_CHECKING:
    from refresher_runner.engine.rundir import RunDir

app = typer.Typer(
    name="refresher", help="Train, compare and reuse models whose code reads like their papers.", pretty_exceptions_enable=False
)


def complete_override(incomplete: str) -> list[str]:
    """What the shell may offer for the beginning of `group=choice` or `key=value`."""
    from refresher_runner.compose import compose, groups, keys_of

    group, equals, _ = incomplete.partition("=")
    if equals:
        known = [f"{group}={choice}" for choice in groups().get(group, ())]
    else:
        known = [f"{key}=" for key in [*groups(), *(k for k, v in keys_of(compose([])[0]).items() if not isinstance(v, dict))]]
    return [word for word in known if word.startswith(incomplete)]


def complete_run(incomplete: str) -> list[str]:
    """What the shell may offer for the beginning of a run's folder."""
    from refresher_runner.engine.rundir import RunDir

    return [word for word in ("last", *map(str, RunDir.all())) if word.startswith(incomplete)]


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="`group=choice`, or `key=value` of any value in the configuration.", autocompletion=complete_override
    ),
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or `last`.", autocompletion=complete_run)]
ConfigDir = Annotated[Path | None, typer.Option("--config-dir", "-cd", metavar="DIR", help="A folder with YAML of your own.")]
Outputs = Annotated[Path, typer.Option("--outputs", metavar="DIR", help="Where `last` looks for runs.")]
Checkpoint = Annotated[str, typer.Option(metavar="best|last|FILE", help="Which weights.")]


@app.callback(invoke_without_command=True)
def _root(context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"refresher {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def find(name: str, outputs: Path) -> RunDir:
    """The run that is typed. Raises RunError."""
    from refresher_runner.engine.rundir import RunDir

    return RunDir.find(name, outputs)


def say_next(run: RunDir) -> None:
    """Where a run is, and what one may do with it."""
    if os.environ.get("RANK", "0") == "0":
        print(f"run: {run}\nnext: refresher predict {run} INPUT...   refresher tensorboard {run}   refresher runs")
