"""Memoized functions in one process: results, options, single flight among threads and tasks, faults, types."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import itertools
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any, assert_type, cast

import psycopg
import pytest
from processes import at_once, eventually

from pgdict import ABSENT, ConnectionFailed, InvalidKey, InvalidValue, LockTimeout, PgDict, PgDictError

if TYPE_CHECKING:
    from pgdict.memo import Memoized

D = PgDict[Any, Any]
HELD = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"


class Oops(Exception):
    pass


class Counted:
    """A function that counts its calls, and may be held up."""

    def __init__(self, result: Callable[[Any], Any] = lambda n: n) -> None:
        self.calls = 0
        self.result = result
        self.begun, self.go = threading.Event(), threading.Event()
        self.go.set()
        self.__qualname__ = "counted"

    def __call__(self, n: Any = 0) -> Any:
        self.calls += 1
        self.begun.set()
        assert self.go.wait(20)
        return self.result(n)


def counts(memoized: Any) -> tuple[int, ...]:
    """The hits, misses, waits and errors."""
    return tuple(memoized.cache_info()[:4])


@pytest.fixture
def other(server_url: str, table: str, d: D) -> Iterator[D]:
    """Somebody else: another session, with locks of its own, as another process."""
    with D(server_url, table=table) as other:
        yield other


# --- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 0, "", [], {"a": (1, {2})}, float("inf"), b"x" * 1_000_000])
def test_results(d: D, other: D, value: Any) -> None:
    """Any value that the codec holds is a result, None as well; others find it."""
    counted = Counted(lambda _: value)
    f = d.memoize(name="f")(counted)
    assert [f(1), f(1)] == [value, value]
    assert other.memoize(name="f")(Counted())(1) == value
    assert counted.calls == 1
    assert counts(f) == (1, 1, 0, 0)


def test_results_are_copies(d: D) -> None:
    """Who changes a result changes nobody else's."""
    f = d.memoize(name="f")(lambda: [1])
    f().append(2)
    f().append(3)
    assert f() == [1]


def test_exceptions_are_not_stored(d: D) -> None:
    """An exception reaches the caller as it is, with the caller's own context, and the next call computes."""
    error = Oops("a", 1)

    def result(n: int) -> int:
        if counted.calls == 1:
            raise error
        return n

    counted = Counted(result)
    f = d.memoize(name="f")(counted)
    with pytest.raises(Oops) as caught:
        f(1)
    assert caught.value is error
    assert error.__context__ is error.__cause__ is None
    assert f(1) == f(1) == 1
    assert counts(f) == (1, 2, 0, 1)
    assert f.cache_info().entries == 1


def test_unsupported_results(d: D, server_url: str, table: str) -> None:
    """A result that cannot be stored raises, naming the function and the reason, and is not stored."""
    f = d.memoize(name="f")(Counted(lambda _: [object()]))
    for _ in range(2):
        with pytest.raises(TypeError, match=r"^the result of counted cannot be stored: .*object"):
            f()
    with (
        D(server_url, table=table, max_value_size=1000) as small,
        pytest.raises(InvalidValue, match=r"^the result of counted cannot be stored: .*1000"),
    ):
        small.memoize(name="large")(Counted(lambda _: "x" * 1001))()
    with pytest.raises(InvalidValue, match=r"the result of .*lambda.* cannot be stored"):
        d.namespace("text", codec="json").memoize(name="f")(lambda: float("nan"))()
    assert f.cache_info().entries == 0
    assert counts(f) == (0, 2, 0, 0)


def test_absent_is_no_result(server_url: str, table: str) -> None:
    """What stands for no value at all is not stored, whatever the codec."""
    for codec in ("msgpack", "pickle"):
        with D(server_url, table=table, codec=codec) as d:
            f = d.memoize(name=codec)(Counted(lambda _: ABSENT))
            with pytest.raises(TypeError, match="cannot be stored"):
                f()


def test_unreadable_result(d: D, server_url: str, table: str) -> None:
    """A stored result that cannot be read is an error, until it is computed anew."""
    with D(server_url, table=table, codec="pickle") as pickling:
        pickling.memoize(name="f")(lambda: 1 + 1j)()
    f = d.memoize(name="f")(lambda: 2)
    with pytest.raises(ValueError, match="pickle"):
        f()
    assert f.refresh() == f() == 2


# --- keys and names --------------------------------------------------------------------------------------------------


