"""Carry operations to PostgreSQL: connections, prepared statements, transactions, retries, errors."""

from pgdict.session import opening
from pgdict.session.opening import Place
from pgdict.session.session import Session
from pgdict.session.sources import Connection, Network, Pool
from pgdict.session.sweeper import sweep_in_background
from pgdict.session.tables import Durability, Options, Table, drop_table, set_durability, truncate_table

__all__ = [
    "Connection",
    "Durability",
    "Network",
    "Options",
    "Place",
    "Pool",
    "Session",
    "Table",
    "drop_table",
    "opening",
    "set_durability",
    "sweep_in_background",
    "truncate_table",
]
