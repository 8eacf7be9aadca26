"""One dictionary, many threads in many processes; the pools that their connections come from."""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from cluster import Pooler
from crowd import PROCESSES, THREADS, Crowd, crowd
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

from pgdict import PgDict
from pgdict.errors import ConfigError, ConnectionFailed, PgDictError, QueryFailed
from pgdict.operations import many as batches

Dict = PgDict[Any, Any]


@pytest.fixture(scope="module")
def many() -> Iterator[Crowd]:
    with crowd() as all_of_them:
        yield all_of_them


# Everybody at once ---------------------------------------------------------------------------------------------------


def hammer(d: Dict, me: int) -> tuple[float, int]:
    """Mix everything on keys of one's own and on shared ones, check each answer, return the longest wait and the sum added."""
    own, rng = d.namespace("own", str(me)), random.Random(me)
    mine: dict[Any, Any] = {}
    longest, added = 0.0, 0
    for n in range(60):
        begin = time.monotonic()
        key = (me, rng.randrange(10))
        value = [me, n, "x" * rng.randrange(3000)]
        match n % 8:
            case 0 | 1:
                own[key] = mine[key] = value
            case 2:
                assert own.pop(key, None) == mine.pop(key, None)
            case 3:
                mine[key] = own.mutate(key, lambda old: [*old[:2], me], default=lambda: [me, 0])
            case 4:
                by = rng.randrange(-5, 10)
                d.increment(("shared", rng.randrange(3)), by)
                added += by
            case 5:
                with d.transaction():
                    own[key] = mine[key] = value
                    assert own[key] == value
            case 6:
                assert own.get_many(list(mine)) == mine
            case _:
                assert own.get(key) == mine.get(key)
        longest = max(longest, time.monotonic() - begin)
    assert dict(own.items()) == mine
    assert list(own) == list(dict(own.items()))
    return longest, added


@pytest.mark.parametrize("max_size", [3, 8])
def test_hammer(many: Crowd, server_url: str, table: str, d: Dict, max_size: int) -> None:
    """Nothing is lost, duplicated or mixed up between 8 threads of each of 4 processes, and nobody waits for long."""
    results = many.at(hammer, server_url, table, max_size=max_size)
    assert len(results) == PROCESSES * THREADS
    assert sum(d["shared", n] for n in range(3)) == sum(added for _, added in results)
    assert max(longest for longest, _ in results) < 5
    keys = [key for key in d if not isinstance(key, tuple)]
    assert len(keys) == len(set(keys))
    assert {key.split(":")[0] for key in keys} <= {"own"}


def open_at_once(d: Dict, me: int) -> int:
    """Be one of the first users of tables in one new schema."""
    with PgDict[Any, Any](d.url, schema=d["schema"], table=f"t{me % 4}", max_size=1) as mine:
        mine[me] = me
        return len(mine)


def test_first_users(many: Crowd, server_url: str, table: str, d: Dict) -> None:
    """Concurrent first users of a schema and its tables all succeed and share them."""
    for _ in range(3):
        schema = d["schema"] = f"s_{secrets.token_hex(6)}"
        try:
            assert all(many.at(open_at_once, server_url, table, threads=4))
            for n in range(4):
                with PgDict[int, int](server_url, schema=schema, table=f"t{n}", create=False) as opened:
                    assert sorted(opened) == list(range(n, 4 * PROCESSES, 4))
        finally:
            with psycopg.connect(server_url, autocommit=True) as connection:
                connection.execute(f"DROP SCHEMA {schema} CASCADE".encode())


def test_first_users_by_two_names(server_url: str, table: str) -> None:
    """So do those who name the default schema and those who do not."""
    with psycopg.connect(server_url) as connection:
        row = connection.execute("SELECT current_schema()").fetchone()

    def first(me: int) -> bool:
        with PgDict[Any, Any](server_url, table=f"{table}_two", schema=row[0] if row and me % 2 else None) as d:
            return d.set_nx("first", me)

    for _ in range(3):
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(first, range(8))) == 1
        with PgDict[Any, Any](server_url, table=f"{table}_two") as d:
            d.drop()


