# ruff: noqa: PT012 - it is the end of a longer block that raises
from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import psycopg
import pytest
from processes import at_once
from psycopg import pq
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

from pgdict import ConfigError, ConnectionFailed, PgDict, PgDictError, QueryFailed
from pgdict.operations import many

IDLE, INTRANS = pq.TransactionStatus.IDLE, pq.TransactionStatus.INTRANS
Connection = psycopg.Connection[Any]


class Oops(Exception):
    pass


@pytest.fixture
def connection(server_url: str, table: str) -> Iterator[Connection]:
    """The application's connection, with a business table."""
    with psycopg.connect(server_url) as connection:
        connection.execute(f"CREATE TABLE {table}_business (n int)".encode())
        connection.commit()
        yield connection
        connection.rollback()
        connection.execute(f"DROP TABLE {table}_business".encode())


@pytest.fixture
def other(server_url: str, table: str) -> Iterator[PgDict[Any, Any]]:
    """Somebody else with the same table."""
    with PgDict[Any, Any](server_url, table=table) as other:
        yield other


def work(connection: Connection, table: str) -> None:
    connection.execute(f"INSERT INTO {table}_business VALUES (1)".encode())


def rows(connection: Connection, table: str) -> object:
    (count,) = connection.execute(f"SELECT count(*) FROM {table}_business".encode()).fetchone() or (None,)
    return count


def settings(connection: Connection) -> list[Any]:
    """Return all settings of the connection, the client's and the server's."""
    client = [connection.autocommit, connection.isolation_level, connection.row_factory, connection.prepare_threshold]
    cursor = psycopg.Cursor(connection, row_factory=psycopg.rows.tuple_row)
    server = cursor.execute("SELECT name, setting FROM pg_settings ORDER BY name").fetchall()
    return client + server


def test_together(connection: Connection, other: PgDict[Any, Any], table: str) -> None:
    """What the dictionary does is committed and rolled back with the application's own rows, whichever came first."""
    d = PgDict[Any, Any](connection=connection, table=table)
    for first in (True, False):
        if first:
            work(connection, table)
        d["a"] = 1
        work(connection, table)
        assert d["a"] == 1
        assert "a" not in other
        connection.rollback()
        assert "a" not in d
        assert rows(connection, table) == 0
        connection.rollback()
    d["a"] = 1
    work(connection, table)
    connection.commit()
    assert other["a"] == 1
    assert rows(connection, table) == 1


def test_idle(connection: Connection, other: PgDict[Any, Any], table: str) -> None:
    """On an idle connection that is not in autocommit the first operation, a read as well, begins the transaction."""
    d = PgDict[Any, Any](connection=connection, table=table)
    assert connection.info.transaction_status == IDLE
    d.get("a")
    assert connection.info.transaction_status == INTRANS
    connection.rollback()
    d.increment("n")
    d.update(a=1)
    list(d)
    assert connection.info.transaction_status == INTRANS
    assert not other
    connection.rollback()
    assert not other


def test_isolation_level(connection: Connection, other: PgDict[Any, Any], table: str) -> None:
    """The transaction begins as the application has set it for its connection."""
    d = PgDict[Any, Any](connection=connection, table=table)
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    other["a"] = 1
    assert d["a"] == 1
    other["a"] = 2
    assert d["a"] == 1
    with pytest.raises(QueryFailed) as caught:
        d["a"] = 3
    assert (caught.value.sqlstate, caught.value.recoverable) == ("40001", True)
    connection.rollback()
    assert d["a"] == 2
    connection.rollback()
    connection.isolation_level = None


def test_autocommit(connection: Connection, other: PgDict[Any, Any], table: str) -> None:
    """In autocommit each operation is its own transaction, and a transaction block is one."""
    connection.autocommit = True
    d = PgDict[Any, Any](connection=connection, table=table)
    d["a"] = 1
    assert other["a"] == 1
    assert connection.info.transaction_status == IDLE
    with pytest.raises(Oops), d.transaction():
        d["a"] = 2
        work(connection, table)
        raise Oops
    with d.transaction():
        d["b"] = 2
        work(connection, table)
        assert "b" not in other
    assert dict(other.items()) == {"a": 1, "b": 2}
    assert rows(connection, table) == 1


