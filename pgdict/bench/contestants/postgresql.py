"""What PostgreSQL gives without PgDict: on a table of the same kind, as one writes it by hand, and its floor."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import ConnectionPool

from pgdict.bench.contestants.ours import LOST, dropping
from pgdict.bench.contestants.store import PAGE, PREFIX, TABLE, THREADS, Arena, Missing, Pairs, Store, value
from pgdict.dictionary import PgDict
from pgdict.errors import ConfigError
from pgdict.server import binaries

_LIVE = "(expires_at IS NULL OR expires_at > statement_timestamp())"
_PUT = """
    INSERT INTO {t} (key, value, expires_at) VALUES (%s, %b, {expiry})
    ON CONFLICT (key) DO UPDATE
    SET value = excluded.value, expires_at = excluded.expires_at, updated_at = excluded.updated_at
"""
_SQL = {
    "get": f"SELECT value FROM {{t}} WHERE key = %s AND {_LIVE}",
    "set": _PUT.replace("{expiry}", "NULL"),
    "set_ttl": _PUT.replace("{expiry}", "statement_timestamp() + interval '1 hour'"),
    "has": f"SELECT EXISTS (SELECT FROM {{t}} WHERE key = %s AND {_LIVE})",
    "delete": "DELETE FROM {t} WHERE key = %s",
    "increment": """
        INSERT INTO {t} AS t (key, value) VALUES (%s, '1')
        ON CONFLICT (key) DO UPDATE
        SET value = convert_to((convert_from(t.value, 'UTF8')::bigint + 1)::text, 'UTF8'), updated_at = excluded.updated_at
        RETURNING value
    """,
    "get_many": f"SELECT key, value FROM {{t}} WHERE key = ANY (%s) AND {_LIVE}",
    "items": f"SELECT key, value FROM {{t}} WHERE {_LIVE} ORDER BY seq",
    "scan": f"SELECT key, value FROM {{t}} WHERE key > %s AND key < %s AND {_LIVE} ORDER BY key LIMIT {PAGE}",
    "clear": "TRUNCATE {t}",
    "settle": "VACUUM (ANALYZE) {t}",
    "size": "SELECT pg_total_relation_size('{t}')",
    "copy": "COPY {t} (key, value) FROM STDIN (FORMAT binary)",
}


def _statements(table: str) -> dict[str, bytes]:
    return {name: statement.replace("{t}", table).encode() for name, statement in _SQL.items()}


@contextmanager
def _table(arena: Arena, name: str) -> Iterator[dict[str, bytes]]:
    """Make a table with the columns and indexes of PgDict's, and return the statements on it."""
    table = f"{TABLE}_{name}"
    with PgDict[str, Any](arena.url, table=table, durability="unlogged", codec="bytes") as d, dropping(d):
        yield _statements(table)


class _Pooled:
    """What one writes by hand: a pool, and `execute` on a connection of it."""

    def __init__(self, pool: ConnectionPool[psycopg.Connection[Any]]) -> None:
        self._pool = pool

    def read(self, statement: bytes) -> Callable[..., list[Any]]:
        """Return a function that returns rows."""

        def execute(*parameters: Any) -> list[Any]:
            with self._pool.connection() as connection:
                return connection.execute(statement, parameters, prepare=True).fetchall()

        return execute

    def read_one(self, statement: bytes) -> Callable[..., Any]:
        """Return a function that returns one row."""

        def execute(*parameters: Any) -> Any:
            with self._pool.connection() as connection:
                return connection.execute(statement, parameters, prepare=True).fetchone()

        return execute

    def write(self, statement: bytes) -> Callable[..., None]:
        """Return a function that stores, or removes."""

        def execute(*parameters: Any) -> None:
            with self._pool.connection() as connection:
                connection.execute(statement, parameters, prepare=True)

        return execute

    def write_many(self, statement: bytes) -> Callable[[Mapping[str, str]], None]:
        """Return a function that stores pairs in one transaction."""

        def execute(pairs: Mapping[str, str]) -> None:
            with self._pool.connection() as connection, connection.transaction():
                connection.cursor().executemany(statement, [(key, v.encode()) for key, v in pairs.items()])

        return execute


