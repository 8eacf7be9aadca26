from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from processes import at_once, eventually, program
from psycopg.conninfo import make_conninfo
from psycopg_pool import ConnectionPool

from pgdict import PgDict
from pgdict.keys import lock_number
from pgdict.session import sweeper


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweep a few rows at a time, several times a second; begin when the last test's sweepers have ended."""
    monkeypatch.setattr(sweeper, "EVERY", 0.1)
    monkeypatch.setattr(sweeper, "TICK", 0.05)
    monkeypatch.setattr(sweeper, "STEP", 10)
    assert eventually(lambda: sweepers() == 0)


@pytest.fixture
def background(server_url: str, table: str) -> Iterator[PgDict[Any, Any]]:
    """A dictionary that sweeps."""
    with PgDict[Any, Any](server_url, table=table, cleanup="background", application_name=table) as background:
        yield background


@pytest.fixture
def sql(server_url: str) -> Iterator[Callable[[str], Any]]:
    """Ask the server for one value."""
    with psycopg.connect(server_url, autocommit=True) as connection:

        def ask(query: str) -> Any:
            cursor = connection.execute(query.encode())
            return (cursor.fetchone() or [None])[0] if cursor.description else None

        yield ask


def expire(sql: Callable[[str], Any], table: str, count: int = 100) -> None:
    """Add expired rows behind the dictionary's back, so that no write of its own sweeps any."""
    sql(
        f"INSERT INTO {table} (key, value, expires_at) "
        f"SELECT 'old' || n, '', now() - interval '1s' FROM generate_series(1, {count}) AS n"
    )


def sweepers() -> int:
    return sum(thread.name == "pgdict-sweeper" for thread in threading.enumerate())


def test_vanish(background: PgDict[Any, Any], sql: Callable[[str], Any], table: str) -> None:
    """Expired rows are removed, in small steps, though nobody reads or writes; all others stay."""
    background.update({n: n for n in range(20)})
    background.set("soon", 1, ttl=0.5)
    background.set("later", 1, ttl=60)
    expire(sql, table)
    assert eventually(lambda: sql(f"SELECT count(*) FROM {table}") == 21)
    assert len(background) == 21


def test_namespace(background: PgDict[Any, Any], sql: Callable[[str], Any], table: str) -> None:
    """A sweep is of the whole table, with all its namespaces."""
    background.namespace("n").update(a=1)
    background.namespace("n", ttl=0.01).update(b=1)
    assert eventually(lambda: sql(f"SELECT count(*) FROM {table}") == 1)


def test_alone(background: PgDict[Any, Any], sql: Callable[[str], Any], table: str) -> None:
    """While one process sweeps, no other does."""
    number = lock_number(background._session.table.layout.table, "sweeper")
    assert sql(f"SELECT pg_try_advisory_lock({number})")
    expire(sql, table)
    time.sleep(0.5)
    assert sql(f"SELECT count(*) FROM {table}") == 100
    assert sql(f"SELECT pg_advisory_unlock({number})")
    assert eventually(lambda: sql(f"SELECT count(*) FROM {table}") == 0)


def test_no_overlap(server_url: str, sql: Callable[[str], Any], table: str) -> None:
    """The sweeps of many handles never overlap."""
    sql(f"CREATE TABLE {table}_log (xid bigint, at timestamptz)")
    handles = [PgDict[Any, Any](server_url, table=table, cleanup="background") for _ in range(4)]
    sql(
        f"CREATE FUNCTION {table}_log() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.002); "
        f"INSERT INTO {table}_log VALUES (txid_current(), clock_timestamp()); RETURN OLD; END'"
    )
    sql(f"CREATE TRIGGER log BEFORE DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION {table}_log()")
    expire(sql, table, 400)
    assert eventually(lambda: sql(f"SELECT count(*) FROM {table}") == 0)
    for handle in handles:
        handle.close()
    steps = f"(SELECT xid, min(at) AS begin, max(at) AS end FROM {table}_log GROUP BY xid)"
    assert sql(f"SELECT count(*) FROM {steps} AS s") == 40
    overlap = "a.xid < b.xid AND a.end > b.begin AND b.end > a.begin"
    assert sql(f"SELECT count(*) FROM {steps} AS a JOIN {steps} AS b ON {overlap}") == 0
    sql(f"DROP FUNCTION {table}_log() CASCADE")
    sql(f"DROP TABLE {table}_log")


def test_fresh_write(background: PgDict[Any, Any]) -> None:
    """What was written over an expired row is never swept."""

    def write(key: int) -> None:
        for n in range(300):
            background.set(key, n, ttl=0.000001)
            background[key] = n
            assert background[key] == n

    assert at_once(*[lambda: write(1), lambda: write(2), lambda: write(3)]) == [None] * 3
    assert len(background) == 3


