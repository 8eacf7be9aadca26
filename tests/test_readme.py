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
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, OutputChecker
from pathlib import Path
from typing import Any

import pytest

from pgdict.cli import app
from pgdict.server import join

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


def test_python(directory: Path) -> None:
    """The examples run one after the other, and each line gives what stands behind its arrow."""
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


@pytest.mark.slow
def test_console(directory: Path) -> None:
    """Every command that is shown prints what is shown below it."""
    cache = join(directory / "cache")  # so that the server need not start for each of them
    for before, block in blocks("console"):
        examples = [example.partition("\n") for example in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
        script = "".join(f"{command}\nprintf '\\0'\n" for command, _, _ in examples)
        alias = f'pgdict() {{ "{sys.executable}" -m pgdict "$@"; }}; exec 2>&1\n'
        done = subprocess.run(["bash", "-c", alias + script], stdout=subprocess.PIPE, text=True, check=True)
        assert done.stdout.count("\0") == len(examples)
        for (command, _, shown), got in zip(examples, done.stdout.split("\0"), strict=False):
            same = OutputChecker().check_output(shown, got, ELLIPSIS | NORMALIZE_WHITESPACE)
            assert same, f"after README.md:{before} `{command}` prints {got}"
    cache.close()


def test_commands() -> None:
    """Every command that is there is shown, and every one that is mentioned is there."""
    code = "\n".join([*re.findall(r"`([^`\n]+)`", README), *(block for kind in ("sh", "console") for _, block in blocks(kind))])
    mentioned = set(re.findall(r"(?:^|[\s/])pgdict (?:--\S+ \w+ )?([a-z]+)\b", code, re.MULTILINE))
    assert mentioned == {command.name for command in app.registered_commands} | {"demo", "bench"}


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
