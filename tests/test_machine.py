"""Random histories: several handles on one table, in two processes, do what the model does, step by step."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from multiprocessing.connection import Connection
from typing import Any, ClassVar, Protocol

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from model import Model, Table
from strategies import everything, exact
from strategies import keys as wild_keys

from pgdict import ABSENT, CasResult, PgDict, PgDictError
from pgdict.keys import _escape
from pgdict.operations import DEFAULT, many
from pgdict.statements import Order

# --- calls -----------------------------------------------------------------------------------------------------------


class Known(Enum):
    """Arguments that are known only when the call is made."""

    CURRENT = "the value that the key has"
    ALL = "all items"
    ABSENT = "`ABSENT`, which does not pickle"


@dataclass(frozen=True)
class Call:
    """A method of the dictionary with its arguments."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None

    def knowing(self, model: Model) -> Call:
        """Fill in the arguments that are known now."""
        return Call(self.name, tuple(self._known(arg, model) for arg in self.args), self.kwargs)

    def _known(self, arg: Any, model: Model) -> Any:
        if arg is Known.CURRENT:
            return outcome(model, Call("get", self.args[:1]), seen=lambda value: value)
        return model.copy() if arg is Known.ALL else arg


def outcome(d: Any, call: Call, seen: Callable[[Any], Any] = exact) -> Any:
    """Return all there is to what a call returns or raises."""
    try:
        args = (ABSENT if arg is Known.ABSENT else arg for arg in call.args)
        result = getattr(d, call.name)(*args, **(call.kwargs or {}))
    except KeyError as error:
        return KeyError, exact(error.args)
    except (TypeError, ValueError, ArithmeticError, PgDictError, Stop) as error:
        return next(kind for kind in (TypeError, ValueError, ArithmeticError, PgDictError, Stop) if isinstance(error, kind))
    if isinstance(result, Iterator):
        result = list(result)
    return seen((result.status, result.current) if isinstance(result, CasResult) else result)


class Stop(Exception):
    """What a caller's own function or block raises."""


def same(value: Any) -> Any:
    return value


def wrapped(value: Any) -> Any:
    return [value]


def stop(value: Any) -> Any:
    raise Stop(value)


keys: Bundle[Any] = Bundle("keys")
numbers = st.integers(-3, 3) | st.sampled_from([10**18, -(10**40), 10**999, 10**1000, 0.5, 1e308, float("inf")])
values = st.one_of(numbers, st.sampled_from([None, True, "", [1], (1,)]), everything)
ones = st.sampled_from([1, 1.0, True])  # one key
wrong = st.sampled_from([1j, frozenset(), [], float("nan"), "x" * 1025])
any_key = st.one_of(keys, keys, keys, keys, keys, ones, wrong)
ttls = st.sampled_from([None, 500, 1500.5, timedelta(hours=1)])
expected = st.sampled_from([Known.ABSENT, Known.CURRENT, Known.CURRENT]) | values
moments = st.sampled_from([datetime(2001, 1, 1, tzinfo=UTC), datetime(2999, 1, 1, tzinfo=UTC)])
prefixes = st.sampled_from(["", "a", "n", "n:", "n:m", "%", "_", "\\", "\0", "\1", "\ud800", "\U0010ffff"])
prefixes |= keys.map(lambda key: key[:2] if isinstance(key, str) else "")
pairs = st.lists(st.tuples(any_key, values), max_size=6)
good_pairs = st.lists(st.tuples(keys, values), max_size=6)
functions = st.sampled_from([same, wrapped, wrapped, stop])
some = st.integers(0, 4)


def calls(name: str, *args: Any, **optional: Any) -> st.SearchStrategy[Call]:
    return st.builds(Call, st.just(name), st.tuples(*args), st.fixed_dictionaries({}, optional=optional))


