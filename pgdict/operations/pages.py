"""Iteration: keyset pages, bounded in rows and bytes, with no cursor and no open transaction between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from pgdict import statements as sql
from pgdict import wire
from pgdict.operations.space import Bounds, Operation, Rows, Space

ROWS = 5_000
"""Rows of a page at most."""
BYTES = 8 * 1024 * 1024
"""Bytes of values after which a page ends."""
PROBE = 1_000
"""Rows of a table that are read to see whether a namespace is a good part of it."""
CHUNK = 50_000
"""Keys of a namespace that are sorted at once."""

_LOWEST_SEQ, _HIGHEST_SEQ = wire.int8(-(2**63)), wire.int8(2**63 - 1)


class Pages(Protocol):
    """An iteration under way."""

    def page(self) -> Operation[Rows]:
        """Return the next rows, each beginning with key, value and codec; none at the end."""
        ...


@dataclass(frozen=True, slots=True)
class Size:
    """What a page holds at most."""

    rows: int = ROWS
    bytes: int = BYTES


def walk(space: Space, *, values: bool, reverse: bool = False, size: Size = Size()) -> Pages:
    """Begin an iteration over all keys in the dictionary's order, with their values or without."""
    if space.order == "key":
        return ByKey(space.range(""), values=values, reverse=reverse, size=size)
    return BySeq(space.bounds, values=values, reverse=reverse, size=size)


def _limits(size: Size) -> tuple[bytes, bytes]:
    return wire.int8(size.bytes), wire.int8(size.rows)


class ByKey:
    """Pages in the order of keys."""

    def __init__(
        self,
        bounds: Bounds,
        *,
        values: bool,
        reverse: bool = False,
        limit: int | None = None,
        offset: int = 0,
        size: Size = Size(),
    ) -> None:
        self._size = size
        self._low, self._high = bounds
        self._statement = sql.SCAN.over(True, reverse)
        self._values = wire.TRUE if values else wire.FALSE
        self._reverse, self._left, self._offset = reverse, limit, offset
        self._mark: bytes | None = None
        self._done = limit == 0

    def page(self) -> Operation[Rows]:
        """Return the next rows."""
        if self._done:
            return ()
        size = self._size
        if self._left is not None:
            size = replace(size, rows=min(size.rows, self._left))
        window = (*_limits(size), self._mark, wire.int8(self._offset))
        rows = yield self._statement, (self._values, *window, self._low, self._high)
        self._offset = 0
        if self._left is not None:
            self._left -= len(rows)
        self._done = not rows or rows[-1][3] is None or self._left == 0
        if rows:
            key, *_, self._mark = rows[-1]
            if self._reverse:
                self._high = key
            else:
                self._low = key + b"\x01"  # the text after it: U+0000 is no character of PostgreSQL's
        return rows


class BySeq:
    """Pages in the order of insertion, of a whole table or of a namespace inside it.

    The table is walked along while a good part of its rows are ours. Elsewhere our keys are sorted, a large number at once:
    neither is right for every size of a namespace, nor for every place in the table where it may lie.
    """

    def __init__(self, bounds: Bounds | None, *, values: bool, reverse: bool, size: Size) -> None:
        self._size = size
        self._bounds = bounds or ()
        self._rows = size.rows if bounds is None else min(size.rows, PROBE)
        self._page = sql.PAGE.over(bounds is not None, reverse)
        self._sorted = sql.SORTED.over(bounds is not None, reverse)
        self._with_values = values
        self._place = (_HIGHEST_SEQ if reverse else _LOWEST_SEQ), b""
        self._mark: bytes | None = None
        self._next: Callable[[], Operation[Rows]] | None = self._walk
        self._chunk = min(PROBE, CHUNK)
        self._pending: list[bytes] = []

    def page(self) -> Operation[Rows]:
        """Return the next rows."""
        while step := self._fetch if self._pending else self._next:
            rows = yield from step()
            if rows:
                return rows
        return ()

    def _walk(self) -> Operation[Rows]:
        values = wire.TRUE if self._with_values else wire.FALSE
        limits = _limits(replace(self._size, rows=self._rows))
        rows = yield self._page, (values, *limits, *self._place, self._mark, *self._bounds)
        self._rows = self._size.rows
        read = self._move_to(rows)
        if rows and rows[-1][2] is None:
            rows = rows[:-1]
        if read is None:
            self._next = None
        elif self._bounds and len(rows) < wire.from_int8(read) // 10:
            self._next = self._sort
        return rows

    def _sort(self) -> Operation[Rows]:
        rows = yield self._sorted, (wire.int8(self._chunk), *self._place, self._mark, *self._bounds)
        self._move_to(rows)
        self._next = self._walk if len(rows) == self._chunk else None
        self._rows, self._chunk = min(self._size.rows, PROBE), CHUNK  # the few of the first time are found sooner
        if not self._with_values:
            return rows
        self._pending = [row[0] for row in rows]
        return ()

    def _fetch(self) -> Operation[Rows]:
        batch = self._pending[: self._rows]
        self._rows = self._size.rows
        rows = yield sql.GET_IN_ORDER, (wire.TRUE, *_limits(self._size), wire.text_array(batch))
        fetched = wire.from_int8(rows[-1][4]) if rows and rows[-1][3] is not None else len(batch)
        del self._pending[:fetched]
        return rows

    def _move_to(self, rows: Rows) -> bytes | None:
        """Go on behind the last row; return how many were read up to it, or None if it is the last of all."""
        if not rows:
            return None
        key, _, _, read, seq, self._mark = rows[-1]
        self._place = seq, key
        return read  # type: ignore[no-any-return]
