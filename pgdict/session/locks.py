"""Named locks that the server frees when their holder dies: advisory locks on one connection of their own.

The server counts the locks of a connection, not of a thread, so the threads of this process first agree among themselves. The
connection is polled and never waits, so any number of threads can hold and want locks over it.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import LiteralString

import psycopg

from pgdict.errors import ConnectionFailed, LockTimeout, PgDictError
from pgdict.session.failures import translating
from pgdict.session.sources import Connection
from pgdict.statements import TRY_LOCK, UNLOCK

_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05

def lock_number(*names: str) -> int:
    """Return the 64-bit number under which the server knows a lock of these names.

    >>> lock_number("kv_store", "nightly") == lock_number("kv_store", "nightly") != lock_number("kv_store", "daily")
    True
    """
    text = "\0".join(names).encode(errors="surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big", signed=True)


class Locks:
    """The locks that this process holds over one session."""

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self.forked()

    def forked(self) -> None:
        """Begin anew in a child process, which holds nothing."""
        self._pid = os.getpid()
        self._connection: Connection | None = None
        self._asking = threading.Lock()
        self._changed = threading.Condition()
        self._holders: dict[int, int] = {}

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

    def holds(self, number: int) -> bool:
        """Tell whether this process has the lock, or is just asking for it."""
        return number in self._holders

    def pause(self, seconds: float) -> None:
        """Sleep, but no longer than until a lock of this process is freed."""
        with self._changed:
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
            self._check_own(name, numbers)
            left = _LONGEST_PAUSE if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise LockTimeout(f"lock {name!r} was not free for {timeout:g} s")
            with self._changed:
                self._changed.wait(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _check_own(self, name: str, numbers: Sequence[int]) -> None:
        if all(self._holders.get(number) == threading.get_ident() for number in numbers):
            raise PgDictError(f"this thread already holds lock {name!r}, and would wait for itself")

    def attempt(self, number: int) -> Connection | None:
        """Take the lock if nobody has it, and return what `release` needs; never waits."""
        with self._changed:
            if number in self._holders:
                return None
            self._holders[number] = threading.get_ident()
        connection = None
        try:
            connection = self._ask(number)
        finally:
            if connection is None:
                self._forget(number)
        return connection

    def _ask(self, number: int) -> Connection | None:
        with self._asking, translating():
            if self._connection is None or self._connection.closed:
                self._connection = self._connect()
            return self._connection if _answer(self._connection, TRY_LOCK, number) else None

    def release(self, number: int, connection: Connection) -> bool:
        """Free the lock and return whether it was still held."""
        if self._pid != os.getpid():  # a forked child holds nothing
            return True
        try:
            with self._asking:
                return _answer(connection, UNLOCK, number)
        except psycopg.Error:
            return False
        finally:
            self._forget(number)

    def _forget(self, number: int) -> None:
        with self._changed:
            self._holders.pop(number, None)
            self._changed.notify_all()

    def close(self) -> None:
        """Close the connection, which frees all locks."""
        with self._asking:
            if self._connection is not None:
                self._connection.close()


def _answer(connection: Connection, query: LiteralString, number: int) -> bool:
    row = connection.execute(query, (number,)).fetchone()
    return row is not None and bool(row[0])
