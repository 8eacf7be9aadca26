"""Values: equal and of the same type when they come back, or refused; bad bytes are a `DecodeError`, nothing else."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import io
import json as jsonlib
import pickle
import re
import sys
import threading
import zlib
from datetime import datetime, time, timedelta, timezone
from decimal import Context, Decimal, localcontext
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgpack import ExtType, Timestamp
from strategies import any_string, everything, exact

from pgdict import codecs
from pgdict.codecs import Codec, Values, bytes_, json, msgpack, resolve, text
from pgdict.errors import ConfigError, DecodeError, InvalidValue

SECRET = b"correct horse battery staple"

utf8 = st.text(st.characters(exclude_categories=["Cs"]))
json_strings = utf8.filter(lambda string: "\x00" not in string)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | json_strings,
    lambda part: st.lists(part, max_size=4) | st.dictionaries(json_strings, part, max_size=4),
)


def returned(values: Values, value: Any) -> Any:
    return values.decode("key", *values.encode(value))


def refusal(codec: str | Codec, value: Any, kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        Values(codec).encode(value)
    return str(caught.value)


# --- what comes back -------------------------------------------------------------------------------------------------


@given(everything)
@settings(max_examples=400)
def test_msgpack_round_trip(value: Any) -> None:
    """Msgpack brings back everything it takes, each part of the same type."""
    assert exact(returned(Values("msgpack"), value)) == exact(value)


@given(json_values)
def test_json_round_trip(value: Any) -> None:
    """JSON brings back what it takes, each part of the same type."""
    assert exact(returned(Values("json"), value)) == exact(value)


@given(everything)
@pytest.mark.parametrize("codec", ["pickle", codecs.pickle(secret=SECRET)])
def test_pickle_round_trip(codec: str | Codec, value: Any) -> None:
    """Pickle brings back what it takes, signed or not."""
    assert exact(returned(Values(codec), value)) == exact(value)


@given(any_string)
def test_text_round_trip(value: str) -> None:
    """Text brings back every string, lone surrogates included."""
    assert exact(returned(Values("text"), value)) == exact(value)


@given(st.binary(), st.sampled_from([bytes, bytearray, memoryview]))
def test_bytes_round_trip(value: bytes, kind: Any) -> None:
    """Bytes and their likes come back as `bytes`."""
    assert exact(returned(Values("bytes"), kind(value))) == exact(value)


@pytest.mark.parametrize(
    "value",
    [
        datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
        datetime.min,
        datetime.max.replace(tzinfo=timezone(timedelta(microseconds=-1), "|odd name")),
        time(1, 2, 3, 4, tzinfo=timezone(timedelta(0), "")),
        [bytearray(b"x"), (bytearray(b""), {"k": bytearray(b"\xc4")}), b"\xc4"],
        {(1, (2, frozenset({3}))): {(): [()]}, frozenset(): (), b"": ""},
        [[], (), {}, set(), frozenset(), "", b"", bytearray(), None],
        [2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, -(2**64), 10**5000],
        [True, 1, 1.0, 1 + 0j, Decimal(1)],
        [Decimal("-0.00E+7"), Decimal("1E+999999"), Decimal("NaN123"), Decimal("-Infinity")],
        [float("nan"), float("-inf"), -0.0, 5e-324],
        UUID(int=2**128 - 1),
        timedelta.min,
        dict(zip(range(1000), "x" * 1000, strict=True)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_msgpack_edges(value: Any) -> None:
    """The edges of each type, and types within types, come back as they were."""
    assert exact(returned(Values(), value)) == exact(value)


def test_nan_keys_all_come_back() -> None:
    """NaNs as keys of a dict or elements of a set are each a thing of their own, and stay that many."""
    nan, other = float("nan"), float("-nan")
    assert len(returned(Values(), {nan: 1, other: 2})) == 2
    assert len(returned(Values(), {nan, other})) == 2


def test_decimals_under_any_context() -> None:
    """A caller's decimal context changes neither what is stored nor what is read."""
    number = Decimal("1.23456789E+50")
    with localcontext(Context(prec=2, Emax=9, capitals=0, traps=[])):
        data = Values().encode(number)
        assert exact(Values().decode("key", *data)) == exact(number)
        with pytest.raises(DecodeError):
            Values().decode("key", msgpack.encode(number).replace(b"1.23", b"x.23"), b"msgpack")


