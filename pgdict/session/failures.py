"""The driver's errors become ours, here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from pgdict.errors import ConnectionFailed, PgDictError, QueryFailed

REFUSED = {"57P01", "57P03", "53300"}
"""The server said that it ends or does not begin: what was sent was not executed."""
_LOST = {"57P02", "57P05", "25P03", "25P04"}
_TRY_AGAIN = {"40001", "40P01", "55P03", "57014"}


def translated(error: psycopg.Error, *, wrote: bool = False) -> PgDictError:
    """Return our error for one of the driver's; `wrote` when a write was under way."""
    code = error.sqlstate
    message = message_of(error)
    if isinstance(error, PoolTimeout | PoolClosed | TooManyRequests):
        return ConnectionFailed(message)
    lost = code is None and isinstance(error, psycopg.OperationalError)
    if lost or (code is not None and (code.startswith("08") or code in REFUSED or code in _LOST)):
        return ConnectionFailed(message, maybe_applied=wrote and code not in REFUSED and not isinstance(error, Unsent))
    return QueryFailed(message, code, code in _TRY_AGAIN)


def message_of(error: psycopg.Error) -> str:
    """Return the server's own reason in one line."""
    primary = error.diag.message_primary
    if primary is None:
        return " ".join(str(error).split()) or type(error).__name__
    detail = error.diag.message_detail
    return f"{primary}{f' ({detail})' if detail else ''} [{error.sqlstate}]"


class Unsent(psycopg.OperationalError):
    """The connection was lost before the statement was sent."""


@contextmanager
def translating(*, wrote: bool = False) -> Iterator[None]:
    """Raise ours for the driver's errors of the block; `wrote` when it may have changed something for good."""
    try:
        yield
    except psycopg.Error as error:
        raise translated(error, wrote=wrote) from error