def test_spellings_share(d: D) -> None:
    """Equal calls share a result however they are spelled; others never do."""
    calls = itertools.count()

    @d.memoize(name="f")
    def f(a: Any, b: Any = 2, *rest: Any, c: Any = 3, **more: Any) -> int:
        return next(calls)

    assert {f(1), f(1, 2), f(1, b=2), f(a=1, b=2, c=3), f(c=3, a=1)} == {0}
    different: list[tuple[Any, ...]] = [(1,), ("1",), (1.0,), (True,), ("a b",), ("a", "b"), (1, 2, 3)]
    assert len({f(*call) for call in different} | {f(1, d=4)}) == 8
    assert len({f.cache_key(*call) for call in different} | {f.cache_key(1, d=4)}) == 8


def test_typed(d: D) -> None:
    """With typed=False equal numbers share a result, as in a dict."""
    f = d.memoize(name="f", typed=False)(lambda n: repr(n))
    assert {f(1), f(1.0), f(True)} == {"1"}
    assert f("1") == "'1'"


def test_own_key(d: D) -> None:
    """key= makes the key from the arguments: whatever is a key of a dictionary."""

    @d.memoize(name="f", key=lambda user, **_: (user["id"], None))
    def f(user: Any, *, session: Any) -> Any:
        return user["name"]

    assert f({"id": 1, "name": "a"}, session=object()) == "a"
    assert f({"id": 1, "name": "b"}, session=object()) == "a"
    assert f.cache_key({"id": 7}, session=None) == (7, None)
    assert f.invalidate({"id": 1}, session=None)
    assert f({"id": 1, "name": "b"}, session=object()) == "b"
    with pytest.raises(TypeError, match="unhashable"):
        d.memoize(name="g", key=lambda n: [n])(lambda n: n)(1)
    with pytest.raises(TypeError, match="cannot be part of a key"):
        d.memoize(name="h")(lambda n: n)(object())
    assert d.memoize(name="i", key=lambda *_: 0)(max)(1, 2) == 2


def test_names_and_versions(d: D) -> None:
    """Results are found by the name, and another version does not find them."""

    def value(n: int, **options: Any) -> int:
        return d.memoize(name="f", **options)(lambda: n)()

    assert [value(1), value(2), value(3, version=1), value(4, version="1"), value(5, version=2)] == [1, 1, 3, 3, 5]
    for name, version in (("a:b", None), ("f", "1:2")):
        with pytest.raises(InvalidKey, match="':'"):
            d.memoize(name=name, version=version)(lambda: None)
    with pytest.raises(ValueError, match="name="):
        d.memoize()(lambda: None)
    with pytest.raises(ValueError, match="name="):
        d.memoize()(functools.partial(int, "1"))


def test_namespaces(d: D) -> None:
    """In a namespace the results are that namespace's, and live in its codec."""
    users, posts = d.namespace("users"), d.namespace("posts", codec="json")
    f, g = users.memoize(name="f")(lambda n: [n, "user"]), posts.memoize(name="f")(lambda n: [n, "post"])
    assert [f(1), g(1), f(1), g(1)] == [[1, "user"], [1, "post"]] * 2
    assert list(users) == list(posts) == ["memo:f:(1,)"]
    users.clear()
    assert (f.cache_info().entries, g.cache_info().entries) == (0, 1)


def test_wrong_options(d: D) -> None:
    """Options that make no sense are refused, at once."""
    wrong: dict[str, Any]
    for wrong in (
        {"ttl": 0},
        {"ttl": -1},
        {"ttl": float("nan")},
        {"refresh": 1},
        {"stale": 1},
        {"ttl": 2, "refresh": 2},
        {"ttl": 2, "refresh": 0},
        {"ttl": 2, "stale": -1},
        {"wait": -1},
        {"ignore": ("nothing",)},
    ):
        with pytest.raises(ValueError, match=list(wrong)[-1]):
            d.memoize(name="f", **wrong)(lambda: None)
    for wrong in ({"ttl": "1"}, {"ignore": "self"}, {"refresh": "1", "ttl": 2}):
        with pytest.raises(TypeError, match="str"):
            d.memoize(name="f", **wrong)(lambda: None)
    with pytest.raises(TypeError, match="decorates a function"):
        d.memoize(name="f")(3)  # type: ignore[arg-type]


def test_forgotten_parentheses(d: D) -> None:
    """The first call of a function under a bare `@d.memoize` says what is wrong."""

    @d.memoize
    def double(n: int) -> int:
        return 2 * n

    with pytest.raises(TypeError, match=r"decorates a function, not int: 3 \(.*parentheses"):
        double(3)  # type: ignore[arg-type]