def test_dict_order() -> None:
    """A dict's order comes back."""
    for codec in ("msgpack", "json", "pickle"):
        assert list(returned(Values(codec), dict.fromkeys("zaqb"))) == list("zaqb")


def test_a_returned_value_is_a_copy() -> None:
    """What was stored does not change with the value it was made of."""
    value = bytearray(b"a")
    data = Values("bytes").encode(value)
    value[0] = 0
    assert data == (b"a", b"bytes")


# --- numbers ---------------------------------------------------------------------------------------------------------

COUNTING = ["msgpack", "json", "pickle"]


@pytest.mark.parametrize("codec", COUNTING)
@pytest.mark.parametrize(
    ("value", "data"),
    [
        (0, b"0"),
        (-12, b"-12"),
        (10**1000 - 1, b"9" * 1000),
        (1 - 10**1000, b"-" + b"9" * 1000),
    ],
    ids=["0", "-12", "longest", "longest negative"],
)
def test_int_is_decimal_text(codec: str, value: int, data: bytes) -> None:
    """An `int` of up to 1,000 digits is stored as text that the server can add to."""
    assert Values(codec).encode(value) == (data, b"int")
    assert exact(Values(codec).decode("key", data, b"int")) == exact(value)


@pytest.mark.parametrize("codec", COUNTING)
@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_float_is_decimal_text(codec: str, value: float) -> None:
    """A finite `float` is stored as its shortest text."""
    assert Values(codec).encode(value) == (repr(value).encode(), b"float")
    assert exact(returned(Values(codec), value)) == exact(value)


@pytest.mark.parametrize("value", [10**1000, -(10**1000), float("nan"), float("inf"), True, Decimal(1)], ids=type)
def test_other_numbers_go_through_the_codec(value: Any) -> None:
    """Longer integers, NaN, infinities, bools and decimals are the codec's."""
    assert Values().encode(value)[1] == b"msgpack"
    assert exact(returned(Values(), value)) == exact(value)


def test_giant_integers_need_no_decimal_digits() -> None:
    """An integer beyond Python's limit for decimal text is stored all the same."""
    value = -(1 << 1_000_000)
    assert returned(Values(), value) == value


def test_sealed_codec_keeps_numbers_to_itself() -> None:
    """Signed pickles sign numbers too."""
    values = Values(codecs.pickle(secret=SECRET))
    assert not values.counts
    assert values.encode(5)[1] == values.encode(1.5)[1] == b"pickle-signed"


@pytest.mark.parametrize("codec", ["bytes", "text"])
@pytest.mark.parametrize("value", [1, 1.5])
def test_numbers_that_the_codec_refuses(codec: str, value: float) -> None:
    """Under a codec that takes no numbers, numbers are refused."""
    message = refusal(codec, value, TypeError)
    assert message == f"codec {codec!r} cannot store value: type {type(value).__name__} is not supported"


@pytest.mark.parametrize(
    "data", [b"", b"-", b"-0", b"+1", b"01", b"1_0", b" 1", b"1\n", b"1.0", "\u0661".encode(), b"9" * 4001, b"x"]
)
def test_no_canonical_int(data: bytes) -> None:
    """Bytes with the tag `int` that are no canonical whole number are a `DecodeError`."""
    with pytest.raises(DecodeError, match="it is no whole number"):
        Values().decode("key", data, b"int")


@pytest.mark.parametrize("data", [b"", b"1", b"01.5", b"1.50", b"inf", b"-inf", b"nan", b"1e400", b"1_0.0", b" 1.5", b"x"])
def test_no_canonical_float(data: bytes) -> None:
    """Bytes with the tag `float` that are no finite float's shortest text are a `DecodeError`."""
    with pytest.raises(DecodeError):
        Values().decode("key", data, b"float")


