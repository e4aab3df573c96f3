"""Commands in this process."""

from __future__ import annotations

from refresher_runner.cli import main
from refresher_runner.engine.rundir import RunDir


def trained(*typed: str) -> RunDir:
    """The run that a command line leaves."""
    before = {run.path for run in RunDir.all("outputs")}
    assert main(["train", *typed]) == 0
    [made] = [run for run in RunDir.all("outputs") if run.path not in before]
    return made
