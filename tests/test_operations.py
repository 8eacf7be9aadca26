"""Operations driven by hand: what they ask, and what they make of the answers, also of those that a race would give."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from mapping_contract import Foreign

from pgdict import ABSENT, DecodeError, InvalidValue, wire
from pgdict import statements as sql
from pgdict.codecs import Values
from pgdict.keys import Keys
from pgdict.operations import ByKey, Operation, Rows, Size, Space, expiry, many, one, walk
from pgdict.operations.one import CasResult
from pgdict.operations.pages import CHUNK, PROBE, ROWS
from pgdict.operations.space import NEVER

TRUE, FALSE = wire.TRUE, wire.FALSE
SPACE = Space(Keys(), Values(), cleans=True)
SHY = Space(Keys(), Values())
AMONG = Space(Keys("n:"), Values())
TTL = expiry(SPACE, 60)

_named = {name: value for name, value in vars(sql).items() if isinstance(value, sql.Statement | sql.Family)}
NAMES = {
    statement: name
    for name, value in _named.items()
    for statement in (
        [value]
        if isinstance(value, sql.Statement)
        else [value.over(ranged, reverse) for ranged in (False, True) for reverse in (False, True)]
    )
}


class Played:
    """An operation that was driven: what it asked, and its result or error."""

    def __init__(self, operation: Operation[Any], *answers: Rows) -> None:
        self.asked: list[str] = []
        self.params: list[tuple[bytes | None, ...]] = []
        self.error: Exception | None = None
        self.result: Any = None
        left = list(answers)
        try:
            statement, params = next(operation)
            while True:
                self.asked.append(NAMES.get(statement) or statement.template.split(maxsplit=1)[0])
                self.params.append(params)
                assert left, f"it asks more: {self.asked}"
                statement, params = operation.send(left.pop(0))
        except StopIteration as stop:
            self.result = stop.value
        except (KeyError, TypeError, ValueError) as error:
            self.error = error
        assert not left, f"it asked no more than {self.asked}"


def row(*columns: object) -> Rows:
    """Return one row, values and codecs written as str."""
    return [tuple(column.encode() if isinstance(column, str) else column for column in columns)]


NONE: Rows = ()
IT_DID = row(TRUE)

# One key -------------------------------------------------------------------------------------------------------------


def test_get() -> None:
    """A read asks once and decodes what is live."""
    played = Played(one.get(SPACE, "a", None), row("1", "int", TRUE))
    assert (played.asked, played.params, played.result) == (["GET"], [(b"a",)], 1)
    assert Played(one.get(SPACE, "a", 7), NONE).result == 7
    assert Played(one.get(SPACE, object(), 7)).result == 7


def test_get_of_an_expired_row() -> None:
    """A read that meets an expired row removes it, when it shall, and returns the default."""
    played = Played(one.get(SPACE, "a", 7), row("1", "int", FALSE), NONE)
    assert (played.asked, played.params[-1], played.result) == (["GET", "FORGET"], (b"a",), 7)
    assert Played(one.get(SHY, "a", 7), row("1", "int", FALSE)).result == 7
    assert Played(one.has(SPACE, "a"), row(FALSE), NONE).result is False
    assert Played(one.entry(SPACE, "a"), row("1", "int", FALSE, b"", b"", b""), NONE).result is None
    assert isinstance(Played(one.ttl(SPACE, "a"), row(FALSE, None, None), NONE).error, KeyError)


def test_get_of_what_cannot_be_read() -> None:
    """A row with a foreign tag, or with bytes that are no value, is a DecodeError."""
    for answer in (row("?", "foreign", TRUE), row("?", "int", TRUE), row(b"\xc1", "msgpack", TRUE)):
        error = Played(one.get(SPACE, "a", None), answer).error
        assert isinstance(error, DecodeError)
        assert (error.key, error.raw, error.codec) == ("a", answer[0][0], answer[0][1].decode())


def test_set() -> None:
    """A write is one statement; one with a ttl sweeps two expired rows, when it shall."""
    played = Played(one.set(SPACE, "a", "x", NEVER), NONE)
    assert (played.asked, played.params) == (["SET"], [(b"a", b"\xa1x", b"msgpack", None, None)])
    assert Played(one.set(SPACE, "a", 1, TTL), [(wire.FALSE,)]).asked == ["SET_EXPIRING"]
    assert Played(one.set(SPACE, "a", 1, TTL), [(wire.TRUE,)], NONE).asked == ["SET_EXPIRING", "SWEEP_TWO"]
    assert Played(one.set(SHY, "a", 1, TTL), NONE).asked == ["SET"]


def test_what_cannot_be_set() -> None:
    """A key or value that cannot be stored is refused before anything is asked."""
    for key, value in (("a", object()), (object(), 1), ([], 1), (float("nan"), 1), ("x" * 5000, 1)):
        for operation in (one.set, one.set_nx, one.setdefault):
            played = Played(operation(SPACE, key, value, NEVER))
            assert played.asked == []
            assert isinstance(played.error, TypeError | ValueError)


def test_setdefault() -> None:
    """`setdefault` tells apart what was there and what it stored, and asks again when neither was seen."""
    assert Played(one.setdefault(SPACE, "a", 2, NEVER), row(FALSE, "1", "int")).result == 1
    assert Played(one.setdefault(SPACE, "a", 2, NEVER), row(TRUE, None, None)).result == 2
    played = Played(one.setdefault(SPACE, "a", 2, NEVER), NONE, NONE, row(FALSE, "1", "int"))
    assert (played.asked, played.result) == (["SETDEFAULT"] * 3, 1)


def test_take() -> None:
    """`pop` returns what it took; an expired row counts for nothing."""
    played = Played(one.take(SPACE, "a", None), row(TRUE, TRUE, "1", "int"))
    assert (played.asked, played.params, played.result) == (["TAKE"], [(b"a", SPACE.readable)], 1)
    assert Played(one.take(SPACE, "a", 7), NONE).result == 7
    assert Played(one.take(SPACE, "a", 7), row(TRUE, FALSE, "1", "int")).result == 7
    assert Played(one.take(SPACE, object(), 7)).result == 7


def test_take_of_what_cannot_be_read() -> None:
    """`pop` leaves a row with a foreign tag and says so; one that changed meanwhile it tries again."""
    assert isinstance(Played(one.take(SPACE, "a", 7), row(FALSE, TRUE, "?", "foreign")).error, DecodeError)
    played = Played(one.take(SPACE, "a", 7), row(FALSE, TRUE, "1", "int"), row(TRUE, TRUE, "2", "int"))
    assert (played.asked, played.result) == (["TAKE", "TAKE"], 2)


def test_exchange() -> None:
    """`get_and_set` returns what it replaced; where the server sees no absent row it inserts, and tries again when late."""
    assert Played(one.exchange(SPACE, "a", 2, None, NEVER), row(TRUE, "1", "int")).result == 1
    assert Played(one.exchange(SPACE, "a", 2, 7, NEVER), row(FALSE, "1", "int")).result == 7
    played = Played(one.exchange(SPACE, "a", 2, 7, NEVER), NONE, NONE, IT_DID)
    assert (played.asked, played.result) == (["EXCHANGE", "GET", "SET_NX"], 7)
    late = (NONE, NONE, NONE, row(TRUE, "1", "int"))
    assert Played(one.exchange(SPACE, "a", 2, 7, NEVER), *late).result == 1
    assert isinstance(Played(one.exchange(SPACE, "a", 2, 7, NEVER), NONE, row("?", "foreign", TRUE)).error, DecodeError)


def test_mutate_under_contention() -> None:
    """`mutate` begins anew with the value that another writer left."""
    seen: list[int] = []

    def change(value: int) -> int:
        seen.append(value)
        return value + 1

    played = Played(one.mutate(SPACE, "a", change, None, None), row("1", "int", TRUE), NONE, row("5", "int", TRUE), IT_DID)
    assert (played.asked, played.result, seen) == (["GET", "SWAP", "GET", "SWAP"], 6, [1, 5])
    assert played.params[-1] == (b"a", b"6", b"int", None, None, FALSE, b"5", b"int")


def test_mutate_of_an_absent_key() -> None:
    """An absent key begins with the default, unless another writer was first; without one it is a KeyError."""
    played = Played(one.mutate(SPACE, "a", str, lambda: 1, None), NONE, NONE, row("5", "int", TRUE), IT_DID)
    assert (played.asked, played.result) == (["GET", "SET_NX", "GET", "SWAP"], "5")
    played = Played(one.mutate(SPACE, "a", str, None, None), row("1", "int", FALSE))
    assert isinstance(played.error, KeyError)


def test_mutate_without_change() -> None:
    """What did not change is not written, unless a ttl is to be renewed; an equal value of another type is a change."""
    assert Played(one.mutate(SPACE, "a", int, None, None), row("1", "int", TRUE)).asked == ["GET"]
    assert Played(one.mutate(SPACE, "a", int, None, TTL), row("1", "int", TRUE), IT_DID).asked == ["GET", "SWAP"]
    assert Played(one.mutate(SPACE, "a", float, None, None), row("1", "int", TRUE), IT_DID).asked == ["GET", "SWAP"]


def test_compare_and_swap() -> None:
    """It compares with Python's `==`, and again when another writer came between."""
    live = row("1", "int", TRUE)
    swapped, changed = CasResult("swapped"), CasResult("mismatch", 5)
    cas = one.compare_and_swap
    assert Played(cas(SPACE, "a", 1.0, 2, None), live, IT_DID).result == swapped
    assert Played(cas(SPACE, "a", 1, 2, None), live, NONE, live, IT_DID).result == swapped
    assert Played(cas(SPACE, "a", 1, 2, None), live, NONE, row("5", "int", TRUE)).result == changed
    assert Played(cas(SPACE, "a", 1, 2, None), live, NONE, NONE).result == CasResult("not_found")
    assert Played(cas(SPACE, "a", 5, 2, None), live).result == CasResult("mismatch", 1)
    assert Played(cas(SPACE, "a", ABSENT, 2, None), IT_DID).result == swapped
    assert Played(cas(SPACE, "a", ABSENT, 2, None), NONE, row("5", "int", TRUE)).result == changed
    assert Played(cas(SPACE, "a", ABSENT, 2, None), NONE, NONE, IT_DID).result == swapped


