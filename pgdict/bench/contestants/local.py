"""What lives in files, or in the memory of one process."""

from __future__ import annotations

import functools
import platform
import shelve
import shutil
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pgdict.bench.contestants.store import Arena, Store, module_of, square


@contextmanager
def open_diskcache(arena: Arena) -> Iterator[Store]:
    """Open a Cache."""
    with module_of("diskcache").Cache(str(arena.directory / "diskcache")) as cache:

        def set_many(items: Mapping[str, Any]) -> None:
            with cache.transact():
                for key, v in items.items():
                    cache.set(key, v)

        yield Store(
            version=f"{version('diskcache')}, SQLite {sqlite3.sqlite_version}",
            crash="a crash of the machine may lose the last writes",
            module="diskcache",
            get=cache.__getitem__,
            miss=cache.get,
            set=cache.__setitem__,
            set_ttl=lambda key, v: cache.set(key, v, expire=3600),
            has=cache.__contains__,
            delete=cache.__delitem__,
            increment=cache.incr,
            set_many=set_many,
            fill=set_many,
            clear=cache.clear,
            items=lambda: ((key, cache[key]) for key in cache),
            memoized=cache.memoize()(square),
            size=cache.volume,
        )


@contextmanager
def open_sqlitedict(arena: Arena) -> Iterator[Store]:
    """Open a SqliteDict."""
    path = arena.directory / "sqlitedict.sqlite"
    make = module_of("sqlitedict").SqliteDict
    with _ending(make(str(path), autocommit=True)) as d, _ending(make(str(path))) as bulk:

        def set_many(items: Mapping[str, Any]) -> None:
            bulk.update(items)
            bulk.commit()

        yield Store(
            version=f"{version('sqlitedict')}, SQLite {sqlite3.sqlite_version}",
            crash="a crash of the machine may lose or damage the file",
            module="sqlitedict",
            get=d.__getitem__,
            miss=d.get,
            set=d.__setitem__,
            has=d.__contains__,
            delete=d.__delitem__,
            set_many=set_many,
            fill=set_many,
            clear=d.clear,
            items=d.items,
            size=lambda: _bytes(path.parent, "sqlitedict*"),
        )


@contextmanager
def _ending(d: Any) -> Iterator[Any]:
    """Close a SqliteDict, whose thread may miss one more request after an interruption (Ctrl-C): then wait for no answer."""
    thread = d.conn
    try:
        yield d
    except BaseException:
        d.close(force=True)
        thread.join(timeout=5)
        raise
    d.close()


@contextmanager
def open_shelve(arena: Arena) -> Iterator[Store]:
    """Open a shelf."""
    directory = arena.directory / "shelve"
    shelf: shelve.Shelf[Any]

    def reopen() -> None:  # as removing the keys one by one takes for ever with some kinds of dbm
        nonlocal shelf
        with suppress(NameError):
            shelf.close()
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        shelf = shelve.open(str(directory / "shelf"))  # noqa: SIM115 - closed below

    def size() -> int:
        shelf.sync()
        return _bytes(directory, "*")

    reopen()
    try:
        yield Store(
            version=f"{platform.python_version()}, {_kind(shelf)}",
            crash="a crash of the process may lose or damage the file; no two processes may write",
            module="shelve",
            get=lambda key: shelf[key],
            miss=lambda key: shelf.get(key),
            set=lambda key, v: shelf.__setitem__(key, v),
            has=lambda key: key in shelf,
            delete=lambda key: shelf.__delitem__(key),
            fill=lambda items: shelf.update(items),
            clear=reopen,
            items=lambda: shelf.items(),
            size=size,
            threads=False,
        )
    finally:
        shelf.close()


def _kind(shelf: Any) -> str:
    return type(shelf.dict).__module__.lstrip("_")


def _bytes(directory: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in directory.glob(pattern))


@contextmanager
def open_joblib(arena: Arena) -> Iterator[Store]:
    """Open a Memory."""
    memory = module_of("joblib").Memory(str(arena.directory / "joblib"), verbose=0)
    yield Store(
        version=version("joblib"),
        crash="a crash of the machine may lose the last results",
        module="joblib",
        memoized=memory.cache(square),
    )


@contextmanager
def open_dict(arena: Arena) -> Iterator[Store]:  # noqa: ARG001 - it needs none
    """Make a dict."""
    d: dict[str, Any] = {}
    yield Store(
        version=platform.python_version(),
        crash="everything when the process ends; nobody shares it",
        get=d.__getitem__,
        miss=d.get,
        set=d.__setitem__,
        has=d.__contains__,
        delete=d.__delitem__,
        set_many=d.update,
        fill=d.update,
        clear=d.clear,
        items=d.items,
        memoized=functools.cache(square),
        size=lambda: sys.getsizeof(d) + sum(sys.getsizeof(key) + sys.getsizeof(v) for key, v in d.items()),
    )