@contextmanager
def open_psycopg(arena: Arena) -> Iterator[Store]:
    """Open a pool, and run the same SQL with `execute`."""
    settings = {"autocommit": True}
    with (
        _table(arena, "psycopg") as sql,
        ConnectionPool(arena.url, min_size=1, max_size=THREADS + 1, kwargs=settings, open=True) as pool,
    ):
        pooled = _Pooled(pool)
        page, put, put_ttl = pooled.read(sql["scan"]), pooled.write(sql["set"]), pooled.write(sql["set_ttl"])

        def scan(prefix: str) -> Pairs:
            after, end = prefix, prefix + chr(0x10FFFF)
            while found := page(after, end):
                yield from found
                after = found[-1][0]

        yield Store(
            version=version("psycopg"),
            crash=LOST["unlogged"],
            module="psycopg_pool",
            get=pooled.read_one(sql["get"]),
            miss=pooled.read_one(sql["get"]),
            set=lambda key, v: put(key, v.encode()),
            set_ttl=lambda key, v: put_ttl(key, v.encode()),
            has=pooled.read_one(sql["has"]),
            delete=pooled.write(sql["delete"]),
            increment=pooled.read_one(sql["increment"]),
            get_many=pooled.read(sql["get_many"]),
            set_many=pooled.write_many(sql["set"]),
            fill=pooled.write_many(sql["set"]),
            clear=pooled.write(sql["clear"]),
            settle=pooled.write(sql["settle"]),
            items=pooled.read(sql["items"]),
            scan=scan,
            size=lambda: int(pooled.read_one(sql["size"])()[0]),
        )


@contextmanager
def open_copy(arena: Arena) -> Iterator[Store]:
    """Open a connection for COPY, which is the fastest way into a table."""
    with _table(arena, "copy") as sql, psycopg.connect(arena.url, autocommit=True) as connection:

        def fill(pairs: Mapping[str, str]) -> None:
            with connection.transaction(), connection.cursor().copy(sql["copy"]) as copy:
                copy.set_types(["text", "bytea"])
                for key, v in pairs.items():
                    copy.write_row((key, v.encode()))

        yield Store(
            version=version("psycopg"),
            crash=LOST["unlogged"],
            fill=fill,
            clear=lambda: connection.execute(sql["clear"]),
        )


@contextmanager
def open_pgbench(arena: Arena) -> Iterator[Store]:
    """Find pgbench, which is written in C and does nothing but send the statement."""
    program = _program()
    server: dict[str, Any] = conninfo_to_dict(arena.url)
    environment = os.environ | {"PGPASSWORD": server.pop("password", os.environ.get("PGPASSWORD", ""))}
    address = make_conninfo(**server)
    with _table(arena, "pgbench") as sql, psycopg.connect(arena.url, autocommit=True) as connection:

        def fill(pairs: Mapping[str, str]) -> None:
            connection.cursor().executemany(sql["set"], [(key, v.encode()) for key, v in pairs.items()])

        def run(what: str, keys: int, size: int, threads: int, calls: int) -> float:
            rest = {"miss": "'none:' || :i", "increment": "'count'"}.get(what, ":i")
            key = f"'{PREFIX}:' || {rest}"  # in pieces: to pgbench `:none` is a variable even inside quotes
            statement = sql["get" if what == "miss" else what].decode().replace("%s", key).replace("%b", f"'{value(size)}'")
            script = arena.directory / "pgbench.sql"
            script.write_text(f"\\set i random(0, {keys - 1})\n{' '.join(statement.split())};\n")
            calls = max(1, calls // threads)
            options = f"-n -M prepared -c {threads} -j {threads} -t {calls} -f".split()
            command = [program, *options, str(script), address]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"pgbench: {done.stderr}")
            return calls * threads / float(re.findall(r"tps = ([\d.]+)", done.stdout)[-1])

        shown = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        yield Store(
            version=shown.split()[2],
            crash=LOST["unlogged"],
            fill=fill,
            clear=lambda: connection.execute(sql["clear"]),
            settle=lambda: connection.execute(sql["settle"]),
            script=run,
        )


def _program() -> str:
    if found := shutil.which("pgbench"):
        return found
    with suppress(ConfigError):
        beside = binaries.find(None) / "pgbench"
        if beside.exists():
            return str(beside)
    raise Missing("pgbench is neither on PATH nor beside the embedded server's programs")
