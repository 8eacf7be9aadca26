"""PostgreSQL's binary formats for the few types that statements take and return.

Text and bytea travel as their own bytes; the rest is big-endian, as the servers' `*send` and `*recv` functions have it
(PostgreSQL's manual, chapter "Frontend/Backend Protocol", and the sources of these functions).
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timedelta
from io import BytesIO
from itertools import chain, repeat
from typing import cast

_INT8 = struct.Struct("!q")
_FLOAT8 = struct.Struct("!d")
_INTERVAL = struct.Struct("!qii")
_ARRAY = struct.Struct("!iiIii")
_LENGTH = struct.Struct("!i")

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_EMPTY_ARRAY = struct.Struct("!iiI")
_TEXT, _BYTEA, _TIMESTAMPTZ = 25, 17, 1184  # pg_type.oid
_NULL_LENGTH = _LENGTH.pack(-1)

TRUE, FALSE = b"\x01", b"\x00"


def int8(number: int) -> bytes:
    """Return `number` as a bigint.

    >>> from_int8(int8(-7))
    -7
    """
    return _INT8.pack(number)


def from_int8(data: bytes) -> int:
    """Return the number that a bigint holds."""
    number: int = _INT8.unpack(data)[0]
    return number


def numeric(number: int) -> bytes:
    """Return a whole number of any size as a numeric.

    >>> numeric(-120_003).hex(" ", 2)
    '0002 0001 4000 0000 000c 0003'
    """
    digits, rest = [], abs(number)
    while rest:
        rest, digit = divmod(rest, 10_000)
        digits.append(digit)
    head = (len(digits), len(digits) - 1, 0x4000 if number < 0 else 0, 0)
    return struct.pack(f"!HhHH{len(digits)}H", *head, *reversed(digits))


def float8(number: float) -> bytes:
    """Return `number` as a double precision."""
    return _FLOAT8.pack(number)


def interval(seconds: float) -> bytes:
    """Return a number of seconds as an interval, to the microsecond."""
    return _INTERVAL.pack(round(seconds * 1_000_000), 0, 0)


def timestamptz(moment: datetime) -> bytes:
    """Return an aware datetime as a timestamptz, to the microsecond."""
    return _INT8.pack((moment - _EPOCH) // _MICROSECOND)


def from_timestamptz(data: bytes) -> datetime:
    """Return a timestamptz as a datetime in UTC; moments out of Python's range (infinity too) are cut to its ends.

    >>> from_timestamptz(timestamptz(datetime(2026, 1, 2, tzinfo=UTC)))
    datetime.datetime(2026, 1, 2, 0, 0, tzinfo=datetime.timezone.utc)
    """
    microseconds = from_int8(data)
    try:
        return _EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:
        return (datetime.max if microseconds > 0 else datetime.min).replace(tzinfo=UTC)


def seconds_between(earlier: bytes, later: bytes) -> float:
    """Return the seconds from one timestamptz to another, negative when the second is the earlier one."""
    return (from_int8(later) - from_int8(earlier)) / 1_000_000


def text_array(items: Collection[bytes]) -> bytes:
    """Return UTF-8 strings as a text[]."""
    return _array(_TEXT, items)


def bytea_array(items: Collection[bytes]) -> bytes:
    """Return byte strings as a bytea[]."""
    return _array(_BYTEA, items)


def _array(oid: int, items: Collection[bytes]) -> bytes:
    if not items:
        return _EMPTY_ARRAY.pack(0, 0, oid)
    head = _ARRAY.pack(1, 0, oid, len(items), 1)
    return _joined(chain((head,), chain.from_iterable(zip(_lengths(items), items, strict=True))))


def _joined(parts: Iterable[bytes]) -> bytes:
    """Join parts one after the other: `bytes.join` would first collect them, at some 100 bytes for each."""
    whole = BytesIO()
    whole.writelines(parts)
    return whole.getvalue()


def _lengths(items: Iterable[bytes]) -> Iterable[bytes]:
    return map(_LENGTH.pack, map(len, items))


_COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_TRAILER = struct.pack("!h", -1)


def copy_block(*columns: Collection[bytes | None] | None) -> bytes:
    """Return columns of equal length as the data of a binary COPY; None is a NULL, or a column of them."""
    rows = zip(repeat(struct.pack("!h", len(columns))), *chain.from_iterable(map(_fields, columns)))
    return _joined(chain((_COPY_HEADER,), chain.from_iterable(rows), (_COPY_TRAILER,)))


def _fields(column: Collection[bytes | None] | None) -> tuple[Iterable[bytes], ...]:
    if column is None:
        return (repeat(_NULL_LENGTH),)
    full = [item or b"" for item in column] if None in column else cast("Collection[bytes]", column)
    if full is column:
        return _lengths(full), full
    return [_NULL_LENGTH if item is None else _LENGTH.pack(len(item)) for item in column], full


def int8_of(array: bytes, place: int) -> bytes:
    """Return one bigint of an array without NULLs.

    >>> int8_of(_ARRAY.pack(1, 0, 20, 1, 1) + _LENGTH.pack(8) + int8(5), 0) == int8(5)
    True
    """
    at = _ARRAY.size + 12 * place + 4
    return array[at : at + 8]
