"""The types: what a checker accepts, refuses and infers for those who use the package."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="mypy checks the types")

GOOD = """
from collections.abc import MutableMapping
from pgdict import ABSENT, PgDict

d: PgDict[str, int] = PgDict("cache")
plain: MutableMapping[str, int] = d


def total(numbers: MutableMapping[str, int]) -> int:
    return sum(numbers.values())


d["a"] = total(d)
d.update({"a": 1}, b=2)
d.update([("a", 1)])
d |= {"c": 3}
d.set("a", 1, ttl=60)
d.set_many((str(n), n) for n in range(3))
if d.compare_and_swap("a", ABSENT, 1):
    pass
with d.mutate("a", default=int) as box:
    box.value += 1
with PgDict[str, list[int]]("cache") as lists:
    lists.mutate("a", lambda numbers: [*numbers, 1], default=list)

reveal_type(d["a"])
reveal_type(d.get("a"))
reveal_type(d.get("a", "none"))
reveal_type(d.pop("a"))
reveal_type(d.pop("a", None))
reveal_type(d.popitem())
reveal_type(d.setdefault("a", 1))
reveal_type([key for key in d])
reveal_type([value for value in d.values()])
reveal_type([item for item in d.items()])
reveal_type(list(reversed(d)))
reveal_type(d.copy())
reveal_type(d | {"c": 3})
reveal_type(d.get_many(["a"]))
reveal_type(d.increment("a"))
reveal_type(d.increment("a", 0.5))
reveal_type(d.mutate("a", abs))
reveal_type(box.value)
reveal_type(d.ttl("a"))
reveal_type(dict(d.scan("a")))
reveal_type(d.entry("a").value)
reveal_type("a" in d)
"""

INFERRED = [
    "int",
    "int | None",
    "int | str",
    "int",
    "int | None",
    "tuple[str, int]",
    "int",
    "list[str]",
    "list[int]",
    "list[tuple[str, int]]",
    "list[str]",
    "dict[str, int]",
    "dict[str, int]",
    "dict[str, int]",
    "int",
    "float",
    "int",
    "int",
    "float | None",
    "dict[str, int]",
    "Any",
    "bool",
]

BAD = """
from pgdict import PgDict

d: PgDict[str, int] = PgDict("cache")
d["a"] = "text"
d[1] = 1
d.set("a", 1, ttl="soon")
d.set_many({"a": None})
d.setdefault("a", "text")
d.popitem("a")
d.mutate("a", str)
PgDict("cache", order="random")
PgDict("cache", colour="red")
text: str = d["a"]
d + d
"""


def mypy(directory: Path, script: str) -> list[str]:
    """Return what mypy says of a script, one string for each message."""
    path = directory / "script.py"
    path.write_text(script)
    options = ["--strict", "--no-error-summary", "--hide-error-context", "--cache-dir", str(directory / "cache")]
    command = [sys.executable, "-m", "mypy", *options, "--config-file", "", path.name]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False).stdout.splitlines()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for scripts, and for what mypy knows of the package."""
    return tmp_path_factory.mktemp("types")


def test_marked() -> None:
    """The package says that it is typed."""
    assert files("pgdict").joinpath("py.typed").is_file()


def test_accepted(directory: Path) -> None:
    """Strict typing accepts ordinary use, and infers keys and values from the dictionary's own."""
    said = mypy(directory, GOOD)
    assert [line for line in said if ": note: Revealed type is" not in line] == []
    assert [re.sub(r"builtins\.|typing\.", "", line.split('"')[1]) for line in said] == INFERRED


def test_refused(directory: Path) -> None:
    """It refuses each misuse, and nothing else."""
    wrong = {int(line.split(":")[1]) for line in mypy(directory, BAD) if ": error: " in line}
    first = BAD.splitlines().index('d["a"] = "text"') + 1
    assert wrong == set(range(first, len(BAD.splitlines()) + 1))
