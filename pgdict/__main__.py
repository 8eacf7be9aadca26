"""The command `pgdict`, also `python -m pgdict`."""

from __future__ import annotations

import sys
from typing import NoReturn

from pgdict.errors import ConfigError, PgDictError


def main() -> None:
    """Run the command; an error is one line, exit status 1, or 2 when it is in what was asked for."""
    try:
        from pgdict.cli import app
    except ModuleNotFoundError as missing:
        complain(f"the command needs {str(missing.name).partition('.')[0]}: pip install '.[cli]'", 2)
    try:
        app(prog_name="pgdict")
    except ConfigError as error:
        complain(error, 2)
    except PgDictError as error:
        complain(error, 1)


def complain(reason: object, status: int) -> NoReturn:
    """Say what is wrong and exit."""
    sys.stderr.write(f"pgdict: {reason}\n")
    sys.exit(status)


if __name__ == "__main__":
    main()
