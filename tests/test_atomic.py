"""Atomic operations, called by 8 threads of each of several processes at once."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from crowd import THREADS, Crowd, crowd
from processes import program, said

from pgdict import ABSENT, PgDict

Dict = PgDict[Any, Any]

PROCESSES = 2
CALLERS = PROCESSES * THREADS


@pytest.fixture(scope="module")
def many() -> Iterator[Crowd]:
    with crowd(PROCESSES) as all_of_them:
        yield all_of_them


def add(d: Dict, me: int) -> list[int]:
    for by in [7, -3, 10**17] * 15:
        d.decrement("mixed", by)
    return [d.increment("count") for _ in range(100)]


def test_increment(many: Crowd, server_url: str, table: str, d: Dict) -> None:
    """No count is lost: the sums returned are those of one caller after the other."""
    sums = [total for totals in many.at(add, server_url, table, max_size=4) for total in totals]
    assert sorted(sums) == list(range(1, 100 * CALLERS + 1))
    assert (d["count"], d["mixed"]) == (100 * CALLERS, -15 * CALLERS * (10**17 + 4))


def add_large(d: Dict, me: int) -> None:
    for _ in range(5):
        d.increment("large", 10**30)
        d.increment("float", 0.5)
        d.decrement("huge", 10**1500)


def test_increment_beyond(many: Crowd, server_url: str, table: str, d: Dict) -> None:
    """Neither are those of large numbers and floats."""
    many.at(add_large, server_url, table)
    assert (d["large"], d["float"], d["huge"]) == (5 * CALLERS * 10**30, 2.5 * CALLERS, -5 * CALLERS * 10**1500)


def append(d: Dict, me: int) -> None:
    for n in range(20):
        d.mutate("function", lambda seen: [*seen, (me, n)], default=list)  # noqa: B023 - called at once
        with d.mutate("block", default=list) as box:
            box.value.append((me, n))


def test_mutate(many: Crowd, server_url: str, table: str, d: Dict) -> None:
    """No append is lost, and each caller's are in its order, with a function and with a block."""
    many.at(append, server_url, table, max_size=3)
    for key in ("function", "block"):
        assert sorted(d[key]) == [(me, n) for me in range(CALLERS) for n in range(20)]
        assert [n for me, n in d[key] if me == 3] == list(range(20))


def swap(d: Dict, me: int) -> int:
    won = 0
    for _ in range(20):
        seen = d.get("version", 0)
        won += bool(d.compare_and_swap("version", seen or ABSENT, seen + 1))
    return won


def test_compare_and_swap(many: Crowd, server_url: str, table: str, d: Dict) -> None:
    """Each version is made by one caller."""
    assert sum(many.at(swap, server_url, table)) == d["version"] > 0


def exchange(d: Dict, me: int) -> list[Any]:
    return [d.get_and_set("baton", (me, n)) for n in range(150)]


def test_get_and_set(many: Crowd, server_url: str, table: str, d: Dict) -> None:
    """Each value is handed out exactly once, but for the one that is left."""
    given = [old for olds in many.at(exchange, server_url, table) for old in olds]
    assert given.count(None) == 1
    assert Counter([*given, d["baton"]]) == Counter([None, *((me, n) for me in range(CALLERS) for n in range(150))])


def hand_over(d: Dict, me: int) -> tuple[list[Any], list[Any]]:
    """Exchange and delete, both of which create and end the key under the others."""
    put, got = [], []
    for n in range(150):
        if (me + n) % 3:
            put.append((me, n))
            got.append(d.get_and_set("baton", (me, n)))
        else:
            got.append(d.get_and_delete("baton"))
    return put, got


def test_get_and_set_with_delete(many: Crowd, server_url: str, table: str, d: Dict) -> None:
    """Also when others delete the key meanwhile."""
    d.clear()
    results = many.at(hand_over, server_url, table)
    put = Counter(value for values, _ in results for value in values)
    got = Counter(value for _, values in results for value in values if value is not None)
    left = Counter(value for key, value in d.items() if key == "baton")
    assert got + left == put


