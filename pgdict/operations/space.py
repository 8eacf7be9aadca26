"""What every operation needs to know of its dictionary: keys, values, expiry, order."""

from __future__ import annotations

import enum
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias, TypeVar

from pgdict import wire
from pgdict.codecs import Values
from pgdict.keys import Keys
from pgdict.statements import Order, Statement

T = TypeVar("T")

Row: TypeAlias = tuple[Any, ...]
Rows: TypeAlias = Sequence[Row]
Request: TypeAlias = tuple[Statement, tuple[bytes | None, ...]]
Operation: TypeAlias = Generator[Request, Rows, T]
Expiry: TypeAlias = tuple[bytes | None, bytes | None]
Bounds: TypeAlias = tuple[bytes, bytes]


class Sentinel(enum.Enum):
    """Values that no caller stores."""

    ABSENT = "ABSENT"
    DEFAULT = "DEFAULT"

    def __repr__(self) -> str:
        return self.value

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(f"{self.value} is no value")


ABSENT: Final = Sentinel.ABSENT
"""No value at all, where None would be a value."""
DEFAULT: Final = Sentinel.DEFAULT
"""The dictionary's own setting."""

NEVER: Final[Expiry] = (None, None)

_HIGHEST = "\U0010ffff".encode() * 651
"""Above every stored key: these have 2,600 bytes at most."""

_LONGEST_TTL = 1_000 * 365.25 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Space:
    """The part of a table that a dictionary is: the root, or a namespace inside it."""

    keys: Keys
    values: Values
    ttl: float | None = None
    """Seconds that a write without a ttl of its own lives; None is for ever."""
    order: Order = "insertion"
    cleans: bool = False
    """Whether a read removes the expired row it meets, and a write with a ttl sweeps two."""
    expiry: Expiry = field(init=False)
    readable: bytes = field(init=False)
    bounds: Bounds | None = field(init=False)
    """The range of stored keys; None is the whole table."""

    def __post_init__(self) -> None:
        ttl = self.ttl
        object.__setattr__(self, "expiry", NEVER if ttl is None else (wire.interval(seconds(ttl)), None))
        object.__setattr__(self, "readable", wire.text_array(self.values.readable))
        object.__setattr__(self, "bounds", self.range("") if self.keys.prefix else None)

    def range(self, prefix: str) -> Bounds:
        """Return the lowest stored key that begins with `prefix`, and the one above the highest."""
        low, high = self.keys.bounds(prefix)
        return low, _HIGHEST if high is None else high

    def among(self, prefix: str) -> Bounds | None:
        """Return the range of `prefix`, or None for the whole table."""
        return self.range(prefix) if prefix or self.bounds else None

    def item(self, row: Row) -> tuple[Any, Any]:
        """Return the key and the value of a row."""
        key = self.keys.decode(row[0])
        return key, self.values.decode(key, row[1], row[2])

    def key(self, row: Row) -> Any:
        """Return the key of a row."""
        return self.keys.decode(row[0])

    def value(self, row: Row) -> Any:
        """Return the value of a row."""
        return self.item(row)[1]


def amount(name: str, number: int) -> int:
    """Return a number of rows, checked, and within a bigint."""
    if not isinstance(number, int) or number < 0:
        raise ValueError(f"{name} is a number of rows, not {number!r}")
    return min(number, 2**63 - 1)


def seconds(ttl: float | timedelta, what: str = "a ttl") -> float:
    """Return a time to live, or `what` it is, in seconds: positive, finite, and no more than a thousand years."""
    number = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"{what} is a number of seconds, a timedelta or None, not {type(ttl).__name__}: {ttl!r}")
    if not 0 < number <= _LONGEST_TTL:  # a NaN neither
        raise ValueError(f"{what} lies above 0 seconds and within a thousand years, not {ttl!r}")
    return max(number, 0.000_001)


def expiry(
    space: Space,
    ttl: float | timedelta | Sentinel | None = DEFAULT,
    expires_at: datetime | None = None,
) -> Expiry:
    """Return the parameters that `{expiry}` of a statement takes."""
    if expires_at is not None:
        if ttl is not DEFAULT:
            raise ValueError(f"give ttl or expires_at, not both: {ttl!r}, {expires_at!r}")
        if not isinstance(expires_at, datetime):
            raise TypeError(f"expires_at is a datetime, not {type(expires_at).__name__}: {expires_at!r}")
        if expires_at.utcoffset() is None:
            raise ValueError(f"expires_at needs a time zone: {expires_at!r}")
        return None, wire.timestamptz(expires_at)
    if ttl is DEFAULT:
        return space.expiry
    if isinstance(ttl, Sentinel):
        raise TypeError(f"no ttl: {ttl!r}")
    return NEVER if ttl is None else (wire.interval(seconds(ttl)), None)
