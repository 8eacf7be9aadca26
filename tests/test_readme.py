"""What the README shows is what happens."""

from __future__ import annotations

import ast
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from doctest import ELLIPSIS, OutputChecker
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[tuple[int, str]]:
    """Return the README's blocks of a language, each with the number of the line before it."""
    found = re.finditer(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [(README.count("\n", 0, block.start(1)), block[1]) for block in found]


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A new working directory that an embedded server may enter, also root's."""
    new = Path(os.environ["PGDICT_TEST_DIRECTORY"]) / secrets.token_hex(6)
    new.mkdir()
    new.chmod(0o755)
    monkeypatch.chdir(new)
    yield new
    monkeypatch.undo()


def outcome(statement: ast.stmt, names: dict[str, Any]) -> str:
    """Return what a statement gives, or raises."""
    try:
        if isinstance(statement, ast.Expr):
            return repr(eval(ast.unparse(statement), names))
        exec(ast.unparse(statement), names)
    except Exception as error:  # noqa: BLE001 - it is what is shown
        return f"{type(error).__name__}: {error}"
    return "nothing"


def test_python_and_info(directory: Path) -> None:
    """The examples run one after the other, each line gives what stands behind its arrow, and `pgdict info` finds it all."""
    names: dict[str, Any] = {"__name__": "readme"}
    for before, block in blocks("python"):
        lines, checked = block.splitlines(), 0
        for statement in ast.parse(block).body:
            where = f"README.md:{before + statement.lineno}"
            shown = lines[(statement.end_lineno or 0) - 1].partition("# → ")[2]
            if shown:
                checked += 1
                got = outcome(statement, names)
                assert OutputChecker().check_output(f"{shown}\n", f"{got}\n", ELLIPSIS), f"{where} gives {got}"
            else:
                exec(compile(ast.unparse(statement), where, "exec"), names)
        assert checked == block.count("# →"), block
    names["d"].close()
    names["cache"].close()
    (info,) = [line for _, block in blocks("sh") for line in block.splitlines() if "pgdict info" in line]
    done = subprocess.run(
        [sys.executable, "-m", *info.removeprefix(".venv/bin/").split()], check=True, capture_output=True, text=True
    )
    assert f"{directory / 'cache'} (embedded)" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_first_command(directory: Path) -> None:
    """On a machine with nothing but Python, the first command installs pgdict with its server and gives the tour."""
    command = next(block for _, block in blocks("sh"))
    checkout = directory / "a checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    bare = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "PYTHON", "VIRTUAL_ENV"))}
    location = directory / "data"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=checkout,
        env=bare | {"PGDICT_URL": str(location)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert ">>> sum(uses.values()) == counted\nTrue\n" in done.stdout
