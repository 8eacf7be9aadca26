"""How many statements a call takes, counted on the wire: by libpq's own trace of what it sends."""

from __future__ import annotations

import operator
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sized
from functools import partial
from typing import IO, Any

import psycopg
import pytest
from psycopg import pq
from psycopg_pool import ConnectionPool

from pgdict import ABSENT, PgDict
from pgdict.operations import many
from pgdict.operations.many import BATCH, PLENTY
from pgdict.operations.pages import ROWS

Dictionary = PgDict[Any, Any]
Call = Callable[[Dictionary], Any]

pytestmark = pytest.mark.skipif(pq.version() < 140000, reason="libpq before 14 has no trace to count in")


class Wire:
    """A dictionary on one connection, and the trace of that."""

    def __init__(self, d: Dictionary, trace: IO[str]) -> None:
        self.d, self._trace = d, trace

    def count(self, call: Call) -> int:
        """Return how many statements a call takes."""
        self._trace.read()
        call(self.d)
        return len(_SENT(self._trace.read()))


_SENT = re.compile(r"^F\t\d+\t(?:Query|Execute)\t", re.MULTILINE).findall


@pytest.fixture
def wire(server_url: str, table: str) -> Iterator[Wire]:
    """A new dictionary whose statements can be counted."""
    with tempfile.NamedTemporaryFile("r") as trace, open(trace.name, "w") as written:  # noqa: PTH123 - as it is

        def begin(connection: psycopg.Connection[Any]) -> None:
            connection.pgconn.trace(written.fileno())
            connection.pgconn.set_trace_flags(pq.Trace.SUPPRESS_TIMESTAMPS)

        settings = {"autocommit": True}
        with ConnectionPool(server_url, kwargs=settings, min_size=1, max_size=1, configure=begin) as pool:
            yield Wire(Dictionary(pool=pool, table=table), trace)


def fill(d: Dictionary, number: int) -> None:
    """Store so many items."""
    d.update((f"k{n:06}", n) for n in range(number))


ONE: dict[str, Call] = {
    "d[key]": lambda d: d["a"],
    "get": lambda d: d.get("a"),
    "get of nothing": lambda d: d.get("x"),
    "in": lambda d: "a" in d,
    "in keys": lambda d: "a" in d.keys(),  # noqa: SIM118
    "in items": lambda d: ("a", 1) in d.items(),
    "d[key] = value": lambda d: d.__setitem__("a", 2),
    "d[new] = value": lambda d: d.__setitem__("x", 2),
    "del": lambda d: d.__delitem__("a"),
    "pop": lambda d: d.pop("a"),
    "pop of nothing": lambda d: d.pop("x", None),
    "popitem": lambda d: d.popitem(),
    "popitem of the first": lambda d: d.popitem(last=False),
    "setdefault": lambda d: d.setdefault("a", 2),
    "setdefault of nothing": lambda d: d.setdefault("x", 2),
    "move_to_end": lambda d: d.move_to_end("a"),
    "move_to_end of the first": lambda d: d.move_to_end("b", last=False),
    "set": lambda d: d.set("a", 2),
    "set_nx": lambda d: d.set_nx("x", 2),
    "set_nx in vain": lambda d: d.set_nx("a", 2),
    "increment": lambda d: d.increment("a"),
    "increment of nothing": lambda d: d.increment("x", 5),
    "decrement": lambda d: d.decrement("a"),
    "increment by a lot": lambda d: d.increment("a", 10**500),
    "compare_and_swap of another": lambda d: d.compare_and_swap("a", 7, 8),
    "compare_and_swap of nothing": lambda d: d.compare_and_swap("x", 7, 8),
    "compare_and_swap of absence": lambda d: d.compare_and_swap("x", ABSENT, 8),
    "mutate without change": lambda d: d.mutate("a", int),
    "get_and_set": lambda d: d.get_and_set("a", 2),
    "get_and_delete": lambda d: d.get_and_delete("a"),
    "expire": lambda d: d.expire("b", 60),
    "persist": lambda d: d.persist("a"),
    "ttl": lambda d: d.ttl("a"),
    "entry": lambda d: d.entry("a"),
    "len": len,
    "len of a view": lambda d: len(d.items()),
    "bool": bool,
    "clear": lambda d: d.clear(),
    "count": lambda d: d.count("a"),
    "delete_prefix": lambda d: d.delete_prefix("a"),
    "cleanup_expired": lambda d: d.cleanup_expired(),
    "scan with a limit": lambda d: list(d.scan(limit=2)),
    "equality with a longer dict": lambda d: d == dict.fromkeys("abcd"),
}

