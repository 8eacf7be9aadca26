from __future__ import annotations

import os
import secrets
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, get_args

import psycopg
import pytest
from conftest import remove_server
from processes import eventually, program
from psycopg_pool import ConnectionPool

from pgdict import ConfigError, PgDict, PgDictError
from pgdict.session import Durability

ALL: tuple[Durability, ...] = get_args(Durability)

Open = Callable[..., PgDict[Any, Any]]


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A directory with a server of its own, to be killed."""
    directory = Path(tempfile.mkdtemp(prefix="pgdict-crash-", dir="/tmp"))
    directory.chmod(0o711)
    yield directory
    remove_server(directory)


@pytest.fixture
def dictionary(directory: Path) -> Iterator[Open]:
    """How to open a dictionary there, on a new table."""
    opened: list[PgDict[Any, Any]] = []

    def open_(table: str = f"t_{secrets.token_hex(6)}", **options: Any) -> PgDict[Any, Any]:
        opened.append(PgDict(directory, table=table, **options))
        return opened[-1]

    yield open_
    opened[0].drop()
    for d in opened:
        d.close()


def crash(directory: Path) -> None:
    """Kill the server with all its processes, as a power cut would."""
    postmaster = int((directory / "data" / "postmaster.pid").read_text().split()[0])
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(postmaster)], capture_output=True, text=True, check=False).stdout
    pids = [postmaster, *map(int, listed.split())]
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not any(map(running, pids)))


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_unlogged(directory: Path, dictionary: Open) -> None:
    """A crash empties an unlogged table; the dictionary works on, and its statistics tell for ever after."""
    d = dictionary(durability="unlogged")
    keyed = dictionary(f"{d._origin.options.table}_k", durability="unlogged", order="key")
    d.update({n: n for n in range(1000)})
    d.move_to_end(0, last=False)
    assert (d.stats().emptied, d.stats(exact=False).emptied, keyed.stats().emptied) == (False, False, None)
    crash(directory)
    assert (len(d), list(d), d.get(5)) == (0, [], None)
    assert d.stats().emptied is True
    d.update(b=1, a=2)
    d["c"] = 3
    assert list(d) == ["b", "a", "c"]
    assert d.popitem() == ("c", 3)
    assert (d.stats().emptied, d.namespace("n").stats().emptied) == (True, True)
    assert keyed.stats().emptied is None
    keyed.drop()


@pytest.mark.parametrize("durability", ["sync", "async"])
def test_logged(directory: Path, dictionary: Open, durability: Durability) -> None:
    """A crash leaves a logged table its rows, their order and their expiry: all but the last moments' of an async one."""
    d = dictionary(durability=durability)
    d.update({n: n for n in range(1000)}, ttl=1000)
    d.move_to_end(0)
    d.set("soon", 1, ttl=500)
    if durability == "async":
        time.sleep(1)  # three times the delay of the WAL writer
    crash(directory)
    assert list(d) == [*range(1, 1000), "ttl", 0, "soon"]
    assert 450 < (d.ttl("soon") or 0) < 500
    assert d.stats().emptied is False


def test_clean_stop(directory: Path, dictionary: Open) -> None:
    """A server that is stopped in good order keeps unlogged tables as well."""
    d = dictionary(durability="unlogged")
    d["a"] = 1
    os.kill(int((directory / "data" / "postmaster.pid").read_text().split()[0]), signal.SIGINT)
    assert eventually(lambda: not (directory / "data" / "postmaster.pid").exists())
    assert d["a"] == 1
    assert d.stats().emptied is False


