"""One table that says what each operation makes of a key that is absent, there, there for a time, or expired."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import psycopg
import pytest
from strategies import exact

from pgdict import ABSENT, CasResult, Entry, PgDict
from pgdict.operations import DEFAULT

DEFAULT_TTL, OLD_TTL, NEW_TTL = 5000, 1000, 100
BIG, LONG = 10**30, 10**2000

D = PgDict[Any, Any]


@dataclass(frozen=True)
class Then:
    """What an operation returns or raises, and what it leaves."""

    returns: Any = None
    value: Any = ABSENT
    """The value of the key afterwards."""
    ttl: str = "never"
    """Its time to live: "never", "kept", the "default" of the dictionary, or "new" as given to the operation."""
    place: str = "kept"
    """Where it is when it was there before: place "kept", or moved to the "end" or the "front"."""


@dataclass(frozen=True)
class Op:
    """An operation on the key "k"; an expired key is an absent one, so these have one column."""

    title: str
    call: Callable[[D], Any]
    absent: Then
    live: Then
    expiring: Then | None = None
    """For a key that has a time to live, where that differs."""
    stored: Any = "old"
    """What the key holds when it is there."""

    def then(self, state: str) -> Then:
        if state in ("absent", "expired"):
            return self.absent
        return self.expiring or self.live if state == "expiring" else self.live


def block(d: D, **options: Any) -> Any:
    with d.mutate("k", **options) as box:
        box.value += "er"
    return box.value


def failing_block(d: D) -> None:
    with d.mutate("k", default=str) as box:
        box.value = "lost"
        raise ZeroDivisionError


def older(value: str) -> str:
    return value + "er"


def fails(value: Any) -> Any:
    raise ZeroDivisionError


def untouched(returns: Any, value: Any = "old") -> Then:
    return Then(returns, value, "kept")


def changed(returns: Any, value: Any, ttl: str = "kept") -> Then:
    return Then(returns, value, ttl)


failed = ZeroDivisionError()
swapped, not_found = CasResult("swapped"), CasResult("not_found")

TABLE = [
    # reading
    Op("d[k]", lambda d: d["k"], Then(KeyError("k")), untouched("old")),
    Op("get", lambda d: d.get("k"), Then(None), untouched("old")),
    Op("get, default", lambda d: d.get("k", 7), Then(7), untouched("old")),
    Op("in", lambda d: "k" in d, Then(False), untouched(True)),
    Op("len", len, Then(2), untouched(3)),
    Op("get_many", lambda d: d.get_many(["x", "k"]), Then({}), untouched({"k": "old"})),
    Op("copy", lambda d: d.copy()["k"], Then(KeyError("k")), untouched("old")),
    Op("scan", lambda d: list(d.scan("k")), Then([]), untouched([("k", "old")])),
    Op("count", lambda d: d.count("k"), Then(0), untouched(1)),
    Op("entry", lambda d: d.entry("k").value, Then(KeyError("k")), untouched("old")),
    Op("ttl", lambda d: d.ttl("k"), Then(KeyError("k")), untouched(None), untouched(pytest.approx(OLD_TTL, abs=30))),
    # writing
    Op("d[k] = v", lambda d: d.__setitem__("k", "new"), Then(None, "new", "default"), changed(None, "new", "default")),
    Op("set", lambda d: d.set("k", "new"), Then(None, "new", "default"), changed(None, "new", "default")),
    Op("set, ttl", lambda d: d.set("k", "new", ttl=NEW_TTL), Then(None, "new", "new"), changed(None, "new", "new")),
    Op("set, None", lambda d: d.set("k", "new", ttl=None), Then(None, "new", "never"), changed(None, "new", "never")),
    Op("set_nx", lambda d: d.set_nx("k", "new"), Then(True, "new", "default"), untouched(False)),
    Op("set_nx, ttl", lambda d: d.set_nx("k", "new", ttl=NEW_TTL), Then(True, "new", "new"), untouched(False)),
    Op("setdefault", lambda d: d.setdefault("k", "new"), Then("new", "new", "default"), untouched("old")),
    Op("update", lambda d: d.update(k="new"), Then(None, "new", "default"), changed(None, "new", "default")),
    Op("|=", lambda d: d.__ior__({"k": "new"}) is d, Then(True, "new", "default"), changed(True, "new", "default")),
    Op("set_many", lambda d: d.set_many({"k": "new"}), Then(None, "new", "default"), changed(None, "new", "default")),
    Op("set_many, ttl", lambda d: d.set_many({"k": 1}, ttl=NEW_TTL), Then(None, 1, "new"), changed(None, 1, "new")),
    Op("set_many, None", lambda d: d.set_many({"k": 1}, ttl=None), Then(None, 1, "never"), changed(None, 1, "never")),
    Op("set_many, twice", lambda d: d.set_many([("k", 1), ("k", 2)]), Then(None, 2, "default"), changed(None, 2, "default")),
    Op("get_and_set", lambda d: d.get_and_set("k", "new"), Then(None, "new", "default"), changed("old", "new", "default")),
    Op(
        "get_and_set, ttl",
        lambda d: d.get_and_set("k", "new", 7, ttl=NEW_TTL),
        Then(7, "new", "new"),
        changed("old", "new", "new"),
    ),
    # numbers
    Op("increment", lambda d: d.increment("k"), Then(1, 1, "default"), changed(6, 6), stored=5),
    Op("increment, by", lambda d: d.increment("k", BIG), Then(BIG, BIG, "default"), changed(BIG + 5, BIG + 5), stored=5),
    Op("increment, ttl", lambda d: d.increment("k", 2, ttl=NEW_TTL), Then(2, 2, "new"), changed(7, 7), stored=5),
    Op("increment, None", lambda d: d.increment("k", ttl=None), Then(1, 1, "never"), changed(6, 6), stored=5),
    Op("increment, float", lambda d: d.increment("k", 0.5), Then(0.5, 0.5, "default"), changed(5.5, 5.5), stored=5),
    Op("increment a float", lambda d: d.increment("k", 2), Then(2, 2, "default"), changed(2.5, 2.5), stored=0.5),
    Op("increment a long one", lambda d: d.increment("k"), Then(1, 1, "default"), changed(LONG + 1, LONG + 1), stored=LONG),
    Op("increment a str", lambda d: d.increment("k"), Then(1, 1, "default"), untouched(TypeError())),
    Op("increment digits", lambda d: d.increment("k"), Then(1, 1, "default"), untouched(TypeError(), "5"), stored="5"),
    Op("increment a bool", lambda d: d.increment("k"), Then(1, 1, "default"), untouched(TypeError(), True), stored=True),
    Op("decrement", lambda d: d.decrement("k", 7), Then(-7, -7, "default"), changed(-2, -2), stored=5),
    Op("decrement, ttl", lambda d: d.decrement("k", ttl=NEW_TTL), Then(-1, -1, "new"), changed(4, 4), stored=5),
    # comparing
    Op("cas, match", lambda d: d.compare_and_swap("k", "old", "new"), Then(not_found), changed(swapped, "new")),
    Op("cas, equal", lambda d: d.compare_and_swap("k", 5.0, 6), Then(not_found), changed(swapped, 6), stored=5),
    Op(
        "cas, ttl",
        lambda d: d.compare_and_swap("k", "old", "new", ttl=NEW_TTL),
        Then(not_found),
        changed(swapped, "new", "new"),
    ),
    Op(
        "cas, None",
        lambda d: d.compare_and_swap("k", "old", "new", ttl=None),
        Then(not_found),
        changed(swapped, "new", "never"),
    ),
    Op(
        "cas, mismatch",
        lambda d: d.compare_and_swap("k", "other", "new", ttl=NEW_TTL),
        Then(not_found),
        untouched(CasResult("mismatch", "old")),
    ),
    Op(
        "cas, ABSENT",
        lambda d: d.compare_and_swap("k", ABSENT, "new"),
        Then(swapped, "new", "default"),
        untouched(CasResult("mismatch", "old")),
    ),
    Op(
        "cas, ABSENT, ttl",
        lambda d: d.compare_and_swap("k", ABSENT, "new", ttl=NEW_TTL),
        Then(swapped, "new", "new"),
        untouched(CasResult("mismatch", "old")),
    ),
    # changing
    Op("mutate", lambda d: d.mutate("k", older), Then(KeyError("k")), changed("older", "older")),
    Op("mutate, default", lambda d: d.mutate("k", older, default=str), Then("er", "er", "default"), changed("older", "older")),
    Op("mutate, ttl", lambda d: d.mutate("k", older, ttl=NEW_TTL), Then(KeyError("k")), changed("older", "older", "new")),
    Op(
        "mutate, default, ttl",
        lambda d: d.mutate("k", older, default=str, ttl=NEW_TTL),
        Then("er", "er", "new"),
        changed("older", "older", "new"),
    ),
    Op("mutate, None", lambda d: d.mutate("k", older, ttl=None), Then(KeyError("k")), changed("older", "older", "never")),
    Op("mutate, nothing", lambda d: d.mutate("k", str), Then(KeyError("k")), untouched("old")),
    Op("mutate, error", lambda d: d.mutate("k", fails, default=str), Then(failed), untouched(failed)),
    Op("with mutate", block, Then(KeyError("k")), changed("older", "older")),
    Op("with mutate, default", lambda d: block(d, default=str), Then("er", "er", "default"), changed("older", "older")),
    Op("with mutate, ttl", lambda d: block(d, ttl=NEW_TTL), Then(KeyError("k")), changed("older", "older", "new")),
    Op(
        "with mutate, default, ttl",
        lambda d: block(d, default=str, ttl=NEW_TTL),
        Then("er", "er", "new"),
        changed("older", "older", "new"),
    ),
    Op("with mutate, error", failing_block, Then(failed), untouched(failed)),
    # time to live
    Op("expire", lambda d: d.expire("k", NEW_TTL), Then(False), Then(True, "old", "new")),
    Op("persist", lambda d: d.persist("k"), Then(False), Then(False, "old", "never"), Then(True, "old", "never")),
    # order
    Op("move_to_end", lambda d: d.move_to_end("k"), Then(KeyError("k")), Then(None, "old", "kept", "end")),
    Op("move_to_end, front", lambda d: d.move_to_end("k", last=False), Then(KeyError("k")), Then(None, "old", "kept", "front")),
    # removing
    Op("del", lambda d: d.__delitem__("k"), Then(KeyError("k")), Then(None)),
    Op("pop", lambda d: d.pop("k"), Then(KeyError("k")), Then("old")),
    Op("pop, default", lambda d: d.pop("k", 7), Then(7), Then("old")),
    Op("get_and_delete", lambda d: d.get_and_delete("k", 7), Then(7), Then("old")),
    Op("popitem", lambda d: [d.popitem(), d.popitem()][1], Then(("a", 1)), Then(("k", "old"))),
    Op(
        "popitem, first",
        lambda d: [d.popitem(last=False), d.popitem(last=False)][1],
        Then(("z", 26)),
        Then(("k", "old")),
    ),
    Op("delete_many", lambda d: d.delete_many(["x", "k", "k"]), Then(0), Then(1)),
    Op("delete_prefix", lambda d: d.delete_prefix("k"), Then(0), Then(1)),
    Op("clear", lambda d: d.clear(), Then(None), Then(None)),
]


@dataclass(frozen=True)
class Stage:
    """A dictionary between whose two neighbours, `a` and `z`, the key is put."""

    d: D
    raw: psycopg.Connection[Any]
    table: str
    prefix: str

    NEIGHBOURS: ClassVar[dict[str, int]] = {"a": 1, "z": 26}

    def sql(self, statement: str, *params: object) -> list[Any]:
        cursor = self.raw.execute(statement.format(table=f'"{self.table}"').encode(), params)
        return cursor.fetchall() if cursor.description else []

    def prepare(self, state: str, value: Any) -> None:
        """Store the key in that state, as if written in the year 2000."""
        self.sql("DELETE FROM {table}")
        self.d.set("a", 1, ttl=None)
        if state != "absent":
            self.d.set("k", value, ttl=None if state == "live" else OLD_TTL)
        self.d.set("z", 26, ttl=None)
        self.sql("UPDATE {table} SET created_at = '2000-01-01Z', updated_at = '2000-01-01Z'")
        if state == "expired":
            self.sql("UPDATE {table} SET expires_at = '2000-01-02Z' WHERE key = %s", self.prefix + "k")


@pytest.fixture(scope="module", params=["root", "namespace"])
def stage(request: pytest.FixtureRequest, server_url: str) -> Iterator[Stage]:
    """A dictionary with a default time to live: the root of a table, or a namespace."""
    name = f"operations_{request.param}_{os.getpid()}"
    with (
        PgDict[Any, Any](server_url, table=name, ttl=DEFAULT_TTL) as root,
        psycopg.connect(server_url, autocommit=True) as raw,
    ):
        is_root = request.param == "root"
        yield Stage(root if is_root else root.namespace("n"), raw, name, "" if is_root else "n:")
        root.drop()


def outcome(call: Callable[[D], Any], d: D) -> Any:
    try:
        return call(d)
    except Exception as error:  # noqa: BLE001 - the table says which
        return error


def matches(actual: Any, promised: Any) -> bool:
    if isinstance(promised, Exception):
        return type(actual) is type(promised) and (not promised.args or actual.args == promised.args)
    return actual == promised and (isinstance(promised, type(pytest.approx(1))) or type(actual) is type(promised))


@pytest.mark.parametrize("state", ["absent", "live", "expiring", "expired"])
@pytest.mark.parametrize("op", TABLE, ids=lambda op: op.title)
def test_operation(stage: Stage, op: Op, state: str) -> None:
    """The operation returns, and leaves behind, what the table says."""
    d, then = stage.d, op.then(state)
    was_there = state in ("live", "expiring")
    stage.prepare(state, op.stored)

    assert matches(outcome(op.call, d), then.returns)

    assert exact(d.get("k", ABSENT)) == exact(then.value)
    order = [key for key in d if key in ("a", "k", "z")]
    if then.value is ABSENT:
        assert "k" not in order
        return
    check_ttl(d, then.ttl, OLD_TTL if state == "expiring" else None)
    place = then.place if was_there else "end"
    assert order == {"kept": ["a", "k", "z"], "end": ["a", "z", "k"], "front": ["k", "a", "z"]}[place]
    entry = d.entry("k")
    assert (entry.created_at.year == 2000) == was_there
    assert (entry.updated_at.year == 2000) == (was_there and exact(then.value) == exact(op.stored))


def check_ttl(d: D, promised: str, before: float | None) -> None:
    left = d.ttl("k")
    seconds = {"never": None, "kept": before, "default": DEFAULT_TTL, "new": NEW_TTL}[promised]
    assert left == seconds if seconds is None else left == pytest.approx(seconds, abs=30)
    assert (d.entry("k").expires_at is None) == (seconds is None)


def test_entry_of_each_codec(stage: Stage) -> None:
    """An entry tells the codec, the size and the moments of a value."""
    stage.d.set("k", 12, ttl=None)
    number: Entry = stage.d.entry("k")
    assert (number.value, number.codec, number.size, number.expires_at) == (12, "int", 2, None)
    stage.d.set("k", "twelve", ttl=60)
    text: Entry = stage.d.entry("k")
    assert (text.codec, text.created_at) == ("msgpack", number.created_at)
    assert text.updated_at > number.updated_at
    assert text.expires_at is not None
    assert (text.expires_at - text.updated_at).total_seconds() == pytest.approx(60)


@pytest.mark.parametrize("meddle", [lambda d: d.set("k", "other"), lambda d: d.pop("k")])
def test_a_block_that_writes_the_key_itself(stage: Stage, meddle: Callable[[D], Any]) -> None:
    """What a `mutate` block holds at its end is stored, also when the block itself has set or removed the key."""
    stage.prepare("live", "old")
    with stage.d.mutate("k") as box:
        box.value += "er"
        meddle(stage.d)
    assert stage.d["k"] == "older"


def test_a_key_that_expires_during_a_block(stage: Stage) -> None:
    """A `mutate` block keeps the expiry of the key, so that what it made of one that expires meanwhile is gone too."""
    d = stage.d
    for ttl, left in ((DEFAULT, None), (NEW_TTL, "older")):
        stage.prepare("live", "old")
        with d.mutate("k", ttl=ttl) as box:
            d.expire("k", 1e-6)
            box.value += "er"
        assert d.get("k") == left
