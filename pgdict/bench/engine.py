"""Measure in interleaved rounds (A B C A B C ...), so that a slow moment of the machine hits all alike."""

from __future__ import annotations

import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pgdict.bench.contestants import CONTESTANTS, TABLE, Arena, Contestant, Missing, Store
from pgdict.bench.facts import machine
from pgdict.bench.groups import NORMAL, Case, Group, Scale, Unit, pairs, part, plan
from pgdict.dictionary import PgDict
from pgdict.errors import ConfigError

Telling = Callable[[int, int, str], None]
"""Is told the progress: how many steps are done, of how many, and what comes next."""

UNITS = {
    "rate": "rounds and median are seconds per operation; also operations_per_second and microseconds of the median",
    "time": "rounds and median are seconds",
    "bytes": "rounds and median are bytes",
    "ratio": "the median of the reference divided by this median: above 1 is better than the reference",
}

_MOST_CALLS = 100_000
_PATIENCE = 100  # rounds' worth of time for one contestant in one case
_CHUNK = 100_000


@dataclass(frozen=True, slots=True)
class Result:
    """What one contestant needed in one case."""

    group: str
    case: str
    contestant: str
    unit: Unit
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds per operation, seconds, or bytes."""
        return statistics.median(self.rounds)


@dataclass(slots=True)
class Report:
    """What a run has found."""

    began: str
    machine: dict[str, Any]
    contestants: dict[str, dict[str, str]]
    """Versions, and what a crash loses."""
    missing: dict[str, str]
    """Those that cannot take part, and why."""
    groups: tuple[Group, ...]
    nonstandard: tuple[str, ...] = ()
    """Those that are not set up as the targets have it."""
    results: list[Result] = field(default_factory=list)

    @property
    def reference(self) -> str | None:
        """The contestant that the others are compared with."""
        return next((name for name in self.contestants if name.startswith("PgDict")), None)

    def find(self, group: str, case: str, contestant: str | None) -> Result | None:
        """Return the result, None when it was not measured."""
        wanted = (group, case, contestant)
        return next((r for r in self.results if (r.group, r.case, r.contestant) == wanted), None)

    def ratio(self, result: Result) -> float | None:
        """Return how many times better than the reference it is."""
        reference = self.find(result.group, result.case, self.reference)
        return None if reference is None else reference.median / result.median

    def document(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        return {
            "format": 1,
            "began": self.began,
            "machine": self.machine,
            "contestants": self.contestants,
            "missing": self.missing,
            "reference": self.reference,
            "units": UNITS,
            "groups": {group.name: group.title for group in self.groups},
            "results": [self._result(result) for result in self.results],
        }

    def _result(self, result: Result) -> dict[str, Any]:
        median = result.median
        rate = {"operations_per_second": 1 / median, "microseconds": median * 1e6} if result.unit == "rate" else {}
        return {**asdict(result), "median": median, **rate, "ratio": self.ratio(result)}


def run(
    location: str | None = None,
    *,
    groups: Sequence[str] = (),
    contestants: Sequence[str] = (),
    scale: Scale = NORMAL,
    telling: Telling = lambda done, total, what: None,  # noqa: ARG005
) -> Report:
    """Measure, and leave nothing behind, whatever happens.

    Args:
        location: where the PostgreSQL is, as `PgDict` takes it.
        groups: the names of the groups to run; none means all.
        contestants: how the names of the contestants begin; none means all that are installed.
        scale: how much.
        telling: is told the progress.

    Raises:
        ConfigError: there is no such group or contestant.
    """
    chosen = choose_groups(groups, scale)
    entered = choose_contestants(contestants)
    with ExitStack() as stack:
        stack.enter_context(_ending_on_sigterm())
        telling(0, 1, "starting")
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="pgdict-bench-"))
        arena = stack.enter_context(_arena(location, Path(directory)))
        stores, missing = _open(entered, arena, stack)
        if not stores:
            raise ConfigError("; ".join(f"{name}: {reason}" for name, reason in missing.items()))
        report = Report(
            began=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=machine(arena, location),
            contestants={name: {"version": store.version, "crash": store.crash} for name, store in stores.items()},
            missing=missing,
            groups=chosen,
            nonstandard=tuple(name for name, store in stores.items() if not store.standard),
        )
        _measure(report, stores, scale, telling)
    return report


def choose_groups(names: Sequence[str], scale: Scale = NORMAL) -> tuple[Group, ...]:
    """Return the groups of those names, in their usual order."""
    groups = plan(scale)
    if unknown := set(names) - {group.name for group in groups}:
        raise ConfigError(f"no group {min(unknown)!r}; there are {', '.join(group.name for group in groups)}")
    return tuple(group for group in groups if not names or group.name in names)


def choose_contestants(beginnings: Sequence[str]) -> tuple[Contestant, ...]:
    """Return the contestants whose names begin so; case does not count, and a hyphen may stand for a space."""
    wanted = [beginning.lower().replace("-", " ") for beginning in beginnings]
    for beginning in wanted:
        if not any(contestant.name.lower().startswith(beginning) for contestant in CONTESTANTS):
            raise ConfigError(f"no contestant {beginning!r}; there are {', '.join(c.name for c in CONTESTANTS)}")
    return tuple(c for c in CONTESTANTS if not wanted or c.name.lower().startswith(tuple(wanted)))


@contextmanager
def _arena(location: str | None, directory: Path) -> Iterator[Arena]:
    """Keep one dictionary open, and with it an embedded server running."""
    with PgDict[str, Any](location, table=f"{TABLE}_arena") as d:
        d.drop()
        yield Arena(location, d.url, directory)


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind the stack, as Ctrl-C does."""

    def end(number: int, frame: object) -> None:  # noqa: ARG001
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _open(entered: Sequence[Contestant], arena: Arena, stack: ExitStack) -> tuple[dict[str, Store], dict[str, str]]:
    stores, missing = {}, {}
    for contestant in entered:
        try:
            stores[contestant.name] = stack.enter_context(contestant.open(arena))
        except Missing as reason:
            missing[contestant.name] = str(reason)
    return stores, missing


