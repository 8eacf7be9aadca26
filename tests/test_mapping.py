"""A dictionary is a dict wherever it is, in either order, and with every codec."""

from __future__ import annotations

import secrets
from collections import ChainMap
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from mapping_contract import AnyValueContract, Dictionary, MappingContract, PagesContract

import pgdict
from pgdict import PgDict, PgDictError

NEIGHBOURS = dict.fromkeys(["a", "b", "users", "users9", "users;", "user:a", "users\x01", "\x01users:a", 1, None], "neighbour")


@pytest.fixture(scope="class")
def root(request: pytest.FixtureRequest, server_url: str) -> Iterator[Dictionary]:
    """One dictionary for all tests of a class, with its options."""
    case: type[Opened] = request.cls
    with case.kind(server_url, table=f"t_{secrets.token_hex(6)}", **case.options) as root:
        yield root
        root.drop()


class Opened:
    """Tests that share an open dictionary, which is emptied for each."""

    kind: ClassVar[type[Dictionary]] = PgDict
    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def d(self, root: Dictionary) -> Any:
        """Lend the dictionary, empty."""
        root.clear()
        return root


class TestRoot(Opened, AnyValueContract, PagesContract):
    """The whole table."""


class TestNamespace(Opened, AnyValueContract, PagesContract):
    """A namespace, among neighbours that are none of its business."""

    names: ClassVar[tuple[str, ...]] = ("users",)

    @pytest.fixture
    def d(self, root: Dictionary) -> Iterator[Dictionary]:
        """Lend a namespace of a table that has more keys."""
        root.clear()
        root.update(NEIGHBOURS)
        d = root.namespace(*self.names)
        yield d
        d.clear()
        assert root == NEIGHBOURS


class TestNestedNamespace(TestNamespace):
    """A namespace inside a namespace."""

    names = ("users", "\x01\0%_")


class TestTransaction(Opened, AnyValueContract, PagesContract):
    """A dictionary inside a transaction."""

    @pytest.fixture
    def d(self, root: Dictionary) -> Iterator[Dictionary]:
        """Lend the dictionary inside a transaction, and roll back."""
        root.clear()
        with pytest.raises(ZeroDivisionError), root.transaction():  # noqa: PT012 - its end is what raises
            yield root
            raise ZeroDivisionError
        assert not root


class TestByKey(Opened, AnyValueContract, PagesContract):
    """A table without the column that keeps insertion order."""

    by_key = True
    options: ClassVar = {"order": "key"}


class TestNamespaceByKey(TestNamespace):
    """A namespace of such a table."""

    by_key = True
    options: ClassVar = {"order": "key"}


class TestJson(Opened, AnyValueContract):
    """JSON values."""

    options: ClassVar = {"codec": "json"}


class TestPickle(Opened, AnyValueContract):
    """Pickled values."""

    options: ClassVar = {"codec": "pickle"}


class TestSignedPickle(Opened, AnyValueContract):
    """Signed pickles."""

    options: ClassVar = {"codec": pgdict.pickle(secret=b"secret")}


class TestBytes(Opened, MappingContract):
    """Bytes."""

    options: ClassVar = {"codec": "bytes"}

    @staticmethod
    def value(number: int) -> bytes:
        """Return bytes."""
        return b"\0%d\xff" % number


class TestText(Opened, MappingContract):
    """Strings."""

    options: ClassVar = {"codec": "text"}

    @staticmethod
    def value(number: int) -> str:
        """Return a string."""
        return f"\0{number}\ud800"


class Squares(PgDict[int, int]):
    """A dictionary that knows what it does not hold."""

    def __missing__(self, key: int) -> int:
        return key * key


class TestMissing(Opened):
    """`__missing__` of a subclass."""

    kind: ClassVar = Squares

    def test_missing(self, d: Dictionary) -> None:
        """`d[key]` alone asks `__missing__`, as in a dict, and stores nothing."""
        d[2] = 5
        assert (d[2], d[3]) == (5, 9)
        assert 3 not in d
        assert d.get(3) is None
        assert d.pop(3, None) is None
        assert d.get_many([2, 3]) == {2: 5}
        assert d.setdefault(3, 7) == 7
        assert d == {2: 5, 3: 7}
        with pytest.raises(KeyError):
            del d[4]

    def test_unsupported_key(self, d: Dictionary) -> None:
        """It is asked for keys that no dictionary can hold, too, and its errors are its own."""
        assert d[2j] == -4
        with pytest.raises(TypeError, match="unhashable"):
            d[[]]
        d["a"] = 1
        with pytest.raises(TypeError, match="can't multiply"):
            d["b"]

    def test_namespace(self, d: Dictionary) -> None:
        """A namespace is of the subclass, too."""
        assert d.namespace("n")[3] == 9


def test_closed(server_url: str, table: str) -> None:
    """A closed dictionary can be shown, is not empty but an error, and says that it is closed."""
    d = Dictionary(server_url, table=table)
    d.close()
    assert "<closed>" in repr(d)
    for call in (len, bool, list, lambda d: d["a"], lambda d: d.update(a=1), lambda d: d == {}):
        with pytest.raises(PgDictError, match="closed"):
            call(d)


def test_chain_map(d: Dictionary) -> None:
    """A ChainMap reads through it and writes into it."""
    d.update(a=1)
    chain = ChainMap[Any, Any](d, {"a": 2, "b": 3})
    chain["c"] = 4
    assert dict(chain) == {"a": 1, "b": 3, "c": 4}
    assert d == {"a": 1, "c": 4}


def test_equality_of_nan(d: Dictionary) -> None:
    """A NaN that was stored is another object when it is read, and so equals nothing, as in a dict."""
    d["a"] = float("nan")
    assert d != {"a": float("nan")}
    assert d != d
    assert ("a", d["a"]) not in d.items()


def test_long_repr(d: Dictionary) -> None:
    """`repr` of a huge dictionary is short, and reads only its beginning."""
    d.update((n, "x" * 10_000) for n in range(3000))
    assert len(repr(d)) < 1200
    assert len(repr(d.items())) < 1200
