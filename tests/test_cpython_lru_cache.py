"""CPython's own tests of `functools.lru_cache`, run on memoized functions."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from pgdict import PgDict

if TYPE_CHECKING:
    from types import ModuleType

functools_tests: ModuleType = pytest.importorskip("test.test_functools", reason="this Python came without its own tests")

_EVICTS = "no result has to go for another one: they have a ttl, not a number"
_ARGUMENTS = "arguments become the text of a key, which objects of any class do not have"
CANNOT_HOLD: dict[str, tuple[type[Exception], str]] = {
    "test_lru": (AssertionError, _EVICTS),
    "test_lru_bug_35780": (AssertionError, _EVICTS),
    "test_lru_with_maxsize_negative": (AssertionError, _EVICTS),
    "test_lru_hash_only_once": (TypeError, _ARGUMENTS),
    "test_need_for_rlock": (TypeError, _ARGUMENTS),
    "test_lru_method": (TypeError, f"{_ARGUMENTS}: self neither, so that it has to be ignored"),
    "test_lru_type_error": (AssertionError, "a list is an argument like any other"),
    "test_lru_reentrancy_with_len": (RecursionError, "what replaces builtins.len cannot be written in Python that uses it"),
    "test_lru_with_types": (AssertionError, "square(3) and square(x=3) are one call"),
    "test_lru_cache_typed_is_not_recursive": (AssertionError, "types count wherever they are: repr((True,)) is not repr((1,))"),
    "test_kwargs_order": (AssertionError, "the order of keywords does not count"),
    "test_lru_cache_parameters": (AttributeError, "there are more than the two of cache_parameters()"),
}
"""The cases that cannot hold: how they end, and why."""
if hasattr(functools_tests.TestLRU, "test_common_signatures"):  # 3.11 does not ask for it
    CANNOT_HOLD["test_common_signatures"] = (AssertionError, "the methods are annotated")

NOT_SINGLE = {"test_lru_cache_threaded2"}  # asks that all threads compute the same at once


def cases() -> Iterator[Any]:
    """Yield the tests that this Python has."""
    for name in (name for name in vars(functools_tests.TestLRU) if name.startswith("test_")):
        marks = []
        if name in CANNOT_HOLD:
            error, reason = CANNOT_HOLD[name]
            marks.append(pytest.mark.xfail(raises=error, reason=reason, strict=True))
        yield pytest.param(name, marks=marks)


@pytest.fixture(scope="module")
def shared(server_url: str) -> Iterator[PgDict[Any, Any]]:
    """One table for all functions."""
    with PgDict[Any, Any](server_url, table=f"t_{secrets.token_hex(6)}") as shared:
        yield shared
        shared.drop()


def adapted(d: PgDict[Any, Any], **options: Any) -> Callable[..., Any]:
    """Return a `lru_cache` that memoizes: in name it has a size, and its `cache_info` has four numbers."""

    def lru_cache(maxsize: Any = 128, typed: bool = False) -> Any:
        def decorate(function: Any) -> Any:
            memoized = d.memoize(name=secrets.token_hex(6), typed=typed, **options)(function)
            whole = memoized.cache_info

            def cache_info() -> Any:
                info = whole()
                return functools._CacheInfo(info.hits + info.waits, info.misses, maxsize, info.entries)

            memoized.cache_info = cache_info  # type: ignore[method-assign]
            return memoized

        if callable(maxsize):
            function, maxsize = maxsize, 128
            return decorate(function)
        return decorate

    return lru_cache


def cached_by_module(x: int, y: int) -> int:
    return 3 * x + y


@pytest.mark.parametrize("name", list(cases()))
def test_lru_cache(shared: PgDict[Any, Any], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What CPython asks of `lru_cache` holds for a memoized function."""
    lru_cache = adapted(shared, single_flight=name not in NOT_SINGLE)
    by_module = lru_cache()(cached_by_module)
    monkeypatch.setitem(globals(), "cached_by_module", by_module)

    class Case(functools_tests.TestLRU, functools_tests.unittest.TestCase):  # type: ignore[name-defined, misc]
        module = SimpleNamespace(
            lru_cache=lru_cache,
            _CacheInfo=functools._CacheInfo,
            WRAPPER_ASSIGNMENTS=functools.WRAPPER_ASSIGNMENTS,
            partial=functools.partial,
        )
        cached_func = (by_module,)
        cached_meth = cached_staticmeth = by_module

    Case(name).debug()


def test_list_of_exceptions() -> None:
    """No case is excused that does not exist."""
    for name in (*CANNOT_HOLD, *NOT_SINGLE):
        assert hasattr(functools_tests.TestLRU, name)
