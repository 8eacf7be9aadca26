"""Iteration: keyset pages, bounded in rows and bytes, with no cursor and no open transaction between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from pgdict import statements as sql
from pgdict import wire
from pgdict.operations.space import Bounds, Operation, Row, Rows, Space

ROWS = 5_000
"""Rows of a page at most."""
BYTES = 8 * 1024 * 1024
"""Bytes of values after which a page ends."""
FEW = 10_000
"""A namespace of up to so many keys is read and sorted at once."""
CHUNK = 100_000
"""Keys of a large namespace that are sorted at once."""

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

    def full(self, rows: Rows) -> bool:
        """Tell whether a page may have ended before its end: by rows, or by bytes."""
        if not rows:
            return False
        _, value, _, before, _, _ = rows[-1]
        return len(rows) >= self.rows or wire.from_int8(before) + len(value or b"") >= self.bytes


def walk(space: Space, *, values: bool, reverse: bool = False, size: Size = Size()) -> Pages:
    """Begin an iteration over all keys in the dictionary's order, with their values or without."""
    if space.order == "key":
        return ByKey(space.range(""), values=values, reverse=reverse, size=size)
    if space.bounds is None:
        return BySeq(values=values, reverse=reverse, size=size)
    return Among(space.bounds, values=values, reverse=reverse, size=size)


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
        self._done = not size.full(rows) or self._left == 0
        if rows:
            key, *_, self._mark = rows[-1]
            if self._reverse:
                self._high = key
            else:
                self._low = key + b"\x01"  # the text after it: U+0000 is no character of PostgreSQL's
        return rows


class BySeq:
    """Pages of a whole table in the order of insertion."""

    def __init__(self, *, values: bool, reverse: bool, size: Size) -> None:
        self._size = size
        self._statement = sql.PAGE.over(False, reverse)
        self._values = wire.TRUE if values else wire.FALSE
        self._seq, self._key = (_HIGHEST_SEQ if reverse else _LOWEST_SEQ), b""
        self._reverse = reverse
        self._mark: bytes | None = None
        self._done = False

    def page(self) -> Operation[Rows]:
        """Return the next rows."""
        if self._done:
            return ()
        place = (self._seq, self._key, self._mark)
        rows = yield self._statement, (self._values, *_limits(self._size), *place)
        if rows:
            self._key, *_, self._seq, self._mark = rows[-1]
        self._done = not self._size.full(rows) or (self._seq == self._mark and not self._reverse)
        return rows


class Among:
    """Pages of a namespace in the order of insertion.

    A small one is sorted at once. A large one is walked along the table as long as a good part of the table's rows are its
    own; else its keys are sorted, a large number at once.
    """

    def __init__(self, bounds: Bounds, *, values: bool, reverse: bool, size: Size) -> None:
        self._size = size
        self._bounds, self._reverse = bounds, reverse
        self._with_values = values
        self._values = wire.TRUE if values else wire.FALSE
        self._seq, self._key = (_HIGHEST_SEQ if reverse else _LOWEST_SEQ), b""
        self._mark: bytes | None = None
        self._next: Callable[[], Operation[Rows]] | None = self._few
        self._pending: list[bytes] = []

    def page(self) -> Operation[Rows]:
        """Return the next rows."""
        while True:
            if self._pending:
                rows = yield from self._fetch()
            elif self._next is None:
                return ()
            else:
                rows = yield from self._next()
            if rows:
                return rows

    def _few(self) -> Operation[Rows]:
        statement = sql.FEW.over(True, self._reverse)
        rows = yield statement, (self._values, *_limits(replace(self._size, rows=FEW + 1)), *self._bounds)
        if rows and rows[0][0] is None:
            self._next = self._window
            return ()
        self._next = None
        return self._split(rows) if self._with_values else rows

    def _split(self, rows: Rows) -> Rows:
        """Keep the rows that have their values; the others are asked for later."""
        with_value = next((n for n, row in enumerate(rows) if row[1] is None), len(rows))
        self._pending = [row[0] for row in rows[with_value:]]
        return rows[:with_value]

    def _window(self) -> Operation[Rows]:
        size = replace(self._size, rows=2 * ROWS)
        place = (self._seq, self._key, self._mark)
        statement = sql.WINDOW.over(True, self._reverse)
        *rows, counted = yield statement, (self._values, *_limits(size), *place, *self._bounds)
        self._move_to(rows)
        if not size.full(rows):
            if wire.from_int8(counted[3]) < size.rows:
                self._next = None
            elif len(rows) < size.rows // 10:
                self._next = self._sorted
        return rows

    def _sorted(self) -> Operation[Rows]:
        place = (self._seq, self._key, self._mark)
        rows = yield sql.SORTED.over(True, self._reverse), (wire.int8(CHUNK), *place, *self._bounds)
        self._move_to(rows)
        if len(rows) < CHUNK:
            self._next = None
        if not self._with_values:
            return rows
        self._pending = [row[0] for row in rows]
        return ()

    def _fetch(self) -> Operation[Rows]:
        batch = self._pending[: self._size.rows]
        rows = yield sql.GET_IN_ORDER, (self._values, *_limits(self._size), wire.text_array(batch))
        fetched = wire.from_int8(rows[-1][4]) if self._size.full(rows) else len(batch)
        del self._pending[:fetched]
        return rows

    def _move_to(self, rows: list[Row] | Rows) -> None:
        if rows:
            self._key, *_, self._seq, self._mark = rows[-1]
