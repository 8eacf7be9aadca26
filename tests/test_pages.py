"""Iterations and bulk loads: everything once and in order, whatever the sizes of pages, ties, holes, and other writers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from pgdict import PgDict, PgDictError
from pgdict.operations import ByKey, Pages, Size, many, pages, walk

D = PgDict[Any, Any]
NAMES = ["a", "b", "c"]

quick = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make everything that is done by thousands small."""
    monkeypatch.setattr(pages, "PROBE", 3)
    monkeypatch.setattr(pages, "CHUNK", 5)
    monkeypatch.setattr(many, "BUFFER", 4_000)
    monkeypatch.setattr(many, "PLENTY", 5)


@pytest.fixture
def raw(server_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection past pgdict."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        yield connection


def read(d: D, walked: Pages) -> list[tuple[Any, ...]]:
    """Return all rows of an iteration."""
    return list(d._follow(walked))


rows = st.lists(
    st.tuples(
        st.sampled_from(NAMES),
        st.integers(0, 12),  # seq, with many ties
        st.integers(0, 40),  # bytes of the value
        st.booleans(),  # expired
    ),
    max_size=40,
)
sizes = st.builds(Size, st.integers(1, 7), st.integers(1, 100))


@quick
@given(rows=rows, size=sizes, namespace=st.sampled_from([None, *NAMES]), reverse=st.booleans(), values=st.booleans())
def test_any_table(
    d: D, table: str, raw: Any, rows: Any, size: Size, namespace: str | None, reverse: bool, values: bool
) -> None:
    """Every live row comes exactly once, in order, whatever ties, expired rows, other namespaces, and sizes of pages."""
    raw.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier(table)))
    stored = [(f"{name}:{number:02}", seq, length, dead) for number, (name, seq, length, dead) in enumerate(rows)]
    raw.cursor().executemany(
        sql.SQL(
            "INSERT INTO {} (key, value, seq, expires_at) VALUES (%s, %b, %s, CASE WHEN %s THEN now() - '1 s'::interval END)"
        ).format(sql.Identifier(table)),
        [(key, b"x" * length, seq, dead) for key, seq, length, dead in stored],
    )
    expected = [
        (key.encode(), b"x" * length if values else None)
        for key, _, length, dead in sorted(stored, key=lambda row: (row[1], row[0]), reverse=reverse)
        if not dead and (namespace is None or key.startswith(namespace))
    ]
    part = d if namespace is None else d.namespace(namespace)
    found = read(part, walk(part._space, values=values, reverse=reverse, size=size))
    assert [row[:2] for row in found] == expected
    bounds = part._space.range("")
    found = read(part, ByKey(bounds, values=values, reverse=reverse, size=size))
    assert [row[:2] for row in found] == sorted(expected, reverse=reverse)


def _move(last: bool) -> Callable[[D, str], None]:
    def move(d: D, key: str) -> None:
        if key in d:
            d.move_to_end(key, last)

    return move


def _renew(d: D, key: str) -> None:
    d.pop(key, None)
    d[key] = 0


CHANGES: dict[str, Callable[[D, str], Any]] = {
    "set": lambda d, key: d.update({key: 0}),
    "delete": lambda d, key: d.pop(key, None),
    "set anew": _renew,
    "move last": _move(True),
    "move first": _move(False),
}
changes = st.lists(st.tuples(st.sampled_from(sorted(CHANGES)), st.integers(0, 20)), max_size=4)


@quick
@given(
    layout=st.lists(st.sampled_from(["stable", "wild", "other"]), max_size=25),
    between=st.lists(changes, max_size=8),
    size=sizes,
    how=st.sampled_from(["walk", "walk part", "scan"]),
    reverse=st.booleans(),
    values=st.booleans(),
)
def test_changes_on_the_way(d: D, layout: list[str], between: Any, size: Size, how: str, reverse: bool, values: bool) -> None:
    """What is there and stays where it is all the while comes once and in order, and nothing comes twice."""
    d.clear()
    n = d.namespace("n")
    for number, kind in enumerate(layout):
        (d if kind == "other" else n)[f"{kind}{number:02}"] = number
    part = d if how == "walk" else n
    stable = [key for key in part if "stable" in key or "other" in key]
    walked = (
        ByKey(n._space.range(""), values=values, reverse=reverse, size=size)
        if how == "scan"
        else walk(part._space, values=values, reverse=reverse, size=size)
    )
    found = []
    for some in [*between, *[()] * 200]:
        page = d._session.run(walked.page())
        if not page:
            break
        found += [row[0] for row in page]
        for change, number in some:
            CHANGES[change](n, f"wild{number:02}")
    else:
        pytest.fail("an iteration without an end")
    keys = [part._space.keys.decode(key) for key in found]
    expected = sorted(stable) if how == "scan" else stable
    assert [key for key in keys if key in set(stable)] == (expected[::-1] if reverse else expected)
    assert len(found) == len(set(found))


