"""Large tables: namespaces cost what they cost, not what the table costs, and memory stays bounded.

Bounds of time are generous: several times what an idle laptop needs. What they catch is the work of the wrong order:
a sort of everything for each page, a walk over everybody else's rows.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgdict import PgDict

D = PgDict[Any, Any]

LAYOUTS = {
    "interleaved": "CASE WHEN i % 1000 = 7 THEN 'small:' WHEN i % 5 = 1 THEN 'middle:' ELSE 'large:' END",
    "small ones first": "CASE WHEN i <= n * 0.001 THEN 'small:' WHEN i <= n * 0.201 THEN 'middle:' ELSE 'large:' END",
    "small ones last": "CASE WHEN i <= n * 0.799 THEN 'large:' WHEN i <= n * 0.999 THEN 'middle:' ELSE 'small:' END",
}


def fill(d: D, connection: psycopg.Connection[Any], table: str, layout: str, rows: int, analysed: bool) -> None:
    """Load a table with three namespaces: a thousandth, a fifth, and most of it; keys are in no order."""
    query = (
        "INSERT INTO {} (key, value, codec) "
        f"SELECT {LAYOUTS[layout]} || lpad((i::bigint * 7919 % 1000003)::text, 8, '0'), "
        "convert_to(repeat('x', 100), 'utf8'), 'text' FROM generate_series(1, {}) AS i, (SELECT {} AS n) AS n"
    )
    connection.execute(sql.SQL("ALTER TABLE {} SET (autovacuum_enabled = false)").format(sql.Identifier(table)))
    connection.execute(sql.SQL(query).format(sql.Identifier(table), rows, rows))
    if analysed:
        connection.execute(sql.SQL("VACUUM ANALYZE {}").format(sql.Identifier(table)))


def lasts(work: Callable[[], Any], *then: Callable[[Any], Any]) -> float:
    """Return the milliseconds that something takes, at its best of three times: others may use the machine."""

    def once() -> float:
        start = time.perf_counter()
        result = work()
        for step in then:
            result = step(result)
        return (time.perf_counter() - start) * 1000

    return min(once(), once(), once())


class _RolledBackError(Exception):
    pass


def take(d: D, last: bool) -> None:
    """Take an item and put it back."""
    try:
        with d.transaction():
            d.popitem(last=last)
            raise _RolledBackError
    except (_RolledBackError, KeyError):
        pass


def check(d: D, rows: int, small: int) -> None:
    """Check the first item, the whole, and the taking of one, in every namespace and both directions."""
    scale = rows / 1_000_000
    cases = {"small": (small, 100), "middle": (rows // 5, 100 + 1_000 * scale), "large": (0, 100 + 3_000 * scale)}
    for name, (number, first) in cases.items():
        part = d.namespace(name)
        number = number or rows - small - rows // 5
        whole = 100 + number * 0.03  # milliseconds: some 33,000 items a second; a sort for each page is far below
        assert part.count() == number
        for view in (part.keys, part.items, part.values):
            assert lasts(view, iter, next) < first, (name, view)
            assert lasts(view, reversed, next) < first, (name, view)
        for walked in (iter(part.keys()), iter(part.items()), reversed(part.items())):
            start = time.perf_counter()
            assert sum(1 for _ in walked) == number
            assert (time.perf_counter() - start) * 1000 < whole, name
        for last in (True, False):
            assert lasts(partial(take, part, last)) < first, (name, last)
    none = d.namespace("none")
    assert lasts(none.items, list) < 100
    assert lasts(partial(take, none, last=True)) < 300  # it looks again for 50 ms


@pytest.mark.parametrize("analysed", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_namespaces_of_a_table(d: D, server_url: str, table: str, layout: str, analysed: bool) -> None:
    """Iterating and taking from a namespace costs what it holds, wherever it lies, with statistics and without."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        fill(d, connection, table, layout, 100_000, analysed)
        check(d, 100_000, 100)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("analysed", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_namespaces_of_a_large_table(d: D, server_url: str, table: str, layout: str, analysed: bool) -> None:
    """So it is with a million rows."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        fill(d, connection, table, layout, 1_000_000, analysed)
        check(d, 1_000_000, 1_000)
        assert lasts(lambda: next(iter(d))) < 100
        assert lasts(lambda: next(reversed(d))) < 100
        assert lasts(lambda: next(d.scan("small:"))) < 100
        assert lasts(lambda: next(d.scan("large:", reverse=True))) < 100
        start = time.perf_counter()
        assert sum(1 for _ in d) == 1_000_000
        assert time.perf_counter() - start < 30


def test_expired_rows_in_front(d: D, server_url: str, table: str) -> None:
    """Pages and pages of expired rows before the first live one are passed quickly, in either direction."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        fill(d, connection, table, "small ones last", 100_000, analysed=False)
        hide = "UPDATE {} SET expires_at = CASE WHEN key NOT LIKE %s THEN now() - '1 s'::interval END"
        for name, walked in (("small", iter), ("large", reversed)):
            connection.execute(sql.SQL(hide).format(sql.Identifier(table)), (f"{name}:%",))
            assert lasts(partial(walked, d), next) < 2_000
            assert next(walked(d)).startswith(name)
            assert len(list(d)) == len(d.namespace(name)) == len(list(d.namespace(name)))


def child(server_url: str, table: str, program: str) -> list[int]:
    """Run a program in a process of its own and return the numbers that it prints."""
    before = f"""
        import resource
        from pgdict import PgDict
        d = PgDict({server_url!r}, table={table!r})
        d["warm"] = 1
        list(d.items()), d.set_many([("warm", 1)]), d.pop("warm")

        def peak():
            with open("/proc/self/status") as status:
                return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))

        start = peak()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(before) + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return [int(number) for number in done.stdout.split()]


MEMORY = """
    d.update((f"{n % 10}:{n:08}", "x" * 100) for n in range(NUMBER))
    print(peak() - start)
    assert sum(1 for _ in d.items()) == sum(1 for _ in reversed(d.keys())) == sum(1 for _ in d.scan()) == NUMBER
    print(peak() - start)
    assert sum(1 for _ in d.namespace("7").items()) == NUMBER // 10
    print(peak() - start)
    d.namespace("3").clear()
    assert d.delete_many(f"{n % 10}:{n:08}" for n in range(NUMBER // 2)) == NUMBER * 9 // 20
    d.clear()
    print(peak() - start)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("number", [120_000, pytest.param(1_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_memory(server_url: str, table: str, number: int) -> None:
    """Loading, iterating and clearing any number of items takes no more than 64 MB."""
    grown = child(server_url, table, MEMORY.replace("NUMBER", str(number)))
    assert len(grown) == 4
    assert max(grown) < 64 * 1024, grown


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_of_huge_values(server_url: str, table: str) -> None:
    """A hundred values of 5 MB are loaded and iterated a few at a time."""
    (grown,) = child(
        server_url,
        table,
        """
        d.update((f"n:{n}", bytes(5_000_000)) for n in range(100))
        for view in (d.items(), d.namespace("n").values()):
            assert sum(1 for _ in view) == 100
        print(peak() - start)
        """,
    )
    assert grown < 160 * 1024, grown


@pytest.mark.slow
def test_a_killed_load_leaves_nothing(d: D, server_url: str, table: str) -> None:
    """A process that is killed in the middle of a load has stored nothing."""
    with pytest.raises(AssertionError):
        child(
            server_url,
            table,
            """
            import os, signal

            def pairs():
                for n in range(300_000):
                    yield f"k{n}", "x" * 100
                os.kill(os.getpid(), signal.SIGKILL)

            d.update(pairs())
            """,
        )
    assert len(d) == 0
