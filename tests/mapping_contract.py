"""What a dictionary does as a `dict` does: a contract to derive a test class from.

The class that derives provides the fixture `d`, an empty dictionary. Whatever can be is compared with a real dict.
"""

from __future__ import annotations

import copy
import operator
from collections import ChainMap, OrderedDict, UserDict
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, MutableMapping, Reversible, ValuesView
from dataclasses import replace
from fractions import Fraction
from types import MappingProxyType
from typing import Any, ClassVar

import pytest

from pgdict import Codec, DecodeError, InvalidKey, PgDict, PgDictError
from pgdict.codecs import Values
from pgdict.operations.pages import ROWS

Dictionary = PgDict[Any, Any]

UNHASHABLE: list[Any] = [[], {}, set(), bytearray(), ([],)]
UNSUPPORTED: list[Any] = [object(), frozenset({1}), Fraction(1, 3), len, (1, object()), 1j]
SAME_KEYS: list[list[Any]] = [
    [1, 1.0, True],
    [0, 0.0, -0.0, False],
    [2**70, float(2**70)],
    [("a", 1), ("a", 1.0), ("a", True)],
    [((), (0,)), ((), (False,))],
]
OTHER_KEYS: list[Any] = [1, "1", b"1", (1,), ("1",), (b"1",), ((1,),), None, "None", 1.5, "1.5", (), "", -1, "\x01n1500011"]
STRINGS = ["", "\0", "\x01", "\x01\x02", "\ud800", "\udfff\ud800", "é", "e\u0301", "😀", "%_\\", "'; --", "\n", " ", "a:b", ":"]
SET_OPERATORS = [operator.and_, operator.or_, operator.sub, operator.xor]
COMPARISONS = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]


class Foreign(Codec):
    """A codec that no dictionary reads but the one that chose it."""

    name = "foreign"
    sealed = True

    def encode(self, value: bytes) -> bytes:
        """Return the bytes themselves."""
        return value

    def decode(self, data: bytes) -> bytes:
        """Return the bytes themselves."""
        return data


def spoil(d: Dictionary, *keys: object) -> None:
    """Store under `keys` what `d` cannot decode."""
    foreign = d._like(replace(d._space, values=Values(Foreign())))
    foreign.update((key, b"?") for key in keys)


def outcome(call: Callable[..., Any], *args: Any) -> Any:
    """Return the result of a call, or which of Python's own errors it raises."""
    try:
        return call(*args)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is compared with dict's
        return next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")


def drain(iterator: Iterator[Any]) -> tuple[list[Any], list[object]]:
    """Return what an iterator yields, and the keys of the `DecodeError`s on the way."""
    found: list[Any] = []
    failed: list[object] = []
    while True:
        try:
            found.append(next(iterator))
        except DecodeError as error:
            failed.append(error.key)
        except StopIteration:
            return found, failed


class HasKeys:
    """All that `dict.update` needs of a mapping."""

    def __init__(self, items: dict[Any, Any]) -> None:
        self._items = items

    def keys(self) -> KeysView[Any]:
        """Return the keys."""
        return self._items.keys()

    def __getitem__(self, key: Any) -> Any:
        return self._items[key]


