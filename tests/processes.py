"""Other processes that use a dictionary, and waiting for what they do."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

START = """
import os, sys, time
from pgdict import PgDict
url, table = sys.argv[1:3]
"""


@contextmanager
def program(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run `code` in a Python of its own, which knows `url` and `table`, and has killed it at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", START + code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        with process:
            try:
                yield process
            finally:
                process.kill()
    finally:
        process.wait(timeout=30)


def said(process: subprocess.Popen[str]) -> str:
    """Return the next line that it prints."""
    assert process.stdout
    return process.stdout.readline().strip()


def result(process: subprocess.Popen[str]) -> str:
    """Return all that it prints, after it has ended well."""
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return output.strip()


def eventually(condition: Callable[[], Any], seconds: float = 10.0) -> bool:
    """Wait for the condition, and tell whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def at_once(*works: Callable[[], Any], timeout: float = 30.0) -> list[Any]:
    """Run each in a thread of its own, all at once; return their results, or what they raised."""
    results: list[Any] = [TimeoutError("still running")] * len(works)

    def run(place: int) -> None:
        try:
            results[place] = works[place]()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            results[place] = error

    threads = [threading.Thread(target=run, args=(place,), daemon=True) for place in range(len(works))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return results
