"""Who takes part: one small adapter each, with the operations that it has of its own.

The bound methods themselves are measured wherever they fit, so that an adapter costs its contestant nothing.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import secrets
import shelve
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import ConnectionPool

from pgdict.dictionary import PgDict
from pgdict.errors import ConfigError
from pgdict.operations import ABSENT
from pgdict.server import binaries
from pgdict.session import Durability

TOKEN = secrets.token_hex(3)
PREFIX = f"bench-{TOKEN}"
"""What all keys begin with: on somebody's own Redis nothing else is touched."""
PART = f"{PREFIX}:part"
"""What the keys of a small part begin with."""
TABLE = f"pgdict_bench_{TOKEN}"
"""What all tables begin with."""
THREADS = 16
"""The most threads that use one contestant, and so the most connections that its pool holds."""
PAGE = 100
"""Items of a page when scanning."""

Pairs = Iterable[tuple[str, Any]]


class Missing(Exception):
    """Why a contestant cannot take part."""


@dataclass(frozen=True, slots=True)
class Arena:
    """Where the contestants meet."""

    location: str | None
    """As `PgDict` takes it."""
    url: str
    """The same server, for psycopg and pgbench."""
    directory: Path
    """For files, sockets, and whatever else ends with the run."""


@dataclass(kw_only=True, slots=True)
class Store:
    """An open contestant: what it can do, None where it has no such operation."""

    version: str
    crash: str
    """What a crash loses."""
    module: str | None = None
    """What its user imports."""
    standard: bool = True
    """Whether it is set up as the targets have it."""
    get: Callable[[str], Any] | None = None
    miss: Callable[[str], Any] | None = None
    """A get that a missing key is no error for."""
    set: Callable[[str, Any], Any] | None = None
    set_ttl: Callable[[str, Any], Any] | None = None
    has: Callable[[str], Any] | None = None
    delete: Callable[[str], Any] | None = None
    increment: Callable[[str], Any] | None = None
    get_many: Callable[[list[str]], Any] | None = None
    set_many: Callable[[Mapping[str, Any]], Any] | None = None
    fill: Callable[[Mapping[str, Any]], Any] | None = None
    """The fastest way to store many new pairs."""
    clear: Callable[[], Any] | None = None
    items: Callable[[], Pairs] | None = None
    scan: Callable[[str], Pairs] | None = None
    """The pairs below a prefix, read in pages."""
    part: Callable[[], Pairs] | None = None
    """The pairs of a namespace, `PART`."""
    memoized: Callable[[int], int] | None = None
    size: Callable[[], int] | None = None
    """Bytes that the items take."""
    peak: Callable[[int, int], int] | None = None
    """Bytes of memory that a client needs for loading and iterating so many items of such a size."""
    script: Callable[[str, int, int, int, int], float] | None = None
    """Measure outside of Python: what, keys, size, threads, calls; returns seconds."""
    threads: bool = True
    """Whether threads may share it."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """Somebody who takes part if he can."""

    name: str
    open: Callable[[Arena], AbstractContextManager[Store]]


@functools.cache
def value(size: int) -> str:
    """Return a string of that many bytes, which hardly compresses."""
    return secrets.token_hex((size + 1) // 2)[:size]


def square(number: int) -> int:
    """Stand for the function that is worth memoizing."""
    return number * number


def batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Cut into lists of at most `size`."""
    iterator = iter(items)
    return iter(lambda: list(islice(iterator, size)), [])


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise Missing(f"{name} is not installed: pip install '.[bench]'") from None


# PgDict --------------------------------------------------------------------------------------------------------------

_LOST = {
    "unlogged": "a crash of the server empties the table",
    "async": "a crash of the server loses the last fraction of a second",
    "sync": "nothing that was acknowledged",
}


def _pgdict(durability: Durability) -> Callable[[Arena], AbstractContextManager[Store]]:
    @contextmanager
    def open_pgdict(arena: Arena) -> Iterator[Store]:
        table = f"{TABLE}_{durability}"
        with PgDict[str, Any](arena.location, table=table, durability=durability, max_size=THREADS + 1) as d:

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

            with _dropping(d):
                yield Store(
                    version=version("pgdict-kv"),
                    crash=_LOST[durability],
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
                    items=d.items,
                    scan=scan,
                    part=d.namespace(*PART.split(":")).items,
                    memoized=d.memoize(name="square")(square),
                    size=size,
                    peak=peak,
                )

    return open_pgdict


@contextmanager
def _dropping(d: PgDict[str, Any]) -> Iterator[None]:
    try:
        yield
    finally:
        d.drop()


# The same by hand ----------------------------------------------------------------------------------------------------

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
    "size": "SELECT pg_total_relation_size('{t}')",
    "copy": "COPY {t} (key, value) FROM STDIN (FORMAT binary)",
}


