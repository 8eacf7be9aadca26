"""Values ↔ bytes.

A `Codec` turns values into bytes and back. `Values` adds what is the same under every codec: numbers that the server
can add to, the tag that tells how a row is to be read, the size limit, and one error for whatever cannot be read.
"""

from __future__ import annotations

import hmac
import pickle as pickling
import re
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Context, Decimal, InvalidOperation
from functools import partial
from json import JSONDecoder, JSONEncoder
from math import isinf
from reprlib import repr as brief
from typing import Any, NoReturn
from uuid import UUID
from zoneinfo import ZoneInfo

from msgpack import ExtType, Packer, Timestamp, unpackb

from pgdict.errors import ConfigError, DecodeError, InvalidValue

__all__ = ["Codec", "Values", "bytes_", "json", "msgpack", "pickle", "resolve", "text"]

MAX_VALUE_SIZE = 100 * 2**20


class Codec(ABC):
    """What turns values into bytes and back: derive from it to bring your own.

    `encode` raises a `TypeError` or a `ValueError` for what it cannot bring back equal and of the same type; `decode`
    may raise anything. Both are called from many threads at once. Give it an `__eq__`, as a frozen dataclass has, for
    two dictionaries that use it to be equal, and a module of its own for them to pickle.

    >>> import zlib
    >>> class Compressed(Codec):
    ...     name = "msgpack-zlib"
    ...     def encode(self, value):
    ...         return zlib.compress(msgpack.encode(value))
    ...     def decode(self, data):
    ...         return msgpack.decode(zlib.decompress(data))
    >>> values = Values(Compressed())
    >>> values.decode("key", *values.encode(["a"] * 1000)) == ["a"] * 1000
    True
    """

    name: str
    """The tag of the rows that it writes, 1 to 63 ASCII characters."""

    sealed: bool = False
    """Whether it writes every value itself, numbers too, and no rows but its own are read: for signing, encryption."""

    def __repr__(self) -> str:
        return f"<codec {self.name!r}>"

    @abstractmethod
    def encode(self, value: Any) -> bytes:
        """Return the bytes of a value."""

    @abstractmethod
    def decode(self, data: bytes) -> Any:
        """Return the value of bytes that `encode` returned."""


_REFUSALS = (TypeError, ValueError, ArithmeticError, RecursionError, AttributeError, pickling.PicklingError)


class _BuiltIn(Codec):
    """A codec whose errors say where in the value the trouble is."""

    nests = True

    def encode(self, value: Any) -> bytes:
        try:
            return self.dump(value)
        except _REFUSALS as error:
            self._refuse(value, error)

    @abstractmethod
    def dump(self, value: Any) -> bytes:
        """Return the bytes of a value, or raise with the reason alone."""

    def _refuse(self, value: Any, error: Exception) -> NoReturn:
        if _is_endless(error):
            raise InvalidValue(f"codec {self.name!r} cannot store value: it is nested too deeply, or contains itself")
        path, error = _blame(self.dump, value, error) if self.nests else ("value", error)
        kind = InvalidValue if isinstance(error, (ValueError, ArithmeticError)) else TypeError
        raise kind(f"codec {self.name!r} cannot store {path}: {error}") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return resolve, (self.name,)


def _is_endless(error: Exception) -> bool:
    return isinstance(error, RecursionError) or any(word in str(error) for word in ("recursion limit", "Circular"))


def _blame(dump: Callable[[Any], bytes], value: Any, error: Exception) -> tuple[str, Exception]:
    """Return where in a value the part is that cannot be dumped, and its own error."""
    path, top = "value", error
    for _ in range(64):
        for step, part in _parts(value):
            try:
                dump(part)
            except _REFUSALS as deeper:
                path, value, error = path + step, part, deeper
                break
        else:
            return path, error
    return "value", top


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    kind = type(value)
    if kind is dict:
        yield from ((f" key {brief(key)}", key) for key in value)
        yield from ((f"[{brief(key)}]", part) for key, part in value.items())
    elif kind in (list, tuple):
        yield from ((f"[{i}]", part) for i, part in enumerate(value))
    elif kind in (set, frozenset):
        yield from ((f" element {brief(part)}", part) for part in value)


