"""`PgDict`: the operations as the methods of a mapping."""

from __future__ import annotations

import os
import secrets
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import chain
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, overload

from pgdict import display
from pgdict.codecs import MAX_VALUE_SIZE, Codec, Values
from pgdict.dumps import Stored
from pgdict.dumps import read as read_dump
from pgdict.dumps import write as write_dump
from pgdict.errors import ConfigError, PgDictError, QueryFailed
from pgdict.fingerprint import name_of
from pgdict.keys import MAX_KEY_LENGTH, Keys, lock_number
from pgdict.memo import Memoizer, memoize
from pgdict.memo import Options as MemoOptions
from pgdict.operations import ABSENT, DEFAULT, ByKey, Pages, Space, expiry, many, one, walk, whole
from pgdict.operations.one import CasResult, Entry
from pgdict.operations.space import NEVER, Expiry, Sentinel, amount, seconds
from pgdict.operations.whole import Stats
from pgdict.server import locate
from pgdict.session import (
    Connection,
    Durability,
    Network,
    Options,
    Place,
    Pool,
    Session,
    drop_table,
    opening,
    set_durability,
    sweep_in_background,
    truncate_table,
)
from pgdict.statements import Order
from pgdict.views import Counted, StoredItems, StoredKeys, StoredValues

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

Ttl = float | timedelta | None | Sentinel
Cleanup = Literal["on_read", "background", "manual", "disabled"]
_CLEANUPS = ("on_read", "background", "manual", "disabled")
_COUNTED, _COMPLETIONS = 100_000, 200


