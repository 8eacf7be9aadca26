"""The views of a dictionary: sized, walked in pages in both directions, set-like, and never one query per key.

What is a set operation reads the view once and leaves the rest to the view of a plain dict, which knows best.
"""

from __future__ import annotations

import operator
import sys
import weakref
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from itertools import chain
from types import FrameType, MappingProxyType
from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V")


Row = tuple[Any, ...]
Rows = Callable[[bool, bool], Iterator[Row]]
"""`rows(values, reverse)`: the rows of a dictionary in its order, with their values or without."""


class Beginning:
    """Stands, empty, before the first item of an iteration, and knows where it began until that item is asked for."""

    __slots__ = ("__weakref__", "place")

    def __init__(self, frame: FrameType | None) -> None:
        self.place = _place(frame)

    def __iter__(self) -> Iterator[Any]:
        self.place = None
        return iter(())


def _place(frame: FrameType | None) -> tuple[FrameType, int] | None:
    return frame and (frame, frame.f_lasti)


class Counted:
    """What is counted when its length is asked for, but not for a hint.

    `list(d)`, `sorted(d)` and `[*d]` begin an iteration and then ask for the length, to reserve memory; for that a count of
    the whole table is too dear. They do both in one instruction of their caller and get a TypeError, at which Python goes
    on without a hint. No `len(d)` is such a pair, but for the second of `[call(d) for call in (iter, len)]`.
    """

    _begun: weakref.ref[Beginning] | None = None

    def _begin(self) -> Beginning:
        """Remember that the caller of the caller begins an iteration."""
        beginning = Beginning(sys._getframe(1).f_back)
        self._begun = weakref.ref(beginning)
        return beginning

    def __len__(self) -> int:
        beginning = self._begun and self._begun()
        if beginning and beginning.place and beginning.place == _place(sys._getframe().f_back):
            raise TypeError("the length of what is about to be iterated is not counted in advance")
        return self._count()

    def _count(self) -> int:
        raise NotImplementedError


def _plain(view: object) -> Any:
    return view.plain() if isinstance(view, StoredKeys | StoredItems) else view


def _as_dict_does(operation: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        try:
            return operation(_plain(self), _plain(other))
        except TypeError:
            if isinstance(other, KeysView | ItemsView | set | frozenset):
                raise  # an unhashable value
            return NotImplemented

    return method


def _reflected(operation: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return _as_dict_does(lambda ours, theirs: operation(theirs, ours))


class _View(Counted):
    _mapping: Mapping[Any, Any]

    @property
    def mapping(self) -> MappingProxyType[Any, Any]:
        """The dictionary, to be read only, as dict's views have it."""
        return MappingProxyType(self._mapping)

    def _count(self) -> int:
        return len(self._mapping)

    def __bool__(self) -> bool:
        return bool(self._mapping)


class _SetLike(_View):
    __hash__ = None  # type: ignore[assignment]  # unhashable, as dict's views are
    __eq__ = _as_dict_does(operator.eq)
    __lt__ = _as_dict_does(operator.lt)
    __le__ = _as_dict_does(operator.le)
    __gt__ = _as_dict_does(operator.gt)
    __ge__ = _as_dict_does(operator.ge)
    __and__ = _as_dict_does(operator.and_)
    __or__ = _as_dict_does(operator.or_)
    __sub__ = _as_dict_does(operator.sub)
    __xor__ = _as_dict_does(operator.xor)
    __rand__ = _reflected(operator.and_)
    __ror__ = _reflected(operator.or_)
    __rsub__ = _reflected(operator.sub)
    __rxor__ = _reflected(operator.xor)

    def isdisjoint(self, other: Any) -> bool:
        """Tell whether the view and `other` have nothing in common."""
        disjoint: bool = _plain(self).isdisjoint(_plain(other))
        return disjoint


class StoredKeys(_SetLike, KeysView[K]):
    """`d.keys()`."""

    def __init__(self, mapping: Mapping[K, Any], rows: Rows, key: Callable[[Row], K]) -> None:
        super().__init__(mapping)
        self._rows, self._key = rows, key

    def __iter__(self) -> Iterator[K]:
        return chain(self._begin(), map(self._key, self._rows(False, False)))

    def __reversed__(self) -> Iterator[K]:
        return map(self._key, self._rows(False, True))

    def plain(self) -> KeysView[K]:
        """Return the keys of this moment as a dict has them."""
        return dict.fromkeys(self).keys()


class StoredItems(_SetLike, ItemsView[K, V]):
    """`d.items()`."""

    def __init__(self, mapping: Mapping[K, V], rows: Rows, item: Callable[[Row], tuple[K, V]]) -> None:
        super().__init__(mapping)
        self._get, self._rows, self._item = mapping.get, rows, item

    def __contains__(self, item: object) -> bool:
        if not isinstance(item, tuple) or len(item) != 2:
            return False
        key, value = item
        missing = object()
        found = self._get(key, missing)
        return found is not missing and (found is value or found == value)

    def __iter__(self) -> Iterator[tuple[K, V]]:
        return chain(self._begin(), map(self._item, self._rows(True, False)))

    def __reversed__(self) -> Iterator[tuple[K, V]]:
        return map(self._item, self._rows(True, True))

    def plain(self) -> ItemsView[K, V]:
        """Return the pairs of this moment as a dict has them."""
        return dict(iter(self)).items()


class StoredValues(_View, ValuesView[V]):
    """`d.values()`."""

    def __init__(self, mapping: Mapping[Any, V], rows: Rows, value: Callable[[Row], V]) -> None:
        super().__init__(mapping)
        self._rows, self._value = rows, value

    def __contains__(self, value: object) -> bool:
        return any(found is value or found == value for found in self)

    def __iter__(self) -> Iterator[V]:
        return chain(self._begin(), map(self._value, self._rows(True, False)))

    def __reversed__(self) -> Iterator[V]:
        return map(self._value, self._rows(True, True))
