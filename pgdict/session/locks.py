"""Named locks that the server frees when their holder dies: advisory locks on one connection of their own.

The server counts the locks of a connection, not of a thread, so the threads of this process first agree among themselves. The
connection is polled and never waits, so any number of threads can hold and want locks over it.

A pooler (PgBouncer in transaction mode) may give each transaction another connection to the server. There a transaction stays
open as long as anything is held, and keeps the one that holds it; should the holder die, the pooler closes it.
"""

from __future__ import annotations

import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg.pq import TransactionStatus

from pgdict.errors import ConnectionFailed, LockTimeout, PgDictError
from pgdict.session.failures import translating
from pgdict.session.lane import stop
from pgdict.session.sources import Connection
from pgdict.statements import IS_DIRECT, MARK, MARKS, TRY_LOCK, UNLOCK, UNMARK

_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05


@dataclass(frozen=True, eq=False, slots=True)
class _Claim:
    """That a thread of this process has a lock, or asks for it."""

    thread: int


_everyone: list[weakref.ref[Locks]] = []
"""The locks of all sessions of this process."""


class Locks:
    """The locks that this process holds over one session."""

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._closed = False
        self.forked()
        _everyone.append(weakref.ref(self, _everyone.remove))

    def forked(self) -> None:
        """Begin anew in a child process, which holds nothing."""
        self._connection: Connection | None = None
        self._pooled = False
        self._kept: list[object] = []  # what the connection holds: locks and marks
        self._asking = threading.Lock()
        self._mutex = threading.RLock()  # a Condition's own `with` might be torn by an interruption (Ctrl-C)
        self._changed = threading.Condition(self._mutex)
        self._holders: dict[int, _Claim] = {}
        self.leaders: dict[int, Any] = {}
        """Who asks for each lock for all others of this process, where callers of `attempt` agree on somebody."""

    @contextmanager
    def held(self, name: str, numbers: Sequence[int], timeout: float | None) -> Iterator[None]:
        """Hold one of `numbers` for the block.

        Raises:
            LockTimeout: none was free for `timeout` seconds.
            PgDictError: this thread holds all of them already: it would wait for itself.
            ConnectionFailed: at the end of the block, when the lock was lost meanwhile with its connection.
        """
        number, connection = self._acquire(name, numbers, timeout)
        try:
            yield
        except BaseException:
            self.release(number, connection)
            raise
        if not self.release(number, connection):
            raise ConnectionFailed(f"lock {name!r} was lost with its connection while it was held")

    def pause(self, seconds: float) -> None:
        """Sleep, but no longer than until a lock of this process is freed."""
        with self._mutex:
            self._changed.wait(seconds)

    def _acquire(self, name: str, numbers: Sequence[int], timeout: float | None) -> tuple[int, Connection]:
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _FIRST_PAUSE
        order = random.sample(numbers, len(numbers))
        while True:
            for number in order:
                connection = self.attempt(number)
                if connection is not None:
                    return number, connection
            self._check_own(name, numbers, for_ever=deadline is None)
            left = _LONGEST_PAUSE if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise LockTimeout(f"lock {name!r} was not free for {timeout:g} s")
            with self._mutex:
                self._changed.wait(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _check_own(self, name: str, numbers: Sequence[int], *, for_ever: bool) -> None:
        """Refuse to wait for oneself; where another session of this thread's has the lock, only if that were for ever."""
        everyone = [locks for each in list(_everyone) if (locks := each())] if for_ever else [self]
        alike = [locks for locks in everyone if locks._database == self._database]
        if all(any(locks._has(number) for locks in alike) for number in numbers):
            raise PgDictError(f"this thread already holds lock {name!r}, and would wait for itself")

    def _has(self, number: int) -> bool:
        holder = self._holders.get(number)
        return holder is not None and holder.thread == threading.get_ident()

    @property
    def _database(self) -> tuple[str, ...]:
        """Where the locks are: sessions of one process may have theirs in one database."""
        if self._connection is None or self._connection.closed:
            return ()
        info = self._connection.info
        return info.host, str(info.port), info.dbname

    def attempt(self, number: int) -> Connection | None:
        """Take the lock if nobody has it, and return what `release` needs; never waits."""
        claim = _Claim(threading.get_ident())
        try:
            if self._holders.setdefault(number, claim) is not claim:
                return None
            connection = self._ask(number)
        except BaseException:  # interrupted, perhaps with the lock
            if self._holders.get(number) is claim:
                self.release(number, self._connection)
            raise
        if connection is None:
            with self._mutex:  # which nobody needs to be told: all would try, and tell each other in vain
                self._holders.pop(number, None)
        return connection

    def _ask(self, number: int) -> Connection | None:
        with self._asking, translating():
            known = self._connection
            try:
                return self._try(number)
            except psycopg.OperationalError:
                if known is None or not known.closed:
                    raise
            return self._try(number)  # the connection had died unnoticed

    def _try(self, number: int) -> Connection | None:
        connection = self._connected()
        self._keep(connection, number)
        if _answer(connection, TRY_LOCK, number):
            return connection
        self._let_go(connection, number)
        return None

    def _connected(self) -> Connection:
        if self._closed:
            raise PgDictError("this PgDict is closed")
        if self._connection is not None:
            _settle(self._connection)  # what was interrupted
        if self._connection is None or self._connection.closed:
            connection = self._connect()
            self._pooled = not _answer(connection, IS_DIRECT, connection.info.backend_pid)
            self._connection, self._kept = connection, []
        return self._connection

    def _keep(self, connection: Connection, what: object) -> None:
        self._kept.append(what)
        if self._pooled and connection.pgconn.transaction_status == TransactionStatus.IDLE:
            connection.execute("BEGIN")

    def _let_go(self, connection: Connection, what: object) -> None:
        with suppress(ValueError):
            self._kept.remove(what)
        if self._pooled and not self._kept:
            connection.execute("COMMIT")

    def release(self, number: int, connection: Connection | None) -> bool:
        """Free the lock and return whether it was still held."""
        try:
            with self._asking:
                if connection is None or connection is not self._connection:  # it was lost, or is a forked child's parent's
                    return connection is not None and not connection.closed
                _settle(connection)
                held = _answer(connection, UNLOCK, number)
                self._let_go(connection, number)
                return held
        except psycopg.Error:
            return False
        finally:
            self._forget(number)

    def mark(self, held: Sequence[int], wanted: int) -> bool:
        """Let everybody see that somebody with `held` waits for `wanted`; tell whether that is waiting for one of them.

        The marks are advisory locks, too, so that they end with their process: shared ones, of two halves. Whoever closes a
        circle sees all of it.
        """
        with self._asking, translating():
            connection = self._connected()
            self._keep(connection, (*held, wanted))
            connection.execute(MARK, _halves(held, wanted))
            marks = connection.execute(MARKS).fetchall()
        reached = {_half(wanted)}
        while further := {waited for holder, waited in marks if holder in reached} - reached:
            reached |= further
        return not reached.isdisjoint(map(_half, held))

    def unmark(self, held: Sequence[int], wanted: int) -> None:
        """Take the marks away."""
        with self._asking, suppress(psycopg.Error):
            if self._connection is not None:
                self._connection.execute(UNMARK, _halves(held, wanted))
                self._let_go(self._connection, (*held, wanted))

    def _forget(self, number: int) -> None:
        with self._mutex:
            self._holders.pop(number, None)
            self._changed.notify_all()

    def close(self) -> None:
        """Close the connection, which frees all locks."""
        self._closed = True
        with self._asking:
            if self._connection is not None:
                self._connection.close()


def _settle(connection: Connection) -> None:
    """Leave no statement running, and no transaction in which nothing goes on: its end would strand what is held."""
    stop(connection)
    if connection.pgconn.transaction_status == TransactionStatus.INERROR:
        connection.close()


def _answer(connection: Connection, query: LiteralString, number: int) -> bool:
    row = connection.execute(query, (number,)).fetchone()
    return row is not None and bool(row[0])


def _half(number: int) -> int:
    return number & 0x7FFF_FFFF


def _halves(held: Sequence[int], wanted: int) -> dict[str, object]:
    return {"held": list(map(_half, held)), "wanted": _half(wanted)}
