"""What goes wrong: addresses, rights, servers, networks, and the user's patience."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cluster import PASSWORD, Cluster, Proxy, running_cluster
from conftest import remove_server
from processes import START, eventually, program, said

from pgdict import PgDict
from pgdict.errors import ConnectionFailed, PgDictError, QueryFailed

Dict = PgDict[Any, Any]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as own:
        yield own


@pytest.fixture
def proxy(cluster: Cluster) -> Iterator[Proxy]:
    own = Proxy(cluster.port)
    yield own
    own.close()


@contextmanager
def quickly(seconds: float = 1.5) -> Iterator[None]:
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < seconds


def texts(error: BaseException) -> str:
    """Return all that a user, or a log, may see of an error."""
    return "".join(traceback.format_exception(error)) + repr(error)


# Opening -------------------------------------------------------------------------------------------------------------

ADDRESSES: dict[str, tuple[Callable[[Cluster], str], str]] = {
    "password": (lambda c: c.url(password="wr0ng-s3cr3t"), 'password authentication failed for user "boss"'),
    "no password": (lambda c: f"postgresql://boss@127.0.0.1:{c.port}/postgres", "no password supplied"),
    "role": (lambda c: c.url(user="stranger"), 'password authentication failed for user "stranger"'),
    "database": (lambda c: c.url(database="nowhere"), 'database "nowhere" does not exist'),
    "port": (lambda c: c.url(port=1), "Connection refused"),
    "host": (lambda _: f"host=host.invalid user=boss password={PASSWORD}", "host.invalid"),
    "socket": (lambda _: f"host=/nowhere user=boss password={PASSWORD}", "/nowhere"),
    "driver in the url": (
        lambda c: c.url(password="wr0ng-s3cr3t").replace("postgresql:", "postgresql+psycopg:"),
        "password authentication failed",
    ),
}


@pytest.mark.parametrize("fault", ADDRESSES)
def test_wrong_address(cluster: Cluster, fault: str) -> None:
    """A wrong address or password is an error at once, in the server's words, without the password."""
    address, reason = ADDRESSES[fault]
    with quickly(), pytest.raises(ConnectionFailed, match=reason) as caught:
        PgDict(address(cluster))
    assert caught.value.recoverable
    assert not caught.value.maybe_applied
    assert not any(secret in texts(caught.value) for secret in (PASSWORD, "wr0ng-s3cr3t", PASSWORD.replace("/", "%2F")))


def test_wrong_address_in_a_program(cluster: Cluster) -> None:
    """A program that does not catch it ends with that error, and nothing hangs or is added at its end."""
    code = "import sys; from pgdict import PgDict; PgDict(sys.argv[1])"
    with quickly(10):
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-W", "error", "-c", code, cluster.url(password="wr0ng-s3cr3t")],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.returncode == 1
    assert "password authentication failed" in done.stderr.splitlines()[-1]
    assert "wr0ng-s3cr3t" not in done.stderr


def test_password_is_not_shown(cluster: Cluster) -> None:
    """Neither `repr` nor the name of a dictionary shows the password; `url` does."""
    with PgDict[Any, Any](cluster.url(), table="shown") as d:
        assert "s3cr3t" not in repr(d) + str(d) + repr(d.namespace("n")) + repr(d.items()) + repr(d._session)
        assert PASSWORD.replace("/", "%2F") in d.url
        with psycopg.connect(d.url) as connection:
            assert connection.info.password == PASSWORD


