"""Memoization: results kept in a dictionary, shared between processes and machines, and computed once.

An entry's key is made of the function's name and its arguments (`fingerprint`); its expiry is that of the result, plus the
time for which a stale result may stand in for one that cannot be computed.

Whoever misses first takes a lock of the server's and computes; the others look for the result from time to time, one of each
process. The server frees the lock of a process that dies. Nobody holds a connection of the pool meanwhile. A computation that
needs the result of another waits for it, too, unless that waits for the first: then it computes on its own.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from math import inf
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, Protocol, Self, TypeVar, cast, overload

from pgdict import fingerprint
from pgdict.errors import ConnectionFailed, InvalidValue, LockTimeout, QueryFailed
from pgdict.keys import lock_number
from pgdict.operations import ABSENT, Operation, Space, expiry, many, one
from pgdict.operations.space import Expiry, seconds

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")

Ttl = float | timedelta | None
logger = logging.getLogger("pgdict")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.05
_PATIENCE = 0.3
"""Seconds that a computation waits for another before it asks whether that waits for it."""

_computing: ContextVar[tuple[int, ...]] = ContextVar("pgdict_computing", default=())
"""The locks under which this thread or task computes."""


class Locks(Protocol):
    """Locks of the server's that are polled; see `session.locks`."""

    @property
    def leaders(self) -> dict[int, Any]:
        """Who of this process asks for each lock, for all others of this process."""
        ...

    def pause(self, seconds: float) -> None:
        """Sleep, but no longer than until a lock of this process is freed."""

    def attempt(self, number: int) -> Any:
        """Take the lock if nobody has it, and return what `release` needs, else None."""

    def release(self, number: int, connection: Any) -> bool:
        """Free the lock and return whether it was still held."""
        ...

    def mark(self, held: Sequence[int], wanted: int) -> bool:
        """Tell everybody that who holds these waits for that one, and return whether that closes a circle."""
        ...

    def unmark(self, held: Sequence[int], wanted: int) -> None:
        """Take it back."""


