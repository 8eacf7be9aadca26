# ruff: noqa: PT012 - it is the end of a longer block that raises
from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from cluster import Pooler
from processes import at_once, eventually, program, result, said

from pgdict import ConnectionFailed, LockTimeout, PgDict, PgDictError


class Oops(Exception):
    pass


@pytest.fixture
def other(server_url: str, table: str, d: PgDict[Any, Any]) -> Iterator[PgDict[Any, Any]]:
    """Somebody else: another session has a connection of its own for its locks, as another process."""
    with PgDict[Any, Any](server_url, table=table) as other:
        yield other


def taken(d: PgDict[Any, Any], name: str = "name", n: int = 0) -> bool:
    """Tell whether somebody holds the lock, or all places of the semaphore."""
    try:
        with d.semaphore(name, n, timeout=0) if n else d.lock(name, timeout=0):
            return False
    except LockTimeout:
        return True


def holder(d: PgDict[Any, Any]) -> int:
    connection = d._session.locks._connection
    assert connection
    return connection.info.backend_pid


def terminate(server_url: str, pid: int) -> None:
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))


def test_exclusive(d: PgDict[Any, Any], other: PgDict[Any, Any]) -> None:
    """A lock has one holder: neither another thread nor another process has it until the block ends."""
    with d.lock("name"):
        assert taken(other)
        assert at_once(lambda: taken(d)) == [True]
        assert not taken(other, "another")
        assert not taken(other.namespace("n"))
    assert not taken(other)
    with pytest.raises(Oops), other.lock("name"):
        assert taken(d)
        raise Oops
    assert not taken(d)