def test_generators_are_refused(d: D) -> None:
    """A generator's values cannot be stored."""

    def one() -> Iterator[int]:
        yield 1

    async def two() -> AsyncIterator[int]:
        yield 1

    class Three:
        def __call__(self) -> Iterator[int]:
            yield 1

    for generator in (one, two, Three(), functools.partial(one)):
        with pytest.raises(TypeError, match="generator"):
            d.memoize(name="f")(generator)
    with pytest.raises(TypeError, match=r"result of .* cannot be stored: .*generator"):
        d.memoize(name="g")(lambda: one())()


# --- what the function gets ------------------------------------------------------------------------------------------


def test_invalidate_refresh_clear(d: D, other: D) -> None:
    """Results can be forgotten or computed anew, one or all, for everybody."""
    counted = Counted(lambda n: [n, counted.calls])
    f = d.memoize(name="f")(counted)
    elsewhere = other.memoize(name="f")(lambda n: pytest.fail(f"computed {n}"))
    d["memo"] = 1
    assert [f(1), f(2)] == [[1, 1], [2, 2]]
    assert f.refresh(1) == f(1) == elsewhere(1) == [1, 3]
    assert f.invalidate(n=1) is True
    assert f.invalidate(1) is False
    assert f(1) == [1, 4]
    assert f.cache_info() == (1, 4, 0, 0, 2)
    f.cache_clear()
    assert f.cache_info() == (0, 0, 0, 0, 0)
    assert f(2) == [2, 5]
    assert d["memo"] == 1


def test_wrapper(d: D) -> None:
    """The function keeps its name, signature and documentation, and can be called around the results."""

    def f(a: int, *, b: str = "") -> bytes:
        """Document."""
        return b.encode() * a

    memoized = d.memoize(name="f")(f)
    assert memoized.__wrapped__ is f
    assert inspect.signature(memoized) == inspect.signature(f)
    assert (memoized.__doc__, memoized.__name__, memoized.__module__) == ("Document.", "f", __name__)  # type: ignore[attr-defined]
    assert memoized.__wrapped__(2, b="x") == b"xx"
    assert memoized.cache_info().misses == 0


def typing_of(d: D) -> None:
    """Parameters and result are those of the function; mypy checks it."""

    @d.memoize(name="f")
    def f(a: int, *, b: str = "") -> bytes:
        return b.encode() * a

    @d.memoize(60, name="g")
    async def g(a: int) -> str:
        return str(a)

    class C:
        @d.memoize(name="m", ignore=("self",))
        def m(self, a: int) -> str:
            return str(a)

    assert_type(f(1, b="x"), bytes)
    assert_type(f.refresh(1), bytes)
    assert_type(f.invalidate(1, b="x"), bool)
    assert_type(asyncio.run(g(1)), str)
    assert_type(C().m(1), str)
    assert_type(C.m.invalidate(C(), 1), bool)
    f("x")  # type: ignore[arg-type]
    f(1, c=1)  # type: ignore[call-arg]
    _ = g()  # type: ignore[call-arg]
    C().m("x")  # type: ignore[arg-type]
    f.invalidate("x")  # type: ignore[arg-type]


class Thing:
    """Methods of every kind are memoized below."""

    factor = 10

    def __init__(self, factor: int) -> None:
        self.factor = factor


def test_methods(d: D) -> None:
    """Methods are memoized without their object, class and static methods in either order of the decorators."""

    class Sub(Thing):
        @d.memoize(name="method", ignore=("self",))
        def method(self, n: int) -> int:
            return self.factor * n

        @classmethod
        @d.memoize(name="inner_class", ignore=("cls",))
        def inner_class(cls, n: int) -> int:
            return cls.factor * n

        @staticmethod
        @d.memoize(name="inner_static")
        def inner_static(n: int) -> int:
            return n

    for name, kind in (("outer_class", classmethod), ("outer_static", staticmethod)):
        function: Any = (lambda cls, n: cls.factor * n) if kind is classmethod else (lambda n: n)
        ignore = ("cls",) if kind is classmethod else ()
        decorated: Any = kind(function)
        setattr(Sub, name, d.memoize(name=name, ignore=ignore)(decorated))
    one, two, untyped = Sub(2), Sub(3), {"cls": Sub, "object": Sub(5)}
    assert [one.method(1), two.method(1), two.method(2)] == [2, 2, 6]
    bound: Any = one.method
    assert Sub.method.cache_info() == bound.cache_info() == (1, 2, 0, 0, 2)
    assert Sub.method.invalidate(one, 1)
    assert two.method(1) == 3
    for owner in untyped.values():
        for name, result in (("inner_class", 10), ("outer_class", 10), ("inner_static", 1), ("outer_static", 1)):
            method = getattr(owner, name)
            assert method(1) == result
            assert method.cache_info().entries == 1
    with pytest.raises(TypeError, match=r"argument 'self' of .* cannot be part of a key"):
        d.memoize(name="no")(Thing.__init__)(one, 1)


