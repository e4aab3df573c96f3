"""What one does with a run: `test`, `predict` and `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refresher_runner.cli.words import Checkpoint, Outputs, Overrides, RunName, app, find
from refresher_runner.console import print_table
from refresher_runner.engine import signals
from refresher_runner.errors import UsageError


@app.command("test", rich_help_panel="Run")
def measure(name: RunName, overrides: Overrides = None, checkpoint: Checkpoint = "best", outputs: Outputs = Path("outputs")) -> int:
    """Metrics of a run's checkpoint on the test split."""
    signals.install()
    from refresher_runner import run
    from refresher_runner.compose import checked, compose_stored

    folder = find(name, outputs)
    config, stored = compose_stored(folder, overrides or [])
    metrics = run.test(folder, checked(config, stored), checkpoint=checkpoint)
    print_table(["metric", "value"], [[tag, f"{value:.6g}"] for tag, value in metrics.items()])
    return 0


@app.command(rich_help_panel="Run", context_settings={"ignore_unknown_options": True})
def predict(
    name: RunName,
    words: Annotated[
        list[str],
        typer.Argument(metavar="INPUT... [--OPTION VALUE]", help="Files, words, prompts or ids: what the model reads; options of its own."),
    ],
    checkpoint: Checkpoint = "best",
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Where tables and pictures go; RUN/predictions if not given.")] = None,
    device: Annotated[str | None, typer.Option(metavar="cpu|cuda|mps", help="Instead of the run's own.")] = None,
    outputs: Outputs = Path("outputs"),
) -> int:
    """What a run's model says of inputs of yours: `refresher predict last "a red circle" --n 4`."""
    signals.install()
    from refresher_runner import run
    from refresher_runner.compose import checked, compose_stored
    from refresher_runner.predictions import write
    from refresher_runner.runs import show
    from refresher_runner.settings import choose_later

    folder, (inputs, chosen) = find(name, outputs), _sorted(words)
    config, stored = compose_stored(folder, [f"trainer.device={device}"] if device else [])
    config = choose_later(config, chosen)
    predictions = run.predict(folder, checked(config, stored), inputs, checkpoint=checkpoint)
    rows = write(predictions, output or folder.path / "predictions")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    print_table(columns, [[show(row.get(column)) for column in columns] for row in rows])
    print(f"written to {output or folder.path / 'predictions'}")
    return 0


def _sorted(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Inputs, and the options `--name value` or `--name=value` among them. Raises UsageError for one without a value, or without inputs."""
    inputs, chosen, rest = [], {}, iter(words)
    for word in rest:
        if not word.startswith("--"):
            inputs.append(word)
            continue
        option, equals, value = word.removeprefix("--").partition("=")
        value = value if equals else next(rest, None)
        if value is None:
            raise UsageError("needs a value", key=word, cure=f"{word} VALUE")
        chosen[option] = value
    if not inputs:
        raise UsageError("nothing to predict from", cure="refresher predict RUN INPUT...")
    return inputs, chosen


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

    folder = find(name, outputs)
    config, stored = compose_stored(folder, [])
    run.export(folder, checked(config, stored), file, checkpoint=checkpoint)
    print(f"written to {file}")
    return 0
