"""`pgdict demo`, as a user runs it, on a database of its own."""

from __future__ import annotations

import os
import pty
import re
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgdict import PgDict

DEMO = (sys.executable, "-m", "pgdict", "demo")
SMALL = (*DEMO, "--files", "8", "--workers", "2")


@pytest.fixture
def environment(server_url: str) -> Iterator[dict[str, str]]:
    """The environment of a command, where a new database is the default."""
    name = f"demo_{secrets.token_hex(6)}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
        url = make_conninfo(server_url, dbname=name)
        yield {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "NO_COLOR")} | {"PGDICT_URL": url}
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def said(command: tuple[str, ...], environment: dict[str, str]) -> str:
    """Run a command that succeeds without a word on stderr, and return what it printed."""
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def commands(output: str) -> list[tuple[str, ...]]:
    """Return the commands that the tour proposes."""
    return [tuple(shlex.split(line[2:])) for line in output.splitlines() if line.startswith("$ ")]


def exists(environment: dict[str, str]) -> bool:
    """Tell whether the demo's table is there."""
    with psycopg.connect(environment["PGDICT_URL"]) as connection:
        return connection.execute("SELECT to_regclass('pgdict_demo')").fetchone() != (None,)


def test_tour(environment: dict[str, str]) -> None:
    """Several processes index Python's sources in one dictionary without losing a count; what is proposed works."""
    output = said(SMALL, environment)
    assert "8/8" in output
    assert "\x1b" not in output  # as it is no terminal
    assert ">>> sum(uses.values()) == counted\nTrue\n" in output
    assert ">>> 'note' in d\nFalse\n" in output
    with PgDict[str, int](environment["PGDICT_URL"], table="pgdict_demo") as d:
        assert f">>> len(uses)\n{d.count('uses:')}\n" in output
        assert not d.count("todo:")
        uses = d["uses:self"]
    again, look, remove = commands(output)
    assert said(again, environment) == f"{uses}\n"
    assert said(look, environment).startswith("('")
    assert said(remove, environment) == ""
    assert not exists(environment)


def test_again_with_a_password(environment: dict[str, str]) -> None:
    """A second tour begins anew; a password in the location is used but not printed."""
    first = said(SMALL, environment)
    location = make_conninfo(environment["PGDICT_URL"], password="hush-hush")
    second = said((*SMALL, "--url", location), environment)
    counts = re.compile(r">>> len\(uses\)\n(\d+)\n>>> uses\['self'\]\n(\d+)\n")
    assert counts.findall(first) == counts.findall(second) != []
    assert "hush-hush" not in second
    assert "***" in second


@pytest.mark.parametrize("no_color", [False, True])
def test_narrow_terminal(environment: dict[str, str], no_color: bool) -> None:
    """On a terminal of 40 columns only commands to copy are longer; NO_COLOR takes the colours away."""
    environment |= {"COLUMNS": "40", "TERM": "xterm-256color"} | ({"NO_COLOR": "1"} if no_color else {})
    ours, theirs = pty.openpty()
    with subprocess.Popen(SMALL, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as demo:
        os.close(theirs)
        output = b""
        while part := _read(ours):
            output += part
    os.close(ours)
    assert demo.returncode == 0
    text = output.decode()
    assert bool(re.search(r"\x1b\[[\d;]*3\dm", text)) != no_color
    lines = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text).replace("\r", "\n").splitlines()
    long = [line for line in lines if len(line.rstrip()) > 40]
    assert long
    assert all(line.startswith("$ ") or "PostgreSQL in" in line or "open after" in line for line in long)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # what Linux says when the last user of the other end is gone
        return b""


def test_interrupt(environment: dict[str, str]) -> None:
    """Ctrl-C ends all processes without a traceback and leaves no table."""
    command = (*DEMO, "--files", "500", "--workers", "2")
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as demo:
        with PgDict[str, int](environment["PGDICT_URL"], table="pgdict_demo") as d:
            while not d.count("uses:"):
                assert demo.poll() is None
        os.killpg(demo.pid, signal.SIGINT)  # as a terminal does: to all of them
        output, _ = demo.communicate(timeout=30)
    assert demo.returncode == 130
    assert "Traceback" not in output
    assert not exists(environment)
    with psycopg.connect(environment["PGDICT_URL"]) as connection:
        others = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        until = time.monotonic() + 10
        while connection.execute(others).fetchone() is not None:
            assert time.monotonic() < until, "a process goes on"


@pytest.mark.parametrize("option", ["--files", "--workers"])
def test_nothing_to_do(environment: dict[str, str], option: str) -> None:
    """A senseless number is an error of usage."""
    done = subprocess.run((*DEMO, option, "0"), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert option in done.stderr
    assert "Traceback" not in done.stderr


def test_directory(server_url: str) -> None:
    """In a directory, which need not exist, the server comes with it."""
    directory = Path(os.environ["PGDICT_TEST_DIRECTORY"]) / secrets.token_hex(6)
    output = said((*SMALL, "--url", str(directory)), dict(os.environ))
    assert f"embedded PostgreSQL in {directory}" in output