def by_class(cls: type, n: int) -> str:
    return f"{cls.__name__}{n}"


def test_classes_are_arguments(d: D) -> None:
    """A class method that does not ignore its class has results for each."""
    f = d.memoize(name="f")(by_class)
    assert [f(int, 1), f(Thing, 1), f(int, 1)] == ["int1", "Thing1", "int1"]


# --- time to live ----------------------------------------------------------------------------------------------------


def test_ttl(d: D) -> None:
    """A result lives for its ttl: seconds, a timedelta, or a function of the result."""
    for name, ttl, left in (
        ("a", 100, 100),
        ("b", timedelta(minutes=1), 60),
        ("c", lambda result: result * 10, 30),
        ("d", lambda result: timedelta(days=result), 3 * 86400),
        ("e", None, None),
        ("f", lambda _: None, None),
    ):
        f = d.memoize(cast("Any", ttl), name=name)(lambda: 3)
        f()
        space = d.namespace("memo", name)
        ((key, _),) = space.items()
        found = space.ttl(key)
        assert found == left or (found is not None and left is not None and left - 2 < found <= left)
    g = d.memoize(0.05, name="g")(counted := Counted())
    assert g() == 0
    assert eventually(lambda: g() == 0 and counted.calls == 2, 5)
    with pytest.raises(ValueError, match="ttl"):
        d.memoize(lambda _: -1, name="h")(lambda: 1)()


def test_default_ttl_does_not_count(server_url: str, table: str) -> None:
    """The dictionary's own ttl is for what it stores itself: results without a ttl live for ever."""
    with D(server_url, table=table, ttl=10) as d:
        f = d.memoize(name="f")(lambda: 1)
        f()
        assert d.namespace("memo", "f").ttl(f.cache_key()) is None


def test_refresh_ahead(d: D, other: D) -> None:
    """Shortly before the end of the ttl one caller computes anew, while the others get the old result at once."""
    counted = Counted(lambda _: counted.calls)
    f = d.memoize(60, name="f", refresh=30)(counted)
    elsewhere = other.memoize(60, name="f", refresh=30)(lambda n=0: pytest.fail(f"computed {n} twice"))
    assert [f(), f(), elsewhere()] == [1, 1, 1]
    d.namespace("memo", "f").expire(f.cache_key(), 20)
    counted.go.clear()
    counted.begun.clear()
    with ThreadPoolExecutor(1) as pool:
        new = pool.submit(f)
        assert counted.begun.wait(5)
        began = time.monotonic()
        assert [f(), elsewhere(), f()] == [1, 1, 1]
        assert time.monotonic() - began < 1
        counted.go.set()
        assert new.result(5) == 2
    assert [f(), elsewhere()] == [2, 2]


def test_failed_refresh(d: D, caplog: pytest.LogCaptureFixture) -> None:
    """When that fails, the old result is returned as long as it lives, and a warning logged."""
    counted = Counted(lambda _: 1 // (2 - counted.calls) if counted.calls < 3 else 3)
    f = d.memoize(60, name="f", refresh=30)(counted)
    assert f() == 1
    d.namespace("memo", "f").expire(f.cache_key(), 20)
    with caplog.at_level(logging.WARNING, "pgdict"):
        assert f() == 1
    assert "counted failed with ZeroDivisionError" in caplog.text
    assert f() == 3
    assert counts(f) == (0, 3, 0, 1)


def test_stale_on_error(d: D, caplog: pytest.LogCaptureFixture) -> None:
    """With stale= the old result stands in for one that cannot be computed, for so long after its ttl."""
    broken = False

    @d.memoize(0.1, name="f", stale=0.5)
    def f() -> int:
        if broken:
            raise Oops
        return 1

    assert f() == 1
    broken = True
    time.sleep(0.15)
    with caplog.at_level(logging.WARNING, "pgdict"):
        assert f() == 1
    assert "Oops" in caplog.text
    time.sleep(0.5)
    with pytest.raises(Oops):
        f()
    assert counts(f) == (0, 3, 0, 2)


def test_stale_is_computed_anew(d: D) -> None:
    """A stale result is not returned when computing succeeds, and who waits for it gets the new one."""
    counted = Counted(lambda _: counted.calls)
    f = d.memoize(0.05, name="f", stale=60)(counted)
    assert f() == 1
    time.sleep(0.1)
    f2 = d.memoize(60, name="f", stale=60)(counted)
    counted.go.clear()
    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(f2) for _ in range(4)]
        time.sleep(0.1)
        counted.go.set()
        assert [result.result(5) for result in results] == [2] * 4


