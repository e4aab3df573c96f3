"""The command `refresher`. Every import that takes time is inside the command that needs it: help is free of torch and Hydra."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refresher_runner import __version__
from refresher_runner.console import print_table, print_yaml, tell
from refresher_runner.engine import signals
from refresher_runner.errors import ConfigError, RefresherError, UsageError

if TYPE_CHECKING:
    from refresher_runner.engine.rundir import RunDir

app = typer.Typer(
    name="refresher", help="Train, compare and reuse models whose code reads like their papers.", pretty_exceptions_enable=False
)

# What a mistyped command raises: click's own, or that of the copy which newer Typers carry.
_ClickException: type[Exception] = typer.BadParameter.__mro__[2]


class Part(str, Enum):
    """What of Hydra's configuration `--cfg` prints."""

    job, hydra, all = "job", "hydra", "all"


class Info(str, Enum):
    """What `--info` prints of Hydra's composing."""

    defaults, tree, config, searchpath, plugins, all = "defaults", "defaults-tree", "config", "searchpath", "plugins", "all"


class Kind(str, Enum):
    """What `list` lists."""

    models, data, optimizers, trainers, experiments, debug = "models", "data", "optimizers", "trainers", "experiments", "debug"


class State(str, Enum):
    """What a run's status can say."""

    running, finished, failed, interrupted, crashed = "running", "finished", "failed", "interrupted", "crashed"


def _complete_override(incomplete: str) -> list[str]:
    from refresher_runner.compose import compose, groups, keys_of

    group, equals, _ = incomplete.partition("=")
    if equals:
        known = [f"{group}={choice}" for choice in groups().get(group, ())]
    else:
        known = [f"{key}=" for key in [*groups(), *(k for k, v in keys_of(compose([])[0]).items() if not isinstance(v, dict))]]
    return [word for word in known if word.startswith(incomplete)]


def _complete_run(incomplete: str) -> list[str]:
    from refresher_runner.engine.rundir import RunDir

    return [word for word in ("last", *map(str, RunDir.all())) if word.startswith(incomplete)]


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="`group=choice`, or `key=value` of any value in the configuration.", autocompletion=_complete_override
    ),
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or `last`.", autocompletion=_complete_run)]
ConfigDir = Annotated[Path | None, typer.Option("--config-dir", "-cd", metavar="DIR", help="A folder with YAML of your own.")]
Outputs = Annotated[Path, typer.Option("--outputs", metavar="DIR", help="Where `last` looks for runs.")]
Checkpoint = Annotated[str, typer.Option(metavar="best|last|FILE", help="Which weights.")]