def test_type_of_that_name(server_url: str, table: str) -> None:
    """A type that has the table's name is told as the server does: a table has a type, too."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE TYPE {table} AS ENUM ()".encode())
        try:
            with pytest.raises(QueryFailed, match=f'"{table}" already exists'):
                PgDict[Any, Any](server_url, table=table)
        finally:
            connection.execute(f"DROP TYPE {table}".encode())


def test_nobody_starves(d: Dict, server_url: str) -> None:
    """With one connection and statements that take their time, it goes round: all threads get their share."""
    with PgDict[Any, Any](server_url, table=d._origin.options.table, max_size=1) as one:
        turns: Counter[int] = Counter()
        end = time.monotonic() + 1.5

        def work(me: int) -> float:
            longest = 0.0
            while (begin := time.monotonic()) < end:
                with one.transaction():
                    longest = max(longest, time.monotonic() - begin)
                    turns[me] += 1
                    time.sleep(0.01)
            return longest

        with ThreadPoolExecutor(6) as pool:
            longest = max(pool.map(work, range(6)))
    assert min(turns.values()) * 6 > sum(turns.values()) / 4
    assert longest < 0.8


def test_exhausted(server_url: str, table: str) -> None:
    """When all connections stay in use, the error says so after `timeout`; then they are there again."""
    with PgDict[Any, Any](server_url, table=table, max_size=1, timeout=0.3) as d:
        with d.transaction(), ThreadPoolExecutor(1) as pool:
            begin = time.monotonic()
            error = pool.submit(d.get, "a").exception()
            assert isinstance(error, ConnectionFailed)
            assert str(error) == "all 1 connections were in use for 0.3 s"
            assert not error.maybe_applied
            assert 0.25 < time.monotonic() - begin < 5
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(d.get, "a").result() is None


# Deadlocks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def database(server_url: str) -> Iterator[str]:
    """A database of its own, whose statistics nobody else changes."""
    name = f"db_{secrets.token_hex(6)}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
        yield make_conninfo(server_url, dbname=name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def deadlocks(url: str) -> int:
    """Return how many deadlocks the server has seen, when its processes have reported them."""
    query = "SELECT deadlocks, (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()) FROM pg_stat_database"
    with psycopg.connect(url, autocommit=True) as connection:
        while True:
            row = connection.execute(f"{query} WHERE datname = current_database()".encode()).fetchone()
            assert row
            if row[1] == 1:  # the others have ended, and a process reports before it ends
                return int(row[0])
            time.sleep(0.05)


KEYS = [f"key {n}" for n in range(60)]


def fight(d: Dict, me: int, rounds: int) -> None:
    """Write many of the same keys, in one order and in the other."""
    rng = random.Random(me)
    for _ in range(rounds):
        keys = rng.sample(KEYS, 40)
        match rng.randrange(10):
            case 0 | 1 | 2:
                d.set_many([(key, me) for key in keys], ttl=rng.choice([None, 0.001, 0.003]))
            case 3:
                d.delete_many(keys)
            case 4:
                d.delete_prefix("key 1")
            case 5:
                d.clear()
            case 6 | 7 | 8:
                d.cleanup_expired(rng.choice([None, 2, 20]))
            case _:
                d.update(dict.fromkeys(keys, me))


@pytest.mark.parametrize("rounds", [100, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("order", ["insertion", "key"])
@pytest.mark.parametrize("plenty", [10, batches.PLENTY], ids=["copied", "inserted"])
def test_no_deadlock(database: str, rounds: int, order: Any, plenty: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches, deletes, clears and sweeps over the same keys in opposite orders never deadlock, by the server's own count."""
    monkeypatch.setattr(batches, "PLENTY", plenty)
    with (
        PgDict[Any, Any](database, table="fight", order=order, max_size=12) as d,
        PgDict[Any, Any](database, table="fight", max_size=12) as other,
        ThreadPoolExecutor(12) as pool,
    ):
        futures = [pool.submit(fight, d if me % 2 else other, me, rounds) for me in range(12)]
        for future in futures:
            future.result(timeout=100)
    assert deadlocks(database) == 0


def test_durability_deadlocks_with_nobody(database: str) -> None:
    """Changing the durability waits for writers, and they for it, without a deadlock."""
    with PgDict[Any, Any](database, table="fight", max_size=7) as d, ThreadPoolExecutor(6) as pool:
        stop = threading.Event()

        def write(me: int) -> None:
            while not stop.is_set():
                with d.transaction():
                    d[me, 1] = me
                    d[me, 2] = me

        writing = [pool.submit(write, me) for me in range(6)]
        for durability in ("sync", "unlogged") * 4:
            d.set_durability(durability)
        stop.set()
        for future in writing:
            future.result(timeout=30)
    assert deadlocks(database) == 0


@pytest.mark.slow
def test_deadlocks_are_counted(database: str) -> None:
    """A deadlock that the caller makes, out of two transactions, is counted by the server and raised as recoverable."""
    with PgDict[Any, Any](database, table="fight", max_size=2) as d, ThreadPoolExecutor(2) as pool:
        d.update(a=1, b=2)
        both = threading.Barrier(2)

        def cross(first: str, second: str) -> None:
            with d.transaction():
                d[first] = 3
                both.wait(10)
                d[second] = 4

        errors = [f.exception(timeout=30) for f in (pool.submit(cross, "a", "b"), pool.submit(cross, "b", "a"))]
        (error,) = filter(None, errors)
        assert isinstance(error, PgDictError)
        assert error.recoverable
    assert deadlocks(database) == 1


