"""Python keys ↔ stored text, prefixes and their bounds.

A key first becomes a *name*, a `str`; the name is then escaped for PostgreSQL's `text`.

A `str` is its own name, unless it begins with U+0001, which is then doubled. Any other key is U+0001, a letter for its
type, and a payload. Within a type the code point order of names is Python's order of keys:

| key | letter | payload |
|---|---|---|
| `None` | `N` | |
| `bytes` | `b` | hexadecimal |
| `int`, `float`, `bool` | `n` | sign, decimal exponent, digits: one form for `1`, `1.0` and `True` |
| `str`, inside a tuple only | `s` | the string |
| `tuple` | `t` | letter and payload of each element, ended by U+0000; a U+0000 within is followed by `~` |

`text` holds neither U+0000 nor lone surrogates. U+0000 and U+0001 are written through U+0001, surrogates and U+D7FF
through U+D7FF, each character for itself and in order: so names sort alike and begin alike, escaped or not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from hashlib import blake2b
from reprlib import repr as brief
from typing import Any

from pgdict.errors import DecodeError, InvalidKey

__all__ = ["MAX_KEY_LENGTH", "Keys", "UnsupportedKey", "lock_number"]

MAX_KEY_LENGTH = 2600
"""Bytes of a stored key that an index of PostgreSQL surely holds."""

_MARK = "\x01"
_END = "\x00"
_BIAS = 5000
_MAX_BITS = 8640  # just above 2,600 digits


class UnsupportedKey(TypeError):
    """A hashable key of a type that cannot be stored, and so is absent."""


class _UndecodableKey(DecodeError):
    """A stored key that pgdict did not write."""

    def __str__(self) -> str:
        return f"stored key {self.key!r} cannot be read: {self.reason}"


@dataclass(frozen=True, slots=True)
class Keys:
    r"""The keys of a dictionary or of one of its namespaces.

    Args:
        prefix: what every name begins with; `""` in the root.
        max_length: the most bytes that a stored key may have.

    >>> keys = Keys()
    >>> keys.encode("user:1"), keys.encode(12), keys.encode(("a", None))
    (b'user:1', b'\x01\x02n1500212', b'\x01\x02tsa\x01\x01N\x01\x01')
    >>> keys.decode(keys.encode(True))
    1
    """

    prefix: str = ""
    max_length: int = 1024
    _stored: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_stored", _escape(self.prefix))

    def encode(self, key: Any) -> bytes:
        """Return the stored form of a key: UTF-8 bytes of PostgreSQL text.

        Raises:
            UnsupportedKey: the key is hashable, but of a type that cannot be stored.
            TypeError: the key is unhashable.
            InvalidKey: the key is too long, or holds a NaN.
        """
        if type(key) is str and key.isprintable():  # nothing to double and nothing to escape
            stored = self._stored + key.encode()
        else:
            stored = self._stored + _escape(_name_at_top(key))
        if len(stored) > self.max_length:
            raise InvalidKey(f"key {brief(key)} takes {len(stored)} bytes, more than the {self.max_length} allowed")
        return stored

    def decode(self, stored: bytes) -> Any:
        """Return the key of a stored form, in canonical form.

        Raises:
            DecodeError: no key is stored like this; another program must have written it.
        """
        rest = stored[len(self._stored) :]
        try:
            text = rest.decode()
            if text.isprintable():
                return text
            key = _key(_unescape(text))
            if _escape(_name(key)) == rest:
                return key
        except (ValueError, LookupError):
            pass
        raise _UndecodableKey(stored.decode(errors="backslashreplace"), "key", stored, "no key is stored like this")

    def bounds(self, prefix: str = "") -> tuple[bytes, bytes | None]:
        """Return `(low, high)`: the keys with this prefix are exactly those stored in `low <= stored < high`.

        `high` is None when nothing bounds them from above. The empty prefix means every key, any other one
        only keys that are strings.

        >>> Keys("users:").bounds("a")
        (b'users:a', b'users:b')
        >>> Keys().bounds()
        (b'', None)
        """
        if not isinstance(prefix, str):
            raise TypeError(f"prefix {brief(prefix)} must be a str, not {type(prefix).__name__}")
        low = self._stored + _escape(_name(str.__str__(prefix)))
        return low, _successor(low)

    def within(self, *names: str) -> Keys:
        """Return the keys of a namespace, or of one inside the other.

        >>> Keys().within("users", "eu")
        Keys(prefix='users:eu:', max_length=1024)

        Raises:
            InvalidKey: a name is empty or contains a colon.
        """
        return Keys(self.prefix + "".join(map(_namespace, names)), self.max_length)


def _namespace(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"namespace {brief(name)} must be a str, not {type(name).__name__}")
    if not name or ":" in name:
        raise InvalidKey(f"namespace {name!r} must be neither empty nor contain ':'")
    return _name(str.__str__(name)) + ":"


def _successor(low: bytes) -> bytes | None:
    """Return the least text above all that begin with `low`."""
    text = low.decode().rstrip("\U0010ffff")
    if not text:
        return None
    above = ord(text[-1]) + 1
    return (text[:-1] + chr(0xE000 if above == 0xD800 else above)).encode()


# --- names -----------------------------------------------------------------------------------------------------------


def _name_at_top(key: object) -> str:
    try:
        return _name(key)
    except (UnsupportedKey, InvalidKey):
        _check_hashable(key)
        raise
    except RecursionError:
        raise InvalidKey("key is nested too deeply") from None


def _name(key: object) -> str:
    letter, payload = _payload(key)
    if letter != "s":
        return _MARK + letter + payload
    return _MARK + payload if payload.startswith(_MARK) else payload


def _key(name: str) -> object:
    if not name.startswith(_MARK):
        return name
    letter = name[1:2]
    return name[1:] if letter == _MARK else _READERS[letter](name[2:])


def _payload(key: object) -> tuple[str, str]:
    kind = type(key)
    letter, write = _WRITERS.get(kind) or _WRITERS[_base(kind, key)]
    return letter, write(key)


def _base(kind: type, key: object) -> type:
    """Return the type that a key of a subclass is a key of: what it would be in a dict."""
    for base in _BASES:
        if issubclass(kind, base) and (_behaves_as(kind, base) or kind.__module__ == "numpy"):
            return base
    raise UnsupportedKey(
        f"key {brief(key)} is of type {kind.__name__}; keys are str, int, float, bool, None, bytes and tuples of these"
    )


def _behaves_as(kind: type, base: type) -> bool:
    return kind.__hash__ is base.__hash__ and kind.__eq__ is base.__eq__


def _check_hashable(key: object) -> None:
    try:
        hash(key)
    except TypeError as error:
        raise TypeError(f"unhashable key {brief(key)} of type {type(key).__name__}: {error}") from None


# --- payloads --------------------------------------------------------------------------------------------------------

_COMPLEMENT = str.maketrans("0123456789", "9876543210")
_SPECIAL = {0: "0", float("inf"): "2", float("-inf"): "--"}
_READ_SPECIAL = {payload: number for number, payload in _SPECIAL.items()}


def _write_int(key: int) -> str:
    if key.bit_length() > _MAX_BITS:
        raise InvalidKey(f"key is an int of {key.bit_length()} bits, more than the {_MAX_BITS} allowed")
    digits = int.__repr__(abs(key))
    return _write_digits(key, digits, len(digits))


def _write_float(key: float) -> str:
    if key != key:
        raise InvalidKey("NaN equals nothing and cannot be a key")
    if key in _SPECIAL:
        return _SPECIAL[key]
    if float.is_integer(key):
        return _write_int(int(key))
    # repr: the fewest digits that mean this float, which keep the order of floats
    mantissa, _, exponent = f"{Decimal(float.__repr__(abs(key))):e}".partition("e")
    return _write_digits(key, mantissa.replace(".", ""), int(exponent) + 1)


def _write_digits(key: float, digits: str, exponent: int) -> str:
    """Write the number with the key's sign and the value 0.digits · 10^exponent."""
    if not key:
        return _SPECIAL[0]
    payload = f"{exponent + _BIAS}{digits.rstrip('0')}"
    return "1" + payload if key > 0 else "-" + payload.translate(_COMPLEMENT) + "~"


