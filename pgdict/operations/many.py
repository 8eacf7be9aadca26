"""Operations on many keys at once, in batches of bounded size."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import islice
from typing import Any

from pgdict import statements as sql
from pgdict import wire
from pgdict.errors import InvalidValue
from pgdict.keys import UnsupportedKey
from pgdict.operations.one import sweep_two
from pgdict.operations.space import Bounds, Expiry, Operation, Rows, Space, amount

BATCH = 5_000
"""Keys asked for, or deleted, by one statement."""
SWEEP = 10_000
"""Expired rows removed by one statement."""
BUFFER = 16 * 1024 * 1024
"""Bytes of keys and values that are collected before they are sent."""
_ROW_OVERHEAD = 200  # Python's own bytes for a key and a value, so that many tiny rows stay within the buffer, too

Buffer = dict[bytes, tuple[bytes, bytes]]
Entries = dict[bytes, tuple[bytes, bytes, datetime | None]]


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
        size += len(stored) + len(encoded[0]) + _ROW_OVERHEAD
    yield buffer, False


def expiries(keys: Iterable[bytes]) -> Operation[dict[bytes, datetime]]:
    """Return when those of the stored keys expire that do."""
    rows = yield sql.EXPIRIES, (wire.text_array(list(keys)),)
    return {key: wire.from_timestamptz(moment) for key, moment in rows}


def entry_buffers(space: Space, entries: Iterable[tuple[Any, bytes, bytes, datetime | None]]) -> Iterator[Entries]:
    """Yield entries by stored key, in buffers of bounded size."""
    buffer: Entries = {}
    size = 0
    for key, value, codec, moment in entries:
        if codec not in space.values.readable:
            raise InvalidValue(f"key {key!r} is stored with codec {codec.decode()!r}, which this dictionary does not read")
        stored = space.keys.encode(key)
        buffer[stored] = value, codec, moment
        size += len(stored) + len(value) + _ROW_OVERHEAD
        if size > BUFFER:
            yield buffer
            buffer, size = {}, 0
    yield buffer


def set_entries(entries: Entries) -> Operation[None]:
    """Store entries, each with its own expiry, in one statement."""
    if entries:
        values, codecs, moments = zip(*entries.values(), strict=True)
        expires = wire.timestamptz_array([None if moment is None else wire.timestamptz(moment) for moment in moments])
        yield (
            sql.SET_ENTRIES,
            (wire.text_array(entries), wire.bytea_array(values), wire.text_array(codecs), None, None, expires),
        )


def set_buffer(space: Space, buffer: Buffer, expiry: Expiry) -> Operation[None]:
    """Store what one buffer holds, in one statement."""
    if buffer:
        values, codecs = zip(*buffer.values(), strict=True)
        params = (wire.text_array(buffer), wire.bytea_array(values), wire.text_array(codecs), *expiry)
        yield sql.SET_MANY, params
        yield from sweep_two(space, expiry, len(buffer))


def set_staged(stage: str, staged: Iterator[tuple[Buffer, bool]], expiry: Expiry) -> Operation[None]:
    """Store what `buffers` yields through the temporary table `stage`, inside a transaction."""
    create, copy, merge, drop = (sql.staged(s, stage) for s in (sql.STAGE, sql.COPY, sql.MERGE, sql.UNSTAGE))
    yield create, ()
    for block in map(_copy_block, staged):
        yield copy, (block,)
    yield merge, expiry
    yield drop, ()


def _copy_block(staged: tuple[Buffer, bool]) -> bytes:
    buffer, _ = staged
    return wire.copy_block(buffer, *zip(*buffer.values(), strict=True))
