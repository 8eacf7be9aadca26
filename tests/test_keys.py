"""Keys: the same as in a dict, and in the order and with the prefixes of Python's strings."""

from __future__ import annotations

import enum
import math
import pickle
import sys
from collections import namedtuple
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import exact, keys, numbers, strings

from pgdict.errors import DecodeError, InvalidKey
from pgdict.keys import Keys, UnsupportedKey, _successor

ROOT = Keys(max_length=1_000_000)


def canonical(key: Any) -> Any:
    """What a key comes back as: integral numbers as int."""
    if isinstance(key, tuple):
        return tuple(map(canonical, key))
    return int(key) if isinstance(key, float) and key.is_integer() else int(key) if isinstance(key, bool) else key


def starting_with(low: bytes, high: bytes | None, stored: bytes) -> bool:
    return low <= stored and (high is None or stored < high)


@given(keys)
def test_round_trip(key: Any) -> None:
    """Every key comes back equal and canonical."""
    assert exact(ROOT.decode(ROOT.encode(key))) == exact(canonical(key))


@given(keys)
def test_stored_is_postgresql_text(key: Any) -> None:
    """A stored key is valid UTF-8 without U+0000."""
    assert "\x00" not in ROOT.encode(key).decode()


@given(keys, keys)
def test_one_key_as_in_a_dict(a: Any, b: Any) -> None:
    """Two keys are stored alike exactly when a dict takes them for one."""
    assert (ROOT.encode(a) == ROOT.encode(b)) == (a == b)


@pytest.mark.parametrize("same", [(1, 1.0, True), (0, 0.0, -0.0, False), (2**70, float(2**70)), ((1, (0.0,)), (True, (-0.0,)))])
def test_equal_numbers_are_one_key(same: tuple[Any, ...]) -> None:
    """Numbers that are equal are one key, also within tuples."""
    assert len({ROOT.encode(key) for key in same}) == 1


@given(st.lists(strings))
def test_strings_sort_by_code_point(names: list[str]) -> None:
    """The byte order of stored strings is Python's order of strings."""
    assert sorted(map(ROOT.encode, names)) == [ROOT.encode(name) for name in sorted(names)]


@given(st.lists(numbers))
def test_numbers_sort_by_value(values: list[float]) -> None:
    """The byte order of stored numbers is the order of the numbers."""
    assert sorted(map(ROOT.encode, values)) == [ROOT.encode(value) for value in sorted(values)]


@pytest.mark.parametrize(
    "value", [5e-324, 2.2250738585072014e-308, 0.1, 1 / 3, 1 - 2**-53, 2**52 - 0.5, 2**53 - 1.0, 1e22, 1.7e308]
)
def test_neighbouring_floats_keep_their_order(value: float) -> None:
    """Floats next to each other, and to the integers between, sort rightly."""
    around = [math.nextafter(value, -math.inf), value, math.nextafter(value, math.inf)]
    row = sorted({*around, *(-x for x in around), *map(math.floor, around), *map(math.ceil, around)})
    assert sorted(map(ROOT.encode, row)) == [ROOT.encode(x) for x in row]


@given(st.lists(st.binary(max_size=4)))
def test_bytes_sort(values: list[bytes]) -> None:
    """The byte order of stored `bytes` is their own."""
    assert sorted(map(ROOT.encode, values)) == [ROOT.encode(value) for value in sorted(values)]


rows = st.tuples(strings, numbers, st.lists(strings, max_size=3).map(tuple), st.binary(max_size=3))
parts = st.builds(lambda row, length: row[:length], rows, st.integers(0, 4))


@given(st.lists(parts))
def test_tuples_sort_by_element(values: list[tuple[Any, ...]]) -> None:
    """Tuples whose elements can be compared sort as in Python."""
    assert sorted(map(ROOT.encode, values)) == [ROOT.encode(value) for value in sorted(values)]


@given(strings, keys, st.sampled_from([(), ("ns",), ("ns", "\x01"), ("\udfff", "\x00")]))
def test_bounds_are_exact(prefix: str, key: Any, names: tuple[str, ...]) -> None:
    """A key lies within the bounds of a prefix exactly when it is a string that starts with it."""
    space = ROOT.within(*names)
    expected = not prefix or (isinstance(key, str) and key.startswith(prefix))
    assert starting_with(*space.bounds(prefix), space.encode(key)) == expected


@given(strings, strings)
def test_bounds_hold_what_begins_alike(prefix: str, rest: str) -> None:
    """A prefix followed by anything lies within its bounds."""
    assert starting_with(*ROOT.bounds(prefix), ROOT.encode(prefix + rest))