def test_increment() -> None:
    """The server adds whole numbers, small ones and large ones."""
    played = Played(one.increment(SPACE, "a", 5, NEVER), row("12"))
    assert (played.asked, played.params, played.result) == (["INCREMENT"], [(b"a", wire.int8(5), None, None)], 12)
    assert Played(one.increment(SPACE, "a", -(10**20), NEVER), row(str(10**30))).asked == ["INCREMENT_LARGE"]
    for by in (True, "1", None):
        assert Played(one.increment(SPACE, "a", by, NEVER)).asked == []  # type: ignore[arg-type]


def test_increment_in_python() -> None:
    """What the server does not add to is added to here, by compare-and-swap; what is no number is a TypeError."""
    refused = NONE
    played = Played(one.increment(SPACE, "a", 2, NEVER), refused, row("0.5", "float", TRUE), IT_DID)
    assert (played.asked, played.result) == (["INCREMENT", "GET", "SWAP"], 2.5)
    played = Played(one.increment(SPACE, "a", 2, NEVER), refused, row("5", "int", TRUE), NONE, row("7", "int", TRUE), IT_DID)
    assert (played.asked, played.result) == (["INCREMENT", "GET", "SWAP", "GET", "SWAP"], 9)
    played = Played(one.increment(SPACE, "a", 2, NEVER), refused, NONE, NONE, row("7", "int", TRUE), IT_DID)
    assert (played.asked, played.result) == (["INCREMENT", "GET", "SET_NX", "GET", "SWAP"], 9)
    played = Played(one.increment(SPACE, "a", 0.5, NEVER), NONE, IT_DID)
    assert (played.asked, played.result) == (["GET", "SET_NX"], 0.5)
    for no_number in (b"\xa1x", b"\xc3"):  # "x", True
        played = Played(one.increment(SPACE, "a", 2, NEVER), refused, row(no_number, "msgpack", TRUE))
        assert isinstance(played.error, TypeError)
    played = Played(one.increment(SPACE, "a", 1e308, NEVER), row("1e+308", "float", TRUE))
    assert isinstance(played.error, InvalidValue)


