"""Tables that read well as plain text and are Markdown: one form for the terminal, log.txt and TensorBoard."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = ()) -> str:
    """Columns aligned; those named in `right` to the right."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    flush = [name in right for name in header]
    lines = ["| " + " | ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, flush, strict=True)) + " |" for row in cells]
    rule = "|" + "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, flush, strict=True)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
