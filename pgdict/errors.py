"""What can go wrong, beyond what a mapping raises by itself (`KeyError`, `TypeError`)."""

from __future__ import annotations

from typing import Any


class PgDictError(Exception):
    """The base of every error that is pgdict's own."""

    recoverable: bool = False
    """Whether the same call may succeed when it is made again."""


class ConfigError(PgDictError, ValueError):
    """An option, a location or an existing table does not fit."""


class NoTable(ConfigError):
    """The table does not exist, and is not to be created."""


class InvalidKey(PgDictError, ValueError):
    """A key, prefix or namespace that cannot be stored."""


class InvalidValue(PgDictError, ValueError):
    """A value that the codec or the size limit refuses."""


class DecodeError(PgDictError, ValueError):
    """A row that cannot be read with the codec it is tagged with.

    Attributes:
        key: the key, as the caller would write it.
        codec: the tag of the row.
        raw: the stored bytes.
    """

    def __init__(self, key: object, codec: str, raw: bytes, reason: str) -> None:
        super().__init__(key, codec, raw, reason)
        self.key, self.codec, self.raw, self.reason = key, codec, raw, reason

    def __str__(self) -> str:
        return f"value of key {self.key!r}, stored with codec {self.codec!r}, cannot be read: {self.reason}"


class ConnectionFailed(PgDictError, ConnectionError):
    """PostgreSQL could not be reached, or the connection was lost.

    Attributes:
        maybe_applied: a write was under way and its answer was lost, so it may have been applied or not.
    """

    recoverable = True

    def __init__(self, message: str = "", *, maybe_applied: bool = False) -> None:
        super().__init__(message)
        self.maybe_applied = maybe_applied

    def __reduce__(self) -> tuple[Any, ...]:
        return _connection_failed, (str(self), self.maybe_applied)


def _connection_failed(message: str, maybe_applied: bool) -> ConnectionFailed:
    return ConnectionFailed(message, maybe_applied=maybe_applied)


class LockTimeout(PgDictError, TimeoutError):
    """A lock was not obtained in time."""

    recoverable = True


class QueryFailed(PgDictError):
    """PostgreSQL refused a statement; its own error is the `__cause__`.

    Attributes:
        sqlstate: the five-character code of PostgreSQL's manual, appendix A, or None.
    """

    def __init__(self, message: str = "", sqlstate: str | None = None, recoverable: bool = False) -> None:
        super().__init__(message, sqlstate, recoverable)
        self.sqlstate, self.recoverable = sqlstate, recoverable

    def __str__(self) -> str:
        return str(self.args[0])
