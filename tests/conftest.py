"""What all tests share: a PostgreSQL."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgdict import PgDict
from pgdict.server import join

pytest.register_assert_rewrite("mapping_contract")


def pytest_configure(config: pytest.Config) -> None:
    """Make one directory for all workers of a run: not pytest's own, which root's server cannot enter.

    A shell starts background jobs with SIGINT ignored, which is inherited: the tests of Ctrl-C need it.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):
        os.environ["PGDICT_TEST_DIRECTORY"] = tempfile.mkdtemp(prefix="pgdict-tests-", dir="/tmp")
        Path(os.environ["PGDICT_TEST_DIRECTORY"]).chmod(0o711)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove it after the last worker."""
    if not hasattr(config, "workerinput"):
        remove_server(Path(os.environ.pop("PGDICT_TEST_DIRECTORY")))


def remove_server(directory: Path) -> None:
    """Remove a directory when the embedded servers in it, left by all their users, have ended."""
    for lock in directory.rglob("server.lock"):
        with lock.open() as server:
            fcntl.flock(server, fcntl.LOCK_EX)
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """How to connect to the PostgreSQL under test: `PGDICT_TEST_URL`, else an embedded one."""
    if url := os.environ.get("PGDICT_TEST_URL"):
        yield url
        return
    embedded = join(Path(os.environ["PGDICT_TEST_DIRECTORY"]) / "server")
    yield embedded.conninfo
    embedded.close()


@pytest.fixture
def table(server_url: str) -> Iterator[str]:
    """A table of its own for a test."""
    name = f"t_{secrets.token_hex(6)}"
    yield name
    with psycopg.connect(server_url) as connection:
        connection.execute(f'DROP TABLE IF EXISTS "{name}"'.encode())


@pytest.fixture
def d(server_url: str, table: str) -> Iterator[PgDict[Any, Any]]:
    """A new dictionary."""
    with PgDict[Any, Any](server_url, table=table) as new:
        yield new


@pytest.fixture(params=["insertion", "key"])
def either(request: pytest.FixtureRequest, server_url: str, table: str) -> Iterator[PgDict[Any, Any]]:
    """A new dictionary in either order."""
    with PgDict[Any, Any](server_url, table=table, order=request.param) as new:
        yield new