# --- what is refused -------------------------------------------------------------------------------------------------


class Level(enum.IntEnum):
    LOW = 1


class Name(str):
    __slots__ = ()


Point = collections.namedtuple("Point", "x y")


class Moment(datetime):
    pass


@pytest.mark.parametrize(
    "value",
    [
        collections.OrderedDict(a=1),
        collections.defaultdict(int),
        collections.Counter(),
        collections.deque(),
        Level.LOW,
        Name("x"),
        Point(1, 2),
        Moment(2024, 1, 1),
        memoryview(b"x"),
        ExtType(1, b""),
        Timestamp(1),
        object(),
        len,
        range(3),
        {}.keys(),
        1j.conjugate,
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("codec", ["msgpack", "json"])
@pytest.mark.parametrize(
    ("path", "wrap"),
    [
        ("value", lambda value: value),
        ("value['users'][3]", lambda value: {"users": [0, 1, 2, value]}),
        ("value[0]['a']['b']", lambda value: [{"a": {"b": value}}]),
    ],
)
def test_unsupported(codec: str, value: Any, path: str, wrap: Any) -> None:
    """A type that would come back as another is a `TypeError` that says which and where."""
    message = refusal(codec, wrap(value), TypeError)
    assert message == f"codec {codec!r} cannot store {path}: type {type(value).__qualname__} is not supported"


@pytest.mark.parametrize(
    ("codec", "value", "kind", "message"),
    [
        ("json", (1,), TypeError, "value: type tuple is not supported"),
        ("json", [{"a": {1: 2}}], TypeError, "value[0]['a']: dict key 1 is of type int, not str"),
        ("json", {Name("a"): 2}, TypeError, "value key 'a': type Name is not supported"),
        ("json", [1, float("nan")], InvalidValue, "value[1]: Out of range float values are not JSON compliant"),
        ("json", {"a": "b\0"}, InvalidValue, "value['a']: it contains U+0000, which jsonb cannot hold"),
        ("json", {"a\0": "b"}, InvalidValue, "value key 'a\\x00': it contains U+0000, which jsonb cannot hold"),
        ("json", ["\ud800"], InvalidValue, "value[0]: it contains a lone surrogate, which jsonb cannot hold"),
        ("json", [10**5000], InvalidValue, "value[0]: Exceeds the limit (4300 digits)"),
        ("msgpack", {(1, Level.LOW): 2}, TypeError, "value key (1, <Level.LOW: 1>)[1]: type Level is not supported"),
        ("msgpack", [{memoryview(b"x")}], TypeError, "value[0] element <memory at "),
        ("msgpack", (bytearray(), memoryview(b"")), TypeError, "value[1]: type memoryview is not supported"),
        ("pickle", {"f": [lambda: 1]}, TypeError, "value['f'][0]: Can't pickle"),
        ("bytes", ["a"], TypeError, "value: type list is not supported"),
        ("text", b"a", TypeError, "value: type bytes is not supported"),
        ("text", Name("a"), TypeError, "value: type Name is not supported"),
    ],
)
def test_refusals(codec: str, value: Any, kind: type[Exception], message: str) -> None:
    """A refusal says where the trouble is, and what."""
    assert refusal(codec, value, kind).startswith(f"codec {codec!r} cannot store {message}")


def test_only_zones_that_come_back() -> None:
    """A time zone of another kind, or one that is not the database's, is a `TypeError`."""

    class Zone(ZoneInfo):
        pass

    path = next(f"{root}/UTC" for root in ("/usr/share/zoneinfo",))
    with open(path, "rb") as file:  # noqa: PTH123
        data = file.read()
    for zone in (Zone("UTC"), ZoneInfo.from_file(io.BytesIO(data)), ZoneInfo.from_file(io.BytesIO(data), key="UTC")):
        refusal("msgpack", [datetime(2024, 1, 1, tzinfo=zone)], TypeError)


@pytest.mark.parametrize("codec", ["msgpack", "json"])
@pytest.mark.parametrize("wrap", [lambda part: [part], lambda part: {"a": part}])
def test_endless(codec: str, wrap: Any) -> None:
    """A value that contains itself, or is nested absurdly, is an `InvalidValue`."""
    endless: list[Any] = []
    endless.append(wrap(endless))
    deep: Any = b"" if codec == "msgpack" else ""
    for _ in range(sys.getrecursionlimit() * 2):
        deep = wrap(deep)
    for value in (endless, deep):
        message = refusal(codec, value, InvalidValue)
        assert message == f"codec {codec!r} cannot store value: it is nested too deeply, or contains itself"


@pytest.mark.parametrize("wrap", [lambda part: [part], lambda part: (part,), lambda part: {1: part}])
def test_what_is_deep_but_stored_is_read(wrap: Any) -> None:
    """What nests deeply and could be stored can be read, also on the small stack of a thread."""
    value: Any = bytearray(b"x")
    for _ in range(200):
        value = wrap(value)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(exact(returned(Values(), value)) == exact(value)))
    thread.start()
    thread.join()
    assert seen == [True]


@pytest.mark.parametrize("codec", ["msgpack", "json", "pickle", "text"])
def test_size_limit(codec: str) -> None:
    """A value beyond the limit is an `InvalidValue` that names its size and the limit."""
    size = len(Values(codec).encode("x" * 100)[0])
    assert returned(Values(codec, max_size=size), "x" * 100) == "x" * 100
    with pytest.raises(InvalidValue, match=f"value takes {size} bytes, more than the {size - 1} allowed"):
        Values(codec, max_size=size - 1).encode("x" * 100)


# --- what cannot be read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "data"),
    [
        (b"msgpack", b""),
        (b"msgpack", b"\xc1"),
        (b"msgpack", b"\x01\x01"),
        (b"msgpack", b"\x92\x01"),
        (b"msgpack", b"\xdd\xff\xff\xff\xff"),
        (b"msgpack", b"\xc6\xff\xff\xff\xff"),
        (b"msgpack", b"\xa2\xff\xff"),
        (b"msgpack", b"\xd4\x63x"),
        (b"msgpack", b"\xd4\x01x"),
        (b"msgpack", b"\xd4\x0cx"),
        (b"msgpack", b"\xd4\x07x"),
        (b"msgpack", b"\x81\x90\x01"),
        (b"msgpack", b"\x92\xc7\x00\x02\x90"),
        (b"json", b""),
        (b"json", b"{"),
        (b"json", b"1 2"),
        (b"json", b"NaN"),
        (b"json", b"-Infinity"),
        (b"json", b"1e999"),
        (b"json", b'{"a":1,"a":2}'),
        (b"json", b"\xff"),
        (b"json", b"[" * 100_000),
        (b"text", b"\xff"),
        (b"pickle", b""),
        (b"pickle", b"cnosuch\nmodule\n."),
        (b"pickle", b"garbage"),
    ],
)
def test_corrupt(tag: bytes, data: bytes) -> None:
    """Bytes that are no value of their codec are a `DecodeError` that keeps them."""
    with pytest.raises(DecodeError) as caught:
        Values("pickle").decode(("k", 1), data, tag)
    assert (caught.value.key, caught.value.codec, caught.value.raw) == (("k", 1), tag.decode(), data)
    assert str(caught.value).startswith(f"value of key ('k', 1), stored with codec {tag.decode()!r}, cannot be read: ")