class Carrier(Protocol):
    """What carries operations to the server."""

    @property
    def timeout(self) -> float:
        """Seconds after which a lost connection is given up."""
        ...

    @property
    def scope(self) -> str:
        """What names of locks are relative to."""
        ...

    @property
    def locks(self) -> Locks:
        """The locks of this process."""
        ...

    @property
    def inside(self) -> bool:
        """Whether this thread's statements belong to a transaction."""
        ...

    def run(self, operation: Operation[T], /) -> T:
        """Carry an operation to its end and return its result."""
        ...


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
    """A memoized function. Of a method, all but a call take the object, too: `Class.method.invalidate(object, 1)`."""

    @property
    def __wrapped__(self) -> Callable[P, R_co]:
        """The function itself."""
        ...

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Return the stored result, or compute and store it."""
        ...

    @overload
    def __get__(self, instance: None, owner: type, /) -> Self: ...
    @overload
    def __get__(self: Memoized[Concatenate[Any, Q], T], instance: object, owner: type, /) -> Callable[Q, T]: ...
    def __get__(self, instance: Any, owner: type, /) -> Any:
        """Bind it as a method."""
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

    def add(self, what: str) -> None:
        with _counting:
            setattr(self, what, getattr(self, what) + 1)


_counting = threading.Lock()


def _forked() -> None:
    global _counting
    _counting = threading.Lock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


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
        if self.refresh is not None and not callable(self.ttl) and self.refresh >= seconds(self.ttl or 0):
            raise ValueError(f"refresh is shorter than the ttl, not {self.refresh!r}")
        if isinstance(self.ignore, str):
            raise TypeError(f"ignore is a tuple of names, not a str: {self.ignore!r}")


def memoize(session: Carrier, space: Space, function: Callable[P, R], options: Options) -> Memoized[P, R]:
    """Return `function` with its results kept in `space`, which is its own."""
    either = function, getattr(type(function), "__call__", None)  # noqa: B004 - that of an object may be the coroutine function
    if any(map(inspect.isgeneratorfunction, either)) or any(map(inspect.isasyncgenfunction, either)):
        raise TypeError(
            f"{fingerprint.shown(function)} is a generator function: what it yields cannot be stored; return a list"
        )
    memo = _Memo(session, space, function, options)
    wrap = _wrap_async if any(map(inspect.iscoroutinefunction, either)) else _wrap
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


class _Closing(BaseException):
    """GeneratorExit to a flow, which cannot end at once: it has to free its lock first."""


async def _in_thread(work: Callable[[], Any]) -> Any:
    """Do it in another thread, to its end also when the task is cancelled meanwhile: it may take a lock, or free it."""
    doing = asyncio.get_running_loop().run_in_executor(_threads(os.getpid()), work)
    cancelled = None
    while not doing.done():
        try:
            await asyncio.wait([doing])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        doing.exception()  # which asyncio would report when nobody asks for it
        raise cancelled
    return doing.result()


@functools.cache
def _threads(process: int) -> ThreadPoolExecutor:  # noqa: ARG001 - a forked child has none of its parent's
    """Return threads that nothing but the server keeps waiting; those of `asyncio.to_thread` may all wait for a result."""
    return ThreadPoolExecutor(8, "pgdict-memo")


Flow = Any  # a generator of the three steps; its sends differ with the step


class _Memo(Generic[P, R]):
    """One memoized function: how a call goes, written once for threads and tasks."""

    def __init__(self, session: Carrier, space: Space, function: Callable[P, R], options: Options) -> None:
        self.session, self.space, self.function, self.options = session, space, function, options
        self.counts = _Counts()
        self.shown = fingerprint.shown(function)
        make = options.key
        self.key: Callable[[tuple[Any, ...], dict[str, Any]], Any] = (
            fingerprint.binder(function, ignore=options.ignore, typed=options.typed)
            if make is None
            else lambda args, kwargs: make(*args, **kwargs)
        )

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
        closing = False
        try:
            step = next(flow)
            while True:
                try:
                    match step:
                        case _Do(work):
                            answer = work() if closing or self.session.inside else await _in_thread(work)
                        case _Pause(pause):
                            answer = None
                            await asyncio.sleep(pause)
                        case _:
                            answer = await cast("Awaitable[Any]", self.function(*args, **kwargs))
                except BaseException as error:  # noqa: BLE001 - the flow frees its lock, and raises it again
                    closing = isinstance(error, GeneratorExit)
                    step = flow.throw(_Closing() if closing else error)
                else:
                    step = flow.send(answer)
        except _Closing:
            raise GeneratorExit from None
        except StopIteration as stop:
            return stop.value

    def call(self, key: Any, *, missed: bool = False) -> Flow:
        """Return the result of a call: the stored one, or else computed by one of those who miss it."""
        found = None if missed else (yield _Do(lambda: self._look(key)))
        if found is not None and not self._due(found):
            self.counts.add("hits")
            return found.value
        number = self._number(key)
        if self.session.inside or not self.options.single_flight or number in _computing.get():
            return (yield from self.compute(key, found))
        return (yield from self._fly(key, number, found))

    def _fly(self, key: Any, number: int, found: _Found | None) -> Flow:
        """Compute under the lock, or wait for the result of whoever has it."""
        flight = _Flight(self.session, number)
        begin, pause = time.monotonic(), _FIRST_PAUSE
        try:
            while True:
                if flight.leads() and (yield _Do(flight.attempt)):
                    return (yield from self._take_off(key, number, found))
                if found is not None and found.fresh:
                    self.counts.add("hits")
                    return found.value
                waited = time.monotonic() - begin
                if waited > _PATIENCE and flight.may_circle and (yield _Do(flight.mark)):
                    return (yield from self.compute(key, found))
                if self.options.wait is not None and waited > self.options.wait:
                    raise LockTimeout(f"{self.shown} was still being computed after {waited:.3g} s")
                yield _Pause(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                if flight.has_news():
                    found = (yield _Do(lambda: self._look(key))) or found
                    if found is not None and not self._due(found):
                        self.counts.add("waits")
                        return found.value
        finally:
            if flight.ends():
                yield _Do(flight.end)

    def _take_off(self, key: Any, number: int, found: _Found | None) -> Flow:
        """Compute with the lock held, unless somebody has done so just before."""
        again = yield _Do(lambda: self._look(key))
        if again is not None and not self._due(again):
            self.counts.add("waits")
            return again.value
        return (yield from self.compute(key, again or found, number))

    def compute(self, key: Any, found: _Found | None = None, number: int | None = None) -> Flow:
        """Compute, store and return the result; a stale one stands in when that fails."""
        self.counts.add("misses")
        token = _computing.set((*_computing.get(), self._number(key) if number is None else number))
        try:
            value = yield _Compute()
        except Exception as error:
            self.counts.add("errors")
            if found is None or time.monotonic() > found.until + (self.options.stale or 0):
                raise
            logger.warning("%s failed with %r: an old result is returned", self.shown, error)
            return found.value
        finally:
            with suppress(ValueError):  # a coroutine that is closed from elsewhere
                _computing.reset(token)
        yield _Do(lambda: self._store(key, value))
        return value

    def _look(self, key: Any) -> _Found | None:
        found = self.session.run(one.get_aging(self.space, key))
        if found is None:
            return None
        value, left = found
        return _Found(value, inf if left is None else time.monotonic() + left - (self.options.stale or 0))

    def _due(self, found: _Found) -> bool:
        return found.until <= time.monotonic() + (self.options.refresh or 0)

    def _store(self, key: Any, value: Any) -> None:
        ttl = self.options.ttl(value) if callable(self.options.ttl) else self.options.ttl
        lifetime = None if ttl is None else seconds(ttl) + (self.options.stale or 0)
        try:
            self._set(key, value, expiry(self.space, lifetime))
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else InvalidValue
            raise kind(f"the result of {self.shown} cannot be stored: {error}") from error

    def _set(self, key: Any, value: Any, expires: Expiry) -> None:
        try:
            self.session.run(one.set(self.space, key, value, expires))
        except ConnectionFailed as error:
            if not error.maybe_applied:
                raise
            self.session.run(one.set(self.space, key, value, expires))  # which does no harm twice

    def _number(self, key: Any) -> int:
        return lock_number(self.session.scope, "memo", self.space.keys.encode(key).decode())


@dataclass(slots=True)
class _Found:
    """A stored result."""

    value: Any
    until: float
    """When it is stale, by the monotonic clock."""

    @property
    def fresh(self) -> bool:
        """Whether its ttl is not over."""
        return self.until > time.monotonic()


class _Flight:
    """One call's part in a computation that many want. One call of each process leads: it alone asks the server."""

    def __init__(self, session: Carrier, number: int) -> None:
        self._locks, self._timeout = session.locks, session.timeout
        self._leaders: dict[int, _Flight] = session.locks.leaders
        self._leader, self._number = self, number
        self._connection: Any = None
        self._failing: float | None = None
        self._held = _computing.get()
        self._marked = False

    @property
    def may_circle(self) -> bool:
        """Whether a computation waits that was not seen to wait yet."""
        return bool(self._held) and not self._marked

    def leads(self) -> bool:
        """Tell whether this call leads, which it does from now on if nobody else does."""
        self._leader = self._leaders.setdefault(self._number, self)
        return self._leader is self

    def has_news(self) -> bool:
        """Tell whether this call leads, or the one that did no longer does."""
        return self._leader is self or self._leaders.get(self._number) is not self._leader

    def attempt(self) -> bool:
        """Take the lock if nobody has it, and tell whether to compute."""
        try:
            self._connection = self._locks.attempt(self._number)
        except QueryFailed:  # the server has no memory for more locks
            return True
        except ConnectionFailed:
            now = time.monotonic()
            self._failing = self._failing or now
            if now - self._failing > self._timeout:
                raise
            return False
        self._failing = None
        return self._connection is not None

    def mark(self) -> bool:
        """Let everybody see what the present computation waits for; tell whether that waits for it."""
        self._marked = True
        try:
            return self._locks.mark(self._held, self._number)
        except QueryFailed:
            return True
        except ConnectionFailed:
            self._marked = False
            return False

    def ends(self) -> bool:
        """Let another call lead; tell whether the server has to know."""
        if self._leaders.get(self._number) is self:
            del self._leaders[self._number]
        return self._connection is not None or self._marked

    def end(self) -> None:
        """Free the lock, and take the marks away."""
        if self._connection is not None:
            self._locks.release(self._number, self._connection)
        if self._marked:
            self._locks.unmark(self._held, self._number)
