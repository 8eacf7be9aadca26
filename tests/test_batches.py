"""Batches that are copied straight into the table because their keys are new, or seem to be."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgdict import PgDict, QueryFailed, statements
from pgdict.operations import Operation, many
from pgdict.session import Session

D = PgDict[Any, Any]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ten pairs be plenty."""
    monkeypatch.setattr(many, "PLENTY", 10)


@pytest.fixture
def other(server_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection of somebody else."""
    with psycopg.connect(server_url) as connection:
        yield connection


def shuffled(number: int) -> list[tuple[Any, Any]]:
    """Return pairs of all kinds, in no order."""
    values = [1, 2.5, None, "x", [1, (2,)], b"\0", 10**30]
    keys = [*range(number), *(f"k{n}" for n in range(number)), *((n, "é") for n in range(number))]
    random.Random(number).shuffle(keys)
    return [(key, values[n % len(values)]) for n, key in enumerate(keys)]


@pytest.mark.parametrize("names", [(), ("n",)])
def test_new_keys(either: D, names: tuple[str, ...]) -> None:
    """New keys are there with their values, in the order they came in, or in that of the keys."""
    either.update(dict.fromkeys(["a", "z", "n", "o"], "neighbour"))
    d = either.namespace(*names) if names else either
    pairs = shuffled(12)
    d.set_many(pairs)
    expected = dict(pairs)
    stored = {key: value for key, value in d.items() if value != "neighbour"}
    assert stored == expected
    if either._space.order == "insertion":
        assert [key for key, value in d.items() if value != "neighbour"] == list(expected)
    else:
        assert list(either) == list(either.scan_keys())
    d["newest"] = 1
    d.update(enumerate(range(100, 130)))  # over some of them
    assert all(d[n] == n + 100 for n in range(30))
    if either._space.order == "insertion":
        assert list(d)[-19:] == ["newest", *range(12, 30)]


def copied(d: D, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list that will tell of each large batch whether it was copied."""
    told: list[bool] = []
    copy_new = many.copy_new

    def telling(*args: Any) -> Operation[bool]:
        told.append(False)
        told[-1] = yield from copy_new(*args)
        return told[-1]

    monkeypatch.setattr(many, "copy_new", telling)
    return told


def test_only_new_keys(either: D, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are copied when nothing lies among them: no live key, no expired one, and none of this very transaction."""
    told = copied(either, monkeypatch)
    either["k5"] = "there"
    with either.transaction():
        either.update((f"j{n}", n) for n in range(10))
        either.update((f"j{n}", -n) for n in range(10))
    either.update((f"k{n}", n) for n in range(10))
    either.update((f"l{n}", n) for n in range(10))
    either.update((f"m{n}", n) for n in range(9))  # not plenty
    assert told == [True, False, False, True]
    assert either["j3"] == -3
    assert either["k5"] == 5
    assert len(either) == 39


def test_expired_keys_are_born_again(either: D, server_url: str, table: str) -> None:
    """A batch over expired rows begins them anew."""
    either.set_many(((n, "old") for n in range(10)), ttl=60)
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(sql.SQL("UPDATE {} SET expires_at = now() - '1 s'::interval").format(sql.Identifier(table)))
    assert len(either) == 0
    either.set_many((n, "new") for n in reversed(range(10)))
    assert dict(either.items()) == dict.fromkeys(range(10), "new")
    assert either.ttl(3) is None
    if either._space.order == "insertion":
        assert list(either) == list(reversed(range(10)))


def test_expiry(either: D) -> None:
    """A ttl counts for every row that is copied, on the server's clock."""
    either.set_many(((n, n) for n in range(25)), ttl=60)
    assert all(30 < (either.ttl(n) or 0) <= 60 for n in range(25))
    entry = either.entry(7)
    assert entry is not None
    assert entry.created_at == entry.updated_at
    assert entry.expires_at is not None


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("commits", [True, False])
def test_a_lost_race(either: D, other: psycopg.Connection[Any], table: str, inside: bool, commits: bool) -> None:
    """Where somebody stores one of the keys at that very moment, the batch waits for them and then replaces the value."""
    insert = sql.SQL("INSERT INTO {} (key, value, codec) VALUES ('k15', '\\x37', 'int')").format(sql.Identifier(table))
    other.execute(insert)

    def store() -> None:
        if inside:
            with either.transaction():
                either["before"] = 1
                either.update((f"k{n:02}", n) for n in range(40))
        else:
            either.update((f"k{n:02}", n) for n in range(40))

    storing = threading.Thread(target=store)
    storing.start()
    storing.join(0.3)
    assert storing.is_alive()
    assert len(either) == 0
    if commits:
        other.commit()
    else:
        other.rollback()
    storing.join(30)
    assert {key: value for key, value in either.items() if key != "before"} == {f"k{n:02}": n for n in range(40)}
    assert ("before" in either) is inside


def test_another_error(d: D, table: str, other: psycopg.Connection[Any]) -> None:
    """What the server refuses for another reason is raised as it is, nothing is stored, and the dictionary is usable."""
    other.execute(sql.SQL("ALTER TABLE {} ADD CHECK (key <> 'k15')").format(sql.Identifier(table)))
    other.commit()
    with pytest.raises(QueryFailed, match="violates check constraint"):
        d.update((f"k{n}", n) for n in range(40))
    with pytest.raises(QueryFailed, match="violates check constraint"), d.transaction():
        d.update((f"k{n}", n) for n in range(40))
    assert not d
    d["a"] = 1
    assert d == {"a": 1}


def test_row_level_security(server_url: str, table: str, d: D) -> None:
    """A table with row-level security, into which nothing can be copied, takes large batches too."""
    role = f"role_{table}"
    with psycopg.connect(server_url, autocommit=True) as boss:
        boss.execute(f"CREATE ROLE {role} LOGIN".encode())
        boss.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY".encode())
        boss.execute(f"CREATE POLICY all_of_it ON {table} USING (TRUE)".encode())
        boss.execute(f"GRANT ALL ON {table}, {table}_seq_seq TO {role}".encode())
        try:
            with D(make_conninfo(server_url, user=role), table=table) as restricted:
                restricted.update((n, n) for n in range(25))
            assert d == {n: n for n in range(25)}
        finally:
            boss.execute(f"DROP OWNED BY {role}".encode())
            boss.execute(f"DROP ROLE {role}".encode())


def test_sweeping(server_url: str, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch with a ttl sweeps, however it was stored: in one statement, copied, or through a staging table."""
    swept = []
    execute = Session._execute

    def watched(session: Session, statement: statements.Statement, params: Any) -> Any:
        swept.append(statement is statements.SWEEP_TWO)
        return execute(session, statement, params)

    monkeypatch.setattr(Session, "_execute", watched)
    with D(server_url, table=table, ttl=60) as d:
        for number, buffer in ((5, many.BUFFER), (15, many.BUFFER), (50, 2_000)):
            monkeypatch.setattr(many, "BUFFER", buffer)
            swept.clear()
            d.update((n, n) for n in range(number))
            assert sum(swept) == 1
