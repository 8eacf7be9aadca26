"""Every query finds its rows through an index, whatever the planner knows or does not know of the table."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import pq, sql

from pgdict import PgDict, statements, wire
from pgdict.operations.pages import _HIGHEST_SEQ, _LOWEST_SEQ
from pgdict.statements import Family, Layout, Statement

N = 100_000

POINT = [
    "GET", "HAS", "ENTRY", "TTL", "SET", "SET_NX", "SETDEFAULT", "DELETE", "TAKE", "EXCHANGE", "SWAP", "LOCK_ROW",
    "EXPIRE", "PERSIST", "INCREMENT", "INCREMENT_LARGE", "MOVE_LAST", "MOVE_FIRST", "FORGET",
]  # fmt: skip
MANY = ["SWEEP_TWO", "GET_MANY", "SET_MANY", "RESERVE", "DELETE_MANY", "GET_IN_ORDER"]
RANGES = ["COUNT", "ANY", "CLEAR", "SWEEP", "POPITEM_AMONG"]


class Planner:
    """A connection that tells how PostgreSQL executes what pgdict sends about one table."""

    def __init__(self, connection: psycopg.Connection[Any], layout: Layout) -> None:
        self.connection, self.layout = connection, layout

    def generic(self, statement: Statement) -> list[dict[str, Any]]:
        """Return the nodes of the plan that serves all parameters alike."""
        rendered = self.layout.render(statement)
        nulls = ", ".join(["NULL"] * max(map(int, re.findall(rb"\$(\d+)", rendered.sql)), default=0))
        with self.connection.transaction(force_rollback=True):
            self.connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
            self.connection.execute(b"PREPARE generic AS " + rendered.sql)
            arguments = f"({nulls})" if nulls else ""
            row = self.connection.execute(f"EXPLAIN (FORMAT JSON) EXECUTE generic{arguments}".encode()).fetchone()
        self.connection.execute("DEALLOCATE ALL")
        assert row is not None
        return list(nodes(row[0][0]["Plan"]))

    def executed(self, statement: Statement, *params: bytes | None) -> list[dict[str, Any]]:
        """Execute a statement and return the nodes of its plan, with the numbers of rows that they met."""
        query = b"EXPLAIN (ANALYZE, FORMAT JSON) " + self.layout.render(statement).sql
        result = self.connection.pgconn.exec_params(query, params, None, [pq.Format.BINARY] * len(params))
        assert result.status == pq.ExecStatus.TUPLES_OK, result.error_message
        return list(nodes(json.loads(result.get_value(0, 0) or b"")[0]["Plan"]))


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a plan's nodes."""
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def reads_all(plan: list[dict[str, Any]]) -> bool:
    """Tell whether a plan reads the table from end to end."""
    return any(node["Node Type"] == "Seq Scan" and node["Relation Name"].startswith("plans_") for node in plan)


