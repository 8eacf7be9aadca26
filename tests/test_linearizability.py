"""Operations of many threads and processes on one key take effect one after the other, each while it runs."""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, repeat
from multiprocessing.synchronize import Barrier
from typing import Any, NamedTuple

import pytest
from linearizability import Event, stuck_at

from pgdict import PgDict

D = PgDict[str, int]

# --- the operations, and what they do one at a time ------------------------------------------------------------------

LONG = float("inf")


class State(NamedTuple):
    """A key: its value, and from when on it is surely expired; None is never."""

    value: int | None = None
    expires: float | None = None


def delete(d: D, key: str, _: Any) -> bool:
    try:
        del d[key]
    except KeyError:
        return False
    return True


def block(d: D, key: str, by: int) -> int:
    with d.mutate(key, default=int) as box:
        box.value += by
    return box.value


def add(state: State, by: int) -> tuple[int, State]:
    total = (state.value or 0) + by
    return total, state._replace(value=total)


def compare_and_swap(state: State, pair: tuple[int | None, int]) -> tuple[str, State]:
    if state.value is None:
        return "not_found", state
    expected, new = pair
    return ("swapped", state._replace(value=new)) if state.value == expected else ("mismatch", state)


Call = Callable[[D, str, Any], Any]
Effect = Callable[[State, Any], tuple[Any, State]]
OPERATIONS: dict[str, tuple[Call, Effect]] = {
    "get": (lambda d, key, _: d.get(key), lambda s, _: (s.value, s)),
    "in": (lambda d, key, _: key in d, lambda s, _: (s.value is not None, s)),
    "set": (lambda d, key, new: d.set(key, new), lambda _, new: (None, State(new))),
    "set briefly": (lambda d, key, new: d.set(key, new, ttl=1e-6), lambda _, new: (None, State(new))),
    "set_many": (lambda d, key, new: d.set_many({key: new}), lambda _, new: (None, State(new))),
    "delete": (delete, lambda s, _: (s.value is not None, State())),
    "delete_many": (lambda d, key, _: d.delete_many([key]), lambda s, _: (int(s.value is not None), State())),
    "get_and_delete": (lambda d, key, _: d.get_and_delete(key), lambda s, _: (s.value, State())),
    "set_nx": (lambda d, key, new: d.set_nx(key, new), lambda s, new: (s.value is None, State(new) if s.value is None else s)),
    "setdefault": (
        lambda d, key, new: d.setdefault(key, new),
        lambda s, new: (new if s.value is None else s.value, State(new) if s.value is None else s),
    ),
    "get_and_set": (lambda d, key, new: d.get_and_set(key, new), lambda s, new: (s.value, State(new))),
    "increment": (lambda d, key, by: d.increment(key, by), add),
    "mutate": (lambda d, key, by: d.mutate(key, lambda value: value + by, default=int), add),
    "with mutate": (block, add),
    "compare_and_swap": (lambda d, key, pair: d.compare_and_swap(key, *pair).status, compare_and_swap),
    "expire": (
        lambda d, key, _: d.expire(key, 1000),
        lambda s, _: (s.value is not None, s if s.value is None else s._replace(expires=LONG)),
    ),
    "persist": (lambda d, key, _: d.persist(key), lambda s, _: (s.expires is not None, s._replace(expires=None))),
}


def step(state: State, event: Event) -> Iterator[tuple[Any, State]]:
    """Yield what an operation may give and leave when nothing else is going on.

    The clock of an operation is the moment when the server receives it: one that has begun before a value expired may still
    see it, even after others found it expired, as when it had to wait for them.
    """
    effect = OPERATIONS[event.name][1]
    if state.expires is None or event.start < state.expires:
        yield _dated(effect(state, event.arg), event)
    if state.expires not in (None, LONG):
        result, after = _dated(effect(State(), event.arg), event)
        yield result, after
        if after == State():  # the row may still be there
            yield result, state


def _dated(outcome: tuple[Any, State], event: Event) -> tuple[Any, State]:
    result, after = outcome
    return result, after._replace(expires=event.end) if event.name == "set briefly" else after


# --- histories -------------------------------------------------------------------------------------------------------


class Broken(PgDict[str, int]):
    """A dictionary as many would write it."""

    def increment(self, key: str, by: Any = 1, **_: Any) -> Any:
        number = self.get(key) or 0
        self[key] = number + by
        return number + by

    def get_and_set(self, key: str, value: int, default: Any = None, **_: Any) -> Any:
        old = self.get(key, default)
        time.sleep(0.001)
        self[key] = value
        return old


History = list[tuple[str, Event]]
ready: Barrier  # of the processes of a pool


class Plan(NamedTuple):
    """Who does how much of what."""

    kind: type[D] = PgDict
    names: tuple[str, ...] = tuple(OPERATIONS)
    keys: tuple[str, ...] = ("a", "b")
    processes: int = 2
    threads: int = 3
    steps: int = 400
    seed: int = 0


