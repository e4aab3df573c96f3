"""What TensorBoard's HPARAMS tab shows of a folder of runs: the keys that vary, and the goals before all other metrics. Free of torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from refresher_runner.engine.options import configuration
from refresher_runner.runs import Summary
from refresher_runner.sweep.leaderboard import entries_of, typed_for, varying


@contextmanager
def columns_of(folder: Path) -> Iterator[None]:
    """While somebody looks at a folder, TensorBoard shows the columns that suit the runs that are in it now.

    They are one file in that folder: of two such files TensorBoard would take either, so there is none below, and none is left behind.
    """
    from refresher_runner.engine.hparams import COLUMNS, columns, write_columns

    runs = entries_of(folder)
    configs = [configuration(run.config) for run in runs]
    keys = varying(configs, set().union(*map(typed_for, runs)))
    written = None
    with suppress(OSError):  # of a folder that only can be read: TensorBoard finds columns of its own
        for old in folder.rglob(COLUMNS):
            old.unlink()
        if keys:
            written = write_columns(folder, columns({key: [config.get(key) for config in configs] for key in keys}, metrics_of(runs)))
    try:
        yield
    finally:
        if written:
            written.unlink(missing_ok=True)


def metrics_of(runs: Sequence[Summary]) -> list[str]:
    """Curves whose last points tell runs apart. Those that every run has come first, for a row without one is not drawn across it."""
    tags = [{tag for line in run.lines() for tag, value in line.items() if _is_metric(tag, value)} for run in runs if run.goal]
    goals = {run.goal["metric"] for run in runs if run.goal}
    wanted = ["val/best", *(f"test/{goal}" for goal in goals), *(f"val/{goal}" for goal in goals), "test/loss", "val/loss", "train/loss"]
    rank = {tag: number for number, tag in enumerate(dict.fromkeys(wanted))}
    shared = set.intersection(*tags) if tags else set()
    return sorted(set().union(*tags), key=lambda tag: (tag not in shared, rank.get(tag, len(rank)), not tag.startswith("val/"), tag))


def _is_metric(tag: str, value: object) -> bool:
    return isinstance(value, float) and tag.count("/") == 1 and tag.startswith(("val/", "test/", "train/"))
