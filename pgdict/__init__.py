"""A Python dict that lives in PostgreSQL: shared between processes, kept between runs, and fast.

>>> from pgdict import PgDict
"""

from pgdict.codecs import Codec, bytes_, json, msgpack, pickle, text
from pgdict.dictionary import Box, PgDict
from pgdict.errors import (
    ConfigError,
    ConnectionFailed,
    DecodeError,
    InvalidKey,
    InvalidValue,
    LockTimeout,
    PgDictError,
    QueryFailed,
)
from pgdict.operations import ABSENT
from pgdict.operations.one import CasResult, Entry
from pgdict.operations.whole import Stats

__version__ = "0.1.0"

__all__ = [
    "ABSENT",
    "Box",
    "CasResult",
    "Codec",
    "ConfigError",
    "ConnectionFailed",
    "DecodeError",
    "Entry",
    "InvalidKey",
    "InvalidValue",
    "LockTimeout",
    "PgDict",
    "PgDictError",
    "QueryFailed",
    "Stats",
    "bytes_",
    "json",
    "msgpack",
    "pickle",
    "text",
]


def load_ipython_extension(shell: object) -> None:
    """Do what `%load_ext pgdict` asks for."""
    from pgdict.magics import register  # only a shell needs it

    register(shell)