@app.callback(invoke_without_command=True)
def _root(context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"refresher {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command(rich_help_panel="Run")
def train(
    overrides: Overrides = None,
    multirun: Annotated[bool, typer.Option("--multirun", "-m", help="Every combination of key=a,b values, a process each.")] = False,
    cfg: Annotated[Part | None, typer.Option("--cfg", "-c", help="Print this configuration instead of running.")] = None,
    resolve: Annotated[bool, typer.Option("--resolve", help="With --cfg: interpolations replaced by values.")] = False,
    package: Annotated[str | None, typer.Option("--package", "-p", metavar="KEY", help="With --cfg: this part only.")] = None,
    info: Annotated[Info | None, typer.Option("--info", "-i", help="Print how Hydra composes instead of running.")] = None,
    config_dir: ConfigDir = None,
) -> int:
    """Train, validate and test: `refresher train model=cnn optimizer.lr=1e-3`."""
    signals.install()
    typed = overrides or []
    if cfg or info:
        from refresher_runner.compose import print_config, print_info

        if cfg:
            print_config(typed, config_dir, part=cfg.value, package=package, resolve=resolve)
        else:
            print_info(typed, config_dir, info=info.value if info else "")
        return 0
    if multirun:
        return _sweep(typed, config_dir)
    from refresher_runner import run
    from refresher_runner.compose import checked, compose

    config, stored = compose(typed, config_dir)
    flags = ["--config-dir", str(config_dir)] if config_dir else []
    _say_next(run.train(checked(config, stored), stored=stored, command=["train", *flags, *typed]))
    return 0


@app.command(rich_help_panel="Run")
def resume(name: RunName, overrides: Overrides = None, outputs: Outputs = Path("outputs")) -> int:
    """Go on with a run, exactly where it stopped: `refresher resume last trainer.duration='20 epochs'`."""
    signals.install()
    from refresher_runner import run
    from refresher_runner.compose import checked, compose_stored

    folder = _find(name, outputs)
    config, stored = compose_stored(folder, overrides or [])
    command = ["resume", str(folder.path.resolve()), *(overrides or [])]
    _say_next(run.resume(folder, checked(config, stored), stored=stored, command=command))
    return 0


@app.command("test", rich_help_panel="Run")
def measure(name: RunName, overrides: Overrides = None, checkpoint: Checkpoint = "best", outputs: Outputs = Path("outputs")) -> int:
    """Metrics of a run's checkpoint on the test split."""
    signals.install()
    from refresher_runner import run
    from refresher_runner.compose import checked, compose_stored

    folder = _find(name, outputs)
    config, stored = compose_stored(folder, overrides or [])
    metrics = run.test(folder, checked(config, stored), checkpoint=checkpoint)
    print_table(["metric", "value"], [[tag, f"{value:.6g}"] for tag, value in metrics.items()])
    return 0


@app.command(rich_help_panel="Run")
def predict(
    name: RunName,
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Files, words, prompts or ids: what the model reads.")],
    checkpoint: Checkpoint = "best",
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Where tables and pictures go; RUN/predictions if not given.")] = None,
    device: Annotated[str | None, typer.Option(metavar="cpu|cuda|mps", help="Instead of the run's own.")] = None,
    outputs: Outputs = Path("outputs"),
) -> int:
    """What a run's model says of inputs of yours."""
    signals.install()
    from refresher_runner import run
    from refresher_runner.compose import checked, compose_stored
    from refresher_runner.predictions import write
    from refresher_runner.runs import show

    folder = _find(name, outputs)
    config, stored = compose_stored(folder, [f"trainer.device={device}"] if device else [])
    predictions = run.predict(folder, checked(config, stored), inputs, checkpoint=checkpoint)
    rows = write(predictions, output or folder.path / "predictions")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    print_table(columns, [[show(row.get(column)) for column in columns] for row in rows])
    print(f"written to {output or folder.path / 'predictions'}")
    return 0


@app.command(rich_help_panel="Run")
def export(
    name: RunName,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to; its suffix may tell the format.", dir_okay=False)],
    checkpoint: Checkpoint = "best",
    outputs: Outputs = Path("outputs"),
) -> int:
    """What a run has learnt, for other programs: word vectors as .txt or .bin."""
    signals.install()
    from refresher_runner import run
    from refresher_runner.compose import checked, compose_stored

    folder = _find(name, outputs)
    config, stored = compose_stored(folder, [])
    run.export(folder, checked(config, stored), file, checkpoint=checkpoint)
    print(f"written to {file}")
    return 0


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
            metavar="[KEY] [KEY=VALUE]", help="A dotted key, and what to change before looking.", autocompletion=_complete_override
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
def runs(
    path: Annotated[Path, typer.Argument(metavar="[DIR]", help="Runs below this folder.")] = Path("outputs"),
    where: Annotated[list[str] | None, typer.Option("--filter", "-f", metavar="KEY=VALUE", help="Runs of this configuration.")] = None,
    tag: Annotated[str | None, typer.Option(help="Runs with this tag.")] = None,
    state: Annotated[State | None, typer.Option(help="Runs in this state.")] = None,
    sort: Annotated[str, typer.Option(metavar="date|goal|KEY", help="Order of the rows.")] = "date",
) -> int:
    """A table of runs: `refresher runs --filter model=cnn --sort goal`."""
    from refresher_runner.runs import find, show

    filters = dict(_split(text) for text in where or [])
    found = find(path, state=state.value if state else None, tag=tag, filters=filters, sort=sort)
    columns = [
        "run",
        "model",
        "data",
        "state",
        "step",
        "goal",
        "best",
        "test",
        "seed",
        "tags",
        *(key for key in filters if key not in ("model", "data")),
    ]
    rows = []
    for s in found:
        goal = [show(s.goal.get("metric")), show(s.best), show(s.tested)]
        extra = [show(s.value(key)) for key in columns[10:]]
        names = [str(s.run), show(s.value("model")), show(s.value("data")), s.state, show(s.status.get("step"))]
        rows.append([*names, *goal, show(s.value("seed")), " ".join(s.tags), *extra])
    print_table(columns, rows)
    return 0


@app.command(rich_help_panel="Look")
def compare(
    names: Annotated[list[str], typer.Argument(metavar="RUN RUN...", autocompletion=_complete_run)], outputs: Outputs = Path("outputs")
) -> int:
    """Runs side by side: what differs in configuration, code and environment, and every metric."""
    from refresher_runner.runs import compare as compare_
    from refresher_runner.runs import summarise

    if len(names) < 2:
        raise UsageError("needs two runs or more", key="compare", value=" ".join(names))
    found = [summarise(_find(name, outputs)) for name in names]
    for section, rows in compare_(found).items():
        if rows:
            print_table([section, *(s.run.path.name for s in found)], [[key, *values] for key, values in rows.items()])
        else:
            print(f"{section}: the same\n")
    return 0


@app.command(rich_help_panel="Look")
def tensorboard(
    path: Annotated[str, typer.Argument(metavar="[RUN | DIR]", autocompletion=_complete_run)] = "outputs",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 6006,
    bind_all: Annotated[bool, typer.Option("--bind_all", "--bind-all", help="Serve every machine that can reach this one.")] = False,
) -> int:
    """TensorBoard on this machine alone, for one run or for all below a folder."""
    import subprocess

    folder = _find("last", Path("outputs")).path if path == "last" else Path(path)
    if not folder.is_dir():
        raise UsageError("no such folder", key="path", value=path, cure="refresher runs lists the runs there are")
    if bind_all:
        print("warning: TensorBoard has no password; whoever can reach this machine sees the runs", file=sys.stderr)
    where = ["--bind_all"] if bind_all else ["--host", "127.0.0.1"]
    return subprocess.call([sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port), *where])


