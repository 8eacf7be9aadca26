"""Memoization: results kept in a dictionary, shared between processes and machines, and computed once.

An entry's key is made of the function's name and its arguments (`fingerprint`); its expiry is that of the result, plus the
time for which a stale result may stand in for one that cannot be computed.

Whoever misses first takes a lock of the server's and computes; the others look for the result from time to time. The server
frees the lock of a process that dies. Nobody holds a connection of the pool meanwhile. A computation that needs the result of
another waits for it, too, unless that could be waiting for the first: then it computes on its own.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, Generic, NamedTuple, ParamSpec, Protocol, TypeVar, cast

from pgdict import fingerprint
from pgdict.errors import LockTimeout, QueryFailed
from pgdict.operations import ABSENT, Space, expiry, many, one
from pgdict.operations.space import seconds
from pgdict.session import Connection, Session, lock_number

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")

Ttl = float | timedelta | None
logger = logging.getLogger("pgdict")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.05
NESTED_PATIENCE = 2.0
"""Seconds that a computation waits for another process's, which may be waiting for it; then it computes on its own."""

_computing: ContextVar[tuple[int, ...]] = ContextVar("pgdict_computing", default=())
"""The locks under which this thread or task computes."""


class CacheInfo(NamedTuple):
    """What a memoized function has done in this process, and how many results the store has."""

    hits: int
    misses: int
    waits: int
    """Calls that got the result of a computation somewhere else."""
    errors: int
    """Computations that raised."""
    entries: int


class Memoized(Protocol[P, R_co]):
    """A memoized function."""

    @property
    def __wrapped__(self) -> Callable[P, R_co]:
        """The function itself."""
        ...

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Return the stored result, or compute and store it."""
        ...

    def cache_key(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Return the key of a call."""
        ...

    def cache_info(self) -> CacheInfo:
        """Return what this process has done, and the number of entries. One statement."""
        ...

    def cache_clear(self) -> None:
        """Forget all results. One statement."""
        ...

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Forget the result of one call, and return whether there was one. One statement."""
        ...

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Compute the result of one call anew, store and return it."""
        ...


class Memoizer(Protocol):
    """What `memoize` returns: a decorator."""

    def __call__(self, function: Callable[P, R], /) -> Memoized[P, R]:
        """Memoize the function."""
        ...


@dataclass(slots=True)
class _Counts:
    hits: int = 0
    misses: int = 0
    waits: int = 0
    errors: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, what: str) -> None:
        with self._lock:
            setattr(self, what, getattr(self, what) + 1)


@dataclass(frozen=True, slots=True)
class Options:
    """What `memoize` was told."""

    ttl: Ttl | Callable[[Any], Ttl] = None
    key: Callable[..., Any] | None = None
    ignore: tuple[str, ...] = ()
    typed: bool = True
    single_flight: bool = True
    refresh: float | None = None
    stale: float | None = None
    wait: float | None = None

    def __post_init__(self) -> None:
        if not callable(self.ttl) and self.ttl is not None:
            seconds(self.ttl)
        for name in ("refresh", "stale"):
            if getattr(self, name) is not None and self.ttl is None:
                raise ValueError(f"{name} is about results that expire: it needs a ttl")
        if isinstance(self.ignore, str):
            raise TypeError(f"ignore is a tuple of names, not a str: {self.ignore!r}")


def memoize(session: Session, space: Space, function: Callable[P, R], options: Options) -> Memoized[P, R]:
    """Return `function` with its results kept in `space`, which is its own."""
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{function.__qualname__} is a generator function: what it yields cannot be stored; return a list")
    memo = _Memo(session, space, function, options)
    wrap = _wrap_async if inspect.iscoroutinefunction(function) else _wrap
    call, refresh = wrap(memo)
    memoized = cast("Any", functools.update_wrapper(call, function))
    memoized.refresh = refresh
    memoized.cache_key = lambda *args, **kwargs: memo.key(args, kwargs)
    memoized.invalidate = lambda *args, **kwargs: session.run(one.delete(space, memo.key(args, kwargs)))
    memoized.cache_info, memoized.cache_clear = memo.info, memo.clear
    return cast("Memoized[P, R]", memoized)


