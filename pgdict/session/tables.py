"""Find or create a dictionary's table, and check that it is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, LiteralString

import psycopg
from psycopg import sql
from psycopg.errors import DuplicateObject, DuplicateTable, UniqueViolation
from psycopg.rows import tuple_row

from pgdict import statements
from pgdict.errors import ConfigError, NoTable
from pgdict.session.failures import message_of
from pgdict.statements import Layout, Order

Connection = psycopg.Connection[Any]
Durability = Literal["unlogged", "async", "sync"]

_LONGEST_NAME = 63 - len("_expires_idx")
_COLUMNS = {
    "key": "text",
    "value": "bytea",
    "codec": "text",
    "expires_at": "timestamp with time zone",
    "created_at": "timestamp with time zone",
    "updated_at": "timestamp with time zone",
}
_COMMIT: dict[Durability, Literal["on", "off"] | None] = {"unlogged": None, "async": "off", "sync": "on"}


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for; None is for the table, or the default, to decide."""

    table: str = "kv_store"
    schema: str | None = None
    order: Order | None = None
    durability: Durability | None = None
    expires: bool = True
    create: bool = True
    adopt: Literal["bytes", "text"] | None = None
    """The codec of every row of a table that pgkv made."""

    def __post_init__(self) -> None:
        for what, name in (("table", self.table), ("schema", self.schema)):
            if name is None and what == "schema":
                continue
            if not isinstance(name, str):
                raise TypeError(f"{what} is a str, not {type(name).__name__}: {name!r}")
            length = len(name.encode(errors="replace"))
            longest = _LONGEST_NAME if what == "table" else 63
            if not name or "\0" in name or length > longest or not _encodable(name):
                raise ConfigError(f"{what} {name!r} is no name of 1 to {longest} bytes")
        _choice("order", self.order, ("insertion", "key", None))
        _choice("durability", self.durability, (*_COMMIT, None))

    @property
    def names(self) -> tuple[str, ...]:
        """Schema, if one is given, and table."""
        return (self.table,) if self.schema is None else (self.schema, self.table)


