"""Where a session takes its connections from: a pool of its own, the application's pool, or one given connection."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool

from pgdict.errors import ConfigError, ConnectionFailed, PgDictError
from pgdict.session.failures import message_of, translating
from pgdict.session.lane import Lane, stop

Connection = psycopg.Connection[Any]
Pool = ConnectionPool[Connection]

_IDLE = pq.TransactionStatus.IDLE
_TURN = 0.0005  # seconds
"""Between two connections that are handed over."""
_RECHECK = 0.005  # seconds

IDLE_AFTER = 30.0
"""Seconds between two looks for connections that were not used."""


class OwnConnection(psycopg.Connection[Any]):
    """A connection that closes without a warning when it is forgotten: by an interrupted thread, or after a fork."""

    def __del__(self, __warn: Any = None) -> None:
        """Leave it to libpq's connection, which closes in the process that opened it."""


@dataclass(frozen=True, slots=True)
class Network:
    """How connections are made."""

    application_name: str = "pgdict"
    min_size: int = 1
    max_size: int = 8
    timeout: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_size <= self.max_size or self.max_size < 1:
            raise ConfigError(f"a pool has 0 <= min_size <= max_size, not {self.min_size!r} and {self.max_size!r}")
        if not self.timeout > 0:
            raise ConfigError(f"timeout is a positive number of seconds, not {self.timeout!r}")

    def settings(self, conninfo: str) -> dict[str, Any]:
        """Return the connection parameters that `conninfo` leaves open. A network that has gone silent is noticed."""
        patience = max(1, round(self.timeout))
        defaults = {
            "application_name": self.application_name,
            "connect_timeout": min(10, patience),
            "keepalives_idle": patience,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 1000 * patience,
        }
        given = conninfo_to_dict(conninfo)
        return {name: value for name, value in defaults.items() if name not in given} | {"client_encoding": "UTF8"}


class Source(Protocol):
    """Lends connections."""

    inside: bool
    """Whether statements belong to somebody else's transaction."""

    def take(self, deadline: float | None = None) -> Lane:
        """Return a connection for one statement or one transaction, by that moment or within the source's own time."""
        ...

    def spare(self) -> Lane | None:
        """Return a connection that is free at this moment, for what may be left undone."""
        ...

    def give(self, lane: Lane) -> None:
        """Take it back."""
        ...

    def lost(self) -> None:
        """Note that a connection was lost: the others may be dead as well."""
        ...

    def forked(self) -> None:
        """Forget the parent's connections without closing them."""
        ...

    def close(self) -> None:
        """Close what is ours."""
        ...


