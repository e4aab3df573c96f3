"""Runs beside one another: `runs`, `compare` and `tensorboard`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refresher_runner.cli.words import Outputs, app, complete_run, find
from refresher_runner.console import print_table
from refresher_runner.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from refresher_runner.engine.rundir import RunDir


class State(str, Enum):
    """What a run's status can say."""

    running, finished, failed, interrupted, crashed = "running", "finished", "failed", "interrupted", "crashed"
    pending, pruned = "pending", "pruned"


class By(str, Enum):
    """What has a row in a table of runs."""

    run, configuration = "run", "configuration"


class Format(str, Enum):
    """How a leaderboard is written."""

    table, markdown, csv = "table", "markdown", "csv"


@app.command(rich_help_panel="Look")
def runs(
    path: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Runs below this folder, a sweep's or any other.")] = None,
    by: Annotated[By | None, typer.Option(help="A row for each; if not given: configuration in a DIR, run without.")] = None,
    form: Annotated[Format, typer.Option("--format", help="Of a leaderboard.")] = Format.table,
    where: Annotated[list[str] | None, typer.Option("--filter", "-f", metavar="KEY=VALUE", help="Runs of this configuration.")] = None,
    tag: Annotated[str | None, typer.Option(help="Runs with this tag.")] = None,
    state: Annotated[State | None, typer.Option(help="Runs in this state.")] = None,
    sort: Annotated[str | None, typer.Option(metavar="date|goal|KEY", help="Order of the rows.")] = None,
) -> int:
    """Every run: `refresher runs --sort goal`; the configurations of a folder, best first: `refresher runs outputs/cnn`."""
    by = by or (By.configuration if path or form is not Format.table else By.run)
    asked: dict[str, Any] = {"state": state.value if state else None, "tag": tag, "filters": dict(_split(text) for text in where or [])}
    if by is By.run:
        if form is not Format.table:
            raise UsageError("is for a leaderboard", key="--format", value=form.value, cure="use --by configuration")
        _print_runs(path or Path("outputs"), sort or "date", asked)
        return 0
    from refresher_runner.sweep.boards import csv_text, markdown, print_board
    from refresher_runner.sweep.leaderboard import boards

    found = boards(path or Path("outputs"), **asked, sort=sort or "goal")
    if form is Format.table:
        for board in found:
            print_board(board)
    else:
        print(markdown(found) if form is Format.markdown else csv_text(found), end="")
    return 0


@app.command(rich_help_panel="Look")
def compare(
    names: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Runs, or folders of runs.", autocompletion=complete_run)],
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw their curves too: .png, .svg or .pdf.", dir_okay=False)] = None,
    tags: Annotated[list[str] | None, typer.Option("--tag", metavar="TAG", help="Curves to draw, such as val/accuracy.")] = None,
    outputs: Outputs = Path("outputs"),
) -> int:
    """Runs side by side: what differs in configuration, code and environment, and every metric; with --plot, their curves."""
    from refresher_runner.runs import compare as compare_
    from refresher_runner.runs import summarise

    found = [summarise(run) for name in names for run in _runs_of(name, outputs)]
    if len(found) < 2:
        raise UsageError("needs two runs or more", key="compare", value=" ".join(names))
    for section, rows in compare_(found).items():
        if rows:
            print_table([section, *(s.run.path.name for s in found)], [[key, *values] for key, values in rows.items()])
        else:
            print(f"{section}: the same\n")
    if plot:
        from refresher_runner.sweep.curves import draw_curves

        draw_curves(found, plot, tags or ())
        print(f"curves: {plot}")
    return 0


@app.command(rich_help_panel="Look")
def tensorboard(
    path: Annotated[str, typer.Argument(metavar="[RUN | DIR]", autocompletion=complete_run)] = "outputs",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 6006,
    bind_all: Annotated[bool, typer.Option("--bind_all", "--bind-all", help="Serve every machine that can reach this one.")] = False,
) -> int:
    """TensorBoard on this machine alone, for one run or for all below a folder."""
    import signal
    import subprocess

    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # TensorBoard leaves with us, and its columns
    folder = find("last", Path("outputs")).path if path == "last" else Path(path)
    if not folder.is_dir():
        raise UsageError("no such folder", key="path", value=path, cure="refresher runs lists the runs there are")
    if bind_all:
        print("warning: TensorBoard has no password; whoever can reach this machine sees the runs", file=sys.stderr)
    where = ["--bind_all"] if bind_all else ["--host", "127.0.0.1"]
    from refresher_runner.sweep.columns import columns_of

    with columns_of(folder):
        return subprocess.call([sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port), *where])


def _print_runs(folder: Path, sort: str, asked: Mapping[str, Any]) -> None:
    """A row for each run."""
    from refresher_runner.runs import select, show
    from refresher_runner.sweep.leaderboard import entries_of

    extra = [key for key in asked["filters"] if key not in ("model", "data")]
    rows = []
    for s in select(entries_of(folder), sort=sort, **asked):
        names = [str(s.run), show(s.value("model")), show(s.value("data")), s.state, show(s.status.get("step"))]
        goal = [show(s.goal.get("metric")), show(s.best), show(s.tested)]
        rows.append([*names, *goal, show(s.value("seed")), " ".join(s.tags), *(show(s.value(key)) for key in extra)])
    print_table(["run", "model", "data", "state", "step", "goal", "best", "test", "seed", "tags", *extra], rows)


def _runs_of(name: str, outputs: Path) -> list[RunDir]:
    """The run that is typed, or every run below the folder that is. Raises RunError."""
    from refresher_runner.engine.rundir import RunDir

    below = RunDir.all(name) if Path(name).is_dir() and not Path(name, "config.yaml").is_file() else []
    return below or [find(name, outputs)]


def _split(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError("is not of the form key=value", key=text)
    return key, value
