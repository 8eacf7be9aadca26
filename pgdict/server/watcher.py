"""Stop an embedded server when its last user is gone: a program of its own, one process per directory.

It is run as `python -I -S watcher.py home uid gid watcher users start server`, the last four being open files. It
imports next to nothing, because it lives as long as the server. It arrives holding the lock on `watcher`, which tells
everybody that there is a watcher.
"""

import fcntl
import os
import signal
import sys
import time

LINGER = 1.0  # seconds; programs run one after the other find the server still there
PATIENCE = 60.0  # seconds until a fast shutdown becomes an immediate one


def main(home: str, uid: int, gid: int, watcher: int, users: int, start: int, server: int) -> None:
    """Wait, stop the server, and free the locks."""
    if os.geteuid() == 0 and uid:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    while True:
        fcntl.flock(users, fcntl.LOCK_EX)
        fcntl.flock(users, fcntl.LOCK_UN)
        time.sleep(LINGER)
        # A starter holds `users` while it waits for `start`: so `users` is never waited for while holding `start`.
        fcntl.flock(start, fcntl.LOCK_EX)
        if locked(users):
            break
        fcntl.flock(start, fcntl.LOCK_UN)
    stop(home, server)
    for lock in (watcher, users, start):  # `watcher` first: whoever gets `users` must see that nobody watches
        fcntl.flock(lock, fcntl.LOCK_UN)


def stop(home: str, server: int) -> None:
    """Shut the server down, if there is one, and remove the directory of its socket, which the next start makes again.

    Its process id is in its pid file, and like the socket in our own note, which outlives a removed directory.
    """
    begin = time.monotonic()
    while not locked(server):
        hurry = time.monotonic() > begin + PATIENCE
        pid = postmaster(home) or noted(server)[1]
        if pid > 1:
            try:
                os.kill(pid, signal.SIGQUIT if hurry else signal.SIGINT)  # immediate or fast shutdown
            except OSError:
                pid = 0
        time.sleep(0.02)
    try:
        os.rmdir(noted(server)[0])  # noqa: PTH106
    except OSError:
        return


def noted(server: int) -> tuple[str, int]:
    """Return what was noted in the server's lock file when it started: its socket's directory and its process id."""
    directory, pid = [*os.pread(server, 500, 0).decode().splitlines(), "", ""][:2]
    return directory, int(pid or 0)


def postmaster(home: str) -> int:
    """Return the process id in the server's pid file, 0 if there is none."""
    try:
        with open(home + "/data/postmaster.pid", "rb") as file:  # noqa: PTH123
            return int(file.readline())
    except (OSError, ValueError):
        return 0


def locked(lock: int) -> bool:
    """Take the lock if it is free and tell whether that was so."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