def _choice(option: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        named = ", ".join(repr(choice) for choice in choices if choice is not None)
        raise ConfigError(f"{option} is one of {named}, not {value!r}")


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Table:
    """A table that exists and fits."""

    layout: Layout
    durability: Durability


def open_table(connection: Connection, options: Options, *, default: Durability, joined: bool = False) -> Table:
    """Return the table that `options` name, after creating it when it is missing and may be created."""
    _check_encoding(connection)
    found = _find(connection, options)
    if options.adopt is not None:
        found = _adopt(connection, options, found)
    if found is None:
        if not options.create:
            raise NoTable(f"table {'.'.join(options.names)!r} does not exist, and create is False")
        try:
            _create(connection, options, default)
        except DuplicateObject:  # the type that each table has: somebody has just made both, or it has nothing to do with this
            if _find(connection, options) is None:
                raise
        found = _find(connection, options)
        if found is None:
            raise ConfigError(f"table {'.'.join(options.names)!r} was created, but is not found: check the search_path")
    schema, name, persistence, kind, sequence, version, _ = found
    if kind not in ("r", "p"):
        raise ConfigError(f"{schema}.{name} is no table")
    order = _check_columns(connection, options, f"{schema}.{name}")
    if order == "insertion" and not sequence:
        raise ConfigError(f"table {schema}.{name} has a column seq without a sequence of its own, as copies of tables have")
    _agree("order", options.order, order, f"{schema}.{name}")
    durability = _durability(options, persistence == "u", default, f"{schema}.{name}")
    layout = Layout(
        table=f"{_quoted(schema)}.{_quoted(name)}",
        order=order,
        sequence=sequence or "",
        expires=options.expires,
        commit=None if joined else _COMMIT[durability],
        version=version,
        tag=options.adopt,
    )
    return Table(layout, durability)


def _check_encoding(connection: Connection) -> None:
    client, server = (connection.info.parameter_status(f"{side}_encoding") for side in ("client", "server"))
    if client not in ("UTF8", None):
        raise ConfigError(f"the connection has client_encoding {client}, where a dictionary needs UTF8")
    if server not in ("UTF8", "SQL_ASCII", None):
        raise ConfigError(f"the database has encoding {server}, where a dictionary needs UTF8")


def _adopt(connection: Connection, options: Options, found: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """Give a table of pgkv's the collation that ranges need, and the order that is asked for."""
    if found is None:
        raise ConfigError(f"table {'.'.join(options.names)!r} does not exist: there is nothing to adopt")
    schema, name, *_, encoding = found
    if encoding != "UTF8":
        raise ConfigError(f"table {schema}.{name} is in a database with encoding {encoding}, where keys need UTF8")
    if "codec" in _columns(connection, options):
        raise ConfigError(f"table {schema}.{name} is no table of pgkv, but has a column codec: leave adopt=True away")
    table = _quoted(schema, name)
    try:
        with connection.transaction():
            _execute(connection, statements.CREATION_LOCK, (table,))
            columns = _columns(connection, options)
            if columns.get("key", ("text", "C"))[1] != "C":
                _execute(connection, _sql(statements.ADOPT_KEY, table=table))
            if options.order == "insertion" and "seq" not in columns:
                _execute(connection, _sql(statements.ADOPT_SEQ, table=table))
                index = _quoted(f"{name[:_LONGEST_NAME]}_seq_idx")
                _execute(connection, _sql(statements.CREATE_SEQ_INDEX, name=index, table=table))
                _execute(connection, statements.BEAR, (table, statements.BORN))
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigError(f"table {schema}.{name} cannot be adopted: {message_of(error)}") from error
    return _find(connection, options) or found


def _agree(option: str, asked: str | None, is_: str, table: str) -> None:
    if asked is not None and asked != is_:
        raise ConfigError(f"{option}={asked!r} contradicts table {table}, which has {option}={is_!r}")


def _durability(options: Options, unlogged: bool, default: Durability, table: str) -> Durability:
    asked = options.durability
    if unlogged:
        _agree("durability", asked, "unlogged", table)
        return "unlogged"
    if asked == "unlogged":
        raise ConfigError(f"durability='unlogged' contradicts table {table}, which is logged")
    return asked or (default if default != "unlogged" else "sync")


def _find(connection: Connection, options: Options) -> tuple[Any, ...] | None:
    return _row(connection, statements.FIND_TABLE, _quoted(*options.names))


def _row(connection: Connection, query: str, *params: object) -> tuple[Any, ...] | None:
    return _execute(connection, query.encode(), params).fetchone()


def _check_columns(connection: Connection, options: Options, table: str) -> Order:
    columns = _columns(connection, options)
    wrong = [
        f"{name} {kind}"
        for name, kind in _COLUMNS.items()
        if columns.get(name, ("",))[0] != kind and not (name == "codec" and options.adopt)
    ]
    if wrong:
        raise ConfigError(f"table {table} is no dictionary: it lacks {', '.join(wrong)}")
    collation = columns["key"][1]
    if collation not in ("C", "POSIX", "ucs_basic"):
        raise ConfigError(f'table {table} has collation {collation!r} on its key, where ranges need "C"')
    return "insertion" if columns.get("seq", ("",))[0] == "bigint" else "key"


def _columns(connection: Connection, options: Options) -> dict[str, tuple[str, str]]:
    """Return the type and the collation of each column."""
    rows = _execute(connection, statements.DESCRIBE_COLUMNS, (_quoted(*options.names),)).fetchall()
    return {name: (kind, collation) for name, kind, collation in rows}


def _create(connection: Connection, options: Options, default: Durability) -> None:
    durability = options.durability or default
    schema = None if options.schema is None else _quoted(options.schema)
    insertion = (options.order or "insertion") == "insertion"
    table = _quoted(*options.names)
    quicker = suppress(UniqueViolation, DuplicateTable)  # somebody was, with another table, or another name of this one
    with quicker, connection.transaction():
        _execute(connection, statements.CREATION_LOCK, (table,))
        if _find(connection, options) is not None:
            return
        if schema is not None and _row(connection, statements.SCHEMA_EXISTS, schema) == (False,):
            with quicker, connection.transaction():
                _execute(connection, _sql(statements.CREATE_SCHEMA, schema=schema))
        persistence = "UNLOGGED" if durability == "unlogged" else ""
        seq = statements.SEQ_COLUMN if insertion else ""
        _execute(connection, _sql(statements.CREATE_TABLE, table=table, persistence=persistence, seq=seq))
        name = _quoted(f"{options.table}_expires_idx")
        _execute(connection, _sql(statements.CREATE_EXPIRES_INDEX, name=name, table=table))
        if insertion:
            name = _quoted(f"{options.table}_seq_idx")
            _execute(connection, _sql(statements.CREATE_SEQ_INDEX, name=name, table=table))
            _execute(connection, statements.BEAR, (table, statements.BORN))


def set_durability(connection: Connection, table: Table, durability: Durability, *, joined: bool = False) -> Table:
    """Make a table logged or unlogged, and return it with statements that commit accordingly."""
    _choice("durability", durability, tuple(_COMMIT))
    if _row(connection, statements.IS_UNLOGGED, table.layout.table) != (durability == "unlogged",):
        persistence = "UNLOGGED" if durability == "unlogged" else "LOGGED"
        alter = _sql(statements.SET_PERSISTENCE, table=table.layout.table, persistence=persistence)
        with connection.transaction():
            _execute(connection, _sql(statements.LOCK_TABLE, table=table.layout.table))  # writers too take its sequence second
            with _sequence_restarted(connection, table.layout.sequence):
                _execute(connection, alter)
    return Table(replace(table.layout, commit=None if joined else _COMMIT[durability]), durability)


@contextmanager
def _sequence_restarted(connection: Connection, sequence: str) -> Iterator[None]:
    """Let the block see the sequence at its beginning, which is what a crash then sets an unlogged one back to."""
    if not sequence:
        yield
        return
    last = _row(connection, statements.LAST_NUMBER.template.format(sequence_name=sequence))
    _execute(connection, _sql(statements.RESTART_SEQUENCE, sequence=sequence))
    yield
    _execute(connection, statements.SET_SEQUENCE, (sequence, *(last or (statements.BORN,))))


def truncate_table(connection: Connection, table: str) -> None:
    """Empty the table at once; readers and writers wait for it."""
    _execute(connection, _sql(statements.TRUNCATE, table=table))


def drop_table(connection: Connection, table: str) -> None:
    """Drop the table, named as in a `Layout`, if it is still there."""
    _execute(connection, _sql(statements.DROP_TABLE, table=table))


def _execute(
    connection: Connection, query: LiteralString | bytes, params: tuple[object, ...] = ()
) -> psycopg.Cursor[tuple[Any, ...]]:
    """Execute a statement as psycopg does by default, whatever the application has set on its connection."""
    return psycopg.Cursor(connection, row_factory=tuple_row).execute(query, params or None, prepare=False)


def _sql(template: str, **words: str) -> bytes:
    return template.format(**words).encode()


def _quoted(*names: str) -> str:
    return sql.Identifier(*names).as_string()