@given(everything, st.data())
def test_truncated_or_lengthened(value: Any, data: st.DataObject) -> None:
    """A value cut short or with something after it is a `DecodeError`."""
    whole = msgpack.encode(value)
    cut = data.draw(st.integers(0, len(whole) - 1))
    for broken in (whole[:cut], whole + b"\0"):
        with pytest.raises(DecodeError):
            Values().decode("key", broken, b"msgpack")


@given(everything, st.integers(0), st.integers(1, 255), st.sampled_from(sorted(Values("json").readable)))
@settings(max_examples=300)
def test_flipped_bits(value: Any, place: int, bits: int, tag: bytes) -> None:
    """Bytes with flipped bits, under any tag, are a value or a `DecodeError`, nothing else."""
    data = bytearray(msgpack.encode(value))
    data[place % len(data)] ^= bits
    with contextlib.suppress(DecodeError):
        Values("json").decode("key", bytes(data), tag)


@given(st.binary(), st.sampled_from(sorted(Values().readable)))
def test_garbage(data: bytes, tag: bytes) -> None:
    """Any bytes whatever, under any tag, are a value or a `DecodeError`, nothing else."""
    with contextlib.suppress(DecodeError):
        Values().decode("key", data, tag)


COMMON = {b"msgpack", b"json", b"bytes", b"text", b"int", b"float"}