window = {"limit": some | st.none(), "offset": some, "after": any_key, "reverse": st.booleans()}
mutation = {"default": st.sampled_from([None, list, int]), "ttl": ttls}
keyed_call = st.one_of(
    calls("__getitem__", any_key),
    calls("get", any_key),
    calls("get", any_key, values),
    calls("__contains__", any_key),
    calls("__delitem__", any_key),
    calls("__setitem__", any_key, values),
    calls("__setitem__", keys, values),
    calls("pop", any_key),
    calls("pop", any_key, values),
    calls("setdefault", any_key),
    calls("setdefault", any_key, values),
    calls("move_to_end", any_key, last=st.booleans()),
    calls("set", any_key, values, ttl=ttls),
    calls("set", keys, values, expires_at=moments),
    calls("expire", any_key, st.sampled_from([500, timedelta(hours=1)])),
    calls("persist", any_key),
    calls("set_nx", any_key, values, ttl=ttls),
    calls("increment", any_key, numbers, ttl=ttls),
    calls("increment", keys),
    calls("decrement", any_key, numbers, ttl=ttls),
    calls("compare_and_swap", any_key, expected, values, ttl=ttls),
    calls("get_and_set", any_key, values, default=values, ttl=ttls),
    calls("get_and_delete", any_key, default=values),
    calls("mutate", any_key, functions, **mutation),
    calls("mutate_block", any_key, functions, **mutation),
)
every_call = keyed_call | st.one_of(
    calls("__eq__", st.just(Known.ALL)),
    calls("__or__", st.dictionaries(wild_keys, st.integers(), max_size=2)),
    calls("copy"),
    calls("popitem", last=st.booleans()),
    calls("update", pairs, keyword=values),
    calls("update", st.dictionaries(keys.filter(lambda key: not isinstance(key, list)), values, max_size=3)),
    calls("clear"),
    calls("get_many", st.lists(any_key, max_size=4)),
    calls("set_many", pairs, ttl=ttls),
    calls("set_many", good_pairs, ttl=ttls),
    calls("delete_many", st.lists(any_key, max_size=3)),
    calls("scan", prefixes, **window),
    calls("scan_keys", prefixes, **window),
    calls("count", prefixes),
    calls("delete_prefix", prefixes),
)

# --- handles ---------------------------------------------------------------------------------------------------------


class Handle(PgDict[Any, Any]):
    """A dictionary with what the machines ask besides."""

    def mutate_block(self, key: Any, change: Callable[[Any], Any], *, default: Any = None, ttl: Any = DEFAULT) -> Any:
        with self.mutate(key, default=default, ttl=ttl) as box:
            box.value = change(box.value)
        return box.value

    def state(self) -> Any:
        return list(self.items()), list(reversed(self)), len(self), bool(self)


class Site(Protocol):
    """Where calls are made: in this process or in another one."""

    def call(self, call: Call) -> Any: ...
    def begin(self) -> None: ...
    def end(self, rolls_back: bool) -> None: ...


class Here:
    """A handle in this process."""

    def __init__(self, d: PgDict[Any, Any]) -> None:
        self.d = d
        self.blocks: list[Any] = []

    def call(self, call: Call) -> Any:
        return outcome(self.d, call, seen=same if call.name == "ttl" else exact)

    def begin(self) -> None:
        block = self.d.transaction()
        block.__enter__()
        self.blocks.append(block)

    def end(self, rolls_back: bool) -> None:
        error = Stop() if rolls_back else None
        self.blocks.pop().__exit__(error and Stop, error, None)


class There:
    """A handle in another process."""

    def __init__(self, pipe: Connection[Any, Any]) -> None:
        self.pipe = pipe

    def _ask(self, *request: Any) -> Any:
        self.pipe.send(request)
        assert self.pipe.poll(60), "the other process is silent"
        return self.pipe.recv()

    def call(self, call: Call) -> Any:
        return self._ask("call", call)

    def begin(self) -> None:
        self._ask("begin")

    def end(self, rolls_back: bool) -> None:
        self._ask("end", rolls_back)


def serve(pipe: Connection[Any, Any], url: str, table: str) -> None:
    """Answer until the other side closes the pipe."""
    with closing(pipe), Handle(url, table=table, max_size=2) as root:
        site = Here(root.namespace("n", ttl=2000))
        while True:
            try:
                method, *args = pipe.recv()
            except EOFError:
                return
            pipe.send(getattr(site, method)(*args))


@contextmanager
def elsewhere(url: str, table: str) -> Iterator[There]:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=(theirs, url, table))
    process.start()
    theirs.close()
    with closing(ours):
        yield There(ours)
    process.join(30)
    assert process.exitcode == 0


@dataclass(frozen=True)
class Place:
    """A handle: its session, where it is, and what it shows of the table."""

    session: str
    site: Site
    names: tuple[str, ...] = ()
    ttl: float | None = None


@dataclass(frozen=True)
class Fleet:
    """All handles of one table, and a connection besides."""

    table: str
    order: Order
    places: list[Place]
    raw: psycopg.Connection[Any]

    def sql(self, statement: str, *params: object) -> None:
        self.raw.execute(statement.format(table=f'"{self.table}"').encode(), params)


