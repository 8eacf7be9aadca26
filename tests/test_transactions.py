# ruff: noqa: PT012 - it is the end of a longer block that raises
from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import psycopg
import pytest
from processes import at_once, eventually, program, said
from psycopg.conninfo import make_conninfo
from psycopg_pool import ConnectionPool

from pgdict import ConnectionFailed, PgDict, PgDictError, QueryFailed
from pgdict.operations import many


class Oops(Exception):
    pass


@pytest.fixture
def single(server_url: str, table: str) -> Iterator[PgDict[Any, Any]]:
    """A dictionary with one connection, which can wait on itself for two seconds."""
    with PgDict[Any, Any](server_url, table=table, max_size=1, timeout=2) as one:
        yield one


def backend(d: PgDict[Any, Any]) -> int:
    with d._session.connection() as connection:
        return connection.info.backend_pid


def terminate(server_url: str, pid: int) -> None:
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))


def break_(d: PgDict[Any, Any]) -> None:
    """Let the server refuse a statement."""
    with d._session.connection() as connection:
        connection.execute("SELECT 1 / 0")


def test_commit(d: PgDict[Any, Any], server_url: str, table: str) -> None:
    """What a block writes is seen by others at its end, all at once."""
    with PgDict[Any, Any](server_url, table=table) as other:
        with d.transaction():
            d["a"] = 1
            d["b"] = 2
            assert dict(d.items()) == {"a": 1, "b": 2}
            assert not other
        assert dict(other.items()) == {"a": 1, "b": 2}