@pytest.fixture(scope="module")
def roles(cluster: Cluster) -> Cluster:
    """The cluster with roles of few rights, and a table that they may read."""
    with PgDict[Any, Any](cluster.url(), table="shared") as d:
        d.update(a=1, b="text")
        d.set("expired", 1, ttl=0.001)
    for role in ("plain", "reader", "readonly", "limited", "hurried"):
        cluster.sql(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
    cluster.sql(
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        "GRANT SELECT ON shared TO reader",
        "GRANT ALL ON shared TO readonly, limited, hurried",
        "ALTER ROLE readonly SET default_transaction_read_only = on",
        "ALTER ROLE limited CONNECTION LIMIT 2",
        "ALTER ROLE hurried SET statement_timeout = '200ms'",
    )
    return cluster


def test_no_right_to_create(roles: Cluster) -> None:
    """Who may not create a table, or a schema, is told so; and nothing is left half-made."""
    with quickly(), pytest.raises(QueryFailed, match="permission denied for schema public") as caught:
        PgDict(roles.url("plain"), table="new")
    assert caught.value.sqlstate == "42501"
    assert not caught.value.recoverable
    assert PASSWORD not in texts(caught.value)
    with quickly(), pytest.raises(QueryFailed, match="permission denied for database"):
        PgDict(roles.url("plain"), schema="new")
    with quickly(), pytest.raises(QueryFailed, match="read-only transaction"):
        PgDict(roles.url("readonly"), table="new")
    with PgDict[Any, Any](roles.url("plain"), table="shared") as d:
        for use in (lambda: d["a"], lambda: d.set("a", 1), lambda: list(d)):
            with quickly(), pytest.raises(QueryFailed, match="permission denied for table shared"):
                use()
    with pytest.raises(PgDictError, match="does not exist"):
        PgDict(roles.url(), table="new", create=False)


WRITES: dict[str, Callable[[Dict], object]] = {
    "set": lambda d: d.set("a", 2),
    "set_nx": lambda d: d.set_nx("new", 2),
    "setdefault": lambda d: d.setdefault("new", 2),
    "increment": lambda d: d.increment("a"),
    "float": lambda d: d.increment("a", 0.5),
    "pop": lambda d: d.pop("a"),
    "popitem": lambda d: d.popitem(),
    "get_and_set": lambda d: d.get_and_set("a", 2),
    "mutate": lambda d: d.mutate("a", lambda value: value + 1),
    "compare_and_swap": lambda d: d.compare_and_swap("a", 1, 2),
    "set_many": lambda d: d.set_many({"a": 2}),
    "large set_many": lambda d: d.set_many((n, "x" * 1_000_000) for n in range(20)),
    "delete_many": lambda d: d.delete_many(["a"]),
    "clear": lambda d: d.clear(),
    "expire": lambda d: d.expire("a", 5),
    "persist": lambda d: d.persist("a"),
    "cleanup_expired": lambda d: d.cleanup_expired(),
    "move_to_end": lambda d: d.move_to_end("a"),
}


READERS = {"reader": "permission denied for (table|sequence) shared", "readonly": "read-only transaction|for sequence shared"}


@pytest.mark.parametrize(("role", "reason"), READERS.items())
def test_read_only(roles: Cluster, role: str, reason: str) -> None:
    """A role that may only read opens the table and reads all of it; each write is an error that says why."""
    with PgDict[Any, Any](roles.url(role), table="shared", max_size=2) as d:
        assert dict(d.items()) == {"a": 1, "b": "text"}
        assert d.get("expired") is None
        assert "expired" not in d
        assert d.get_many(["b"]) == {"b": "text"}
        assert (len(d), d.count("a"), list(d.scan_keys()), d.ttl("a")) == (2, 1, ["a", "b"], None)
        assert d.stats().live == 2
        for name, write in WRITES.items():
            with pytest.raises(QueryFailed, match=reason) as caught:
                write(d)
            assert not caught.value.recoverable, name
        with pytest.raises(QueryFailed, match="rolled back|" + reason), d.transaction():
            d["a"] = 2
        assert dict(d.items()) == {"a": 1, "b": "text"}


def test_too_many_connections(roles: Cluster) -> None:
    """At the server's limit an opening fails at once; who has a connection works on with it, from all threads."""
    with PgDict[Any, Any](roles.url("limited"), table="shared", timeout=5) as d, ExitStack() as stack:
        with psycopg.connect(roles.url("limited")):
            with quickly(), pytest.raises(ConnectionFailed, match="too many connections for role") as caught:
                PgDict(roles.url("limited"), table="shared")
            assert caught.value.recoverable
            with quickly(4), ThreadPoolExecutor(6) as pool:
                assert list(pool.map(lambda _: d["a"], range(200))) == [1] * 200
        with suppress(psycopg.OperationalError):
            while True:
                stack.enter_context(psycopg.connect(roles.url()))
        with quickly(), pytest.raises(ConnectionFailed, match=r"too many clients|remaining connection slots"):
            PgDict(roles.url(), table="shared")
        assert d["a"] == 1


def test_statement_timeout(roles: Cluster) -> None:
    """A statement that the server ends for its time is an error that may pass, and the dictionary is usable."""
    with (
        PgDict[Any, Any](roles.url("hurried"), table="shared") as d,
        PgDict[Any, Any](roles.url(), table="shared") as other,
    ):
        with other.transaction():
            other["a"] = 1
            with quickly(), pytest.raises(QueryFailed, match="statement timeout") as caught:
                d["a"] = 2
            assert caught.value.recoverable
        assert d["a"] == 1


# Lost connections ----------------------------------------------------------------------------------------------------


def hold_connections(d: Dict, count: int) -> list[int]:
    """Have so many connections open, and return the server's processes."""
    meeting = threading.Barrier(count)

    def hold(_: int) -> int:
        with d.transaction(), d._session.connection() as connection:
            meeting.wait(10)
            return connection.info.backend_pid

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(hold, range(count)))


