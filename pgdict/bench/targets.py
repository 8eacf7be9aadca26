"""What pgdict promises about its speed, as far as one run can tell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pgdict.bench.contestants import OURS
from pgdict.bench.engine import Report, Result

TIMES = "\N{MULTIPLICATION SIGN}"
Verdict = Literal["ok", "missed", "not measured"]


class Outcome(NamedTuple):
    """How a target was met."""

    target: str
    bound: str
    value: float | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Target:
    """A bound for our own result, or for its proportion to another one."""

    says: str
    group: str
    case: str
    bound: float
    against: tuple[str, str, str] | None = None
    """Group, case and contestant."""
    measure: Literal["rate", "median"] = "rate"
    """What is bounded: operations per second from below, or what a result consists of from above."""
    unit: str = ""
    scale: float = 1
    """What the value is divided by."""
    difference: bool = False
    """Whether the other result is subtracted."""

    def judged(self, report: Report) -> Outcome:
        """Return how a run met it."""
        sign = "≥" if self.measure == "rate" else "≤"
        bound = f"{sign} {self.bound:g} {self.unit}".rstrip()
        ours = report.find(self.group, self.case, OURS)
        theirs = report.find(*self.against) if self.against else None
        if ours is None or (self.against and (theirs is None or theirs.contestant in report.nonstandard)):
            return Outcome(self.says, bound, None, "not measured")
        value = self._value(ours, theirs)
        met = value >= self.bound if self.measure == "rate" else value <= self.bound
        return Outcome(self.says, bound, value, "ok" if met else "missed")

    def _value(self, ours: Result, theirs: Result | None) -> float:
        if theirs and self.difference:
            return (ours.median - theirs.median) / self.scale
        base = theirs.median if theirs else 1.0
        return (ours.median / base if self.measure == "median" else base / ours.median) / self.scale


def _beside(says: str, group: str, case: str, other: str, bound: float) -> Target:
    return Target(says, group, case, bound, (group, case, other), unit=TIMES)


_FEWER = ("growth", "10,000", OURS)
_POOL = ("import", "import", "psycopg")

TARGETS = (
    Target("d[k], latency against pgbench", "get", "hit", 1.6, ("get", "hit", "pgbench"), "median", TIMES),
    _beside("d[k] against redis-py on a unix socket", "get", "hit", "Redis", 1.3),
    _beside("d[k] = v against redis-py", "set", "64 B", "Redis", 1.1),
    _beside("increment against redis-py", "increment", "increment", "Redis", 1.0),
    _beside("d[k] against pool + connection.execute", "get", "hit", "psycopg", 2.0),
    _beside("d[k] = v against pool + connection.execute", "set", "64 B", "psycopg", 1.5),
    _beside("8 threads, d[k], against redis-py's", "threads", "8", "Redis", 1.8),
    _beside("set_many of 100,000 against COPY", "set_many", "100,000", "COPY", 0.33),
    Target("get_many", "get_many", "100,000", 500, unit="k values/s", scale=1000),
    Target("items()", "items", "100,000", 400, unit="k items/s", scale=1000),
    Target("memory, 10,000,000 loaded and iterated", "memory", "client, 10,000,000", 64, None, "median", "MB", 2**20),
    Target("first item of an iteration", "first", "all", 10, None, "median", "ms", 1e-3),
    Target("first item of a namespace of 10,000", "first", "namespace", 10, None, "median", "ms", 1e-3),
    Target("d[k] among 10,000,000, latency against 10,000", "growth", "10,000,000", 1.3, _FEWER, "median", TIMES),
    Target("import, above psycopg_pool's", "import", "import", 150, _POOL, "median", "ms", 1e-3, difference=True),
)


def judge(report: Report) -> Iterator[Outcome]:
    """Return how a run met the targets that concern the groups it ran."""
    groups = {group.name for group in report.groups}
    return (target.judged(report) for target in TARGETS if target.group in groups)