# An item from an end -------------------------------------------------------------------------------------------------

ITEM = row("a", "1", "int")


@pytest.mark.parametrize("space", [SPACE, AMONG], ids=["root", "namespace"])
@pytest.mark.parametrize("last", [True, False])
def test_popitem(space: Space, last: bool) -> None:
    """`popitem` takes one item; when there is none left at all it is told so by a second look."""
    stored = space.keys.encode("a")
    assert Played(one.popitem(space, last), [(stored, b"1", b"int")]).result == ("a", 1)
    played = Played(one.popitem(space, last), NONE, NONE)
    assert (len(played.asked), played.result) == (2, None)


def test_popitem_when_all_is_locked() -> None:
    """While all that is there is being written it looks again, ten times, with pauses."""
    locked = (NONE, ITEM, NONE)
    played = Played(one.popitem(SPACE, True), *locked * 10)
    assert (played.asked, played.result) == (["POPITEM", "FIRST", "PAUSE"] * 10, None)
    assert Played(one.popitem(SPACE, True), *locked * 3, ITEM).result == ("a", 1)
    assert Played(one.popitem(SPACE, True), *locked * 3, NONE, NONE).result is None


def test_popitem_of_what_cannot_be_read() -> None:
    """An item with a foreign tag stays, and is a DecodeError."""
    played = Played(one.popitem(SPACE, True), NONE, row("a", "?", "foreign"))
    assert isinstance(played.error, DecodeError)


