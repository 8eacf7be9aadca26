"""CPython's own tests of mappings, run on a dictionary in PostgreSQL."""

from __future__ import annotations

import operator
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pgdict import PgDict

if TYPE_CHECKING:
    from types import ModuleType

mapping_tests: ModuleType = pytest.importorskip("test.mapping_tests", reason="this Python came without its own tests")

_CLASSES = "keys are those that have a stored form, not objects of any class"
CANNOT_HOLD: dict[str, tuple[type[Exception], str]] = {
    "TestMappingProtocol.test_constructor": (TypeError, "the constructor takes configuration; items come through update"),
    "TestMappingProtocol.test_copy": (AssertionError, "copy() is a plain dict, not another table"),
    "TestMappingProtocol.test_fromkeys": (
        AttributeError,
        "keys alone do not say where the data is: d.update(dict.fromkeys(...))",
    ),
    "TestMappingProtocol.test_setdefault": (IndexError, "values are copies: d.setdefault(key, []).append(x) stores only []"),
    "TestHashMappingProtocol.test_fromkeys": (AttributeError, "as above"),
    "TestHashMappingProtocol.test_setdefault": (IndexError, "as above"),
    "TestHashMappingProtocol.test_eq": (TypeError, _CLASSES),
    "TestHashMappingProtocol.test_getitem": (TypeError, _CLASSES),
    "TestHashMappingProtocol.test_pop": (TypeError, _CLASSES),
    "TestHashMappingProtocol.test_repr": (AssertionError, "repr says where the data is, too"),
    "TestHashMappingProtocol.test_repr_deep": (TypeError, "a dictionary is not a value of another one"),
}
"""The cases that a dictionary in a database cannot hold: how they end, and why."""

SLOW = {"TestMappingProtocol.test_popitem"}  # ten thousands of calls


def cases() -> Iterator[Any]:
    """Yield the tests, each where it is defined, as the classes inherit from each other."""
    for kind in ("BasicTestMappingProtocol", "TestMappingProtocol", "TestHashMappingProtocol"):
        defined = vars(getattr(mapping_tests, kind))
        for name in (name for name in defined if name.startswith("test_")):
            case = f"{kind}.{name}"
            marks = [pytest.mark.slow] if case in SLOW else []
            if case in CANNOT_HOLD:
                error, reason = CANNOT_HOLD[case]
                marks.append(pytest.mark.xfail(raises=error, reason=reason, strict=True))
            yield pytest.param(kind, name, id=case, marks=marks)


@pytest.fixture(scope="module")
def root(server_url: str) -> Iterator[PgDict[Any, Any]]:
    """One table, of which each dictionary of a test is a namespace."""
    with PgDict[Any, Any](server_url, table=f"t_{secrets.token_hex(6)}") as root:
        yield root
        root.drop()


@pytest.mark.parametrize(("kind", "name"), list(cases()))
def test_mapping_protocol(root: PgDict[Any, Any], kind: str, name: str) -> None:
    """What CPython asks of every mapping holds."""

    class Case(getattr(mapping_tests, kind)):  # type: ignore[misc]
        def type2test(self) -> PgDict[Any, Any]:
            return root.namespace(secrets.token_hex(8))

    Case(name).debug()


def test_table_of_exceptions() -> None:
    """No case is excused that does not exist."""
    for case in (*CANNOT_HOLD, *SLOW):
        assert operator.attrgetter(case)(mapping_tests)
