"""`%load_ext pgdict` for IPython and Jupyter."""

from __future__ import annotations

from typing import Any

from pgdict.dictionary import PgDict
from pgdict.errors import PgDictError


def register(shell: Any) -> None:
    """Give a shell the magic `%pgdict`."""
    from IPython.core.error import UsageError  # there is a shell, so it is there

    def pgdict(line: str) -> PgDict[Any, Any]:
        """Bind a dictionary to a variable: `%pgdict [LOCATION] [as NAME]`.

        The location is what `PgDict` takes: a URL, a directory, or nothing for PGDICT_URL or the embedded server in the user's
        data directory. The variable is `d` unless named.
        """
        location, _, name = line.strip().rpartition(" as ") if " as " in f" {line}" else (line.strip(), "", "d")
        if not name.strip().isidentifier():
            raise UsageError(f"%pgdict: {name.strip()!r} is no name of a variable")
        try:
            dictionary: PgDict[Any, Any] = PgDict(location.strip() or None)
        except PgDictError as error:
            raise UsageError(f"%pgdict: {error}") from None
        shell.push({name.strip(): dictionary})
        return dictionary

    shell.register_magic_function(pgdict, "line")
