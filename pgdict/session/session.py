"""The synchronous carrier: drives operations over connections from a source."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import TypeVar

import psycopg
from psycopg import pq

from pgdict.errors import ConnectionFailed, PgDictError, QueryFailed
from pgdict.operations import Operation, Rows
from pgdict.session.failures import REFUSED, Unsent, translated, translating
from pgdict.session.lane import Lane
from pgdict.session.locks import Locks
from pgdict.session.sources import Connection, Joined, Source
from pgdict.session.tables import Table
from pgdict.statements import (
    BEGIN,
    BEGIN_SNAPSHOT,
    COMMIT,
    FORBIDDEN,
    ROLLBACK,
    Book,
    Rendered,
    Statement,
    savepoint,
)

T = TypeVar("T")

_INTRANS, _INERROR = pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR
_DEADLOCK = {"40001", "40P01"}
_UNDO_ALL = (ROLLBACK,)
_WHOLE = BEGIN, COMMIT, _UNDO_ALL
_numbers = count()


@dataclass(eq=False, slots=True)
class _Block:
    """A transaction, or a savepoint inside of it."""

    lane: Lane


class _Ambient(threading.local):
    """The transaction of this thread, and the savepoints inside of it."""

    blocks: tuple[_Block, ...] = ()


class Session:
    """What a dictionary and its namespaces share: connections, rendered statements, the threads' transactions."""

    def __init__(
        self,
        source: Source,
        table: Table,
        connect: Callable[[], Connection],
        *,
        timeout: float,
        on_close: Callable[[], None] = lambda: None,
        read_only: bool = False,
    ) -> None:
        self.source = source
        self.timeout = timeout
        self.locks = Locks(connect)
        self._connect = connect
        self._read_only = read_only
        self._ambient = _Ambient()
        self._chores = True
        self._beginnings: list[Callable[[Session], None]] = []
        self._number = next(_numbers)  # others may join the same connection
        self._savepoints: dict[int, tuple[Statement, Statement, tuple[Statement, ...]]] = {}
        self._close = weakref.finalize(self, _finish, source, self.locks, on_close)
        self.table = table
        _sessions.add(self)

    @property
    def table(self) -> Table:
        """The table, and how its statements are written."""
        return self._table

    @table.setter
    def table(self, table: Table) -> None:
        self._table = table
        self._book = Book(table.layout)

    @property
    def scope(self) -> str:
        """The table's name, to which names of locks are relative."""
        return self._table.layout.table

    def run(self, operation: Operation[T]) -> T:
        """Carry an operation to its end and return its result."""
        try:
            statement, params = next(operation)
            while True:
                try:
                    rows = self._execute(statement, params)
                except PgDictError as error:
                    statement, params = operation.throw(error)
                else:
                    del params  # which may be large, as the next ones may be
                    statement, params = operation.send(rows)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _execute(self, statement: Statement, params: tuple[bytes | None, ...]) -> Rows:
        rendered = self._book[statement]
        blocks = self._ambient.blocks
        source = self.source
        if blocks:
            return self._execute_inside(blocks[-1].lane, rendered, params)
        if rendered.chore:
            return self._execute_chore(rendered, params)
        begin = time.monotonic()
        lane = source.take()
        try:
            if source.inside:
                return self._execute_inside(lane, rendered, params)
            return lane.execute(rendered, params)
        except psycopg.Error as error:
            failure = error
        finally:
            source.give(lane)
        return self._again(rendered, params, failure, begin + self.timeout)

    def _execute_inside(self, lane: Lane, rendered: Rendered, params: tuple[bytes | None, ...]) -> Rows:
        if rendered.chore:
            return ()
        if not rendered.reads:
            self._check_writable()
        with translating(wrote=lane.usable and not rendered.reads):
            return self._alone(lane, rendered, params)

    def _execute_chore(self, rendered: Rendered, params: tuple[bytes | None, ...]) -> Rows:
        """Execute what may be left undone; where rights or a standby forbid it, leave it for good."""
        if not self._chores or (lane := self.source.spare()) is None:
            return ()
        try:
            return lane.execute(rendered, params)
        except psycopg.Error as error:
            self._chores = error.sqlstate not in FORBIDDEN
            return ()
        finally:
            self.source.give(lane)

    def _again(self, rendered: Rendered, params: tuple[bytes | None, ...], error: psycopg.Error, deadline: float) -> Rows:
        """Repeat a statement that surely changed nothing, until the time is up."""
        pause = 0.001
        while True:
            failure = translated(error, wrote=not rendered.reads)
            lost = isinstance(failure, ConnectionError)
            harmless = rendered.reads or error.sqlstate in REFUSED or isinstance(error, Unsent)
            if lost:
                self.source.lost()
            if not (harmless if lost else error.sqlstate in _DEADLOCK) or time.monotonic() > deadline:
                raise failure from error
            time.sleep(pause)
            pause = min(2 * pause, 0.25)
            lane = self.source.take(deadline)
            try:
                return lane.execute(rendered, params)
            except psycopg.Error as again:
                error = again
            finally:
                self.source.give(lane)

    @property
    def inside(self) -> bool:
        """Whether this thread's statements belong to a transaction."""
        return bool(self._ambient.blocks) or self.source.inside

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make the statements of this thread one transaction, or one savepoint inside of it.

        psycopg's own blocks note on the client how they nest, which an interruption (Ctrl-C) between two steps would tear.
        """
        outer = self._ambient.blocks
        lane = outer[-1].lane if outer else self._lend()
        block = _Block(lane)
        whole = lane.usable
        begin, commit, undo = _WHOLE if whole else self._savepoint(len(outer))
        try:
            self._control(lane, begin)
            self._ambient.blocks = (*outer, block)
            try:
                yield
            except BaseException as error:
                if block in self._ambient.blocks:  # else it ends too late, after an interruption, or in a forked child
                    self._undo(lane, undo)
                if not isinstance(error, psycopg.Rollback):
                    raise
            else:
                if block in self._ambient.blocks:
                    self._commit(lane, commit, undo)
        finally:
            if block in self._ambient.blocks:
                self._ambient.blocks = outer
            if not outer and lane.pid == os.getpid():
                if whole and self.source.inside and not lane.usable:  # an interruption came in between
                    self._undo(lane, undo)
                self.source.give(lane)

    def _savepoint(self, depth: int) -> tuple[Statement, Statement, tuple[Statement, ...]]:
        if depth not in self._savepoints:
            self._savepoints[depth] = savepoint(f"pgdict_{self._number}_{depth}")
        return self._savepoints[depth]

    def _undo(self, lane: Lane, undo: tuple[Statement, ...]) -> None:
        try:
            self._control(lane, *undo)
        except ConnectionFailed:
            pass  # which is an undoing, too
        except BaseException:
            if undo is not _UNDO_ALL:
                lane.pgconn.finish()  # or what is not undone might be committed with the rest
            raise

    def _commit(self, lane: Lane, commit: Statement, undo: tuple[Statement, ...]) -> None:
        status = lane.pgconn.transaction_status
        if status == _INERROR:
            self._control(lane, *undo)
            raise QueryFailed("the transaction is rolled back: a statement inside it has failed", "25P02")
        if status != _INTRANS:
            raise ConnectionFailed("the transaction is rolled back: its connection was lost")
        self._control(lane, commit, wrote=commit is COMMIT)

    def _control(self, lane: Lane, *statements: Statement, wrote: bool = False) -> None:
        with translating(wrote=wrote):
            for statement in statements:
                self._alone(lane, self._book[statement], ())

    def _alone(self, lane: Lane, rendered: Rendered, params: tuple[bytes | None, ...]) -> Rows:
        """Keep the connection's other users out. A COPY or a stream of the application's keeps us out, as long as it lasts."""
        if not self.source.inside:
            return lane.execute_inside(rendered, params)
        lock = lane.connection.lock
        locked: list[bool] = []
        try:
            locked.extend(map(lock.acquire, (True,), (self.timeout,)))  # one step, which no interruption (Ctrl-C) tears
            if not locked[0]:
                raise PgDictError(f"the connection was busy for {self.timeout:g} s: is a COPY, or a stream, open on it?")
            return lane.execute_inside(rendered, params)
        finally:
            if locked and locked[0]:
                lock.release()

    def _lend(self) -> Lane:
        """Take a connection for several statements: one that is alive, as the first of them will not be repeated."""
        while True:
            lane = self.source.take()
            if self.source.inside or lane.alive():
                return lane
            self.source.give(lane)

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """Lend a session that sees the database of this moment, on a connection of its own."""
        self._check_open()
        with translating():
            connection = self._connect()
        pid = os.getpid()
        try:
            with translating():
                connection.execute(BEGIN_SNAPSHOT)
                connection.execute("SELECT 1")  # the first statement is what fixes the snapshot
            layout = replace(self._table.layout, clock="transaction_timestamp()", commit=None)
            frozen = replace(self._table, layout=layout)
            seen = Session(Joined(connection), frozen, self._connect, timeout=self.timeout, read_only=True)
            try:
                yield seen
            finally:
                seen.close()
        finally:
            if pid == os.getpid():  # closing it in a forked child would end the parent's
                connection.close()

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Lend this thread's connection, or a free one, for statements that are no operations."""
        self._check_writable()
        blocks = self._ambient.blocks
        if not blocks:  # psycopg would begin a transaction, on the application's pool too, and nobody would end it
            with self.transaction(), self.connection() as connection:
                yield connection
        else:
            with translating():
                yield blocks[-1].lane.connection

    def at_begin(self, begin: Callable[[Session], None]) -> None:
        """Call `begin` now, and in every child that is forked."""
        self._beginnings.append(begin)
        begin(self)

    def _check_writable(self) -> None:
        if self._read_only:
            raise PgDictError("a snapshot is read-only")

    def _check_open(self) -> None:
        if self.closed:
            raise PgDictError("this PgDict is closed")

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return not self._close.alive

    def close(self) -> None:
        """Give everything back; once is enough."""
        self._close()

    def forked(self) -> None:
        """Begin anew in a child process."""
        self._ambient = _Ambient()
        self.source.forked()
        self.locks.forked()
        for begin in self._beginnings:
            begin(self)


def _finish(source: Source, locks: Locks, on_close: Callable[[], None]) -> None:
    locks.close()
    source.close()
    on_close()


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _forked() -> None:
    for session in list(_sessions):
        session.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
