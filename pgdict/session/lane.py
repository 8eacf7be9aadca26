"""One connection as operations use it: prepared statements with binary parameters and results, through `psycopg.pq`.

A psycopg cursor costs two to three times what PostgreSQL needs for a single read; the functions of libpq below it do not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg import errors as driver_errors
from psycopg import generators, pq, waiting
from psycopg.adapt import AdaptersMap, Transformer
from psycopg.types.string import ByteaBinaryLoader

from pgdict.session.failures import Unsent

if TYPE_CHECKING:
    from psycopg.abc import PQGen

    from pgdict.operations import Rows
    from pgdict.statements import Rendered

T = TypeVar("T")

_TUPLES, _COMMAND, _COPY_IN = pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK, pq.ExecStatus.COPY_IN
_ACTIVE, _IDLE = pq.TransactionStatus.ACTIVE, pq.TransactionStatus.IDLE
_BINARY = [[pq.Format.BINARY] * n for n in range(32)]
_PIECE = 2**20
_NOT_PREPARED, _ALREADY_PREPARED, _PLAN_OUTDATED = "26000", "42P05", "0A000"

LOOKS = 100
"""How often a client looks for the answer before it sleeps: some 90 microseconds.

Between two looks it yields its processor, which is where the server often runs. Waking a sleeping process costs up to 50 µs
on a virtual machine, more than the server takes for a read (one read there: 55 µs asleep, 15 to 22 µs awake; eight
threads: 25 µs each asleep, 14 µs awake). A client that looks in vain sleeps at once more and more often.
"""

_yield: Callable[[], None] = getattr(os, "sched_yield", lambda: None)


class _Bytes:
    """A psycopg context in which everything is loaded as it comes, whatever the application has registered."""

    connection = None
    adapters = AdaptersMap(types=psycopg.adapters.types)


_BYTEA = 17  # pg_type.oid
_Bytes.adapters.register_loader(_BYTEA, ByteaBinaryLoader)


def _rows(result: pq.abc.PGresult) -> Rows:
    """Return the rows of a result; many of them through psycopg's loop in C, four times as fast as one in Python."""
    count = result.ntuples
    if count < 2:
        value, columns = result.get_value, range(result.nfields)
        return [tuple([value(0, column) for column in columns])] if count else []
    loader = Transformer(_Bytes)
    loader.set_pgresult(result, set_loaders=False)
    loader.set_loader_types([_BYTEA] * result.nfields, pq.Format.BINARY)
    return loader.load_rows(0, count, tuple)


