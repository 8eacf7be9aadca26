"""The command `pgdict`, also `python -m pgdict`: it puts together what the modules below have."""

from __future__ import annotations

import sys
from collections.abc import Callable


def main() -> None:
    """Run the command, and exit."""
    try:
        import typer  # noqa: F401 - what cannot be done without
    except ModuleNotFoundError as missing:
        sys.stderr.write(f"pgdict: the command needs {missing.name}: pip install '.[cli]'\n")
        sys.exit(2)
    from pgdict.cli import Commands, app

    Commands.elsewhere.update(demo=demo, bench=bench)
    app(prog_name="pgdict")


def demo() -> Callable[..., None]:
    """Return the command `pgdict demo`."""
    from pgdict.demo import command

    return command


def bench() -> Callable[..., None]:
    """Return the command `pgdict bench`."""
    from pgdict.bench.command import bench

    return bench


if __name__ == "__main__":
    main()