# --- single flight ---------------------------------------------------------------------------------------------------


def test_single_flight_of_threads(d: D) -> None:
    """Of many threads that miss at once, one computes."""
    counted = Counted()
    counted.go.clear()
    f = d.memoize(name="f")(counted)
    timer = threading.Timer(0.2, counted.go.set)
    timer.start()
    assert at_once(*[lambda: f(3)] * 32) == [3] * 32
    timer.join()
    assert counted.calls == 1
    hits, misses, waits, errors = counts(f)
    assert (hits + waits, misses, errors) == (31, 1, 0)
    assert waits > 20


def test_no_single_flight_when_asked(d: D) -> None:
    """With single_flight=False everybody computes, and nobody waits."""
    all_inside = threading.Barrier(4)
    f = d.memoize(name="f", single_flight=False)(lambda: all_inside.wait(10) >= 0)
    assert at_once(*[f] * 4) == [True] * 4
    assert counts(f) == (0, 4, 0, 0)


def test_failing_together(d: D) -> None:
    """When computing fails, everybody who waited computes in turn, one after the other."""
    inside: list[int] = []

    def fail() -> None:
        inside.append(1)
        time.sleep(0.01)
        assert len(inside) == 1
        inside.pop()
        raise Oops

    f = d.memoize(name="f")(fail)
    assert [type(error) for error in at_once(*[f] * 8)] == [Oops] * 8
    assert counts(f) == (0, 8, 0, 8)


def test_bounded_wait(d: D, other: D) -> None:
    """wait= is the most seconds to wait for somebody else, here or in another process."""
    counted = Counted()
    counted.go.clear()
    f = d.memoize(name="f", wait=0.2)(counted)
    elsewhere = other.memoize(name="f", wait=timedelta(seconds=0.2))(counted)
    with ThreadPoolExecutor(1) as pool:
        computing = pool.submit(f, 5)
        assert counted.begun.wait(5)
        for waiting in (f, elsewhere):
            began = time.monotonic()
            with pytest.raises(LockTimeout, match=r"counted was still being computed after 0\.2"):
                waiting(5)
            assert 0.2 <= time.monotonic() - began < 2
        counted.go.set()
        assert computing.result(5) == 5
    assert f(5) == elsewhere(5) == 5
    assert counted.calls == 1


@pytest.mark.parametrize("max_size", [1, 2])
def test_recursion(server_url: str, table: str, max_size: int) -> None:
    """Recursive functions, and those that call others or use the dictionary, need no more than one connection."""
    with D(server_url, table=table, max_size=max_size, timeout=5) as d:

        @d.memoize(name="fib")
        def fib(n: int) -> int:
            d.increment("computed")
            return n if n < 2 else fib(n - 1) + double_fib(n - 2) // 2

        @d.memoize(name="double")
        def double_fib(n: int) -> int:
            with d.transaction():
                d["last"] = n
                return 2 * fib(n)

        assert at_once(*[lambda: fib(60)] * 8) == [1548008755920] * 8
        assert d["computed"] <= 61 * 8
        assert fib.cache_info().entries == 61
        deep = d.memoize(name="deep")(lambda n: n and 1 + deep(n - 1))
        assert deep(150) == 150


def test_recursion_into_itself(d: D) -> None:
    """A call with the arguments that are just being computed is a plain call: it does not wait for itself."""
    calls: list[int] = []

    @d.memoize(name="f")
    def f(n: int) -> int:
        calls.append(n)
        return n if len(calls) > 2 else f(n) + 1

    assert f(1) == 3
    assert calls == [1, 1, 1]


def test_waiting_holds_no_connection(server_url: str, table: str) -> None:
    """While many compute and many wait, the only connection is free."""
    with D(server_url, table=table, max_size=1, timeout=5) as d:
        counted = Counted()
        counted.go.clear()
        f = d.memoize(name="f")(counted)
        with ThreadPoolExecutor(20) as pool:
            results = [pool.submit(f, n % 4) for n in range(20)]
            assert eventually(lambda: counted.calls == 4)
            began = time.monotonic()
            for n in range(50):
                d["k"] = n
            assert time.monotonic() - began < 2
            counted.go.set()
            assert [result.result(10) for result in results] == [n % 4 for n in range(20)]
        assert counted.calls == 4


