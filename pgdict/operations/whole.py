"""What is known about a whole dictionary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from pgdict import statements as sql
from pgdict import wire
from pgdict.errors import DecodeError
from pgdict.operations.pages import Size, walk
from pgdict.operations.space import Operation, Row, Space

_LONGEST_SHOWN = wire.int8(64 * 1024)


@dataclass(frozen=True, slots=True, repr=False)
class Long:
    """Stands for a value that is too long to look at."""

    codec: str

    def __repr__(self) -> str:
        return f"<{self.codec}>"


class Glimpse(NamedTuple):
    """An item as a person is shown it."""

    key: Any
    value: Any
    """A `DecodeError` when it cannot be read, a `Long` when it is too long to look at."""
    seconds: float | None
    """Until it expires."""
    size: int
    """Bytes of the stored value."""


@dataclass(frozen=True, slots=True)
class Stats:
    """The size of a dictionary, and what became of its table.

    Attributes:
        live: keys that are there; of an estimate, expired ones are among them.
        expired: rows that have expired and are not yet removed; None in an estimate.
        bytes: of the stored keys and values that are live; None in an estimate.
        table_bytes: what the table takes on disk, with all its namespaces.
        index_bytes: what its indexes take.
        emptied: whether a crash of the server has emptied the table since it was created, as happens to unlogged ones; None
            when that cannot be told: in key order, without the right to read the sequence, and on servers before PostgreSQL 15.
        exact: whether the rows were counted, or estimated from what the server last noted about the table.
    """

    live: int
    expired: int | None
    bytes: int | None
    table_bytes: int
    index_bytes: int
    emptied: bool | None
    exact: bool


def stats(space: Space, *, exact: bool, telling: bool) -> Operation[Stats]:
    """Count, or estimate; `telling` is whether the sequence of an unlogged table shows that a crash has emptied it."""
    live, expired, size = None, None, None
    if exact:
        ((live, expired, size),) = yield sql.STATS.over(space.bounds is not None), space.bounds or ()
    else:
        ((live,),) = yield sql.ESTIMATE, ()
    ((table, indexes, unlogged),) = yield sql.SIZES, ()
    emptied = None if unlogged == wire.TRUE else False
    if emptied is None and telling:
        ((allowed,),) = yield sql.MAY_READ_NUMBER, ()
        if allowed == wire.TRUE:
            ((last,),) = yield sql.LAST_NUMBER, ()
            emptied = wire.from_int8(last) < sql.BORN
    return Stats(
        wire.from_int8(live),
        None if expired is None else wire.from_int8(expired),
        None if size is None else wire.from_int8(size),
        wire.from_int8(table),
        wire.from_int8(indexes),
        emptied,
        exact,
    )


def preview(space: Space, most: int) -> Operation[tuple[list[Glimpse], bool]]:
    """Return the first items, and whether there are more."""
    pages = walk(space, values=False, size=Size(rows=most + 1))
    rows: list[Row] = []
    while len(rows) <= most and (page := (yield from pages.page())):
        rows += page
    keys = [row[0] for row in rows[:most]]
    details = yield sql.PREVIEW, (wire.text_array(keys), _LONGEST_SHOWN)
    by_key = {row[0]: row for row in details}
    return [_glimpse(space, by_key[key]) for key in keys if key in by_key], len(rows) > most


def _glimpse(space: Space, row: Row) -> Glimpse:
    stored, data, codec, size, expires, now = row
    key, value = stored, None
    try:
        key = space.keys.decode(stored)
        value = Long(codec.decode()) if data is None else space.values.decode(key, data, codec)
    except DecodeError as error:
        value = error
    return Glimpse(key, value, None if expires is None else wire.seconds_between(now, expires), wire.from_int8(size))


def count_some(space: Space, most: int) -> Operation[tuple[int, int | None]]:
    """Count the live keys, but no further than `most`; where there are more, return also what the server estimates, or 0."""
    ((number,),) = yield sql.COUNT_SOME.over(space.bounds is not None), (wire.int8(most + 1), *(space.bounds or ()))
    counted = wire.from_int8(number)
    if counted <= most:
        return counted, None
    if space.bounds is not None:
        return most, 0
    ((estimated,),) = yield sql.ESTIMATE, ()
    return most, wire.from_int8(estimated)