@pytest.mark.parametrize("autocommit", [False, True])
def test_in_its_block(connection: Connection, other: PgDict[Any, Any], table: str, autocommit: bool) -> None:
    """Inside the application's `connection.transaction()` all is part of that block, savepoints and all."""
    connection.autocommit = autocommit
    d = PgDict[Any, Any](connection=connection, table=table)
    with pytest.raises(Oops), connection.transaction():
        d["a"] = 1
        raise Oops
    with connection.transaction():
        d["b"] = 2
        with pytest.raises(Oops), connection.transaction():
            d["c"] = 3
            raise Oops
        with d.transaction():
            d["d"] = 4
            with connection.transaction():
                d["e"] = 5
        with pytest.raises(Oops), d.transaction():
            d["f"] = 6
            raise Oops
        assert not other
    assert list(other) == ["b", "d", "e"]
    assert connection.info.transaction_status == IDLE
    connection.autocommit = False


def test_nested_block(connection: Connection, other: PgDict[Any, Any], table: str) -> None:
    """A transaction block is a savepoint in the application's transaction, begun if need be, and commits nothing."""
    d = PgDict[Any, Any](connection=connection, table=table)
    with d.transaction():
        d["a"] = 1
    work(connection, table)
    with pytest.raises(Oops), d.transaction():
        d["b"] = 2
        raise Oops
    with d.mutate("list", default=list) as box:
        box.value.append(1)
    assert dict(d.items()) == {"a": 1, "list": [1]}
    assert not other
    connection.rollback()
    assert not d
    assert rows(connection, table) == 0


def test_settings(connection: Connection, table: str) -> None:
    """Whatever the application has set on its connection works, and stays as it was."""
    connection.row_factory = dict_row
    connection.prepare_threshold = 0
    connection.execute("SET synchronous_commit = local")
    connection.execute("SET search_path = pg_catalog, public")
    connection.commit()
    before = settings(connection)
    connection.commit()
    for durability in ("unlogged", "async", "sync"):
        d = PgDict[Any, Any](connection=connection, table=table, durability=durability, schema="public")
        d.update({n: n for n in range(20)}, text="text")
        for _ in range(8):
            assert d[3] == 3
            d.increment(4)
        with d.mutate(5) as box:
            box.value += 1
        assert (list(d)[:2], d.pop(19), d.scan_keys("t").__next__(), len(d)) == ([0, 1], 19, "text", 20)
        assert settings(connection) == before
        d.set_durability("sync")
        d["a"] = 1
        assert settings(connection) == before
        connection.rollback()
        d.drop()
        connection.commit()
        assert settings(connection) == before
        connection.commit()


