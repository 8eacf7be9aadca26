"""Keys of calls: what shares one and what does not, here and in another process; names of functions."""

from __future__ import annotations

import base64
import collections
import enum
import functools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import program, result
from strategies import everything, exact, scalars

from pgdict.fingerprint import LONGEST, Unsupported, binder, key_of, name_of

# --- arguments -------------------------------------------------------------------------------------------------------


class Color(enum.Enum):
    RED = 1
    GREEN = 2
    ROUGE = 1  # noqa: PIE796 - an alias


class Hue(enum.Enum):
    RED = 1


class Size(enum.IntEnum):
    SMALL = 1


class Alike(enum.Enum):
    ONE = 1
    TWO = 2

    @enum.property
    def name(self) -> str:
        return "alike"


class Mode(enum.Flag):
    READ = 1
    WRITE = 2


class Loose(enum.IntFlag):
    ONE = 1


@dataclass
class Point:
    x: Any
    y: Any
    note: str = field(default="", compare=False)


@dataclass(frozen=True)
class Place:
    x: Any
    y: Any


class Pair(NamedTuple):
    x: Any
    y: Any


class Sub(str):
    __slots__ = ()


def key(*arguments: Any) -> str:
    return key_of(arguments)


# fmt: off
ALL_DIFFERENT: list[Any] = [
    *(None, ..., True, False, 1, 0, -1, 1.0, 0.0, -0.0, 1 + 0j, 0j, -0j, complex(0, -0.0), float("nan"), float("inf")),
    *("1", "", "True", "None", "(1,)", "[1]", "a b", "a', 'b", "\x00", "\ud800", "é", b"1", b"", bytearray(b"1")),
    *((), (1,), (1, 2), ((1,),), ((1, 2),), [], [1], [1, 2], [[1], 2], [1, [2]], {}, set(), frozenset(), {1}),
    frozenset({1}),
    *({1: 2}, {2: 1}, {1: 1, 2: 2}, {1, 2}, frozenset({1, 2}), {"1": 2}, {(1, 2)}, {frozenset({1}), 2}, {None}),
    {"a": {"b": 1}},
    *({"a": {}, "b": 1}, {"a": {"b": 1}, "c": 2}, ["a", ["b"]], [["a"], "b"], 10**5000, -(10**5000), hex(10**5000), 2**600),
    *("x" * LONGEST, "x" * (LONGEST + 1), ["x" * LONGEST], "#" + "0" * 32),
    *(Decimal(1), Decimal("1.0"), Decimal("1.00"), Decimal("NaN"), Decimal("sNaN"), Decimal("-0"), Decimal("1e100")),
    *(timedelta(1), timedelta(0, 1), timedelta(0, 0, 1), datetime(2020, 1, 1), date(2020, 1, 1), time(0), time(1)),
    *(datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=ZoneInfo("UTC")), datetime(2020, 1, 1, fold=1)),
    datetime(2020, 1, 1, tzinfo=timezone(timedelta(hours=1))),
    datetime(2020, 1, 1, tzinfo=timezone(timedelta(hours=1), "CET")),
    *(datetime(2020, 1, 1, tzinfo=ZoneInfo("Europe/Paris")), datetime(2020, 1, 1, tzinfo=ZoneInfo("Europe/Berlin"))),
    *(range(0), range(1), range(2), range(0, 4, 2), range(0, 5, 3), range(10**30), slice(1), slice(0, 1), slice(None)),
    *(Color.RED, Color.GREEN, Hue.RED, Size.SMALL, Mode.READ, Mode.WRITE, Mode.READ | Mode.WRITE, Mode(0)),
    *(Loose(0), Loose(1), Loose(2), Loose(16), Loose(18), int, float, Color, Point),
    *(Alike.ONE, Alike.TWO),
    *(Point(1, 2), Point(2, 1), Point(1, [2]), Place(1, 2), Pair(1, 2), Pair(2, 1), {"x": 1, "y": 2}, Point(Point(1, 2), 3)),
    *(PurePosixPath("a"), PurePosixPath("a/b"), PurePosixPath("1")),
]
# fmt: on