# Many keys -----------------------------------------------------------------------------------------------------------


def test_get_many() -> None:
    """Values come in the order asked for, each key once, without those that cannot be there."""
    answer = [(b"b", b"2", b"int"), (b"a", b"1", b"int")]
    played = Played(many.get_many(SPACE, ["a", "x", "b", "a", object()]), answer)
    assert played.params == [(wire.text_array([b"a", b"x", b"b"]),)]
    assert list(played.result.items()) == [("a", 1), ("b", 2)]
    assert Played(many.get_many(SPACE, [])).result == Played(many.get_many(SPACE, [object()])).result == {}


def test_batches() -> None:
    """Many keys go in batches, read from the iterable only when they are needed."""
    keys = iter(range(2 * many.BATCH + 1))
    operation = many.delete_many(SPACE, keys)
    next(operation)
    assert operator.length_hint(keys) == many.BATCH + 1
    operation.send(row(wire.int8(3)))
    assert operator.length_hint(keys) == 1
    operation.send(row(wire.int8(0)))
    with pytest.raises(StopIteration) as stop:
        operation.send(row(wire.int8(1)))
    assert stop.value.value == 4


def test_sweep_in_steps() -> None:
    """Expired rows are removed in bounded steps, as long as one finds many of them, and no further than the limit."""
    some = many.SWEEP

    def number(count: int) -> Rows:
        return row(wire.int8(count))

    played = Played(many.sweep(SPACE, None), number(some), number(some - 3), number(7))
    assert (played.asked, played.result) == (["SWEEP"] * 3, 2 * some + 4)
    played = Played(many.sweep(AMONG, some + 2), number(some), number(2))
    assert [wire.from_int8(params[0] or b"") for params in played.params] == [some, 2]
    assert (played.result, Played(many.sweep(SPACE, 0)).result) == (some + 2, 0)