TWO: dict[str, Call] = {
    "compare_and_swap": lambda d: d.compare_and_swap("a", 1, 2),
    "mutate": lambda d: d.mutate("a", lambda value: value + 1),
    "mutate of nothing": lambda d: d.mutate("x", lambda value: value + 1, default=int),
    "increment by a float": lambda d: d.increment("b", 0.5),
}


@pytest.mark.parametrize("call", ONE.values(), ids=ONE)
def test_one(wire: Wire, call: Call) -> None:
    """A call on one key, or on all without reading them, is one statement."""
    wire.d.update(a=1, b=2, c=3)
    assert wire.count(call) == 1


@pytest.mark.parametrize("call", TWO.values(), ids=TWO)
def test_two(wire: Wire, call: Call) -> None:
    """What decides in Python reads and writes: two statements without contention."""
    wire.d.update(a=1, b=2, c=3)
    assert wire.count(call) == 2


def test_impossible_keys(wire: Wire) -> None:
    """What cannot be there is not asked for."""
    assert wire.count(lambda d: (d.get(object()), object() in d, d.pop(object(), None), d.get_many([object()]))) == 0


def test_expiry(wire: Wire) -> None:
    """A write with a ttl is one statement when there is nothing to sweep; a read that meets an expired row takes one more."""
    assert wire.count(lambda d: d.set("a", 1, ttl=60)) == 1
    wire.d.set("a", 1, ttl=0.1)
    time.sleep(0.12)
    assert [wire.count(lambda d: d.get("a")) for _ in range(2)] == [2, 1]


def test_blocks(wire: Wire) -> None:
    """A transaction adds its begin and its end; the block of `mutate` is one with a locking read and a write."""

    def block(d: Dictionary) -> None:
        with d.mutate("a") as box:
            box.value += 1

    def transaction(d: Dictionary) -> None:
        with d.transaction():
            d["a"] = d["b"]

    wire.d.update(a=1, b=2)
    assert wire.count(block) == 4
    assert wire.count(transaction) == 4


WHOLE: dict[str, Call] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "sorted": sorted,
    "[*d]": lambda d: [*d],
    "max": lambda d: max(d, default=None),
    "a loop": lambda d: [key for key in d],  # noqa: C416
    "reversed": lambda d: list(reversed(d)),
    "list of keys": lambda d: list(d.keys()),
    "tuple of values": lambda d: tuple(d.values()),
    "sum of values": lambda d: sum(d.values()),
    "list of items": lambda d: list(d.items()),
    "sorted items": lambda d: sorted(d.items()),
    "dict of items": lambda d: dict(d.items()),
    "[*items]": lambda d: [*d.items()],
    "reversed items": lambda d: list(reversed(d.items())),
    "copy": lambda d: d.copy(),
    "|": lambda d: d | {},
    "scan": lambda d: list(d.scan()),
    "scan_keys": lambda d: list(d.scan_keys()),
    "equality of keys": lambda d: d.keys() == {},
    "keys & set": lambda d: d.keys() & {"a"},
    "dict.keys() - keys": lambda d: dict.fromkeys("ab").keys() - d.keys(),
    "set <= keys": lambda d: {"a"} <= d.keys(),
    "items <= items": lambda d: d.items() <= {"a": 1}.items(),
    "isdisjoint": lambda d: d.keys().isdisjoint("ab"),
    "in values": lambda d: object() in d.values(),
    "update another": lambda d: {}.update(d.items()),
}