@app.command(rich_help_panel="Look")
def check(outputs: Annotated[Path, typer.Option(help="Where runs are to be written.")] = Path("outputs")) -> int:
    """What this machine offers: versions, devices, data, and whether runs can be written."""
    from refresher_runner.catalogue import machine

    print_table(["this machine", ""], [[name, value] for name, value in machine(outputs).items()])
    return 0


def main(argv: Sequence[str]) -> int:
    """Run one command line; its exit code. A mistake of the user's is one line and a hint on stderr, never a traceback."""
    try:
        code = app(args=list(argv), prog_name="refresher", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except RefresherError as error:
        return tell(str(error), error.cure, error.exit_code)
    except _ClickException as error:
        return tell(
            error.format_message(),  # pyright: ignore[reportAttributeAccessIssue]
            "refresher --help lists the commands",
            2,
        )
    except (KeyboardInterrupt, typer.Abort):
        return tell("stopped", "", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on; let Python close stdout in peace
        return 1
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        return tell(f"{type(error).__name__}: {first}", "REFRESHER_TRACEBACK=1 shows where; please report it with the command", 1)


def _sweep(overrides: list[str], config_dir: Path | None) -> int:
    from refresher_runner.runs import show
    from refresher_runner.sweep.grid import sweep

    jobs = sweep(overrides, config_dir)
    rows = []
    for number, job in enumerate(jobs, start=1):
        log = str(job.run.log) if job.run and job.state != "finished" and job.run.log.is_file() else ""
        rows.append([str(number), " ".join(job.overrides), job.state, show(job.goal), str(job.run or f"exit code {job.exit_code}"), log])
    print_table(["job", "overrides", "state", "goal", "run", "log of failure"], rows)
    return 0 if all(job.state == "finished" for job in jobs) else 1


def _find(name: str, outputs: Path) -> RunDir:
    from refresher_runner.engine.rundir import RunDir

    return RunDir.find(name, outputs)


def _split(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError("is not of the form key=value", key=text)
    return key, value


def _say_next(run: RunDir) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"run: {run}\nnext: refresher predict {run} INPUT...   refresher tensorboard {run}   refresher runs")
