# ruff: noqa: PT012 - it is the end of a longer block that raises
from __future__ import annotations

import os
import time
from typing import Any

import psycopg
import pytest
from processes import at_once, eventually
from psycopg_pool import ConnectionPool

from pgdict import PgDict, PgDictError


class Oops(Exception):
    pass


def snapshots(server_url: str) -> int:
    """Return how many transactions of others are open in the server."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'"
    with psycopg.connect(server_url) as connection:
        (count,) = connection.execute(query).fetchone() or (0,)
        return int(count)


def test_agreement(d: PgDict[Any, Any]) -> None:
    """All that a snapshot tells is of one moment, however the dictionary changes meanwhile."""
    users = d.namespace("users")
    d.update({n: n for n in range(12_000)})
    users.update({str(n): n for n in range(100)})
    with d.snapshot() as then:
        names = then.namespace("users")
        pages = iter(then.items())
        assert next(pages) == (0, 0)
        d.update(dict.fromkeys(range(12_000), "new"))
        d.delete_many(range(6_000, 12_000))
        users.clear()
        d["more"] = 1
        d.move_to_end(5)
        assert list(pages) == [*((n, n) for n in range(1, 12_000)), *((f"users:{n}", n) for n in range(100))]
        assert len(then) == then.count() == 12_100
        assert (then[7_000], then.get("more"), "users:5" in then, then.ttl(5)) == (7_000, None, True, None)
        assert names == {str(n): n for n in range(100)}
        assert names.get_many(["5", "500"]) == {"5": 5}
        assert list(names.scan("1", limit=2)) == [("1", 1), ("10", 10)]
        assert list(reversed(then))[-1] == 0
        assert then.entry(5).value == 5
        assert then.stats().live == 12_100
        assert (len(d), d[5], d["more"]) == (6_001, "new", 1)


def test_expiry_frozen(d: PgDict[Any, Any]) -> None:
    """Nothing expires in a snapshot."""
    d.set("a", 1, ttl=0.3)
    d.namespace("n").set("a", 1, ttl=0.3)
    with d.snapshot() as then:
        left = then.ttl("a")
        time.sleep(0.4)
        assert "a" not in d
        assert (then["a"], list(then), len(then), then.ttl("a"), len(then.namespace("n"))) == (1, ["a", "n:a"], 2, left, 1)
        assert then.stats().expired == 0
        d.cleanup_expired()
        assert then["a"] == 1


def test_read_only(d: PgDict[Any, Any], tmp_path: Any) -> None:
    """A snapshot refuses to be changed, by name, and goes on."""
    d.update(a=1, b=[2])
    file = tmp_path / "dump"
    d.dump(file)
    with d.snapshot() as then:
        for change in (
            lambda: then.set("a", 2),
            lambda: then.update(a=2),
            lambda: then.pop("a"),
            lambda: then.popitem(),
            lambda: then.clear(),
            lambda: then.increment("a"),
            lambda: then.setdefault("c", 1),
            lambda: then.compare_and_swap("a", 1, 2),
            lambda: then.mutate("b", lambda b: [*b, 1]),
            lambda: then.mutate("b").__enter__(),
            lambda: then.expire("a", 1),
            lambda: then.cleanup_expired(),
            lambda: then.move_to_end("a"),
            lambda: then.namespace("n").set("a", 1),
            lambda: then.load(file),
            lambda: then.truncate(),
            lambda: then.drop(),
            lambda: then.set_durability("sync"),
        ):
            with pytest.raises(PgDictError, match="read-only"):
                change()
            assert then.copy() == {"a": 1, "b": [2]}
        with pytest.raises(TypeError, match="pickle"):
            then.__reduce__()


def test_nesting(d: PgDict[Any, Any]) -> None:
    """A snapshot in a transaction sees what is committed; snapshots nest, and have blocks of their own."""
    d["a"] = 1
    with d.transaction():
        d["a"] = 2
        with d.snapshot() as then:
            d["a"] = 3
            assert (then["a"], d["a"]) == (1, 3)
            with then.transaction(), then.transaction():
                assert then["a"] == 1
    with d.snapshot() as first:
        d["a"] = 4
        with d.snapshot() as second, first.snapshot() as third:
            d["a"] = 5
            assert (first["a"], second["a"], third["a"], d["a"]) == (3, 4, 4, 5)


def test_end(d: PgDict[Any, Any], server_url: str) -> None:
    """At its end a snapshot is closed, on an exception as well, and so is its connection."""
    before = snapshots(server_url)
    d["a"] = 1
    with pytest.raises(Oops), d.snapshot() as then:
        names = then.namespace("n")
        keys = iter(then)
        raise Oops
    assert eventually(lambda: snapshots(server_url) == before)
    for use in (lambda: then["a"], lambda: len(names), lambda: next(keys), lambda: then.snapshot().__enter__()):
        with pytest.raises(PgDictError, match="closed"):
            use()
    assert "closed" in repr(then)
    with d.snapshot() as then:
        then.close()
        assert d["a"] == 1


def test_threads(d: PgDict[Any, Any]) -> None:
    """Threads may read one snapshot together."""
    d.update({n: n for n in range(100)})
    with d.snapshot() as then:
        d.clear()
        assert at_once(*[lambda: sum(then.values()) + sum(then[n] for n in range(100))] * 6) == [9_900] * 6


def test_small_pool(server_url: str, table: str) -> None:
    """A snapshot needs no connection of the pool."""
    with (
        ConnectionPool(server_url, min_size=1, max_size=1, timeout=2) as pool,
        PgDict[Any, Any](pool=pool, table=table) as d,
        d.transaction(),
    ):
        d["a"] = 1
        with d.snapshot() as then:
            assert not then


def test_key_order(server_url: str, table: str) -> None:
    """Snapshots of a dictionary in key order agree as well."""
    with PgDict[Any, Any](server_url, table=table, order="key") as d:
        d.update(b=1, a=2)
        with d.snapshot() as then:
            d.update(c=3)
            assert list(then.items()) == [("a", 2), ("b", 1)]


def test_fork(d: PgDict[Any, Any]) -> None:
    """A child that is forked inside leaves its parent's snapshot alone, and is told that it cannot use it."""
    d["a"] = 1
    reader, writer = os.pipe()
    child = 0
    with d.snapshot() as then:
        d["a"] = 2
        if (child := os.fork()) == 0:
            try:
                then.get("a")
            except PgDictError as error:
                os.write(writer, str(error).encode())
        else:
            os.close(writer)
            os.waitpid(child, 0)
            assert (then["a"], len(then)) == (1, 1)
    if child == 0:
        try:
            os.write(writer, b"; live: %d" % d["a"])
        finally:
            os._exit(0)
    with os.fdopen(reader) as said:
        assert "; live: 2" in (text := said.read())
        assert "parent process" in text
