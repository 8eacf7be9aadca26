"""What is measured: groups of cases, as data."""

from __future__ import annotations

import operator
import random
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from threading import Barrier
from typing import Any, Literal

from pgdict.bench.contestants import OURS, PART, PREFIX, Store, value

Unit = Literal["rate", "time", "bytes"]
Work = Callable[["Any", "Case", int], Callable[[], float | None]]
"""Prepares so many calls, and returns what then is timed. What returns a number has measured itself: seconds, or bytes."""

MEMOIZED = 20
RANDOM = random.Random(1)  # the same keys for all who run it


@dataclass(frozen=True, slots=True)
class Scale:
    """How long it takes."""

    seconds: float
    """Of one round of one contestant, or one call if that takes longer."""
    rounds: int
    """The most: whoever takes very long has fewer."""
    sizes: tuple[int, ...]
    """Of values, in bytes."""
    batches: tuple[int, ...]
    many: int
    """Keys of a large batch and of a large dictionary."""
    threads: tuple[int, ...]
    growth: tuple[int, ...]
    peak: int


QUICK = Scale(0.01, 3, (64, 4096), (10, 500), 10_000, (1, 8), (1_000, 10_000), 10_000)
NORMAL = Scale(0.04, 5, (64, 256, 1024, 4096), (10, 100, 500), 100_000, (1, 2, 4, 8, 16), (1_000, 10_000, 100_000), 100_000)
FULL = Scale(0.25, 9, NORMAL.sizes, NORMAL.batches, NORMAL.many, NORMAL.threads, (*NORMAL.growth, 10_000_000), 10_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing that is measured: a column."""

    name: str
    work: Work
    needs: tuple[str, ...]
    """What a contestant must have."""
    unit: Unit = "rate"
    keys: int = 1_000
    """How many are there at the beginning."""
    part: int = 0
    """Further ones, in a part of their own."""
    size: int = 100
    """Of a value, in bytes."""
    batch: int = 1
    """Operations of one call."""
    threads: int = 1
    once: bool = False
    """One call is a round, however short it is."""
    changes: bool = False
    """Whether the keys are different ones afterwards."""
    only: tuple[str, ...] = ()
    """Contestants, where it would take the others too long or too much."""
    script: str = ""
    """What pgbench does instead."""
    headline: str = ""
    """Its title in the plot, where the empty ones are left out."""

    def suits(self, name: str, store: Store) -> bool:
        """Tell whether a contestant takes part."""
        if store.script is not None:
            return bool(self.script)
        allowed = not self.only or name in self.only
        return allowed and (self.threads == 1 or store.threads) and all(getattr(store, need) is not None for need in self.needs)


@dataclass(frozen=True, slots=True)
class Group:
    """Cases that belong together."""

    name: str
    title: str
    cases: tuple[Case, ...]


# Work ----------------------------------------------------------------------------------------------------------------


def _name(number: int) -> str:
    return f"{PREFIX}:{number}"


def pairs(numbers: Iterable[int], size: int) -> dict[str, str]:
    """Return what those keys hold."""
    return dict.fromkeys(map(_name, numbers), value(size))


def part(case: Case) -> dict[str, str]:
    """Return the items of the small part."""
    return {f"{PART}:{i}": value(case.size) for i in range(case.part)}


def _some(case: Case, calls: int) -> list[str]:
    return list(map(_name, RANDOM.choices(range(case.keys), k=calls)))


def _consume(iterable: Iterable[object]) -> None:
    deque(iterable, maxlen=0)


def _get(store: Any, case: Case, calls: int) -> Callable[[], None]:
    return partial(_consume, map(store.get, _some(case, calls)))


def _miss(store: Any, case: Case, calls: int) -> Callable[[], None]:  # noqa: ARG001
    return partial(_consume, map(store.miss, [f"{PREFIX}:none:{i % 1000}" for i in range(calls)]))


def _has(store: Any, case: Case, calls: int) -> Callable[[], None]:
    names = [name if i % 2 else f"{name}:none" for i, name in enumerate(_some(case, calls))]
    return partial(_consume, map(store.has, names))


def _set(store: Any, case: Case, calls: int) -> Callable[[], None]:
    return partial(_consume, map(store.set, _some(case, calls), repeat(value(case.size))))


def _set_ttl(store: Any, case: Case, calls: int) -> Callable[[], None]:
    return partial(_consume, map(store.set_ttl, _some(case, calls), repeat(value(case.size))))


def _delete(store: Any, case: Case, calls: int) -> Callable[[], None]:
    names = [f"{PREFIX}:gone:{i}" for i in range(calls)]
    store.fill(dict.fromkeys(names, value(case.size)))
    return partial(_consume, map(store.delete, names))


def _increment(store: Any, case: Case, calls: int) -> Callable[[], None]:  # noqa: ARG001
    return partial(_consume, map(store.increment, repeat(f"{PREFIX}:count", calls)))


def _mixed(store: Any, case: Case, calls: int) -> Callable[[], None]:
    content = value(case.size)
    names = enumerate(_some(case, calls))
    steps = [partial(store.get, name) if i % 5 else partial(store.set, name, content) for i, name in names]
    return partial(_consume, map(operator.call, steps))


def _get_many(store: Any, case: Case, calls: int) -> Callable[[], None]:
    everything = range(case.keys)
    wanted = [list(map(_name, RANDOM.sample(everything, case.batch))) for _ in range(calls)]
    return partial(_consume, map(store.get_many, wanted))


def _set_many(store: Any, case: Case, calls: int) -> Callable[[], None]:
    everything = range(case.keys)
    return partial(
        _consume, map(store.set_many, [pairs(RANDOM.sample(everything, case.batch), case.size) for _ in range(calls)])
    )


def _fill(store: Any, case: Case, calls: int) -> Callable[[], None]:  # noqa: ARG001
    store.clear()
    return partial(store.fill, pairs(range(case.batch), case.size))


def _items(store: Any, case: Case, calls: int) -> Callable[[], None]:  # noqa: ARG001
    return partial(_consume, (None for _ in range(calls) for _ in store.items()))


def _scan(store: Any, case: Case, calls: int) -> Callable[[], None]:  # noqa: ARG001
    return partial(_consume, (None for _ in range(calls) for _ in store.scan(f"{PART}:")))


def _first(store: Any, case: Case, calls: int) -> Callable[[], None]:
    items = store.part if case.part else store.items
    return partial(_consume, (next(iter(items())) for _ in range(calls)))


def _threads(store: Any, case: Case, calls: int) -> Callable[[], None]:
    """Start the threads and let each connect before the time begins."""
    if case.threads == 1:  # this one: what a shelf on SQLite was opened in, as from Python 3.13 on, is all that may use it
        return _get(store, case, calls)
    begin = Barrier(case.threads + 1, timeout=60)

    def work(names: list[str]) -> None:
        store.get(names[0])
        begin.wait()
        _consume(map(store.get, names))

    pool = ThreadPoolExecutor(case.threads)
    working = [pool.submit(work, _some(case, max(1, calls // case.threads))) for _ in range(case.threads)]

    def run() -> None:
        with pool:
            try:
                begin.wait()
            except BaseException:
                begin.abort()
                raise
            for thread in working:
                thread.result()

    return run


def _memoized(store: Any, case: Case, calls: int) -> Callable[[], None]:  # noqa: ARG001
    _consume(map(store.memoized, range(MEMOIZED)))
    return partial(_consume, map(store.memoized, [i % MEMOIZED for i in range(calls)]))


def _size(store: Any, case: Case, calls: int) -> Callable[[], float]:  # noqa: ARG001
    return lambda: store.size() / case.keys


def _peak(count: int) -> Work:
    return lambda store, case, calls: lambda: store.peak(count, case.size)  # noqa: ARG005


def _import(store: Any, case: Case, calls: int) -> Callable[[], None]:  # noqa: ARG001
    command = (sys.executable, "-c", f"import {store.module}")
    return lambda: _consume([subprocess.run(command, check=True)])


# The groups ----------------------------------------------------------------------------------------------------------


def plan(scale: Scale) -> tuple[Group, ...]:
    """Return all groups."""
    many = scale.many
    return (
        Group(
            "set",
            "d[key] = value",
            tuple(
                Case(
                    name=_bytes(size),
                    work=_set,
                    needs=("set",),
                    size=size,
                    script="set",
                    headline=_if(size == 64, "d[key] = value"),
                )
                for size in scale.sizes
            ),
        ),
        Group(
            "get",
            "d[key]",
            (
                Case(name="hit", work=_get, needs=("get",), script="get", headline="d[key]"),
                Case(name="miss", work=_miss, needs=("miss",), script="miss"),
            ),
        ),
        _single("in", "key in d, half of them there", work=_has, needs=("has",)),
        _single("delete", "del d[key]", work=_delete, needs=("delete", "fill"), headline="del d[key]"),
        _single(
            "increment",
            "increment a counter",
            work=_increment,
            needs=("increment",),
            script="increment",
            changes=True,
            headline="increment a counter",
        ),
        _single(
            "ttl",
            "set with a time to live",
            work=_set_ttl,
            needs=("set_ttl",),
            changes=True,
            headline="set with a time to live",
        ),
        _single("mixed", "80 % gets, 20 % sets", work=_mixed, needs=("get", "set"), headline="80 % gets, 20 % sets"),
        _single(
            "memoize",
            "call a memoized function whose result is there",
            work=_memoized,
            needs=("memoized",),
            keys=0,
            headline="memoized call, hit",
        ),
        Group(
            "threads",
            "d[key] from threads of one process",
            tuple(
                Case(
                    name=str(n),
                    work=_threads,
                    needs=("get",),
                    script="get",
                    threads=n,
                    headline=_if(n == 8, "d[key], 8 threads"),
                )
                for n in scale.threads
            ),
        ),
        _single(
            "scan",
            "items below a prefix, in pages of 100",
            work=_scan,
            needs=("scan",),
            keys=10_000,
            part=1_000,
            batch=1_000,
            headline="scan a prefix, in pages of 100",
        ),
        Group(
            "set_many",
            "many keys at once; the largest batch into an empty dictionary",
            (
                *(Case(name=f"{n:,}", work=_set_many, needs=("set_many",), batch=n) for n in scale.batches),
                Case(
                    name=f"{many:,}",
                    work=_fill,
                    needs=("fill", "clear"),
                    keys=0,
                    batch=many,
                    once=True,
                    changes=True,
                    headline=f"set_many, {many:,} new keys",
                ),
            ),
        ),
        Group(
            "get_many",
            "many keys at once",
            tuple(
                Case(
                    name=f"{n:,}",
                    work=_get_many,
                    needs=("get_many",),
                    batch=n,
                    keys=max(n, 1_000),
                    headline=_if(n == many, f"get_many, {many:,} keys"),
                )
                for n in (*scale.batches, many)
            ),
        ),
        _single(
            "items",
            "iterate over all items",
            name=f"{many:,}",
            work=_items,
            needs=("items",),
            keys=many,
            batch=many,
            headline=f"items(), {many:,} of them",
        ),
        Group(
            "growth",
            "d[key] among so many keys",
            tuple(
                Case(name=f"{n:,}", work=_get, needs=("get",), keys=n, only=(OURS, "psycopg") if n > 1_000_000 else ())
                for n in scale.growth
            ),
        ),
        Group(
            "first",
            f"the first item of an iteration over {many:,} keys, and over 10,000 of them in a namespace",
            (
                Case(name="all", work=_first, needs=("items", "part"), unit="time", keys=many),
                Case(name="namespace", work=_first, needs=("part",), unit="time", keys=many, part=10_000),
            ),
        ),
        Group(
            "memory",
            "bytes stored for each item, and bytes that loading and iterating so many takes in the client",
            (
                Case(name="stored", work=_size, needs=("size", "fill"), unit="bytes", keys=many),
                Case(
                    name=f"client, {scale.peak:,}",
                    work=_peak(scale.peak),
                    needs=("peak",),
                    unit="bytes",
                    keys=0,
                    only=(OURS,),
                    changes=True,
                ),
            ),
        ),
        _single("import", "start Python and import it", work=_import, needs=("module",), unit="time", keys=0, once=True),
    )


def _if(condition: bool, text: str) -> str:
    return text if condition else ""


def _single(group: str, title: str, *, name: str = "", **case: Any) -> Group:
    return Group(group, title, (Case(name=name or group, **case),))


def _bytes(size: int) -> str:
    return f"{size} B" if size < 1024 else f"{size // 1024} KB"
