"""Remove expired rows from time to time, in one thread of one process at a time."""

from __future__ import annotations

import threading
import time
import weakref

from pgdict import statements, wire
from pgdict.errors import PgDictError, QueryFailed
from pgdict.keys import lock_number
from pgdict.operations import Operation
from pgdict.session.session import Session

EVERY = 10.0
"""Seconds between two sweeps."""
TICK = 0.5
"""Seconds within which a closed session is noticed."""

STEP = 500
"""Rows that one statement removes: so few that nobody waits for it."""


def sweep_in_background(session: Session) -> None:
    """Start sweeping the table of `session`, until it is closed or its process ends."""
    session.at_begin(_start)


def _start(session: Session) -> None:
    threading.Thread(target=_sweep, args=(weakref.ref(session),), name="pgdict-sweeper", daemon=True).start()


def _sweep(reference: weakref.ref[Session]) -> None:
    last = time.monotonic()
    while True:
        time.sleep(TICK)
        session = reference()
        if session is None or session.closed:
            return
        if time.monotonic() - last >= EVERY:
            if not _sweep_all(session):
                return
            last = time.monotonic()
        del session


def _sweep_all(session: Session) -> bool:
    """Sweep until nothing is left, and return whether it is worth coming back."""
    try:
        while not session.closed and session.run(_step(session.scope)) == STEP:
            pass
    except QueryFailed as error:
        return error.sqlstate not in statements.FORBIDDEN
    except PgDictError:
        pass  # a lost connection: the next time, perhaps
    return True


def _step(scope: str) -> Operation[int]:
    ((number,),) = yield statements.SWEEP_ALONE, (wire.int8(STEP), wire.int8(lock_number(scope, "sweeper")))
    return wire.from_int8(number)