class Leases:
    """Connections of our own, the last used one first.

    A stack of them costs 0.2 µs, where a pool's `getconn` and `putconn` cost some 20 µs between system calls. When all are in
    use, threads wait; every half a millisecond a statement that ends hands its connection to one who waits, so that nobody
    waits for long, and the others need no change of threads.

    A thread may be interrupted (Ctrl-C) between any two steps. So nothing is counted up and down: a connection that is
    forgotten on the way closes and frees its slot by itself. And nothing is locked, as Python may leave even a lock's `with`
    without freeing it (3.13 does, out of a comprehension inside).
    """

    inside = False

    def __init__(self, connect: Callable[[], Connection], network: Network, first: Connection) -> None:
        self._connect, self._network = connect, network
        self._begin()
        self._free.append(Lane(first, self._reserve()))

    def _begin(self) -> None:
        self._free: deque[Lane] = deque()
        self._waiters: deque[_Waiter] = deque()
        self._slots: dict[int, weakref.ref[_Slot]] = {}
        self._numbers = count()
        self._handed_at = 0.0
        self._closed = threading.Event()
        self._tended = False

    def take(self, deadline: float | None = None) -> Lane:
        """Return a free connection, or wait for one."""
        try:
            return self._free.pop()
        except IndexError:
            return self._wait(deadline or time.monotonic() + self._network.timeout)

    def spare(self) -> Lane | None:
        """Return a free connection, if there is one."""
        try:
            return self._free.pop()
        except IndexError:
            return None

    def give(self, lane: Lane) -> None:
        """Keep a connection for the next statement, unless it is of no use, or somebody has waited long enough for it."""
        if lane.pgconn.transaction_status != _IDLE:
            lane.close()
            return
        lane.fresh = True
        if self._waiters and time.monotonic() > self._handed_at + _TURN:
            with suppress(IndexError):
                self._waiters.popleft().receive(lane)
                self._handed_at = time.monotonic()
                return
        self._free.append(lane)
        if self._closed.is_set():
            self.close()

    def _wait(self, deadline: float) -> Lane:
        waiter = _Waiter()
        try:
            return self._receive(waiter, deadline)
        finally:
            with suppress(ValueError):
                self._waiters.remove(waiter)
            if waiter.lane:  # it came too late
                self.give(waiter.lane)

    def _receive(self, waiter: _Waiter, deadline: float) -> Lane:
        failure: Exception | None = None
        retry, pause = 0.0, 0.01
        while (now := time.monotonic()) <= deadline:
            with suppress(IndexError):
                return self._free.pop()
            if now >= retry and (slot := self._reserve()):
                try:
                    return Lane(self._connect(), slot)
                except (psycopg.OperationalError, ConnectionFailed) as error:
                    failure = error
                    del slot
                retry, pause = time.monotonic() + pause, min(2 * pause, 0.25)
            if not waiter.queued:
                waiter.queued = True
                self._waiters.append(waiter)
            if waiter.bell.acquire(timeout=_RECHECK) and waiter.lane:
                lane, waiter.lane = waiter.lane, None
                return lane
        if failure is None:
            raise ConnectionFailed(f"all {self._network.max_size} connections were in use for {self._network.timeout:g} s")
        reason = message_of(failure) if isinstance(failure, psycopg.Error) else str(failure)
        raise ConnectionFailed(f"no connection to PostgreSQL for {self._network.timeout:g} s: {reason}") from failure

    def _reserve(self) -> _Slot | None:
        """Return the right to one more connection, which ends with the object, or None when there are enough."""
        if self._closed.is_set():
            raise PgDictError("this PgDict is closed")
        slot = _Slot()
        self._slots[next(self._numbers)] = weakref.ref(slot)
        held = 0
        for number, other in list(self._slots.items()):
            if other() is None:
                self._slots.pop(number, None)
            else:
                held += 1
        if held > self._network.max_size:
            return None
        if held > self._network.min_size and not self._tended:
            self._tend()
        return slot

    def _tend(self) -> None:
        """Start the thread that closes idle connections, for as long as the leases exist."""
        self._tended = True
        tender = threading.Thread(target=_close_idle, args=(weakref.ref(self), self._closed), name="pgdict-idle", daemon=True)
        with suppress(RuntimeError):  # the interpreter is shutting down
            tender.start()

    def close_idle(self) -> None:
        """Close the connections that were not used since the last call, except for the smallest number to be kept."""
        spare = len(self._free) - self._network.min_size
        for lane in list(self._free):
            if lane.fresh:
                lane.fresh = False
            elif spare > 0:
                spare -= 1
                with suppress(ValueError):  # it is in use again
                    self._free.remove(lane)
                    lane.close()

    def lost(self) -> None:
        """Close all free connections that are dead."""
        for _ in range(len(self._free)):
            with suppress(IndexError):
                lane = self._free.popleft()
                if lane.alive():
                    self._free.append(lane)
                else:
                    lane.close()

    def forked(self) -> None:
        """Begin anew; the parent's connections do not close in this process."""
        closed = self._closed.is_set()
        self._begin()
        if closed:
            self._closed.set()

    def close(self) -> None:
        """Close all connections, those in use when they are given back."""
        self._closed.set()
        with suppress(IndexError):
            while True:
                self._free.pop().close()