@pytest.mark.parametrize("number", [0, 1, ROWS - 1, ROWS, ROWS + 1, 2 * ROWS])
def test_pages(wire: Wire, number: int) -> None:
    """Reading a dictionary of n items takes ⌈n / page⌉ statements, one if it is empty, and no count in advance."""
    fill(wire.d, number)
    expected = max(1, -(-number // ROWS))
    calls = WHOLE if number < 2 else {name: WHOLE[name] for name in ("list", "sorted items", "tuple of values", "copy")}
    assert {name: wire.count(call) for name, call in calls.items()} == dict.fromkeys(calls, expected)


@pytest.mark.parametrize("number", [ROWS - 1, ROWS, ROWS + 1])
def test_other_pages(wire: Wire, number: int) -> None:
    """So it does backwards and in key order."""
    fill(wire.d, number)
    for name in ("reversed", "reversed items", "scan", "scan_keys"):
        assert wire.count(WHOLE[name]) == -(-number // ROWS)


def test_key_by_key(wire: Wire) -> None:
    """`dict(d)` and `{**d}` ask for the keys, and then key by key, as CPython does for any mapping."""
    fill(wire.d, 10)
    assert wire.count(dict) == wire.count(lambda d: {**d}) == 11


def test_equality(wire: Wire) -> None:
    """`==` with something as long counts and reads; the other may be in PostgreSQL, too."""
    fill(wire.d, 10)
    copy = wire.d.copy()
    assert wire.count(lambda d: d == copy) == wire.count(lambda d: copy == d) == 2
    assert wire.count(operator.methodcaller("__eq__", wire.d)) == 4


def _length(sized: Sized, _: object) -> int:
    return len(sized)


def test_lengths(wire: Wire) -> None:
    """A `len` counts, whatever iterators there are; that `list` begins by asking for a length changes no answer."""
    fill(wire.d, 10)
    views: list[Any] = [wire.d, wire.d.keys(), wire.d.values(), wire.d.items()]
    for view in views:
        waiting = iter(view)
        assert len(view) == len(list(view)) == operator.length_hint(view) == 10
        assert [wire.count(partial(_length, view)) for _ in range(3)] == [1, 1, 1]
        assert [call(view) for call in (len, len)] == [10, 10]
        for call in (iter, len, iter, len):
            call(view)
        next(waiting)
        assert len(view) == 10


@pytest.mark.parametrize("number", [1, 1_000, PLENTY - 1])
def test_updates(wire: Wire, number: int) -> None:
    """`update` with thousands of pairs, from whatever, is one statement; with none it is none."""
    pairs = [(f"k{n}", "x" * 100) for n in range(number)]
    assert wire.count(lambda d: d.update(pairs)) == 1
    assert wire.count(lambda d: d.update(dict(pairs))) == 1
    assert wire.count(lambda d: d.update(iter(pairs))) == 1
    assert wire.count(lambda d: d.set_many(dict(pairs))) == 1
    assert wire.count(lambda d: d.__ior__(pairs)) == 1
    assert wire.count(lambda d: d.update()) == wire.count(lambda d: d.update({})) == 0


def test_updates_with_new_keys(wire: Wire) -> None:
    """From 10,000 pairs on they are copied when all are new: one COPY for each 10,000, and three statements around them."""
    pairs = [(f"k{n}", "x" * 100) for n in range(2 * PLENTY)]
    assert wire.count(lambda d: d.update(pairs)) == 2 + len(["BEGIN", "SELECT", "COMMIT"])
    assert wire.count(lambda d: d.update(pairs)) == len(["BEGIN", "SELECT", "COMMIT", "INSERT"])


def test_large_updates(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond one buffer it is one COPY for each, within a transaction."""
    monkeypatch.setattr(many, "BUFFER", 3 * 2**20)
    statements = wire.count(lambda d: d.update((n, bytes(2**18)) for n in range(10)))
    assert statements == 3 + len(["BEGIN", "CREATE", "INSERT", "DROP", "COMMIT"])


@pytest.mark.parametrize("number", [0, 1, BATCH, BATCH + 1, 2 * BATCH])
def test_batches(wire: Wire, number: int) -> None:
    """Reads and deletes of many keys take a statement for each 5,000 asked for, there or not."""
    fill(wire.d, 10)
    keys = [f"k{n:06}" for n in range(number)]
    expected = -(-number // BATCH)
    assert wire.count(lambda d: d.get_many(keys)) == expected
    assert wire.count(lambda d: d.delete_many(keys)) == expected


def test_namespaces(wire: Wire) -> None:
    """A small namespace, also in a larger table, takes no more than three statements for all its items."""
    fill(wire.d, 2 * ROWS)
    users = wire.d.namespace("users")
    for number in (0, 10):
        fill(users, number)
        assert wire.count(lambda _: list(users)) <= 3
        assert wire.count(lambda _: users.copy()) <= 3
        assert wire.count(lambda _: (len(users), bool(users))) == 2


def test_repr(wire: Wire) -> None:
    """`repr` reads a page and a few values, however many there are."""
    fill(wire.d, ROWS)
    assert wire.count(repr) <= 2


def _exhausted(scan: Callable[[], Iterator[Any]], _: object) -> list[Any]:
    return list(scan())


def test_limited_scans(wire: Wire) -> None:
    """A scan reads no more pages than its limit needs."""
    fill(wire.d, 2 * ROWS)
    for limit, expected in ((0, 0), (1, 1), (ROWS, 1), (ROWS + 1, 2)):
        for reverse in (False, True):
            scan = partial(wire.d.scan, "k", limit=limit, reverse=reverse)
            assert wire.count(partial(_exhausted, scan)) == expected
    assert wire.count(lambda d: list(d.scan(offset=ROWS, limit=10))) == 1
    assert wire.count(lambda d: next(d.scan())) == 1