def terminate(url: str, *processes: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for process in processes:
            connection.execute("SELECT pg_terminate_backend(%s, 5000)", (process,))


USES: dict[str, Callable[[Dict], object]] = {
    "get": lambda d: d["a"],
    "set": lambda d: d.set("b", 2),
    "increment": lambda d: d.increment("n"),
    "transaction": lambda d: transact(d),
    "mutate": lambda d: d.mutate("a", lambda value: value),
    "mutate block": lambda d: mutate(d),
    "iteration": lambda d: list(d),
    "set_many": lambda d: d.set_many({1: 1, 2: 2}),
    "large set_many": lambda d: d.set_many((n, "x" * 1_000_000) for n in range(20)),
    "snapshot": lambda d: snapshot(d),
    "lock": lambda d: lock(d),
    "stats": lambda d: d.stats(),
    "popitem": lambda d: d.popitem(),
    "truncate": lambda d: d.truncate(),
}


def transact(d: Dict) -> None:
    with d.transaction():
        d["t"] = 1
        with d.transaction():
            d["t"] += 1


def mutate(d: Dict) -> None:
    with d.mutate("m", default=list) as box:
        box.value.append(1)


def snapshot(d: Dict) -> None:
    with d.snapshot() as s:
        assert s["a"] == 1


def lock(d: Dict) -> None:
    with d.lock("x"):
        d["a"] = 1


@pytest.mark.parametrize("use", USES)
def test_all_connections_killed(server_url: str, table: str, use: str) -> None:
    """When all connections have died since, every operation just works: nothing had been sent."""
    with PgDict[Any, Any](server_url, table=table, max_size=4, timeout=10) as d:
        d["a"] = 1
        with d.lock("other"):
            pass
        terminate(server_url, *hold_connections(d, 4))
        with quickly(5):
            USES[use](d)
        d["after"] = [1]
        assert d["after"] == [1]


@pytest.mark.parametrize("write", [False, True])
def test_killed_while_waiting(server_url: str, table: str, write: bool) -> None:
    """A statement whose connection is terminated while it waits did nothing: it is repeated, and takes effect once."""
    with PgDict[Any, Any](server_url, table=table) as d, psycopg.connect(server_url) as other, ThreadPoolExecutor(1) as pool:
        d["n"] = 1
        other.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        future = pool.submit(d.increment, "n") if write else pool.submit(d.get, "n")
        for _ in range(3):
            assert eventually(lambda: len(waiting(server_url, table)) == 1)
            terminate(server_url, *waiting(server_url, table))
        other.rollback()
        assert future.result(timeout=10) == 1 + write
        assert d["n"] == 1 + write


def waiting(url: str, table: str) -> list[int]:
    """Return the server's processes that wait for a lock in a statement on the table."""
    query = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND state = 'active' AND query LIKE %s"
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute(query, (f"%{table}%",))]


