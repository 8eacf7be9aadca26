"""Fork, pickle, spawn, exit: what becomes of a dictionary when processes begin and end."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import Any

import psycopg
import pytest
from processes import START, eventually
from psycopg_pool import ConnectionPool

from pgdict import PgDict
from pgdict.errors import ConnectionFailed, PgDictError

Dict = PgDict[Any, Any]

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def in_child(work: Callable[[], Any]) -> Any:
    """Return what `work` returns in a forked process, which then ends without any cleaning up."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: forking with threads, which is what is tested
        child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(30)  # rather than hang
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the parent shall see it
            result = error
        os.write(writer, pickle.dumps(result))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    result = pickle.loads(answer)
    if isinstance(result, BaseException):
        raise result
    return result


def backend(d: Dict) -> int:
    """Return the server's process that a connection of the dictionary's talks to."""
    with d._session.connection() as connection:
        return connection.info.backend_pid


def connections(url: str, name: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", (name,)).fetchone()
        return int(row[0]) if row else 0


# Fork ----------------------------------------------------------------------------------------------------------------


@forks
def test_fork(d: Dict) -> None:
    """A forked child has connections of its own, the parent keeps its own, and the child's end disturbs nobody."""
    d["a"] = 1
    parent = backend(d)

    def work() -> tuple[Any, int]:
        d["child"] = d["a"] + 1
        d.namespace("n")["x"] = 3
        return d["child"], backend(d)

    for _ in range(3):
        value, child = in_child(work)
        assert value == 2
        assert child != parent
        assert backend(d) == parent
    assert dict(d.items()) == {"a": 1, "child": 2, "n:x": 3}


@forks
@pytest.mark.parametrize("max_size", [1, 4])
def test_fork_while_threads_work(server_url: str, table: str, max_size: int) -> None:
    """A fork in the midst of other threads' statements leaves both sides right, whatever was held at that moment."""
    stop = threading.Event()
    with PgDict[Any, Any](server_url, table=table, max_size=max_size, timeout=10) as d, ThreadPoolExecutor(4) as pool:

        def work(me: int) -> int:
            n = 0
            while not stop.is_set():
                d["parent", me] = n
                with d.transaction():
                    assert d["parent", me] == n
                n += 1
            return n

        def child_work(number: int) -> list[int]:
            for n in range(5):
                d["child", number] = n
                assert d["child", number] == n
            with ThreadPoolExecutor(3) as threads:
                return list(threads.map(lambda _: d.increment("count"), range(6)))

        futures = [pool.submit(work, me) for me in range(4)]
        try:
            counts = [count for number in range(12) for count in in_child(partial(child_work, number))]
        finally:
            stop.set()
        assert sorted(counts) == list(range(1, 73))
        written = [future.result(timeout=20) for future in futures]
        assert [d["parent", me] for me in range(4)] == [n - 1 for n in written]


@forks
def test_fork_in_a_transaction(d: Dict) -> None:
    """A child forked inside a transaction is outside of it: the parent's end of the block is the only one."""
    with d.transaction():
        d["parent"] = 1

        def work() -> tuple[Any, Any]:
            seen = d.get("parent")
            d["child"] = 2
            with d.transaction():
                d["child"] += 1
            return seen, d["child"]

        assert in_child(work) == (None, 3)
        assert d["child"] == 3
        assert d["parent"] == 1
    assert dict(d.items()) == {"parent": 1, "child": 3}


@forks
@pytest.mark.parametrize("fails", [False, True])
def test_fork_leaving_a_transaction(d: Dict, fails: bool) -> None:
    """A child that leaves the parent's block, well or with an exception, neither commits nor undoes it."""

    class LeavingError(Exception):
        pass

    parent = os.getpid()
    reader, writer = os.pipe()
    try:
        with d.transaction():
            d["a"] = 1
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if child and fails:
                os.waitpid(child, 0)
            if not child and fails:
                raise LeavingError
        if not child:
            os.write(writer, repr(d.get("a")).encode())
    except LeavingError:
        os.write(writer, repr(d.get("a")).encode())
    finally:
        if os.getpid() != parent:
            os._exit(0)
    if not fails:
        os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        assert pipe.read() in (("None",) if fails else ("None", "1"))
    assert d["a"] == 1


@forks
def test_fork_while_iterating(d: Dict) -> None:
    """An iteration that is under way goes on in both processes, and each sees all of it."""
    d.update((n, n) for n in range(12_000))
    iterator = iter(d.items())
    first = [next(iterator) for _ in range(3)]
    expected = [(n, n) for n in range(12_000)]
    assert first + in_child(lambda: list(iterator)) == expected
    assert first + list(iterator) == expected


@forks
def test_fork_and_close(d: Dict) -> None:
    """A child that closes the dictionary closes it for itself."""

    def work() -> str:
        d.close()
        with pytest.raises(PgDictError, match="closed"):
            d["a"]
        return "closed"

    d["a"] = 1
    assert in_child(work) == "closed"
    assert d["a"] == 1


@forks
def test_fork_after_close(d: Dict) -> None:
    """A dictionary that the parent has closed is closed in a child."""

    def work() -> None:
        d["a"] = 1

    d.close()
    with pytest.raises(PgDictError, match="closed"):
        in_child(work)


@forks
def test_fork_of_a_fork(d: Dict) -> None:
    """Grandchildren are like children."""

    def child() -> list[int]:
        mine = backend(d)
        theirs = in_child(lambda: backend(d))
        assert backend(d) == mine
        return [mine, theirs]

    assert len({backend(d), *in_child(child)}) == 3


# Other processes -----------------------------------------------------------------------------------------------------


def add(d: Dict, key: Any) -> int:
    """For worker processes: tell who did it, and where."""
    d[key] = os.getpid()
    return d.increment("count")


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_multiprocessing(d: Dict, method: str) -> None:
    """A dictionary can be handed to processes, however they are started."""
    context: Any = multiprocessing.get_context(method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        processes = [context.Process(target=add, args=(d.namespace("n"), key)) for key in "ab"]
        for process in processes:
            process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert d["n:count"] == 2
    assert {d["n:a"], d["n:b"]} == {process.pid for process in processes}


def test_process_pool(d: Dict) -> None:
    """A dictionary is an argument like any other for a pool of processes."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        assert sorted(pool.map(add, [d] * 20, range(20))) == list(range(1, 21))
    assert len(d) == 21
    assert os.getpid() not in d.values()


# Pickle --------------------------------------------------------------------------------------------------------------


class Custom(PgDict[Any, Any]):
    """A subclass, as an application would have it."""

    def __missing__(self, key: Any) -> str:
        return f"no {key}"


def test_pickle(server_url: str, table: str) -> None:
    """What comes back is the same dictionary: same table, prefix, codec, ttl and class."""
    with Custom(server_url, table=table, codec="json", ttl=60, max_key_length=100, max_size=3, application_name="me") as d:
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            copy = pickle.loads(pickle.dumps(d, protocol))
            copy["a"] = [1]
            assert type(copy) is Custom
            assert copy["b"] == "no b"
            assert d == copy == {"a": [1]}
            assert 50 < (copy.ttl("a") or 0) <= 60
            assert repr(copy) == repr(d)
            with pytest.raises(TypeError, match="json"):
                copy["c"] = {1}
        n = pickle.loads(pickle.dumps(d.namespace("x", "y", codec="text", ttl=None)))
        n["a"] = "text"
        assert d["x:y:a"] == "text"
        assert n.ttl("a") is None
        assert dict(n.items()) == {"a": "text"}
        assert pickle.loads(pickle.dumps([d, n]))[1]["a"] == "text"
        copy.close()


def test_pickle_elsewhere(monkeypatch: pytest.MonkeyPatch, server_url: str, table: str) -> None:
    """What is unpickled is where the original was, whatever the current directory and the environment are there."""
    monkeypatch.setenv("PGDICT_URL", server_url)
    with PgDict[Any, Any](table=table) as d:
        d["a"] = 1
        monkeypatch.setenv("PGDICT_URL", "postgresql://nowhere")
        copy = pickle.loads(pickle.dumps(d))
        assert copy["a"] == 1
        copy.close()


def test_unpickled_share_connections(server_url: str, table: str) -> None:
    """However many times a dictionary is unpickled in a process, there is one set of connections, which goes when they go."""
    name = f"pgdict {table}"
    with PgDict[Any, Any](server_url, table=table, application_name=name) as d:
        data = [pickle.dumps(d), pickle.dumps(d.namespace("n"))]
        before = connections(server_url, name)
        copies = [pickle.loads(data[n % 2]) for n in range(20)]
        for n, copy in enumerate(copies):
            copy[n] = n
        assert len({id(copy._session) for copy in copies}) == 1
        assert connections(server_url, name) == before + 1
        with copies[0].transaction():
            copies[1]["both"] = 1
            assert copies[0]["n:both"] == 1
            assert "n:both" not in d
        del copies, copy
        gc.collect()
        assert eventually(lambda: connections(server_url, name) == before)
        again = pickle.loads(data[0])
        again.close()
        once_more = pickle.loads(data[0])
        assert once_more["n:both"] == 1
        once_more.close()


def test_unpickling_in_many_threads(d: Dict) -> None:
    """Threads that unpickle at once get one session."""
    data = pickle.dumps(d)
    with ThreadPoolExecutor(8) as pool:
        copies = list(pool.map(lambda _: pickle.loads(data), range(16)))
    assert len({id(copy._session) for copy in copies}) == 1
    copies[0].close()


def test_pickle_of_borrowed_connections(server_url: str, table: str) -> None:
    """A dictionary on the application's own pool or connection cannot be pickled, and says why."""
    with (
        ConnectionPool(server_url, min_size=1, max_size=1, open=True) as pool,
        psycopg.connect(server_url) as connection,
    ):
        for d in (PgDict[Any, Any](pool=pool, table=table), PgDict[Any, Any](connection=connection, table=table)):
            for part in (d, d.namespace("n")):
                with pytest.raises(TypeError, match="the application's own pool or connection"):
                    pickle.dumps(part)


def reopen_and_set(data: bytes, value: int) -> None:
    pickle.loads(data)["n"] = value


@forks
def test_fork_while_unpickling(d: Dict) -> None:
    """A child that is forked while another thread unpickles can unpickle too."""
    data = pickle.dumps(d)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            pickle.loads(data).close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for n in range(10):
            in_child(partial(reopen_and_set, data, n))
            assert d["n"] == n
    finally:
        stop.set()
        thread.join()


# The end -------------------------------------------------------------------------------------------------------------

ENDS = {
    "plain": "",
    "namespace": "n = d.namespace('n'); n['a'] = 1; del d",
    "iterating": "it = iter(d.items()); next(it)",
    "in a cycle": "d.me = [d]; del d",
    "in a transaction": "block = d.transaction(); block.__enter__(); d['a'] = 2",
    "threads": "import concurrent.futures as f\np = f.ThreadPoolExecutor(4); list(p.map(d.get, 'aaaaaaaa'))",
    "threads busy": """
import threading, time
def work():
    while True:
        d['a'] = 1
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
""",
    "forked": """
import os, warnings
warnings.simplefilter('ignore', DeprecationWarning)
child = os.fork()
if not child:
    d['child'] = d['a']
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert d['child'] == 1
""",
    "forked in a transaction": """
import os, warnings
warnings.simplefilter('ignore', DeprecationWarning)
with d.transaction():
    d['b'] = 1
    child = os.fork()
    if not child:
        d['child'] = 1
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
assert d['child'] == d['b'] == 1
""",
    "used at exit": "import atexit; atexit.register(lambda: d.set('a', 3))",
    "lock": "lock = d.lock('x'); lock.__enter__()",
    "snapshot": "s = d.snapshot(); seen = s.__enter__(); seen['a']",
    "background": "b = PgDict(url, table=table, cleanup='background'); b['a'] = 1",
    "closed": "d.close()",
    "unpickled": "import pickle; e = pickle.loads(pickle.dumps(d)); e['a'] = 1",
    "mutating": "box = d.mutate('a'); box.__enter__()",
}


SELDOM = ("namespace", "iterating", "threads", "lock", "unpickled", "closed", "mutating")
ALL_ENDS = [pytest.param(code, id=name, marks=pytest.mark.slow if name in SELDOM else ()) for name, code in ENDS.items()]


@pytest.mark.parametrize("end", ALL_ENDS)
def test_exit(server_url: str, table: str, end: str) -> None:
    """A program that ends without closing ends at once, says nothing, and leaves no connection behind."""
    code = START + "d = PgDict(url, table=table, application_name=table)\nd['a'] = 1\n" + end
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", code, server_url, table],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.monotonic() - begin < 10
    assert eventually(lambda: connections(server_url, table) == 0)


def test_garbage(server_url: str, table: str) -> None:
    """A dictionary that nobody refers to any more has closed its connections, when the last namespace and iterator are gone."""
    name = f"pgdict {table}"
    d: Dict | None = PgDict[Any, Any](server_url, table=table, application_name=name)
    assert d is not None
    d.update((n, n) for n in range(10))
    n: Dict | None = d.namespace("n")
    iterator = iter(d.values())
    next(iterator)
    del d
    gc.collect()
    assert connections(server_url, name) == 1
    assert list(iterator) == list(range(1, 10))
    assert n is not None
    n["a"] = 1
    del n, iterator
    gc.collect()
    assert eventually(lambda: connections(server_url, name) == 0)


def test_close(server_url: str, table: str) -> None:
    """Closing closes all connections, for the namespaces too; once more is fine; later use is a clear error."""
    name = f"pgdict {table}"
    d = PgDict[Any, Any](server_url, table=table, application_name=name)
    n = d.namespace("n")
    d["a"] = 1
    d.close()
    d.close()
    n.close()
    assert eventually(lambda: connections(server_url, name) == 0)
    uses: list[Callable[[], object]] = [
        lambda: d["a"],
        lambda: n.set("a", 1),
        lambda: list(d),
        lambda: len(n),
        d.clear,
        d.popitem,
        lambda: d.update(a=1),
        lambda: d.transaction().__enter__(),
        lambda: d.snapshot().__enter__(),
        lambda: d.lock("x").__enter__(),
        lambda: d.mutate("a").__enter__(),
        d.drop,
        d.stats,
    ]
    for use in uses:
        with pytest.raises(PgDictError, match="closed"):
            use()
    assert "closed" in repr(d)
    with d as same:
        assert same is d


def test_close_in_the_midst(server_url: str, table: str) -> None:
    """Threads that use, or wait for, a dictionary that is closed meanwhile get a clear error at once."""
    name = f"pgdict {table}"
    d = PgDict[Any, Any](server_url, table=table, max_size=2, timeout=20, application_name=name)
    started = threading.Barrier(9)

    def work(me: int) -> BaseException | None:
        started.wait(10)
        try:
            while True:
                with d.transaction():
                    d[me] = 1
        except PgDictError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(work, me) for me in range(8)]
        started.wait(10)
        time.sleep(0.1)
        begin = time.monotonic()
        d.close()
        errors = [future.result(timeout=10) for future in futures]
    assert time.monotonic() - begin < 2
    assert {str(error) for error in errors} == {"this PgDict is closed"}
    assert eventually(lambda: connections(server_url, name) == 0)


def test_iterating_over_a_closed_one(d: Dict) -> None:
    """An iteration ends in a clear error when the dictionary is closed and more rows are needed."""
    d.update((n, n) for n in range(6_000))
    iterator = iter(d)
    next(iterator)
    d.close()
    with pytest.raises(PgDictError, match="closed"):
        list(iterator)


def test_failed_opening(server_url: str, table: str) -> None:
    """An opening that fails leaves no connection."""
    name = f"pgdict {table}"
    with pytest.raises(PgDictError):
        PgDict(server_url, table=table, create=False, application_name=name)
    with pytest.raises(ConnectionFailed):
        PgDict("postgresql://localhost:1/nowhere", application_name=name)
    assert eventually(lambda: connections(server_url, name) == 0)