def test_different_arguments() -> None:
    """Arguments that differ in type or content have keys that differ, alone and nested."""
    for wrap in (lambda value: value, lambda value: [value], lambda value: {"k": (value, 1)}):
        keys = collections.Counter(key(wrap(argument)) for argument in ALL_DIFFERENT)
        assert keys.most_common(1)[0][1] == 1
        assert len(keys) == len(ALL_DIFFERENT)


def test_different_calls() -> None:
    """So have lists of arguments."""
    words: list[tuple[Any, ...]] = [("a b",), ("a", "b"), (("a", "b"),), ("a", ("b",)), ("a,b",), ("'a', 'b'",)]
    calls: list[tuple[Any, ...]] = [*words, (), ((),), ([],), ([], [])]
    assert len({key_of(call) for call in calls}) == len(calls)
    assert len({key_of((*call, [])) for call in calls}) == len(calls)


EQUAL: list[tuple[Any, Any]] = [
    ({"a": 1, "b": [{1: 2, 3: 4}]}, {"b": [{3: 4, 1: 2}], "a": 1}),
    ({"ab", "ba", "c"}, {"c", "ba", "ab"}),
    (float("nan"), -float("nan")),
    ([10**20], [10**20]),
    (Color.RED, Color.ROUGE),
    (Color["RED"], Color(1)),
    (range(0), range(5, 5)),
    (range(0, 4, 2), range(0, 3, 2)),
    (range(1), range(0, 1, 7)),
    (range(True), range(1)),
    (Point(1, 2, "a"), Point(1, 2, "b")),
    (Decimal("0.1"), Decimal("1E-1")),
]


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_equal_arguments(one: Any, other: Any) -> None:
    """Order of dicts and sets, aliases and fields that are not compared do not count."""
    assert key(one) == key(other)


def test_equal_numbers_when_asked() -> None:
    """With typed=False bool, int, float and complex that are equal are one, wherever they are; others never."""

    def loose(*arguments: Any) -> str:
        return key_of(arguments, typed=False)

    assert len({loose(number) for number in (1, 1.0, True, 1 + 0j)}) == 1
    assert len({loose(number) for number in (0, 0.0, -0.0, False, 0j, complex(-0.0, -0.0))}) == 1
    assert loose(complex(0.0, 1)) == loose(complex(-0.0, 1))
    assert loose([{1.0: (True,)}, Point(1.0, 2)]) == loose([{True: (1,)}, Point(1, 2.0)])
    assert len({loose(value) for value in (1, 1.5, "1", b"1", 2, 10**30, Decimal(1), float("nan"), float("inf"), 1j)}) == 10


def test_key_does_not_depend_on_settings() -> None:
    """Neither the context of decimals nor the limit of digits changes a key."""
    number, digits = Decimal("1e100"), sys.get_int_max_str_digits()
    before = key(number), key(10**5000)
    with localcontext(Context(prec=3, capitals=0)):
        sys.set_int_max_str_digits(0)
        try:
            assert (key(number), key(10**5000)) == before
        finally:
            sys.set_int_max_str_digits(digits)


class Zone(tzinfo):
    def utcoffset(self, _: datetime | None) -> timedelta:
        return timedelta(0)

    dst = utcoffset

    def tzname(self, _: datetime | None) -> str:
        return "Zone"


def local_class() -> type:
    @dataclass
    class Local:
        x: int = 0

    return Local


ITSELF: list[Any] = []
ITSELF.append(ITSELF)
DEEP: Any = functools.reduce(lambda inner, _: [inner], range(100_000), cast("Any", 1))
UNSUPPORTED: dict[str, Any] = {
    "an object": object(),
    "a function": len,
    "a lambda": lambda: None,
    "a generator": iter(()),
    "a str of another class": Sub("a"),
    "an OrderedDict": collections.OrderedDict(a=1),
    "a defaultdict": collections.defaultdict(int),
    "a Counter": collections.Counter("a"),
    "a deque": collections.deque([1]),
    "a Fraction": Fraction(1),
    "a memoryview": memoryview(b"a"),
    "a time zone of its own": datetime(2020, 1, 1, tzinfo=Zone()),
    "an instance of a class in a function": local_class()(),
    "a class in a function": local_class(),
    "a list in itself": ITSELF,
    "a very deep list": DEEP,
    "a generic alias": list[int],
}