def _statements(table: str) -> dict[str, bytes]:
    return {name: statement.replace("{t}", table).encode() for name, statement in _SQL.items()}


@contextmanager
def _table(arena: Arena, name: str) -> Iterator[dict[str, bytes]]:
    """Make a table with the columns and indexes of PgDict's, and return the statements on it."""
    table = f"{TABLE}_{name}"
    with PgDict[str, Any](arena.url, table=table, durability="unlogged", codec="bytes") as d, _dropping(d):
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
def _psycopg(arena: Arena) -> Iterator[Store]:
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
            crash=_LOST["unlogged"],
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
            items=pooled.read(sql["items"]),
            scan=scan,
            size=lambda: int(pooled.read_one(sql["size"])()[0]),
        )


@contextmanager
def _copy(arena: Arena) -> Iterator[Store]:
    with _table(arena, "copy") as sql, psycopg.connect(arena.url, autocommit=True) as connection:

        def fill(pairs: Mapping[str, str]) -> None:
            with connection.transaction(), connection.cursor().copy(sql["copy"]) as copy:
                copy.set_types(["text", "bytea"])
                for key, v in pairs.items():
                    copy.write_row((key, v.encode()))

        yield Store(
            version=version("psycopg"),
            crash=_LOST["unlogged"],
            fill=fill,
            clear=lambda: connection.execute(sql["clear"]),
        )


@contextmanager
def _pgbench(arena: Arena) -> Iterator[Store]:
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
            crash=_LOST["unlogged"],
            fill=fill,
            clear=lambda: connection.execute(sql["clear"]),
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


# Redis ---------------------------------------------------------------------------------------------------------------


@contextmanager
def _redis(arena: Arena) -> Iterator[Store]:
    redis = _module("redis")
    with ExitStack() as stack:
        if url := os.environ.get("REDIS_URL"):
            client = stack.enter_context(redis.Redis.from_url(url))
            way, crash = url.split(":")[0], "as its server is set up"
        else:
            client = stack.enter_context(redis.Redis(unix_socket_path=stack.enter_context(_redis_server(arena.directory))))
            way, crash = "unix socket", "everything: it keeps nothing on disk, as it is set up here"
        _await(redis, client)

        def pairs(prefix: str, count: int) -> Pairs:
            for keys in batches(client.scan_iter(match=f"{prefix}*", count=count), count):
                yield from zip(keys, client.mget(keys), strict=True)

        def fill(items: Mapping[str, str]) -> None:
            for batch in batches(items.items(), 10_000):
                client.mset(dict(batch))

        def clear() -> None:
            for keys in batches(client.scan_iter(match=f"{PREFIX}:*", count=10_000), 10_000):
                client.unlink(*keys)

        if url:
            stack.callback(clear)
        parser = f"hiredis {version('hiredis')}" if _installed("hiredis") else "without hiredis"
        begin = client.info("memory")["used_memory"]
        yield Store(
            version=f"{client.info('server')['redis_version']}, redis-py {version('redis')}, {parser}, {way}",
            crash=crash,
            module="redis",
            standard=way == "unix socket" and _installed("hiredis"),
            get=client.get,
            miss=client.get,
            set=client.set,
            set_ttl=lambda key, v: client.set(key, v, ex=3600),
            has=client.exists,
            delete=client.delete,
            increment=client.incr,
            get_many=client.mget,
            set_many=client.mset,
            fill=fill,
            clear=clear,
            items=lambda: pairs(f"{PREFIX}:", 5000),
            scan=lambda prefix: pairs(prefix, PAGE),
            size=lambda: int(client.info("memory")["used_memory"] - begin),
        )


def _installed(name: str) -> bool:
    with suppress(Missing):
        return bool(_module(name))
    return False