def take_all(d: Dict, me: int) -> list[Any]:
    items = d.namespace("items")
    taken = [(n, value) for n in range(600) if (value := items.pop(n, None)) is not None]
    while True:
        try:
            taken.append(items.popitem(last=bool(me % 2)))
        except KeyError:
            return taken


def test_pop(many: Crowd, server_url: str, table: str, d: Dict) -> None:
    """`pop` and `popitem` give each item to exactly one."""
    stored = {n: f"value {n}" for n in range(900)}
    d.namespace("items").update(stored)
    taken = [item for items in many.at(take_all, server_url, table) for item in items]
    assert len(taken) == 900
    assert dict(taken) == stored


def claim(d: Dict, me: int) -> tuple[set[int], list[Any]]:
    won = {n for n in range(40) if d.set_nx(("leader", n), me)}
    return won, [d.setdefault(("default", n), me) for n in range(40)]


def test_one_winner(many: Crowd, server_url: str, table: str, d: Dict) -> None:
    """`set_nx` has one winner, and all callers of `setdefault` see the same value."""
    results = many.at(claim, server_url, table)
    for n in range(40):
        (winner,) = (me for me, (won, _) in enumerate(results) if n in won)
        assert d["leader", n] == winner
        assert {seen[n] for _, seen in results} == {d["default", n]}


def claim_expired(d: Dict, me: int) -> tuple[set[int], list[Any]]:
    won = {n for n in range(40) if d.set_nx(("leader", n), me)}
    return won, [d.increment(("count", n)) for n in range(40)]


def test_one_winner_over_expired_rows(many: Crowd, server_url: str, table: str, d: Dict) -> None:
    """Also where the key has expired: one winner, and counters that start afresh."""
    for n in range(40):
        d.set(("leader", n), "late", ttl=0.001)
        d.set(("count", n), 1_000_000, ttl=0.001)
    time.sleep(0.01)
    results = many.at(claim_expired, server_url, table)
    for n in range(40):
        (winner,) = (me for me, (won, _) in enumerate(results) if n in won)
        assert d["leader", n] == winner
        assert sorted(counts[n] for _, counts in results) == list(range(1, CALLERS + 1))


WORKER = """

root = PgDict(url, table=table, application_name="worker")
jobs, done = root.namespace("jobs"), root.namespace("done")
print("ready", flush=True)
while True:
    try:
        with root.transaction():
            job, value = jobs.popitem(last=False)
            done.increment(job, value)
            time.sleep(0.001)
    except KeyError:
        if not jobs:
            break
"""


def test_queue_with_killed_workers(server_url: str, table: str, d: Dict) -> None:
    """Jobs taken in a transaction are each done exactly once, though workers are killed with `kill -9` on the way."""
    jobs, done = d.namespace("jobs"), d.namespace("done")
    jobs.update((n, 1) for n in range(600))
    with ExitStack() as stack:
        workers = [stack.enter_context(program(WORKER, server_url, table)) for _ in range(4)]
        for worker in workers:
            assert said(worker) == "ready"
        for worker in workers[:3]:
            time.sleep(0.05)
            assert worker.poll() is None
            worker.send_signal(signal.SIGKILL)
        assert workers[3].wait(timeout=60) == 0
    assert not jobs
    assert dict(done.items()) == dict.fromkeys(range(600), 1)


def test_queue_order(d: Dict) -> None:
    """The oldest item comes first from `popitem(last=False)`, one that is being taken is passed over at once."""
    d.update(a=1, b=2, c=3)
    with PgDict[Any, Any](d.url, table=d._origin.options.table) as other, other.transaction():
        assert other.popitem(last=False) == ("a", 1)
        begin = time.monotonic()
        assert d.popitem(last=False) == ("b", 2)
        assert time.monotonic() - begin < 1
    assert list(d) == ["c"]