@pytest.fixture(params=["insertion", "key"])
def fleet(request: pytest.FixtureRequest, server_url: str, table: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """Handles of all kinds on one table; buffers are so small here that sets of a few pairs are copied, or staged."""
    monkeypatch.setattr(many, "PLENTY", 2)
    monkeypatch.setattr(many, "BUFFER", 1_000)
    with ExitStack() as stack:
        root = stack.enter_context(Handle(server_url, table=table, order=request.param, max_size=2))
        second = stack.enter_context(Handle(server_url, table=table, max_size=2, cleanup="manual"))
        users = root.namespace("n", ttl=1000)
        places = [
            Place("first", Here(root)),
            Place("first", Here(users), ("n",), 1000),
            Place("first", Here(users.namespace("m%", ttl=None)), ("n", "m%")),
            Place("second", Here(second)),
            Place("third", stack.enter_context(elsewhere(server_url, table)), ("n",), 2000),
        ]
        raw = stack.enter_context(psycopg.connect(server_url, autocommit=True))
        yield Fleet(table, request.param, places, raw)


# --- the machine -----------------------------------------------------------------------------------------------------


class Machine(RuleBasedStateMachine):
    """What any handle does is what the model does, and all handles then show it."""

    fleet: ClassVar[Fleet]
    keys = keys

    def __init__(self) -> None:
        super().__init__()
        self.fleet.sql("DELETE FROM {table}")
        self.table = Table(self.fleet.order)
        self.saved: list[tuple[Place, Table]] = []  # the open transaction: who began it, and what was there before

    @property
    def owner(self) -> str | None:
        return self.saved[0][0].session if self.saved else None

    def model(self, place: Place) -> Model:
        """Return what a handle must show: the others do not see what a transaction has done."""
        table = self.table if self.owner in (None, place.session) else self.saved[0][1]
        return Model(table, place.names, place.ttl)

    def choose(self, number: int) -> Place:
        """Return one of the handles that may write."""
        places = [place for place in self.fleet.places if self.owner in (None, place.session)]
        return places[number % len(places)]

    @initialize(target=keys, wild=st.lists(wild_keys, min_size=2, max_size=4))
    def find_keys(self, wild: list[Any]) -> Any:
        return multiple("a", "n:a", "n:m%:a", *wild, *("n:" + key for key in wild if isinstance(key, str)))

    @rule(number=st.integers(0, 4), call=every_call)
    def operate(self, number: int, call: Call) -> None:
        place = self.choose(number)
        model = self.model(place)
        call = call.knowing(model)
        assert place.site.call(call) == outcome(model, call)

    @precondition(lambda self: len(self.saved) < 3)
    @rule(number=st.integers(0, 4))
    def begin(self, number: int) -> None:
        place = self.choose(number)
        place.site.begin()
        self.saved.append((place, self.table.copy()))

    @precondition(lambda self: self.saved)
    @rule(rolls_back=st.booleans())
    def end(self, rolls_back: bool) -> None:
        place, before = self.saved.pop()
        place.site.end(rolls_back)
        if rolls_back:
            self.table = before

    @precondition(lambda self: self.table.rows and not self.saved)
    @rule(number=st.integers(0, 4), which=st.integers(0, 20), call=keyed_call)
    def expire_and_operate(self, number: int, which: int, call: Call) -> None:
        place = self.choose(number)
        names = self.model(place).names()
        if names:
            name = names[which % len(names)]
            key = self.model(place).key(name)
            self.fleet.sql(
                "UPDATE {table} SET expires_at = statement_timestamp() - interval '1 s' WHERE key = %s", _escape(name).decode()
            )
            del self.table.rows[name]
            self.operate(number, Call(call.name, (key, *call.args[1:]), call.kwargs))

    @rule(number=st.integers(0, 4), key=keys)
    def wait(self, number: int, key: Any) -> None:
        place = self.choose(number)
        call = Call("set", (key, "short", 0.01))
        assert place.site.call(call) == outcome(self.model(place), call)
        time.sleep(0.011)
        self.model(place).pop(key, None)

    @rule(number=st.integers(0, 4), limit=st.none() | st.integers(0, 2))
    def clean_up(self, number: int, limit: int | None) -> None:
        kind, removed = self.choose(number).site.call(Call("cleanup_expired", (limit,)))
        assert kind is int
        assert removed <= (1000 if limit is None else limit)

    @invariant()
    def all_agree(self) -> None:
        for place in self.fleet.places:
            assert place.site.call(Call("state")) == outcome(self.model(place), Call("state"))

    @invariant()
    def lifetimes_agree(self) -> None:
        place = self.choose(0)
        model = self.model(place)
        for key in model:
            left, promised = place.site.call(Call("ttl", (key,))), model.ttl(key)
            assert left == promised or abs(left - promised) < 10

    def teardown(self) -> None:
        while self.saved:
            self.end(rolls_back=True)


PHASES = [phase for phase in Phase if phase is not Phase.explain]  # for which every line would be traced


def run(fleet: Fleet, examples: int, steps: int) -> None:
    machine = type("Machine", (Machine,), {"fleet": fleet})
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]  # a server, wild values
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=examples, stateful_step_count=steps, suppress_health_check=checks, phases=PHASES),
    )


def test_histories(fleet: Fleet) -> None:
    """Whatever some handles do in any order, all show what a dict would hold, in its order."""
    run(fleet, examples=12, steps=40)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_long_histories(fleet: Fleet) -> None:
    """So it is in long histories."""
    run(fleet, examples=40, steps=60)
