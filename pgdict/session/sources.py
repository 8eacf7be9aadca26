"""Where a session takes its connections from: a pool of its own, the application's pool, or one given connection."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool, PoolTimeout

from pgdict.errors import ConfigError, ConnectionFailed, PgDictError
from pgdict.session.failures import message_of, translated, translating
from pgdict.session.lane import Lane

Connection = psycopg.Connection[Any]
Pool = ConnectionPool[Connection]

_IDLE = pq.TransactionStatus.IDLE
_TURNS = 16
_RECHECK = 0.005  # seconds

IDLE_AFTER = 10.0
"""Seconds after which an unused connection goes back to the pool, which closes it in its own time."""


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

    def take(self) -> Lane:
        """Return a connection for one statement or one transaction."""
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
    """Connections leased from a pool of our own, the last used one first.

    The pool's `getconn` and `putconn` cost some 20 µs between system calls, a stack costs 0.2. So the pool only makes, keeps
    and closes connections, and gets back those that are idle. When all are in use, threads wait here; of the statements that
    end meanwhile, every sixteenth hands its connection to the first who waits, so that nobody waits for long, and the others
    need no change of threads.
    """

    inside = False

    def __init__(self, connect: Callable[[], Pool], network: Network, reason: Callable[[], str | None]) -> None:
        self._connect, self._network, self._reason = connect, network, reason
        self._begin()

    def _begin(self) -> None:
        self._free: deque[Lane] = deque()
        self._handed: deque[Lane] = deque()
        self._leased = self._waiting = self._turn = 0
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._pool: Pool | None = None

    def take(self) -> Lane:
        """Return a free connection, or wait for one."""
        try:
            return self._free.pop()
        except IndexError:
            return self._wait()

    def give(self, lane: Lane) -> None:
        """Keep a connection for the next statement, unless it is of no use, or somebody has waited long enough for it."""
        if lane.pgconn.transaction_status != _IDLE or self._closed.is_set():
            self._return(lane)
            return
        lane.fresh = True
        if self._waiting:
            self._turn += 1
            if self._turn % _TURNS == 0:
                self._handed.append(lane)
                with self._changed:
                    self._changed.notify()
                return
        self._free.append(lane)

    def _wait(self) -> Lane:
        deadline = time.monotonic() + self._network.timeout
        with self._changed:
            self._waiting += 1
        try:
            while True:
                for lanes in (self._handed, self._free):
                    with suppress(IndexError):
                        return lanes.popleft()
                if self._reserve():
                    return self._lease(deadline - time.monotonic())
                if time.monotonic() > deadline:
                    size = self._network.max_size
                    raise ConnectionFailed(f"all {size} connections were in use for {self._network.timeout:g} s")
                with self._changed:
                    self._changed.wait(_RECHECK)
        finally:
            with self._changed:
                self._waiting -= 1
                if not self._waiting:
                    self._free.extend(self._handed)
                    self._handed.clear()

    def _reserve(self) -> bool:
        """Count one more lease, if there may be one more."""
        with self._changed:
            if self._closed.is_set():
                raise PgDictError("this PgDict is closed")
            if self._leased == self._network.max_size:
                return False
            self._leased += 1
            if self._pool is None:
                self._pool = self._connect()
                idle = threading.Thread(target=_return_idle, args=(weakref.ref(self), self._closed), name="pgdict-idle")
                idle.daemon = True
                idle.start()
            return True

    def _lease(self, timeout: float) -> Lane:
        pool = self._pool
        try:
            if pool is None:
                raise PgDictError("this PgDict is closed")
            return Lane(pool.getconn(max(timeout, 0.001)))
        except BaseException as error:
            with self._changed:
                self._leased -= 1
            if isinstance(error, PoolTimeout):
                raise ConnectionFailed(f"no connection to PostgreSQL: {self._reason() or error}") from error
            if isinstance(error, psycopg.Error):
                raise translated(error) from error
            raise

    def _return(self, lane: Lane) -> None:
        with self._changed:
            self._leased -= 1
            pool = self._pool
        if pool is not None:
            pool.putconn(lane.connection)

    def return_idle(self) -> None:
        """Give back the connections that were not used since the last call."""
        for lane in list(self._free):
            if lane.fresh:
                lane.fresh = False
                continue
            with suppress(ValueError):  # it is in use again
                self._free.remove(lane)
                self._return(lane)

    def lost(self) -> None:
        """Give back all free connections that are dead."""
        for lane in list(self._free):
            with suppress(ValueError):
                self._free.remove(lane)
                try:
                    lane.pgconn.consume_input()
                except psycopg.Error:
                    self._return(lane)
                else:
                    self._free.append(lane)

    def forked(self) -> None:
        """Begin anew, and keep the parent's connections from being closed by this process."""
        _PARENTS.append((self._pool, self._free, self._handed))
        closed = self._closed.is_set()
        self._begin()
        if closed:
            self._closed.set()

    def close(self) -> None:
        """Close the pool and all its connections."""
        self._closed.set()
        with suppress(IndexError):
            while True:
                self._return(self._free.pop())
        with self._changed:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()


_PARENTS: list[object] = []


def _return_idle(source: weakref.ref[Leases], closed: threading.Event) -> None:
    while not closed.wait(IDLE_AFTER):
        leases = source()
        if leases is None:
            return
        leases.return_idle()
        del leases


class Borrowed:
    """The application's own pool: a connection is borrowed for each statement, and never kept."""

    inside = False

    def __init__(self, pool: Pool, timeout: float) -> None:
        self._pool, self._timeout = pool, timeout
        self._lanes: weakref.WeakKeyDictionary[Connection, Lane] = weakref.WeakKeyDictionary()

    def take(self) -> Lane:
        """Borrow a connection."""
        with translating():
            connection = self._pool.getconn(self._timeout)
        lane = self._lanes.get(connection)
        if lane is None:
            lane = self._lanes[connection] = Lane(connection)
        return lane

    def give(self, lane: Lane) -> None:
        """Return it."""
        self._pool.putconn(lane.connection)


    def lost(self) -> None:
        """Leave it to the pool, which discards broken connections when they return."""

    def forked(self) -> None:
        """Leave it to the application, whose pool it is."""

    def close(self) -> None:
        """Leave the pool open: it is the application's."""


class Joined:
    """One given connection: the application's, or that of a snapshot."""

    inside = True

    def __init__(self, connection: Connection, close: Callable[[], None] = lambda: None) -> None:
        self._lane = Lane(connection)
        self._close = close
        self._turn = threading.RLock()
        self._closed = False

    def take(self) -> Lane:
        """Return the connection, in a transaction if the application's next statement would be in one."""
        if self._closed:
            raise PgDictError("this PgDict is closed")
        self._turn.acquire()
        try:
            connection = self._lane.connection
            if not connection.autocommit and self._lane.usable:
                with translating():
                    connection.execute("SELECT")  # lets psycopg begin it as the application asked for
        except BaseException:
            self._turn.release()
            raise
        return self._lane

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


def reason_of(connect: Callable[[], Connection]) -> str | None:
    """Try to connect and return why it fails, or None when it does not."""
    try:
        connect().close()
    except psycopg.Error as error:
        return message_of(error)
    return None