def test_clear_while_computing(d: D) -> None:
    """What is being computed while all results are cleared is stored all the same; who waits for it gets it."""
    counted = Counted()
    counted.go.clear()
    f = d.memoize(name="f")(counted)
    with ThreadPoolExecutor(3) as pool:
        results = [pool.submit(f, 1) for _ in range(3)]
        assert counted.begun.wait(5)
        f.cache_clear()
        assert not f.invalidate(1)
        counted.go.set()
        assert [result.result(5) for result in results] == [1, 1, 1]
    assert counted.calls == 1
    assert f.cache_info().entries == 1


# --- transactions ----------------------------------------------------------------------------------------------------


def test_inside_a_transaction(d: D, other: D) -> None:
    """Inside a transaction a call is part of it, and waits for nobody."""
    counted = Counted()
    f, elsewhere = d.memoize(name="f")(counted), other.memoize(name="f")(counted)
    with contextlib.suppress(Oops), d.transaction():
        assert f(1) == f(1) == 1
        assert elsewhere(2) == f(2) == 2
        raise Oops
    assert counted.calls == 2
    assert f(2) == 2
    assert counted.calls == 2
    assert f(1) == 1
    assert counted.calls == 3
    counted.go.clear()
    counted.begun.clear()
    with ThreadPoolExecutor(1) as pool:
        computing = pool.submit(elsewhere, 3)
        assert counted.begun.wait(5)
        with d.transaction():
            assert d.memoize(name="f")(lambda n: -n)(3) == -3
        counted.go.set()
        assert computing.result(5) == 3


def test_function_with_a_transaction(d: D) -> None:
    """A function may make a transaction of its own, and call others inside."""
    inner = d.memoize(name="inner")(lambda n: n + 1)

    @d.memoize(name="outer")
    def outer(n: int) -> int:
        with d.transaction():
            d["seen"] = n
            return int(inner(n))

    assert at_once(*[lambda: outer(1)] * 4) == [2] * 4
    assert (d["seen"], inner(1)) == (1, 2)


def test_joined_connection(server_url: str, table: str) -> None:
    """On the application's own connection results are part of its transaction."""
    with psycopg.connect(server_url) as connection:
        d = D(connection=connection, table=table)
        counted = Counted()
        f = d.memoize(name="f")(counted)
        connection.commit()
        assert [f(1), f(1)] == [1, 1]
        connection.rollback()
        assert f(1) == 1
        assert counted.calls == 2
        assert f.cache_info().entries == 1
        assert at_once(*[lambda: f(2)] * 4) == [2] * 4
        connection.commit()


# --- faults ----------------------------------------------------------------------------------------------------------


