"""Memoized functions in many processes: computed once, whoever dies, and never in a circle."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import ExitStack
from typing import Any

import pytest
from processes import at_once, eventually, program, result, said

from pgdict import PgDict

D = PgDict[Any, Any]
HELD = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"

CROWD = """
import threading

d = PgDict(url, table=table)

@d.memoize(name="slow")
def slow(n):
    if d.increment("computed") == 1:
        d["who"] = os.getpid()
        time.sleep(float(sys.argv[3]))
    else:
        time.sleep(0.3)
    return n * n

def call():
    while "go" not in d:
        time.sleep(0.005)
    d.increment("begun")
    assert slow(7) == 49
    d.increment("done")

threads = [threading.Thread(target=call) for _ in range(8)]
for thread in threads:
    thread.start()
d.increment("ready")
for thread in threads:
    thread.join()
info = slow.cache_info()
print(info.hits + info.waits, info.misses, info.errors, info.entries)
"""


@pytest.mark.parametrize("killed", [False, True])
def test_computed_once(d: D, server_url: str, table: str, killed: bool) -> None:
    """Eight threads in each of eight processes call at once: one computes; killed half-way, exactly one more does."""
    with ExitStack() as stack:
        crowd = [stack.enter_context(program(CROWD, server_url, table, 600 if killed else 1)) for _ in range(8)]
        assert eventually(lambda: d.get("ready") == 8, 60)
        d["go"] = True
        assert eventually(lambda: d.get("begun") == 64, 40)
        assert eventually(lambda: "who" in d, 40)
        assert d["computed"] == 1
        if killed:
            assert "done" not in d
            os.kill(d["who"], signal.SIGKILL)
            crowd = [process for process in crowd if process.pid != d["who"]]
        outcomes = [[int(number) for number in result(process).split()] for process in crowd]
    assert len(outcomes) == (7 if killed else 8)
    shared, misses, errors, entries = (sum(column) for column in zip(*outcomes, strict=True))
    assert (misses, errors, entries) == (1, 0, len(outcomes))
    assert shared == 8 * len(outcomes) - 1
    assert d["computed"] == (2 if killed else 1)


NESTED = """
d = PgDict(url, table=table, max_size=int(sys.argv[4]))

@d.memoize(name="load")
def load():
    d.increment("loads")
    time.sleep(1.5)
    return "model"

@d.memoize(name="use")
def use(n):
    return load() + str(n)

print(use(int(sys.argv[3])))
"""


def test_computed_once_for_others(d: D, server_url: str, table: str) -> None:
    """What several computations need is computed once, however long it takes, also with one connection each."""
    with ExitStack() as stack:
        users = [stack.enter_context(program(NESTED, server_url, table, n, 1)) for n in range(4)]
        assert [result(user) for user in users] == [f"model{n}" for n in range(4)]
    assert d["loads"] == 1


CIRCLE = """
import threading
d = PgDict(url, table=table, max_size=2)
here, there = sys.argv[3:5]

def other(name, depth):
    if depth == 2:  # until everybody computes
        d.increment("inside")
        while d["inside"] < 3:
            time.sleep(0.005)
    return functions[name](depth - 1) if depth else 1

followers = {"f": "g", "g": "h", "h": "f"}
functions = {}
for name in followers:
    def call(depth, name=name):
        return name + str(other(followers[name], depth))
    functions[name] = d.memoize(name=name, key=lambda depth: 0)(call)

def follow():  # so that the computation waits for what another thread here asks for already
    if here != "f":
        while d.get("inside", 0) < 3:
            time.sleep(0.005)
        functions[there](1)

threads = [threading.Thread(target=follow) for _ in range(2)]
for thread in threads:
    thread.start()
print(functions[here](2))
for thread in threads:
    thread.join()
"""


def test_circle_of_processes(d: D, server_url: str, table: str) -> None:
    """Three processes whose computations wait for each other go on by themselves, with threads that wait there, too."""
    with ExitStack() as stack:
        circle = [stack.enter_context(program(CIRCLE, server_url, table, *pair)) for pair in ("fg", "gh", "hf")]
        began = time.monotonic()
        assert all(result(process)[:1] == name for process, name in zip(circle, "fgh", strict=True))
        assert time.monotonic() - began < 20


def test_circle_of_threads(d: D) -> None:
    """So do two threads."""
    both = threading.Barrier(2)

    def call(name: str, depth: int) -> str:
        if depth == 2:
            both.wait(10)
        other = "g" if name == "f" else "f"
        return name + functions[other](other, depth - 1) if depth else name

    functions = {name: d.memoize(name=name, ignore=("depth",))(call) for name in "fg"}
    results = at_once(lambda: functions["f"]("f", 2), lambda: functions["g"]("g", 2), timeout=10)
    assert [text[:2] for text in results] == ["fg", "gf"]
    locks = d._session.locks._connection
    assert locks
    assert locks.execute(HELD).fetchone() == (0,)


FORKS = """
d = PgDict(url, table=table)

