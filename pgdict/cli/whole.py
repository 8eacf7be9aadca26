"""Commands for the whole dictionary, and for where it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import psycopg
import typer

from pgdict import PgDict, Stats, __version__
from pgdict.cli.program import Codec, Json, Namespace, Schema, TableName, Url, app, command, opened, shown
from pgdict.cli.text import write_json
from pgdict.display import size
from pgdict.errors import NoTable
from pgdict.server import join, locate, mask


@command("stats", "pgdict stats", "pgdict stats --estimate --json | jq .live")
def stats(
    d: PgDict[Any, Any],
    estimate: Annotated[bool, typer.Option("--estimate", help="Do not count, but take what the server noted last.")] = False,
    json: Json = False,
) -> None:
    """Show how many items there are, and what they take."""
    found = d.stats(exact=not estimate)
    if json:
        write_json(asdict(found))
        return
    from pgdict.cli import show

    show.grid(*_lines(found))


def _lines(found: Stats) -> Iterator[tuple[str, str]]:
    yield "items", f"{found.live:,}" if found.exact else f"about {found.live:,}"
    if found.expired is not None:
        yield "expired", f"{found.expired:,}, not yet removed"
    if found.bytes is not None:
        yield "keys and values", size(found.bytes)
    yield "table", size(found.table_bytes)
    yield "indexes", size(found.index_bytes)
    if found.emptied:
        yield "note", "a crash of the server has emptied it"


@app.command("info", epilog=shown(("pgdict info", "pgdict info --url ./cache --table orders --json")))
def info(
    json: Json = False,
    url: Url = None,
    table: TableName = "kv_store",
    schema: Schema = None,
    namespace: Namespace = None,
    codec: Codec = "msgpack",
) -> None:
    """Show where the data is, the server's version, and how much it is.

    Makes nothing that is missing.
    """
    where = locate(url)
    found, unlogged, order = None, None, None
    with suppress(NoTable), opened(url, table, schema, namespace, codec) as d:
        found = d.stats()
        unlogged, order = d._session.table.durability == "unlogged", d._session.table.layout.order
    embedded = isinstance(where, Path)
    facts = {
        "pgdict": __version__,
        "location": str(where) if isinstance(where, Path) else mask(where),
        "embedded": embedded,
        "server": _version(where),
        "table": table,
        "exists": found is not None,
    }
    if json:
        write_json(facts | ({} if found is None else {"unlogged": unlogged, "order": order} | asdict(found)))
        return
    from pgdict.cli import show

    kind = f"{table}, in {order} order, {'unlogged: a crash of the server empties it' if unlogged else 'logged'}"
    show.grid(
        ("pgdict", __version__),
        ("location", f"{facts['location']} (embedded)" if embedded else str(facts["location"])),
        ("server", f"PostgreSQL {facts['server']}" if facts["server"] else "not there yet"),
        *([("table", kind), *_lines(found)] if found else [("table", f"{table}, not there yet: `pgdict set` makes it")]),
    )


def _version(where: str | Path) -> str | None:
    """Return the version of a server that can be reached, None for an embedded one that does not exist."""
    if isinstance(where, Path) and not where.exists():
        return None
    with _address(where) as address, psycopg.connect(address) as connection:
        return connection.info.parameter_status("server_version")


@contextmanager
def _address(where: str | Path) -> Iterator[str]:
    if isinstance(where, str):
        yield where
        return
    embedded = join(where)
    try:
        yield embedded.conninfo
    finally:
        embedded.close()