def test_buffers() -> None:
    """Pairs are encoded into buffers of bounded size, of equal keys the last value in the first place; the last is known."""
    ((buffer, more),) = many.buffers(SPACE, [("b", 1), ("a", 2), ("b", 3)])
    assert list(buffer.items()) == [(b"b", (b"3", b"int")), (b"a", (b"2", b"int"))]
    assert not more
    assert list(many.buffers(SPACE, ())) == [({}, False)]
    assert Played(many.set_buffer({}, NEVER)).asked == []
    size = many.BUFFER // 12
    staged = [(len(buffer), more) for buffer, more in many.buffers(SPACE, ((n, bytes(size)) for n in range(10)))]
    assert staged == [(4, True), (4, True), (2, False)]


# Pages ---------------------------------------------------------------------------------------------------------------


class Reader:
    """An iteration that is driven by hand."""

    def __init__(self, space: Space, *, reverse: bool = False, values: bool = True) -> None:
        self.pages = walk(space, values=values, reverse=reverse)

    def __call__(self, *answers: Rows) -> Played:
        return Played(self.pages.page(), *answers)


def rows(seqs: Sequence[int], *, read: int | None, mark: int, value: bytes | None = b"1") -> list[tuple[Any, ...]]:
    """Return the rows of a page; the last one says how many were read, None when there are no more."""
    page: list[tuple[Any, ...]] = [(b"n:%d" % seq, value, b"int", None, wire.int8(seq), wire.int8(mark)) for seq in seqs]
    if page and read is not None:
        page[-1] = (*page[-1][:3], wire.int8(read), *page[-1][4:])
    return page


LOWEST, HIGHEST = wire.int8(-(2**63)), wire.int8(2**63 - 1)


@pytest.mark.parametrize("reverse", [False, True])
def test_pages_of_a_table(reverse: bool) -> None:
    """A page goes on behind the last row of the one before, towards the mark of the beginning."""
    read = Reader(SPACE, reverse=reverse)
    first = read(rows(range(ROWS), read=ROWS, mark=9000))
    assert first.params[0][2:] == (wire.int8(ROWS), HIGHEST if reverse else LOWEST, b"", None)
    assert len(first.result) == ROWS
    second = read(rows(range(ROWS, 5300), read=None, mark=9000))
    assert second.params[0][3:] == (wire.int8(ROWS - 1), b"n:%d" % (ROWS - 1), wire.int8(9000))
    assert len(second.result) == 300
    assert (read().asked, read().result) == ([], ())


@pytest.mark.parametrize("reverse", [False, True])
def test_full_last_page(reverse: bool) -> None:
    """A full page is the last one when the server says so; the place of the mark may be shared by more rows."""
    read = Reader(SPACE, reverse=reverse)
    read(rows(range(ROWS), read=None, mark=ROWS - 1))
    assert read().asked == []
    read = Reader(SPACE, reverse=reverse)
    read(rows(range(ROWS), read=ROWS, mark=ROWS - 1))
    assert read(NONE).result == ()
    assert read().asked == []


def test_empty_pages() -> None:
    """An empty table is asked once."""
    for space in (SPACE, AMONG, Space(Keys(), Values(), order="key")):
        read = Reader(space)
        assert (len(read(NONE).asked), read().asked) == (1, [])