@pytest.mark.parametrize(
    ("codec", "readable"),
    [
        ("msgpack", COMMON),
        ("text", COMMON),
        ("pickle", COMMON | {b"pickle"}),
        (codecs.pickle(secret=SECRET), {b"pickle-signed"}),
    ],
)
def test_readable(codec: str | Codec, readable: set[bytes]) -> None:
    """A dictionary reads its own rows and harmless ones; one that signs reads its own only."""
    values = Values(codec)
    assert values.readable[0] == values.tag
    assert set(values.readable) == readable
    for tag in {b"pickle", b"pickle-signed", b"int", b"zstd", b"", b"\xff", *COMMON} - readable:
        with pytest.raises(DecodeError, match=f"a dictionary with codec '{values.codec.name}' does not read such rows"):
            values.decode("key", b"1", tag)


def test_a_pickle_is_not_even_looked_at() -> None:
    """A pickle runs no code in a dictionary that did not choose pickle, nor with a wrong signature."""
    bomb = b"cbuiltins\nexec\n(S'raise SystemExit'\ntR."
    for values, tag in ((Values(), b"pickle"), (Values(codecs.pickle(secret=SECRET)), b"pickle-signed")):
        for data in (bomb, b"\0" * 32 + bomb):
            with pytest.raises(DecodeError):
                values.decode("key", data, tag)


@given(everything, st.integers(0), st.integers(1, 255))
def test_tampering_is_seen(value: Any, place: int, bits: int) -> None:
    """A signed pickle of which any bit was changed is a `DecodeError`."""
    values = Values(codecs.pickle(secret=SECRET))
    data, tag = values.encode(value)
    changed = bytearray(data)
    changed[place % len(data)] ^= bits
    for broken in (bytes(changed), data[:-1], data + b".", data[32:]):
        with pytest.raises(DecodeError, match="the signature is wrong"):
            values.decode("key", broken, tag)


def test_another_secret_reads_nothing() -> None:
    """What one secret signed another does not read."""
    data, tag = Values(codecs.pickle(secret=b"other")).encode("value")
    with pytest.raises(DecodeError, match="the signature is wrong"):
        Values(codecs.pickle(secret=SECRET)).decode("key", data, tag)


@pytest.mark.parametrize("secret", [b"", "text", 5])
def test_bad_secret(secret: Any) -> None:
    """A secret is bytes, and some."""
    with pytest.raises(ConfigError, match="secret must be non-empty bytes, not "):
        codecs.pickle(secret=secret)


def test_the_secret_is_not_shown() -> None:
    """The secret is in no `repr`."""
    assert SECRET.decode() not in repr(Values(codecs.pickle(secret=SECRET)))


# --- codecs of one's own ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Zlib(Codec):
    """A codec with an option, for strings."""

    level: int = 6

    name = "zlib"

    def encode(self, value: Any) -> bytes:
        if type(value) is not str:
            raise LookupError(f"no {value!r}, please")
        return zlib.compress(value.encode(), self.level)

    def decode(self, data: bytes) -> Any:
        return zlib.decompress(data).decode()


class Sealed(Zlib):
    name = "sealed"
    sealed = True