def _wrap(memo: _Memo[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    run, space = memo.session.run, memo.space
    plain = memo.options.refresh is None and memo.options.stale is None

    def call(*args: Any, **kwargs: Any) -> Any:
        key = memo.key(args, kwargs)
        if plain:
            value = run(one.get(space, key, ABSENT))
            if value is not ABSENT:
                memo.counts.add("hits")
                return value
        return memo.drive(memo.call(key, missed=plain), args, kwargs)

    def refresh(*args: Any, **kwargs: Any) -> Any:
        return memo.drive(memo.compute(memo.key(args, kwargs)), args, kwargs)

    return call, refresh


def _wrap_async(memo: _Memo[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        return await memo.drive_async(memo.call(memo.key(args, kwargs)), args, kwargs)

    async def refresh(*args: Any, **kwargs: Any) -> Any:
        return await memo.drive_async(memo.compute(memo.key(args, kwargs)), args, kwargs)

    return call, refresh


class _Do(NamedTuple):
    """Talk to the server, which a task does in another thread."""

    work: Callable[[], Any]


class _Pause(NamedTuple):
    """Wait for somebody else's result."""

    seconds: float


class _Compute(NamedTuple):
    """Call the function."""


Flow = Any  # a generator of the three steps; its sends differ with the step


class _Memo(Generic[P, R]):
    """One memoized function: how a call goes, written once for threads and tasks."""

    def __init__(self, session: Session, space: Space, function: Callable[P, R], options: Options) -> None:
        self.session, self.space, self.function, self.options = session, space, function, options
        self.counts = _Counts()
        self._bind = fingerprint.binder(function, ignore=options.ignore, typed=options.typed)

    def key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the key of a call."""
        if self.options.key is not None:
            return self.options.key(*args, **kwargs)
        return self._bind(args, kwargs)

    def info(self) -> CacheInfo:
        """Return what this process has done, and the number of entries."""
        counts = self.counts
        entries = self.session.run(many.count(self.space.bounds))
        return CacheInfo(counts.hits, counts.misses, counts.waits, counts.errors, entries)

    def clear(self) -> None:
        """Forget all results, and begin to count anew."""
        self.counts = _Counts()
        self.session.run(many.clear(self.space.bounds))

    def drive(self, flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Carry a call to its end in this thread."""
        try:
            step = next(flow)
            while True:
                try:
                    match step:
                        case _Do(work):
                            answer = work()
                        case _Pause(pause):
                            answer = None
                            self.session.locks.pause(pause)
                        case _:
                            answer = self.function(*args, **kwargs)
                except BaseException as error:  # noqa: BLE001 - the flow frees its lock, and raises it again
                    step = flow.throw(error)
                else:
                    step = flow.send(answer)
        except StopIteration as stop:
            return stop.value

    async def drive_async(self, flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Carry a call to its end in this task."""
        try:
            step = next(flow)
            while True:
                try:
                    match step:
                        case _Do(work):
                            answer = work() if self.session.inside else await asyncio.to_thread(work)
                        case _Pause(pause):
                            answer = None
                            await asyncio.sleep(pause)
                        case _:
                            answer = await cast("Awaitable[Any]", self.function(*args, **kwargs))
                except BaseException as error:  # noqa: BLE001 - the flow frees its lock, and raises it again
                    step = flow.throw(error)
                else:
                    step = flow.send(answer)
        except StopIteration as stop:
            return stop.value

    def call(self, key: Any, *, missed: bool = False) -> Flow:
        """Return the result of a call: the stored one, or else computed by one of those who miss it."""
        found = None if missed else (yield _Do(lambda: self._look(key)))
        if found is not None and not self._due(found):
            self.counts.add("hits")
            return found[0]
        number = self._number(key)
        if self.session.inside or not self.options.single_flight or number in _computing.get():
            return (yield from self.compute(key, found))
        return (yield from self._fly(key, number, found))

    def _fly(self, key: Any, number: int, found: Any) -> Flow:
        """Compute under the lock, or wait for the result of whoever has it."""
        begin, pause, locks = time.monotonic(), _FIRST_PAUSE, self.session.locks
        while True:
            try:
                connection: Connection | None = yield _Do(lambda: locks.attempt(number))
            except QueryFailed:  # the server has no memory for more locks
                return (yield from self.compute(key, found))
            if connection is not None:
                try:
                    return (yield from self._take_off(key, number, found))
                finally:
                    yield _Do(partial(locks.release, number, connection))
            if found is not None and self._fresh(found):
                self.counts.add("hits")
                return found[0]
            waited = time.monotonic() - begin
            with _waiting_for(number) as circular:
                if circular or (_computing.get() and waited > NESTED_PATIENCE and not locks.holds(number)):
                    return (yield from self.compute(key, found))
                if self.options.wait is not None and waited > self.options.wait:
                    raise LockTimeout(f"{self.function.__qualname__} was still being computed after {waited:.3g} s")
                yield _Pause(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            found = (yield _Do(lambda: self._look(key))) or found
            if found is not None and not self._due(found):
                self.counts.add("waits")
                return found[0]

    def _take_off(self, key: Any, number: int, found: Any) -> Flow:
        """Compute with the lock held, unless somebody has done so just before."""
        again = yield _Do(lambda: self._look(key))
        if again is not None and not self._due(again):
            self.counts.add("waits")
            return again[0]
        return (yield from self.compute(key, again or found, number))

    def compute(self, key: Any, found: Any = None, number: int | None = None) -> Flow:
        """Compute, store and return the result; a stale one stands in when that fails."""
        self.counts.add("misses")
        token = _computing.set((*_computing.get(), self._number(key) if number is None else number))
        try:
            value = yield _Compute()
        except Exception as error:
            self.counts.add("errors")
            if found is None or self.options.stale is None:
                raise
            logger.warning("%s failed with %r: a stale result is returned", self.function.__qualname__, error)
            return found[0]
        finally:
            _computing.reset(token)
        yield _Do(lambda: self._store(key, value))
        return value

    def _look(self, key: Any) -> tuple[Any, float | None] | None:
        """Return the stored result and the seconds until it is stale, None for never."""
        found = self.session.run(one.get_aging(self.space, key))
        if found is None or found[1] is None:
            return found
        return found[0], found[1] - (self.options.stale or 0)

    def _fresh(self, found: tuple[Any, float | None]) -> bool:
        return found[1] is None or found[1] > 0

    def _due(self, found: tuple[Any, float | None]) -> bool:
        return found[1] is not None and found[1] <= (self.options.refresh or 0)

    def _store(self, key: Any, value: Any) -> None:
        ttl = self.options.ttl(value) if callable(self.options.ttl) else self.options.ttl
        lifetime = None if ttl is None else seconds(ttl) + (self.options.stale or 0)
        try:
            self.session.run(one.set(self.space, key, value, expiry(self.space, lifetime)))
        except (TypeError, ValueError) as error:
            raise type(error)(f"the result of {self.function.__qualname__} cannot be stored: {error}") from error

    def _number(self, key: Any) -> int:
        return lock_number(self.session.table.layout.table, "memo", self.space.keys.encode(key).decode())


_waiting: dict[int, int] = {}
"""Lock under which somebody here computes → lock that this computation waits for."""


@contextmanager
def _waiting_for(number: int) -> Iterator[bool]:
    """Note what the present computation waits for; tell whether that waits for the present one."""
    held = _computing.get()
    _waiting.update(dict.fromkeys(held, number))
    try:
        reached, seen = number, {number}
        while (further := _waiting.get(reached)) is not None and further not in seen:
            seen.add(reached := further)
        yield not seen.isdisjoint(held)
    finally:
        for lock in held:
            _waiting.pop(lock, None)