def test_killed_again_and_again(server_url: str, table: str) -> None:
    """While connections are terminated all the time, every count that was reported is there, and no other."""
    name = f"pgdict {table}"
    done, unsure, stop = [0] * 4, [0] * 4, threading.Event()
    with PgDict[Any, Any](server_url, table=table, max_size=4, application_name=name) as d, ThreadPoolExecutor(4) as pool:

        def work(me: int) -> None:
            while not stop.is_set():
                try:
                    d.increment("count")
                    done[me] += 1
                    d["own", me] = done[me]
                    assert d["own", me] == done[me]
                    with d.transaction():
                        d.increment("inside")
                except ConnectionFailed as error:
                    unsure[me] += error.maybe_applied

        futures = [pool.submit(work, me) for me in range(4)]
        with psycopg.connect(server_url, autocommit=True) as connection:
            query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"
            for _ in range(40):
                connection.execute(query, (name,))
                time.sleep(0.02)
        stop.set()
        for future in futures:
            future.result(timeout=20)
        assert sum(done) > 40
        assert sum(done) <= d["count"] <= sum(done) + sum(unsure)


# A server that ends --------------------------------------------------------------------------------------------------


def test_server_restarts(cluster: Cluster) -> None:
    """A dictionary works on, without being opened again, after the server was restarted; meanwhile it waits."""
    with PgDict[Any, Any](cluster.url(), table="restarted", durability="sync", max_size=4, timeout=20) as d:
        d.update(a=1, n=0)
        hold_connections(d, 4)
        cluster.stop()
        with ThreadPoolExecutor(4) as pool:
            uses: list[Callable[[], Any]] = [lambda: d["a"], lambda: d.increment("n"), lambda: d.set("b", 2), lambda: len(d)]
            futures = [pool.submit(use) for use in uses]
            time.sleep(0.3)
            assert not any(future.done() for future in futures)
            cluster.start()
            results = [future.result(timeout=20) for future in futures]
        assert results[:2] == [1, 1]
        assert dict(d.items()) == {"a": 1, "n": 1, "b": 2}


def test_server_stays_away(cluster: Cluster) -> None:
    """Without a server, operations end with its absence as the reason after `timeout`."""
    with PgDict[Any, Any](cluster.url(), table="restarted", timeout=0.5) as d:
        d["a"] = 1
        cluster.stop()
        try:
            for use in (lambda: d["a"], lambda: d.set("a", 2), lambda: transact(d), lambda: list(d)):
                with quickly(), pytest.raises(ConnectionFailed, match=r"Connection refused|shut") as caught:
                    use()
                assert not caught.value.maybe_applied
                assert PASSWORD not in texts(caught.value)
        finally:
            cluster.start()
        assert d["a"] == 1


def test_server_crashes(cluster: Cluster) -> None:
    """A crash in the midst of writes loses no acknowledged one of a `sync` table, and empties an `unlogged` one."""
    with (
        PgDict[Any, Any](cluster.url(), table="crashed", durability="sync", timeout=20) as d,
        PgDict[Any, Any](cluster.url(), table="emptied", durability="unlogged", timeout=20) as u,
        ThreadPoolExecutor(4) as pool,
    ):
        u["a"] = 1
        acknowledged: list[list[int]] = [[] for _ in range(4)]
        errors: list[ConnectionFailed] = []
        stop = threading.Event()

        def work(me: int) -> None:
            n = 0
            while not stop.is_set():
                n += 1
                try:
                    d[me, n] = n
                    acknowledged[me].append(n)
                except ConnectionFailed as error:
                    errors.append(error)

        futures = [pool.submit(work, me) for me in range(4)]
        time.sleep(0.3)
        cluster.stop(signal.SIGKILL)
        time.sleep(0.1)
        cluster.start()
        assert eventually(lambda: all(len(numbers) > 5 for numbers in acknowledged))
        time.sleep(0.3)
        stop.set()
        for future in futures:
            future.result(timeout=30)
        assert all(error.maybe_applied for error in errors)
        for me, numbers in enumerate(acknowledged):
            assert d.get_many((me, n) for n in numbers) == {(me, n): n for n in numbers}
        assert not u
        assert u.stats().emptied
        u["b"] = 1
        assert dict(u.items()) == {"b": 1}


