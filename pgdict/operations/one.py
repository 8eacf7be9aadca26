"""Operations on one key. Each is atomic under any concurrency, and one statement on its usual path."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pgdict import statements as sql
from pgdict import wire
from pgdict.errors import InvalidValue
from pgdict.keys import UnsupportedKey
from pgdict.operations.space import ABSENT, NEVER, Expiry, Operation, Row, Space

_SMALL = 10**18
_LARGE = 10**999
_LOOKS = 10
_PAUSE = wire.float8(0.005)


@dataclass(frozen=True, slots=True)
class CasResult:
    """What became of a `compare_and_swap`; true when the new value is stored.

    Attributes:
        status: `"swapped"`, `"mismatch"` or `"not_found"`.
        current: the stored value of a mismatch, else None.
    """

    status: Literal["swapped", "mismatch", "not_found"]
    current: Any = None

    def __bool__(self) -> bool:
        return self.status == "swapped"


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored value with what is known about it. Moments are in UTC, of the server's clock.

    Attributes:
        value: the value.
        codec: the name of the codec that wrote it (`"int"` and `"float"` for numbers).
        created_at: when the key was set while it was absent.
        updated_at: when the value was last written.
        expires_at: when it expires; None for never.
        size: the bytes of the stored value.
    """

    value: Any
    codec: str
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None
    size: int


def _absent(space: Space, key: object) -> bytes | None:
    """Return the stored key, or None for one that no dictionary can hold, which is absent."""
    try:
        return space.keys.encode(key)
    except UnsupportedKey:
        return None


def _live(space: Space, stored: bytes, row: Row, live: int) -> Operation[bool]:
    """Tell whether the row is live, and remove it when it is expired."""
    if row[live] == wire.TRUE:
        return True
    if space.cleans:
        yield sql.FORGET, (stored,)
    return False


def sweep_two(space: Space, expiry: Expiry, times: int = 1) -> Operation[None]:
    """Remove two expired rows for each that was stored with an expiry: a table that nobody reads does not grow for ever."""
    if space.cleans and expiry != NEVER:
        yield sql.SWEEP_TWO, (wire.int8(2 * times),)


def get(space: Space, key: object, default: Any) -> Operation[Any]:
    """Return the value of `key`, or `default`."""
    try:
        stored = space.keys.encode(key)
    except UnsupportedKey:
        return default
    for value, codec, live in (yield sql.GET, (stored,)):
        if live == wire.TRUE:
            return space.values.decode(key, value, codec)
        if space.cleans:
            yield sql.FORGET, (stored,)
    return default


def get_aging(space: Space, key: object) -> Operation[tuple[Any, float | None] | None]:
    """Return the value of `key` and the seconds that it has left (None for ever), or None."""
    for value, codec, live, expires, now in (yield sql.GET_AGING, (space.keys.encode(key),)):
        if live == wire.TRUE:
            left = None if expires is None else wire.seconds_between(now, expires)
            return space.values.decode(key, value, codec), left
    return None


def has(space: Space, key: object) -> Operation[bool]:
    """Tell whether `key` is there."""
    stored = _absent(space, key)
    if stored is None:
        return False
    rows = yield sql.HAS, (stored,)
    return bool(rows) and (yield from _live(space, stored, rows[0], 0))


def entry(space: Space, key: object) -> Operation[Entry | None]:
    """Return the value of `key` with what is known about it, or None."""
    stored = _absent(space, key)
    rows = (yield sql.ENTRY, (stored,)) if stored is not None else ()
    if stored is None or not rows or not (yield from _live(space, stored, rows[0], 2)):
        return None
    value, codec, _, created, updated, expires = rows[0]
    return Entry(
        space.values.decode(key, value, codec),
        codec.decode(),
        wire.from_timestamptz(created),
        wire.from_timestamptz(updated),
        None if expires is None else wire.from_timestamptz(expires),
        len(value),
    )


def ttl(space: Space, key: object) -> Operation[float | None]:
    """Return the seconds that `key` has left, None for ever; raise KeyError when it is absent."""
    stored = _absent(space, key)
    rows = (yield sql.TTL, (stored,)) if stored is not None else ()
    if stored is None or not rows or not (yield from _live(space, stored, rows[0], 0)):
        raise KeyError(key)
    _, expires, now = rows[0]
    return None if expires is None else wire.seconds_between(now, expires)


def set(space: Space, key: object, value: object, expiry: Expiry) -> Operation[None]:  # noqa: A001 - the field's name
    """Store `value` under `key`."""
    params = (space.keys.encode(key), *space.values.encode(value), *expiry)
    if expiry == NEVER or not space.cleans:
        yield sql.SET, params
    elif (yield sql.SET_EXPIRING, params)[0][0] == wire.TRUE:
        yield from sweep_two(space, expiry)


