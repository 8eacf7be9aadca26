"""Keys and values as wild as is promised, and what it means that two of them are exactly the same."""

from __future__ import annotations

import collections
import struct
from datetime import datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import settings
from hypothesis import strategies as st

settings.register_profile("pgdict", deadline=None, print_blob=True)
settings.load_profile("pgdict")

# --- keys ------------------------------------------------------------------------------------------------------------

ODD = "\x00\x01\x02~:aé\ud7ff\ud800\udbff\udc00\udfff\ue000\uffff\U00010000\U0010ffff%_\\"
strings = st.text(st.sampled_from(ODD), max_size=6) | st.text(st.characters(), max_size=12)
integers = st.integers() | st.integers(-20, 20) | st.integers(-(10**400), 10**400)
floats = st.floats(allow_nan=False)
numbers = integers | floats | st.booleans() | st.integers(-5, 5).map(float)
_simple_keys = strings | numbers | st.binary(max_size=8) | st.none()
keys = _simple_keys | st.recursive(_simple_keys, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=8)

# --- values ----------------------------------------------------------------------------------------------------------

any_string = st.text(st.sampled_from('\x00\x01aé\ud800\udfff\U0010ffff\\u0"')) | st.text(st.characters())
offsets = st.timedeltas(timedelta(hours=-23, minutes=-59), timedelta(hours=23, minutes=59))
zones = st.one_of(
    st.none(),
    st.just(timezone.utc),  # noqa: UP017
    st.builds(timezone, offsets),
    st.builds(timezone, offsets, any_string),
    st.sampled_from(["Europe/Berlin", "UTC", "America/New_York"]).map(ZoneInfo),
)
folds = st.builds(lambda moment, fold: moment.replace(fold=fold), st.datetimes(timezones=zones), st.integers(0, 1))
signed = st.binary(max_size=500).map(lambda data: int.from_bytes(data, "big", signed=True))
hashables = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    signed,
    st.floats(),
    any_string,
    st.binary(),
    st.complex_numbers(),
    folds,
    st.dates(),
    st.builds(lambda clock, fold: clock.replace(fold=fold), st.times(timezones=zones), st.integers(0, 1)),
    st.timedeltas(),
    st.decimals().filter(lambda number: not number.is_snan()),
    st.uuids(),
)


@st.composite
def scalars(draw: st.DrawFn) -> Any:
    """Draw a scalar; a composite's `repr` is short, and Hypothesis warns of long ones."""
    return draw(hashables)


members = st.recursive(scalars(), lambda part: st.lists(part, max_size=3).map(tuple) | st.frozensets(part, max_size=3))
"""What dicts and sets hold."""
everything = st.recursive(
    scalars() | st.builds(bytearray, st.binary()) | st.sampled_from([Decimal("sNaN12"), Decimal("-sNaN")]),
    lambda part: st.one_of(
        st.lists(part, max_size=4),
        st.lists(part, max_size=3).map(tuple),
        st.dictionaries(members, part, max_size=4),
        st.sets(members, max_size=3),
        st.frozensets(members, max_size=3),
    ),
)


def exact(value: Any) -> Any:
    """All there is to a value: its type, each bit of it, and so on within."""
    kind = type(value)
    if kind in (list, tuple):
        return kind, tuple(map(exact, value))
    if kind is dict:
        return kind, tuple((exact(key), exact(part)) for key, part in value.items())
    if kind in (set, frozenset):
        return kind, frozenset(collections.Counter(map(exact, value)).items())
    if kind in (datetime, time):
        zone = value.tzinfo
        return kind, value.replace(tzinfo=None).isoformat(), value.fold, type(zone), repr(zone)
    if kind is float:
        return kind, struct.pack(">d", value)
    if kind is complex:
        return kind, struct.pack(">dd", value.real, value.imag)
    if kind is Decimal:
        return kind, value.as_tuple()
    return kind, bytes(value) if kind is bytearray else value