def act(d: D, plan: Plan, worker: int, history: History) -> None:
    """Do random operations and note when they began and ended."""
    chance = random.Random(f"{plan.seed} {worker}")
    unique = worker * 1_000_000_000
    known: dict[str, int | None] = {}
    for _ in range(plan.steps):
        unique += 1000
        key, name = chance.choice(plan.keys), chance.choice(plan.names)
        arg: Any = unique
        if name in ("increment", "mutate", "with mutate"):
            arg = chance.randint(1, 9)
        elif name == "compare_and_swap":
            arg = (known.get(key), unique)
        start = time.monotonic()
        result = OPERATIONS[name][0](d, key, arg)
        end = time.monotonic()
        history.append((key, Event(start, end, name, arg, result)))
        if type(result) is int:
            known[key] = result


def work(url: str, table: str, plan: Plan, process: int) -> History:
    """Act in several threads of this process when all processes are ready."""
    histories: list[History] = [[] for _ in range(plan.threads)]
    with plan.kind(url, table=table, max_size=plan.threads) as d:
        threads = [
            threading.Thread(target=act, args=(d, plan, process * plan.threads + n + 1, history))
            for n, history in enumerate(histories)
        ]
        ready.wait(60)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return [*chain(*histories)]


def join(barrier: Barrier) -> None:
    global ready
    ready = barrier


def record(url: str, table: str, plan: Plan) -> History:
    """Return what all processes did: `time.monotonic` is one clock for all of them on Linux."""
    spawn = multiprocessing.get_context("spawn")
    number = plan.processes
    with ProcessPoolExecutor(number, spawn, join, (spawn.Barrier(number),)) as pool:
        histories = pool.map(work, repeat(url), repeat(table), repeat(plan), range(number))
        history = [*chain(*histories)]
    assert len(history) == plan.processes * plan.threads * plan.steps
    return history


def stuck(history: History) -> dict[str, list[Event]]:
    """Return the keys whose history no order explains, with the operations where it ends."""
    keys = sorted({key for key, _ in history})
    ends = {key: stuck_at([event for k, event in history if k == key], step, State()) for key in keys}
    return {key: events for key, events in ends.items() if events}


# --- the checker -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("history", "explained"),
    [
        ([], True),
        ([Event(0, 1, "get", None, None)], True),
        ([Event(0, 1, "get", None, 5)], False),
        ([Event(0, 1, "set", 5), Event(2, 3, "get", None, 5)], True),
        ([Event(0, 1, "set", 5), Event(2, 3, "get", None, None)], False),
        ([Event(0, 4, "set", 5), Event(2, 3, "get", None, None)], True),
        ([Event(0, 9, "set", 5), Event(1, 2, "get", None, 5), Event(3, 4, "get", None, None)], False),
        ([Event(0, 9, "increment", 1, 1), Event(0, 9, "increment", 1, 1)], False),
        ([Event(0, 9, "increment", 1, 2), Event(0, 9, "increment", 1, 1)], True),
        ([Event(0, 1, "increment", 1, 2), Event(2, 3, "increment", 1, 1)], False),
        ([Event(0, 1, "set", 5), Event(2, 9, "get_and_set", 6, 5), Event(2, 9, "get_and_set", 7, 5)], False),
        ([Event(0, 1, "set briefly", 5), Event(2, 3, "set_nx", 6, True)], True),
        ([Event(0, 1, "set briefly", 5), Event(2, 3, "get", None, 5)], False),
        ([Event(0, 1, "set briefly", 5), Event(2, 3, "in", None, False), Event(4, 5, "expire", None, True)], False),
        ([Event(0, 1, "set briefly", 5), Event(2, 3, "in", None, False), Event(0.5, 5, "expire", None, True)], True),
        ([Event(0, 1, "set", 5), Event(2, 3, "expire", None, True), Event(4, 5, "persist", None, False)], False),
    ],
)
def test_the_checker(history: list[Event], explained: bool) -> None:
    """The checker accepts what some order explains, and nothing else."""
    assert (not stuck_at(history, step, State())) is explained


@pytest.mark.parametrize("name", ["increment", "get_and_set"])
def test_the_checker_finds_lost_updates(server_url: str, d: D, table: str, name: str) -> None:
    """An operation made of a read and a write is found out."""
    plan = Plan(Broken, (name, "get"), ("a",), processes=2, threads=2, steps=100)
    assert "a" in stuck(record(server_url, table, plan))


# --- the dictionary --------------------------------------------------------------------------------------------------


def test_operations_are_linearizable(server_url: str, d: D, table: str) -> None:
    """What several processes and threads see of a key is what one after the other would have given."""
    assert stuck(record(server_url, table, Plan())) == {}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("order", ["insertion", "key"])
@pytest.mark.parametrize("seed", range(3))
def test_operations_are_linearizable_for_long(server_url: str, table: str, order: Any, seed: int) -> None:
    """So it is for longer, in both orders."""
    with PgDict[str, int](server_url, table=table, order=order):
        plan = Plan(keys=("a", "b", "c"), processes=3, threads=3, steps=1500, seed=seed)
        assert stuck(record(server_url, table, plan)) == {}