def set_nx(space: Space, key: object, value: object, expiry: Expiry) -> Operation[bool]:
    """Store `value` if `key` is absent, and tell whether it was."""
    return (yield from _born(space, space.keys.encode(key), space.values.encode(value), expiry))


def _born(space: Space, stored: bytes, data: tuple[bytes, bytes], expiry: Expiry) -> Operation[bool]:
    """Store an encoded value if its key is absent, and tell whether it was."""
    rows = yield sql.SET_NX, (stored, *data, *expiry)
    if rows:
        yield from sweep_two(space, expiry)
    return bool(rows)


def setdefault(space: Space, key: object, value: object, expiry: Expiry) -> Operation[Any]:
    """Return the value of `key` after storing `value` if it was absent."""
    params = (space.keys.encode(key), *space.values.encode(value), *expiry)
    while True:
        for born, present, codec in (yield sql.SETDEFAULT, params):
            if born != wire.TRUE:
                return space.values.decode(key, present, codec)
            yield from sweep_two(space, expiry)
            return value


def delete(space: Space, key: object) -> Operation[bool]:
    """Delete `key` and tell whether it was there."""
    stored = _absent(space, key)
    rows = (yield sql.DELETE, (stored,)) if stored is not None else ()
    return bool(rows) and rows[0][0] == wire.TRUE


def take(space: Space, key: object, default: Any) -> Operation[Any]:
    """Delete `key` and return its value, or `default`; a value that cannot be decoded stays."""
    stored = _absent(space, key)
    while stored is not None:
        rows = yield sql.TAKE, (stored, space.readable)
        if not rows:
            break
        taken, live, data, codec = rows[0]
        if live != wire.TRUE:
            break
        value = space.values.decode(key, data, codec)
        if taken == wire.TRUE:
            return value
    return default


def exchange(space: Space, key: object, value: object, default: Any, expiry: Expiry) -> Operation[Any]:
    """Store `value` and return the one it replaced, or `default`; a value that cannot be decoded stays."""
    stored, data = space.keys.encode(key), space.values.encode(value)
    while True:
        for live, old, codec in (yield sql.EXCHANGE, (stored, *data, *expiry, space.readable)):
            yield from sweep_two(space, expiry)
            return space.values.decode(key, old, codec) if live == wire.TRUE else default
        yield from get(space, key, None)  # says so when the value cannot be read
        if (yield from _born(space, stored, data, expiry)):
            return default


def _read(space: Space, key: object) -> Operation[tuple[bytes, bytes] | None]:
    """Return the stored value and codec of `key`, or None."""
    for value, codec, live in (yield sql.GET, (space.keys.encode(key),)):
        if live == wire.TRUE:
            return value, codec
    return None


def _or_default(space: Space, expiry: Expiry | None) -> Expiry:
    """Return the expiry of a key that begins anew, where None would keep the present one."""
    return space.expiry if expiry is None else expiry


def _swap(
    space: Space,
    key: object,
    old: tuple[bytes, bytes],
    new: tuple[bytes, bytes],
    expiry: Expiry | None,
    statement: sql.Statement = sql.SWAP,
) -> Operation[bool]:
    """Replace the stored value `old` by `new` if it is still there; no `expiry` keeps the old one."""
    renew = wire.FALSE if expiry is None else wire.TRUE
    params = (space.keys.encode(key), *new, *(expiry or NEVER), renew, *old)
    return bool((yield statement, params))


def mutate(
    space: Space,
    key: object,
    change: Callable[[Any], Any],
    default: Callable[[], Any] | None,
    expiry: Expiry | None,
) -> Operation[Any]:
    """Replace the value of `key` by `change(value)`, of `default()` when it is absent, and return the new value."""
    while True:
        old = yield from _read(space, key)
        if old is None:
            if default is None:
                raise KeyError(key)
            value = change(default())
            if (yield from set_nx(space, key, value, _or_default(space, expiry))):
                return value
        else:
            value = change(space.values.decode(key, *old))
            new = space.values.encode(value)
            if (new == old and expiry is None) or (yield from _swap(space, key, old, new, expiry)):
                return value


def hold(space: Space, key: object, default: Callable[[], Any] | None) -> Operation[tuple[Any, tuple[bytes, bytes]]]:
    """Lock `key` against every other writer until the transaction ends; return its value, and that as it is stored.

    An absent key is set to `default()`, as nothing else could be locked.
    """
    while True:
        for data, codec, live in (yield sql.LOCK_ROW, (space.keys.encode(key),)):
            if live == wire.TRUE:
                return space.values.decode(key, data, codec), (data, codec)
        if default is None:
            raise KeyError(key)
        value = default()
        stored = space.values.encode(value)
        if (yield sql.SET_NX, (space.keys.encode(key), *stored, *space.expiry)):
            return value, stored


