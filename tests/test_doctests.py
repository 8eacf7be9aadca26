"""The examples in the docstrings run, each on a new dictionary `d`."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from typing import Any

import pytest

import pgdict
from pgdict import PgDict

MODULES = [m.name for m in pkgutil.walk_packages(pgdict.__path__, "pgdict.") if "__main__" not in m.name]
EXAMPLES = [
    pytest.param(example, id=example.name)
    for module in MODULES
    for example in doctest.DocTestFinder().find(importlib.import_module(module))
    if example.examples
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_example(example: doctest.DocTest, d: PgDict[Any, Any], server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a docstring shows is what happens."""
    monkeypatch.setenv("PGDICT_URL", server_url)
    example.globs["d"] = d
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
    assert result.attempted
    assert not result.failed
