"""A PostgreSQL of our own in a directory, shared by all the processes that use it.

Who is alive is known from `flock`, which the kernel drops at any death, and from nothing else:

| file | held | by |
|---|---|---|
| `users.lock` | shared | every user, while it uses the server |
| `start.lock` | exclusive | whoever starts or stops the server |
| `server.lock` | exclusive | the server itself and `initdb`: they inherit the open file, so a pid file needs no trust |
| `watcher.lock` | exclusive | the one watcher process, which inherits it likewise |

A user may wait for `start.lock`; nobody waits for `users.lock` while holding `start.lock`.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pgdict.errors import ConfigError, ConnectionFailed
from pgdict.server.binaries import copied, find
from pgdict.server.system import (
    Account,
    Hold,
    account,
    check_reach,
    execute,
    is_private,
    locked,
    opening,
    python,
    unreachable,
)

# A child forked while another thread holds locks open for the server would keep them for its whole life.
_no_fork = threading.RLock()

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]  # Windows
else:
    os.register_at_fork(before=_no_fork.acquire, after_in_parent=_no_fork.release, after_in_child=_no_fork.release)

PATIENCE = 60.0  # seconds for a server to start, crash recovery included
LOG_SIZE = 1_000_000  # bytes of log kept when a server starts

# A startup message of protocol 3.0, and a farewell so that the server does not log a lost connection
_HELLO = b"\0\0\0\x25\0\3\0\0user\0pgdict\0database\0pgdict\0\0X\0\0\0\4"

SETTINGS = """
# pgdict
listen_addresses = ''            # unix socket only
max_connections = 100
shared_buffers = 64MB
wal_level = minimal              # nothing replicates from here, and a bulk load into a new table skips the WAL
max_wal_senders = 0
max_logical_replication_workers = 0
max_wal_size = 256MB
min_wal_size = 32MB
jit = off                        # statements here last microseconds
logging_collector = off
log_min_messages = log           # errors of statements are their callers' concern, and would fill the disk
log_checkpoints = off
log_autovacuum_min_duration = -1
log_line_prefix = '%m [%p] '
"""


class Embedded:
    """A running server as one of its users; made by `join`.

    Attributes:
        directory: where its data is.
        conninfo: how to connect, as a URL; `ensure` may change it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.conninfo = ""
        self._closed = False
        self._users: Hold | None = None

    def __repr__(self) -> str:
        return f"Embedded({str(self.directory)!r}{', closed' if self._closed else ''})"

    def ensure(self) -> None:
        """See to it that the server runs and accepts connections, and that it is watched.

        Raises:
            ConfigError: the server cannot be started.
            ConnectionFailed: it ended while starting, or did not answer in time.
        """
        if self._closed:
            raise ConfigError(f"{self!r}")
        with _no_fork, _explained(self.directory):
            home = _Home(self.directory)
            # Not so when the directory was replaced, or this process became a daemon and closed all its files.
            if not (self._users and self._users.is_on(home.users)):
                self._users = Hold(home.users)  # waits for a stop that is under way
            home.watch()  # first, lest a server be left alone by a user killed while starting it
            if not home.accepting():
                with opening(home.start) as start:
                    fcntl.flock(start, fcntl.LOCK_EX)
                    home.run()
                    fcntl.flock(start, fcntl.LOCK_UN)
            self.conninfo = f"postgresql://pgdict@/pgdict?host={home.socket}&port=5432"
            if "PGHOSTADDR" in os.environ:  # which libpq would prefer to `host`: another server, or none
                self.conninfo += "&hostaddr="

    def close(self) -> None:
        """Leave the server, which stops soon after its last user left; once is enough."""
        self._closed = True
        if self._users:
            self._users.release()


def join(directory: Path) -> Embedded:
    """Become a user of the server in this directory, which is started, and created, when it is not there.

    Raises:
        ConfigError: the directory, its rights, or PostgreSQL's programs do not allow it.
        ConnectionFailed: the server did not start.
    """
    if fcntl is None:
        raise ConfigError("an embedded server needs a Unix; here, name a PostgreSQL server by its URL")
    directory = directory.absolute()
    with _no_fork, _explained(directory):
        _Home(directory).prepare()
    embedded = Embedded(directory)
    try:
        embedded.ensure()
    except BaseException:
        embedded.close()
        raise
    return embedded