def _read_number(payload: str) -> int | float:
    if payload in _READ_SPECIAL:
        return _READ_SPECIAL[payload]
    sign, payload = payload[0], payload[1:]
    if sign == "-":
        payload = payload[:-1].translate(_COMPLEMENT)
    exponent, digits = int(payload[:4]) - _BIAS, payload[4:]
    number = int(digits.ljust(exponent, "0")) if len(digits) <= exponent else float(f"0.{digits}e{exponent}")
    return -number if sign == "-" else number


def _write_tuple(key: tuple[object, ...]) -> str:
    return "".join(map(_element, tuple.__iter__(key)))


def _element(key: object) -> str:
    letter, payload = _payload(key)
    return letter + payload.replace(_END, _END + "~") + _END


def _read_tuple(payload: str) -> tuple[object, ...]:
    return tuple(_READERS[letter](rest.replace(_END + "~", _END)) for letter, rest in _ELEMENTS(payload))


_ELEMENTS = re.compile(r"(.)((?:[^\0]|\0~)*+)\0", re.DOTALL).findall

_WRITERS: dict[type, tuple[str, Callable[[Any], str]]] = {
    str: ("s", str.__str__),
    int: ("n", _write_int),
    float: ("n", _write_float),
    bytes: ("b", bytes.hex),
    tuple: ("t", _write_tuple),
    type(None): ("N", lambda _: ""),
}
_BASES = (str, int, float, bytes, tuple)
_READERS: dict[str, Callable[[str], object]] = {
    "s": str,
    "n": _read_number,
    "b": bytes.fromhex,
    "t": _read_tuple,
    "N": lambda _: None,
}

# --- text ------------------------------------------------------------------------------------------------------------

_SURROGATES = {"\ud7ff": "\ud7ff\x02"} | {chr(0xD800 + i): "\ud7ff" + chr(0x1000 + i) for i in range(0x800)}
_READ_SURROGATES = {escaped: char for char, escaped in _SURROGATES.items()}
_SURROGATE = re.compile("[\ud7ff-\udfff]")
_ESCAPED_SURROGATE = re.compile("\ud7ff[\x02\u1000-\u17ff]")


def _escape(name: str) -> bytes:
    text = name.replace("\x01", "\x01\x02").replace("\x00", "\x01\x01")
    if not text.isascii():
        text = _SURROGATE.sub(lambda match: _SURROGATES[match[0]], text)
    return text.encode()


def _unescape(text: str) -> str:
    if not text.isascii():
        text = _ESCAPED_SURROGATE.sub(lambda match: _READ_SURROGATES[match[0]], text)
    return text.replace("\x01\x01", "\x00").replace("\x01\x02", "\x01")


def lock_number(*names: str) -> int:
    """Return the 64-bit number under which the server knows a lock of these names.

    >>> lock_number("kv_store", "nightly") == lock_number("kv_store", "nightly") != lock_number("kv_store", "daily")
    True
    """
    text = json.dumps(names)  # in which no two lists of names are the same
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)