@pytest.mark.parametrize(
    ("prefix", "low", "high"),
    [
        ("", b"", None),
        ("a", b"a", b"b"),
        ("a%_\\", b"a%_\\", b"a%_]"),
        ("\x00", b"\x01\x01", b"\x01\x02"),
        ("\x01", b"\x01\x02\x01\x02", b"\x01\x02\x01\x03"),
        ("\U0010ffff", "\U0010ffff".encode(), None),
        ("a\U0010ffff", "a\U0010ffff".encode(), b"b"),
        ("\ud7fe", "\ud7fe".encode(), "\ud7ff".encode()),
        ("\ud7ff", "\ud7ff\x02".encode(), "\ud7ff\x03".encode()),
        ("\udfff", "\ud7ff\u17ff".encode(), "\ud7ff\u1800".encode()),
    ],
)
def test_bounds(prefix: str, low: bytes, high: bytes | None) -> None:
    """Bounds are the stored prefix and the least text above all that begin with it."""
    assert Keys().bounds(prefix) == (low, high)


def test_bounds_of_the_last_character_below_the_surrogates() -> None:
    """An upper bound steps over the surrogates, which UTF-8 cannot say."""
    low, high = Keys().bounds("a\ud7fe")
    assert (low, high) == ("a\ud7fe".encode(), "a\ud7ff".encode())
    assert _successor("a\ud7ff".encode()) == "a\ue000".encode()


def test_bounds_of_a_namespace() -> None:
    """The empty prefix of a namespace means all of it, and no more."""
    assert Keys("users:").bounds() == (b"users:", b"users;")


@pytest.mark.parametrize("prefix", [None, 1, b"a", ("a",)])
def test_prefix_must_be_a_string(prefix: Any) -> None:
    """A prefix that is no string is a `TypeError`."""
    with pytest.raises(TypeError, match=r"prefix .* must be a str, not"):
        Keys().bounds(prefix)


names = strings.filter(lambda name: name and ":" not in name)


@given(names, strings)
def test_the_root_sees_namespaced_strings(name: str, key: str) -> None:
    """A namespace's string key is, in the root, the string that begins with the namespace's name."""
    stored = ROOT.within(name).encode(key)
    seen = ROOT.decode(stored)
    assert ROOT.encode(seen) == stored
    assert seen.startswith(name + ":")
    assert starting_with(*ROOT.bounds(name + ":"), stored)
    if not key.startswith("\x01"):
        assert seen == f"{name}:{key}"


@given(st.lists(names, min_size=1, max_size=3), keys)
def test_namespaces_nest(path: list[str], key: Any) -> None:
    """Namespaces one by one or all at once are the same, and their keys come back without the prefix."""
    nested = ROOT
    for name in path:
        nested = nested.within(name)
    assert nested == ROOT.within(*path)
    assert exact(nested.decode(nested.encode(key))) == exact(canonical(key))
    assert ROOT.encode(ROOT.decode(nested.encode(key))) == nested.encode(key)


@given(names, names)
def test_namespaces_do_not_overlap(a: str, b: str) -> None:
    """Two namespaces of different names share no key."""
    low, high = ROOT.within(a).bounds()
    assert starting_with(low, high, ROOT.within(b).encode("x")) == (a == b)


@pytest.mark.parametrize("name", ["", ":", "a:b"])
def test_bad_namespace(name: str) -> None:
    """A namespace's name is neither empty nor contains a colon."""
    with pytest.raises(InvalidKey, match="must be neither empty nor contain ':'"):
        Keys().within(name)


def test_namespace_must_be_a_string() -> None:
    """A namespace's name that is no string is a `TypeError`."""
    with pytest.raises(TypeError, match="namespace 1 must be a str, not int"):
        Keys().within(1)  # type: ignore[arg-type]


class Color(enum.StrEnum):
    RED = "red"


class Old(str, enum.Enum):  # noqa: UP042
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class Shouting(str):
    __slots__ = ()

    def __str__(self) -> str:
        return self.upper()

    def __repr__(self) -> str:
        return "!"


class Folded(str):
    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self.lower() == other.lower()

    def __hash__(self) -> int:
        return hash(self.lower())


class Tagged(tuple[int, ...]):
    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return type(other) is Tagged and tuple.__eq__(self, other)

    __hash__ = tuple.__hash__


Point = namedtuple("Point", "x y")
Point.__module__ = __name__


@pytest.mark.parametrize(
    ("key", "same"),
    [
        (Color.RED, "red"),
        (Old.RED, "red"),
        (Number.ONE, 1),
        (Shouting("a"), "a"),
        (Shouting("\x01"), "\x01"),
        (Point(1, "b"), (1, "b")),
        ((Color.RED, Number.ONE), ("red", 1)),
    ],
)
def test_subclasses_are_their_base(key: Any, same: Any) -> None:
    """A key of a subclass that hashes and compares as its base is that base's key."""
    assert {key: True}[same]
    assert Keys().encode(key) == Keys().encode(same)
    assert exact(Keys().decode(Keys().encode(key))) == exact(same)