# --- msgpack ---------------------------------------------------------------------------------------------------------


class _Msgpack(_BuiltIn):
    """MessagePack, with extension types for what it does not know.

    A `tuple` or a set is an array that begins with an empty extension: then nothing is packed within packed bytes.
    """

    name = "msgpack"

    def dump(self, value: Any) -> bytes:
        data = _pack(value)
        # Packer writes these few types without asking: as what they are not. Their marks are rare bytes.
        if type(value) not in _SCALARS and len(data.translate(None, _MARKS)) < len(data) and not _is_plain(value):
            return _pack(_shielded(value))
        return data

    def decode(self, data: bytes) -> Any:
        return _unpack(data)


def _pack(value: Any) -> bytes:
    packed: bytes = Packer(strict_types=True, default=_extend, unicode_errors="surrogatepass", buf_size=256).pack(value)
    return packed


_SCALARS = frozenset({type(None), bool, int, float, str, bytes})
_MARKS = bytes([*range(0xC4, 0xCA), *range(0xD4, 0xD9)])
_SEQUENCES = frozenset({list, tuple, set, frozenset})
_FLATTENED = frozenset({bytearray, memoryview, ExtType, Timestamp})


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if kind is dict:
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if kind in _SEQUENCES else kind not in _FLATTENED


def _shielded(value: Any) -> Any:
    kind = type(value)
    if kind is dict:
        return {_shielded(key): _shielded(part) for key, part in value.items()}
    if kind in _SEQUENCES:
        return kind(map(_shielded, value))
    if kind is bytearray:
        return ExtType(_BYTEARRAY, bytes(value))
    return _unsupported(value) if kind in _FLATTENED else value


def _unsupported(value: Any) -> NoReturn:
    raise TypeError(f"type {type(value).__qualname__} is not supported")


def _zone_text(zone: tzinfo | None) -> str:
    if zone is None:
        return ""
    if type(zone) is timezone:
        offset, *name = zone.__getinitargs__()  # type: ignore[attr-defined]
        return "".join([f"{offset // timedelta(microseconds=1):+}", *(f" {part}" for part in name)])
    if type(zone) is ZoneInfo and zone.key:
        zone.__reduce__()  # raises for a zone that is not the database's
        return zone.key
    raise TypeError(f"time zone {brief(zone)} is neither a datetime.timezone nor a ZoneInfo with a key")


def _zone(text: str) -> tzinfo | None:
    if text[:1] not in ("+", "-"):
        return ZoneInfo(text) if text else None
    offset, *name = text.split(" ", 1)
    return timezone(timedelta(microseconds=int(offset)), *name)


def _clock_text(value: datetime | time) -> bytes:
    plain = value.replace(tzinfo=None, fold=0).isoformat()
    return f"{plain}|{value.fold}|{_zone_text(value.tzinfo)}".encode(errors="surrogatepass")


def _read_datetime(data: bytes) -> datetime:
    plain, fold, zone = data.decode(errors="surrogatepass").split("|", 2)
    return datetime.fromisoformat(plain).replace(tzinfo=_zone(zone), fold=int(fold))


def _read_time(data: bytes) -> time:
    plain, fold, zone = data.decode(errors="surrogatepass").split("|", 2)
    return time.fromisoformat(plain).replace(tzinfo=_zone(zone), fold=int(fold))


