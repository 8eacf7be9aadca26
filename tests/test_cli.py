"""The command, as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import pgdict
from pgdict import PgDict

PGDICT = (sys.executable, "-m", "pgdict")


def run(*arguments: str, command: tuple[str, ...] = PGDICT) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return subprocess.run(
        [*command, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def test_version() -> None:
    """`--version` says it, and is the one of the package."""
    assert run("--version").stdout.startswith(f"pgdict {pgdict.__version__} ")


def test_help() -> None:
    """`--help` names the commands."""
    done = run("--help")
    assert done.returncode == 0
    assert "demo" in done.stdout
    assert "info" in done.stdout


def test_info(server_url: str, d: PgDict[Any, Any], table: str) -> None:
    """`info` tells server, table and size."""
    d.update({n: n for n in range(1234)})
    done = run("info", "--url", server_url, "--table", table)
    assert (done.returncode, done.stderr) == (0, "")
    assert "PostgreSQL 1" in done.stdout
    assert table in done.stdout
    assert "1,234" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["info", "--url", "postgresql://u:hush@127.0.0.1:1/d"], 1, "refused"),
        (["info", "--url", "mysql://u:hush@127.0.0.1/d"], 2, "mysql:// is no PostgreSQL location"),
        (["demo", "--url", "postgresql://u:hush@127.0.0.1:1/d"], 1, "refused"),
    ],
)
def test_errors(arguments: list[str], status: int, reason: str) -> None:
    """An error is one line with the reason, without a traceback or a password."""
    done = run(*arguments)
    assert done.returncode == status
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("pgdict: ")
    assert reason in done.stderr
    assert "hush" not in done.stderr


def test_missing_table(server_url: str, table: str) -> None:
    """`info` creates no table."""
    done = run("info", "--url", server_url, "--table", table)
    assert done.returncode == 2
    assert done.stderr == f"pgdict: table {table!r} does not exist, and create is False\n"


@pytest.mark.parametrize("arguments", [["nonsense"], ["info", "--nonsense"]])
def test_usage(arguments: list[str]) -> None:
    """What the command does not know has exit status 2."""
    assert run(*arguments).returncode == 2


@pytest.mark.parametrize("extra", ["typer", "rich"])
def test_without_the_extra(extra: str) -> None:
    """Without its packages the command says in one line what to install."""
    without = f"import sys; sys.modules[{extra!r}] = None; from pgdict.__main__ import main; main()"
    done = run(command=(sys.executable, "-c", without))
    assert done.returncode == 2
    assert done.stderr == f"pgdict: the command needs {extra}: pip install '.[cli]'\n"