class _Waiter:
    """A thread that waits for a connection."""

    def __init__(self) -> None:
        self.queued = False
        self.lane: Lane | None = None
        self.bell = threading.Lock()
        self.bell.acquire()

    def receive(self, lane: Lane) -> None:
        self.lane = lane
        self.bell.release()


class _Slot:
    """The right to one connection."""


def _close_idle(source: weakref.ref[Leases], closed: threading.Event) -> None:
    while not closed.wait(IDLE_AFTER):
        leases = source()
        if leases is None:
            return
        leases.close_idle()
        del leases


class Borrowed:
    """The application's own pool: a connection is borrowed for each statement, and never kept."""

    inside = False

    def __init__(self, pool: Pool, timeout: float) -> None:
        self._pool, self._timeout, self._pid = pool, timeout, os.getpid()
        self._closed = False
        self._lanes: weakref.WeakKeyDictionary[Connection, Lane] = weakref.WeakKeyDictionary()

    def take(self, deadline: float | None = None) -> Lane:
        """Borrow a connection."""
        with translating():
            return self._borrow(max(0.001, deadline - time.monotonic()) if deadline else self._timeout)

    def spare(self) -> Lane | None:
        """Borrow a connection, if there is one."""
        try:
            return self._borrow(0.001)
        except psycopg.OperationalError:  # it has none, or is closed
            return None

    def _borrow(self, timeout: float) -> Lane:
        if self._closed:
            raise PgDictError("this PgDict is closed")
        _check_process(self._pid, "pool")
        connection = self._pool.getconn(timeout)
        lane = self._lanes.get(connection)
        if lane is None:
            lane = self._lanes[connection] = Lane(connection)
        lane.connection = connection
        return lane

    def give(self, lane: Lane) -> None:
        """Return it."""
        connection = lane.connection
        del lane.connection  # which the pool may close and forget
        self._pool.putconn(connection)

    def lost(self) -> None:
        """Leave it to the pool, which discards broken connections when they return."""

    def forked(self) -> None:
        """Leave it to the application, whose pool it is."""

    def close(self) -> None:
        """Leave the pool open: it is the application's."""
        self._closed = True


class Joined:
    """One given connection: the application's, or that of a snapshot."""

    inside = True

    def __init__(self, connection: Connection, close: Callable[[], None] = lambda: None) -> None:
        self._lane = Lane(connection)
        self._close = close
        self._turn = threading.RLock()
        self._closed = False

    def take(self, deadline: float | None = None) -> Lane:  # noqa: ARG002 - it is there, or never will be
        """Return the connection, in a transaction if the application's next statement would be in one."""
        if self._closed:
            raise PgDictError("this PgDict is closed")
        _check_process(self._lane.pid, "connection")
        self._turn.acquire()
        try:
            connection = self._lane.connection
            if connection.closed:
                raise ConnectionFailed("the connection is closed")
            if connection.pgconn.pipeline_status:
                raise PgDictError("the connection is in pipeline mode, where a dictionary cannot wait for its answers")
            if not connection.autocommit and self._lane.usable:
                self._begin(connection)
        except BaseException:
            self._turn.release()
            raise
        return self._lane

    def _begin(self, connection: Connection) -> None:
        """Let psycopg begin a transaction as the application has set it."""
        try:
            with translating():
                psycopg.Cursor(connection).execute("SELECT", prepare=False)
        except BaseException:
            stop(connection)
            raise

    def spare(self) -> None:
        """Leave no chores to a transaction that is not ours."""

    def give(self, lane: Lane) -> None:  # noqa: ARG002 - there is but one
        """Let others use it."""
        self._turn.release()

    def lost(self) -> None:
        """Leave it to the application."""

    def forked(self) -> None:
        """Leave it to the application."""

    def close(self) -> None:
        """End the snapshot; the application's own connection stays as it is."""
        if not self._closed:
            self._closed = True
            self._close()


def _check_process(pid: int, what: str) -> None:
    if pid != os.getpid():
        raise PgDictError(f"the {what} was opened in the parent process: a forked child needs one of its own")