def test_end(server_url: str, table: str) -> None:
    """The sweeper ends with the last use of the dictionary: closed, forgotten, or with its process."""
    with PgDict[Any, Any](server_url, table=table, cleanup="background"):
        assert sweepers() == 1
    assert eventually(lambda: sweepers() == 0)
    forgotten = PgDict[Any, Any](server_url, table=table, cleanup="background")
    users = forgotten.namespace("users")
    del forgotten
    gc.collect()
    users["ann"] = 1
    assert sweepers() == 1
    del users
    gc.collect()
    assert eventually(lambda: sweepers() == 0)
    with program("d = PgDict(url, table=table, cleanup='background'); d['a'] = 1", server_url, table) as process:
        begin = time.monotonic()
        assert process.wait(20) == 0
        assert time.monotonic() - begin < 10


def test_other_settings(server_url: str, sql: Callable[[str], Any], table: str) -> None:
    """Nothing is swept in the background by a dictionary that was not asked to."""
    handles = [PgDict[Any, Any](server_url, table=table, cleanup=c) for c in ("on_read", "manual", "disabled")]
    expire(sql, table)
    time.sleep(0.3)
    assert sweepers() == 0
    assert sql(f"SELECT count(*) FROM {table}") == 100
    for handle in handles:
        handle.close()


def test_lost_connection(background: PgDict[Any, Any], sql: Callable[[str], Any], table: str) -> None:
    """A lost connection does not end the sweeping."""
    for _ in range(3):
        assert sql(f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = '{table}'")
        expire(sql, table)
        assert eventually(lambda: sql(f"SELECT count(*) FROM {table}") == 0)


def test_dropped_table(background: PgDict[Any, Any], server_url: str, sql: Callable[[str], Any], table: str) -> None:
    """A table that is gone for a while does not end the sweeping either."""
    background.drop()
    time.sleep(0.3)
    with PgDict[Any, Any](server_url, table=table, cleanup="manual"):
        expire(sql, table)
    assert eventually(lambda: sql(f"SELECT count(*) FROM {table}") == 0)


def test_no_rights(server_url: str, sql: Callable[[str], Any], table: str) -> None:
    """A role that may only read reads, and gives the sweeping up."""
    with PgDict[Any, Any](server_url, table=table) as d:
        d["a"] = 1
    expire(sql, table)
    sql(f"CREATE ROLE {table} LOGIN")
    sql(f"GRANT SELECT ON {table} TO {table}")
    try:
        with PgDict[Any, Any](make_conninfo(server_url, user=table), table=table, cleanup="background") as reader:
            assert sweepers() == 1
            assert eventually(lambda: sweepers() == 0)
            assert (reader["a"], reader.get("old1")) == (1, None)
    finally:
        sql(f"REVOKE ALL ON {table} FROM {table}")
        sql(f"DROP ROLE {table}")


def test_fork(server_url: str, sql: Callable[[str], Any], table: str) -> None:
    """A forked child sweeps as well, after its parent has stopped."""
    with PgDict[Any, Any](server_url, table=table, cleanup="background"):
        if (child := os.fork()) == 0:
            time.sleep(20)
            os._exit(0)
    try:
        assert eventually(lambda: sweepers() == 0)
        expire(sql, table)
        assert eventually(lambda: sql(f"SELECT count(*) FROM {table}") == 0)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_pool(server_url: str, sql: Callable[[str], Any], table: str) -> None:
    """On the application's pool a connection is borrowed for each step."""
    with (
        ConnectionPool(server_url, min_size=1, max_size=1) as pool,
        PgDict[Any, Any](pool=pool, table=table, cleanup="background") as d,
    ):
        expire(sql, table)
        assert eventually(lambda: sql(f"SELECT count(*) FROM {table}") == 0)
        with d.transaction():  # keeps the only connection: the sweeper waits
            expire(sql, table)
            time.sleep(0.3)
        assert eventually(lambda: sql(f"SELECT count(*) FROM {table}") == 0)


@pytest.mark.parametrize("own", [True, False])
def test_read_never_waits(server_url: str, sql: Callable[[str], Any], table: str, own: bool) -> None:
    """A read does not wait for a second connection, to remove the expired row it met: it leaves the row there."""
    with (
        ConnectionPool(server_url, min_size=1, max_size=1, open=not own) as pool,
        PgDict[Any, Any](server_url, table=table, max_size=1) if own else PgDict[Any, Any](pool=pool, table=table) as d,
    ):
        expire(sql, table, 1)
        sql("BEGIN")
        sql(f"LOCK TABLE {table}")

        def read() -> tuple[object, float]:
            return d.get("old1"), time.monotonic()

        def occupy() -> float:
            time.sleep(0.3)  # the read has the only connection, and waits for the table
            with d.transaction():
                time.sleep(1)
                return time.monotonic()

        def release() -> None:
            time.sleep(0.6)
            sql("COMMIT")

        (value, read_at), occupied_until, _ = at_once(read, occupy, release)
        assert value is None
        assert read_at < occupied_until - 0.5