@contextmanager
def _redis_server(directory: Path) -> Iterator[str]:
    program = shutil.which("redis-server")
    if program is None:
        raise Missing("REDIS_URL is not set, and redis-server is not on PATH")
    socket = str(directory / "redis.sock")
    options = {"--port": "0", "--unixsocket": socket, "--save": "", "--appendonly": "no", "--dir": str(directory)}
    command = [program, *(word for option in options.items() for word in option)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            yield socket
        finally:
            server.terminate()


def _await(redis: Any, client: Any) -> None:
    deadline = time.monotonic() + 5
    while True:
        try:
            client.ping()
        except redis.RedisError as error:
            if time.monotonic() > deadline:
                raise Missing(f"Redis does not answer: {error}") from None
            time.sleep(0.02)
        else:
            return


# Files ---------------------------------------------------------------------------------------------------------------


@contextmanager
def _diskcache(arena: Arena) -> Iterator[Store]:
    with _module("diskcache").Cache(str(arena.directory / "diskcache")) as cache:

        def set_many(items: Mapping[str, Any]) -> None:
            with cache.transact():
                for key, v in items.items():
                    cache.set(key, v)

        yield Store(
            version=f"{version('diskcache')}, SQLite {sqlite3.sqlite_version}",
            crash="a crash of the machine may lose the last writes",
            module="diskcache",
            get=cache.__getitem__,
            miss=cache.get,
            set=cache.__setitem__,
            set_ttl=lambda key, v: cache.set(key, v, expire=3600),
            has=cache.__contains__,
            delete=cache.__delitem__,
            increment=cache.incr,
            set_many=set_many,
            fill=set_many,
            clear=cache.clear,
            items=lambda: ((key, cache[key]) for key in cache),
            memoized=cache.memoize()(square),
            size=cache.volume,
        )


@contextmanager
def _sqlitedict(arena: Arena) -> Iterator[Store]:
    path = arena.directory / "sqlitedict.sqlite"
    make = _module("sqlitedict").SqliteDict
    with closing(make(str(path), autocommit=True)) as d, closing(make(str(path))) as bulk:

        def set_many(items: Mapping[str, Any]) -> None:
            bulk.update(items)
            bulk.commit()

        yield Store(
            version=f"{version('sqlitedict')}, SQLite {sqlite3.sqlite_version}",
            crash="a crash of the machine may lose or damage the file",
            module="sqlitedict",
            get=d.__getitem__,
            miss=d.get,
            set=d.__setitem__,
            has=d.__contains__,
            delete=d.__delitem__,
            set_many=set_many,
            fill=set_many,
            clear=d.clear,
            items=d.items,
            size=lambda: _bytes(path.parent, "sqlitedict*"),
        )


@contextmanager
def _shelve(arena: Arena) -> Iterator[Store]:
    directory = arena.directory / "shelve"
    shelf: shelve.Shelf[Any]

    def reopen() -> None:  # as removing the keys one by one takes for ever with some kinds of dbm
        nonlocal shelf
        with suppress(NameError):
            shelf.close()
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        shelf = shelve.open(str(directory / "shelf"))  # noqa: SIM115 - closed below

    def size() -> int:
        shelf.sync()
        return _bytes(directory, "*")

    reopen()
    try:
        yield Store(
            version=f"{platform.python_version()}, {_kind(shelf)}",
            crash="a crash of the process may lose or damage the file; no two processes may write",
            module="shelve",
            get=lambda key: shelf[key],
            miss=lambda key: shelf.get(key),
            set=lambda key, v: shelf.__setitem__(key, v),
            has=lambda key: key in shelf,
            delete=lambda key: shelf.__delitem__(key),
            fill=lambda items: shelf.update(items),
            clear=reopen,
            items=lambda: shelf.items(),
            size=size,
            threads=False,
        )
    finally:
        shelf.close()


def _kind(shelf: Any) -> str:
    return type(shelf.dict).__module__.lstrip("_")


def _bytes(directory: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in directory.glob(pattern))


@contextmanager
def _joblib(arena: Arena) -> Iterator[Store]:
    memory = _module("joblib").Memory(str(arena.directory / "joblib"), verbose=0)
    yield Store(
        version=version("joblib"),
        crash="a crash of the machine may lose the last results",
        module="joblib",
        memoized=memory.cache(square),
    )


@contextmanager
def _dict(arena: Arena) -> Iterator[Store]:  # noqa: ARG001 - it needs none
    d: dict[str, Any] = {}
    yield Store(
        version=platform.python_version(),
        crash="everything when the process ends; nobody shares it",
        get=d.__getitem__,
        miss=d.get,
        set=d.__setitem__,
        has=d.__contains__,
        delete=d.__delitem__,
        set_many=d.update,
        fill=d.update,
        clear=d.clear,
        items=d.items,
        memoized=functools.cache(square),
        size=lambda: sys.getsizeof(d) + sum(sys.getsizeof(key) + sys.getsizeof(v) for key, v in d.items()),
    )


OURS = "PgDict unlogged"
"""Whom the targets are about."""

CONTESTANTS = (
    Contestant(OURS, _pgdict("unlogged")),
    Contestant("PgDict async", _pgdict("async")),
    Contestant("PgDict sync", _pgdict("sync")),
    Contestant("psycopg", _psycopg),
    Contestant("COPY", _copy),
    Contestant("pgbench", _pgbench),
    Contestant("Redis", _redis),
    Contestant("diskcache", _diskcache),
    Contestant("sqlitedict", _sqlitedict),
    Contestant("shelve", _shelve),
    Contestant("joblib", _joblib),
    Contestant("dict", _dict),
)
