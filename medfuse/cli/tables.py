"""Tables for people: drawn where someone is watching, Markdown where not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer


def print_table(title: str, rows: Sequence[Sequence[str]], markdown: str) -> None:
    """Print a table on standard output.

    Args:
        title: What it is of.
        rows: Cells, the header first.
        markdown: The same, title and all, for a file or a pipe.
    """
    if not sys.stdout.isatty():
        typer.echo(markdown, nl=False)
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print(title, markup=False)
    for columns in _parts(rows, console.width):
        console.print(_drawn(rows, columns))


def _parts(rows: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """Which columns stand side by side, so that no line is broken; the first column stands in every part."""
    widths = [max(len(row[column]) for row in rows) + 3 for column in range(len(rows[0]))]
    parts: list[list[int]] = [[0]]
    for column in range(1, len(widths)):
        if len(parts[-1]) > 1 and sum(widths[one] for one in (*parts[-1], column)) + 1 > width:
            parts.append([0])
        parts[-1].append(column)
    return parts


def _drawn(rows: Sequence[Sequence[str]], columns: Sequence[int]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in columns:
        table.add_column(Text(rows[0][column]), justify="right" if column else "left")
    for row in rows[1:]:
        table.add_row(*(Text(row[column]) for column in columns))
    return table