@pytest.mark.parametrize("key", [Folded("a"), Tagged((1,)), frozenset(), object(), 1j, range(3), (1, object())])
def test_unsupported(key: Any) -> None:
    """A hashable key of another type, or one with an equality of its own, is an `UnsupportedKey`."""
    with pytest.raises(UnsupportedKey, match="keys are str, int, float, bool, None, bytes and tuples of these"):
        Keys().encode(key)


def test_unsupported_names_value_and_type() -> None:
    """The refusal of a key names its value and its type."""
    with pytest.raises(UnsupportedKey, match=r"^key 1j is of type complex; keys are "):
        Keys().encode(1j)


@pytest.mark.parametrize("key", [[1], {}, set(), bytearray(b"x"), (1, [2]), (object(), []), (float("nan"), [])])
def test_unhashable(key: Any) -> None:
    """An unhashable key is a `TypeError` and no `UnsupportedKey`, as a dict has it."""
    with pytest.raises(TypeError, match=r"^unhashable key .* of type ") as caught:
        Keys().encode(key)
    assert not isinstance(caught.value, UnsupportedKey)


@pytest.mark.parametrize("key", [float("nan"), ("a", (float("nan"),))])
def test_nan(key: Any) -> None:
    """A NaN is no key, not even within a tuple."""
    with pytest.raises(InvalidKey, match="NaN"):
        Keys().encode(key)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("x" * 1025, "takes 1025 bytes, more than the 1024 allowed"),
        ("é" * 513, "takes 1026 bytes, more than the 1024 allowed"),
        (b"x" * 512, "takes 1027 bytes, more than the 1024 allowed"),
        (int("1" * 1024), "takes 1032 bytes, more than the 1024 allowed"),
        (2**10_000, "is an int of 10001 bits, more than the 8640 allowed"),
    ],
)
def test_too_long(key: Any, message: str) -> None:
    """A stored key beyond the limit is an `InvalidKey` that names its length and the limit."""
    with pytest.raises(InvalidKey, match=message):
        Keys().encode(key)


def test_as_long_as_allowed() -> None:
    """The limit itself is allowed, the prefix included."""
    assert len(Keys("ns:", 10).encode("x" * 7)) == 10
    with pytest.raises(InvalidKey, match="takes 11 bytes, more than the 10 allowed"):
        Keys("ns:", 10).encode("x" * 8)


def test_longest_integers() -> None:
    """Integers of as many digits as a key may have bytes are exact."""
    keys = Keys(max_length=2600)
    for number in (int("7" * 2590), -int("7" * 2580), 10**2599):
        assert keys.decode(keys.encode(number)) == number


def test_absurdly_nested() -> None:
    """A tuple nested beyond all limits is an `InvalidKey`."""
    key: tuple[Any, ...] = ()
    for _ in range(sys.getrecursionlimit() * 3):
        key = (key,)
    with pytest.raises(InvalidKey, match="nested too deeply"):
        Keys().encode(key)


@pytest.mark.parametrize(
    "stored",
    [
        b"\x01zzz",
        b"\x01",
        b"\x01\x02",
        b"\x01\x02?",
        b"\x01\x02Nothing",
        b"\x01\x02n",
        b"\x01\x02nx",
        b"\x01\x02n1",
        b"\x01\x02n1500210",
        b"\x01\x02n19999" + b"1",
        b"\x01\x02n--0",
        b"\x01\x02bAB",
        b"\x01\x02bxy",
        b"\x01\x02tn1",
        b"\x01\x02tq\x01\x01",
        "\ud7ff".encode(),
        "a\ud7ff\u0fff".encode(),
        b"\xff",
        b"ns:\x01\x02",
    ],
)
def test_foreign_text(stored: bytes) -> None:
    """A stored key that pgdict cannot have written is a `DecodeError` that names it."""
    keys = Keys("ns:") if stored.startswith(b"ns:") else Keys()
    with pytest.raises(DecodeError, match=r"^stored key .* cannot be read: no key is stored like this$") as caught:
        keys.decode(stored)
    assert caught.value.raw == stored
    assert caught.value.codec == "key"
    assert caught.value.key == stored.decode(errors="backslashreplace")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@given(st.binary(max_size=12) | strings.map(lambda text: text.encode(errors="ignore")))
@settings(max_examples=500)
def test_decoding_is_exact_or_an_error(stored: bytes) -> None:
    """Whatever text is decoded, the key found is stored just so, or it is a `DecodeError`."""
    try:
        key = ROOT.decode(b"\x01\x02t" + stored)
    except DecodeError:
        return
    assert ROOT.encode(key) == b"\x01\x02t" + stored


def test_value_object() -> None:
    """Keys compare, hash and pickle by prefix and limit."""
    keys = Keys("a:", 99)
    assert keys == Keys("a:", 99) != Keys("a:")
    assert hash(keys) == hash(Keys("a:", 99))
    copy = pickle.loads(pickle.dumps(keys))
    assert copy == keys
    assert copy.encode("k") == b"a:k"
