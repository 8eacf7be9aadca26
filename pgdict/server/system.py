"""What an embedded server needs of the operating system: accounts, programs out of our reach, locks."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from pgdict.errors import ConfigError

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]  # Windows

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}  # nothing of the user's, above all no PG* and LD_* variables


class Account(NamedTuple):
    """Whom the server runs as when we are root, which PostgreSQL refuses to run as."""

    uid: int
    gid: int
    name: str


def account(directory: Path) -> Account | None:
    """Return the account for a server in this directory, None for "ourselves".

    Only root has a choice: it takes the owner of what is there, else `postgres`, else `nobody`.
    """
    if os.geteuid() != 0:
        return None
    import pwd  # does not exist on Windows, where this module must import all the same

    for place in (directory / "data", directory):
        if place.is_dir() and (owner := place.lstat().st_uid):
            with suppress(KeyError):
                return Account(owner, pwd.getpwuid(owner).pw_gid, pwd.getpwuid(owner).pw_name)
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return Account(pwd.getpwnam(name).pw_uid, pwd.getpwnam(name).pw_gid, name)
    raise ConfigError("PostgreSQL does not run as root, and there is no account 'postgres' or 'nobody' to run it as")


def unreachable(paths: list[Path], by: Account) -> Path | None:
    """Return the first of the paths that the account cannot enter or run, None if it can all of them."""
    script = 'for p; do [ -x "$p" ] || { printf %s "$p"; exit; }; done'
    found = subprocess.run(
        ["/bin/sh", "-c", script, "sh", *paths],
        stdout=subprocess.PIPE,
        check=True,
        cwd="/",
        env=ENVIRONMENT,
        user=by.uid,
        group=by.gid,
        extra_groups=[],
    ).stdout
    return Path(os.fsdecode(found)) if found else None


def check_reach(who: Account | None, directory: Path) -> None:
    """Raise a `ConfigError` if the account cannot enter the directory."""
    if who and (closed := unreachable([*reversed(directory.parents), directory], who)):
        raise ConfigError(
            f"{closed} is closed to {who.name!r}, whom a server in it would run as because PostgreSQL does not run as root: "
            "take another directory"
        )


def execute(
    who: Account | None,
    command: Sequence[str | Path],
    *,
    text: str = "",
    keep: Sequence[int] = (),
    output: int | None = None,
    environment: dict[str, str] | None = ENVIRONMENT,
) -> None:
    """Run a program out of reach of our terminal, environment and directory.

    With `keep` the program inherits these open files, and only these. What it leaves running writes to `output`, or
    nowhere.
    """
    with tempfile.TemporaryFile() as said:
        done = subprocess.run(
            command,
            input=text.encode(),
            stdout=subprocess.DEVNULL if output is None else output,
            stderr=said if output is None else output,
            pass_fds=keep,
            cwd="/",
            env=environment,
            start_new_session=True,
            check=False,
            user=who.uid if who else None,
            group=who.gid if who else None,
            extra_groups=[] if who else None,
        )
        if done.returncode:
            said.seek(0)
            reason = said.read().decode(errors="replace").strip()
            raise ConfigError(f"{Path(command[0]).name} failed for an embedded server:\n{reason}")


def python() -> str:
    """Return a Python to run the watcher; `sys.executable` may be an application that was frozen or embeds Python."""
    for found in (sys.executable, f"{sys.prefix}/bin/python3", shutil.which("python3")):
        if found and "python" in Path(found).name and os.access(found, os.X_OK):
            return found
    raise ConfigError("an embedded server needs a Python on PATH to look after it; or name a PostgreSQL server")


def is_private(directory: Path, data: Path) -> bool:
    """Tell whether this is a directory which only the server's account can enter; anybody can make one in /tmp."""
    try:
        found, owner = directory.lstat(), data.stat().st_uid
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == owner and not found.st_mode & 0o077


def opened(path: Path) -> int:
    """Open a file of ours, created for its directory's owner, and following no link."""
    flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        file = os.open(path, flags)
    except FileNotFoundError:
        try:
            file = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:  # another process was quicker
            return opened(path)
        if os.geteuid() == 0:
            owner = path.parent.stat()
            os.fchown(file, owner.st_uid, owner.st_gid)
    return file


@contextmanager
def opening(path: Path) -> Iterator[int]:
    """Open a file of ours for the length of a block."""
    file = opened(path)
    try:
        yield file
    finally:
        os.close(file)


def locked(lock: int) -> bool:
    """Take the lock if nobody has it, and tell whether that was so."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Hold:
    """A shared lock on a file, until `release`, garbage collection, or the death of this process and all its forks.

    It is dropped by closing the file and never by unlocking it: forks share the lock, and each drops its own hold only.
    """

    def __init__(self, path: Path) -> None:
        self._file = opened(path)
        self._identity = _identity(os.fstat(self._file))
        self.release = weakref.finalize(self, _close, self._file, self._identity)
        self.release.atexit = False  # the kernel does it, after everybody's last statement
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def is_on(self, path: Path) -> bool:
        """Tell whether the file is still open and still the one at this path."""
        with suppress(OSError):
            return _identity(os.fstat(self._file)) == self._identity == _identity(path.stat())
        return False


def _close(file: int, identity: tuple[int, int]) -> None:
    with suppress(OSError):
        if _identity(os.fstat(file)) == identity:  # a daemon closes all files, and the number is given to another
            os.close(file)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