@pytest.mark.parametrize("what", list(UNSUPPORTED))
def test_unsupported_arguments(what: str) -> None:
    """Anything else is a TypeError that names the argument and the ways out, however deep it sits."""

    def call(fine: Any, wrong: Any) -> None: ...

    argument = UNSUPPORTED[what]
    bind = binder(call)
    for wrong in (argument, [{"a": (argument,)}]):
        with pytest.raises(TypeError, match=r"argument 'wrong' of .*call cannot be part of a key: .*ignore=\('wrong',\).*key="):
            bind((1, wrong), {})
    with pytest.raises(Unsupported):
        key(argument)
    assert binder(call, ignore=("wrong",))((1, argument), {}) == key(1)


def test_deep_arguments() -> None:
    """Two hundred levels are no problem."""
    deep = functools.reduce(lambda inner, _: [{"k": (inner,)}], range(60), cast("Any", 1))
    assert key(deep) == key(pickle.loads(pickle.dumps(deep)))
    assert key(deep) != key([deep])


# --- a hunt for collisions -------------------------------------------------------------------------------------------

ANSWER = """
import base64, pickle, sys
from pgdict.fingerprint import key_of
for line in sys.stdin:
    print(key_of(pickle.loads(base64.b64decode(line))), flush=True)
"""


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Callable[[tuple[Any, ...]], str]]:
    """What another process, with another hash seed, says of the same arguments."""
    with subprocess.Popen(
        [sys.executable, "-c", ANSWER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": "4711", "LC_ALL": "C"},
    ) as process:

        def ask(arguments: tuple[Any, ...]) -> str:
            assert process.stdin
            assert process.stdout
            print(base64.b64encode(pickle.dumps(arguments)).decode(), file=process.stdin, flush=True)
            return process.stdout.readline().rstrip("\n")

        yield ask
        assert process.stdin
        process.stdin.close()


def content(value: Any) -> Any:
    """All of a value that counts: `exact`, but without the order of dicts and the sign of NaNs."""
    kind = type(value)
    if kind in (list, tuple):
        return kind, tuple(map(content, value))
    if kind is dict:
        return kind, frozenset(collections.Counter((content(key), content(item)) for key, item in value.items()).items())
    if kind in (set, frozenset):
        return kind, frozenset(collections.Counter(map(content, value)).items())
    if kind is float and value != value:
        return kind, "nan"
    if kind is complex:
        return kind, content(value.real), content(value.imag)
    return exact(value)


near = st.sampled_from(
    ["", "a", "b", "a b", "'", '"', ",", "(", "1", "[1]", "\\", b"", b"a", 0, 1, -1, 0.0, -0.0, 1.0, True, False, None, 0j, 1j]
)
tiny = st.recursive(
    near,
    lambda part: (
        st.lists(part, max_size=3)
        | st.lists(part, max_size=3).map(tuple)
        | st.dictionaries(near, part, max_size=2)
        | st.sets(near, max_size=3)
        | st.frozensets(near, max_size=3)
    ),
    max_leaves=6,
)
calls = st.lists(tiny | everything, max_size=3).map(tuple)


@settings(max_examples=300)
@given(one=calls, other=calls)
def test_calls_that_differ(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    """Two calls have one key exactly when they are equal in type and content."""
    assert (key_of(one) == key_of(other)) == (content(one) == content(other))


@settings(max_examples=60)
@given(calls=st.lists(st.lists(tiny, max_size=2).map(tuple), min_size=40, max_size=40))
def test_many_calls_that_differ(calls: list[tuple[Any, ...]]) -> None:
    """No two of many similar calls share a key, unless they are equal."""
    seen: dict[str, Any] = {}
    for call in calls:
        assert seen.setdefault(key_of(call), content(call)) == content(call)


@settings(max_examples=150)
@given(calls=st.lists(calls, min_size=1, max_size=3))
def test_equal_calls_elsewhere(elsewhere: Callable[[tuple[Any, ...]], str], calls: list[tuple[Any, ...]]) -> None:
    """An equal call in another process with another hash seed has the same key: printable, and not too long."""
    for call in calls:
        here = key_of(call)
        assert elsewhere(call) == here
        assert here.isascii()
        assert here.isprintable()
        assert len(here) <= LONGEST


@settings(max_examples=50)
@given(st.dictionaries(scalars(), scalars(), max_size=5), st.randoms())
def test_order_does_not_count(data: dict[Any, Any], random: Any) -> None:
    """A dict or set that was filled in another order has the same key."""
    pairs = list(data.items())
    random.shuffle(pairs)
    assert key(dict(pairs)) == key(data)
    assert key({k for k, _ in pairs}) == key(set(data))


def test_known_keys() -> None:
    """Keys stay what they are from version to version: stored results would be lost otherwise."""
    assert key() == "()"
    assert key(1, "a", b"b", None) == "(1, 'a', b'b', None)"
    assert key([1, (2,)], {"b": {3}, "a": 1.5}) == "([1,(2,)],{'a':1.5,'b':{3}},)"
    assert key("x" * 300) == "#128b55c81c418a083c1a77131bd4829a"


def test_everything_elsewhere(elsewhere: Callable[[tuple[Any, ...]], str]) -> None:
    """The other process agrees on arguments of every type."""
    for argument in ALL_DIFFERENT:
        if not getattr(argument, "__module__", type(argument).__module__).startswith(__name__):
            assert elsewhere((argument,)) == key(argument)


# --- numpy and pandas ------------------------------------------------------------------------------------------------


@pytest.fixture
def numpy() -> Any:
    """Numpy, when it is installed."""
    return pytest.importorskip("numpy")


@pytest.fixture
def pandas() -> Any:
    """Pandas, when it is installed."""
    return pytest.importorskip("pandas")


def check(different: list[Any], equal: list[tuple[Any, Any]], elsewhere: Callable[[tuple[Any, ...]], str]) -> None:
    """Check what shares a key and what does not, and that the other process agrees."""
    keys = collections.Counter(map(key, different))
    assert not [argument for argument in different if keys[key(argument)] > 1]
    for one, other in equal:
        assert key(one) == key(other)
        assert key({"k": [one]}) == key({"k": [other]})
    for argument in different:
        assert elsewhere((argument,)) == key(argument)


def test_numpy(numpy: Any, elsewhere: Callable[[tuple[Any, ...]], str]) -> None:
    """Arrays and scalars count by dtype, shape and elements, in whatever order of memory."""
    np = numpy
    table = np.arange(6).reshape(2, 3)
    record = [("a", "i2"), ("b", [("c", "f8"), ("d", "S2", (2,))])]
    records = np.zeros(2, record)
    padded = np.zeros(2, np.dtype([("a", "i1"), ("b", "f8")], align=True))
    dirty = np.frombuffer(b"\0" + b"\xff" * 7 + b"\0" * 8 + b"\0" + b"\xaa" * 7 + b"\0" * 8, padded.dtype)
    different = [
        *(table, table.reshape(3, 2), table.ravel(), table.T, table.astype("i4"), table.astype("f8")),
        *(table.astype(object), table.astype(str), table.tolist(), table[:1], np.zeros(0), np.zeros((0, 3)), np.zeros((3, 0))),
        *(np.array(1.0), np.float64(1.0), np.float32(1), np.int64(1), np.int32(1), np.bool_(True), np.array([1.0]), 1.0, 1),
        *(np.array(-0.0), np.array(0.0), np.array(np.nan), np.array("a"), np.str_("a"), np.bytes_(b"a"), "a", b"a"),
        *(np.array(["a", None, 1], dtype=object), np.array(["a", None, True], dtype=object), np.array(1j)),
        *(np.datetime64("2020-01-01"), np.datetime64("2020-01-01", "s"), np.timedelta64(1, "D"), np.datetime64("NaT", "s")),
        *(records, records["b"], records[["a"]], records[0], np.zeros(2, [("x", "i2"), record[1]])),
        *(np.longdouble(1) / 3, np.longdouble(1) / 3 * 2, np.array([1], "g"), np.dtypes.StringDType, np.float64),
        *(np.array(["a"], np.dtypes.StringDType()), np.array(["b"], np.dtypes.StringDType())),
    ]
    equal = [
        (table, np.asfortranarray(table)),
        (table.T, np.ascontiguousarray(table.T)),
        (table[:, ::2], table[:, ::2].copy()),
        (table, table.copy()),
        (table, table.astype(">i8")),
        (np.datetime64("2020-01-01"), np.array("2020-01-01", ">M8[D]")[()]),
        (padded, dirty),
        (np.array([{"a": 1, "b": 2}], object), np.array([{"b": 2, "a": 1}], object)),
        (np.longdouble(1) / 3, np.longdouble(1) / np.longdouble(3)),
    ]
    check(different, equal, elsewhere)
    for wrong in (np.ma.masked_array([1], mask=[True]), np.ma.masked, np.rec.array([(1,)]), np.dtype("f8")):
        with pytest.raises(Unsupported):
            key(wrong)


def test_mapped_arrays(numpy: Any, tmp_path: Path) -> None:
    """An array in a file is what it holds."""
    array = numpy.memmap(tmp_path / "array", dtype="f8", mode="w+", shape=(3,))
    array[:] = [1, 2, 3]
    assert key(array) == key(numpy.array([1.0, 2.0, 3.0]))


def test_pandas(pandas: Any, elsewhere: Callable[[tuple[Any, ...]], str]) -> None:
    """Frames, series and indexes count by dtypes, labels and elements, extension types by all they know."""
    pd = pandas
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", None], "c": [0.5, float("nan")]})
    series, moments = pd.Series([1, 2]), pd.to_datetime(["2020-01-01", "2020-01-02"])
    levels = pd.MultiIndex.from_product([[1, 2], ["a", "b"]], names=["n", None])

    def categories(*arguments: Any, **options: Any) -> Any:
        return pd.Series(pd.Categorical(*arguments, **options))

    different = [
        *(frame, frame.iloc[::-1], frame[["b", "a", "c"]], frame.rename(columns={"a": "z"}), frame.astype({"a": "int32"})),
        *(frame.astype({"a": "Int64"}), frame.astype({"a": object}), frame.set_index("a"), frame.iloc[:1], frame.iloc[:0]),
        *(frame.T, pd.DataFrame(), frame.fillna({"c": 0}), frame.astype({"b": "category"}), frame.rename_axis("i")),
        *(pd.concat([frame, frame], axis=1), frame.set_axis([1.0, 2.0]), frame.set_axis(["0", "1"])),
        *(series, pd.Series([1, 2], name="a"), pd.Series([1, 2], index=[1, 2]), pd.Series([1.0, 2.0]), pd.Series(["1", "2"])),
        *(pd.Index([1, 2]), pd.Index([1, 2], name="a"), pd.Index([1.0, 2.0]), pd.Index(["1", "2"])),
        *(categories(["a", "b"]), categories(["a", "b"], ordered=True), categories(["a", "b"], categories=["b", "a"])),
        *(categories(["a", "b"], categories=["a", "b", "c"]), categories(["b", "a"]), categories([1, 2])),
        pd.Index(["a"], dtype="category"),
        *(moments, moments.tz_localize("UTC"), moments.tz_localize("Europe/Berlin"), pd.Series(moments), moments.as_unit("s")),
        *(levels, levels[::-1], levels.set_names(["n", "m"]), levels.set_levels([1.0, 2.0], level=0), levels.to_frame()),
        *(levels.set_levels(pd.CategoricalIndex([1, 2]), level=0), frame.iloc[[0, 0, 0, 0]].set_axis(levels)),
        *(pd.Series([1, None], dtype="Int64"), pd.Series([1, 0], dtype="Int64"), pd.Series([True, None], dtype="boolean")),
        *(pd.Series(["a", None], dtype="string"), pd.Series(["a", ""], dtype="string"), pd.array([1, None], dtype="Int64")),
        *(pd.interval_range(0, 2), pd.interval_range(0, 2, closed="left"), pd.interval_range(0.0, 2.0)),
        *(pd.period_range("2020-01", periods=2, freq="M"), pd.period_range("2020-01-01", periods=2, freq="D")),
        *(pd.Series([0, 1], dtype="Sparse[int64]"), pd.timedelta_range("1D", periods=2)),
        *(pd.Timestamp("2020-01-01"), pd.Timestamp("2020-01-01", tz="UTC"), pd.Timestamp("2020-01-01T00:00:00.000000001")),
        *(pd.Timedelta("1D"), pd.Period("2020-01"), pd.NaT, pd.NA),
        *(pd.Interval(0, 1), pd.Interval(0.0, 1.0), pd.Interval(0, 1, "left")),
    ]
    equal = [
        (frame, frame.copy()),
        (frame, pd.DataFrame({"a": frame["a"], "b": frame["b"], "c": frame["c"]})),
        (series, pd.Series([1, 2], index=pd.Index([0, 1]))),
        (pd.RangeIndex(2), pd.Index([0, 1])),
        (levels, pd.MultiIndex.from_tuples(list(levels), names=["n", None])),
        (frame.iloc[:1], frame[frame["a"] == 1]),
        (levels[:2], pd.MultiIndex.from_tuples([(1, "a"), (1, "b")], names=["n", None])),
    ]
    check(different, equal, elsewhere)
    for wrong in (pd.Series([object()]), pd.DataFrame({"a": [1, Sub("a")]}, dtype=object), pd.Int64Dtype()):
        with pytest.raises(Unsupported):
            key(wrong)


# --- how a call is spelled -------------------------------------------------------------------------------------------


def test_spellings() -> None:
    """A call has one key however it is spelled."""

    def f(a: Any, /, b: Any, c: Any = 3, *rest: Any, d: Any = 4, **more: Any) -> None: ...

    bind = binder(f)
    keys = {
        bind((1, 2), {}),
        bind((1,), {"b": 2}),
        bind((1,), {"c": 3, "b": 2}),
        bind((1, 2, 3), {}),
        bind((1, 2), {"d": 4}),
        bind((1, 2, 3), {"d": 4}),
    }
    assert len(keys) == 1
    others = [
        bind((1, 2, 3, 4), {}),
        bind((1, 2, 3, (4,)), {}),
        bind((1, 2), {"d": 5}),
        bind((1, 2), {"e": 4}),
        bind((1, 2), {"a": 1}),
        bind((1, 2), {"rest": ()}),
        bind((1, 2), {"more": {}}),
        bind((2, 1), {}),
    ]
    assert len(keys | set(others)) == 9
    assert bind((1, 2), {"x": 1, "y": 2}) == bind((1, 2), {"y": 2, "x": 1})
    for args, kwargs in (((), {}), ((1,), {}), ((1, 2), {"b": 2}), ((1,), {"a": 1})):
        with pytest.raises(TypeError, match="argument"):
            bind(args, kwargs)


def test_ignored_arguments() -> None:
    """What is ignored does not count, in its place or by keyword."""

    def f(a: Any, verbose: bool = False, *rest: Any, **more: Any) -> None: ...

    bind = binder(f, ignore=("verbose", "more"))
    assert bind((1,), {}) == bind((1, True), {}) == bind((1,), {"verbose": object(), "z": object()})
    assert bind((1, True, 2), {}) == bind((1, False, 2), {}) != bind((1,), {})
    assert bind((1,), {}) != bind((2,), {})
    with pytest.raises(ValueError, match=r"no parameter of .*f: nothing"):
        binder(f, ignore=("nothing",))


def test_callables() -> None:
    """Partial functions and objects that are called have keys, too; what has no signature needs key=."""

    def three(a: Any, b: Any, c: Any = 1) -> None: ...

    partly = functools.partial(three, 1, c=2)
    assert binder(partly)((2,), {}) == binder(partly)((2,), {"c": 2}) != binder(partly)((2,), {"c": 3})

    class Called:
        def __call__(self, a: Any, b: Any = 1) -> None: ...

    assert binder(Called())((1,), {}) == key(1, 1)
    with pytest.raises(TypeError, match="key="):
        binder(type)


# --- names -----------------------------------------------------------------------------------------------------------


def module_function() -> None: ...


class Owner:
    def method(self) -> None: ...

    @classmethod
    def made(cls) -> None: ...


def test_names_of_functions() -> None:
    """A function of a module is called after its place there; what has none needs a name."""
    assert name_of(module_function) == f"{__name__}.module_function"
    assert name_of(Owner.method) == f"{__name__}.Owner.method"
    assert name_of(len) == "builtins.len"

    def inner() -> None: ...

    for nameless in (inner, lambda: None, functools.partial(module_function), cast("Any", Owner())):
        with pytest.raises(ValueError, match="name="):
            name_of(nameless)


@pytest.mark.parametrize("bound", [Owner().method, Owner.made])
def test_bound_methods_have_no_name(bound: Callable[..., Any]) -> None:
    """The name of a bound method is the same for all objects and classes, whose results would be mixed up."""
    with pytest.raises(ValueError, match=r"Owner\.\w+ is bound to an object .*name="):
        name_of(bound)


SCRIPT = """
import multiprocessing
from pgdict.fingerprint import key_of, name_of
def f(): return {value}
class C:
    def f(self): return f()
def tell(): return name_of(f), key_of((C,))
if __name__ == "__main__":
    names = [*tell(), name_of(C.f)]
    if {spawn}:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            names += pool.apply(tell)
    print(*names, sep="\\n")
"""


def names(path: Path, value: int, *, module: bool = False, spawn: bool = False) -> list[str]:
    path.write_text(SCRIPT.format(value=value, spawn=spawn))
    arguments = ["-m", path.stem] if module else [str(path)]
    run = subprocess.run([sys.executable, *arguments], cwd=path.parent, capture_output=True, text=True, check=True)
    return run.stdout.splitlines()


def test_names_in_scripts(tmp_path: Path) -> None:
    """In a script the name follows the function's own source, and is the same in the processes that the script spawns."""
    function, of_class, method, *spawned = names(tmp_path / "one.py", 1, spawn=True)
    assert spawned == [function, of_class]
    assert function.startswith("one.f@")
    assert method.startswith("one.C.f@")
    assert names(tmp_path / "one.py", 2)[1:] == [of_class, method]
    assert names(tmp_path / "one.py", 2)[0] != function
    assert names(tmp_path / "two.py", 1)[0] != function
    assert names(tmp_path / "one.py", 1, module=True) == ["one.f", "(<class one.C>,)", "one.C.f"]


CELLS = r"""
import linecache
from pgdict.fingerprint import name_of

def cell(number, source):
    name = f"<cell {number}>"  # as IPython does it
    linecache.cache[name] = len(source), None, source.splitlines(True), name
    exec(compile(source, name, "exec"), globals())
    return name_of(f)

one = cell(1, "def f(x):\n    return x\n")
assert cell(2, "x = 1\n\ndef f(x):\n    return x\n") == one
assert cell(3, "def f(x):\n    return x + 1\n") != one
assert one.startswith("notebook.f@")
exec(compile("def f(x): return 1", "<nowhere>", "exec"))
try:
    name_of(f)
except ValueError as error:
    print(error)
"""


def test_names_in_notebooks() -> None:
    """A cell that is run again makes the same function, an edited one another; without a source a name is needed."""
    with program(CELLS, "", "") as notebook:
        assert result(notebook) == "the source of f is not to be found: give memoize a name="