class PgDict(Counted, MutableMapping[K, V]):
    r"""A dict that lives in PostgreSQL.

    It does what a `dict` does, in insertion order, one statement at a time, while other threads, processes and machines
    use the same table. Values are copies: changing what `d[key]` returned changes nothing in the database; `mutate` does.

    | what | methods |
    |---|---|
    | a dict | `[]`, `get`, `in`, `del`, `len`, `bool`, `iter`, `reversed`, `keys`, `values`, `items`, `pop`, `popitem` |
    | | `setdefault`, `update`, `clear`, `copy`, `==`, `\|`, `\|=`, `move_to_end` |
    | time to live | `set`, `expire`, `persist`, `ttl`, `cleanup_expired` |
    | atomic | `set_nx`, `increment`, `decrement`, `compare_and_swap`, `get_and_set`, `get_and_delete`, `mutate` |
    | many at once | `get_many`, `set_many`, `delete_many` |
    | in key order | `scan`, `scan_keys`, `count`, `delete_prefix` |
    | parts and times | `namespace`, `transaction`, `snapshot`, `lock`, `semaphore`, `memoize` |
    | the whole | `stats`, `dump`, `load`, `set_durability`, `truncate`, `drop` |
    | the rest | `entry`, `url`, `close` |

    Args:
        location: where the data is. None is the environment variable `PGDICT_URL` or else an embedded server in the user's
            data directory; a string with `://` or `=` is a PostgreSQL server; `""` is libpq's environment (`PGHOST` and so
            on); any other string or path is a directory, in which an embedded server keeps its data.
        pool: the application's own `psycopg_pool.ConnectionPool`; never closed by the dictionary.
        connection: the application's own psycopg connection; what the dictionary does is part of its transaction.
        table: the table's name, created when it is missing.
        schema: its schema, created when it is missing; None is the server's default.
        codec: how values are stored: `"msgpack"`, `"json"`, `"pickle"`, `"bytes"`, `"text"`, or a `Codec`.
        ttl: the time to live of every write without one of its own, in seconds or as a timedelta; None is for ever.
        durability: `"unlogged"` (no WAL, lightest: **a crash of the server empties the table**), `"async"` (a crash loses the
            last fraction of a second) or `"sync"` (an acknowledged write survives). None is what the table has; a new one is
            unlogged on a server, and async in an embedded directory.
        order: `"insertion"`, or `"key"` for a table without the column that keeps it. None is what the table has; a new one
            keeps insertion order.
        cleanup: what becomes of expired rows, which are never seen: `"on_read"` removes the one that a read meets, and a
            write with a ttl removes two; `"background"` has one thread of one process remove them as well; `"manual"` leaves
            them to `cleanup_expired`; `"disabled"` ignores expiry altogether: expired rows are returned.
        create: whether a missing table is created.
        max_key_length: the most bytes that a stored key may have, up to 2600.
        max_value_size: the most bytes that a stored value may have.
        adopt: whether to share a table that the Rust crate pgkv made: every row is bytes, or text, with `codec="bytes"` or
            `"text"`. Its keys are given the collation `"C"`, and it a column `seq` when `order="insertion"` asks for it.
        application_name: what `pg_stat_activity` shows.
        min_size: connections that are kept open.
        max_size: the most connections that this process opens.
        timeout: the most seconds to wait for a connection, and to repeat a read after one was lost.

    Raises:
        ConfigError: an option is wrong, or contradicts the table that exists.
        ConnectionFailed: the server cannot be reached, with its reason; at once, not at the first use.
        QueryFailed: the server refuses to create the table.

    >>> from pgdict import PgDict
    >>> d = PgDict(table="example")
    >>> d["answer"] = 42
    >>> d["answer"], "question" in d, len(d)
    (42, False, 1)
    >>> d.drop()
    >>> d.close()
    """

    _session: Session
    _space: Space
    _origin: _Origin

    def __init__(
        self,
        location: str | PathLike[str] | None = None,
        *,
        pool: Pool | None = None,
        connection: Connection | None = None,
        table: str = "kv_store",
        schema: str | None = None,
        codec: str | Codec = "msgpack",
        ttl: float | timedelta | None = None,
        durability: Durability | None = None,
        order: Order | None = None,
        cleanup: Cleanup = "on_read",
        create: bool = True,
        max_key_length: int = 1024,
        max_value_size: int = MAX_VALUE_SIZE,
        adopt: bool = False,
        application_name: str = "pgdict",
        min_size: int = 1,
        max_size: int = 8,
        timeout: float = 30.0,
    ) -> None:
        if cleanup not in _CLEANUPS:
            raise ConfigError(f"cleanup is one of {', '.join(map(repr, _CLEANUPS))}, not {cleanup!r}")
        if sum(given is not None for given in (location, pool, connection)) > 1:
            raise ConfigError("give one of location, pool and connection")
        if cleanup == "background" and connection is not None:
            raise ConfigError("cleanup='background' would sweep in the application's own transaction; use another handle")
        for option, number, most in (
            ("max_key_length", max_key_length, MAX_KEY_LENGTH),
            ("max_value_size", max_value_size, 2**30 - 2**20),  # a field of PostgreSQL holds 1 GB
        ):
            if not 1 <= number <= most:
                raise ConfigError(f"{option} is 1 to {most} bytes, not {number!r}")
        values = Values(codec, max_value_size, untagged=adopt)
        lifetime = None if ttl is None else seconds(ttl)
        if adopt and codec not in ("bytes", "text"):
            raise ConfigError(f"adopt=True needs codec='bytes' or codec='text', not {codec!r}")
        adopted: Any = codec if adopt else None
        options = Options(table, schema, order, durability, cleanup != "disabled", create, adopted)
        network = Network(application_name, min_size, max_size, timeout)
        if pool is not None:
            opened = opening.open_pool(pool, options, network)
        elif connection is not None:
            opened = opening.open_connection(connection, options, network)
        else:
            location = locate(location)  # for wherever it is unpickled
            opened = opening.open_location(location, options, network)
        self._session, found, place = opened
        if cleanup == "background":
            sweep_in_background(self._session)
        self._space = Space(
            Keys("", max_key_length),
            values,
            lifetime,
            found.layout.order,
            cleans=cleanup in ("on_read", "background"),
        )
        lasting = pool is None and connection is None
        options = replace(options, order=found.layout.order, durability=found.durability)
        self._origin = _Origin(location, options, network, place, lasting)

    # A dict ---------------------------------------------------------------------------------------------------------

    def __getitem__(self, key: K, /) -> V:
        value = self._session.run(one.get(self._space, key, ABSENT))
        if value is ABSENT:
            missing = getattr(type(self), "__missing__", None)
            if missing is None:
                raise KeyError(key)
            value = missing(self, key)
        return value  # type: ignore[no-any-return]

    def __setitem__(self, key: K, value: V, /) -> None:
        space = self._space
        self._session.run(one.set(space, key, value, space.expiry))

    def __delitem__(self, key: K, /) -> None:
        if not self._session.run(one.delete(self._space, key)):
            raise KeyError(key)

    def __contains__(self, key: object, /) -> bool:
        return self._session.run(one.has(self._space, key))

    def _count(self) -> int:
        return self._session.run(many.count(self._space.bounds))

    def __bool__(self) -> bool:
        return self._session.run(many.any_at_all(self._space))

    def __iter__(self) -> Iterator[K]:
        return chain(self._begin(), self.keys())

    def __reversed__(self) -> Iterator[K]:
        return reversed(self.keys())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        if len(self) != len(other):
            return False
        theirs = other if isinstance(other, dict) else dict(other.items())
        equal = 0
        for key, value in self.items():
            if key not in theirs or not (theirs[key] is value or theirs[key] == value):
                return False
            equal += 1
        return equal == len(theirs)

    __hash__ = None  # type: ignore[assignment]  # mutable, as a dict

    def __or__(self, other: Mapping[K, V]) -> dict[K, V]:
        return self.copy() | dict(other.items()) if isinstance(other, Mapping) else NotImplemented

    def __ror__(self, other: Mapping[K, V]) -> dict[K, V]:
        return dict(other.items()) | self.copy() if isinstance(other, Mapping) else NotImplemented

    def __ior__(self, other: Mapping[K, V] | Iterable[tuple[K, V]]) -> Self:
        self.update(other)
        return self

    @overload
    def get(self, key: object, default: None = None, /) -> V | None: ...
    @overload
    def get(self, key: object, default: D, /) -> V | D: ...
    def get(self, key: object, default: Any = None, /) -> Any:
        """Return the value of `key`, or `default` when it is absent. One statement.

        >>> d.get("nothing"), d.get("nothing", 0)
        (None, 0)

        Raises:
            DecodeError: the stored value cannot be read.
        """
        return self._session.run(one.get(self._space, key, default))

    def keys(self) -> StoredKeys[K]:
        """Return a view of the keys, as `dict.keys`: sized, ordered, reversible, with the operations of a set.

        Iterating takes one statement for each 5,000 keys, and yields every key that is there, and not moved, all the while
        exactly once, whatever others write meanwhile. It ends with the keys that were there when it began.
        """
        return StoredKeys(self, self._rows, self._space.key)

    def items(self) -> StoredItems[K, V]:
        """Return a view of the pairs, as `dict.items`; iterated like `keys`, in pages of at most 5,000 rows or some 8 MB.

        >>> d.update(a=1, b=2)
        >>> list(d.items()), list(reversed(d.items()))
        ([('a', 1), ('b', 2)], [('b', 2), ('a', 1)])

        A pair that cannot be decoded raises `DecodeError`; `next` then goes on with the one behind it.
        """
        return StoredItems(self, self._rows, self._space.item)

    def values(self) -> StoredValues[V]:
        """Return a view of the values, as `dict.values`; iterated like `items`."""
        return StoredValues(self, self._rows, self._space.value)

    def _rows(self, values: bool, reverse: bool) -> Iterator[tuple[Any, ...]]:
        return self._follow(walk(self._space, values=values, reverse=reverse))

    def _follow(self, pages: Pages) -> Iterator[tuple[Any, ...]]:
        run = self._session.run
        return chain.from_iterable(iter(lambda: run(pages.page()), ()))

    @overload
    def pop(self, key: K, /) -> V: ...
    @overload
    def pop(self, key: K, default: D, /) -> V | D: ...
    def pop(self, key: K, default: Any = ABSENT, /) -> Any:
        """Remove `key` and return its value, or `default`. Atomic, one statement.

        Each stored value is handed out at most once, however many callers there are.

        >>> d["a"] = 1
        >>> d.pop("a"), d.pop("a", None)
        (1, None)

        Raises:
            KeyError: the key is absent, and no default is given.
            DecodeError: the stored value cannot be read; it stays where it is when its codec is not read here, while of damaged
                bytes `.raw` is what is left.
        """
        value = self._session.run(one.take(self._space, key, default))
        if value is ABSENT:
            raise KeyError(key)
        return value

    def popitem(self, *, last: bool = True) -> tuple[K, V]:
        """Remove the newest item, or with `last=False` the oldest, and return it. Atomic, one statement.

        Run from many workers at once, each item goes to exactly one of them without waiting on the others: a work queue. An
        item that somebody is writing at that moment is passed over.

        >>> d.update(first=1, second=2)
        >>> d.popitem(last=False)
        ('first', 1)

        Raises:
            KeyError: there is no item, or for some 50 ms none that nobody is writing.
            DecodeError: the stored value cannot be read; it stays where it is when its codec is not read here, while of damaged
                bytes `.raw` is what is left.
        """
        item = self._session.run(one.popitem(self._space, last))
        if item is None:
            raise KeyError("popitem(): dictionary is empty")
        return item

    @overload
    def setdefault(self: PgDict[K, D | None], key: K, default: None = None, /) -> D | None: ...
    @overload
    def setdefault(self, key: K, default: V, /) -> V: ...
    def setdefault(self, key: K, default: Any = None, /) -> Any:
        """Return the value of `key`, after setting it to `default` if it was absent. Atomic, one statement.

        The value is a copy: `d.setdefault(key, []).append(x)` stores the empty list only; `mutate` is the way.

        >>> d.setdefault("a", 1), d.setdefault("a", 2)
        (1, 1)
        """
        space = self._space
        return self._session.run(one.setdefault(space, key, default, space.expiry))

    def update(self, other: Any = (), /, **items: Any) -> None:
        """Store the pairs of a mapping or an iterable, and the keywords, as `dict.update`. All or nothing: see `set_many`."""
        self._store(chain(_pairs(other), items.items()), DEFAULT)

    def clear(self) -> None:
        """Remove all items of this dictionary or namespace. Atomic, one statement."""
        self._session.run(many.clear(self._space.bounds))

    def copy(self) -> dict[K, V]:
        """Return a dict of all items: ⌈n/5000⌉ statements, where `dict(d)` asks key by key, as for any mapping."""
        return dict(iter(self.items()))

    __copy__ = copy  # `copy.copy(d)`, as of a dict

    def __deepcopy__(self, memo: object, /) -> dict[K, V]:
        return self.copy()  # its values are new already

    def move_to_end(self, key: K, last: bool = True) -> None:
        """Move `key` to the end, or with `last=False` to the beginning, as `OrderedDict.move_to_end`. Atomic, one statement.

        Raises:
            KeyError: the key is absent.
            PgDictError: the dictionary is in the order of its keys.
        """
        if self._space.order != "insertion":
            raise PgDictError(f"move_to_end({key!r}): this dictionary is in the order of its keys")
        if not self._session.run(one.move_to_end(self._space, key, last)):
            raise KeyError(key)

    # Time to live ---------------------------------------------------------------------------------------------------

    def set(self, key: K, value: V, ttl: Ttl = DEFAULT, *, expires_at: datetime | None = None) -> None:
        """Store `value` under `key` with an expiry of its own. Atomic, one statement, or two when there is something to sweep.

        Args:
            key: the key.
            value: the value.
            ttl: seconds or a timedelta; None is for ever; left out, it is the dictionary's.
            expires_at: an aware datetime instead.

        >>> d.set("session", "...", ttl=60)
        >>> 50 < d.ttl("session") <= 60
        True

        Raises:
            ValueError: the ttl is not positive, not finite, or absurd.
        """
        self._session.run(one.set(self._space, key, value, expiry(self._space, ttl, expires_at)))

    def expire(self, key: K, ttl: float | timedelta) -> bool:
        """Let `key` expire in `ttl` seconds, and return whether it was there. Atomic, one statement."""
        if ttl is None:
            raise TypeError("expire needs a ttl; persist takes it away")
        return self._session.run(one.expire(self._space, key, expiry(self._space, ttl)))

    def persist(self, key: K) -> bool:
        """Take the expiry from `key`, and return whether it had one. Atomic, one statement."""
        return self._session.run(one.persist(self._space, key))

    def ttl(self, key: K) -> float | None:
        """Return the seconds that `key` has left, None when it never expires. One statement.

        Raises:
            KeyError: the key is absent.
        """
        return self._session.run(one.ttl(self._space, key))

    def cleanup_expired(self, limit: int | None = None) -> int:
        """Delete expired rows, at most `limit`, and return how many. Rows that somebody is writing are left.

        One statement for each 10,000 rows, the oldest first; outside a transaction each counts at once.
        """
        return self._session.run(many.sweep(self._space, limit))

    # Atomic ---------------------------------------------------------------------------------------------------------

    def set_nx(self, key: K, value: V, ttl: Ttl = DEFAULT) -> bool:
        """Store `value` if `key` is absent, and return whether it was. Atomic, one statement.

        >>> d.set_nx("leader", "me"), d.set_nx("leader", "you"), d["leader"]
        (True, False, 'me')
        """
        return self._session.run(one.set_nx(self._space, key, value, expiry(self._space, ttl)))

    @overload
    def increment(self, key: K, by: int = 1, *, ttl: Ttl = DEFAULT) -> int: ...
    @overload
    def increment(self, key: K, by: float, *, ttl: Ttl = DEFAULT) -> float: ...
    def increment(self, key: K, by: float = 1, *, ttl: Ttl = DEFAULT) -> float:
        """Add `by` to the number of `key`, from 0 when it is absent, and return the sum. Atomic.

        An int is exact and takes one statement, up to a thousand digits; larger ones and floats take two without contention.

        Args:
            key: the key.
            by: what to add.
            ttl: counts only when a new number begins: a rate limit by fixed windows in one call.

        >>> d.increment("visits"), d.increment("visits", 10)
        (1, 11)

        Raises:
            TypeError: the stored value is no number; it stays as it is.
        """
        return self._session.run(one.increment(self._space, key, by, expiry(self._space, ttl)))

    @overload
    def decrement(self, key: K, by: int = 1, *, ttl: Ttl = DEFAULT) -> int: ...
    @overload
    def decrement(self, key: K, by: float, *, ttl: Ttl = DEFAULT) -> float: ...
    def decrement(self, key: K, by: float = 1, *, ttl: Ttl = DEFAULT) -> float:
        """Subtract `by` from the number of `key`: `increment(key, -by)`."""
        return self.increment(key, by if isinstance(by, bool) or not isinstance(by, int | float) else -by, ttl=ttl)

    def compare_and_swap(self, key: K, expected: Any, new: V, ttl: Ttl = DEFAULT) -> CasResult:
        """Store `new` if the value of `key` equals `expected`. Atomic, two statements without contention.

        Equality is Python's `==`, not that of bytes. The expiry stays unless a `ttl` is given.

        Args:
            key: the key.
            expected: the value that should be there; `pgdict.ABSENT` for none.
            new: the value to store.
            ttl: replaces the expiry.

        >>> d["state"] = "open"
        >>> bool(d.compare_and_swap("state", "open", "closed"))
        True
        >>> d.compare_and_swap("state", "open", "closed")
        CasResult(status='mismatch', current='closed')
        """
        return self._session.run(one.compare_and_swap(self._space, key, expected, new, self._renewal(ttl)))

    def get_and_set(self, key: K, value: V, default: Any = None, *, ttl: Ttl = DEFAULT) -> Any:
        """Store `value` and return the one it replaced, or `default`. Atomic; one statement on PostgreSQL 18.

        Each stored value is handed out at most once. On older servers an absent key takes two statements.

        >>> d.get_and_set("turn", "a"), d.get_and_set("turn", "b")
        (None, 'a')
        """
        return self._session.run(one.exchange(self._space, key, value, default, expiry(self._space, ttl)))

    def get_and_delete(self, key: K, default: Any = None) -> Any:
        """Remove `key` and return its value, or `default`. Atomic, one statement: `pop` with a default."""
        return self._session.run(one.take(self._space, key, default))

    @overload
    def mutate(
        self, key: K, change: None = None, *, default: Callable[[], V] | None = None, ttl: Ttl = DEFAULT
    ) -> AbstractContextManager[Box[V]]: ...
    @overload
    def mutate(self, key: K, change: Callable[[V], V], *, default: Callable[[], V] | None = None, ttl: Ttl = DEFAULT) -> V: ...
    def mutate(
        self,
        key: K,
        change: Callable[[V], V] | None = None,
        *,
        default: Callable[[], V] | None = None,
        ttl: Ttl = DEFAULT,
    ) -> V | AbstractContextManager[Box[V]]:
        """Read, change and write back the value of `key`, atomically against every other writer.

        With a function, its result is stored and returned; it may be called more than once, when others write meanwhile (two
        statements without contention). Without one, it is a context manager and a transaction, which holds the key
        until the block ends. What did not change is not written. The expiry stays unless a `ttl` is given.

        Args:
            key: the key.
            change: takes the value and returns the new one.
            default: makes the value of an absent key, such as `list`.
            ttl: replaces the expiry.

        >>> d.mutate("numbers", lambda numbers: [*numbers, 1], default=list)
        [1]
        >>> with d.mutate("numbers") as box:
        ...     box.value.append(2)
        >>> d["numbers"]
        [1, 2]

        Raises:
            KeyError: the key is absent, and there is no default.
        """
        renewal = self._renewal(ttl)
        if change is None:
            return self._held(key, default, renewal)
        value: V = self._session.run(one.mutate(self._space, key, change, default, renewal))
        return value

    @contextmanager
    def _held(self, key: K, default: Callable[[], V] | None, renewal: Expiry | None) -> Iterator[Box[V]]:
        run, space = self._session.run, self._space
        with self._session.transaction():
            value, stored = run(one.hold(space, key, default))
            box = Box(value)
            yield box
            run(one.write_back(space, key, stored, box.value, renewal))

    def _renewal(self, ttl: Ttl) -> Expiry | None:
        """Return the expiry that replaces the present one, None to keep it."""
        return None if ttl is DEFAULT else expiry(self._space, ttl)

    # Many at once ---------------------------------------------------------------------------------------------------

    def get_many(self, keys: Iterable[K]) -> dict[K, V]:
        """Return the values of those keys that are there, in the order asked for. One statement for each 5,000 keys.

        >>> d.update(a=1, b=2)
        >>> d.get_many(["b", "nothing", "a"])
        {'b': 2, 'a': 1}
        """
        return self._session.run(many.get_many(self._space, keys))

    def set_many(self, items: Mapping[K, V] | Iterable[tuple[K, V]], ttl: Ttl = DEFAULT, *, progress: bool = False) -> None:
        """Store the pairs of a mapping or an iterable, all or nothing, whatever their number.

        Up to some 16 MB are one statement; more are copied into a temporary table and merged in one transaction. From 10,000
        pairs on a transaction of a few statements first tries to copy them straight into the table, which it can when none of
        its keys lie among them. The iterable is read lazily, and never while a statement runs, so it may use this dictionary.
        Of equal keys the last value counts, in the place of the first. What the iterable itself writes to this dictionary is
        part of the transaction, too, once that has begun.

        Args:
            items: the pairs.
            ttl: as for `set`.
            progress: whether to show a progress bar; needs tqdm.

        >>> d.set_many({"a": 1, "b": 2}, ttl=60)
        """
        pairs = _pairs(items)
        self._store(display.with_progress(pairs, items) if progress else pairs, ttl)

    def _store(self, pairs: Iterable[tuple[Any, Any]], ttl: Ttl) -> None:
        lifetime = expiry(self._space, ttl)
        buffers = many.buffers(self._space, pairs)
        first, more = next(buffers)
        number = len(first)
        if more:
            staged = chain(iter([(first, more)]), buffers)  # an iterator, which lets go of what it has yielded
            del first
            self._stage(many.pair_blocks(staged), lifetime)
        elif number < many.PLENTY or not self._copied(first, lifetime):
            self._session.run(many.set_buffer(first, lifetime))
        self._session.run(one.sweep_two(self._space, lifetime, number))

    def _stage(self, blocks: Iterator[bytes], lifetime: Expiry) -> None:
        with self._session.transaction():
            self._session.run(many.set_staged(f"pgdict_stage_{secrets.token_hex(8)}", blocks, lifetime))

    def _copied(self, buffer: many.Buffer, lifetime: Expiry) -> bool:
        """Copy many pairs into the table, unless some of the keys may be there."""
        try:
            with self._session.transaction():
                return self._session.run(many.copy_new(self._space, buffer, lifetime))
        except QueryFailed as error:
            if error.sqlstate not in many.LOST_RACE:
                raise
            return False

    def delete_many(self, keys: Iterable[K]) -> int:
        """Remove those keys that are there, and return how many were. One statement, atomic, for each 5,000 keys.

        >>> d["a"] = 1
        >>> d.delete_many(["a", "nothing"])
        1
        """
        return self._session.run(many.delete_many(self._space, keys))

    # In key order ---------------------------------------------------------------------------------------------------

    def scan(
        self, prefix: str = "", *, limit: int | None = None, offset: int = 0, after: Any = ABSENT, reverse: bool = False
    ) -> Iterator[tuple[K, V]]:
        r"""Return an iterator over the pairs whose key begins with `prefix`, in the order of keys.

        `%`, `_` and `\\` are ordinary characters. One statement for each 5,000 rows or some 8 MB.

        Args:
            prefix: how the keys begin; `""` for all, also those that are no strings.
            limit: the most pairs.
            offset: how many to leave out first; `after` is the fast way to a later page.
            after: the key behind which to begin.
            reverse: from the last key down.

        >>> d.update({"user:1": "Ann", "user:2": "Bob", "visits": 3})
        >>> list(d.scan("user:"))
        [('user:1', 'Ann'), ('user:2', 'Bob')]
        >>> list(d.scan("user:", after="user:1"))
        [('user:2', 'Bob')]
        """
        return map(self._space.item, self._scanned(True, prefix, limit, offset, after, reverse))

    def scan_keys(
        self, prefix: str = "", *, limit: int | None = None, offset: int = 0, after: Any = ABSENT, reverse: bool = False
    ) -> Iterator[K]:
        """Return an iterator over the keys that begin with `prefix`, in their order; see `scan`."""
        return map(self._space.key, self._scanned(False, prefix, limit, offset, after, reverse))

    def _scanned(
        self, values: bool, prefix: str, limit: int | None, offset: int, after: Any, reverse: bool
    ) -> Iterator[tuple[Any, ...]]:
        limit = None if limit is None else amount("limit", limit)
        offset = amount("offset", offset)
        low, high = self._space.range(prefix)
        if after is not ABSENT:
            place = self._space.keys.encode(after)
            low, high = (low, min(high, place)) if reverse else (max(low, place + b"\x01"), high)
        return self._follow(ByKey((low, high), values=values, reverse=reverse, limit=limit, offset=offset))

    def count(self, prefix: str = "") -> int:
        """Return how many keys begin with `prefix`. One statement."""
        return self._session.run(many.count(self._space.among(prefix)))

    def delete_prefix(self, prefix: str) -> int:
        """Remove the keys that begin with `prefix`, and return how many there were. Atomic, one statement.

        >>> d.update({"tmp:1": 1, "tmp:2": 2})
        >>> d.delete_prefix("tmp:")
        2
        """
        return self._session.run(many.clear(self._space.among(prefix)))

    # Parts ----------------------------------------------------------------------------------------------------------

    def namespace(self, *names: str, codec: str | Codec | None = None, ttl: Ttl = DEFAULT) -> PgDict[Any, Any]:
        """Return the dictionary of the keys that begin with `name:`, without that prefix.

        It shares connections and transactions with this one, and every method sees and costs the namespace alone.

        Args:
            names: the name; several nest: `d.namespace("a", "b")` is `d.namespace("a").namespace("b")`.
            codec: how its values are stored, when not as in this one.
            ttl: its default time to live, when not that of this one.

        >>> users = d.namespace("users")
        >>> users["ann"] = 1
        >>> d["users:ann"], list(users)
        (1, ['ann'])

        Raises:
            InvalidKey: a name is empty or contains a colon.
        """
        if not names:
            raise TypeError("namespace needs a name")
        space = self._space
        values = space.values if codec is None else Values(codec, space.values.max_size, space.values.untagged)
        if values.untagged and values.codec != space.values.codec:
            only = space.values.codec.name
            raise ConfigError(f"every value of an adopted table is {only}: codec={codec!r} cannot be told apart")
        lifetime = space.ttl
        if ttl is not DEFAULT:
            lifetime = None if ttl is None or isinstance(ttl, Sentinel) else seconds(ttl)
        return self._like(replace(space, keys=space.keys.within(*names), values=values, ttl=lifetime))

    def _like(self, space: Space) -> PgDict[Any, Any]:
        twin = object.__new__(type(self))
        twin._session, twin._origin, twin._space = self._session, self._origin, space
        return twin

    def transaction(self) -> AbstractContextManager[None]:
        """Make the block one transaction: committed at its end, rolled back on an exception.

        Everything that this thread does in the block through this dictionary and its namespaces is part of it. Blocks nest, as
        savepoints.

        >>> with d.transaction():
        ...     d["a"] = 1
        ...     d["b"] = 2

        Raises:
            QueryFailed: at the end, when a statement in the block had failed: all of it is rolled back.
        """
        return self._session.transaction()

    @contextmanager
    def snapshot(self) -> Iterator[PgDict[K, V]]:
        """Lend this dictionary as it is now: read-only, and unchanged however long the block takes.

        `len`, iteration and gets agree with each other, and nothing expires. It has a connection of its own, so this dictionary
        stays live; what this thread has not yet committed is not in it.

        >>> d["a"] = 1
        >>> with d.snapshot() as then:
        ...     d["a"] = 2
        ...     then["a"], d["a"]
        (1, 2)
        """
        with self._session.snapshot() as session:
            twin = self._like(replace(self._space, cleans=False))
            twin._session = session
            twin._origin = replace(self._origin, lasting=False)
            yield twin

    def lock(self, name: str, *, timeout: float | None = None) -> AbstractContextManager[None]:
        """Hold the lock `name` for the block: nobody else does, in any thread, process or machine.

        The server frees it when the holder dies. It belongs to this dictionary or namespace, and to the thread. All locks of a
        process are held on one connection of their own, which a pooler keeps for it meanwhile. Those who wait get it in no
        particular order.

        Args:
            name: any text.
            timeout: the most seconds to wait; 0 tries once, None waits for ever.

        >>> with d.lock("nightly", timeout=10):
        ...     pass

        Raises:
            LockTimeout: somebody else holds it all the while.
            PgDictError: this thread holds it already, and would wait for itself.
            ConnectionFailed: at the end of the block, when the lock was lost meanwhile with its connection.
        """
        return self._session.locks.held(name, [self._lock_number("lock", name)], timeout)

    def semaphore(self, name: str, n: int, *, timeout: float | None = None) -> AbstractContextManager[None]:
        """Hold one of the `n` places of the semaphore `name` for the block; like `lock` in all else.

        >>> with d.semaphore("downloads", 3):
        ...     pass
        """
        if not isinstance(n, int) or n < 1:
            raise ValueError(f"a semaphore has one place or more, not {n!r}")
        numbers = [self._lock_number("semaphore", name, str(place)) for place in range(n)]
        return self._session.locks.held(name, numbers, timeout)

    def _lock_number(self, *names: str) -> int:
        return lock_number(self._session.scope, self._space.keys.prefix, *names)

    def memoize(
        self,
        ttl: float | timedelta | Callable[[Any], float | timedelta | None] | None = None,
        *,
        name: str | None = None,
        key: Callable[..., Any] | None = None,
        ignore: tuple[str, ...] = (),
        version: object = None,
        typed: bool = True,
        single_flight: bool = True,
        refresh: float | timedelta | None = None,
        stale: float | timedelta | None = None,
        wait: float | timedelta | None = None,
    ) -> Memoizer:
        """Return a decorator that keeps a function's results in this dictionary, shared by everybody who uses it.

        However many threads, processes and machines miss a result at once, one computes it and the others get it; if it dies,
        another takes over. Inside a transaction a call reads, computes and stores as part of it and waits for nobody.
        Works on functions, methods, and `async def`; exceptions are not stored, so that whoever waited computes in turn.
        A result that the codec refuses is an error each time. A computation may use the dictionary and other memoized
        functions; a thread that it starts itself needs its context (`contextvars.copy_context().run`).

        The function gets `cache_key`, `cache_info`, `cache_clear`, `invalidate`, `refresh` and `__wrapped__`; of a method they
        take the object, too: `Class.method.invalidate(object, 1)`. What is just being computed is stored after a `cache_clear`.

        Calls share a result when their arguments are equal, however they are spelled: of the same types and content, the
        order of dicts, sets and keywords aside. Arguments may be what a key or the msgpack codec holds, enums, dataclasses,
        named tuples, paths, ranges, classes, and by content numpy arrays and pandas frames; objects of subclasses are refused.

        Args:
            ttl: seconds that a result lives, or a function of the result; None is for ever.
            name: what the results are stored under; needed for lambdas, functions inside others, and what is typed at the
                prompt of a Python before 3.13.
            key: makes the key from the arguments instead.
            ignore: parameters that do not count, such as `("self",)`.
            version: part of the name: change it with the meaning of the results.
            typed: whether equal numbers of different types are different, `1` and `1.0` and `True`.
            single_flight: whether one computes for all.
            refresh: seconds before the end of the ttl from which one caller computes anew while the others get the old result.
            stale: seconds after the end of the ttl for which the old result is returned when computing anew fails.
            wait: the most seconds to wait for somebody else's computation, then `LockTimeout`; None is as long as it lives.

        >>> @d.memoize(ttl=3600, name="square")
        ... def square(n):
        ...     print("computing")
        ...     return n * n
        >>> square(3), square(n=3)
        computing
        (9, 9)

        Raises:
            TypeError: an argument cannot be part of a key, the message names it and the ways out; the function is a generator;
                the result cannot be stored.
            InvalidValue: neither can this value of its type.
            ValueError: the function has no name that lasts; an option makes no sense.
            LockTimeout: see `wait`.
        """
        lasting: Any = ttl
        limits = {"refresh": refresh, "stale": stale, "wait": wait}
        given = {what: None if limit is None else seconds(limit, what) for what, limit in limits.items()}
        options = MemoOptions(lasting, key, ignore, typed, single_flight, **given)

        def decorate(function: Any) -> Any:
            if isinstance(function, staticmethod | classmethod):
                return type(function)(decorate(function.__func__))
            if not callable(function):
                kind = type(function).__name__
                raise TypeError(f"memoize decorates a function, not {kind}: {function!r} (@d.memoize() needs its parentheses)")
            own = (name or name_of(function)) + ("" if version is None else f"@{version}")
            return memoize(self._session, self.namespace("memo", own)._space, function, options)

        return decorate

    # Files ----------------------------------------------------------------------------------------------------------

    def dump(self, path: str | PathLike[str], *, progress: bool = False) -> int:
        """Write all items with their expiry to a file, as of one moment, and return how many.

        What this thread has not yet committed is not among them: see `snapshot`.
        The file is JSON lines, readable where JSON holds the values exactly, or msgpack when its name ends in `.msgpack`. It
        appears when it is complete. Memory stays bounded.

        Args:
            path: the file.
            progress: whether to show a progress bar; needs tqdm.
        """
        with self.snapshot() as then:
            entries: Iterable[Stored] = then._entries()
            return write_dump(Path(path), display.with_progress(entries, then) if progress else entries, self._space.values)

    def _entries(self) -> Iterator[Stored]:
        pages = walk(self._space, values=True)
        while rows := self._session.run(pages.page()):
            expires = self._session.run(many.expiries(row[0] for row in rows))
            for stored, value, codec, *_ in rows:
                yield Stored(self._space.keys.decode(stored), value, codec, expires.get(stored))

    def load(self, path: str | PathLike[str], *, progress: bool = False) -> int:
        """Store what `dump` wrote over what is here, all or nothing, and return how many items the file had.

        Args:
            path: the file.
            progress: whether to show a progress bar; needs tqdm.

        Raises:
            InvalidValue: an entry of the file is not one, or its codec is not read here.
        """
        entries: Iterable[Stored] = read_dump(Path(path), self._space.values)
        number = 0

        def counted() -> Iterator[Stored]:
            nonlocal number
            for number, entry in enumerate(display.with_progress(entries, ()) if progress else entries, 1):  # noqa: B007
                yield entry

        self._stage(many.entry_blocks(self._space, counted()), NEVER)
        return number

    # The table ------------------------------------------------------------------------------------------------------

    def stats(self, *, exact: bool = True) -> Stats:
        """Return how many keys are live and expired, their bytes, the size of the table, and whether a crash emptied it.

        Counting reads all rows; `exact=False` takes what the server noted last, of the whole table. Two or three statements.
        """
        table = self._session.table
        telling = bool(table.layout.sequence) and table.layout.version >= 150000
        return self._session.run(whole.stats(self._space, exact=exact, telling=telling))

    def set_durability(self, durability: Durability) -> None:
        """Make the table `"unlogged"`, `"async"` or `"sync"`, with the data it has.

        Between unlogged and the others PostgreSQL rewrites the table, while readers and writers wait. Other processes' handles
        on a table that was unlogged then write as the server's `synchronous_commit` says.
        """
        self._root("set_durability")
        with self._session.connection() as connection:
            joined = self._session.source.inside
            self._session.table = set_durability(connection, self._session.table, durability, joined=joined)

    def truncate(self) -> None:
        """Empty the table with all its namespaces at once, in little time; readers and writers wait. `clear` is gentler."""
        self._root("truncate")
        with self._session.connection() as connection:
            truncate_table(connection, self._session.table.layout.table)

    def _root(self, method: str) -> None:
        if self._space.bounds is not None:
            raise PgDictError(f"{method} is for the whole table: a namespace can be cleared, or call it on the root")

    # The rest -------------------------------------------------------------------------------------------------------

    def entry(self, key: K) -> Entry:
        """Return the value of `key` with its codec, size, and the moments it was created, updated and will expire.

        Raises:
            KeyError: the key is absent.
        """
        found = self._session.run(one.entry(self._space, key))
        if found is None:
            raise KeyError(key)
        return found

    @property
    def url(self) -> str:
        """The connection string of the server, with the password: for psql, psycopg, pandas."""
        return self._origin.place.url()

    def drop(self) -> None:
        """Drop the table, with all namespaces. Only from the root."""
        self._root("drop")
        with self._session.connection() as connection:
            drop_table(connection, self._session.table.layout.table)

    def close(self) -> None:
        """Close the connections, for the namespaces too; the embedded server stops after its last user. Once is enough."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        place = display.place(self._origin.place.name)
        return f"{type(self).__name__}({self._shown()}, table={self._origin.options.table!r}, at={place!r})"

    def _shown(self) -> str:
        """Return the first items, without reading the whole table."""
        if self._session.closed:
            return "<closed>"
        try:
            lines, more = self._session.run(whole.preview(self._space, display.SHOWN))
        except PgDictError as error:
            return f"<{error}>"
        return "{" + ", ".join([f"{display.brief(i.key)}: {display.brief(i.value)}" for i in lines] + ["..."] * more) + "}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(f"{type(self).__name__}(...)" if cycle else repr(self))

    def _repr_html_(self) -> str:
        """Return a table of the first items, for notebooks."""
        title = f"{type(self).__name__} {self._origin.options.table} {self._space.keys.prefix}".strip()
        place = display.place(self._origin.place.name)
        if self._session.closed:
            return display.html(title, f"closed, {place}")
        try:
            lines, more = self._session.run(whole.preview(self._space, display.SHOWN))
            items = display.number_of_items(*self._session.run(whole.count_some(self._space, _COUNTED)))
        except PgDictError as error:
            return display.html(title, f"{error}, {place}")
        return display.html(title, f"{items}, {place}", lines, more=more)

    def _ipython_key_completions_(self) -> list[Any]:
        """Return keys for `d["us<TAB>`: those that begin with what is typed, some hundred at most."""
        return list(display.readable(self.scan_keys(display.typed_prefix(), limit=_COMPLETIONS)))

    def __reduce__(self) -> tuple[Any, ...]:
        origin = self._origin
        if not origin.lasting:
            raise TypeError(f"cannot pickle {type(self).__name__!r} on the application's own pool or connection")
        options = replace(origin.options, durability=self._session.table.durability)
        return _reopened, (type(self), origin.location, options, origin.network, self._space)


@dataclass(slots=True)
class Box(Generic[V]):
    """What `mutate` lends: change `value`, or set it anew."""

    value: V


@dataclass(frozen=True, slots=True)
class _Origin:
    """How a dictionary was opened."""

    location: Any
    options: Options
    network: Network
    place: Place
    lasting: bool


_reopened_sessions: weakref.WeakValueDictionary[Any, Session] = weakref.WeakValueDictionary()
_places: dict[Any, Place] = {}


def _reopened(kind: type[PgDict[Any, Any]], location: Any, options: Options, network: Network, space: Space) -> Any:
    """Return the dictionary that was pickled; those from the same origin share one session in a process."""
    origin = (location, options, network)
    with _reopening:
        session = _reopened_sessions.get(origin)
        if session is None or session.closed:
            session, _, place = opening.open_location(location, options, network)
            _reopened_sessions[origin], _places[origin] = session, place
    twin = object.__new__(kind)
    twin._session, twin._space = session, space
    twin._origin = _Origin(location, options, network, _places[origin], True)
    return twin


_reopening = threading.Lock()


def _forked() -> None:
    global _reopening
    _reopening = threading.Lock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _pairs(items: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(items, Mapping):
        return items.items()
    if hasattr(items, "keys"):
        return ((key, items[key]) for key in items.keys())  # noqa: SIM118 - all that is known is that it has keys()
    return items  # type: ignore[no-any-return]