def _measure(report: Report, stores: Mapping[str, Store], scale: Scale, telling: Telling) -> None:
    todo = [
        (group, case, [name for name, store in stores.items() if case.suits(name, store)])
        for group in report.groups
        for case in group.cases
    ]
    total = sum(len(names) for _, _, names in todo)
    done = 0
    loaded: dict[str, object] = {}
    for group, case, names in todo:
        what = group.name if case.name == group.name else f"{group.name} {case.name}"

        def starting(name: str, doing: str, what: str = what, done: int = done) -> None:
            telling(done, total, f"{what}: {doing} {name}")

        for name in names:
            _load(stores[name], case, loaded.get(name), lambda text, name=name: starting(name, text))  # type: ignore[misc]
            loaded[name] = None if case.changes else _wanted(case)
        racers = {name: stores[name] for name in names}
        for name, rounds in _race(racers, case, scale, starting).items():
            report.results.append(Result(group.name, case.name, name, case.unit, tuple(rounds)))
        done += len(names)
    telling(total, total, "cleaning up")


def _wanted(case: Case) -> object:
    return case.keys, case.part, case.size


def _load(store: Store, case: Case, present: object, telling: Callable[[str], None]) -> None:
    """Give a store the keys that a case begins with."""
    if not case.keys or present == _wanted(case):
        return
    assert store.fill is not None
    assert store.clear is not None
    telling("loading")
    store.clear()
    for begin in range(0, case.keys, _CHUNK):
        store.fill(pairs(range(begin, min(begin + _CHUNK, case.keys)), case.size))
        if case.keys > _CHUNK:
            telling(f"loading {begin / case.keys:.0%} of")
    if case.part:
        store.fill(part(case))
    store.settle()


def _race(stores: Mapping[str, Store], case: Case, scale: Scale, telling: Callable[[str, str], None]) -> dict[str, list[float]]:
    """Return the rounds of each contestant."""
    if case.unit == "bytes":
        return {name: [_round(store, case, 1)] for name, store in stores.items()}
    calls, rounds = {}, {}
    for name, store in stores.items():
        telling(name, "warming up")
        calls[name], seconds = _pace(store, case, scale.seconds)
        rounds[name] = max(1, min(scale.rounds, int(_PATIENCE * scale.seconds / seconds)))
    seen: dict[str, list[float]] = {name: [] for name in stores}
    for number in range(scale.rounds):
        for name, store in stores.items():
            if number < rounds[name]:
                telling(name, f"round {number + 1} of")
                seen[name].append(_round(store, case, calls[name]))
    return seen


def _pace(store: Store, case: Case, seconds: float) -> tuple[int, float]:
    """Warm up, and return how many calls fit into a round, and how long that takes."""
    calls = 1 if case.threads == 1 else 64 * case.threads
    taken = _taken(store, case, calls)
    # What comes first makes connections and statements, so it tells nothing, unless it is very long of itself.
    while not case.once and calls < _MOST_CALLS and (taken < 10 * seconds or case.threads > 1):
        taken = _taken(store, case, calls)
        if taken > seconds / 4:
            break
        calls = min(calls * 8, _MOST_CALLS)
    fitting = 1 if case.once else max(1, min(_MOST_CALLS, int(calls * seconds / taken)))
    fitting += -fitting % case.threads
    return fitting, taken * fitting / calls


def _taken(store: Store, case: Case, calls: int) -> float:
    return _round(store, case, calls) * calls * case.batch


def _round(store: Store, case: Case, calls: int) -> float:
    """Return seconds per operation, or the bytes that a case finds."""
    if store.script is not None:
        return store.script(case.script, case.keys, case.size, case.threads, calls) / calls
    work = case.work(store, case, calls)
    begin = time.perf_counter()
    own = work()
    taken = time.perf_counter() - begin
    return taken / (calls * case.batch) if own is None else own
