"""What can be done from a shell."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Annotated, Optional

import psycopg
import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from pgdict import PgDict, __version__, demo
from pgdict.server import locate, mask

app = typer.Typer(
    help="A Python dict that lives in PostgreSQL.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Url = Annotated[
    Optional[str],  # noqa: UP045 - typer evaluates it
    typer.Option(
        metavar="URL|DIRECTORY",
        help="The server, or an embedded server's directory.  [default: $PGDICT_URL, else this user's embedded server]",
        show_default=False,
    ),
]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"pgdict {__version__} (Python {platform.python_version()}, psycopg {psycopg.__version__})")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """A Python dict that lives in PostgreSQL."""


@app.command("demo")
def run_demo(
    url: Url = None,
    files: Annotated[int, typer.Option(min=1, help="How many source files to index.")] = demo.FILES,
    workers: Annotated[int, typer.Option(min=1, max=64, help="How many processes share the work.")] = demo.WORKERS,
    remove: Annotated[bool, typer.Option("--remove", help="Only drop the table that an earlier demo left.")] = False,
) -> None:
    """Index Python's own sources with several processes in one dictionary."""
    if remove:
        demo.remove(url)
    else:
        demo.run(url, files, workers)


@app.command()
def info(
    url: Url = None,
    table: Annotated[str, typer.Option(help="The dictionary's table.")] = "kv_store",
) -> None:
    """Show where the data is, the server's version, and the size of one dictionary."""
    where = locate(url)
    with PgDict[object, object](where, table=table, create=False) as d, psycopg.connect(d.url) as connection:
        stats = d.stats()
        grid = Table.grid(padding=(0, 2))
        for row in (
            ("pgdict", __version__),
            ("location", f"{where} (embedded)" if isinstance(where, Path) else mask(where)),
            ("server", f"PostgreSQL {connection.info.parameter_status('server_version')}"),
            ("table", table),
            ("items", f"{stats.live:,}, and {stats.expired:,} expired" if stats.expired else f"{stats.live:,}"),
            ("size", f"{decimal(stats.table_bytes)}, and {decimal(stats.index_bytes)} of indexes"),
            *([("note", "a crash of the server has emptied it")] if stats.emptied else []),
        ):
            grid.add_row(*row)
        Console().print(grid)
