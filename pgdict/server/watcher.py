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
        pid, socket = postmaster(home), socket_directory(home)  # now: they may be removed before the linger is over
        fcntl.flock(users, fcntl.LOCK_UN)
        time.sleep(LINGER)
        # A starter holds `users` while it waits for `start`: so `users` is never waited for while holding `start`.
        fcntl.flock(start, fcntl.LOCK_EX)
        if locked(users):
            break
        fcntl.flock(start, fcntl.LOCK_UN)
    stop(home, pid, server)
    remove(socket_directory(home) or socket)
    for lock in (watcher, users, start):  # `watcher` first: whoever gets `users` must see that nobody watches
        fcntl.flock(lock, fcntl.LOCK_UN)


def stop(home: str, pid: int, server: int) -> None:
    """Shut the server down, if there is one."""
    begin = time.monotonic()
    while not locked(server):
        pid = postmaster(home) or pid  # a server that is just starting has none yet
        hurry = time.monotonic() > begin + PATIENCE
        if pid > 1:
            try:
                os.kill(pid, signal.SIGQUIT if hurry else signal.SIGINT)  # immediate or fast shutdown
            except OSError:
                pid = 0
        time.sleep(0.02)


def remove(socket: str) -> None:
    """Remove the directory of the server's socket, which is empty now; the next start makes it again."""
    try:
        os.rmdir(socket)  # noqa: PTH106
    except OSError:
        return


def socket_directory(home: str) -> str:
    """Return the recorded directory of the server's socket, "" if there is none."""
    try:
        with open(home + "/socket", encoding="utf-8") as file:  # noqa: PTH123
            return file.read()
    except OSError:
        return ""


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
