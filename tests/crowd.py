"""Many threads in many processes that use one dictionary at once."""

from __future__ import annotations

import multiprocessing
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

from pgdict import PgDict

PROCESSES, THREADS = 4, 8

Work = Callable[[PgDict[Any, Any], int], Any]


class Crowd:
    """Processes that wait for work."""

    def __init__(self, pool: ProcessPoolExecutor, processes: int) -> None:
        self._pool, self._processes = pool, processes

    def at(self, work: Work, url: str, table: str, *, threads: int = THREADS, **options: Any) -> list[Any]:
        """Call `work(d, number)` in so many threads of every process at once, and return what all of them returned."""
        meeting = f"t_{secrets.token_hex(6)}"
        args = work, url, table, threads, self._processes, meeting, options
        futures = [self._pool.submit(_in_threads, number, *args) for number in range(self._processes)]
        return [result for future in futures for result in future.result(timeout=100)]


@contextmanager
def crowd(processes: int = PROCESSES) -> Iterator[Crowd]:
    """Start the processes; they are none of ours that was forked."""
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield Crowd(pool, processes)


def _in_threads(
    number: int, work: Work, url: str, table: str, threads: int, processes: int, meeting: str, options: dict[str, Any]
) -> list[Any]:
    with PgDict[Any, Any](url, table=table, **options) as d, ThreadPoolExecutor(threads) as pool:
        d.increment(meeting)
        while d[meeting] < processes:
            time.sleep(0.001)
        results = list(pool.map(partial(work, d), range(number * threads, (number + 1) * threads)))
        if d.increment(meeting + "left") == processes:
            del d[meeting], d[meeting + "left"]
        return results
