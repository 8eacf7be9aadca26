"""Time to live: what may be given, what is seen of it, and what becomes of expired rows."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgdict import ABSENT, PgDict

D = PgDict[Any, Any]
YEAR = 365.25 * 24 * 3600


@dataclass(frozen=True)
class Sql:
    """The table as SQL sees it: the rows that are there, expired or not."""

    connection: psycopg.Connection[Any]
    table: str

    def __call__(self, statement: str, *params: object) -> list[Any]:
        cursor = self.connection.execute(statement.format(table=f'"{self.table}"').encode(), params)
        return [row for (row,) in cursor.fetchall()] if cursor.description else []

    def rows(self) -> list[str]:
        return self("SELECT key FROM {table} ORDER BY key")

    def let_expire(self, *keys: str) -> None:
        self("UPDATE {table} SET expires_at = statement_timestamp() - interval '1 s' WHERE key = ANY (%s)", list(keys))


@pytest.fixture
def sql(server_url: str, table: str) -> Iterator[Sql]:
    """The test's table as SQL sees it."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        yield Sql(connection, table)


# --- what may be given -----------------------------------------------------------------------------------------------

WRITES: dict[str, Callable[[D, Any], Any]] = {
    "set": lambda d, ttl: d.set("k", 1, ttl=ttl),
    "set_nx": lambda d, ttl: d.set_nx("new", 1, ttl=ttl),
    "set_many": lambda d, ttl: d.set_many({"k": 1, "new": 2}, ttl=ttl),
    "increment": lambda d, ttl: d.increment("k", ttl=ttl),
    "decrement": lambda d, ttl: d.decrement("new", ttl=ttl),
    "compare_and_swap": lambda d, ttl: d.compare_and_swap("k", 0, 1, ttl=ttl),
    "get_and_set": lambda d, ttl: d.get_and_set("k", 1, ttl=ttl),
    "mutate": lambda d, ttl: d.mutate("k", lambda value: value + 1, ttl=ttl),
    "with mutate": lambda d, ttl: d.mutate("new", default=int, ttl=ttl).__enter__(),
    "expire": lambda d, ttl: d.expire("k", ttl),
}
WRONG: list[tuple[Any, type[Exception]]] = [
    (0, ValueError),
    (-1, ValueError),
    (-0.0, ValueError),
    (math.nan, ValueError),
    (math.inf, ValueError),
    (-math.inf, ValueError),
    (1001 * YEAR, ValueError),
    (10**400, ValueError),
    (timedelta(0), ValueError),
    (timedelta(-1), ValueError),
    (timedelta.max, ValueError),
    (True, TypeError),
    ("60", TypeError),
    (datetime(2999, 1, 1, tzinfo=UTC), TypeError),
]


def test_a_wrong_ttl_is_refused(d: D) -> None:
    """Every write refuses a ttl that is none, and writes nothing."""
    d["k"] = 0
    for wrong, error in WRONG:
        for write in WRITES.values():
            with pytest.raises(error, match="ttl"):
                write(d, wrong)
        with pytest.raises(error, match="ttl"):
            d.namespace("n", ttl=wrong)
    assert dict(d.items()) == {"k": 0}
    assert d.ttl("k") is None


@pytest.mark.parametrize(("wrong", "error"), WRONG, ids=lambda wrong: str(wrong)[:20])
def test_a_wrong_default_ttl_is_refused(server_url: str, table: str, wrong: Any, error: type[Exception]) -> None:
    """So does the constructor, before it makes a table."""
    with pytest.raises(error, match="ttl"):
        PgDict[Any, Any](server_url, table=table, ttl=wrong)
    with pytest.raises(ValueError, match="does not exist"):
        PgDict[Any, Any](server_url, table=table, create=False)