class Careless(Codec):
    name = "careless"

    def encode(self, value: Any) -> Any:
        return value

    def decode(self, data: bytes) -> Any:
        return data


def test_custom_codec() -> None:
    """A codec of one's own writes its own tag and reads the harmless ones; its exceptions are its own."""
    values = Values(Zlib())
    data, tag = values.encode("x" * 1000)
    assert tag == b"zlib"
    assert len(data) < 100
    assert values.decode("key", data, tag) == "x" * 1000
    assert values.decode("key", b"[1]", b"json") == [1]
    with pytest.raises(LookupError, match="no 5, please"):
        values.encode(5)
    with pytest.raises(DecodeError, match="incorrect header check"):
        values.decode("key", b"garbage", tag)
    with pytest.raises(DecodeError, match="does not read such rows"):
        Values().decode("key", data, tag)


def test_sealed_custom_codec() -> None:
    """A sealed codec of one's own reads no rows but its own."""
    assert Values(Sealed()).readable == (b"sealed",)


def test_careless_codec() -> None:
    """A codec that makes no bytes is told so."""
    with pytest.raises(TypeError, match="codec 'careless' made str, not bytes"):
        Values(Careless()).encode("x")


@pytest.mark.parametrize("name", ["", "x" * 64, "é", "a\n", None, 5, "msgpack", "int", "float", "pickle-signed"])
def test_names_that_will_not_do(name: Any) -> None:
    """A codec's name is 1 to 63 printable ASCII characters, and no built-in one's."""
    codec = Careless()
    codec.name = name
    with pytest.raises(ConfigError):
        Values(codec)


@pytest.mark.parametrize("codec", ["yaml", "", None, 5, Zlib, ["json"]])
def test_no_such_codec(codec: Any) -> None:
    """What is no codec is a `ConfigError` that names the choices."""
    with pytest.raises(ConfigError, match="is neither a Codec nor one of 'msgpack', 'json', 'pickle', 'bytes', 'text'"):
        resolve(codec)


def test_resolve() -> None:
    """Built-in codecs go by name."""
    assert [resolve(name) for name in ("msgpack", "json", "pickle", "bytes", "text")] == [
        msgpack, json, codecs.pickle(), bytes_, text
    ]  # fmt: skip


@pytest.mark.parametrize("codec", ["msgpack", "json", "pickle", "bytes", "text", codecs.pickle(secret=SECRET), Zlib(9)])
def test_value_object(codec: str | Codec) -> None:
    """Values compare, hash and pickle by codec and limit."""
    values = Values(codec, 999)
    copy = pickle.loads(pickle.dumps(values))
    assert copy == values == Values(codec, 999)
    assert hash(copy) == hash(values)
    assert values != Values(codec)
    assert values != Values(Sealed(), 999)
    sample = b"x" if codec == "bytes" else "x"
    assert copy.encode(sample) == values.encode(sample)


def test_different_secrets_differ() -> None:
    """Two dictionaries with different secrets are not equal."""
    assert Values(codecs.pickle(secret=b"a")) != Values(codecs.pickle(secret=b"b")) != Values("pickle")


@given(json_values)
def test_stored_json_is_compact_json(value: Any) -> None:
    """Stored JSON is UTF-8 that any reader of JSON takes, without spaces or escapes where none are needed."""
    data = json.encode(value)
    assert data.decode() == jsonlib.dumps(value, ensure_ascii=False, separators=(",", ":"))
    assert not re.search(rb"(?<!\\)(\\\\)*\\u(0000|d[89a-f])", data)


def test_one_codec_for_all_threads() -> None:
    """Many threads may encode and decode at once."""
    values = Values()
    failures: list[int] = []

    def work(seed: int) -> None:
        value = [{(seed, i): bytearray([seed])} for i in range(200)]
        failures.extend(1 for _ in range(50) if returned(values, value) != value)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_large_value() -> None:
    """A value of 100 MiB is stored and read."""
    value = [b"\xc4" * (100 * 2**20 - 16)]
    assert returned(Values(), value) == value