_BYTEARRAY = 4
_EXACTLY = Context(traps=[InvalidOperation])
_TYPES: dict[type, tuple[int, Callable[[Any], bytes], Callable[[bytes], Any]]] = {
    bytearray: (_BYTEARRAY, bytes, bytearray),
    int: (
        5,
        lambda value: value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True),
        partial(int.from_bytes, byteorder="big", signed=True),
    ),
    complex: (
        6,
        lambda value: struct.pack(">dd", value.real, value.imag),
        lambda data: complex(*struct.unpack(">dd", data)),
    ),
    datetime: (7, _clock_text, _read_datetime),
    date: (8, lambda value: value.isoformat().encode(), lambda data: date.fromisoformat(data.decode())),
    time: (9, _clock_text, _read_time),
    timedelta: (
        10,
        lambda value: struct.pack(">iii", value.days, value.seconds, value.microseconds),
        lambda data: timedelta(*struct.unpack(">iii", data)),
    ),
    Decimal: (11, lambda value: str(value).encode(), lambda data: Decimal(data.decode(), _EXACTLY)),
    UUID: (12, lambda value: value.bytes, lambda data: UUID(bytes=data)),
}
_HEADS: dict[type, ExtType] = {tuple: ExtType(1, b""), set: ExtType(2, b""), frozenset: ExtType(3, b"")}
_BY_CODE: dict[int, Callable[[bytes], Any]] = {code: read for code, _, read in _TYPES.values()}
_KIND_BY_CODE = {head.code: kind for kind, head in _HEADS.items()}


def _extend(value: Any) -> Any:
    """Return what Packer shall write for a type it does not know."""
    kind = type(value)
    if kind in _HEADS:
        return [_HEADS[kind], *value]
    if kind not in _TYPES:
        _unsupported(value)
    code, write, _ = _TYPES[kind]
    return ExtType(code, write(value))


def _extension(code: int, data: bytes) -> Any:
    if code in _BY_CODE:
        return _BY_CODE[code](data)
    if data or code not in _KIND_BY_CODE:
        raise ValueError(f"unknown extension type {code}")
    return _KIND_BY_CODE[code]


def _array(items: list[Any]) -> Any:
    return items[0](items[1:]) if items and type(items[0]) is type else items


_unpack = partial(unpackb, strict_map_key=False, ext_hook=_extension, list_hook=_array, unicode_errors="surrogatepass")

# --- JSON ------------------------------------------------------------------------------------------------------------


class _Json(_BuiltIn):
    """JSON that PostgreSQL can read too: `convert_from(value, 'UTF8')::jsonb`."""

    name = "json"

    def dump(self, value: Any) -> bytes:
        _check_json(value)
        text = _to_json(value)
        if "\\u0000" in text and _NUL(text):
            raise ValueError("it contains U+0000, which jsonb cannot hold")
        try:
            return text.encode()
        except UnicodeEncodeError:
            raise ValueError("it contains a lone surrogate, which jsonb cannot hold") from None

    def decode(self, data: bytes) -> Any:
        return _from_json(data.decode())


def _check_json(value: Any) -> None:
    kind = type(value)
    if kind is dict:
        if not _STRING.issuperset(map(type, value)):
            odd = next(key for key in value if type(key) is not str)
            raise TypeError(f"dict key {brief(odd)} is of type {type(odd).__qualname__}, not str")
        value = value.values()
    elif kind is not list:
        return None if kind in _JSON_SCALARS else _unsupported(value)
    if not _JSON_SCALARS.issuperset(map(type, value)):
        for part in value:
            _check_json(part)
    return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    items = dict(pairs)
    if len(items) < len(pairs):
        raise ValueError("an object has the same key twice")
    return items


def _finite(text: str) -> float:
    number = float(text)
    if isinf(number) or text in ("NaN", "Infinity", "-Infinity"):
        raise ValueError(f"number {text} is no finite float")
    return number


_STRING = frozenset({str})
_JSON_SCALARS = frozenset({type(None), bool, int, float, str})
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000").search
_to_json = JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_from_json = JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite).decode

# --- pickle ----------------------------------------------------------------------------------------------------------


class _Pickle(_BuiltIn):
    name = "pickle"

    def dump(self, value: Any) -> bytes:
        return pickling.dumps(value, protocol=5)

    def decode(self, data: bytes) -> Any:
        return pickling.loads(data)