class Lane:
    """A connection, what is prepared on it, and whether looking for answers has paid off."""

    __slots__ = ("__weakref__", "_penalty", "_pooled", "_prepared", "_rest", "connection", "fresh", "pgconn", "pid", "slot")

    def __init__(self, connection: psycopg.Connection[Any], slot: object = None) -> None:
        self.connection = connection
        self.slot = slot  # what exists as long as the lane is of use
        self.pgconn = connection.pgconn
        self.pid = os.getpid()
        self.fresh = True
        self._prepared: set[bytes] = set()
        self._pooled = False  # behind a pooler that loses prepared statements
        self._penalty = self._rest = 0

    @property
    def usable(self) -> bool:
        """Whether the connection is open and outside any transaction."""
        return self.pgconn.transaction_status == _IDLE

    def alive(self) -> bool:
        """Tell whether the connection seems open and ready: the end of one that was closed has arrived."""
        with suppress(psycopg.OperationalError):
            self.pgconn.consume_input()
            self.pgconn.is_busy()  # reads the server's farewell, behind which the end is
            self.pgconn.consume_input()
        return self.usable

    def close(self) -> None:
        """Close the connection."""
        self.slot = None
        self.connection.close()

    def execute(self, statement: Rendered, params: tuple[bytes | None, ...], *, inside: bool = False) -> Rows:
        """Execute one statement and return its rows; `inside` a transaction nothing is prepared, as that could fail."""
        pgconn = self.pgconn
        named = new = False
        try:
            if not statement.reads:
                self._check()
            if inside or statement.replanned or self._pooled:
                pgconn.send_query_params(statement.sql, params, None, _BINARY[len(params)], pq.Format.BINARY)
            else:
                named = True
                if statement.name not in self._prepared:
                    new = True
                    self._prepare(statement)
                pgconn.send_query_prepared(statement.name, params, _BINARY[len(params)], pq.Format.BINARY)
            result = self._result()
        except BaseException:
            stop(self.connection)
            raise
        status = result.status
        if status == _TUPLES:
            return _rows(result)
        if status == _COMMAND:
            return ()
        error = driver_errors.error_from_result(result)
        if named and error.sqlstate in (_NOT_PREPARED, _PLAN_OUTDATED):
            self._forget(statement, error, new)
            return self.execute(statement, params, inside=True)
        raise error

    def _check(self) -> None:
        """Find a connection that has died before anything is sent on it."""
        try:
            self.pgconn.consume_input()
        except psycopg.OperationalError as error:
            raise Unsent(str(error)) from error

    def _result(self) -> pq.abc.PGresult:
        """Return the last result; the answer is complete only when there are no more."""
        pgconn = self.pgconn
        result = None
        try:
            if not self._rest and not pgconn.flush():
                for _ in range(LOOKS):
                    _yield()
                    pgconn.consume_input()
                    if not pgconn.is_busy():
                        self._penalty = 0
                        result = pgconn.get_result()
                        if result and not pgconn.is_busy() and pgconn.get_result() is None:
                            return result
                        break
                else:
                    self._rest = self._penalty = min(2 * self._penalty + 1, 255)
            else:
                self._rest = max(0, self._rest - 1)
            last: pq.abc.PGresult | None = (self._wait(generators.execute(pgconn)) or [result])[-1]
        except psycopg.OperationalError as error:
            return self._last_words(error)
        if last is None:
            raise psycopg.OperationalError("the server sent no result")
        return last

    def _wait(self, steps: PQGen[T]) -> T:
        """Wait as a psycopg connection does, but leave an interruption to `stop`: that one may close the connection."""
        return waiting.wait(steps, self.pgconn.socket, interval=0.1)

    def _last_words(self, error: psycopg.OperationalError) -> pq.abc.PGresult:
        """Return the server's own reason for ending the connection, which came before its end, or raise the error."""
        if self.pgconn.status == pq.ConnStatus.BAD:
            while result := self.pgconn.get_result():
                if result.error_field(pq.DiagnosticField.SQLSTATE):
                    return result
        raise error

    def _prepare(self, statement: Rendered) -> None:
        try:
            self.pgconn.send_prepare(statement.name, statement.sql)
            result = self._result()
        except psycopg.OperationalError as lost:
            raise Unsent(str(lost)) from lost
        if result.status != _COMMAND:
            error = driver_errors.error_from_result(result)
            if isinstance(error, driver_errors.ProtocolViolation):  # a pooler's, which knows the name: it ends the connection
                raise Unsent(str(error)) from error
            if error.sqlstate != _ALREADY_PREPARED:  # by another dictionary: the name is a digest of the text
                raise error
        self._prepared.add(statement.name)

    def _forget(self, statement: Rendered, error: psycopg.Error, new: bool) -> None:
        """Let the next use of a statement prepare it anew: the server forgot it, or its plan has another result by now."""
        if error.sqlstate == _NOT_PREPARED:
            self._pooled = new
            self._prepared.clear()
        elif not new:
            self._prepared.discard(statement.name)
            self.pgconn.send_query_params(b"DEALLOCATE " + statement.name, None)
            self._result()

    def execute_inside(self, statement: Rendered, params: tuple[bytes | None, ...]) -> Rows:
        """Execute one statement of a transaction, in which nothing is prepared, as that could fail."""
        return self._copy(statement, params[0] or b"") if statement.copies else self.execute(statement, params, inside=True)

    def _copy(self, statement: Rendered, block: bytes) -> Rows:
        """Send one block to a COPY. After an interruption, psycopg's own would keep the connection's lock."""
        pgconn = self.pgconn
        try:
            pgconn.send_query(statement.sql)
            result = self._result()
            if result.status == _COPY_IN:
                for start in range(0, len(block), _PIECE):
                    self._wait(generators.copy_to(pgconn, block[start : start + _PIECE]))
                result = self._wait(generators.copy_end(pgconn, None))
        except BaseException:
            stop(self.connection)
            raise
        if result.status != _COMMAND:
            raise driver_errors.error_from_result(result)
        return ()


def stop(connection: psycopg.Connection[Any]) -> None:
    """Leave no statement running after an error or Ctrl-C; a connection that cannot be stopped is closed."""
    pgconn = connection.pgconn
    if pgconn.transaction_status != _ACTIVE:
        return
    try:
        connection.cancel_safe(timeout=1)
        deadline = time.monotonic() + 1
        while pgconn.transaction_status == _ACTIVE and time.monotonic() < deadline:
            pgconn.consume_input()
            if pgconn.is_busy():
                time.sleep(0.001)
            elif (result := pgconn.get_result()) and result.status == _COPY_IN:  # which cannot be cancelled
                pgconn.put_copy_end(b"interrupted")
                pgconn.flush()
    except psycopg.Error:
        pass
    finally:
        if pgconn.transaction_status == _ACTIVE:
            pgconn.finish()
