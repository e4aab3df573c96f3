"""`reproduce`: whether a run, or a preset, gives again what it gave."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from refresher_runner.cli.words import ConfigDir, Outputs, Overrides, app, complete_run, find
from refresher_runner.console import print_table
from refresher_runner.engine import signals

MOST_ROWS = 12  # of what differs


@app.command(rich_help_panel="Run")
def reproduce(
    what: Annotated[str, typer.Argument(metavar="RUN | experiment=NAME", help="A finished run, or a preset.", autocompletion=complete_run)],
    overrides: Overrides = None,
    tolerance: Annotated[float, typer.Option(min=0, max=1, help="Of a run's last numbers, as a share of each; 0: every bit.")] = 0.0,
    outputs: Outputs = Path("outputs"),
    config_dir: ConfigDir = None,
) -> int:
    """Run it again and compare: a run with its own record, a preset with what was measured of it. Exit code 1: it differs."""
    signals.install()
    typed = overrides or []
    flags = ["--config-dir", str(config_dir)] if config_dir else []
    if what.startswith("experiment="):
        return _preset(what, typed, config_dir, ["reproduce", *flags, what, *typed])
    return _run(what, typed, outputs, tolerance)


def _run(name: str, typed: list[str], outputs: Path, tolerance: float) -> int:
    from refresher_runner import reproduction
    from refresher_runner.budget import as_overrides
    from refresher_runner.compose import checked, compose_stored
    from refresher_runner.settings import refuse_other_numbers

    then = find(name, outputs)
    reproduction.refuse_unfinished(then)
    refuse_other_numbers(compose_stored(then)[0], compose_stored(then, typed)[0])
    chosen = then.read_record().get("budget")
    config, stored = compose_stored(then, [*typed, *(as_overrides(chosen) if chosen else [])])
    settings = checked(config, stored)
    if "LOCAL_RANK" not in os.environ:
        for line in reproduction.changes(then, settings):
            print(f"warning: {line}", file=sys.stderr, flush=True)
    command = ["reproduce", str(then.path.resolve()), *typed]
    found = reproduction.reproduce_run(then, settings, stored=stored, command=command)
    print(f"run: {found.run}")
    if found.parted is None:
        print(f"reproduced: {found.compared} numbers, the same bits")
        return 0
    differing = [row for row in found.rows if row[-1]]
    rows = [[tag, _shown(then), _shown(now), f"{share:.2%}"] for tag, then, now, share in differing[:MOST_ROWS]]
    if rows:
        print_table(["last", "then", "now", "difference"], rows)
    step, tag = found.parted
    print(f"{len(differing)} of {len(found.rows)} last numbers differ; the first of all to differ: {tag} at step {step}")
    if found.within(tolerance):
        print(f"reproduced: within {tolerance:.2%}")
        return 0
    print(f"NOT reproduced: beyond {tolerance:.2%}" if tolerance else "NOT reproduced bit for bit: --tolerance 0.01 asks for less")
    return 1


def _preset(what: str, typed: list[str], config_dir: Path | None, command: list[str]) -> int:
    from refresher_runner import reproduction
    from refresher_runner.bands import told
    from refresher_runner.compose import checked, compose
    from refresher_runner.settings import refuse_other_numbers

    config, stored = compose([what, *typed], config_dir)
    settings = checked(config, stored)
    refuse_other_numbers(compose([what], config_dir)[0], config, free={"seed"})
    made, reached, bands = reproduction.reproduce_preset(settings, stored=stored, command=command)
    rows = told(bands, reached)
    assert settings.measured is not None
    print_table(["metric", "reached", f"measured, {len(settings.measured.seeds)} runs", "band of 95 %", ""], rows)
    print(f"measured on {settings.measured.machine}\nrun: {made}")
    passed = all(row[-1] == "pass" for row in rows)
    print("pass" if passed else "FAIL: one good run in twenty does, too; another seed=, or refresher compare with a run that passed")
    return 0 if passed else 1


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.8g}"