CROWD = """
import threading
d = PgDict(url, table=table)
def work():
    for _ in range(10):
        with d.lock("counter"):
            n = d["n"]
            time.sleep(0.001)
            d["n"] = n + 1
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def test_crowd(d: PgDict[Any, Any], server_url: str, table: str) -> None:
    """Read, think and write, guarded by a lock, loses nothing among four processes of four threads."""
    d["n"] = 0
    with ExitStack() as stack:
        for process in [stack.enter_context(program(CROWD, server_url, table)) for _ in range(4)]:
            result(process)
    assert d["n"] == 160


def test_timeout(d: PgDict[Any, Any], other: PgDict[Any, Any]) -> None:
    """0 tries once, a number waits so long, None until it is free."""
    with d.lock("name"):
        for timeout in (0, 0.3):
            begin = time.monotonic()
            with pytest.raises(LockTimeout, match="'name'") as caught, other.lock("name", timeout=timeout):
                pytest.fail("it is taken")
            assert timeout <= time.monotonic() - begin < timeout + 1
            assert caught.value.recoverable
            assert isinstance(caught.value, TimeoutError)
        waiting = threading.Thread(target=other.lock("name").__enter__)
        waiting.start()
        time.sleep(0.2)
        assert waiting.is_alive()
    waiting.join(5)
    assert not waiting.is_alive()


def test_not_by_itself_elsewhere(d: PgDict[Any, Any], other: PgDict[Any, Any], server_url: str, table: str) -> None:
    """Nor does a thread wait for ever for a lock, or all places of a semaphore, that it holds through another dictionary."""
    with d.lock("name"), pytest.raises(PgDictError, match="already holds"), other.lock("name"):
        pytest.fail("it has it")
    with d.semaphore("two", 2), other.semaphore("two", 2), PgDict[Any, Any](server_url, table=table) as third:
        with pytest.raises(PgDictError, match="already holds"), third.semaphore("two", 2):
            pytest.fail("it has one")
        with third.lock("name"):
            assert at_once(lambda: taken(d)) == [True]


def test_not_by_itself(d: PgDict[Any, Any]) -> None:
    """A thread that would wait for itself is told so, and keeps what it has."""
    with d.lock("name"):
        with pytest.raises(PgDictError, match="already holds"), d.lock("name"):
            pytest.fail("it has it")
        with d.lock("another"), d.namespace("n").lock("name"):
            assert at_once(lambda: taken(d), lambda: taken(d, "another")) == [True, True]
    two = d.semaphore("two", 2), d.semaphore("two", 2), d.semaphore("two", 2)
    with two[0], two[1], pytest.raises(PgDictError, match="already holds"), two[2]:
        pytest.fail("it has both")
    assert not taken(d)
    assert not taken(d, "two", 2)


def test_semaphore(d: PgDict[Any, Any], other: PgDict[Any, Any]) -> None:
    """A semaphore of n has n places for all, no more and no less."""
    with d.semaphore("s", 3), other.semaphore("s", 3), other.semaphore("s", 3):
        assert taken(d, "s", 3)
        assert at_once(lambda: taken(other, "s", 3)) == [True]
        assert not taken(d, "s")
    now = [0]
    peak = [0]

    def work(d: PgDict[Any, Any]) -> None:
        for _ in range(5):
            with d.semaphore("s", 3):
                now[0] += 1
                peak[0] = max(peak[0], now[0])
                time.sleep(0.005)
                now[0] -= 1

    assert at_once(*[lambda: work(d), lambda: work(other)] * 4) == [None] * 8
    assert peak == [3]
    for n in (0, -1, 1.5):
        with pytest.raises(ValueError, match="one place"):
            d.semaphore("s", n)  # type: ignore[arg-type]


@pytest.mark.parametrize("killed", ["holder", "waiter"])
def test_kill(d: PgDict[Any, Any], server_url: str, table: str, killed: str) -> None:
    """The lock of a process that is killed is free at once; one that is killed while waiting takes nothing along."""
    code = "d = PgDict(url, table=table)\nwith d.lock('name'):\n    print('has it', flush=True)\n    time.sleep(60)"
    with program(code, server_url, table) as first:
        assert said(first) == "has it"
        with program(code, server_url, table) as second:
            time.sleep(0.5)
            (first if killed == "holder" else second).kill()
            if killed == "holder":
                assert said(second) == "has it"
                second.kill()
            else:
                assert taken(d)
                first.kill()
            begin = time.monotonic()
            with d.lock("name", timeout=5):
                assert time.monotonic() - begin < 1


def test_lost_connection(d: PgDict[Any, Any], other: PgDict[Any, Any], server_url: str) -> None:
    """A lock that is lost with its connection is an error at the end of the block; then locks work again."""
    with pytest.raises(ConnectionFailed, match="'name' was lost"), d.lock("name"), other.lock("another"):
        terminate(server_url, holder(d))
        assert not taken(other)
        with d.lock("third"):  # on a new connection
            pass
    with d.lock("name", timeout=0), other.lock("another", timeout=0):
        assert taken(other)
    with pytest.raises(Oops), d.lock("name"):
        terminate(server_url, holder(d))
        raise Oops
    terminate(server_url, holder(other))
    assert not taken(other)


def test_no_slot(server_url: str, table: str) -> None:
    """Locks need no connection of the pool, however many threads hold and want them."""
    with PgDict[Any, Any](server_url, table=table, max_size=1, timeout=1) as d, d.transaction():
        d["n"] = 0

        def work(name: str) -> None:
            with d.lock(name, timeout=5):
                time.sleep(0.01)

        assert at_once(*[lambda: work("a"), lambda: work("b")] * 8) == [None] * 16


WAITERS = """
import threading
d = PgDict(url, table=table)
def wait():
    with d.lock("name"):
        pass
threads = [threading.Thread(target=wait) for _ in range(16)]
for thread in threads: thread.start()
time.sleep(0.5)
begin = time.process_time()
time.sleep(2)
print(time.process_time() - begin, flush=True)
for thread in threads: thread.join()
"""


def test_waiters(d: PgDict[Any, Any], server_url: str, table: str) -> None:
    """Sixteen threads that wait for another process's lock take little of a processor."""
    with program(WAITERS, server_url, table) as waiters:
        with d.lock("name"):
            seconds = float(said(waiters))
        assert result(waiters) == ""
    assert seconds < 0.4


NAMES = ["", "\0", "a\0b", "\ud800", "ä", "n:name", "name", ":", "x" * 10_000, "lock\0name", "1"]


