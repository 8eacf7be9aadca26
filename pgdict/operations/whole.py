"""What is known about a whole dictionary."""

from __future__ import annotations

from dataclasses import dataclass

from pgdict import statements as sql
from pgdict import wire
from pgdict.operations.space import Operation, Space


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
            when that cannot be told: in key order, and on servers before PostgreSQL 15.
        exact: whether the rows were counted, or estimated from what the server last noted about the table.
    """

    live: int
    expired: int | None
    bytes: int | None
    table_bytes: int
    index_bytes: int
    emptied: bool | None
    exact: bool


def stats(space: Space, *, exact: bool, unlogged: bool, telling: bool) -> Operation[Stats]:
    """Count, or estimate; `telling` is whether the sequence of an unlogged table shows that a crash has emptied it."""
    live, expired, size = None, None, None
    if exact:
        ((live, expired, size),) = yield sql.STATS.over(space.bounds is not None), space.bounds or ()
    else:
        ((live,),) = yield sql.ESTIMATE, ()
    ((table, indexes),) = yield sql.SIZES, ()
    emptied = None if unlogged else False
    if unlogged and telling:
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