@d.memoize(name="f")
def f(n):
    if n == 1:
        child = os.fork()
        if child == 0:
            assert f(2) == 4
            try:
                return n * n  # the child ends its copy of the computation
            finally:
                d.increment("child")
        os.waitpid(child, 0)
        assert d["child"] == 1
        with PgDict(url, table=table) as other:
            assert other._session.locks.attempt(number) is None, "the child freed the lock of its parent"
    return n * n

from pgdict.keys import lock_number
number = lock_number(d._session.table.layout.table, "memo", "memo:f:" + f.cache_key(1))
parent = os.getpid()
assert f(0) == 0
assert f(1) == 1
if os.getpid() != parent:
    os._exit(0)
child = os.fork()
if child == 0:
    assert [f(n) for n in range(5)] == [0, 1, 4, 9, 16]
    print(*f.cache_info(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(f(4), f.cache_info().entries)
"""


def test_fork(d: D, server_url: str, table: str) -> None:
    """A forked child, also of a computation, has connections and locks of its own and leaves those of its parent alone."""
    with program(FORKS, server_url, table) as process:
        child, parent = result(process).splitlines()
    assert parent == "16 5"
    assert child.split()[-1] == "5"


FORKS_MEANWHILE = """
import threading
d = PgDict(url, table=table)
begun, go = threading.Event(), threading.Event()

@d.memoize(name="f")
def f():
    begun.set()
    go.wait()
    return os.getpid()

computing = threading.Thread(target=f)
computing.start()
begun.wait()
child = os.fork()
if child == 0:
    d["asked"] = True
    os._exit(f() != os.getppid())
while "asked" not in d:
    time.sleep(0.01)
time.sleep(0.1)
go.set()
print(os.waitpid(child, 0)[1])
"""


def test_fork_while_computing(d: D, server_url: str, table: str) -> None:
    """A child that is forked while another thread computes waits for that result, and gets it."""
    with program(FORKS_MEANWHILE, server_url, table) as process:
        assert result(process) == "0"


FORKS_COUNTING = """
from pgdict import memo
d = PgDict(url, table=table)

@d.memoize(name="f")
def f():
    return 1

f()
with memo._counting:  # as another thread may hold it at that moment
    child = os.fork()
    if child == 0:
        os._exit(f() != 1)
print(os.waitpid(child, 0)[1])
"""


def test_fork_while_counting(d: D, server_url: str, table: str) -> None:
    """A child that is forked while another thread counts a hit does not wait for that thread, which it has not."""
    with program(FORKS_COUNTING, server_url, table) as process:
        assert result(process) == "0"


INTERRUPTED = """
d = PgDict(url, table=table)

@d.memoize(name="f")
def f():
    print("computing", flush=True)
    time.sleep(0 if "again" in d else 60)
    return 1

try:
    f()
except KeyboardInterrupt:
    print("interrupted", flush=True)
sys.stdin.readline()
"""


def test_interrupted(d: D, server_url: str, table: str) -> None:
    """Ctrl-C while computing frees the lock at once, though the process lives on."""
    f = d.memoize(name="f", wait=5)(lambda: 2)
    with program(INTERRUPTED, server_url, table) as process:
        assert said(process) == "computing"
        d["again"] = True
        process.send_signal(signal.SIGINT)
        assert said(process) == "interrupted"
        assert f() == 2


WAITING = """
d = PgDict(url, table=table)
f = d.memoize(name="f")(lambda: 3)
print("ready", flush=True)
try:
    f()
except KeyboardInterrupt:
    print("interrupted", flush=True)
sys.stdin.readline()
print(f(), flush=True)
"""


def test_interrupted_while_waiting(d: D, server_url: str, table: str) -> None:
    """So does Ctrl-C while waiting for somebody else, at any moment."""
    go, ready = threading.Event(), threading.Event()

    @d.memoize(name="f")
    def f() -> int:
        ready.set()
        go.wait(60)
        raise LookupError

    with ExitStack() as stack:
        computing = threading.Thread(target=pytest.raises, args=(LookupError, f))
        computing.start()
        stack.callback(computing.join)
        stack.callback(go.set)
        assert ready.wait(10)
        waiting = [stack.enter_context(program(WAITING, server_url, table)) for _ in range(4)]
        for n, process in enumerate(waiting):
            assert said(process) == "ready"
            time.sleep(0.3 + n / 100)
            process.send_signal(signal.SIGINT)
            assert said(process) == "interrupted"
        go.set()
        computing.join()
        assert d.memoize(name="f", wait=5)(lambda: 3)() == 3


ELSEWHERE = """
d = PgDict(url, table=table)
f = d.memoize(name="f")(lambda words, **more: 1 / 0)
print(f({"c", "a", "b"}, y=1, x=frozenset("zyx")))
"""


def test_other_hash_seed(d: D, server_url: str, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process with another hash seed finds the results of this one."""
    f = d.memoize(name="f")(lambda words, **more: [*sorted(words), *sorted(more)])
    f({"b", "a", "c"}, x=frozenset("xyz"), y=1)
    monkeypatch.setenv("PYTHONHASHSEED", "99")
    with program(ELSEWHERE, server_url, table) as process:
        assert result(process) == "['a', 'b', 'c', 'x', 'y']"
