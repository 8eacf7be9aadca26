"""What a contestant is, and what all of them share."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

OURS = "PgDict unlogged"
"""Whom the targets are about."""
TOKEN = secrets.token_hex(3)
PREFIX = f"bench-{TOKEN}"
"""What all keys begin with: on somebody's own Redis nothing else is touched."""
PART = f"{PREFIX}:part"
"""What the keys of a small part begin with."""
TABLE = f"pgdict_bench_{TOKEN}"
"""What all tables begin with."""
THREADS = 16
"""The most threads that use one contestant, and so the most connections that its pool holds."""
PAGE = 100
"""Items of a page when scanning."""

Pairs = Iterable[tuple[str, Any]]


class Missing(Exception):
    """Why a contestant cannot take part."""


@dataclass(frozen=True, slots=True)
class Arena:
    """Where the contestants meet."""

    location: str | None
    """As `PgDict` takes it."""
    url: str
    """The same server, for psycopg and pgbench."""
    directory: Path
    """For files, sockets, and whatever else ends with the run."""


@dataclass(kw_only=True, slots=True)
class Store:
    """An open contestant: what it can do, None where it has no such operation."""

    version: str
    crash: str
    """What a crash loses."""
    module: str | None = None
    """What its user imports."""
    standard: bool = True
    """Whether it is set up as the targets have it."""
    get: Callable[[str], Any] | None = None
    miss: Callable[[str], Any] | None = None
    """A get that a missing key is no error for."""
    set: Callable[[str, Any], Any] | None = None
    set_ttl: Callable[[str, Any], Any] | None = None
    has: Callable[[str], Any] | None = None
    delete: Callable[[str], Any] | None = None
    increment: Callable[[str], Any] | None = None
    get_many: Callable[[list[str]], Any] | None = None
    set_many: Callable[[Mapping[str, Any]], Any] | None = None
    fill: Callable[[Mapping[str, Any]], Any] | None = None
    """The fastest way to store many new pairs."""
    clear: Callable[[], Any] | None = None
    settle: Callable[[], Any] = lambda: None
    """What a server soon does by itself after a load, so that it happens in nobody's round."""
    items: Callable[[], Pairs] | None = None
    scan: Callable[[str], Pairs] | None = None
    """The pairs below a prefix, read in pages."""
    part: Callable[[], Pairs] | None = None
    """The pairs of a namespace, `PART`."""
    memoized: Callable[[int], int] | None = None
    size: Callable[[], int] | None = None
    """Bytes that the items take."""
    peak: Callable[[int, int], int] | None = None
    """Bytes of memory that a client needs for loading and iterating so many items of such a size."""
    script: Callable[[str, int, int, int, int], float] | None = None
    """Measure outside of Python: what, keys, size, threads, calls; returns seconds."""
    threads: bool = True
    """Whether threads may share it."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """Somebody who takes part if he can."""

    name: str
    open: Callable[[Arena], AbstractContextManager[Store]]


@functools.cache
def value(size: int) -> str:
    """Return a string of that many bytes, which hardly compresses."""
    return secrets.token_hex((size + 1) // 2)[:size]


def square(number: int) -> int:
    """Stand for the function that is worth memoizing."""
    return number * number


def batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Cut into lists of at most `size`."""
    iterator = iter(items)
    return iter(lambda: list(islice(iterator, size)), [])


def module_of(name: str) -> Any:
    """Return a module that need not be installed."""
    try:
        return import_module(name)
    except ImportError:
        raise Missing(f"{name} is not installed: pip install '.[bench]'") from None