class _Home:
    """The files of an embedded server, and what is done with them while holding the locks it takes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.log = directory / "server.log"
        self.users = directory / "users.lock"
        self.start = directory / "start.lock"
        self.server = directory / "server.lock"
        self.watcher = directory / "watcher.lock"
        self.record = directory / "socket"

    @property
    def socket(self) -> Path | None:
        """The directory of the server's socket, None before the first start.

        The record counts only where it was made: a copy of the whole directory would use the original's socket.
        """
        with suppress(FileNotFoundError, ValueError):
            path, made_in = self.record.read_text("utf-8").splitlines()
            if made_in == self._identity():
                return Path(path)
        return None

    def _identity(self) -> str:
        status = self.directory.stat()
        return f"{status.st_dev}:{status.st_ino}"

    def prepare(self) -> None:
        """Make the directory, or see that it is ours, before anything in it is touched."""
        try:
            content = [entry.name for entry in self.directory.iterdir()]
        except FileNotFoundError:
            self._make()
            return
        if "PG_VERSION" in content:
            raise ConfigError(f"{self.directory} is a PostgreSQL cluster of its own: start it, and name it by its URL")
        if content and self.users.name not in content:
            raise ConfigError(f"{self.directory} is neither empty nor made by pgdict")
        if not content:
            check_reach(account(self.directory), self.directory)

    def _make(self) -> None:
        missing = [d for d in (self.directory, *self.directory.parents) if not d.exists()]
        check_reach(account(self.directory), missing[-1].parent)
        for directory in reversed(missing):
            directory.mkdir(0o700, exist_ok=True)
            if os.geteuid() == 0:
                directory.chmod(0o711)  # the server's account has to pass, and nothing else

    def accepting(self) -> bool:
        """Tell whether the server takes connections now.

        A killed server accepts for some milliseconds more, and one in recovery to refuse, so it has to answer.
        """
        directory = self.socket
        if directory is None or not is_private(directory, self.data):
            return False
        answer = b""
        try:
            if "ready" not in map(str.strip, self._postmaster()[7:]):
                return False  # not worth asking, and every question would be a line in the log
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(5.0)
                client.connect(str(directory / ".s.PGSQL.5432"))
                client.sendall(_HELLO)
                while part := client.recv(4096):
                    answer += part
        except BlockingIOError:
            return True  # so many are connecting just now that the queue is full
        except OSError:
            return False
        return bool(answer) and b"\0C57P03\0" not in answer  # "cannot connect now", unlike other refusals

    def run(self) -> None:
        """Start the server if need be and wait until it accepts connections, holding `start.lock`."""
        deadline = time.monotonic() + PATIENCE
        logged: int | None = None
        while not self.accepting():
            with opening(self.server) as server:
                if locked(server):  # so there is no server, nor a backend that outlived one
                    if logged is not None:
                        raise ConnectionFailed(f"the server in {self.directory} does not start:\n{self._tail(logged)}")
                    logged = self._launch(server)
                elif pid := self._cut_off():
                    os.kill(pid, signal.SIGINT)
            if time.monotonic() > deadline:
                raise ConnectionFailed(
                    f"the server in {self.directory} does not accept connections at {self.socket}; is it used from "
                    f"another container or mount namespace?\n{self._tail(logged or 0)}"
                )
            time.sleep(0.005)
        if logged is not None:
            self._note(f"{self._postmaster()[0]}\n")

    def _postmaster(self) -> list[str]:
        """Return the lines of the server's pid file: process id, directory, and in the eighth its state."""
        return (self.data / "postmaster.pid").read_text("utf-8", "replace").splitlines()

    def _note(self, text: str) -> None:
        """Add to what the watcher can read in `server.lock` even when the directory was removed."""
        with opening(self.server) as server:
            os.write(server, text.encode())

    def _cut_off(self) -> int:
        """Return the process id of a server whose socket was removed, by a cleaner of /tmp for one; else 0.

        Only Linux can tell: it must work in our directory, and not see its socket either, as in a container it would.
        """
        with suppress(OSError, ValueError, IndexError):
            lines = self._postmaster()
            process = Path(f"/proc/{int(lines[0])}")
            if lines[7].strip() == "ready" and (process / "cwd").samefile(self.data):
                seen = process / "root" / f"{self.socket}/.s.PGSQL.5432".lstrip("/")
                return 0 if seen.exists() else int(lines[0])
        return 0

    def _launch(self, server: int) -> int:
        """Start PostgreSQL, holding and handing on `server.lock`; return where its part of the log begins."""
        who = account(self.directory)
        check_reach(who, self.directory)
        version = self.data / "PG_VERSION"
        programs = find(version.read_text().strip() if version.exists() else None)
        if who and unreachable([programs / "postgres"], who):
            if self.directory.lstat().st_uid != 0:
                raise ConfigError(f"{who.name!r}, who owns {self.directory}, cannot run PostgreSQL's {programs}")
            programs = copied(programs, self.directory)
        if not self.data.exists():
            self._create(programs, who, server)
        directory = self._socket_directory(who)
        os.truncate(server, 0)
        self._note(f"{directory}\n")
        with opening(self.log) as log:
            size = os.fstat(log).st_size
            if size > LOG_SIZE:
                os.truncate(log, size := 0)
            stale = [directory / ".s.PGSQL.5432", directory / ".s.PGSQL.5432.lock", self.data / "postmaster.pid"]
            # The shell leaves it to init to reap the server, and removes the files with the server's rights.
            script = 'rm -f -- "$1" "$2" "$3"; shift 3; exec "$@" &'
            program: list[str | Path] = [programs / "postgres", "-D", self.data, "-k", directory]
            execute(who, ["/bin/sh", "-c", script, "sh", *stale, *program], keep=[server], output=log)
        return size

    def _create(self, programs: Path, who: Account | None, server: int) -> None:
        """Create the cluster under another name, so that an interrupted one is never taken for a whole one."""
        new = self.directory / "data.new"
        if new.exists():
            shutil.rmtree(new)
        new.mkdir(0o700)
        if who:
            os.chown(new, who.uid, who.gid, follow_symlinks=False)
        initdb = programs / "initdb"
        options = ["--username=pgdict", "--auth=trust", "--encoding=UTF8", "--locale=C"]
        execute(who, [initdb, "-D", new, "--no-sync", *options], keep=[server])
        execute(who, ["/bin/sh", "-c", 'cat >>"$0"', new / "postgresql.conf"], text=SETTINGS, keep=[server])
        single: list[str | Path] = [programs / "postgres", "--single", "-D", new, "-c", "exit_on_error=on", "template1"]
        execute(who, single, text="CREATE DATABASE pgdict", keep=[server])
        execute(who, [initdb, "-D", new, "--sync-only"], keep=[server])
        new.rename(self.data)
        directory = os.open(self.directory, os.O_RDONLY)
        os.fsync(directory)  # or a power failure might undo the renaming, and with it all that is written from now on
        os.close(directory)

    def _socket_directory(self, who: Account | None) -> Path:
        """Return the directory for the socket: the recorded one, made again if it was removed, else a new one.

        It is outside the data directory because the path of a socket has at most some 100 bytes.
        """
        base = Path("/tmp")  # TMPDIR differs between users of one server, and is long on macOS
        recorded = self.socket
        if recorded and recorded.parent == base and recorded.name.startswith("pgdict-"):
            with suppress(FileExistsError):
                recorded.mkdir(0o700)
                if who:
                    os.chown(recorded, who.uid, who.gid)
            if is_private(recorded, self.data):
                return recorded
        made = Path(tempfile.mkdtemp(prefix="pgdict-", dir=base))
        if who:
            os.chown(made, who.uid, who.gid)
        new = self.record.with_suffix(".new")
        new.unlink(missing_ok=True)
        with opening(new) as file:
            os.write(file, f"{made}\n{self._identity()}\n".encode())
            os.fchmod(file, 0o644)
        new.replace(self.record)
        return made

    def watch(self) -> None:
        """See to it that the server is stopped when its last user is gone."""
        with ExitStack() as stack:
            own = stack.enter_context(opening(self.watcher))
            if not locked(own):
                return
            who = account(self.directory) or Account(0, 0, "")
            locks = [own, *(stack.enter_context(opening(path)) for path in (self.users, self.start, self.server))]
            program: list[str | Path] = [python(), "-I", "-S", Path(__file__).with_name("watcher.py")]
            arguments: list[str | Path] = [self.directory, *map(str, (who.uid, who.gid, *locks))]
            # Not as `who`, who may be unable to run this Python: it steps down by itself.
            execute(None, ["/bin/sh", "-c", '"$@" &', "sh", *program, *arguments], keep=locks, environment=None)

    def _tail(self, begin: int) -> str:
        with suppress(OSError), self.log.open("rb") as file:
            file.seek(begin)
            return "\n".join(file.read().decode(errors="replace").splitlines()[-10:])
        return ""


@contextmanager
def _explained(directory: Path) -> Iterator[None]:
    """Turn the operating system's refusals into ours."""
    try:
        yield
    except ConnectionFailed:
        raise
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise ConfigError(f"no embedded server in {directory}: {error.strerror}{where}") from error