@pytest.mark.parametrize(("ttl", "seconds"), [(60, 60), (0.5, 0.5), (timedelta(minutes=1), 60), (1000 * YEAR, 1000 * YEAR)])
def test_ttl_is_seconds_or_timedelta(d: D, ttl: Any, seconds: float) -> None:
    """A ttl is seconds or a timedelta, up to a thousand years."""
    for name, write in WRITES.items():
        d.clear()
        if name != "increment":
            d["k"] = 0
        if name == "with mutate":
            with d.mutate("new", default=int, ttl=ttl):
                pass
        else:
            write(d, ttl)
        left = d.ttl("new" if "new" in d else "k")
        assert left is not None
        assert seconds - 0.4 < left <= seconds


def test_the_shortest_ttl(d: D) -> None:
    """What is below a microsecond is one."""
    d.set("k", 1, ttl=1e-12)
    assert "k" not in d


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2999, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        datetime(2999, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=5, minutes=45))),
        datetime.max.replace(tzinfo=UTC),
    ],
)
def test_expires_at(d: D, moment: datetime) -> None:
    """An aware datetime says when, to the microsecond."""
    d.set("k", 1, expires_at=moment)
    assert d.entry("k").expires_at == moment


def test_expires_at_in_the_past(d: D) -> None:
    """A moment in the past leaves the key absent."""
    d["k"] = 1
    d.set("k", 2, expires_at=datetime(1999, 1, 1, tzinfo=UTC))
    assert "k" not in d
    assert len(d) == 0


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"expires_at": datetime(2999, 1, 1)}, ValueError),
        ({"expires_at": date(2999, 1, 1)}, TypeError),
        ({"expires_at": 32472144000}, TypeError),
        ({"expires_at": datetime(2999, 1, 1, tzinfo=UTC), "ttl": 60}, ValueError),
        ({"expires_at": datetime(2999, 1, 1, tzinfo=UTC), "ttl": None}, ValueError),
    ],
)
def test_a_wrong_expires_at_is_refused(d: D, wrong: dict[str, Any], error: type[Exception]) -> None:
    """A naive moment, one that is no datetime, and one beside a ttl are refused."""
    with pytest.raises(error, match="expires_at"):
        d.set("k", 1, **wrong)
    assert "k" not in d


def test_expire_needs_a_ttl(d: D) -> None:
    """To take a ttl away is for `persist`."""
    d.set("k", 1, ttl=60)
    with pytest.raises(TypeError, match="persist"):
        d.expire("k", None)  # type: ignore[arg-type]
    assert d.ttl("k") is not None


def test_default_ttl(server_url: str, table: str) -> None:
    """A dictionary's ttl is for its writes without one, and its namespaces' until they have their own."""
    with PgDict[Any, Any](server_url, table=table, ttl=100) as d:
        places: list[tuple[D, float | None]] = [
            (d, 100),
            (d.namespace("same"), 100),
            (d.namespace("own", ttl=200), 200),
            (d.namespace("own", ttl=200).namespace("below"), 200),
            (d.namespace("never", ttl=None), None),
            (d.namespace("never", ttl=None).namespace("again", ttl=timedelta(seconds=300)), 300),
        ]
        for place, ttl in places:
            place["k"] = 1
            place.update(u=1)
            place.set("n", 1, ttl=None)
            place.set("t", 1, ttl=50)
            expected = {"k": ttl, "u": ttl, "n": None, "t": 50}
            for key, seconds in expected.items():
                left = place.ttl(key)
                assert left == seconds if seconds is None else left == pytest.approx(seconds, abs=20)


# --- what is seen ----------------------------------------------------------------------------------------------------