@pytest.mark.parametrize("name", [None, "n"])
@pytest.mark.parametrize("walked", [iter, reversed, lambda d: d.scan_keys(), lambda d: d.scan_keys(reverse=True)])
def test_a_loop_that_adds_keys_ends(
    either: D, walked: Callable[[D], Iterator[Any]], name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with the keys that were there when it began, wherever the new ones are."""
    monkeypatch.setattr(pages, "ROWS", 4)
    part = either if name is None else either.namespace(name)
    keys = [f"k{number}" for number in range(9)]
    part.update(dict.fromkeys(keys))
    seen = []
    for key in islice(walked(part), 50):
        seen.append(key)
        part[key + "x"] = part["a" + key] = 1
    assert sorted(seen) == keys


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("walked", [iter, reversed])
def test_a_loop_that_moves_keys_ends(d: D, walked: Callable[[D], Iterator[Any]], last: bool) -> None:
    """Keys that are moved ahead of the iteration are not met again."""
    keys = [f"k{number}" for number in range(9)]
    d.update(dict.fromkeys(keys))
    seen = []
    for row in islice(d._follow(walk(d._space, values=False, reverse=walked is reversed, size=Size(2))), 50):
        key = d._space.key(row)
        seen.append(key)
        d.move_to_end(key, last)
    assert sorted(set(seen)) == sorted(seen) == keys


@pytest.mark.parametrize("how", ["walk", "walk back", "part", "scan"])
def test_other_writers(d: D, how: str) -> None:
    """So it is with other threads that set, delete and move without a pause."""
    n = d.namespace("n")
    for number in range(300):
        n[f"stable{number:03}"] = number
        n[f"wild{number:03}"] = number
        if number % 3:
            d[f"other{number:03}"] = number
    stop = threading.Event()

    def disturb(seed: int) -> None:
        number = seed
        while not stop.is_set():
            number = (number * 7 + 1) % 300
            CHANGES[sorted(CHANGES)[number % len(CHANGES)]](n, f"wild{number:03}")

    threads = [threading.Thread(target=disturb, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            part = d if how.startswith("walk") else n
            size = Size(17, 1_000_000)
            walked = (
                ByKey(n._space.range(""), values=True, size=size)
                if how == "scan"
                else walk(part._space, values=True, reverse=how == "walk back", size=size)
            )
            keys = [part._space.key(row) for row in read(part, walked)]
            stable = [key for key in keys if "stable" in key]
            assert len(stable) == 300
            assert stable == sorted(stable, reverse=how == "walk back")
            assert len(keys) == len(set(keys))
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_huge_values(d: D) -> None:
    """A page ends with the value that fills it, however many rows it might have."""
    n = d.namespace("n")
    for part in (d, n):
        part.update({f"k{number}": b"x" * 300_000 for number in range(12)})
    for walked in (
        walk(d._space, values=True, size=Size(bytes=1_000_000)),
        walk(n._space, values=True, size=Size(bytes=1_000_000)),
        ByKey(d._space.range(""), values=True, size=Size(bytes=1_000_000)),
    ):
        lengths = []
        while page := d._session.run(walked.page()):
            lengths.append(len(page))
        assert max(lengths) <= 4


def test_values_of_a_sparse_namespace_are_bounded(d: D) -> None:
    """So does a page of a namespace that is a small part of its table."""
    for number in range(60):
        d[f"other{number}"] = 0
    n = d.namespace("n")
    n.update({f"k{number}": b"x" * 300_000 for number in range(6)})
    walked = walk(n._space, values=True, size=Size(rows=20, bytes=500_000))
    lengths = []
    while page := d._session.run(walked.page()):
        lengths.append(len(page))
    assert sum(lengths) == 6
    assert max(lengths) == 2


def load(number: int, size: int = 100) -> Iterator[tuple[str, str]]:
    """Yield pairs whose keys come twice, far from each other: more than one buffer."""
    for turn in ("first", "last"):
        for n in range(number):
            yield f"k{number - n:04}", turn + "x" * size


def test_a_large_load_is_as_a_dict_would(either: D) -> None:
    """Of equal keys in different buffers the last value counts, in the place of the first; older keys keep their place."""
    either.update(k0500="old", z="old")
    model = {"k0500": "old", "z": "old"}
    either.set_many(load(700))
    model.update(load(700))
    expected = list(model.items()) if either._space.order == "insertion" else sorted(model.items())
    assert list(either.items()) == expected


class _OopsError(Exception):
    pass


def test_an_exception_leaves_nothing(either: D) -> None:
    """A load whose iterable raises, however late, has stored nothing."""

    def broken() -> Iterator[tuple[str, str]]:
        yield from load(100)
        raise _OopsError

    either["k0001"] = "old"
    with pytest.raises(_OopsError):
        either.update(broken())
    with pytest.raises(TypeError):
        either.set_many([*load(100), ("bad", object())])
    assert dict(either.items()) == {"k0001": "old"}


def test_the_iterable_may_use_the_dictionary(server_url: str, table: str) -> None:
    """It runs while no statement does: it reads and writes the dictionary that it loads, over the only connection."""
    with D(server_url, table=table, max_size=1, timeout=5) as d:
        d.update(dict.fromkeys((f"k{number}" for number in range(200)), "x" * 50))
        d.set_many((key + "!", value) for key, value in d.items())
        assert len(d) == 400

        def counting() -> Iterator[tuple[str, Any]]:
            for number in range(200):
                d.increment("count")
                yield f"n{number}", len(d) if number % 50 == 0 else "x" * 50

        d.set_many(counting())
        assert d["count"] == 200
        assert len(d) == 601


def test_a_large_load_belongs_to_its_transaction(either: D) -> None:
    """It is rolled back with the transaction around it, and seen inside of it."""
    with pytest.raises(_OopsError), either.transaction():  # noqa: PT012
        either.set_many(load(100))
        assert len(either) == 100
        raise _OopsError
    assert len(either) == 0
    with either.transaction():
        either.set_many(load(100))
        either.set_many(load(50))
    assert len(either) == 100


def test_a_large_load_with_a_ttl(either: D) -> None:
    """Its items expire as those of a small one."""
    either.set_many(load(100), ttl=60)
    assert {round(either.ttl(key) or 0, -1) for key in ("k0001", "k0100")} == {60}
    either.set_many(load(100))
    assert either.ttl("k0001") is None


def test_a_large_load_leaves_no_stage(d: D, raw: Any) -> None:
    """No temporary table is left behind, neither by a load that succeeds nor by one that fails."""
    d.set_many(load(100))
    with pytest.raises(TypeError):
        d.set_many([*load(100), ([], 1)])
    count = raw.execute("SELECT count(*) FROM pg_class WHERE relname LIKE 'pgdict_stage_%'").fetchone()
    assert count == (0,)


def test_two_large_loads_at_once(d: D) -> None:
    """Loads of the same keys in opposite order do not deadlock, and one of them comes last as a whole."""
    pairs = list(load(300))
    threads = [
        threading.Thread(target=d.set_many, args=([(key, number) for key, _ in order],))
        for number, order in enumerate((pairs, pairs[::-1], pairs[::2]))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(d) == 300
    assert len({d[key] for key in ("k0001", "k0301", "k0299") if key in d}) == 1


def test_a_killed_connection_leaves_nothing(server_url: str, raw: Any, table: str) -> None:
    """A load whose connection dies on the way has stored nothing, and says so."""

    def cut() -> Iterator[tuple[str, str]]:
        yield from load(100)
        raw.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE query LIKE '%%pgdict_stage%%' AND application_name = %s",
            (table,),
        )
        yield from load(100)

    with D(server_url, table=table, application_name=table) as d:
        with pytest.raises(PgDictError):
            d.set_many(cut())
        assert len(d) == 0
