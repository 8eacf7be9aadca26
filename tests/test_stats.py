from __future__ import annotations

import time
from typing import Any

import psycopg
import pytest

from pgdict import PgDict


def test_exact(d: PgDict[Any, Any]) -> None:
    """Statistics count live and expired rows, and the bytes of the live ones' keys and values."""
    assert (d.stats().live, d.stats().expired, d.stats().bytes, d.stats().exact) == (0, 0, 0, True)
    d.update({"a": "x", "äb": 5, "n:c": b"12345"})
    d.set_many({"old": 1, "n:old": 1}, ttl=0.01)
    time.sleep(0.05)
    stats = d.stats()
    sizes = sum(d.entry(key).size for key in d)
    assert (stats.live, stats.expired, stats.bytes) == (3, 2, sizes + 1 + 3 + 3)
    assert stats.table_bytes > 0
    assert stats.index_bytes > 0
    assert stats.emptied is False


def test_namespace(d: PgDict[Any, Any]) -> None:
    """In a namespace the rows are its own; what the table takes on disk is the table's."""
    users = d.namespace("users")
    d.update(a=1, b=2)
    users.update(ann=1)
    users.set("bob", 2, ttl=0.01)
    time.sleep(0.05)
    stats, root = users.stats(), d.stats()
    assert (stats.live, stats.expired, stats.bytes) == (1, 1, len("users:ann") + 1)
    assert (stats.table_bytes, stats.index_bytes) == (root.table_bytes, root.index_bytes)
    assert root.live == 3


def test_disabled(server_url: str, table: str) -> None:
    """Where expiry is ignored, every row is live."""
    with PgDict[Any, Any](server_url, table=table, cleanup="disabled") as d:
        d.set("a", 1, ttl=0.001)
        time.sleep(0.01)
        assert (d.stats().live, d.stats().expired) == (1, 0)


@pytest.mark.parametrize("order", ["insertion", "key"])
def test_estimate(server_url: str, table: str, order: Any) -> None:
    """An estimate reads no row: it is what the server last noted, of the whole table."""
    with PgDict[Any, Any](server_url, table=table, order=order) as d:
        assert d.stats(exact=False).live == 0
        d.update({n: n for n in range(5_000)})
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(f"ANALYZE {table}".encode())
        estimate = d.stats(exact=False)
        assert (estimate.live, estimate.expired, estimate.bytes, estimate.exact) == (5_000, None, None, False)
        assert d.namespace("n").stats(exact=False).live == 5_000
        assert estimate.table_bytes == d.stats().table_bytes
        assert estimate.emptied is (False if order == "insertion" else None)