def test_errors(connection: Connection, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python refuses leaves the application's transaction alone."""
    d = PgDict[Any, Any](connection=connection, table=table)
    work(connection, table)
    d["text"] = "text"
    refused: list[tuple[Callable[[], object], type[Exception]]] = [
        (lambda: d.increment("text"), TypeError),
        (lambda: d.increment("text", 1.5), TypeError),
        (lambda: d.increment("text", 10**40), TypeError),
        (lambda: d.set("a", object()), TypeError),
        (lambda: d.set("a" * 5000, 1), ValueError),
        (lambda: d.pop("nothing"), KeyError),
        (lambda: d.mutate("nothing", str), KeyError),
        (lambda: d.expire("text", -1), ValueError),
        (lambda: d.namespace("empty").popitem(), KeyError),
    ]
    for call, error in refused:
        with pytest.raises(error):
            call()
    assert rows(connection, table) == 1
    connection.execute(f'ALTER TABLE "{table}" ADD CHECK (length(value) < 100)'.encode())
    monkeypatch.setattr(many, "BUFFER", 2_000)
    with pytest.raises(QueryFailed, match="check"):  # in a savepoint, as they are several statements
        d.set_many(dict.fromkeys(range(50), "x" * 200))
    with pytest.raises(QueryFailed, match="check"), d.mutate("text") as box:
        box.value = "x" * 200
    assert rows(connection, table) == 1
    with pytest.raises(QueryFailed, match="check"):  # one statement, as the application's own would be
        d["a"] = "x" * 200
    assert connection.info.transaction_status == pq.TransactionStatus.INERROR
    with pytest.raises(QueryFailed, match="aborted"):
        d.get("a")
    connection.rollback()
    assert "text" not in d


def test_creation(connection: Connection, server_url: str, table: str) -> None:
    """In a transaction the table's creation is part of it; on an idle connection it is there, and the connection idle."""
    work(connection, table)
    d = PgDict[Any, Any](connection=connection, table=table)
    d["a"] = 1
    connection.rollback()
    with pytest.raises(ConfigError, match="does not exist"):
        PgDict(connection=connection, table=table, create=False)
    connection.rollback()
    d = PgDict[Any, Any](connection=connection, table=table)
    assert connection.info.transaction_status == IDLE
    connection.rollback()
    assert not d


def test_failed_creation(connection: Connection, table: str) -> None:
    """An opening that fails leaves the application's transaction usable."""
    work(connection, table)
    for options, error in (
        ({"table": f"{table}_business"}, ConfigError),
        ({"schema": "pg_toast"}, PgDictError),
        ({"create": False}, ConfigError),
    ):
        with pytest.raises(error):
            PgDict(connection=connection, **({"table": table} | options))
    assert rows(connection, table) == 1


def test_no_chores(connection: Connection, table: str) -> None:
    """Nothing expired is removed in the application's transaction, nor swept from another thread."""
    connection.autocommit = True
    d = PgDict[Any, Any](connection=connection, table=table)
    d.set("a", 1, ttl=0.001)
    d.get("a")
    d.set("b", 1, ttl=50)
    (count,) = connection.execute(f'SELECT count(*) FROM "{table}"'.encode()).fetchone() or (None,)
    assert count == 2
    connection.autocommit = False
    with pytest.raises(ConfigError, match="background"):
        PgDict(connection=connection, table=table, cleanup="background")


def test_threads(connection: Connection, table: str) -> None:
    """Threads take turns on the one connection; a transaction block keeps the others out."""
    connection.autocommit = True
    d = PgDict[Any, Any](connection=connection, table=table)

    def count(n: int) -> None:
        for _ in range(50):
            d.increment("n")
            with d.transaction():
                value = d.get("m", 0)
                assert d.get(n, 0) >= 0
                d["m"] = value + 1

    assert at_once(*[partial(count, n) for n in range(4)]) == [None] * 4
    assert (d["n"], d["m"]) == (200, 200)
    connection.autocommit = False


def test_close(connection: Connection, table: str) -> None:
    """Closing the dictionary leaves the connection open, and its transaction as it is."""
    with PgDict[Any, Any](connection=connection, table=table) as d:
        d["a"] = 1
    assert connection.info.transaction_status == INTRANS
    with pytest.raises(PgDictError, match="closed"):
        d.get("a")
    assert rows(connection, table) == 0
    connection.commit()
    assert PgDict[Any, Any](connection=connection, table=table)["a"] == 1


def test_closed_connection(server_url: str, table: str) -> None:
    """A connection that the application has closed is a clear error."""
    with psycopg.connect(server_url) as connection:
        d = PgDict[Any, Any](connection=connection, table=table)
    calls: list[Callable[[], object]] = [lambda: d.get("a"), lambda: d.set("a", 1), lambda: d.transaction().__enter__()]
    for call in calls:
        with pytest.raises(ConnectionFailed, match="closed"):
            call()
    with pytest.raises(ConnectionFailed, match="closed"):
        PgDict(connection=connection, table=table)


def test_busy_connection(connection: Connection, table: str) -> None:
    """While the application has a COPY or a pipeline open on the connection, the dictionary refuses, and disturbs neither."""
    d = PgDict[Any, Any](connection=connection, table=table, timeout=0.2)
    with connection.cursor() as cursor, cursor.copy(f"COPY {table}_business FROM STDIN".encode()) as copy:
        copy.write_row([1])
        with pytest.raises(PgDictError, match="busy"):
            d.get("a")
        copy.write_row([2])
    assert rows(connection, table) == 2
    with connection.pipeline():
        work(connection, table)
        with pytest.raises(PgDictError, match="pipeline"):
            d.get("a")
    assert rows(connection, table) == 3
    d["a"] = 1
    connection.rollback()


def test_encoding(connection: Connection, server_url: str, table: str) -> None:
    """A client encoding other than UTF8, which would store other characters, is refused."""
    connection.execute("SET client_encoding = latin1")
    with pytest.raises(ConfigError, match="client_encoding"):
        PgDict(connection=connection, table=table)
    connection.rollback()
    with (
        ConnectionPool[Connection](server_url, min_size=1, max_size=1, kwargs={"client_encoding": "latin1"}) as pool,
        pytest.raises(ConfigError, match="client_encoding"),
    ):
        PgDict(pool=pool, table=table)


def refusal_in_fork(d: PgDict[Any, Any]) -> str:
    """Return what a forked child is told that uses `d`."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            d.get("a")
        except PgDictError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as said:
        return said.read()


def test_fork(connection: Connection, table: str) -> None:
    """A forked child, which must not use its parent's connection, is told so."""
    d = PgDict[Any, Any](connection=connection, table=table)
    d["a"] = 1
    assert "parent process" in refusal_in_fork(d)
    assert d["a"] == 1


def test_set_durability(connection: Connection, other: PgDict[Any, Any], table: str) -> None:
    """Changing durability is part of the application's transaction, too."""
    d = PgDict[Any, Any](connection=connection, table=table)
    d["a"] = 1
    connection.commit()
    d.set_durability("sync")
    assert (d["a"], d.stats().emptied) == (1, False)
    connection.rollback()
    assert d["a"] == 1
    connection.commit()
    d.truncate()
    assert not d
    connection.rollback()
    assert d["a"] == 1
    connection.rollback()


# The application's pool ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("autocommit", [False, True])
def test_pool(server_url: str, table: str, autocommit: bool) -> None:
    """Every operation works on the application's pool, even of one connection, and gives it back clean."""
    with (
        ConnectionPool[Connection](server_url, min_size=1, max_size=1, timeout=3, kwargs={"autocommit": autocommit}) as pool,
        PgDict[Any, Any](pool=pool, table=table, ttl=50) as d,
    ):
        d.update({n: n for n in range(20)})
        with d.transaction():
            d["a"] = sum(value for value in d.values())
            d.namespace("x")["b"] = d.increment("n")
            with d.mutate("list", default=list) as box:
                box.value.append(d["a"])
        with d.snapshot() as then, d.lock("name"):
            d["a"] = 0
            assert (then["a"], d["a"]) == (190, 0)
        with pytest.raises(Oops), d.transaction():
            d.clear()
            raise Oops
        with pool.connection() as connection:
            assert connection.info.transaction_status == IDLE
            assert connection.autocommit == autocommit
        assert len(d) == 24
        assert at_once(*[lambda: [d.increment("n") for _ in range(25)] and None] * 4) == [None] * 4
        d.close()
        with pytest.raises(PgDictError, match="closed"):
            d.get("a")
        with pool.connection() as connection:
            connection.execute("SELECT 1")


@pytest.mark.parametrize("autocommit", [False, True])
def test_pool_whole_table(server_url: str, table: str, autocommit: bool) -> None:
    """What is done to the whole table is done for good, whether the pool's connections commit by themselves or not."""
    with (
        ConnectionPool[Connection](server_url, min_size=1, max_size=1, timeout=3, kwargs={"autocommit": autocommit}) as pool,
        PgDict[Any, Any](pool=pool, table=table) as d,
        PgDict[Any, Any](server_url, table=table) as other,
    ):
        d["a"] = 1
        d.set_durability("sync")
        assert other.stats().emptied is False
        assert other == {"a": 1}
        d.truncate()
        assert not other
        d.drop()
        with pytest.raises(QueryFailed, match="does not exist"):
            other.get("a")


def test_pool_exhausted(server_url: str, table: str) -> None:
    """When the application keeps all its connections, the dictionary waits for `timeout` and says so."""
    with (
        ConnectionPool[Connection](server_url, min_size=1, max_size=1) as pool,
        PgDict[Any, Any](pool=pool, table=table, timeout=0.3) as d,
    ):
        with pool.connection(), pytest.raises(ConnectionFailed):
            d.get("a")
        with pool.connection():
            release = threading.Timer(0.1, lambda: None)
            release.start()
            with d.lock("not from the pool", timeout=1):
                pass
        assert d.get("a") is None


def test_pool_fork(server_url: str, table: str) -> None:
    """A forked child, which must not use its parent's pool, is told so."""
    with (
        ConnectionPool[Connection](server_url, min_size=1, max_size=1) as pool,
        PgDict[Any, Any](pool=pool, table=table) as d,
    ):
        d["a"] = 1
        assert "parent process" in refusal_in_fork(d)
        assert d["a"] == 1
