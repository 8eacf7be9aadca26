"""PgDict itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from pgdict import __version__
from pgdict.bench.contestants.store import PAGE, PART, TABLE, THREADS, Arena, Pairs, Store, square
from pgdict.dictionary import PgDict
from pgdict.operations import ABSENT
from pgdict.session import Durability

LOST = {
    "unlogged": "a crash of the server empties the table",
    "async": "a crash of the server loses the last fraction of a second",
    "sync": "nothing that was acknowledged",
}


@contextmanager
def open_pgdict(durability: Durability, arena: Arena) -> Iterator[Store]:
    """Open a dictionary of that durability."""
    table = f"{TABLE}_{durability}"
    with PgDict[str, Any](arena.location, table=table, durability=durability, max_size=THREADS + 1) as d:

        def settle() -> None:
            with psycopg.connect(d.url, autocommit=True) as connection:
                connection.execute(f"VACUUM (ANALYZE) {table}".encode())

        def scan(prefix: str) -> Pairs:
            after: Any = ABSENT
            while page := list(d.scan(prefix, limit=PAGE, after=after)):
                yield from page
                after = page[-1][0]

        def peak(count: int, size: int) -> int:
            d.truncate()
            command = (sys.executable, "-m", "pgdict.bench.peak", table, str(count), str(size))
            done = subprocess.run(command, env=os.environ | {"PGDICT_URL": d.url}, check=True, stdout=subprocess.PIPE)
            return int(done.stdout)

        def size() -> int:
            stats = d.stats(exact=False)
            return stats.table_bytes + stats.index_bytes

        with dropping(d):
            yield Store(
                version=__version__,
                crash=LOST[durability],
                module="pgdict" if durability == "unlogged" else None,
                get=d.__getitem__,
                miss=d.get,
                set=d.__setitem__,
                set_ttl=lambda key, v: d.set(key, v, ttl=3600),
                has=d.__contains__,
                delete=d.__delitem__,
                increment=d.increment,
                get_many=d.get_many,
                set_many=d.set_many,
                fill=d.set_many,
                clear=d.truncate,
                settle=settle,
                items=d.items,
                scan=scan,
                part=d.namespace(*PART.split(":")).items,
                memoized=d.memoize(name="square")(square),
                size=size,
                peak=peak,
            )


@contextmanager
def dropping(d: PgDict[str, Any]) -> Iterator[None]:
    """Drop the table in the end."""
    try:
        yield
    finally:
        d.drop()