class MappingContract:
    """A dictionary of any values."""

    by_key: ClassVar[bool] = False
    """Whether the dictionary is in the order of its keys."""

    @staticmethod
    def value(number: int) -> Any:
        """Return a value; equal numbers make equal values."""
        return number

    def items(self, keys: str, start: int = 0) -> dict[str, Any]:
        """Return a dict with a key for each letter."""
        return {key: self.value(number) for number, key in enumerate(keys, start)}

    def filled(self, d: Dictionary, keys: str) -> dict[str, Any]:
        """Put an item for each letter into `d` and return them."""
        model = self.items(keys)
        d.update(model)
        return model

    def check(self, d: Dictionary, model: Mapping[Any, Any]) -> None:
        """Compare everything that can be read with a dict."""
        expected = dict(sorted(model.items())) if self.by_key else dict(model)
        pairs = list(expected.items())
        assert list(d.items()) == pairs
        assert list(d) == list(d.keys()) == [key for key, _ in pairs]
        assert list(d.values()) == [value for _, value in pairs]
        assert list(reversed(d)) == list(reversed(d.keys())) == [key for key, _ in reversed(pairs)]
        assert list(reversed(d.items())) == pairs[::-1]
        assert list(reversed(d.values())) == [value for _, value in reversed(pairs)]
        assert len(d) == len(d.keys()) == len(d.values()) == len(d.items()) == len(pairs)
        assert bool(d) is bool(d.keys()) is bool(d.values()) is bool(d.items()) is bool(pairs)
        assert d == expected
        assert d.get_many(expected) == expected

    # One key

    def test_empty(self, d: Dictionary) -> None:
        """A new dictionary is empty."""
        self.check(d, {})
        assert outcome(d.popitem) is KeyError
        assert outcome(next, iter(d)) is outcome(next, reversed(d)) is StopIteration

    def test_get_and_set(self, d: Dictionary) -> None:
        """What is set is got, contained, listed and counted."""
        model = self.filled(d, "")
        for number, key in enumerate("bca"):
            d[key] = model[key] = self.value(number)
            assert d[key] == model[key]
            assert type(d[key]) is type(model[key])
            assert key in d
        self.check(d, model)

    def test_absent(self, d: Dictionary) -> None:
        """An absent key is a KeyError, not contained, and gets the default."""
        self.filled(d, "a")
        for call in (d.__getitem__, d.__delitem__, d.pop):
            with pytest.raises(KeyError) as raised:
                call("x")
            assert raised.value.args == ("x",)
        assert "x" not in d
        assert d.get("x") is None
        assert d.get("x", d) is d
        assert d.pop("x", None) is None
        assert d.pop("x", d) is d

    @pytest.mark.parametrize("key", [1.0, True, ("a", 1.0), -0.0, Fraction(1, 3)], ids=repr)
    def test_key_of_a_key_error(self, d: Dictionary, key: Any) -> None:
        """A KeyError carries the caller's own key, not its canonical form."""
        for call in (d.__getitem__, d.__delitem__, d.pop):
            with pytest.raises(KeyError) as raised:
                call(key)
            assert raised.value.args[0] is key

    def test_delete(self, d: Dictionary) -> None:
        """A deleted key is absent, the others are there; deleting it again is a KeyError."""
        model = self.filled(d, "abc")
        del d["b"], model["b"]
        self.check(d, model)
        assert outcome(d.__delitem__, "b") is KeyError
        self.check(d, model)

    def test_pop(self, d: Dictionary) -> None:
        """`pop` removes one key and returns its value."""
        model = self.filled(d, "abc")
        assert d.pop("b") == model.pop("b")
        assert d.pop("c", None) == model.pop("c")
        self.check(d, model)

    def test_setdefault(self, d: Dictionary) -> None:
        """`setdefault` returns the value that is there, else stores its own at the end."""
        model = self.filled(d, "ba")
        for key, number in (("b", 7), ("c", 8), ("c", 9)):
            assert d.setdefault(key, self.value(number)) == model.setdefault(key, self.value(number))
        self.check(d, model)

    def test_clear(self, d: Dictionary) -> None:
        """`clear` empties the dictionary, which goes on working."""
        self.filled(d, "abc")
        d.clear()
        self.check(d, {})
        d.clear()
        self.check(d, self.filled(d, "ca"))

    def test_arity(self, d: Dictionary) -> None:
        """What a dict refuses as an argument is refused."""
        model: dict[Any, Any] = {}
        calls: list[Callable[[Any], Any]] = [
            lambda m: m.get(),
            lambda m: m.get("a", 1, 2),
            lambda m: m.get(key="a"),
            lambda m: m.get("a", default=1),
            lambda m: m.pop(),
            lambda m: m.pop("a", 1, 2),
            lambda m: m.pop("a", default=1),
            lambda m: m.setdefault(),
            lambda m: m.setdefault("a", default=1),
            lambda m: m.popitem("a"),
            lambda m: m.update({}, {}),
            lambda m: m.clear(1),
            lambda m: m.copy(1),
            lambda m: m.keys(1),
            lambda m: hash(m),
            lambda m: m < m,
            lambda m: m[[] :],
            lambda m: m + m,
        ]
        for call in calls:
            assert outcome(call, d) is outcome(call, model) is TypeError

    # Keys

    @pytest.mark.parametrize("keys", SAME_KEYS, ids=repr)
    def test_equal_keys(self, d: Dictionary, keys: list[Any]) -> None:
        """Keys that a dict holds for one are one, and come back in one form."""
        for number, key in enumerate(keys):
            d[key] = self.value(number)
        assert len(d) == 1
        assert list(d) == [keys[0]]
        assert repr(list(d)) == repr([keys[0]])
        for key in keys:
            assert key in d
            assert d[key] == self.value(len(keys) - 1)
            assert d.get_many([key]) == {key: d[key]}
        del d[keys[-1]]
        assert not d

    def test_other_keys(self, d: Dictionary) -> None:
        """Keys that a dict tells apart are told apart, and come back equal and of their type."""
        model = {key: self.value(number) for number, key in enumerate(OTHER_KEYS)}
        d.update(model)
        assert d == model
        assert len(d) == len(model)
        assert set(map(repr, d)) == set(map(repr, model))
        if not self.by_key:
            assert list(d) == OTHER_KEYS
        for key, value in model.items():
            assert d.pop(key) == value
        assert not d

    def test_any_string(self, d: Dictionary) -> None:
        """Every string is a key."""
        model = {key: self.value(number) for number, key in enumerate(STRINGS)}
        for key, value in model.items():
            d[key] = value
        self.check(d, model)

    @pytest.mark.parametrize("key", UNHASHABLE, ids=repr)
    def test_unhashable_keys(self, d: Dictionary, key: Any) -> None:
        """An unhashable key is a TypeError wherever it is given."""
        self.filled(d, "a")
        calls: list[Callable[[], Any]] = [
            lambda: d[key],
            lambda: key in d,
            lambda: key in d.keys(),  # noqa: SIM118 - the view is what is tested
            lambda: (key, 1) in d.items(),
            lambda: d.get(key),
            lambda: d.pop(key),
            lambda: d.pop(key, None),
            lambda: d.__delitem__(key),
            lambda: d.__setitem__(key, self.value(1)),
            lambda: d.setdefault(key, self.value(1)),
            lambda: d.update([(key, self.value(1))]),
            lambda: d.get_many([key]),
            lambda: d.delete_many([key]),
            lambda: d.set_nx(key, self.value(1)),
        ]
        assert [outcome(call) for call in calls] == [TypeError] * len(calls)
        self.check(d, self.items("a"))

    @pytest.mark.parametrize("key", UNSUPPORTED, ids=lambda key: type(key).__name__)
    def test_unsupported_keys(self, d: Dictionary, key: Any) -> None:
        """A hashable key of another type is absent for reads, and a TypeError for writes."""
        self.filled(d, "a")
        assert key not in d
        assert key not in d.keys()  # noqa: SIM118
        assert (key, self.value(0)) not in d.items()
        assert d.get(key, d) is d.pop(key, d) is d
        assert d.get_many(["a", key]) == self.items("a")
        assert d.delete_many([key]) == 0
        assert [outcome(call, key) for call in (d.__getitem__, d.__delitem__, d.pop, d.ttl)] == [KeyError] * 4
        value = self.value(1)
        writes: list[Callable[[], Any]] = [
            lambda: d.__setitem__(key, value),
            lambda: d.setdefault(key, value),
            lambda: d.update({"b": value, key: value}),
            lambda: d.set_nx(key, value),
        ]
        assert [outcome(write) for write in writes] == [TypeError] * len(writes)
        self.check(d, self.items("a"))

    def test_impossible_keys(self, d: Dictionary) -> None:
        """A NaN and a key that is too long are ValueErrors, for reads and writes."""
        for key in (float("nan"), (1, float("nan")), "x" * 5000):
            calls = (d.__getitem__, d.__contains__, d.get, lambda k: d.__setitem__(k, self.value(1)))
            assert [outcome(call, key) for call in calls] == [ValueError] * 4
            with pytest.raises(InvalidKey):
                d[key]
        assert not d

    # Order

    def test_order(self, d: Dictionary) -> None:
        """An update keeps a key's place; deleting and setting it again moves it to the end."""
        model = self.filled(d, "cadb")
        for m in (d, model):
            m["a"] = self.value(7)
            m.update(d=self.value(8), e=self.value(9))
        self.check(d, model)
        for m in (d, model):
            del m["c"]
            m["c"] = self.value(1)
            m.pop("a")
            m.setdefault("a", self.value(2))
        self.check(d, model)

    def test_popitem(self, d: Dictionary) -> None:
        """`popitem` takes the last item, `popitem(last=False)` the first one."""
        model = OrderedDict(self.filled(d, "cadbe"))
        if self.by_key:
            model = OrderedDict(sorted(model.items()))
        for last in (True, False, False, True):
            assert d.popitem(last=last) == model.popitem(last=last)
            self.check(d, model)
        assert d.popitem() == model.popitem()
        with pytest.raises(KeyError, match="dictionary is empty"):
            d.popitem()

    def test_move_to_end(self, d: Dictionary) -> None:
        """`move_to_end` does what an OrderedDict's does, unless the dictionary is in the order of its keys."""
        model = OrderedDict(self.filled(d, "abcd"))
        if self.by_key:
            with pytest.raises(PgDictError, match="order of its keys"):
                d.move_to_end("a")
        else:
            for key, last in (("b", True), ("d", False), ("b", False), ("b", True), ("a", True), ("a", False)):
                d.move_to_end(key, last=last)
                model.move_to_end(key, last=last)
                assert list(d) == list(model)
            with pytest.raises(KeyError, match="'x'"):
                d.move_to_end("x")
        self.check(d, model)

    # Many keys

    def test_update(self, d: Dictionary) -> None:
        """`update` takes what dict's takes: mappings, what has keys, pairs, keywords, nothing."""
        model: dict[Any, Any] = {}
        for other in (
            self.items("ab"),
            list(self.items("bc", 3).items()),
            HasKeys(self.items("cd", 5)),
            UserDict(self.items("de", 7)),
            MappingProxyType(self.items("a", 9)),
            self.items("f", 4).items(),
            (),
        ):
            d.update(other)
            model.update(other)
            self.check(d, model)
        keywords = self.items("xyz", 1)
        for m in (d, model):
            m.update(self.items("xb", 6), **keywords)
            m.update(**self.items("uv"))
            m.update(self=self.value(1), other=self.value(2))
            m.update()
        self.check(d, model)
        d.update(iter(self.items("h").items()))
        model.update(iter(self.items("h").items()))
        d.update(d)
        self.check(d, model)

    def test_duplicates(self, d: Dictionary) -> None:
        """Of equal keys in one update the last value counts, in the place of the first."""
        pairs = [(key, self.value(number)) for number, key in enumerate("cabcbdc")]
        d.update(pairs)
        self.check(d, dict(pairs))

    def test_update_from_itself(self, d: Dictionary) -> None:
        """A generator that reads and writes the dictionary while it is updated from it sees every state in between."""
        self.filled(d, "ab")
        d.update((key + "x", value) for key, value in d.items() if d.setdefault("c", value) == self.value(0))
        self.check(d, {**self.items("ab"), "c": self.value(0)} | {"ax": self.value(0), "bx": self.value(1)})

    def test_bad_updates(self, d: Dictionary) -> None:
        """An update that fails raises what dict's raises, and nothing of it is written."""
        model = self.filled(d, "ab")

        def failing() -> Iterator[tuple[str, Any]]:
            yield "x", self.value(1)
            raise ZeroDivisionError

        good = ("x", self.value(1))
        for bad in (42, None, [1], [good, 1], [(1, 2, 3)], [good, (1, 2, 3)], "ab", [()], [good, ([], self.value(1))]):
            assert outcome(d.update, bad) is outcome(dict[Any, Any]().update, bad)
        assert outcome(d.update, failing()) is ZeroDivisionError
        for bad_pair in ((float("nan"), self.value(1)), ("x" * 5000, self.value(1)), (1j, self.value(1)), ("x", lambda: None)):
            assert outcome(d.update, [good, bad_pair]) in (TypeError, ValueError)
        self.check(d, model)

    def test_union(self, d: Dictionary) -> None:
        """`|` makes a dict of both, in either direction and with any mapping; with anything else it is a TypeError."""
        model = self.filled(d, "cab")
        model = dict(sorted(model.items())) if self.by_key else model
        other = self.items("bd", 5)
        for theirs in (other, OrderedDict(other), MappingProxyType(other), UserDict(other), ChainMap(other)):
            ours, reverse = d | theirs, theirs | d
            assert list(ours.items()) == list((model | other).items())
            assert list(reverse.items()) == list((other | model).items())
            assert type(ours) is dict
        assert d | d == model
        assert type(other | d) is dict
        pairs: Any = [("a", 1)]
        assert outcome(lambda: d | pairs) is outcome(lambda: pairs | d) is TypeError
        self.check(d, model)

    def test_in_place_union(self, d: Dictionary) -> None:
        """`|=` updates, from mappings and pairs, and keeps the dictionary itself."""
        model = self.filled(d, "cab")
        before = d
        for other in (self.items("bd", 5), list(self.items("ae", 8).items())):
            d |= other
            model |= other
        assert d is before
        self.check(d, model)
        plain = self.items("az", 9)
        plain |= d
        assert plain == self.items("az", 9) | model

    def test_plain_copies(self, d: Dictionary) -> None:
        """`copy`, `dict(d)`, `{**d}` and the like are plain dicts of their own."""
        model = self.filled(d, "cab")
        expected = list(sorted(model.items()) if self.by_key else model.items())
        merged = ({**d}, {} | d, (lambda **items: items)(**d))
        for copied in (d.copy(), copy.copy(d), copy.deepcopy(d), dict(d), dict(d.items()), *merged):
            assert type(copied) is dict
            assert list(copied.items()) == expected
        d.copy().clear()
        self.check(d, model)

    # Equality

    def test_equality(self, d: Dictionary) -> None:
        """`==` compares items, in both directions, with any mapping and whatever the order."""
        model = self.filled(d, "cab")
        turned = dict(reversed(model.items()))
        for other in (model, turned, OrderedDict(turned), MappingProxyType(model), UserDict(model), ChainMap(model), d):
            assert [d == other, other == d, d != other, other != d] == [True, True, False, False]
        for different in (
            {},
            self.items("ca"),
            self.items("cabd"),
            self.items("cax"),
            model | {"b": self.value(9)},
            OrderedDict(self.items("ca")),
            UserDict(self.items("ca")),
        ):
            assert [d == different, different == d, d != different, different != d] == [False, False, True, True]
        for no_mapping in (None, 1, "cab", [*model], [*model.items()], set(model), d.keys()):
            assert d != no_mapping
            assert no_mapping != d

    def test_equality_of_two(self, d: Dictionary) -> None:
        """Two dictionaries in PostgreSQL are equal when their items are."""
        one, other = d.namespace("one"), d.namespace("other")
        assert one == other
        one.update(self.items("ab"))
        assert one != other
        other.update(reversed(self.items("ab").items()))
        assert one == other
        assert d != one

    # Views

    def test_views_are_live(self, d: Dictionary) -> None:
        """A view shows what the dictionary holds at each moment."""
        keys, values, items = d.keys(), d.values(), d.items()
        model = self.filled(d, "cab")
        del d["a"], model["a"]
        expected = dict(sorted(model.items())) if self.by_key else model
        assert (list(keys), list(values), list(items)) == tuple(map(list, (expected, expected.values(), expected.items())))
        assert (len(keys), len(values), len(items)) == (2, 2, 2)
        assert isinstance(keys, KeysView)
        assert isinstance(values, ValuesView)
        assert isinstance(items, ItemsView)
        assert keys.mapping == values.mapping == items.mapping == model

    def test_membership_of_views(self, d: Dictionary) -> None:
        """`in` a view is what it is in dict's."""
        model = self.filled(d, "ab")
        for key, number in (("a", 0), ("a", 1), ("b", 1), ("x", 0)):
            pair = (key, self.value(number))
            assert (key in d.keys()) is (key in model.keys())  # noqa: SIM118
            assert (pair in d.items()) is (pair in model.items())
        assert self.value(1) in d.values()
        assert self.value(2) not in d.values()
        no_pairs: list[Any] = ["a", None, 1, ("a",), ("a", self.value(0), 1), ["a", self.value(0)]]
        for no_pair in no_pairs:
            assert no_pair not in d.items()

    @pytest.mark.parametrize("operation", [*SET_OPERATORS, *COMPARISONS], ids=lambda f: f.__name__)
    def test_set_operations(self, d: Dictionary, operation: Callable[[Any, Any], Any]) -> None:
        """The views of keys and items are sets as dict's are, on either side and with whatever is on the other."""
        model = self.filled(d, "abc")
        part = {"b": model["b"]}
        others: list[Any] = [[*"bx"], {}, 5, "b", None]
        for some in (model, part, model | self.items("x"), self.items("xyz")):
            others += [some.keys(), some.items(), set(some), frozenset(some)]
        for ours, plain in ((d.keys(), model.keys()), (d.items(), model.items())):
            for other in others:
                expected = outcome(operation, plain, other)
                assert outcome(operation, ours, other) == expected
                assert type(outcome(operation, ours, other)) is type(expected)
                assert outcome(operation, other, ours) == outcome(operation, other, plain)
            assert operation(ours, ours) == operation(plain, plain)
        assert operation(d.keys(), d.items()) == operation(model.keys(), model.items())

    @pytest.mark.parametrize("operation", [*SET_OPERATORS, *COMPARISONS], ids=lambda f: f.__name__)
    def test_set_operations_of_two(self, d: Dictionary, operation: Callable[[Any, Any], Any]) -> None:
        """They are so, too, when both sides are in PostgreSQL."""
        one, two = d.namespace("one"), d.namespace("two")
        model = self.filled(one, "abc")
        for letters in ("", "b", "cab", "abcx", "xyz"):
            two.clear()
            other = self.filled(two, letters)
            assert operation(one.keys(), two.keys()) == operation(model.keys(), other.keys())
            expected = outcome(operation, model.items(), other.items())  # a TypeError where a value is unhashable
            assert outcome(operation, one.items(), two.items()) == expected

    def test_disjoint(self, d: Dictionary) -> None:
        """`isdisjoint` is dict's, from either side."""
        model = self.filled(d, "abc")
        for letters in ("", "xy", "xa", "abc"):
            other = self.items(letters)
            for some in (other, other.keys(), [*other], d.namespace("x").keys()):
                assert d.keys().isdisjoint(some) is model.keys().isdisjoint(some)
            assert d.items().isdisjoint(other.items()) is model.items().isdisjoint(other.items())
            assert other.keys().isdisjoint(d.keys()) is other.keys().isdisjoint(model.keys())
            assert set(other).isdisjoint(d.keys()) is set(other).isdisjoint(model)
        assert outcome(d.keys().isdisjoint, 5) is TypeError

    def test_nature_of_views(self, d: Dictionary) -> None:
        """Views of keys and items are unhashable, values are compared by identity, iterators are used up once."""
        self.filled(d, "ab")
        assert outcome(hash, d.keys()) is outcome(hash, d.items()) is TypeError
        assert d.values() != d.values()
        iterator = iter(d.items())
        assert iter(iterator) is iterator
        assert len(list(iterator)) == 2
        assert list(iterator) == []

    # Iteration

    def test_change_while_iterating(self, d: Dictionary) -> None:
        """An iteration does not mind changes, and yields what was there all the while exactly once."""
        self.filled(d, "abcdef")
        seen = []
        for key in d:
            seen.append(key)
            d[key] = self.value(7)
            d[key + "new"] = self.value(8)
            d.pop("d", None)
        assert [key for key in seen if key != "d"] == [*"abcef"]
        assert len(d) == 10 + ("d" in seen)

    def test_delete_while_iterating(self, d: Dictionary) -> None:
        """A loop may delete every key it is given."""
        self.filled(d, "abcdef")
        for key in d:
            del d[key]
        self.check(d, {})

    def test_several_iterators(self, d: Dictionary) -> None:
        """Iterators do not disturb each other, nor a count, nor any other call."""
        self.filled(d, "abc")
        assert [one + other for one in d for other in d] == [one + other for one in "abc" for other in "abc"]
        waiting = iter(d)
        assert len(d) == 3
        d["d"] = self.value(1)
        assert len(d) == 4
        assert next(waiting) == "a"
        assert len(d) == len(d.keys()) == operator.length_hint(d) == 4

    def test_unreadable(self, d: Dictionary) -> None:
        """What cannot be decoded is an error for that key alone, and stays; an iteration goes on behind it."""
        model = self.filled(d, "abcd")
        spoil(d, "b", "d")
        for call in (d.__getitem__, d.get, d.pop, lambda key: d.pop(key, None), lambda key: d.setdefault(key, self.value(1))):
            with pytest.raises(DecodeError) as raised:
                call("b")
            assert (raised.value.key, raised.value.codec, raised.value.raw) == ("b", "foreign", b"?")
        with pytest.raises(DecodeError):
            d.popitem()
        assert drain(iter(d.items())) == ([("a", model["a"]), ("c", model["c"])], ["b", "d"])
        assert drain(iter(d.values())) == ([model["a"], model["c"]], ["b", "d"])
        assert drain(reversed(d.items())) == ([("c", model["c"]), ("a", model["a"])], ["d", "b"])
        assert list(d) == [*"abcd"]
        assert "b" in d
        d["b"] = model["b"]
        del d["d"]
        self.check(d, self.items("abc"))

    # The rest

    def test_repr(self, d: Dictionary) -> None:
        """`repr` shows the first items, whatever the number and size of all, and never raises."""
        assert "{}" in repr(d)
        self.filled(d, "a")
        assert f"{{'a': {self.value(0)!r}}}" in repr(d)
        d.update(self.items("bcdefghijklmnopqrstuvwxyz", 1))
        assert f"'b': {self.value(1)!r}" in repr(d)
        assert "'z'" not in repr(d)
        assert "...}" in repr(d)
        d.update(("a" + "k" * 500 + str(number), self.value(number)) for number in range(10))
        assert len(repr(d)) < 1500
        spoil(d, "a")
        assert f"'a': {self.value(0)!r}" not in repr(d)

    def test_nature(self, d: Dictionary) -> None:
        """It is a mutable mapping, reversible and unhashable, and no dict."""
        assert isinstance(d, Mapping)
        assert isinstance(d, MutableMapping)
        assert isinstance(d, Reversible)
        assert not isinstance(d, dict)
        assert outcome(hash, d) is TypeError

    def test_pattern_matching(self, d: Dictionary) -> None:
        """A mapping pattern matches it, with and without the rest."""
        model = self.filled(d, "ab")
        match d:
            case {"x": _}:
                pytest.fail("there is no such key")
            case {"a": value, **rest}:
                assert value == model.pop("a")
                assert rest == model
            case _:
                pytest.fail("it is no mapping")

    def test_formatting(self, d: Dictionary) -> None:
        """It fills formats as a dict does."""
        model = self.filled(d, "ab")
        assert "{a}{b}".format_map(d) == "{a}{b}".format_map(model)
        template = "%(a)s%(b)r"
        assert template % d == template % model

    def test_mutate(self, d: Dictionary) -> None:
        """`mutate` replaces a value by what a function makes of it, and keeps the key's place."""
        model = self.filled(d, "ab")
        fifth = {model["a"]: self.value(5)}.__getitem__
        assert d.mutate("a", fifth) == self.value(5)
        assert d.mutate("c", lambda value: value, default=lambda: self.value(6)) == self.value(6)
        assert outcome(d.mutate, "x", lambda value: value) is KeyError
        assert outcome(d.mutate, "a", lambda _: 1 // 0) is ZeroDivisionError
        self.check(d, {"a": self.value(5), "b": self.value(1), "c": self.value(6)})

    def test_mutate_in_a_block(self, d: Dictionary) -> None:
        """The block of `mutate` lends the value and stores it at the end, unless it raises."""
        self.filled(d, "ab")
        with d.mutate("a") as box:
            assert box.value == self.value(0)
            box.value = self.value(5)
        with d.mutate("c", default=lambda: self.value(6)):
            pass
        with pytest.raises(ZeroDivisionError), d.mutate("b") as box:  # noqa: PT012 - the end of the block is what raises
            box.value = self.value(7)
            raise ZeroDivisionError
        with pytest.raises(KeyError, match="'x'"), d.mutate("x"):
            pytest.fail("there is nothing to lend")
        self.check(d, {"a": self.value(5), "b": self.value(1), "c": self.value(6)})


class AnyValueContract(MappingContract):
    """A dictionary whose codec holds None and lists."""

    @staticmethod
    def value(number: int) -> Any:
        """Return a value of one of several types."""
        some = (number, number + 0.5, f"text {number}", [number, None, "x"], number % 2 == 0, {"n": [number]})
        return some[number % len(some)]

    def test_none_is_a_value(self, d: Dictionary) -> None:
        """None is a value, never taken for an absent key."""
        d["a"] = None
        assert "a" in d
        assert d.get("a", 1) is None
        assert d.setdefault("a", 1) is None
        assert d.setdefault("b") is None
        assert d.get_many("ab") == {"a": None, "b": None}
        assert not d.set_nx("a", 1)
        assert d.pop("a", 1) is None
        assert d.popitem() == ("b", None)
        assert not d

    def test_values_are_copies(self, d: Dictionary) -> None:
        """Changing a value that was got, or one that was set, changes nothing in the database; `mutate` does."""
        numbers = [1]
        d["a"] = numbers
        numbers.append(2)
        d["a"].append(3)
        d.setdefault("a", []).append(4)
        next(iter(d.values())).append(5)
        d.copy()["a"].append(6)
        assert d["a"] == [1]
        with d.mutate("a") as box:
            box.value.append(7)
        assert d["a"] == [1, 7]
        assert d.mutate("b", lambda value: [*value, 1], default=list) == [1]

    def test_unhashable_values(self, d: Dictionary) -> None:
        """Views of items with unhashable values do, and refuse, what dict's do.

        But for `dict_items ^ view`: two views of dicts may be told apart by their keys, while one with anything else is
        made a set by the dict's view, before ours is asked.
        """
        model = {"a": [1], "b": [2], "c": [3]}
        d.update(model)
        some = {"a": [1], "x": [2]}
        for operation in (*SET_OPERATORS, *COMPARISONS):
            for other in (model.items(), some.items(), {"a": 1}.items(), {("a", 1)}, set()):
                assert outcome(operation, d.items(), other) == outcome(operation, model.items(), other)
                if operation is not operator.xor or isinstance(other, set):
                    assert outcome(operation, other, d.items()) == outcome(operation, other, model.items())
        assert ("a", [1]) in d.items()
        assert ("a", [2]) not in d.items()
        assert [1] in d.values()
        assert outcome(d.items().isdisjoint, some.items()) == outcome(model.items().isdisjoint, some.items())


class PagesContract(MappingContract):
    """A dictionary of more keys than a page, under changes from all sides."""

    def test_iteration_over_pages(self, d: Dictionary) -> None:
        """Over many pages, too, each key that stays is yielded exactly once, in order, and none that came later."""
        names = [f"k{number:05}" for number in range(2 * ROWS + 10)]
        d.update((name, self.value(number)) for number, name in enumerate(names))
        for iterate in (iter, reversed):
            d.update((name, self.value(number)) for number, name in enumerate(names))
            expected = list(iterate(list(d)))
            doomed, moved = set(expected[1000::1000]), set(expected[500::1000])
            iterator = iterate(d)
            seen = [next(iterator)]
            assert d.delete_many(doomed | moved) == len(doomed | moved)
            d.update((name, self.value(1)) for name in moved)
            d.update((f"k{number:05}~", self.value(1)) for number in range(1000))
            d[seen[0]] = d[expected[-1]] = self.value(2)
            seen += iterator
            gone = doomed | moved
            assert [name for name in seen if name not in gone] == [name for name in expected if name not in gone]
            assert len(seen) == len(set(seen))
            assert d.keys() >= set(seen) - doomed
            d.clear()

    def test_all_of_many(self, d: Dictionary) -> None:
        """Everything agrees for any number of keys around a page."""
        model: dict[Any, Any] = {}
        for number in (ROWS, ROWS + 1):
            more = {f"k{n:05}": self.value(n) for n in range(len(model), number)}
            d.update(more)
            model |= more
            self.check(d, model)
            assert d.copy() == model