def write_back(space: Space, key: object, old: tuple[bytes, bytes], value: object, expiry: Expiry | None) -> Operation[None]:
    """Store `value` for a key that is held, unless that changes nothing."""
    new = space.values.encode(value)
    if new == old and expiry is None:
        return
    statement = sql.SWAP_HELD if expiry is None else sql.SWAP
    while not (yield from _swap(space, key, old, new, expiry, statement)):
        rows = yield sql.GET, (space.keys.encode(key),)
        if rows and (expiry is None or rows[0][2] == wire.TRUE):  # the block itself wrote it
            old = rows[0][:2]
        elif (yield sql.SET_NX, (space.keys.encode(key), *new, *_or_default(space, expiry))):
            return


def compare_and_swap(space: Space, key: object, expected: object, new: object, expiry: Expiry | None) -> Operation[CasResult]:
    """Store `new` if the value of `key` equals `expected`."""
    data = space.values.encode(new)
    while True:
        if expected is ABSENT and (yield from _born(space, space.keys.encode(key), data, _or_default(space, expiry))):
            return CasResult("swapped")
        old = yield from _read(space, key)
        if old is not None:
            current = space.values.decode(key, *old)
            if expected is ABSENT or current != expected:
                return CasResult("mismatch", current)
            if (yield from _swap(space, key, old, data, expiry)):
                return CasResult("swapped")
        elif expected is not ABSENT:
            return CasResult("not_found")


def increment(space: Space, key: object, by: float, expiry: Expiry) -> Operation[int | float]:
    """Add `by` to the number of `key`, or to 0 when it is absent, and return the sum."""
    if isinstance(by, bool) or not isinstance(by, int | float):
        raise TypeError(f"increment adds an int or a float, not {type(by).__name__}: {by!r}")
    stored = space.keys.encode(key)
    if space.values.codec.sealed:
        raise TypeError(f"codec {space.values.codec.name!r} has no increment: the server cannot sign its numbers")
    if type(by) is int and -_LARGE < by < _LARGE:
        small = -_SMALL < by < _SMALL
        statement, number = (sql.INCREMENT, wire.int8(by)) if small else (sql.INCREMENT_LARGE, wire.numeric(by))
        for (total,) in (yield statement, (stored, number, *expiry)):
            if int(total) == by:  # a new number, most likely
                yield from sweep_two(space, expiry)
            return int(total)
    return (yield from _add(space, key, by, expiry))


def _add(space: Space, key: object, by: float, expiry: Expiry) -> Operation[int | float]:
    """Add with Python's arithmetic, by compare-and-swap."""
    while True:
        old = yield from _read(space, key)
        number = 0 if old is None else space.values.decode(key, *old)
        if type(number) not in (int, float):
            raise TypeError(f"value of key {key!r} is no number but {type(number).__name__}: it cannot be incremented")
        total: int | float = number + by
        if isinstance(total, float) and not math.isfinite(total) and math.isfinite(number) and math.isfinite(by):
            raise InvalidValue(f"the sum of {number!r} and {by!r} for key {key!r} is beyond the floats")
        data = space.values.encode(total)
        if old is None:
            if (yield from _born(space, space.keys.encode(key), data, expiry)):
                return total
        elif (yield from _swap(space, key, old, data, None)):
            return total


def expire(space: Space, key: object, expiry: Expiry) -> Operation[bool]:
    """Give `key` a new expiry and tell whether it was there."""
    stored = _absent(space, key)
    return stored is not None and bool((yield sql.EXPIRE, (stored, *expiry)))


def persist(space: Space, key: object) -> Operation[bool]:
    """Take the expiry from `key` and tell whether it had one."""
    stored = _absent(space, key)
    return stored is not None and bool((yield sql.PERSIST, (stored,)))


def move_to_end(space: Space, key: object, last: bool) -> Operation[bool]:
    """Move `key` to the end or the beginning, and tell whether it was there."""
    stored = _absent(space, key)
    return stored is not None and bool((yield sql.MOVE_LAST if last else sql.MOVE_FIRST, (stored,)))


def popitem(space: Space, last: bool) -> Operation[tuple[Any, Any] | None]:
    """Delete and return the last or first item that nobody is writing, or None when there is none.

    While all that is there is being written it looks again, for some 50 ms.
    """
    among = space.order == "insertion" and space.bounds is not None
    families = (sql.POPITEM_AMONG, sql.FIRST_AMONG) if among else (sql.POPITEM, sql.FIRST)
    statement, first = (family.over(space.bounds is not None, last) for family in families)
    bounds = space.bounds or ()
    for _ in range(_LOOKS):
        for row in (yield statement, (space.readable, *bounds)):
            return space.item(row)
        rows = yield first, bounds
        if not rows:
            break
        space.item(rows[0])  # says so when it cannot be read
        yield sql.PAUSE, (_PAUSE,)
    return None