def cut(server_url: str, name: str) -> int:
    """End all connections of that name, as a server does that restarts."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        ended = connection.execute(
            "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE application_name = %s", (name,)
        ).fetchone()
        assert ended
        return int(ended[0])


def test_lost_connections(server_url: str, table: str) -> None:
    """A server that restarts is not noticed: not between calls, while computing, nor while waiting."""
    with D(server_url, table=table, application_name=table) as d, D(server_url, table=table, application_name=table) as other:
        counted = Counted()
        f, elsewhere = d.memoize(name="f")(counted), other.memoize(name="f")(Counted(lambda n: -n))
        assert f(1) == 1
        assert cut(server_url, table) >= 2
        assert [f(1), f(2)] == [1, 2]
        counted.go.clear()
        counted.begun.clear()
        with ThreadPoolExecutor(8) as pool:
            results = [pool.submit(f, 3) for _ in range(4)]
            assert counted.begun.wait(5)
            waiting = pool.submit(elsewhere, 3)
            time.sleep(0.1)
            assert cut(server_url, table) >= 2
            assert waiting.result(5) == -3  # the lock is gone with its connection
            counted.go.set()
            assert {result.result(5) for result in results} <= {3, -3}
        assert counted.calls == 3
        assert f(4) == 4


def test_closed(d: D) -> None:
    """After close a call says so."""
    f = d.memoize(name="f")(lambda: 1)
    d.close()
    with pytest.raises(PgDictError, match="closed"):
        f()
    with pytest.raises(PgDictError, match="closed"):
        f.cache_info()


def test_unreachable_server(server_url: str, table: str) -> None:
    """Without a server the call fails with its reason within the timeout; nothing is computed."""
    counted = Counted()
    with D(server_url, table=table, timeout=0.5, application_name=table) as d:
        f = d.memoize(name="f")(counted)
        d._session.source._connect = d._session._connect = unreachable  # type: ignore[attr-defined]
        cut(server_url, table)
        with pytest.raises(ConnectionFailed):
            f()
    assert counted.calls == 0


def unreachable() -> Any:
    return psycopg.connect("host=/nowhere")


def test_lock_is_freed(d: D, other: D) -> None:
    """Whatever ends a computation frees its lock."""
    for error in (Oops, KeyboardInterrupt, SystemExit):

        def fail(error: type[BaseException] = error) -> None:
            raise error

        with pytest.raises(error):
            d.memoize(name="f", key=lambda: 0)(fail)()
        assert other.memoize(name="f", key=lambda: 0, wait=0.5)(lambda: 1)() == 1
        other.memoize(name="f", key=lambda: 0)(lambda: 1).invalidate()


# --- async -----------------------------------------------------------------------------------------------------------


def test_async(d: D) -> None:
    """A coroutine function is memoized as one: awaited, with the same attributes."""
    calls = itertools.count()

    @d.memoize(60, name="f")
    async def f(n: int) -> list[int]:
        await asyncio.sleep(0)
        return [n, next(calls)]

    async def main() -> None:
        assert inspect.iscoroutinefunction(f)
        assert await f(1) == await f(n=1) == [1, 0]
        assert await f.refresh(1) == await f(1) == [1, 1]
        assert f.invalidate(1)
        assert await f(1) == [1, 2]
        assert f.cache_info() == (2, 3, 0, 0, 1)
        f.cache_clear()
        assert await f.__wrapped__(5) == [5, 3]

    asyncio.run(main())


def test_async_callables(d: D) -> None:
    """So are partial coroutine functions and objects whose call is one."""

    class Called:
        async def __call__(self, n: int) -> int:
            return n + 1

    async def add(a: int, b: int) -> int:
        return a + b

    async def main() -> None:
        called: Any = d.memoize(name="f")(Called())
        partly: Any = d.memoize(name="g")(functools.partial(add, 1))
        assert [await called(1), await called(1), await partly(2), await partly(2)] == [2, 2, 3, 3]

    asyncio.run(main())


def test_async_does_not_block(d: D) -> None:
    """The loop runs on while a task computes, waits, or talks to a slow server."""

    @d.memoize(name="f")
    async def f() -> int:
        await asyncio.sleep(0.3)
        return 1

    async def main() -> None:
        ticks = []

        async def tick() -> None:
            while True:
                ticks.append(time.monotonic())
                await asyncio.sleep(0.005)

        ticking = asyncio.create_task(tick())
        with psycopg.connect(d.url) as connection:
            connection.execute(f'LOCK TABLE "{d._origin.options.table}"'.encode())
            waiting = [asyncio.create_task(f()) for _ in range(4)]
            await asyncio.sleep(0.2)
            connection.rollback()
        assert await asyncio.gather(*waiting) == [1] * 4
        ticking.cancel()
        gaps = sorted(after - before for before, after in itertools.pairwise(ticks))
        assert gaps[-5] < 0.1
        assert len(ticks) > 20

    asyncio.run(main())


def test_many_tasks(d: D, other: D) -> None:
    """Of many tasks that wait for one result, one asks the server, be it computed here or elsewhere."""
    counted = Counted()

    @d.memoize(name="f")
    async def f(n: int) -> int:
        counted.calls += 1
        await asyncio.sleep(1)
        return n

    asked = 0
    run = d._session.run

    def counting(operation: Any) -> Any:
        nonlocal asked
        asked += 1
        return run(operation)

    async def main() -> None:
        assert await asyncio.gather(*[f(1) for _ in range(64)]) == [1] * 64

    d._session.run = counting  # type: ignore[method-assign]
    asyncio.run(main())
    assert counted.calls == 1
    assert asked <= 64 + 64 + 2 + 10
    asked = 0
    elsewhere = Counted()
    elsewhere.go.clear()
    slow = other.memoize(name="f")(elsewhere)
    with ThreadPoolExecutor(1) as pool:
        computing = pool.submit(slow, 2)
        assert elsewhere.begun.wait(5)
        timer = threading.Timer(1, elsewhere.go.set)
        timer.start()

        async def main_again() -> None:
            assert await asyncio.gather(*[f(2) for _ in range(64)]) == [2] * 64

        asyncio.run(main_again())
        timer.join()
        assert computing.result(5) == 2
    assert counted.calls == 1
    assert asked <= 64 + 64 + 60


def test_cancelled_tasks(d: D, other: D) -> None:
    """A task that is cancelled while it computes, waits, or asks for the lock leaves nothing behind."""

    @d.memoize(name="f")
    async def f(n: int) -> int:
        await asyncio.sleep(0.01 if n < 0 else 60)
        return n

    async def main() -> None:
        for delay in (0, 0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.05):
            tasks = [asyncio.create_task(f(1)) for _ in range(4)]
            await asyncio.sleep(delay)
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(end) for end in ends] == [asyncio.CancelledError] * 4
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(f(1), 0.05)

    asyncio.run(main())
    assert other.memoize(name="f", wait=1)(lambda n: -n)(1) == -1
    locks = d._session.locks._connection
    assert locks
    assert locks.execute(HELD).fetchone() == (0,)


def test_abandoned_coroutine(d: D, other: D) -> None:
    """A coroutine that is closed half-way frees its lock as well."""

    @d.memoize(name="f")
    async def f() -> int:
        begun.set()
        await asyncio.sleep(60)
        return 1

    begun = threading.Event()

    async def until_begun() -> None:
        coroutine = f()
        running = asyncio.ensure_future(driven(coroutine))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        running.cancel()
        await asyncio.wait([running])
        coroutine.close()

    async def driven(coroutine: Any) -> None:
        """Do what a task does, except that it forgets the coroutine when it is cancelled."""
        while True:
            future = coroutine.send(None)
            future._asyncio_future_blocking = False
            await asyncio.wait([future])

    asyncio.run(until_begun())
    assert other.memoize(name="f", wait=1)(lambda: 2)() == 2


def test_async_recursion(server_url: str, table: str) -> None:
    """Coroutine functions that call themselves, each other, or sync ones, need no more than one connection."""
    with D(server_url, table=table, max_size=1, timeout=5) as d:
        sync = d.memoize(name="sync")(lambda n: d.increment("sync") and n)

        @d.memoize(name="f")
        async def f(n: int) -> int:
            return n if n < 2 else sum(await asyncio.gather(f(n - 1), g(n - 2)))

        @d.memoize(name="g")
        async def g(n: int) -> int:
            return await f(sync(n))

        async def main() -> list[int]:
            return await asyncio.gather(*[f(20) for _ in range(8)])

        assert asyncio.run(main()) == [6765] * 8
        assert f.cache_info().entries == 21


def test_circle_of_tasks(d: D) -> None:
    """Two tasks that wait for each other's result go on by themselves."""

    async def main() -> None:
        both = asyncio.Barrier(2)

        async def call(name: str, depth: int) -> str:
            if depth == 2:
                await both.wait()
            if not depth:
                return name
            other = "g" if name == "f" else "f"
            texts = await asyncio.gather(functions[other](other, depth - 1), functions["h"]("h", 0))
            return name + texts[0]

        functions: dict[str, Memoized[[str, int], Coroutine[Any, Any, str]]] = {
            name: d.memoize(name=name, ignore=("depth",))(call) for name in "fgh"
        }
        results = await asyncio.wait_for(asyncio.gather(functions["f"]("f", 2), functions["g"]("g", 2)), 10)
        assert [text[:2] for text in results] == ["fg", "gf"]

    asyncio.run(main())


def test_async_inside_a_transaction(d: D) -> None:
    """In a transaction of the loop's thread a coroutine function is part of it."""

    @d.memoize(name="f")
    async def f(n: int) -> int:
        return n

    async def main() -> None:
        with contextlib.suppress(Oops), d.transaction():
            assert await f(1) == 1
            raise Oops

    asyncio.run(main())
    assert f.cache_info().entries == 0


# --- speed -----------------------------------------------------------------------------------------------------------


def test_speed_of_a_hit(d: D) -> None:
    """A hit costs little more than d[k]."""
    f = d.memoize(name="f")(lambda *words: words[0])
    d["k"] = f("a", 1)

    def seconds(call: Callable[[], Any]) -> float:
        began = time.perf_counter()
        for _ in range(200):
            call()
        return time.perf_counter() - began

    times = [(seconds(lambda: f("a", 1)), seconds(lambda: d["k"])) for _ in range(9)]
    assert min(hit for hit, _ in times) < 2 * min(get for _, get in times)
