"""Open a session: connect at once, so that a wrong address is a clear error, and find or create the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pgdict import server
from pgdict.session.failures import translating
from pgdict.session.session import Session
from pgdict.session.sources import Borrowed, Connection, Joined, Leases, Network, OwnConnection, Pool
from pgdict.session.tables import Durability, Options, Table, open_table


@dataclass(frozen=True, slots=True)
class Place:
    """Where the data of a session is."""

    name: str
    """For messages: no password."""
    url: Callable[[], str]
    """The connection string."""


def open_location(location: Any, options: Options, network: Network) -> tuple[Session, Table, Place]:
    """Open a session with connections of its own."""
    where = server.locate(location)
    if isinstance(where, Path):
        embedded = server.join(where)
        session, table, _ = _open_own(lambda: _alive(embedded), embedded.close, options, network, "async")
        return session, table, Place(str(where), lambda: embedded.conninfo)
    return _open_own(lambda: where, lambda: None, options, network, "unlogged")


def _alive(embedded: server.Embedded) -> str:
    embedded.ensure()
    return embedded.conninfo


def _open_own(
    conninfo: Callable[[], str],
    leave: Callable[[], None],
    options: Options,
    network: Network,
    default: Durability,
) -> tuple[Session, Table, Place]:
    try:
        settings = network.settings(conninfo())

        def connect() -> Connection:
            return OwnConnection.connect(conninfo(), autocommit=True, prepare_threshold=None, **settings)

        with translating():
            connection = connect()
            table = open_table(connection, options, default=default)
            url = server.as_url(connection.info)
    except BaseException:
        leave()
        raise
    leases = Leases(connect, network, connection)
    session = Session(leases, table, connect, timeout=network.timeout, on_close=leave)
    return session, table, Place(server.mask(url), lambda: url)


def _beside(url: str, network: Network) -> Connection:
    """Open a connection beside those of the application, for what needs one of its own."""
    return OwnConnection.connect(url, autocommit=True, prepare_threshold=None, **network.settings(url))


def open_pool(pool: Pool, options: Options, network: Network) -> tuple[Session, Table, Place]:
    """Open a session on the application's pool."""
    with translating(), pool.connection() as connection:
        table = open_table(connection, options, default="unlogged")
        url = server.as_url(connection.info)
    session = Session(Borrowed(pool, network.timeout), table, partial(_beside, url, network), timeout=network.timeout)
    return session, table, Place(server.mask(url), lambda: url)


def open_connection(connection: Connection, options: Options, network: Network) -> tuple[Session, Table, Place]:
    """Open a session that is part of the application's own connection and transaction."""
    with translating(), connection.transaction():
        url = server.as_url(connection.info)
        table = open_table(connection, options, default="unlogged", joined=True)
    session = Session(Joined(connection), table, partial(_beside, url, network), timeout=network.timeout)
    return session, table, Place(server.mask(url), lambda: url)