VIEWS: dict[str, tuple[Callable[[D], Any], Any]] = {
    "len": (len, 0),
    "bool": (bool, False),
    "iter": (list, []),
    "reversed": (lambda d: list(reversed(d)), []),
    "keys": (lambda d: (len(d.keys()), "k" in d.keys(), set(d.keys())), (0, False, set())),  # noqa: SIM118
    "values": (lambda d: list(d.values()), []),
    "items": (lambda d: (list(d.items()), list(reversed(d.items())), ("k", 1) in d.items()), ([], [], False)),
    "copy": (lambda d: d.copy(), {}),
    "dict": (dict, {}),
    "==": (lambda d: d == {}, True),
    "|": (lambda d: d | {"x": 1}, {"x": 1}),
    "in": (lambda d: "k" in d, False),
    "get": (lambda d: d.get("k", "absent"), "absent"),
    "get_many": (lambda d: d.get_many(["k", "l"]), {}),
    "scan": (lambda d: list(d.scan()), []),
    "scan, reverse": (lambda d: list(d.scan("k", reverse=True)), []),
    "scan_keys": (lambda d: list(d.scan_keys("k")), []),
    "count": (lambda d: (d.count(), d.count("k")), (0, 0)),
    "repr": (lambda d: repr(d).partition(",")[0], "PgDict({}"),
    "pop": (lambda d: d.pop("k", "absent"), "absent"),
    "popitem": (lambda d: _raises(KeyError, d.popitem), True),
    "popitem, first": (lambda d: _raises(KeyError, lambda: d.popitem(last=False)), True),
    "get_and_delete": (lambda d: d.get_and_delete("k"), None),
    "delete_many": (lambda d: d.delete_many(["k", "l"]), 0),
    "delete_prefix": (lambda d: d.delete_prefix("k"), 0),
    "entry": (lambda d: _raises(KeyError, lambda: d.entry("k")), True),
    "ttl": (lambda d: _raises(KeyError, lambda: d.ttl("k")), True),
    "expire": (lambda d: d.expire("k", 60), False),
    "persist": (lambda d: d.persist("k"), False),
    "move_to_end": (lambda d: _raises(KeyError, lambda: d.move_to_end("k")), True),
    "del": (lambda d: _raises(KeyError, lambda: d.__delitem__("k")), True),
}


def _raises(kind: type[Exception], call: Callable[[], Any]) -> bool:
    try:
        call()
    except kind:
        return True
    return False


@pytest.mark.parametrize("order", ["insertion", "key"])
def test_expired_is_absent(server_url: str, table: str, sql: Sql, order: Any) -> None:
    """One rule for all that reads or takes away: what has expired is not there."""
    with PgDict[Any, Any](server_url, table=table, cleanup="manual", order=order) as root:
        for d in (root, root.namespace("n")):
            for name, (look, expected) in VIEWS.items():
                if order == "key" and name == "move_to_end":
                    continue
                d.set_many({"k": 1, "l": 2}, ttl=1000)
                assert look(d) != expected, name
                root.clear()
                d.set_many({"k": 1, "l": 2}, ttl=1000)
                sql.let_expire(*sql.rows())
                assert look(d) == expected, name


def test_expired_is_absent_by_the_clock(d: D) -> None:
    """A key is there until its time is over, in a transaction too, where the clock goes on."""
    for block in (d.transaction(), d.namespace("n").transaction()):
        with block:
            d.set("k", 1, ttl=0.1)
            assert d["k"] == 1
            time.sleep(0.1)
            assert "k" not in d
            assert list(d) == []
    d.set("k", 1, ttl=0.1)
    assert (len(d), list(d)) == (1, ["k"])
    time.sleep(0.1)
    assert (len(d), list(d)) == (0, [])


# --- what becomes of expired rows ------------------------------------------------------------------------------------

