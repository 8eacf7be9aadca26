"""What a `PgDict` promises, in plain Python: the model that the state machines compare it with."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pgdict import ABSENT, CasResult, InvalidValue, PgDictError
from pgdict.keys import Keys, UnsupportedKey, _key, _name_at_top
from pgdict.operations import DEFAULT

Order = str
_LONGEST = 1024


@dataclass(frozen=True)
class Row:
    """A stored value, pickled so that nobody changes it, and when it expires."""

    value: bytes
    deadline: float | None

    def load(self) -> Any:
        return pickle.loads(self.value)


def _deadline(ttl: Any) -> float | None:
    if ttl is None:
        return None
    return time.monotonic() + (ttl.total_seconds() if isinstance(ttl, timedelta) else ttl)


@dataclass
class Table:
    """Name → row in the order of insertion; what has expired is not there."""

    order: Order = "insertion"
    rows: dict[str, Row] = field(default_factory=dict)

    def names(self) -> list[str]:
        return sorted(self.rows) if self.order == "key" else list(self.rows)

    def copy(self) -> Table:
        return Table(self.order, dict(self.rows))


class Model:
    """The root of a table or a namespace inside it; each method is that of `PgDict`."""

    def __init__(self, table: Table, names: tuple[str, ...] = (), ttl: Any = None) -> None:
        self.table, self.prefix, self.default = table, Keys().within(*names).prefix, ttl

    def name(self, key: Any) -> str:
        """Return what identifies a key in the table; a wrong one is refused."""
        name = self.prefix + _name_at_top(key)
        if len(Keys(max_length=10**9).encode(_key(name))) > _LONGEST:
            raise InvalidValue(f"{key!r} is too long")
        return name

    def find(self, key: Any) -> Row | None:
        """Return the row of a key; one of a wrong type is absent."""
        try:
            return self.table.rows.get(self.name(key))
        except UnsupportedKey:
            return None

    def put(self, key: Any, value: Any, deadline: float | None) -> None:
        self.table.rows[self.name(key)] = Row(pickle.dumps(value), deadline)

    def change(self, key: Any, row: Row, value: Any, ttl: Any = DEFAULT) -> None:
        self.put(key, value, row.deadline if ttl is DEFAULT else _deadline(ttl))

    def begin(self, ttl: Any) -> float | None:
        return _deadline(self.default if ttl is DEFAULT else ttl)

    def names(self) -> list[str]:
        return [name for name in self.table.names() if name.startswith(self.prefix)]

    def key(self, name: str) -> Any:
        """Return the key of a name; what the root calls `n:` and more may be no name in the namespace `n`."""
        rest = name[len(self.prefix) :]
        try:
            key = _key(rest)
        except LookupError:
            key = None
        if _name_at_top(key) != rest:
            raise ValueError(f"no key is called {rest!r}")
        return key

    def remove(self, names: Iterable[str]) -> int:
        return sum(self.table.rows.pop(name, None) is not None for name in names)

    # A dict

    def __getitem__(self, key: Any) -> Any:
        row = self.find(key)
        if row is None:
            raise KeyError(key)
        return row.load()

    def __setitem__(self, key: Any, value: Any) -> None:
        self.set(key, value)

    def __delitem__(self, key: Any) -> None:
        self.pop(key)

    def __contains__(self, key: Any) -> bool:
        return self.find(key) is not None

    def __len__(self) -> int:
        return len(self.names())

    def __bool__(self) -> bool:
        return len(self) > 0

    def __iter__(self) -> Iterator[Any]:
        return map(self.key, self.names())

    def __reversed__(self) -> Iterator[Any]:
        return map(self.key, reversed(self.names()))

    def __eq__(self, other: object) -> bool:
        return self.copy() == other

    __hash__ = None  # type: ignore[assignment]  # mutable, as a dict

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def get(self, key: Any, default: Any = None) -> Any:
        row = self.find(key)
        return default if row is None else row.load()

    def items(self) -> list[tuple[Any, Any]]:
        return [(self.key(name), self.table.rows[name].load()) for name in self.names()]

    def values(self) -> list[Any]:
        return [value for _, value in self.items()]

    def copy(self) -> dict[Any, Any]:
        return dict(self.items())

    def pop(self, key: Any, default: Any = ABSENT) -> Any:
        row = self.find(key)
        if row is not None:
            self.remove([self.name(key)])
            return row.load()
        if default is ABSENT:
            raise KeyError(key)
        return default

    def popitem(self, *, last: bool = True) -> tuple[Any, Any]:
        names = self.names()
        if not names:
            raise KeyError("popitem(): dictionary is empty")
        name = names[-1 if last else 0]
        return self.key(name), self.table.rows.pop(name).load()

    def setdefault(self, key: Any, default: Any = None) -> Any:
        self.set_nx(key, default)
        return self[key]

    def update(self, other: Any = (), /, **items: Any) -> None:
        self.set_many([*(other.items() if isinstance(other, dict) else other), *items.items()])

    def clear(self) -> None:
        self.remove(self.names())

    def move_to_end(self, key: Any, last: bool = True) -> None:
        if self.table.order == "key":
            raise PgDictError("in the order of keys")
        if self.find(key) is None:
            raise KeyError(key)
        name, rows = self.name(key), self.table.rows
        row = {name: rows.pop(name)}
        self.table.rows = rows | row if last else row | rows

    # Time to live

    def set(self, key: Any, value: Any, ttl: Any = DEFAULT, *, expires_at: datetime | None = None) -> None:
        if expires_at is not None:
            ttl = (expires_at - datetime.now(expires_at.tzinfo)).total_seconds()
        self.put(key, value, self.begin(ttl))
        if expires_at is not None and ttl < 0:
            self.remove([self.name(key)])

    def expire(self, key: Any, ttl: Any) -> bool:
        row = self.find(key)
        if row is not None:
            self.change(key, row, row.load(), ttl)
        return row is not None

    def persist(self, key: Any) -> bool:
        row = self.find(key)
        return row is not None and row.deadline is not None and self.expire(key, None)

    def ttl(self, key: Any) -> float | None:
        row = self.find(key)
        if row is None:
            raise KeyError(key)
        return None if row.deadline is None else row.deadline - time.monotonic()

    # Atomic

    def set_nx(self, key: Any, value: Any, ttl: Any = DEFAULT) -> bool:
        absent = self.find(key) is None
        if absent:
            self.put(key, value, self.begin(ttl))
        return absent

    def increment(self, key: Any, by: Any = 1, *, ttl: Any = DEFAULT) -> Any:
        self.name(key)
        row = self.find(key)
        number = 0 if row is None else row.load()
        if type(number) not in (int, float):
            raise TypeError("no number")
        total = number + by
        if isinstance(total, float) and not math.isfinite(total) and math.isfinite(number) and math.isfinite(by):
            raise InvalidValue("beyond the floats")
        if row is None:
            self.put(key, total, self.begin(ttl))
        else:
            self.change(key, row, total)
        return total

    def decrement(self, key: Any, by: Any = 1, *, ttl: Any = DEFAULT) -> Any:
        return self.increment(key, -by, ttl=ttl)

    def compare_and_swap(self, key: Any, expected: Any, new: Any, ttl: Any = DEFAULT) -> CasResult:
        self.name(key)
        row = self.find(key)
        if row is None:
            if expected is not ABSENT:
                return CasResult("not_found")
            self.put(key, new, self.begin(ttl))
        else:
            current = row.load()
            if expected is ABSENT or current != expected:
                return CasResult("mismatch", current)
            self.change(key, row, new, ttl)
        return CasResult("swapped")

    def get_and_set(self, key: Any, value: Any, default: Any = None, *, ttl: Any = DEFAULT) -> Any:
        old = self.get(key, default)
        self.set(key, value, ttl)
        return old

    def get_and_delete(self, key: Any, default: Any = None) -> Any:
        return self.pop(key, default)

    def mutate(
        self,
        key: Any,
        change: Callable[[Any], Any],
        *,
        default: Callable[[], Any] | None = None,
        ttl: Any = DEFAULT,
    ) -> Any:
        self.name(key)
        row = self.find(key)
        if row is None:
            if default is None:
                raise KeyError(key)
            value = change(default())
            self.put(key, value, self.begin(ttl))
        else:
            value = change(row.load())
            self.change(key, row, value, ttl)
        return value

    # Many at once

    def get_many(self, keys: Iterable[Any]) -> dict[Any, Any]:
        return {key: self[key] for key in list(keys) if key in self}

    def set_many(self, items: Any, ttl: Any = DEFAULT) -> None:
        pairs = list(items.items() if isinstance(items, dict) else items)
        for key, _ in pairs:
            self.name(key)
        for key, value in pairs:
            self.set(key, value, ttl)

    def delete_many(self, keys: Iterable[Any]) -> int:
        return self.remove([self.name(key) for key in keys if key in self])

    # In key order

    def scan_keys(
        self, prefix: str = "", *, limit: int | None = None, offset: int = 0, after: Any = ABSENT, reverse: bool = False
    ) -> list[Any]:
        names = sorted(self.names(), reverse=reverse)
        if after is not ABSENT:
            place = self.name(after)
            names = [name for name in names if (name < place if reverse else name > place)]
        keys = [key for key in map(self.key, names) if not prefix or (isinstance(key, str) and key.startswith(prefix))]
        return keys[offset:][:limit]

    def scan(self, prefix: str = "", **window: Any) -> list[tuple[Any, Any]]:
        return [(key, self[key]) for key in self.scan_keys(prefix, **window)]

    def count(self, prefix: str = "") -> int:
        return len(self.scan_keys(prefix))

    def delete_prefix(self, prefix: str) -> int:
        return self.delete_many(self.scan_keys(prefix))

    # What the machines ask besides

    mutate_block = mutate

    def state(self) -> Any:
        """Return all that a dictionary shows of itself."""
        keys = list(self)
        return self.items(), keys[::-1], len(self), bool(self)
