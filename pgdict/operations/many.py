"""Operations on many keys at once, in batches of bounded size."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator
from datetime import datetime
from itertools import islice
from typing import Any

from pgdict import statements as sql
from pgdict import wire
from pgdict.errors import InvalidValue
from pgdict.keys import UnsupportedKey
from pgdict.operations.space import Bounds, Expiry, Operation, Rows, Space, amount

BATCH = 5_000
"""Keys asked for, or deleted, by one statement."""
SWEEP = 10_000
"""Expired rows removed by one statement."""
BUFFER = 64_000_000
"""Bytes of memory that a buffer of pairs may take together with the statement that stores it."""
PLENTY = 10_000
"""Pairs from which on it is worth asking whether all are new, and can be copied; and pairs that go into one COPY."""
_ROW = 250  # of Python's own for a pair
_COPIES = 3  # of its keys and values: in the buffer, in the statement, and in libpq's

LOST_RACE = {"23505", "40P01", "40001"}
"""Somebody else has stored one of the keys, a deadlock, a serialization failure: the one statement can deal with these."""

Buffer = dict[bytes, tuple[bytes, bytes]]
Entry = tuple[object, bytes, bytes, datetime | None]


def count(bounds: Bounds | None) -> Operation[int]:
    """Return how many live keys there are."""
    ((number,),) = yield sql.COUNT.over(bounds is not None), bounds or ()
    return wire.from_int8(number)


def any_at_all(space: Space) -> Operation[bool]:
    """Tell whether there is any live key."""
    ((exists,),) = yield sql.ANY.over(space.bounds is not None), space.bounds or ()
    return bool(exists == wire.TRUE)


def clear(bounds: Bounds | None) -> Operation[int]:
    """Delete all keys of a range, or of the table, and return how many were live."""
    ((number,),) = yield sql.CLEAR.over(bounds is not None), bounds or ()
    return wire.from_int8(number)


def sweep(space: Space, limit: int | None) -> Operation[int]:
    """Delete expired rows, at most `limit`, leaving those that somebody is writing, and return how many."""
    rest = most = sys.maxsize if limit is None else amount("limit", limit)
    while rest:
        step = min(rest, SWEEP)
        ((number,),) = yield sql.SWEEP.over(space.bounds is not None), (wire.int8(step), *(space.bounds or ()))
        rest -= wire.from_int8(number)
        if wire.from_int8(number) < step / 2:  # what is left is being written, or has only just expired
            break
    return most - rest


def _batches(space: Space, keys: Iterable[object]) -> Iterator[dict[bytes, object]]:
    """Yield stored key → key in batches, leaving out what no dictionary can hold."""
    rest = iter(keys)
    while some := list(islice(rest, BATCH)):
        batch: dict[bytes, object] = {}
        for key in some:
            try:
                batch.setdefault(space.keys.encode(key), key)
            except UnsupportedKey:
                continue
        yield batch


def get_many(space: Space, keys: Iterable[object]) -> Operation[dict[Any, Any]]:
    """Return the values of those keys that are there, in the order asked for."""
    found: dict[Any, Any] = {}
    decode = space.values.decode
    for batch in _batches(space, keys):
        rows: Rows = (yield sql.GET_MANY, (wire.text_array(batch),)) if batch else ()
        values = {stored: (value, codec) for stored, value, codec in rows}
        for stored, key in batch.items():
            if stored in values:
                found[key] = decode(key, *values[stored])
    return found


def delete_many(space: Space, keys: Iterable[object]) -> Operation[int]:
    """Delete those keys that are there, and return how many were."""
    deleted = 0
    for batch in _batches(space, keys):
        if batch:
            ((number,),) = yield sql.DELETE_MANY, (wire.text_array(batch),)
            deleted += wire.from_int8(number)
    return deleted


def buffers(space: Space, pairs: Iterable[tuple[object, object]]) -> Iterator[tuple[Buffer, bool]]:
    """Yield the pairs encoded, duplicates resolved as a dict would, in buffers of bounded size; at least one.

    With each comes whether there are more, so that nobody needs to have two at once to know.
    """
    encode_key, encode_value = space.keys.encode, space.values.encode
    buffer: Buffer = {}
    size = 0
    for key, value in pairs:
        if size > BUFFER:
            yield buffer, True
            buffer, size = {}, 0
        stored = encode_key(key)
        encoded = encode_value(value)
        buffer[stored] = encoded
        size += _ROW + _COPIES * (len(stored) + len(encoded[0]))
    yield buffer, False


def expiries(keys: Iterable[bytes]) -> Operation[dict[bytes, datetime]]:
    """Return when those of the stored keys expire that do."""
    rows = yield sql.EXPIRIES, (wire.text_array(list(keys)),)
    return {key: wire.from_timestamptz(moment) for key, moment in rows}


def _columns(rows: Collection[tuple[bytes, bytes]]) -> tuple[list[bytes], list[bytes]]:
    """Return values and codecs apart: `zip(*rows)` would make an iterator for each row, at three times the cost."""
    return [value for value, _ in rows], [codec for _, codec in rows]


def set_buffer(buffer: Buffer, expiry: Expiry) -> Operation[None]:
    """Store what one buffer holds, in one statement."""
    if buffer:
        values, codecs = _columns(buffer.values())
        yield sql.SET_MANY, (wire.text_array(buffer), wire.bytea_array(values), wire.text_array(codecs), *expiry)


def copy_new(space: Space, buffer: Buffer, expiry: Expiry) -> Operation[bool]:
    """Copy what one buffer holds straight into the table, inside a transaction; return False where that cannot be.

    It cannot when any key lies among those of the buffer. Rows are written in the order of their keys, as by every batch; a
    key that others store meanwhile is an error, see `LOST_RACE`.
    """
    keys = list(buffer)
    places = sorted(range(len(keys)), key=keys.__getitem__)
    ((free, moment, numbers),) = yield sql.RESERVE, (keys[places[0]], keys[places[-1]], wire.int8(len(keys)), *expiry)
    if free != wire.TRUE:
        return False
    for start in range(0, len(places), PLENTY):
        some = places[start : start + PLENTY]
        stored = [keys[place] for place in some]
        values, codecs = _columns([buffer[key] for key in stored])
        expires = moment and [moment] * len(some)
        seq = ([wire.int8_of(numbers, place) for place in some],) if space.order == "insertion" else ()
        yield sql.COPY_NEW, (wire.copy_block(stored, values, codecs, expires, *seq),)
    return True


def pair_blocks(staged: Iterator[tuple[Buffer, bool]]) -> Iterator[bytes]:
    """Yield what `buffers` yields as data for a staging table."""
    for buffer, _ in staged:
        rows = iter(buffer.items())
        while some := dict(islice(rows, PLENTY)):
            yield wire.copy_block(some, *_columns(some.values()), None)
        del buffer, rows  # before the next one is filled


def entry_blocks(space: Space, entries: Iterable[Entry]) -> Iterator[bytes]:
    """Yield entries, each with its own expiry, as data for a staging table."""
    columns: tuple[list[bytes | None], ...] = [], [], [], []
    size = 0
    for key, value, codec, moment in entries:
        if codec not in space.values.readable:
            raise InvalidValue(f"key {key!r} is stored with codec {codec.decode()!r}, which this dictionary does not read")
        if size > BUFFER:
            yield wire.copy_block(*columns)
            columns, size = ([], [], [], []), 0
        row = space.keys.encode(key), value, codec, None if moment is None else wire.timestamptz(moment)
        for column, field in zip(columns, row, strict=True):
            column.append(field)
        size += _ROW + _COPIES * (len(row[0]) + len(value))
    yield wire.copy_block(*columns)


def set_staged(stage: str, blocks: Iterator[bytes], expiry: Expiry) -> Operation[None]:
    """Store what is in `blocks` through the temporary table `stage`, inside a transaction."""
    create, copy, merge, drop = (sql.staged(s, stage) for s in (sql.STAGE, sql.COPY, sql.MERGE, sql.UNSTAGE))
    yield create, ()
    for block in blocks:
        yield copy, (block,)
        del block  # before the next one is made
    yield merge, expiry
    yield drop, ()