READS: dict[str, Callable[[D], Any]] = {
    "get": lambda d: d.get("k"),
    "d[k]": lambda d: _raises(KeyError, lambda: d["k"]),
    "in": lambda d: "k" in d,
    "entry": lambda d: _raises(KeyError, lambda: d.entry("k")),
    "ttl": lambda d: _raises(KeyError, lambda: d.ttl("k")),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
def test_on_read_removes_the_row_it_meets(d: D, sql: Sql, read: Callable[[D], Any]) -> None:
    """A read removes the expired row it meets, and no other."""
    d.set_many({"k": 1, "other": 2, "live": 3}, ttl=60)
    sql.let_expire("k", "other")
    read(d)
    assert sql.rows() == ["live", "other"]


SWEEPING: dict[str, Callable[[D], Any]] = {
    "set": lambda d: d.set("new", 1, ttl=60),
    "set_nx": lambda d: d.set_nx("new", 1, ttl=60),
    "set_many": lambda d: d.set_many({"new": 1}, ttl=60),
    "update": lambda d: d.namespace("n", ttl=60).update(new=1),
    "increment": lambda d: d.increment("new", ttl=60),
    "get_and_set": lambda d: d.get_and_set("new", 1, ttl=60),
    "increment, float": lambda d: d.increment("new", 0.5, ttl=60),
    "mutate": lambda d: d.mutate("new", lambda value: value, default=int, ttl=60),
    "compare_and_swap": lambda d: d.compare_and_swap("new", ABSENT, 1, ttl=60),
    "setdefault": lambda d: d.namespace("n", ttl=60).setdefault("new", 1),
}


@pytest.mark.parametrize("write", SWEEPING.values(), ids=SWEEPING.keys())
def test_a_write_with_a_ttl_sweeps_two(d: D, sql: Sql, write: Callable[[D], Any]) -> None:
    """A write with a ttl removes two expired rows besides; so a table whose keys are never read again does not grow."""
    d.set_many(dict.fromkeys("abcde", 1), ttl=60)
    sql.let_expire(*"abcde")
    write(d)
    assert len(sql.rows()) == 1 + 3
    d["plain"] = 1
    assert len(sql.rows()) == 1 + 3 + 1


def test_a_batch_with_a_ttl_sweeps_two_for_each(d: D, sql: Sql) -> None:
    """So does a batch, for each of its keys."""
    d.set_many(dict.fromkeys("abcde", 1), ttl=60)
    sql.let_expire(*"abcde")
    d.set_many({"x": 1, "y": 2}, ttl=60)
    assert len(sql.rows()) == 2 + 1


def test_never_inside_a_transaction(d: D, sql: Sql, server_url: str, table: str) -> None:
    """In a transaction, or on the application's own connection, reads and writes remove nothing besides."""
    d.set_many({"k": 1, "other": 2}, ttl=60)
    sql.let_expire("k", "other")
    with d.transaction():
        assert "k" not in d
        d.set("new", 1, ttl=60)
    with psycopg.connect(server_url, autocommit=True) as connection:
        joined = PgDict[Any, Any](connection=connection, table=table)
        assert "k" not in joined
        joined.set("new", 1, ttl=60)
    assert sql.rows() == ["k", "new", "other"]


def test_a_row_in_use_is_left(d: D, sql: Sql) -> None:
    """A read does not wait for whoever is writing the expired row, and leaves it."""
    d.set("k", 1, ttl=60)
    sql.let_expire("k")
    with sql.connection.transaction():
        sql("UPDATE {table} SET value = value")
        began = time.monotonic()
        assert "k" not in d
        assert d.cleanup_expired() == 0
        d.set("new", 1, ttl=60)
        assert time.monotonic() - began < 5
    assert sql.rows() == ["k", "new"]


def test_without_the_right_to_delete(d: D, server_url: str, sql: Sql) -> None:
    """Who may not delete reads all the same; removing is tried once and then given up."""
    role = sql.table
    sql(f"CREATE ROLE {role}; GRANT SELECT, INSERT, UPDATE ON {{table}} TO {role}; GRANT {role} TO CURRENT_USER")
    try:
        d.set_many({"k": 1, "l": 2}, ttl=60)
        sql.let_expire("k", "l")
        limited_url = make_conninfo(server_url, options=f"-c role={role}")
        with PgDict[Any, Any](limited_url, table=sql.table) as limited:
            assert limited.get("k") is None
            limited.set("new", 1, ttl=60)
            assert limited["new"] == 1
            sql(f"GRANT DELETE ON {{table}} TO {role}")
            assert "l" not in limited
            assert sql.rows() == ["k", "l", "new"]
            del limited["new"]
        assert sql.rows() == ["k", "l"]
    finally:
        sql(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_manual(server_url: str, table: str, sql: Sql) -> None:
    """With cleanup="manual" only `cleanup_expired` removes rows."""
    with PgDict[Any, Any](server_url, table=table, cleanup="manual") as d:
        d.set_many({"k": 1, "l": 2, "live": 3}, ttl=60)
        sql.let_expire("k", "l")
        for read in READS.values():
            read(d)
        for write in SWEEPING.values():
            write(d)
        assert {"k", "l"} <= set(sql.rows())
        assert d.cleanup_expired() == 2
        assert not {"k", "l"} & set(sql.rows())


def test_disabled(server_url: str, table: str, sql: Sql) -> None:
    """With cleanup="disabled" expired rows are there as all others are."""
    with PgDict[Any, Any](server_url, table=table, cleanup="disabled") as d:
        d.set_many({"k": 1, "l": 2, "m": 3}, ttl=60)
        sql.let_expire("k", "m")
        for look, nothing in (VIEWS[name] for name in ("len", "bool", "keys", "items", "get_many", "scan", "count", "repr")):
            assert look(d) != nothing
        assert (d["k"], d.get("k"), "k" in d, len(d), list(d), d.count("k")) == (1, 1, True, 3, ["k", "l", "m"], 1)
        assert d.set_nx("k", 9) is False
        assert d.setdefault("k", 9) == 1
        assert d.increment("k") == 2
        assert d.compare_and_swap("k", 2, 5)
        assert d.cleanup_expired() == 0
        d["k"] = 6
        assert list(d.items()) == [("k", 6), ("l", 2), ("m", 3)]
        assert d.popitem() == ("m", 3)
        assert d.get_and_delete("l") == 2


@pytest.mark.parametrize("cleanup", ["on_read", "manual"])
def test_cleanup_expired(server_url: str, table: str, sql: Sql, cleanup: Any) -> None:
    """It removes the expired rows of its own part, at most `limit`, oldest first, and tells how many."""
    with PgDict[Any, Any](server_url, table=table, cleanup=cleanup) as d:
        n = d.namespace("n")
        for part in (d, n):
            part.set_many({"a": 1, "b": 2, "c": 3, "live": 4}, ttl=60)
            part["ever"] = 5
        for age, key in enumerate("cba"):
            sql(
                "UPDATE {table} SET expires_at = statement_timestamp() - make_interval(secs => %s) WHERE key = ANY (%s)",
                age + 1,
                [key, f"n:{key}"],
            )
        assert n.cleanup_expired(limit=1) == 1
        assert sql.rows() == ["a", "b", "c", "ever", "live", "n:b", "n:c", "n:ever", "n:live"]
        assert d.cleanup_expired(limit=0) == 0
        assert n.cleanup_expired() == 2
        assert d.cleanup_expired(limit=2) == 2
        assert sql.rows() == ["c", "ever", "live", "n:ever", "n:live"]
        assert (d.cleanup_expired(), d.cleanup_expired()) == (1, 0)
        assert list(d) == ["live", "ever", "n:live", "n:ever"]


@pytest.mark.parametrize("limit", [-1, 1.5, "1"])
def test_a_wrong_limit_is_refused(d: D, limit: Any) -> None:
    """A limit is a number of rows."""
    with pytest.raises(ValueError, match="limit"):
        d.cleanup_expired(limit)


def test_a_fresh_write_is_never_removed(d: D, server_url: str, table: str) -> None:
    """A key set anew at the moment it expires stays, whatever readers and sweeps are under way."""
    over = threading.Event()

    def clean(step: Callable[[], Any]) -> None:
        while not over.is_set():
            step()

    cleaners = (lambda: d.get("k"), d.cleanup_expired, lambda: d.set("x", 1, ttl=1e-6))
    threads = [threading.Thread(target=clean, args=(step,)) for step in cleaners]
    with PgDict[Any, Any](server_url, table=table, max_size=1) as writer:
        for thread in threads:
            thread.start()
        try:
            end = time.monotonic() + 1.5
            rounds = 0
            while time.monotonic() < end:
                writer.set("k", "old", ttl=1e-6)
                writer["k"] = "new"
                assert writer.get("k") == "new"
                rounds += 1
        finally:
            over.set()
            for thread in threads:
                thread.join()
    assert rounds > 50