@dataclass(frozen=True, repr=False)
class _SignedPickle(_Pickle):
    secret: bytes

    name = "pickle-signed"
    sealed = True

    def __post_init__(self) -> None:
        if not isinstance(self.secret, bytes) or not self.secret:
            raise ConfigError(f"secret must be non-empty bytes, not {type(self.secret).__name__}")

    def dump(self, value: Any) -> bytes:
        data = super().dump(value)
        return self._signature(data) + data

    def decode(self, data: bytes) -> Any:
        signature, data = data[:32], data[32:]
        if not hmac.compare_digest(signature, self._signature(data)):
            raise ValueError("the signature is wrong")
        return super().decode(data)

    def _signature(self, data: bytes) -> bytes:
        return hmac.digest(self.secret, data, "sha256")

    def __reduce__(self) -> tuple[Any, ...]:
        return _SignedPickle, (self.secret,)


def pickle(*, secret: bytes | None = None) -> Codec:
    """Return a codec for whatever `pickle` holds.

    Reading a pickle runs code that it names, so whoever can write to the table can run code in its readers. That is why
    pickles are read only by a dictionary that chose this codec. With a `secret`, values are signed (HMAC-SHA256) and
    verified before they are read, rows with any other tag are refused, and only those who know the secret can write. A
    signature does not say which key its value belongs to, nor when it was written.

    Raises:
        ConfigError: the secret is no bytes, or empty.
    """
    return _PICKLE if secret is None else _SignedPickle(secret)


# --- bytes and text --------------------------------------------------------------------------------------------------


class _Bytes(_BuiltIn):
    """Bytes as they are; a `bytearray` or `memoryview` is stored too, and comes back as `bytes`."""

    name = "bytes"
    nests = False

    def dump(self, value: Any) -> bytes:
        if type(value) is bytes:
            return value
        return bytes(value) if type(value) in (bytearray, memoryview) else _unsupported(value)

    def decode(self, data: bytes) -> Any:
        return data


class _Text(_BuiltIn):
    """A `str` as UTF-8, lone surrogates as the three bytes that UTF-8 has no other use for."""

    name = "text"
    nests = False

    def dump(self, value: Any) -> bytes:
        return value.encode(errors="surrogatepass") if type(value) is str else _unsupported(value)

    def decode(self, data: bytes) -> Any:
        return data.decode(errors="surrogatepass")


msgpack = _Msgpack()
json = _Json()
bytes_ = _Bytes()
text = _Text()
_PICKLE = _Pickle()
_CODECS: dict[str, Codec] = {codec.name: codec for codec in (msgpack, json, _PICKLE, bytes_, text)}


def resolve(codec: str | Codec) -> Codec:
    """Return the codec of that name, or the codec itself.

    >>> resolve("json") is json
    True

    Raises:
        ConfigError: there is no such codec, or its name will not do.
    """
    if isinstance(codec, Codec):
        return _named_well(codec)
    if isinstance(codec, str) and codec in _CODECS:
        return _CODECS[codec]
    raise ConfigError(f"codec {brief(codec)} is neither a Codec nor one of {', '.join(map(repr, _CODECS))}")


def _named_well(codec: Codec) -> Codec:
    name = getattr(codec, "name", None)
    if not isinstance(name, str) or not name.isascii() or not name.isprintable() or not 1 <= len(name) <= 63:
        raise ConfigError(f"name of a codec must be 1 to 63 printable ASCII characters, not {brief(name)}")
    if name in _RESERVED and not isinstance(codec, _BuiltIn):
        raise ConfigError(f"codec {codec!r} must not have the name {name!r} of a built-in one")
    return codec


_RESERVED = frozenset({*_CODECS, _SignedPickle.name, "int", "float"})

# --- values ----------------------------------------------------------------------------------------------------------