@pytest.mark.parametrize("error", [Oops, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_rollback(d: PgDict[Any, Any], error: type[BaseException]) -> None:
    """An exception of any kind undoes the block and goes on."""
    d["a"] = 1
    with pytest.raises(error), d.transaction():
        d["a"] = 2
        del d["a"]
        raise error
    assert dict(d.items()) == {"a": 1}


def test_rollback_quietly(d: PgDict[Any, Any]) -> None:
    """`psycopg.Rollback` undoes the block, inner or outer, and nothing is raised."""
    with d.transaction():
        d["a"] = 1
        with d.transaction():
            d["b"] = 2
            raise psycopg.Rollback
        d["c"] = 3
    assert list(d) == ["a", "c"]
    with d.transaction():
        d["d"] = 4
        raise psycopg.Rollback
    assert list(d) == ["a", "c"]


def test_nesting(d: PgDict[Any, Any]) -> None:
    """An inner block is a savepoint: its rollback keeps what the outer one did, and the outer one's takes all."""
    with d.transaction():
        d["outer"] = 1
        with pytest.raises(Oops), d.transaction():
            d["inner"] = 2
            with d.transaction():
                d["innermost"] = 3
            raise Oops
        with d.transaction():
            d["second"] = 4
    assert list(d) == ["outer", "second"]
    with pytest.raises(Oops), d.transaction():
        with d.transaction():
            d["gone"] = 5
        raise Oops
    assert list(d) == ["outer", "second"]


def test_thread(d: PgDict[Any, Any]) -> None:
    """A transaction is that of its thread: others do not see it and do not join it."""
    with pytest.raises(Oops), d.transaction():
        d["mine"] = 1
        assert at_once(lambda: d.get("mine"), lambda: d.set("theirs", 2)) == [None, None]
        raise Oops
    assert dict(d.items()) == {"theirs": 2}


def test_everything_belongs(single: PgDict[Any, Any]) -> None:
    """Every operation, namespace and iteration inside is part of the transaction, on one connection."""
    d, users = single, single.namespace("users")
    d.update({n: n for n in range(10)})
    with pytest.raises(Oops), d.transaction():
        users["ann"] = 1
        for key, value in d.items():
            if isinstance(key, int):
                d[key] = value + 1
        d.increment("n", 5)
        d.increment("n", 0.5)
        d.mutate("list", lambda items: [*items, 1], default=list)
        with d.mutate("list") as box:
            box.value.append(2)
        d.set_many({"x": 1, "y": 2}, ttl=60)
        assert (d["list"], d["n"], users.get_and_set("ann", 2), d.popitem()) == ([1, 2], 5.5, 1, ("y", 2))
        assert (d.pop("x"), d.set_nx("x", 1), d.setdefault("x", 2), d.get_and_delete("x")) == (1, True, 1, 1)
        assert d.compare_and_swap(3, 4, 5)
        assert (d.delete_many([0, 1]), d.delete_prefix("us"), d.count(), bool(d)) == (2, 1, 10, True)
        assert (d.expire(2, 50), d.persist(2), d.ttl(2), d.entry(2).value) == (True, True, None, 3)
        d.move_to_end(2)
        assert list(d) == [3, 4, 5, 6, 7, 8, 9, "n", "list", 2]
        assert (list(d.scan_keys("l")), d.get_many([2, 4]), 4 in d, len(d)) == (["list"], {2: 3, 4: 5}, True, 10)
        assert d.stats().live == 10
        del d[4]
        d.clear()
        raise Oops
    assert dict(d.items()) == {n: n for n in range(10)}


def test_large_batch_inside(single: PgDict[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of any size, from a generator that reads and writes the dictionary, uses the block's own connection."""
    monkeypatch.setattr(many, "BUFFER", 10_000)

    def pairs() -> Iterator[tuple[Any, Any]]:
        for n in range(300):
            yield n, single.increment("calls")

    with pytest.raises(Oops), single.transaction():
        single.set_many(pairs())
        assert (len(single), single["calls"], single[299]) == (301, 300, 300)
        raise Oops
    assert not single
    single.set_many(pairs())
    assert (len(single), single["calls"]) == (301, 300)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda d: d.increment("text"), TypeError),
        (lambda d: d.set("a", object()), TypeError),
        (lambda d: d["nothing"], KeyError),
        (lambda d: d.set("a" * 5000, 1), ValueError),
        (lambda d: d.popitem(), KeyError),
        (lambda d: d.set_many([("a", 1), ("b", object())]), TypeError),
    ],
)
def test_python_errors(d: PgDict[Any, Any], call: Callable[[PgDict[Any, Any]], object], error: type[Exception]) -> None:
    """What Python refuses inside leaves the transaction as it was."""
    with d.transaction():
        d["before"] = 1
        if error is KeyError:
            d.clear()
        else:
            d["text"] = "text"
        with pytest.raises(error):
            call(d)
        d["after"] = 2
    assert d["after"] == 2


def test_server_error(d: PgDict[Any, Any]) -> None:
    """What the server refuses fails the block: it says so at its end if not before, and nothing of it is done."""
    with pytest.raises(QueryFailed, match="division"), d.transaction():
        d["a"] = 1
        break_(d)
    with pytest.raises(QueryFailed, match="rolled back") as caught, d.transaction():
        d["a"] = 1
        with pytest.raises(QueryFailed, match="division"):
            break_(d)
    assert caught.value.sqlstate == "25P02"
    with d.transaction():
        d["kept"] = 1
        with pytest.raises(QueryFailed, match="rolled back"), d.transaction():
            d["a"] = 1
            with pytest.raises(QueryFailed, match="division"):
                break_(d)
    assert dict(d.items()) == {"kept": 1}


def test_lost_connection(d: PgDict[Any, Any], server_url: str) -> None:
    """A connection that is lost inside is an error of the block, swallowed or not; then all goes on."""
    for swallow in (False, True):
        with pytest.raises(ConnectionFailed), d.transaction():
            d["a"] = 1
            terminate(server_url, backend(d))
            if swallow:
                with pytest.raises(ConnectionFailed):
                    d["b"] = 2
        assert not d
        d["c"] = 3
        d.clear()


def test_commit_unsent(d: PgDict[Any, Any]) -> None:
    """A connection that is found lost before the commit is sent has surely not applied it, and the error says so."""
    with pytest.raises(ConnectionFailed) as caught, d.transaction():
        d["a"] = 1
        with d._session.connection() as connection, socket.socket(fileno=os.dup(connection.fileno())) as wire:
            wire.shutdown(socket.SHUT_RDWR)
    assert not caught.value.maybe_applied
    assert caught.value.recoverable
    assert not d


def test_begin_after_restart(d: PgDict[Any, Any], server_url: str) -> None:
    """A transaction does not fail for a connection that was lost before it began."""
    d["a"] = 1
    terminate(server_url, backend(d))
    with d.transaction():
        d["a"] = 2
    assert d["a"] == 2


def test_failed_commit(d: PgDict[Any, Any], server_url: str, table: str) -> None:
    """A commit that the server refuses raises, and gives the connection back."""
    with psycopg.connect(server_url) as connection:
        connection.execute(f"ALTER TABLE {table} ADD CONSTRAINT one UNIQUE (value) DEFERRABLE INITIALLY DEFERRED".encode())
    for _ in range(10):
        with pytest.raises(QueryFailed, match="duplicate"), d.transaction():
            d["a"] = d["b"] = 1
    assert not d


def test_connections_return(single: PgDict[Any, Any]) -> None:
    """However a block ends, in whatever thread, its connection is there for the next."""

    def fail(error: type[BaseException]) -> None:
        with single.transaction():
            single["a"] = 1
            raise error

    for error in (Oops, SystemExit, KeyboardInterrupt):
        assert isinstance(at_once(partial(fail, error))[0], error)
    single["a"] = 2
    assert single["a"] == 2


def test_no_chores(d: PgDict[Any, Any], server_url: str, table: str) -> None:
    """Reads and writes inside do not remove expired rows."""
    d.set_many({n: n for n in range(5)}, ttl=0.01)
    time.sleep(0.05)

    def rows() -> object:
        with psycopg.connect(server_url) as connection:
            found = connection.execute(f"SELECT count(*) FROM {table} WHERE expires_at < now()".encode()).fetchone()
            return found and found[0]

    with d.transaction():
        assert d.get(1) is None
        assert 2 not in d
        d.set("new", 1, ttl=50)
    assert rows() == 5
    assert d.get(1) is None
    assert rows() == 4


def test_nothing_prepared(server_url: str, table: str) -> None:
    """Nothing inside is prepared: that could fail, and would fail the transaction."""
    with (
        ConnectionPool(server_url, min_size=1, max_size=1, kwargs={"prepare_threshold": None}) as pool,
        PgDict[Any, Any](pool=pool, table=table) as d,
    ):

        def prepared() -> object:
            with pool.connection() as connection:
                row = connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()
                return row and row[0]

        with d.transaction():
            for _ in range(10):
                d["a"] = d.increment("n") + len(d.get_many(["a"]))
        assert prepared() == 0
        d["a"] = 1
        assert prepared() == 1


def test_deadlock(server_url: str, table: str) -> None:
    """A deadlock between two transactions fails one of them, recoverably; it is not repeated behind one's back."""
    with PgDict[Any, Any](make_conninfo(server_url, options="-c deadlock_timeout=100ms"), table=table) as d:
        both = threading.Barrier(2)

        def cross(first: str, second: str) -> None:
            with d.transaction():
                d[first] = first
                both.wait()
                d[second] = first

        results = at_once(lambda: cross("a", "b"), lambda: cross("b", "a"))
        (failed,) = [error for error in results if error is not None]
        assert isinstance(failed, QueryFailed)
        assert failed.recoverable
        assert failed.sqlstate == "40P01"
        assert d["a"] == d["b"]


def test_serialization(server_url: str, table: str) -> None:
    """A serialization failure inside is raised as recoverable; outside, the statement is repeated."""
    url = make_conninfo(server_url, options="-c default_transaction_isolation=serializable")
    with PgDict[Any, Any](url, table=table) as d:
        d["n"] = 0
        with pytest.raises(QueryFailed) as caught, d.transaction():
            before = d["n"]
            assert at_once(lambda: d.increment("n")) == [1]
            d["n"] = before + 1
        assert caught.value.sqlstate == "40001"
        assert caught.value.recoverable
        assert at_once(*[lambda: [d.increment("n") for _ in range(25)]] * 4)
        assert d["n"] == 101


def test_close_inside(d: PgDict[Any, Any]) -> None:
    """A dictionary that is closed inside a block still ends it, and is closed for all else."""
    with d.transaction():
        d["a"] = 1
        d.close()
    with pytest.raises(PgDictError, match="closed"):
        d.get("a")


def test_fork(d: PgDict[Any, Any]) -> None:
    """A child that is forked inside is outside of its parent's transaction, and leaves it alone when it leaves the block."""
    reader, writer = os.pipe()
    child = 0
    with d.transaction():
        d["a"] = 1
        with d.transaction():
            d["b"] = 2
            if (child := os.fork()) == 0:
                os.write(writer, repr(d.get("a")).encode())
            else:
                os.close(writer)
                os.waitpid(child, 0)
                d["c"] = 3
    if child == 0:
        try:
            d["child"] = 1
            os.write(writer, b", wrote")
        finally:
            os._exit(0)
    with os.fdopen(reader) as said:
        assert said.read() == "None, wrote"
    assert sorted(d) == ["a", "b", "c", "child"]


OPERATIONS = {
    "transaction": """
        with d.transaction():
            for key in "abc":
                d["pair", key] = n
    """,
    "nested": """
        with d.transaction():
            d["pair", "a"] = n
            with d.transaction():
                d.update({("pair", "b"): n, ("pair", "c"): n})
    """,
    "batch": """
        d.update({("pair", key): n for key in "abc"} | {("more", m): n for m in range(500)})
    """,
    "staged": """
        many.BUFFER = 5_000
        d.update({("pair", key): n for key in "abc"} | {("more", m): n for m in range(500)})
    """,
    "delete": """
        d.update({("pair", key): n for key in "abc"})
        d.delete_many([("pair", key) for key in "abc"])
    """,
    "mutate": """
        with d.mutate("list", default=list) as box:
            box.value[:] = [n] * 1000
            d.update({("pair", key): n for key in "abc"})
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_kill(server_url: str, table: str, operation: str) -> None:
    """A client that is killed at any moment leaves the data as before or after an operation, and nothing locked."""
    code = f"""
import itertools
from pgdict.operations import many
d = PgDict(url, table=table)
print("ready", flush=True)
for n in itertools.count():
{OPERATIONS[operation]}
    """.replace("\n        ", "\n    ")
    with PgDict[Any, Any](server_url, table=table) as d:
        for _ in range(5):
            with program(code, server_url, table) as client:
                assert said(client) == "ready"
                time.sleep(random.random() * 0.3)
                client.kill()
            assert at_once(lambda: d.set("probe", 1), timeout=5) == [None]
            values = [d.get(("pair", key)) for key in "abc"]
            assert eventually(lambda: len({d.get(("pair", key)) for key in "abc"}) == 1, 2), values
            begin = time.monotonic()
            d.update({("pair", key): -1 for key in "abc"} | {("more", m): -1 for m in range(500)})
            assert time.monotonic() - begin < 5
            assert len({d[key] for key in d if isinstance(key, tuple)}) == 1