def test_embedded_server_crashes() -> None:
    """An embedded server that was killed is started again by the next operation, and has what it had."""
    home = Path(tempfile.mkdtemp(prefix="pgdict-test-", dir="/tmp"))
    home.chmod(0o755)
    with PgDict[Any, Any](home, durability="sync", timeout=30) as d:
        d["before"] = 1
        os.kill(int((home / "data" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
        assert d["before"] == 1
        d["after"] = 2
        assert dict(d.items()) == {"before": 1, "after": 2}
    remove_server(home)


# A network that fails ------------------------------------------------------------------------------------------------


def test_cut(cluster: Cluster, proxy: Proxy) -> None:
    """After the network was cut and is back, everything works on."""
    with PgDict[Any, Any](cluster.url(port=proxy.port), table="cut", max_size=3, timeout=10) as d:
        for n in range(3):
            d["a"] = n
            hold_connections(d, 3)
            proxy.cut()
            with quickly(5):
                assert d["a"] == n
                assert d.increment("n") == n + 1


@pytest.mark.parametrize("applied", [True, False])
def test_cut_in_a_write(cluster: Cluster, proxy: Proxy, applied: bool) -> None:
    """A write whose answer is lost is an error that says so; it is not repeated, whether it was applied or not."""
    with (
        PgDict[Any, Any](cluster.url(port=proxy.port), table="cut", timeout=10) as d,
        PgDict[Any, Any](cluster.url(), table="cut") as direct,
        ThreadPoolExecutor(1) as pool,
    ):
        direct["n"] = 0
        d.increment("n")
        (proxy.answers if applied else proxy.requests).clear()
        future = pool.submit(d.increment, "n")
        if applied:
            assert eventually(lambda: direct["n"] == 2)
        else:
            time.sleep(0.2)
        proxy.cut()
        proxy.open()
        with pytest.raises(ConnectionFailed) as caught:
            future.result(timeout=10)
        assert caught.value.maybe_applied
        assert caught.value.recoverable
        assert direct["n"] == 1 + applied
        assert d.increment("n") == 2 + applied


def test_cut_in_a_read(cluster: Cluster, proxy: Proxy) -> None:
    """A read whose answer is lost is repeated."""
    with PgDict[Any, Any](cluster.url(port=proxy.port), table="cut", timeout=10) as d, ThreadPoolExecutor(1) as pool:
        d["a"] = "value"
        proxy.answers.clear()
        future = pool.submit(d.get, "a")
        time.sleep(0.2)
        assert not future.done()
        proxy.cut()
        proxy.open()
        assert future.result(timeout=10) == "value"


def test_cut_at_the_commit(cluster: Cluster, proxy: Proxy) -> None:
    """A transaction whose commit is not answered may have been applied, and says so; one that is cut before has not."""
    with (
        PgDict[Any, Any](cluster.url(port=proxy.port), table="cut", timeout=10) as d,
        PgDict[Any, Any](cluster.url(), table="cut") as direct,
    ):
        direct.clear()

        def cut_later() -> None:
            assert eventually(lambda: direct.get("a") == 1)
            proxy.cut()
            proxy.open()

        thread = threading.Thread(target=cut_later)
        with pytest.raises(ConnectionFailed) as caught, d.transaction():  # noqa: PT012 - the end of the block raises
            d["a"] = 1
            proxy.answers.clear()
            thread.start()
        thread.join()
        assert caught.value.maybe_applied
        assert direct["a"] == 1
        with pytest.raises(ConnectionFailed) as caught, d.transaction():  # noqa: PT012 - so it does here
            d["a"] = 2
            proxy.cut()
            d["a"] = 3
        assert not caught.value.maybe_applied
        assert d["a"] == 1


def test_cut_in_a_large_load(cluster: Cluster, proxy: Proxy) -> None:
    """A load that is cut on the way has stored nothing."""
    with PgDict[Any, Any](cluster.url(port=proxy.port), table="cut", timeout=10) as d:
        d.clear()

        def pairs() -> Iterator[tuple[int, str]]:
            for n in range(60):
                if n == 50:
                    proxy.cut()
                yield n, "x" * 1_000_000

        with pytest.raises(ConnectionFailed) as caught:
            d.update(pairs())
        assert not caught.value.maybe_applied
        assert not d


def test_connecting_into_a_hole(cluster: Cluster) -> None:
    """A server that accepts and says nothing is an error within the connection's own time limit."""
    with socket.create_server(("127.0.0.1", 0)) as hole, quickly(4), pytest.raises(ConnectionFailed, match="timeout"):
        PgDict(f"postgresql://boss@127.0.0.1:{hole.getsockname()[1]}/x", timeout=1)


HOLE = """
import subprocess
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from cluster import running_cluster
from pgdict.errors import ConnectionFailed

def lo(state):
    subprocess.run(["ip", "link", "set", "lo", state], check=True)

lo("up")
with running_cluster() as cluster, PgDict(cluster.url(), timeout=3) as d:
    d["a"] = 1
    d.namespace("x")["y"] = 2
    for write in (False, True):
        lo("down")
        begin = time.monotonic()
        try:
            if write:
                d["a"] = 2
            else:
                d["a"]
        except ConnectionFailed as error:
            print(write, error.maybe_applied, round(time.monotonic() - begin, 1), str(error)[:80], flush=True)
        lo("up")
        d["b"] = 1
        assert d["a"] == 1
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"), reason="needs a network to cut")
def test_black_hole() -> None:
    """When the network swallows everything, operations end with an error soon after `timeout`; when it is back they work."""
    arguments = [sys.executable, "-c", START + HOLE, "", "", str(Path(__file__).parent)]
    done = subprocess.run(["unshare", "-n", *arguments], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split(maxsplit=3) for line in done.stdout.splitlines()]
    assert [line[:2] for line in lines] == [["False", "False"], ["True", "True"]]
    assert all(2 < float(line[2]) < 4.5 for line in lines), done.stdout


# Ctrl-C --------------------------------------------------------------------------------------------------------------

INTERRUPTED = """
d = PgDict(url, table=table, application_name=table, timeout=20, max_size=2)
d.get("a")
print("ready", flush=True)
sys.stdin.readline()
try:
    {use}
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.stdin.readline()
    assert d.increment("count") == 1
    d["b"] = 2
    assert d["b"] == 2
    with d.transaction():
        d["c"] = 3
    print("usable", len(d._session.source._free), flush=True)
"""

WAITS = {
    "set": "d['a'] = 2",
    "get": "d['a']",
    "increment": "d.increment('a')",
    "set_many": "d.update(a=1, z=2)",
    "mutate": "d.mutate('a', lambda v: v + 1)",
    "mutate block": "with d.mutate('a') as box: box.value = 3",
    "transaction": "with d.transaction(): d['y'] = 1; d['a'] = 2",
    "clear": "d.clear()",
    "len": "len(d)",
    "iteration": "list(d.items())",
    "large load": "d.update((n, 'x' * 1_000_000) for n in range(20))",
}


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


SEEN_OFTEN = ("set", "get", "mutate block", "transaction", "large load")


@pytest.mark.parametrize("use", [pytest.param(use, marks=() if use in SEEN_OFTEN else pytest.mark.slow) for use in WAITS])
def test_ctrl_c(server_url: str, table: str, d: Dict, use: str) -> None:
    """Ctrl-C ends a statement that waits, within a second and on the server too; the dictionary is usable then."""
    d["a"] = 1
    code = INTERRUPTED.replace("{use}", WAITS[use])
    with program(code, server_url, table) as process, psycopg.connect(server_url) as other:
        assert said(process) == "ready"
        other.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        go_on(process)
        assert eventually(lambda: len(waiting(server_url, table)) == 1)
        with quickly(1):
            process.send_signal(signal.SIGINT)
            assert said(process) == "interrupted"
        assert eventually(lambda: waiting(server_url, table) == [], 1)
        other.rollback()
        go_on(process)
        assert said(process) == "usable 1"
        assert process.wait(timeout=10) == 0
    assert dict(d.items()) == {"a": 1, "count": 1, "b": 2, "c": 3}


def test_ctrl_c_while_waiting_for_a_connection(server_url: str, table: str) -> None:
    """So it does for a thread that waits for a connection, or for a lock."""
    code = """
import threading
d = PgDict(url, table=table, max_size=1)
busy, done = threading.Event(), threading.Event()
def hold():
    with d.transaction(), d.lock("x"):
        busy.set()
        done.wait()
thread = threading.Thread(target=hold)
thread.start()
busy.wait()
for use in (lambda: d.get("a"), lambda: d.lock("x").__enter__()):
    print("ready", flush=True)
    try:
        use()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
done.set()
thread.join()
print(d.get("a"), flush=True)
"""
    with program(code, server_url, table) as process:
        for _ in range(2):
            assert said(process) == "ready"
            time.sleep(0.3)
            with quickly(1):
                process.send_signal(signal.SIGINT)
                assert said(process) == "interrupted"
        assert said(process) == "None"
        assert process.wait(timeout=10) == 0


STRESS = """
import random, signal, threading
from contextlib import ExitStack
kind, seconds, max_size = sys.argv[3], float(sys.argv[4]), 3

class Bang(BaseException):
    pass

error = KeyboardInterrupt if kind == "KeyboardInterrupt" else Bang
def handler(*_):
    raise error

d = PgDict(url, table=table, max_size=max_size, timeout=10, application_name=table)
signal.signal(signal.SIGALRM, handler)
rng = random.Random(1)
stop, wrong, hits = threading.Event(), [], 0

def other():
    n = 0
    while not stop.is_set():
        n += 1
        try:
            d["other", n % 5] = n
            assert d["other", n % 5] == n
        except BaseException as error:
            wrong.append(f"other thread: {error!r}")

def use(n):
    key = n % 50
    match n % 8:
        case 0 | 1:
            d[key] = n
        case 2 | 3:
            value = d.get(key)
            assert value is None or value % 50 == key, (key, value)
        case 4:
            assert d.increment("count") > 0
        case 5:
            with d.transaction():
                d[key] = n
                d["pair", 1] = n
                d["pair", 2] = n
                assert d[key] == n
        case 6:
            assert all(value % 50 == key for key, value in d.get_many(range(50)).items())
        case _:
            pair = d.get_many([("pair", 1), ("pair", 2)])
            assert len(set(pair.values())) < 2, pair

thread = threading.Thread(target=other)
thread.start()
end, n, longest = time.monotonic() + seconds, 0, 0
while time.monotonic() < end:
    n += 1
    begin = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, rng.random() * rng.choice([0.0003, 0.001, 0.003, 0.02]) + 1e-6)
        use(n)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except error:
        hits += 1
    except BaseException as fault:
        signal.setitimer(signal.ITIMER_REAL, 0)
        wrong.append(repr(fault))
    longest = max(longest, time.monotonic() - begin)
signal.setitimer(signal.ITIMER_REAL, 0)
signal.signal(signal.SIGALRM, signal.SIG_IGN)
stop.set()
thread.join(20)
assert not thread.is_alive()
meeting = threading.Barrier(max_size)
def hold():
    with d.transaction():
        d["hold"] = 1 if meeting.wait(10) else 2
threads = [threading.Thread(target=hold) for _ in range(max_size)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(20)
assert not any(thread.is_alive() for thread in threads)
assert longest < 5, longest
print(n, hits, wrong[:5], flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("kind", ["KeyboardInterrupt", "another exception"])
@pytest.mark.parametrize("seconds", [1.5, pytest.param(30, marks=pytest.mark.slow)])
def test_interrupted_anywhere(server_url: str, table: str, kind: str, seconds: float) -> None:
    """A thread that is interrupted at any moment, thousands of times, gets no wrong value and leaks no connection."""
    query = "SELECT state, wait_event_type FROM pg_stat_activity WHERE application_name = %s"
    with program(STRESS, server_url, table, kind, seconds) as process:
        count, hits, wrong = said(process).split(maxsplit=2)
        assert wrong == "[]"
        assert int(count) > int(hits) > 50 * seconds
        with psycopg.connect(server_url, autocommit=True) as connection:

            def states() -> list[Any]:
                return connection.execute(query, (table,)).fetchall()

            assert eventually(lambda: len(states()) <= 3)
            assert {state for state, _ in states()} == {"idle"}
        process.communicate("\n")


NESTED = """
import random, signal
d = PgDict(url, table=table)
signal.signal(signal.SIGALRM, signal.default_int_handler)
rng, seen, end = random.Random(1), [], time.monotonic() + 2
while time.monotonic() < end:
    d.clear()
    try:
        with d.transaction():
            d["kept"] = 1
            try:
                with d.transaction():
                    d["undone"] = 2
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0001, 0.002))
                    while True:
                        with d.transaction():
                            d["undone, too"] = 3
            except KeyboardInterrupt:
                pass
        seen.append(list(d))
    except ConnectionError:
        pass  # the undoing itself was interrupted
print(len(seen), all(keys == ["kept"] for keys in seen), flush=True)
"""


def test_interrupted_savepoints(server_url: str, table: str) -> None:
    """A block that is interrupted, at the begin or end of another inside it too, is undone as far as it reaches."""
    with program(NESTED, server_url, table) as process:
        count, right = said(process).split()
        assert int(count) > 50
        assert right == "True"


JOINED = """
import random, signal
import psycopg
from pgdict.operations import many
many.PLENTY = 10
connection = psycopg.connect(url, autocommit=sys.argv[3] == "True")
d = PgDict(connection=connection, table=table, timeout=0.5)
connection.commit()
signal.signal(signal.SIGALRM, signal.default_int_handler)
rng, hits, faults, end = random.Random(1), 0, [], time.monotonic() + 2.5
while time.monotonic() < end:
    try:
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0001, 0.004))
        while True:
            d.set_many((n, n) for n in range(20))
            d.delete_many(range(20))
            with d.transaction():
                d["a"] = 1
    except KeyboardInterrupt:
        hits += 1
    except BaseException as error:
        faults.append(repr(error))
    if connection.closed:
        faults.append("it is closed")
        break
    if connection.autocommit and connection.info.transaction_status:
        faults.append(connection.info.transaction_status.name)
    connection.rollback()
print(hits, faults, flush=True)
"""


@pytest.mark.parametrize("autocommit", [False, True])
def test_interrupted_on_the_connection_of_the_application(server_url: str, table: str, autocommit: bool) -> None:
    """An interruption leaves the application's connection open, unlocked, and with no transaction that it did not begin."""
    with program(JOINED, server_url, table, autocommit) as process:
        hits, faults = said(process).split(maxsplit=1)
        assert int(hits) > 50
        assert faults == "[]"


LOCKS = """
import random, signal, threading
d = PgDict(url, table=table, timeout=10)
signal.signal(signal.SIGALRM, signal.default_int_handler)
rng, stop, turns, wrong = random.Random(1), threading.Event(), 0, []

def other():
    global turns
    while not stop.is_set():
        try:
            with d.lock("theirs", timeout=5):
                turns += 1
        except BaseException as error:
            wrong.append(str(error))

thread = threading.Thread(target=other)
thread.start()
hits, n, end = 0, 0, time.monotonic() + 1.5
while time.monotonic() < end:
    n += 1
    try:
        signal.setitimer(signal.ITIMER_REAL, rng.random() * 0.001 + 1e-6)
        with d.lock(f"mine {n}", timeout=5):
            pass
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        hits += 1
signal.setitimer(signal.ITIMER_REAL, 0)
signal.signal(signal.SIGALRM, signal.SIG_IGN)
stop.set()
thread.join(10)
assert not thread.is_alive()
assert all("was lost with its connection" in text for text in wrong), wrong
assert len(wrong) < turns / 10
with d.lock("theirs", timeout=5), d.lock("last", timeout=5):
    print(hits, turns, flush=True)
"""


def test_interrupted_locks(server_url: str, table: str) -> None:
    """A thread that is interrupted anywhere in taking and freeing locks keeps no other thread from its own."""
    with program(LOCKS, server_url, table) as process:
        assert all(int(number) > 100 for number in said(process).split())
        assert process.wait(timeout=10) == 0
