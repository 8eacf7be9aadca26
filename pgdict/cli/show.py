"""Tables for people."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pgdict.cli.text import in_line

_ROWS, _LONGEST = 1_000, 1_000


def grid(*rows: tuple[str, str]) -> None:
    """Print names, and what there is to say of each."""
    table = Table.grid(padding=(0, 2))
    for name, text in rows:
        table.add_row(name, Text(text))
    Console(highlight=False, markup=False).print(table)


def pairs(items: Iterator[tuple[Any, Any]]) -> None:
    """Print keys and values as they come, each in one line of the terminal."""
    console = Console()
    head = True
    while batch := list(islice(items, _ROWS)):
        table = Table(box=None, show_header=head, padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column("key", no_wrap=True, overflow="ellipsis", max_width=max(10, console.width // 2))
        table.add_column("value", no_wrap=True, overflow="ellipsis")
        for key, value in batch:
            table.add_row(Text(in_line(key)[:_LONGEST]), Text(in_line(value)[:_LONGEST]))
        console.print(table)
        head = False