WRITER = """
d = PgDict(url, table=table, timeout=1)
try:
    for n in range(10**9):
        d[n] = n
        print(n, flush=True)
except ConnectionError:
    pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["sync", "async"])
def test_acknowledged(directory: Path, dictionary: Open, durability: Durability) -> None:
    """A crash takes nothing acknowledged in sync, the last moments at most in async, and never one write before another."""
    d = dictionary(durability=durability)
    code = WRITER.replace("table=table", f"table=table, durability={durability!r}")
    for _ in range(3):
        d.clear()
        with program(code, d.url, d._origin.options.table) as writer:
            assert writer.stdout
            told = [(int(writer.stdout.readline()), 0.0)]
            begin = time.monotonic()
            while time.monotonic() < begin + 1.5:
                told.append((int(writer.stdout.readline()), time.monotonic()))
            crash(directory)
            acknowledged = [int(line) for line in writer.stdout.read().split()] or [told[-1][0]]
        kept = list(d)
        assert kept == list(range(len(kept)))
        surely = acknowledged[-1] if durability == "sync" else max(n for n, when in told if when < begin + 0.5)
        assert len(kept) > surely


@pytest.mark.slow
@pytest.mark.parametrize("first", ALL)
@pytest.mark.parametrize("second", ALL)
def test_change(directory: Path, dictionary: Open, first: Durability, second: Durability) -> None:
    """The durability can be changed with the data in place, and counts from then on."""
    d = dictionary(durability=first)
    d.update({n: n for n in range(10)})
    d.set_durability(second)
    d.set_durability(second)
    assert list(d) == list(range(10))
    assert d.stats().emptied is False
    d["more"] = 1
    assert list(d)[-1] == "more"
    other = dictionary(d._origin.options.table, durability=second)
    time.sleep(1)
    crash(directory)
    emptied = second == "unlogged"
    for handle in (d, other):
        assert list(handle) == ([] if emptied else [*range(10), "more"])
        assert handle.stats().emptied is emptied
    d["last"] = 1
    d.set_durability(first)
    assert list(d)[-1] == "last"
    if first != "unlogged":
        assert d.stats().emptied is False
        time.sleep(1)
        crash(directory)
        assert "last" in d


def watch(server_url: str, table: str) -> None:
    """Note the setting under which each row is written and deleted."""
    body = f"BEGIN INSERT INTO {table}_seen VALUES (current_setting(''synchronous_commit'')); RETURN NULL; END"
    with psycopg.connect(server_url, autocommit=True) as connection:
        for statement in (
            f"CREATE TABLE {table}_seen (setting text)",
            f"CREATE FUNCTION {table}_see() RETURNS trigger LANGUAGE plpgsql AS '{body}'",
            f"CREATE TRIGGER see AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION {table}_see()",
        ):
            connection.execute(statement.encode())


def seen(server_url: str, table: str) -> list[str]:
    with psycopg.connect(server_url, autocommit=True) as connection:
        return [row[0] for row in connection.execute(f"DELETE FROM {table}_seen RETURNING setting".encode())]


@pytest.mark.parametrize(("durability", "setting"), [("async", "off"), ("sync", "on"), ("unlogged", "local")])
def test_each_statement(server_url: str, table: str, durability: Durability, setting: str) -> None:
    """Every write sets the durability for itself, and it ends with the statement or the transaction."""
    options = {"options": "-c synchronous_commit=local"}
    with (
        ConnectionPool[psycopg.Connection[Any]](server_url, min_size=1, max_size=1, kwargs=options) as pool,
        PgDict[Any, Any](pool=pool, table=table, durability=durability, cleanup="manual") as d,
    ):
        watch(server_url, table)

        def now() -> object:
            with pool.connection() as connection:
                return (connection.execute("SHOW synchronous_commit").fetchone() or [None])[0]

        def again(work: Callable[[], object]) -> None:
            d.update(n=1, text="text")
            seen(server_url, table)
            work()
            assert set(seen(server_url, table)) == {setting}, work
            assert now() == "local"

        def held() -> None:
            with d.mutate("n") as box:
                box.value += 1

        def block() -> None:
            with d.transaction():
                d["a"] = 1

        def expired() -> None:
            d.set("old", 1, ttl=0.001)
            time.sleep(0.01)
            seen(server_url, table)
            assert d.cleanup_expired() == 1

        for work in (
            partial(d.__setitem__, "a", 1),
            partial(d.set_nx, "new", 1),
            partial(d.setdefault, "other", 1),
            partial(d.increment, "n"),
            partial(d.increment, "n", 1.5),
            partial(d.increment, "n", 10**40),
            partial(d.compare_and_swap, "n", 1, 2),
            partial(d.get_and_set, "n", 2),
            partial(d.get_and_delete, "n"),
            partial(d.mutate, "n", lambda n: n + 1),
            partial(d.set_many, {"x": 1}),
            partial(d.delete_many, ["n"]),
            partial(d.expire, "n", 50),
            partial(d.move_to_end, "n"),
            partial(d.move_to_end, "n", last=False),
            partial(d.popitem),
            partial(d.namespace("ns").update, a=1),
            partial(d.delete_prefix, "n"),
            partial(d.clear),
            held,
            block,
            expired,
        ):
            again(work)
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(f"DROP FUNCTION {table}_see() CASCADE".encode())
            connection.execute(f"DROP TABLE {table}_seen".encode())


def test_contradiction(server_url: str, table: str) -> None:
    """An option that contradicts the table is an error that names both; what is left out is as the table has it."""
    with PgDict[Any, Any](server_url, table=table, durability="sync", order="key"):
        for options in ({"durability": "unlogged"}, {"order": "insertion"}):
            with pytest.raises(ConfigError, match="contradicts"):
                PgDict(server_url, table=table, **options)  # type: ignore[arg-type]
        with PgDict[Any, Any](server_url, table=table) as d:
            assert (d._session.table.durability, d._session.table.layout.order) == ("sync", "key")
            d.set_durability("unlogged")
    for durability in ("sync", "async"):
        with pytest.raises(ConfigError, match="contradicts"):
            PgDict(server_url, table=table, durability=durability)
    with PgDict[Any, Any](server_url, table=table) as d:
        assert d._session.table.durability == "unlogged"
        with pytest.raises(ConfigError, match="durability is one of"):
            d.set_durability("quick")  # type: ignore[arg-type]


def test_namespace(d: PgDict[Any, Any]) -> None:
    """What concerns the whole table is refused in a namespace, and does nothing."""
    users = d.namespace("users")
    users["ann"] = 1
    for method in (users.truncate, users.drop, partial(users.set_durability, "sync")):
        with pytest.raises(PgDictError, match="whole table"):
            method()
    assert d["users:ann"] == 1
    d.truncate()
    assert not d
    d["a"] = 1
    assert (list(d), d.stats().emptied) == (["a"], False)


def test_other_handle(server_url: str, table: str) -> None:
    """A change that another handle made is not made again, and statistics are of the table as it is."""
    with (
        PgDict[Any, Any](server_url, table=table, durability="sync") as one,
        PgDict[Any, Any](server_url, table=table) as other,
    ):
        one["a"] = 1
        one.set_durability("unlogged")
        assert other.stats().emptied is False
        other.set_durability("sync")
        one.set_durability("unlogged")
        assert one["a"] == other["a"] == 1
        with psycopg.connect(server_url) as connection:
            query = "SELECT relpersistence FROM pg_class WHERE relname = %s"
            assert connection.execute(query, (table,)).fetchone() == ("u",)