def test_names(d: PgDict[Any, Any]) -> None:
    """Any text is a name, and each is another lock, in each namespace, table and database."""
    everywhere = [d, d.namespace("n"), d.namespace("n", "m"), d.namespace("\0lock\0"), d.namespace("\ud800")]
    with ExitStack() as stack:
        for place in everywhere:
            for name in NAMES:
                stack.enter_context(place.lock(name, timeout=0))
                stack.enter_context(place.semaphore(name, 2, timeout=0))
                stack.enter_context(place.semaphore(name, 2, timeout=0))
        stack.enter_context(d.lock(":\0lock\0a", timeout=0))
        stack.enter_context(d.namespace("\0lock\0").lock("a", timeout=0))


def test_fork(d: PgDict[Any, Any], other: PgDict[Any, Any]) -> None:
    """A child that is forked inside the block holds nothing, frees nothing, and takes locks of its own."""
    reader, writer = os.pipe()
    child = 0
    with d.lock("name"):
        if (child := os.fork()) == 0:
            os.write(writer, b"%d" % taken(d))
        else:
            os.close(writer)
            os.waitpid(child, 0)
            assert taken(other)
    if child == 0:
        try:
            os.write(writer, b", %d, %d" % (taken(d), taken(d, "another")))
        finally:
            os._exit(0)
    with os.fdopen(reader) as text:
        assert text.read() == "1, 1, 0"
    assert not taken(other)


def test_thread_exit(d: PgDict[Any, Any], other: PgDict[Any, Any]) -> None:
    """A thread that ends without leaving its block frees the lock when the block is forgotten."""
    thread = threading.Thread(target=lambda: d.lock("name").__enter__())
    thread.start()
    thread.join()
    gc.collect()
    assert not taken(other)
    assert not taken(d)


def test_closed(d: PgDict[Any, Any], other: PgDict[Any, Any]) -> None:
    """Closing the dictionary frees its locks, and a closed one has none."""
    with pytest.raises(ConnectionFailed, match="lost"), d.lock("name"):
        d.close()
        assert not taken(other)
    with pytest.raises(PgDictError, match="closed"), d.lock("name"):
        pytest.fail("it is closed")


def test_inside_transaction(d: PgDict[Any, Any], other: PgDict[Any, Any]) -> None:
    """A lock is held for its block alone, whatever becomes of the transaction around it."""
    with pytest.raises(Oops), d.transaction():
        with d.lock("name"):
            assert taken(other)
        assert not taken(other)
        raise Oops
    with d.snapshot() as then, then.lock("name"):
        assert taken(other)
    assert not taken(other)


@pytest.fixture
def pooler(server_url: str) -> Iterator[Pooler]:
    """A pooler in transaction mode."""
    own = Pooler(server_url)
    yield own
    own.close()


def test_pooler(pooler: Pooler, table: str) -> None:
    """Behind a pooler that shares connections between transactions a lock has one holder, too, and leaves nothing behind."""
    with PgDict[Any, Any](pooler.url, table=table) as d, PgDict[Any, Any](pooler.url, table=table) as other:
        for holder, waiter in [(d, other), (other, d)]:
            with holder.lock("name"), holder.lock("another"):
                holder["n"] = 1
                assert taken(waiter)
                assert taken(waiter, "another")
                with waiter.lock("third"):
                    assert at_once(lambda: taken(d, "third"), lambda: taken(other, "third")) == [True, True]
            assert not taken(waiter)
        with pytest.raises(ConnectionFailed, match="lost"), d.lock("name"):
            d.close()
            assert eventually(lambda: not taken(other))
        with other.lock("another"), other.semaphore("s", 2), other.semaphore("s", 2):
            assert at_once(lambda: taken(other, "s", 2)) == [True]


def test_pooler_memoize(pooler: Pooler, table: str) -> None:
    """Behind such a pooler one computes for all."""
    with PgDict[Any, Any](pooler.url, table=table) as d, PgDict[Any, Any](pooler.url, table=table) as other:
        calls = []

        def compute(n: int) -> int:
            calls.append(n)
            time.sleep(0.05)
            return n

        one, two = (each.memoize(name="f")(compute) for each in (d, other))
        assert at_once(*[lambda: sum(map(one, range(5))), lambda: sum(map(two, range(5)))] * 3) == [10] * 6
        assert sorted(calls) == list(range(5))