def rows_met(plan: list[dict[str, Any]]) -> float:
    """Return the most rows of the table that any node read, those that it threw away included."""
    return max(
        float((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"])
        for node in plan
        if "Relation Name" in node
    )


@pytest.fixture(scope="module", params=["fresh", "analysed"])
def planner(request: pytest.FixtureRequest, server_url: str) -> Iterator[Planner]:
    """A table of a hundred thousand rows, every hundredth in one namespace, that was never analysed, or just now."""
    name = f"plans_{request.param}_{os.getpid()}"
    with (
        PgDict[Any, Any](server_url, table=name) as d,
        psycopg.connect(server_url, autocommit=True) as connection,
    ):
        table = sql.Identifier(name)
        connection.execute(sql.SQL("ALTER TABLE {} SET (autovacuum_enabled = false)").format(table))
        connection.execute(sql.SQL("TRUNCATE {}").format(table))
        connection.execute(
            sql.SQL(
                "INSERT INTO {} (key, value, codec, expires_at) "
                "SELECT CASE WHEN i % 100 = 0 THEN 'few:' ELSE 'many:' END || i, '1', 'int', "
                "CASE WHEN i % 10 = 0 THEN now() + '1 day' END FROM generate_series(1, {}) AS i"
            ).format(table, N)
        )
        if request.param == "analysed":
            connection.execute(sql.SQL("ANALYZE {}").format(table))
        yield Planner(connection, d._session.table.layout)
        d.drop()


@pytest.mark.parametrize("name", POINT + MANY)
def test_generic_plan_of_statement(planner: Planner, name: str) -> None:
    """What asks for keys never reads the whole table, once its plan is generic."""
    assert not reads_all(planner.generic(getattr(statements, name)))


@pytest.mark.parametrize("name", RANGES)
def test_generic_plan_of_range(planner: Planner, name: str) -> None:
    """What asks for a prefix or a namespace never reads the whole table, once its plan is generic."""
    family: Family = getattr(statements, name)
    for reverse in (False, True):
        assert not reads_all(planner.generic(family.over(True, reverse)))


def test_the_whole_table_is_told_from_a_part(planner: Planner) -> None:
    """The test can fail: counting everything reads everything."""
    assert reads_all(planner.generic(statements.COUNT.over(False)))


def test_clear(planner: Planner) -> None:
    """Clearing a small namespace reads no other rows."""
    with planner.connection.transaction(force_rollback=True):
        plan = planner.executed(statements.CLEAR.over(True), b"few:", b"few;")
    assert not reads_all(plan)


def limits(rows: int) -> tuple[bytes, bytes, bytes]:
    """Return the parameters of a page with values."""
    return wire.TRUE, wire.int8(8 * 2**20), wire.int8(rows)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("place", ["beginning", "middle"])
@pytest.mark.parametrize("bounds", [(), (b"few:", b"few;"), (b"many:", b"many;"), (b"none:", b"none;")])
def test_page(planner: Planner, bounds: tuple[bytes, ...], place: str, reverse: bool) -> None:
    """A page of a table or of any namespace reads its own rows and hardly one more, and sorts no more."""
    seq = wire.int8(N // 2) if place == "middle" else (_HIGHEST_SEQ if reverse else _LOWEST_SEQ)
    mark = wire.int8(1 if reverse else N) if place == "middle" else None
    statement = statements.PAGE.over(bool(bounds), reverse)
    assert rows_met(planner.executed(statement, *limits(1_000), seq, b"", mark, *bounds)) < 1_100


@pytest.mark.parametrize("reverse", [False, True])
def test_sparse_namespace(planner: Planner, reverse: bool) -> None:
    """What sorts the keys of a small namespace reads no others."""
    seq, mark = (_HIGHEST_SEQ, wire.int8(1)) if reverse else (_LOWEST_SEQ, wire.int8(N))
    plan = planner.executed(statements.SORTED.over(True, reverse), wire.int8(50_000), seq, b"", mark, b"few:", b"few;")
    assert rows_met(plan) == N // 100


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("bounds", [(b"few:", b"few;"), (b"many:", b"many;"), (b"many:5", b"many:6"), (b"", b"\x7f")])
def test_scan(planner: Planner, bounds: tuple[bytes, bytes], reverse: bool) -> None:
    """A page in key order reads its own rows and hardly one more."""
    plan = planner.executed(statements.SCAN.over(True, reverse), *limits(500), None, wire.int8(0), *bounds)
    assert 501 <= rows_met(plan) <= 502


def test_values_of_sorted_keys(planner: Planner) -> None:
    """Values are fetched key by key, never by a join that reads the whole table."""
    keys = wire.text_array([b"few:%d" % number for number in range(100, N + 1, 100)])
    assert not reads_all(planner.executed(statements.GET_IN_ORDER, *limits(5_000), keys))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("bounds", [(b"few:", b"few;"), (b"many:", b"many;"), (b"none:", b"none;")])
def test_popitem(planner: Planner, bounds: tuple[bytes, bytes], reverse: bool) -> None:
    """Taking an item out of a namespace with rows near the end of the table, or with none, looks at a thousand at most."""
    with planner.connection.transaction(force_rollback=True):
        plan = planner.executed(statements.POPITEM_AMONG.over(True, reverse), wire.text_array([b"int"]), *bounds)
    assert rows_met(plan) <= 1_001


@pytest.mark.parametrize("reverse", [False, True])
def test_popitem_of_everything(planner: Planner, reverse: bool) -> None:
    """Taking an item out of the whole table looks at a handful of rows."""
    with planner.connection.transaction(force_rollback=True):
        plan = planner.executed(statements.POPITEM.over(False, reverse), wire.text_array([b"int"]))
    assert rows_met(plan) < 100
