"""`%load_ext pgdict` for IPython and Jupyter."""

from __future__ import annotations

from keyword import iskeyword
from typing import Any

from pgdict.dictionary import PgDict
from pgdict.errors import PgDictError


def register(shell: Any) -> None:
    """Give a shell the magic `%pgdict`."""
    from IPython.core.error import UsageError  # there is a shell, so it is there

    def pgdict(line: str) -> PgDict[Any, Any]:
        """Bind a dictionary to a variable: `%pgdict [LOCATION] [as NAME]`.

        The location is what `PgDict` takes: a URL, a directory, or nothing for PGDICT_URL or the embedded server in the user's
        data directory. The variable is `d` unless named. `%pgdict $url as users` takes the location from a variable.

        There is no `%%memo` for cells: what a cell reads cannot be known for certain, and a stale result would be a wrong one.
        `@d.memoize` keeps the results of functions, whose inputs are their arguments.
        """
        location, name = _parsed(line)
        if not name.isidentifier() or iskeyword(name):
            raise UsageError(f"%pgdict: {name!r} is no name of a variable")
        try:
            dictionary: PgDict[Any, Any] = PgDict(location or None)
        except PgDictError as error:
            raise UsageError(f"%pgdict: {error}") from None
        shell.push({name: dictionary})
        return dictionary

    shell.register_magic_function(pgdict, "line")


def _parsed(line: str) -> tuple[str, str]:
    """Return the location, which may be quoted, and the name of the variable.

    >>> _parsed("./my data as users"), _parsed("'./data'"), _parsed("as users")
    (('./my data', 'users'), ('./data', 'd'), ('', 'users'))
    """
    location, named, name = f" {line} ".rpartition(" as ")
    if not named:
        location, name = name, "d"
    location = location.strip()
    if len(location) > 1 and location[0] == location[-1] and location[0] in "'\"":
        location = location[1:-1]
    return location, name.strip()