# Few connections -----------------------------------------------------------------------------------------------------


def use_nested(d: Dict) -> None:
    """Use the dictionary while using it."""
    d.update((n, n) for n in range(5))
    d.update((n, d[n - 5]) for n in range(5, 10))
    d.set_many(((key, value + 1) for key, value in d.items()), ttl=60)
    assert d.mutate(0, lambda value: value + d[1] + d.increment(9)) == 1 + 2 + 6
    for key, value in d.items():
        d[key, "twin"] = value
    for key in d.keys() - {0}:
        d.pop(key)
    with d.transaction():
        for key, value in d.items():
            d[key] = value + d.get("absent", 1)
        with d.mutate(0) as box:
            box.value += d[0]
        assert [d[key] for key in reversed(d)] == [20]
    d.namespace("n").update((key, d.namespace("m").setdefault(key, key)) for key in "abc")
    assert d.delete_many(key for key in d if d.get(key)) == 7


def test_nested_use(server_url: str, table: str) -> None:
    """With a single connection, a dictionary can be used inside its own iterators, generators, functions and blocks."""
    with PgDict[Any, Any](server_url, table=table, max_size=1, timeout=1) as d:
        use_nested(d)


def open_connections(url: str, name: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", (name,)).fetchone()
        return int(row[0]) if row else 0


def test_no_more_connections_than_needed(server_url: str, table: str) -> None:
    """One thread needs one connection; many threads open at most `max_size`."""
    name = f"pgdict {table}"
    with PgDict[Any, Any](server_url, table=table, max_size=4, application_name=name) as d:
        for n in range(50):
            d[n] = n
        assert open_connections(server_url, name) == 1
        with ThreadPoolExecutor(12) as pool:
            assert sorted(pool.map(d.__getitem__, range(50))) == list(range(50))
        assert 1 <= open_connections(server_url, name) <= 4


def test_idle_connections_close(server_url: str, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that are not used close after a while, down to `min_size`."""
    monkeypatch.setattr("pgdict.session.sources.IDLE_AFTER", 0.1)
    name = f"pgdict {table}"
    with PgDict[Any, Any](server_url, table=table, min_size=2, max_size=6, application_name=name) as d:
        meeting = threading.Barrier(6)

        def hold(_: int) -> None:
            with d.transaction():
                meeting.wait(10)

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(hold, range(6)))
        assert open_connections(server_url, name) == 6
        deadline = time.monotonic() + 5
        while open_connections(server_url, name) > 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert open_connections(server_url, name) == 2
        d["a"] = 1
        assert d["a"] == 1


# The application's own pool ------------------------------------------------------------------------------------------


@pytest.fixture
def pool(server_url: str) -> Iterator[ConnectionPool[Any]]:
    with ConnectionPool(server_url, min_size=1, max_size=1, open=True, timeout=2) as own:
        yield own


@pytest.fixture
def pooled(pool: ConnectionPool[Any], table: str) -> Iterator[Dict]:
    with PgDict[Any, Any](pool=pool, table=table) as d:
        yield d


def test_pool_nested_use(pooled: Dict) -> None:
    """On an application's pool of one connection everything works, nested use too."""
    use_nested(pooled)


def test_pool_is_shared(pooled: Dict, pool: ConnectionPool[Any]) -> None:
    """No connection is kept between statements, and each comes back clean, in a state that the application can use."""
    for n in range(20):
        pooled[n] = n
        with pool.connection() as connection:
            assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
            assert connection.execute("SELECT 1").fetchone() == (1,)
    iterator = iter(pooled.items())
    assert next(iterator) == (0, 0)
    with suppress(ZeroDivisionError), pooled.transaction():
        raise ZeroDivisionError
    with pool.connection() as connection:
        connection.execute("SELECT 1")
    assert len(list(iterator)) == 19
    assert pool.get_stats().get("returns_bad", 0) == 0


def test_pool_other_users(pooled: Dict, pool: ConnectionPool[Any]) -> None:
    """Neither the dictionary nor the pool's other users starve each other."""
    end = time.monotonic() + 1
    turns: Counter[str] = Counter()

    def application() -> None:
        while time.monotonic() < end:
            with pool.connection() as connection:
                connection.execute("SELECT 1")
            turns["application"] += 1

    def dictionary() -> None:
        while time.monotonic() < end:
            pooled["a"] = 1
            turns["dictionary"] += 1

    with ThreadPoolExecutor(4) as threads:
        for future in [threads.submit(user) for user in (application, dictionary) * 2]:
            future.result(timeout=10)
    assert min(turns["application"], turns["dictionary"]) > 20


@pytest.mark.parametrize("command", ["DEALLOCATE ALL", "DISCARD ALL"])
def test_pool_loses_prepared_statements(pooled: Dict, pool: ConnectionPool[Any], command: str) -> None:
    """Statements that somebody has deallocated are prepared anew."""
    for n in range(5):
        pooled["a"] = n
        with pool.connection() as connection:
            connection.autocommit = True
            connection.execute(command.encode())
            connection.autocommit = False
        assert pooled["a"] == n
        assert pooled.increment("n") == n + 1


def test_pool_closed(pool: ConnectionPool[Any], table: str) -> None:
    """Closing the dictionary leaves the pool open; closing the pool is a clear error of the dictionary."""
    with PgDict[Any, Any](pool=pool, table=table) as d:
        d["a"] = 1
    with pytest.raises(PgDictError, match="closed"):
        d["a"]
    with PgDict[Any, Any](pool=pool, table=table) as d:
        assert d["a"] == 1
        pool.close()
        with pytest.raises(ConnectionFailed, match="closed"):
            d["a"]


def test_pool_with_other_settings(server_url: str, table: str) -> None:
    """Row factories and cursors of the application's do not matter."""
    kwargs = {"row_factory": dict_row, "cursor_factory": psycopg.ClientCursor, "autocommit": True}
    with ConnectionPool(server_url, min_size=1, max_size=1, open=True, kwargs=kwargs) as own:
        with PgDict[Any, Any](pool=own, table=table) as d:
            d["a"] = 1
            assert dict(d.items()) == {"a": 1}
            with d.transaction():
                d["b"] = d["a"]
        with PgDict[Any, Any](pool=own, table=table) as d:
            assert list(d) == ["a", "b"]
            assert d.stats().live == 2


def test_pool_with_another_encoding(server_url: str, table: str) -> None:
    """A client encoding in which keys would be stored wrong is refused."""
    with (
        ConnectionPool(server_url, min_size=1, max_size=1, open=True, kwargs={"client_encoding": "LATIN1"}) as own,
        pytest.raises(ConfigError, match="LATIN1"),
    ):
        PgDict(pool=own, table=table)


@pytest.mark.parametrize("own", [True, False])
def test_altered_table(server_url: str, table: str, own: bool) -> None:
    """Statements prepared for a table that was altered meanwhile are prepared anew, and nobody notices."""
    pool = None if own else ConnectionPool(server_url, min_size=1, max_size=1, open=True)
    with (
        PgDict[Any, Any](server_url if own else None, pool=pool, table=table) as d,
        psycopg.connect(server_url, autocommit=True) as connection,
    ):
        for n in range(4):
            d["a"] = n
            for kind in ("varchar", "text"):
                connection.execute(f"ALTER TABLE {table} ALTER COLUMN codec TYPE {kind}".encode())
                assert d["a"] == n
                assert d.increment("n") == 2 * n + (kind == "text") + 1
                assert d.pop("p", None) is None
                assert d.get_and_set("old", n) == (None if (n, kind) == (0, "varchar") else n - (kind == "varchar"))
    if pool:
        pool.close()


def test_transaction_mode_pooling(server_url: str, table: str) -> None:
    """A connection that is another one each time, as behind a pooler that knows no prepared statements, works."""
    with (
        ConnectionPool(server_url, min_size=3, max_size=3, open=True, reset=_forget) as own,
        PgDict[Any, Any](pool=own, table=table, ttl=60) as d,
    ):
        for n in range(20):
            d[n] = n
            assert d[n] == n
        assert list(d) == list(range(20))


def test_pooler_that_knows_names(server_url: str, table: str) -> None:
    """A pooler that ends the connection where a statement is prepared anew costs a connection, and no write."""
    pooler = Pooler(server_url, size=1)
    with PgDict[Any, Any](pooler.url, table=table) as d:
        for n in range(3):
            assert [d.get_and_set("a", n) for _ in range(3)] == [n - 1 if n else None, n, n]
            with psycopg.connect(server_url) as connection:
                connection.execute(f"ALTER TABLE {table} ALTER codec TYPE {'text' if n % 2 else 'varchar'}".encode())
    pooler.close()


def _forget(connection: psycopg.Connection[Any]) -> None:
    connection.autocommit = True
    connection.execute("DISCARD ALL")
    connection.autocommit = False
