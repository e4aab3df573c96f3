"""Leaderboards to read: as a table in the terminal, as Markdown, as CSV. Free of torch and Hydra."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from refresher_runner.console import print_table
from refresher_runner.engine.rundir import write_atomically
from refresher_runner.engine.tables import table
from refresher_runner.runs import show
from refresher_runner.sweep.leaderboard import Board, Row, Score, boards


def print_board(board: Board) -> None:
    """Title, table, and how to read it."""
    print(board.title)
    columns, rows = _cells(board)
    print_table(columns, rows)
    best = next((row.best_run(board.objectives) for row in board.rows if row.place in ("best", "front")), None)
    for line in [*board.notes, *([f"best run: {best}"] if best else [])]:
        print(line)
    if board.notes or best:
        print()


def markdown(found: Sequence[Board]) -> str:
    """A section for each board."""
    sections = []
    for board in found:
        columns, rows = _cells(board)
        notes = "".join(f"\n{note}\n" for note in board.notes)
        sections.append(f"**{board.title}**\n\n{table(columns, rows, right=('seeds', 'step'))}\n{notes}")
    return "\n".join(sections)


def csv_text(found: Sequence[Board]) -> str:
    """A row for each configuration of all boards, with numbers as they are: mean, spread and seeds of each score."""
    rows = []
    for board in found:
        for row in board.rows:
            cells: dict[str, object] = {"data": board.data, "place": row.place, **dict(row.values)}
            for objective, score in zip(board.objectives, row.scores, strict=True):
                cells |= _numbers(objective.tag, score)
            if board.objectives:
                cells |= _numbers(f"test/{board.objectives[0].metric}", row.tested)
            best = row.best_run(board.objectives)
            rows.append(cells | {"so_far": row.so_far, "runs": len(row.runs), "steps": row.steps, "state": row.state, "run": best or ""})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(column for row in rows for column in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_boards(folder: Path) -> list[Board]:
    """leaderboard.md and leaderboard.csv into a folder of runs, as they stand now."""
    found = boards(folder)
    write_atomically(folder / "leaderboard.md", markdown(found))
    write_atomically(folder / "leaderboard.csv", csv_text(found))
    return found


def _cells(board: Board) -> tuple[list[str], list[list[str]]]:
    """Columns and rows, without columns that would say nothing."""
    tested = bool(board.objectives) and any(row.tested for row in board.rows)
    columns = ["", *(key.removesuffix(".name") for key in board.keys), *(objective.tag for objective in board.objectives)]
    columns += [f"test/{board.objectives[0].metric}"] if tested else []
    rows = []
    for row in board.rows:
        scores = [_shown(row, number) for number in range(len(board.objectives))]
        known = [str(row.tested) if row.tested else show(None)] if tested else []
        done, every = row.seeds
        seeds = str(every) if done == every else f"{done} of {every}"
        rows.append([row.place, *(show(row.values[key]) for key in board.keys), *scores, *known, seeds, show(row.steps), row.state])
    return [*columns, "seeds", "step", "state"], rows


def _shown(row: Row, number: int) -> str:
    if score := row.scores[number]:
        return str(score)
    return f"({row.so_far:.4g})" if number == 0 and row.so_far is not None else show(None)


def _numbers(tag: str, score: Score | None) -> dict[str, object]:
    if score is None:
        return {tag: "", f"{tag}.spread": "", f"{tag}.seeds": 0}
    return {tag: score.mean, f"{tag}.spread": "" if score.spread is None else score.spread, f"{tag}.seeds": score.seeds}
