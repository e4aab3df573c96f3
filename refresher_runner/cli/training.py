"""`train` and `resume`."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refresher_runner.cli.words import ConfigDir, Outputs, Overrides, RunName, app, find, say_next
from refresher_runner.engine import signals

if TYPE_CHECKING:
    from refresher_runner.sweep.folder import SweepDir


class Part(str, Enum):
    """What of Hydra's configuration `--cfg` prints."""

    job, hydra, all = "job", "hydra", "all"


class Info(str, Enum):
    """What `--info` prints of Hydra's composing."""

    defaults, tree, config, searchpath, plugins, all = "defaults", "defaults-tree", "config", "searchpath", "plugins", "all"


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
        from refresher_runner.sweep import entry

        return _tell(entry.sweep(typed, config_dir))
    from refresher_runner import run
    from refresher_runner.compose import checked, compose

    config, stored = compose(typed, config_dir)
    flags = ["--config-dir", str(config_dir)] if config_dir else []
    say_next(run.train(checked(config, stored), stored=stored, command=["train", *flags, *typed]))
    return 0


@app.command(rich_help_panel="Run")
def resume(name: RunName, overrides: Overrides = None, outputs: Outputs = Path("outputs")) -> int:
    """Go on with a run, exactly where it stopped: `refresher resume last trainer.duration='20 epochs'`; or with a sweep, by its folder."""
    signals.install()
    from refresher_runner import run
    from refresher_runner.compose import checked, compose_stored
    from refresher_runner.sweep.folder import SweepDir

    if SweepDir.is_sweep(name):
        from refresher_runner.sweep import entry

        return _tell(entry.resume(SweepDir(name), overrides or []))
    folder = find(name, outputs)
    config, stored = compose_stored(folder, overrides or [])
    command = ["resume", str(folder.path.resolve()), *(overrides or [])]
    say_next(run.resume(folder, checked(config, stored), stored=stored, command=command))
    return 0


@app.command("tune-lr", rich_help_panel="Run")
def tune_lr(
    overrides: Overrides = None,
    low: Annotated[float | None, typer.Option(metavar="LR", help="Where to begin; not given: optimizer.lr / 10,000.")] = None,
    high: Annotated[float | None, typer.Option(metavar="LR", help="Where to end; not given: 1,000 times optimizer.lr.")] = None,
    steps: Annotated[int, typer.Option(min=20, help="From one to the other.")] = 200,
    config_dir: ConfigDir = None,
) -> int:
    """Which learning rate? One that grows at every step, until the loss is lost: `refresher tune-lr model=cnn optimizer=sgd`."""
    signals.install()
    from refresher_runner.compose import checked, compose
    from refresher_runner.tuning import tune_lr as tune

    typed = overrides or []
    tuned = tune(checked(*compose(typed, config_dir)), low=low, high=high, steps=steps)
    found = tuned.found
    ended = "where the loss was lost" if found.diverged else "and the loss was not lost: try --high"
    print(f"{len(found.lrs)} steps in {tuned.seconds:.0f} s, from {found.lrs[0]:.2g} to {found.lrs[-1]:.2g}, {ended}")
    print(f"the smoothed loss falls fastest at {found.steepest:.2g} and is lowest at {found.lowest:.2g}")
    print(f"suggestion, a quarter of the latter: optimizer.lr={found.suggestion:.2g}")
    flags = ["--config-dir", str(config_dir)] if config_dir else []
    kept = [word for word in typed if not word.startswith("optimizer.lr=")]
    command = shlex.join(["refresher", "train", *flags, *kept, f"optimizer.lr={found.suggestion:.2g}"])
    print(f"curve: {tuned.picture}\nnext: {command}")
    return 0


def _tell(folder: SweepDir) -> int:
    """How a sweep went, and its exit code: whether every job is done."""
    from refresher_runner.sweep.boards import print_board, write_boards
    from refresher_runner.sweep.folder import DONE
    from refresher_runner.sweep.watch import print_failures

    for board in write_boards(folder.path):
        print_board(board)
    jobs = folder.jobs()
    failed = [job for job in jobs if job.state not in DONE]
    print_failures(failed)
    for board in write_boards(folder.path):
        print_board(board)
    print(f"sweep: {folder}\nnext: refresher runs {folder}   refresher tensorboard {folder}", end="")
    print(f"   refresher resume {folder}" if failed else "")
    return 1 if failed else 0
