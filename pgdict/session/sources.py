"""Where a session takes its connections from: a pool of its own, the application's pool, or one given connection."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import psycopg
from psycopg import pq
from psycopg_pool import ConnectionPool, PoolTimeout

from pgdict.errors import ConnectionFailed, PgDictError
from pgdict.session.failures import message_of, translating
from pgdict.session.lane import Lane

Connection = psycopg.Connection[Any]
Pool = ConnectionPool[Connection]

IDLE_AFTER = 10.0
"""Seconds after which an unused connection goes back to the pool, which closes it in its own time."""


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

    def alone(self) -> bool:
        """Tell whether nobody else in this process waits for an answer at this moment."""
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

    The pool's `getconn` and `putconn` cost some 20 µs between system calls, a stack costs 0.2. A lease gives way to threads
    that wait for the pool, and goes back to it when it is idle.
    """

    inside = False

    def __init__(self, connect: Callable[[], Pool], timeout: float, reason: Callable[[], str | None]) -> None:
        self._connect, self._timeout, self._reason = connect, timeout, reason
        self._begin()

    def _begin(self) -> None:
        self._free: deque[Lane] = deque()
        self._leased = self._waiting = 0
        self._count = threading.Lock()
        self._closed = threading.Event()
        self._pool: Pool | None = None

    def take(self) -> Lane:
        """Return a free connection, or wait for one."""
        try:
            return self._free.pop()
        except IndexError:
            return self._lease()

    def give(self, lane: Lane) -> None:
        """Keep a connection for the next statement, unless somebody waits for it or it is of no use."""
        if lane.pgconn.transaction_status != pq.TransactionStatus.IDLE or self._closed.is_set():
            self._return(lane)
            return
        lane.fresh = True
        self._free.append(lane)
        if self._waiting:  # after the append: who waits looked at the free ones after being counted
            self._return_free(1)

    def alone(self) -> bool:
        """Tell whether at most one connection is in use."""
        return self._leased - len(self._free) <= 1

    def _lease(self) -> Lane:
        with self._count:
            self._waiting += 1
        try:
            if self._free:
                return self._free.pop()
        except IndexError:
            pass
        else:
            try:
                lane = Lane(self._opened().getconn(self._timeout))
            except PoolTimeout as error:
                reason = self._reason() or f"all connections were in use for {self._timeout:g} s"
                raise ConnectionFailed(f"no connection to PostgreSQL: {reason}") from error
            with self._count:
                self._leased += 1
            return lane
        finally:
            with self._count:
                self._waiting -= 1
        return self._lease()

    def _opened(self) -> Pool:
        with self._count:
            if self._closed.is_set():
                raise PgDictError("this PgDict is closed")
            if self._pool is None:
                self._pool = self._connect()
                threading.Thread(
                    target=_return_idle, args=(weakref.ref(self), self._closed), name="pgdict-idle", daemon=True
                ).start()
            return self._pool

    def _return(self, lane: Lane) -> None:
        with self._count:
            self._leased -= 1
            pool = self._pool
        if pool is not None:
            pool.putconn(lane.connection)

    def _return_free(self, most: int) -> None:
        for _ in range(most):
            try:
                lane = self._free.popleft()
            except IndexError:
                break
            self._return(lane)

    def return_idle(self) -> None:
        """Give back the connections that were not used since the last call."""
        for lane in list(self._free):
            if lane.fresh:
                lane.fresh = False
                continue
            try:
                self._free.remove(lane)
            except ValueError:
                continue
            self._return(lane)

    def lost(self) -> None:
        """Give back all free connections that are dead."""
        for _ in range(len(self._free)):
            try:
                lane = self._free.popleft()
            except IndexError:
                break
            try:
                lane.pgconn.consume_input()
            except psycopg.Error:
                self._return(lane)
            else:
                self._free.appendleft(lane)
                self._free.rotate(-1)

    def forked(self) -> None:
        """Begin anew, and keep the parent's connections from being closed by this process."""
        _PARENTS.append((self._pool, self._free, self._count, self._closed))
        closed = self._closed.is_set()
        self._begin()
        if closed:
            self._closed.set()

    def close(self) -> None:
        """Close the pool and all its connections."""
        self._closed.set()
        self._return_free(len(self._free))
        with self._count:
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

    def alone(self) -> bool:
        """Never sure of it."""
        return False

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

    def give(self, lane: Lane) -> None:
        """Let others use it."""
        self._turn.release()

    def alone(self) -> bool:
        """Never sure of it."""
        return False

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
