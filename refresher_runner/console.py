"""What a command prints: tables, YAML, and the one line that says what went wrong."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Cells fold at the edge of a terminal, and never in a pipe."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 240)  # a pipe has no edge to fold at
    console.print(table)
    console.print()


def print_yaml(text: str) -> None:
    """In colour on a terminal."""
    if not sys.stdout.isatty():
        print(text, end="")
        return
    from rich.console import Console
    from rich.syntax import Syntax

    Console().print(Syntax(text, "yaml", background_color="default"))


def tell(problem: str, cure: str, code: int) -> int:
    """One line on what is wrong and one on what to do; the exit code. The traceback only for who asks for it."""
    if os.environ.get("REFRESHER_TRACEBACK") == "1" or os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exc()
    for label, text in (("error", problem), ("hint", cure)):
        if text:
            print(f"{label}: {''.join(c if c.isprintable() else '?' for c in ' '.join(text.split()))}", file=sys.stderr)
    return code