_DIGITS = 1000
_LIMIT = 10**_DIGITS
_INT = re.compile(rb"0|-?[1-9][0-9]{0,3999}").fullmatch  # the server may add a digit to the thousand that are written


def _read_int(data: bytes) -> int:
    if not _INT(data):
        raise ValueError("it is no whole number")
    return int(data)


def _read_float(data: bytes) -> float:
    number = float(data)
    if repr(number).encode() != data or data.strip(b"-") in (b"inf", b"nan"):
        raise ValueError("it is no finite float")
    return number


@dataclass(frozen=True, slots=True)
class Values:
    """The values of a dictionary: what is stored for one, and what a stored one means.

    Args:
        codec: the codec, or the name of a built-in one.
        max_size: the most bytes that a stored value may have.
        untagged: whether the table keeps no tags: every row is the codec's, numbers have no form of their own.

    >>> values = Values("json")
    >>> values.encode({"a": [1, 2]}), values.encode(12), values.encode(1.5)
    ((b'{"a":[1,2]}', b'json'), (b'12', b'int'), (b'1.5', b'float'))
    >>> values.decode("key", b'{"a":[1,2]}', b"json")
    {'a': [1, 2]}
    """

    codec: Codec
    max_size: int
    untagged: bool
    tag: bytes = field(repr=False, compare=False)
    """The codec's own tag."""
    readable: tuple[bytes, ...] = field(repr=False, compare=False)
    """The tags of the rows that can be read."""
    counts: bool = field(repr=False, compare=False)
    """Whether numbers are stored as decimal text, with the tags `int` and `float`."""
    _readers: dict[bytes, Callable[[bytes], Any]] = field(repr=False, compare=False)

    def __init__(self, codec: str | Codec = "msgpack", max_size: int = MAX_VALUE_SIZE, untagged: bool = False) -> None:
        codec = resolve(codec)
        tag = codec.name.encode()
        alone = codec.sealed or untagged
        readers = {tag: codec.decode} if alone else {tag: codec.decode} | _HARMLESS
        fields = (codec, max_size, untagged, tag, tuple(readers), not alone, readers)
        for name, value in zip(self.__slots__, fields, strict=True):
            object.__setattr__(self, name, value)

    def encode(self, value: Any) -> tuple[bytes, bytes]:
        """Return the bytes of a value and their tag.

        Raises:
            TypeError: the codec does not hold values of such a type.
            InvalidValue: the codec does not hold this value, or it is too large.
        """
        data, tag = self.codec.encode(value), self.tag
        if self.counts:
            if type(value) is int and -_LIMIT < value < _LIMIT:
                data, tag = b"%d" % value, b"int"
            elif type(value) is float and value - value == 0:
                data, tag = repr(value).encode(), b"float"
        if not isinstance(data, bytes):
            raise TypeError(f"codec {self.codec.name!r} made {type(data).__name__}, not bytes")
        if len(data) > self.max_size:
            raise InvalidValue(f"value takes {len(data)} bytes, more than the {self.max_size} allowed")
        return data, tag

    def decode(self, key: object, data: bytes, tag: bytes) -> Any:
        """Return the value of bytes with that tag; the key is for the error's message.

        Raises:
            DecodeError: the bytes are no value, or the tag is of a codec that this dictionary does not read.
        """
        try:
            return self._readers[tag](data)
        except Exception as error:
            reason = str(error) if tag in self._readers else self._refusal()
            raise DecodeError(key, tag.decode(errors="replace"), data, reason or type(error).__name__) from error

    def _refusal(self) -> str:
        return f"a dictionary with codec {self.codec.name!r} does not read such rows"

    def __reduce__(self) -> tuple[Any, ...]:
        return Values, (self.codec, self.max_size, self.untagged)


_HARMLESS: dict[bytes, Callable[[bytes], Any]] = {
    **{codec.name.encode(): codec.decode for codec in (msgpack, json, bytes_, text)},
    b"int": _read_int,
    b"float": _read_float,
}