def test_dense_namespace() -> None:
    """A namespace that is a good part of its table is walked with it."""
    read = Reader(AMONG)
    probe = read(rows(range(PROBE // 2), read=PROBE, mark=9000))
    assert (probe.asked, probe.params[0][2]) == (["PAGE"], wire.int8(PROBE))
    assert len(probe.result) == PROBE // 2
    page = read(rows(range(1000, 1800), read=None, mark=9000))
    assert (page.asked, page.params[0][2]) == (["PAGE"], wire.int8(ROWS))
    assert read().asked == []


def test_sparse_namespace() -> None:
    """One that is not is sorted; its values are fetched by key, in that order, and so is what a size limit left."""
    read = Reader(AMONG)
    foreign = [(b"x", None, None, wire.int8(PROBE), wire.int8(1000), wire.int8(9000))]
    few = rows(range(1001, 1004), read=None, mark=9000, value=None)
    fetched = rows([1, 2], read=2, mark=9000)
    played = read(foreign, few, fetched)
    assert played.asked == ["PAGE", "SORTED", "GET_IN_ORDER"]
    assert played.params[1][1:4] == (wire.int8(1000), b"x", wire.int8(9000))
    assert len(played.result) == 2
    rest = read(rows([3], read=None, mark=9000))
    assert rest.params[0][3] == wire.text_array([b"n:1003"])
    assert read().asked == []


def test_sparse_keys() -> None:
    """Without values the sorted keys are the page; after a full chunk the walk goes on."""
    read = Reader(AMONG, values=False)
    foreign = [(b"x", None, None, wire.int8(PROBE), wire.int8(1), wire.int8(10**6))]
    played = read(foreign, rows(range(2, 2 + PROBE), read=None, mark=10**6, value=None))
    assert (played.asked, len(played.result)) == (["PAGE", "SORTED"], PROBE)
    played = read(foreign, rows(range(5000), read=None, mark=10**6, value=None))
    assert (played.asked, played.params[1][0]) == (["PAGE", "SORTED"], wire.int8(CHUNK))
    assert read().asked == []


def test_vanished_values() -> None:
    """Keys that vanish between being sorted and being fetched are left out, and end nothing."""
    read = Reader(AMONG)
    foreign = [(b"x", None, None, wire.int8(PROBE), wire.int8(1), wire.int8(10**6))]
    full = rows(range(2, 2 + PROBE), read=None, mark=10**6, value=None)
    played = read(foreign, full, NONE, rows([2000], read=None, mark=10**6))
    assert (played.asked, len(played.result)) == (["PAGE", "SORTED", "GET_IN_ORDER", "PAGE"], 1)


def test_scan_pages() -> None:
    """A scan goes on behind the last key, leaves the offset to the first page, and asks for no more than its limit."""
    low, high = SPACE.range("")
    pages = ByKey((low, high), values=True, limit=5, offset=3, size=Size(rows=2))
    page: Callable[[list[str], int | None], Rows] = lambda keys, read: [  # noqa: E731
        (key.encode(), b"1", b"int", None if read is None else wire.int8(read), None, b"mark") for key in keys
    ]
    first = Played(pages.page(), page(["a", "b"], 2))
    assert first.params[0][2:] == (wire.int8(2), None, wire.int8(3), low, high)
    second = Played(pages.page(), page(["c", "d"], 2))
    assert second.params[0][2:] == (wire.int8(2), b"mark", wire.int8(0), b"b\x01", high)
    third = Played(pages.page(), page(["e"], 1))
    assert third.params[0][2] == wire.int8(1)
    assert Played(pages.page()).result == ()


def test_sealed_values() -> None:
    """Under a codec that writes everything itself nothing else is read, and nothing is added."""
    sealed = Space(Keys(), Values(Foreign()))
    assert isinstance(Played(one.get(sealed, "a", None), row("1", "int", TRUE)).error, DecodeError)
    assert Played(one.get(sealed, "a", None), row("1", "foreign", TRUE)).result == b"1"
    assert Played(one.increment(sealed, "a", 1, NEVER)).asked == []
