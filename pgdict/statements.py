"""Every SQL statement, as a constant, and how it is rendered for one table.

Rules that all of them keep, each learnt the hard way by somebody:

* An expired row is absent: `{live}` is the one visibility predicate, on the server's clock.
* Rows are found by key or by a range of keys, and `key` never changes.
* The part behind `ON CONFLICT DO UPDATE` calls no function of time: it compares columns with `excluded`.
* Statements that lock several rows lock them in the order of their keys, or skip the locked ones.

In the templates `{range:n}` is the range of keys `$n` to below `$n+1` (or the whole table), `{expiry:n}` the moment given by
an interval `$n` or a timestamptz `$n+1`, `{durable}` makes the durability of one statement without any session state, and
`{by}`, `{after}`, `{asc}` turn round for the reverse direction.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from typing import Literal

Order = Literal["insertion", "key"]


@dataclass(frozen=True, eq=False, slots=True)
class Statement:
    """One statement; a constant of this module, rendered once per table."""

    template: str
    reads: bool = False
    """Changes nothing, so it may be repeated when a connection is lost."""
    replanned: bool = False
    """Planned with its real parameters each time: a generic plan would be slow on some sizes of table."""
    chore: bool = False
    """Housekeeping: left out in transactions, and its failure is nobody's."""
    staged: bool = False
    """Works on a temporary table, whose name differs each time."""
    copies: bool = False
    """A COPY: its one parameter is the data."""
    modern: str | None = None
    """The template for PostgreSQL 18 and later, where it can be shorter there."""


class Family:
    """A statement over the whole table or a range of keys, forwards or backwards."""

    def __init__(self, template: str, *, reads: bool = False, replanned: bool = False) -> None:
        self._members = {
            (ranged, reverse): Statement(_turn(_range(template, ranged), reverse), reads, replanned)
            for ranged in (False, True)
            for reverse in (False, True)
        }

    def over(self, ranged: bool, reverse: bool = False) -> Statement:
        """Return the member for a range or the whole, in that direction."""
        return self._members[ranged, reverse]


def _range(template: str, ranged: bool) -> str:
    def bounds(match: re.Match[str]) -> str:
        low = int(match[1])
        return f"(t.key >= ${low}::text AND t.key < ${low + 1}::text)" if ranged else "TRUE"

    return re.sub(r"\{range:(\d+)\}", bounds, template)


def _turn(template: str, reverse: bool) -> str:
    words = (("{after}", "<"), ("{asc}", "DESC"), ("{by}", "{by_desc}"), ("{to}", ">="), ("{end}", "min"))
    straight = (("{after}", ">"), ("{asc}", "ASC"), ("{by}", "{by_asc}"), ("{to}", "<="), ("{end}", "max"))
    for placeholder, word in words if reverse else straight:
        template = template.replace(placeholder, word)
    return template


# One key -------------------------------------------------------------------------------------------------------------

GET = Statement("SELECT t.value, {codec}, {live} FROM {table} AS t WHERE t.key = $1::text", reads=True)

HAS = Statement("SELECT {live} FROM {table} AS t WHERE t.key = $1::text", reads=True)

ENTRY = Statement(
    """
    SELECT t.value, {codec}, {live}, t.created_at, t.updated_at, t.expires_at
    FROM {table} AS t
    WHERE t.key = $1::text
    """,
    reads=True,
)

GET_AGING = Statement(
    "SELECT t.value, {codec}, {live}, t.expires_at, {clock} FROM {table} AS t WHERE t.key = $1::text", reads=True
)

TTL = Statement("SELECT {live}, t.expires_at, {clock} FROM {table} AS t WHERE t.key = $1::text", reads=True)

_NEW_ROW = """
    INSERT INTO {table} AS t (key, value, {codec_column} expires_at, created_at, updated_at)
    SELECT $1::text, {value}, {codec_value} {expiry:4}, {clock}, {clock}
"""

_REPLACE = """
    ON CONFLICT (key) DO UPDATE
    SET value = excluded.value, {codec_replaced} expires_at = excluded.expires_at, updated_at = excluded.updated_at,
        created_at = CASE WHEN {dead} THEN excluded.created_at ELSE t.created_at END {seq_replaced}
"""

_REBIRTH = """
    ON CONFLICT (key) DO UPDATE
    SET value = excluded.value, {codec_replaced} expires_at = excluded.expires_at, updated_at = excluded.updated_at,
        created_at = excluded.created_at {seq_reborn}
    WHERE {dead}
"""

SET = Statement(_NEW_ROW + "WHERE {durable}" + _REPLACE)

# Tells whether there is anything to sweep, which costs a look at the index: most often there is nothing.
SET_EXPIRING = Statement(
    _NEW_ROW + "WHERE {durable}" + _REPLACE + "RETURNING EXISTS (SELECT FROM {table} AS s WHERE s.expires_at <= {clock})"
)

SET_NX = Statement(_NEW_ROW + "WHERE {durable}" + _REBIRTH + "RETURNING TRUE")

SETDEFAULT = Statement(
    """
    WITH present AS MATERIALIZED (
        SELECT t.value, {codec} AS codec FROM {table} AS t WHERE t.key = $1::text AND {live}
    ), born AS (
    """
    + _NEW_ROW
    + "WHERE {durable} AND NOT EXISTS (SELECT FROM present)"
    + _REBIRTH
    + """
        RETURNING TRUE
    )
    SELECT FALSE, value, codec FROM present
    UNION ALL
    SELECT TRUE, NULL, NULL FROM born
    """
)

DELETE = Statement("DELETE FROM {table} AS t WHERE t.key = $1::text AND {durable} RETURNING {live}")

# A live row whose codec is not among $2 stays, and is shown as not taken. So does one that changed under the statement.
TAKE = Statement(
    """
    WITH gone AS (
        DELETE FROM {table} AS t
        WHERE t.key = $1::text AND ({codec} = ANY ($2::text[]) OR NOT {live}) AND {durable}
        RETURNING t.value, {codec} AS codec, {live} AS live
    )
    SELECT TRUE, live, value, codec FROM gone
    UNION ALL
    SELECT FALSE, TRUE, t.value, {codec} FROM {table} AS t
    WHERE t.key = $1::text AND {live} AND NOT EXISTS (SELECT FROM gone)
    """
)

# Before PostgreSQL 18 only a locked read knows the value that an update replaces; absent rows are then for SET_NX.
EXCHANGE = Statement(
    """
    UPDATE {table} AS t
    SET value = {value}, {codec_set} expires_at = {expiry:4}, updated_at = {clock}
    FROM (
        SELECT t.key, t.value, {codec} AS codec FROM {table} AS t
        WHERE t.key = $1::text AND {live} AND {codec} = ANY ($6::text[])
        FOR UPDATE
    ) AS old
    WHERE t.key = old.key AND {durable}
    RETURNING TRUE, old.value, old.codec
    """,
    modern=_NEW_ROW
    + "WHERE {durable}"
    + _REPLACE
    + """
    WHERE {codec} = ANY ($6::text[]) OR {dead}
    RETURNING old.key IS NOT NULL AND {live_old}, old.value, {codec_old}
    """,
)

_SWAP = """
    UPDATE {table} AS t
    SET value = {value}, {codec_set} updated_at = {clock},
        expires_at = CASE WHEN $6::bool THEN {expiry:4} ELSE t.expires_at END
    WHERE t.key = $1::text AND t.value = $7::bytea AND {codec} = $8::text AND {durable}
"""

SWAP = Statement(_SWAP + "AND {live} RETURNING TRUE")

# Of a row that is locked, and was live then. When it has expired meanwhile, others who began before may still see it.
SWAP_HELD = Statement(_SWAP + "RETURNING TRUE")

LOCK_ROW = Statement("SELECT t.value, {codec}, {live} FROM {table} AS t WHERE t.key = $1::text FOR UPDATE")

EXPIRE = Statement(
    """
    UPDATE {table} AS t SET expires_at = {expiry:2} WHERE t.key = $1::text AND {live} AND {durable} RETURNING TRUE
    """
)

PERSIST = Statement(
    """
    UPDATE {table} AS t SET expires_at = NULL
    WHERE t.key = $1::text AND t.expires_at IS NOT NULL AND {live} AND {durable}
    RETURNING TRUE
    """
)

# The sum of two numbers of 18 digits fits a bigint, which is 10 to 15 microseconds cheaper than numeric. The CASE keeps
# the casts away from whatever is no number, and all functions behind ON CONFLICT are immutable.
_INCREMENT = """
    INSERT INTO {table} AS t (key, value, {codec_column} expires_at, created_at, updated_at)
    SELECT $1::text, decode($2::%(type)s::text, 'escape'), {codec_int} {expiry:3}, {clock}, {clock}
    WHERE {durable}
    ON CONFLICT (key) DO UPDATE
    SET value = CASE WHEN {dead} THEN excluded.value ELSE decode(%(sum)s, 'escape') END,
        {codec_replaced} expires_at = CASE WHEN {dead} THEN excluded.expires_at ELSE t.expires_at END,
        updated_at = excluded.updated_at,
        created_at = CASE WHEN {dead} THEN excluded.created_at ELSE t.created_at END {seq_replaced}
    WHERE {dead} OR {counts} AND octet_length(t.value) < 1000
        AND CASE WHEN octet_length(t.value) < 1000 THEN encode(t.value, 'escape') ~ '^-?[0-9]+$' END
    RETURNING t.value
"""

_NUMBER = "encode(t.value, 'escape')"

INCREMENT = Statement(
    _INCREMENT
    % {
        "type": "bigint",
        "sum": f"CASE WHEN octet_length(t.value) < 19 THEN ({_NUMBER}::bigint + $2::bigint)::text "
        f"ELSE ({_NUMBER}::numeric + $2::bigint)::text END",
    }
)

INCREMENT_LARGE = Statement(_INCREMENT % {"type": "numeric", "sum": f"({_NUMBER}::numeric + $2::numeric)::text"})

MOVE_LAST = Statement(
    """
    UPDATE {table} AS t SET seq = nextval({sequence}) WHERE t.key = $1::text AND {live} AND {durable} RETURNING TRUE
    """
)

MOVE_FIRST = Statement(
    """
    UPDATE {table} AS t SET seq = (SELECT min(s.seq) FROM {table} AS s) - 1
    WHERE t.key = $1::text AND {live} AND {durable}
    RETURNING TRUE
    """
)

PAUSE = Statement("SELECT pg_sleep($1::float8)", reads=True)

# Transactions --------------------------------------------------------------------------------------------------------

BEGIN = Statement("BEGIN")

COMMIT = Statement("COMMIT")

ROLLBACK = Statement("ROLLBACK")


def savepoint(name: str) -> tuple[Statement, Statement, tuple[Statement, ...]]:
    """Return what begins, ends and undoes the savepoint `name`, which no other around it may have.

    An interruption (Ctrl-C) may leave a savepoint behind: of the same name, it would hide the one that is to be undone.
    """
    begin, end, undo = (Statement(f"{verb} {name}") for verb in ("SAVEPOINT", "RELEASE SAVEPOINT", "ROLLBACK TO SAVEPOINT"))
    return begin, end, (undo, end)


# Expired rows --------------------------------------------------------------------------------------------------------

FORGET = Statement(
    """
    DELETE FROM {table} AS t
    WHERE t.key = (SELECT t.key FROM {table} AS t WHERE t.key = $1::text AND {expired} FOR UPDATE SKIP LOCKED)
        AND {expired} AND {durable}
    """,
    chore=True,
)

# The oldest are chosen first and locked then, in the order of their keys: SKIP LOCKED waits all the same where a row's next
# version is being written at that very moment (heap_lock_updated_tuple; seen on 16 and 18), and sweeps in the order of expiry
# met batches in the order of keys there.
_SWEEP = """
    WITH doomed AS MATERIALIZED (
        SELECT t.key FROM {table} AS t
        WHERE {expired} AND t.key = ANY (
            ARRAY(SELECT t.key FROM {table} AS t WHERE {expired} AND {range:2} ORDER BY t.expires_at LIMIT $1::bigint)
        )
        ORDER BY t.key FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM {table} AS t USING doomed WHERE t.key = doomed.key AND {expired} AND {durable} RETURNING TRUE
    )
    SELECT count(*) FROM gone
"""

SWEEP = Family(_SWEEP)

# One sweeper at a time among all processes: the lock ends with the statement.
SWEEP_ALONE = Statement(
    _range(_SWEEP, ranged=False).replace(
        "WHERE {expired} AND", "WHERE (SELECT pg_try_advisory_xact_lock($2::bigint)) AND {expired} AND", 1
    )
)

SWEEP_TWO = Statement(_range(_SWEEP, ranged=False), chore=True)

# Many keys -----------------------------------------------------------------------------------------------------------

COUNT = Family("SELECT count(*) FROM {table} AS t WHERE {live} AND {range:1}", reads=True)

ANY = Family("SELECT EXISTS (SELECT FROM {table} AS t WHERE {live} AND {range:1})", reads=True)

GET_MANY = Statement("SELECT t.key, t.value, {codec} FROM {table} AS t WHERE t.key = ANY ($1::text[]) AND {live}", reads=True)

# Numbered in the caller's order by a volatile sub-select, then locked in the order of keys: without the inner select
# the numbers follow the sort, without the sort two batches deadlock.
SET_MANY = Statement(
    """
    INSERT INTO {table} AS t (key, value, {codec_column} expires_at, created_at, updated_at {seq_column})
    SELECT k, v, {codec_batch} e, c, c {seq_batch}
    FROM (
        SELECT k, v, tag, {expiry:4} AS e, {clock} AS c {seq_numbered}
        FROM unnest($1::text[], $2::bytea[], $3::text[]) AS u (k, v, tag)
    ) AS batch
    WHERE {durable}
    ORDER BY k COLLATE "C"
    """
    + _REPLACE
)

EXPIRIES = Statement(
    "SELECT t.key, t.expires_at FROM {table} AS t WHERE t.key = ANY ($1::text[]) AND t.expires_at IS NOT NULL", reads=True
)

_DELETE_LOCKED = """
    , gone AS (
        DELETE FROM {table} AS t USING doomed WHERE t.key = doomed.key AND {durable} RETURNING {live} AS live
    )
    SELECT count(*) FILTER (WHERE live) FROM gone
"""

DELETE_MANY = Statement(
    """
    WITH doomed AS MATERIALIZED (
        SELECT t.key FROM {table} AS t WHERE t.key = ANY ($1::text[]) ORDER BY t.key FOR UPDATE
    )
    """
    + _DELETE_LOCKED
)

CLEAR = Family(
    "WITH doomed AS MATERIALIZED (SELECT t.key FROM {table} AS t WHERE {range:1} ORDER BY t.key FOR UPDATE)"
    + _DELETE_LOCKED.replace("{durable}", "{range:1} AND {durable}")  # or the join would read the whole table
)

STATS = Family(
    """
    SELECT count(*) FILTER (WHERE {live}), count(*) FILTER (WHERE NOT {live}),
        COALESCE(sum(octet_length(t.key)::bigint + octet_length(t.value)) FILTER (WHERE {live}), 0)::bigint
    FROM {table} AS t
    WHERE {range:1}
    """,
    reads=True,
)

ESTIMATE = Statement("SELECT GREATEST(c.reltuples, 0)::bigint FROM pg_class AS c WHERE c.oid = {oid}", reads=True)

SIZES = Statement(
    "SELECT pg_table_size({oid}), pg_indexes_size({oid}), c.relpersistence = 'u' FROM pg_class AS c WHERE c.oid = {oid}",
    reads=True,
)

# What a person is shown: values of more than $2 bytes are too long to look at.
PREVIEW = Statement(
    """
    SELECT t.key, CASE WHEN octet_length(t.value) <= $2::bigint THEN t.value END, {codec}, octet_length(t.value)::bigint,
        t.expires_at, {clock}
    FROM {table} AS t WHERE t.key = ANY ($1::text[]) AND {live}
    """,
    reads=True,
)

COUNT_SOME = Family(
    "SELECT count(*) FROM (SELECT FROM {table} AS t WHERE {live} AND {range:2} LIMIT $1::bigint) AS counted", reads=True
)

MAY_READ_NUMBER = Statement("SELECT has_sequence_privilege({sequence}, 'SELECT')", reads=True)

LAST_NUMBER = Statement("SELECT s.last_value FROM {sequence_name} AS s", reads=True)

# Whether no key lies between $1 and $2, and then what COPY needs: when $3 rows will expire, and their numbers. An int8[] holds
# each as COPY's binary format has it. A table without tags, or under row-level security, which COPY refuses, is for SET_MANY.
RESERVE = Statement(
    """
    SELECT free, {expiry:4}, CASE WHEN free THEN (SELECT array_agg({number}) FROM generate_series(1, $3::bigint)) END
    FROM (
        SELECT {tagged} AND NOT row_security_active({oid})
            AND NOT EXISTS (SELECT FROM {table} AS t WHERE t.key BETWEEN $1::text AND $2::text) AS free
    ) AS t
    WHERE {durable}
    """
)

COPY_NEW = Statement("COPY {table} (key, value, codec, expires_at {seq_column}) FROM STDIN (FORMAT binary)", copies=True)

# Rows are numbered as they arrive, so that one sort by key finds the last value and the first place of each.
STAGE = Statement(
    "CREATE TEMPORARY TABLE {stage} "
    '(key text COLLATE "C", value bytea, codec text, expires_at timestamptz, place bigint {place})'
)

COPY = Statement("COPY {stage} (key, value, codec, expires_at) FROM STDIN (FORMAT binary)", copies=True)

MERGE = Statement(
    """
    INSERT INTO {table} AS t (key, value, {codec_column} expires_at, created_at, updated_at {seq_column})
    SELECT k, v, {codec_batch} COALESCE(e, {expiry:1}), {clock}, {clock} {seq_batch}
    FROM (
        SELECT DISTINCT ON (key) key AS k, value AS v, codec AS tag, expires_at AS e, last_value(place) OVER same_key AS s
        FROM {stage}
        WINDOW same_key AS (
            PARTITION BY key ORDER BY place DESC ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
        )
        ORDER BY key, place DESC
    ) AS batch
    WHERE {durable}
    ORDER BY k
    """
    + _REPLACE
)

UNSTAGE = Statement("DROP TABLE {stage}")


def staged(statement: Statement, stage: str) -> Statement:
    """Return `statement` for the temporary table `stage`."""
    return replace(statement, template=statement.template.replace("{stage}", stage), staged=True)


# The end of a dictionary ---------------------------------------------------------------------------------------------

POPITEM = Family(
    """
    DELETE FROM {table} AS t
    WHERE t.key = (
        SELECT t.key FROM {table} AS t WHERE {live} AND {range:2} ORDER BY {by} LIMIT 1 FOR UPDATE SKIP LOCKED
    ) AND {codec} = ANY ($1::text[]) AND {durable}
    RETURNING t.key, t.value, {codec}
    """
)

# A namespace inside a table in insertion order: neither the index on seq (a walk over everybody else's rows) nor a sort
# (of a large namespace) is right for every size. So ours among the table's first thousand rows are tried, and then the
# first thousand of ours, sorted: `+ 0` keeps the planner from walking the index on seq. LIMIT 1 tries them one by one.
POPITEM_AMONG = Family(
    """
    DELETE FROM {table} AS t
    WHERE t.key = (
        SELECT t.key
        FROM (
            SELECT t.key FROM (SELECT t.key FROM {table} AS t ORDER BY {by} LIMIT 1000) AS t WHERE {range:2}
            UNION ALL
            SELECT s.key FROM (
                SELECT t.key FROM {table} AS t WHERE {live} AND {range:2} ORDER BY t.seq + 0 {asc}, t.key {asc} LIMIT 1000
            ) AS s
        ) AS c
        CROSS JOIN LATERAL (
            SELECT t.key FROM {table} AS t WHERE t.key = c.key AND {live} FOR UPDATE SKIP LOCKED
        ) AS t
        LIMIT 1
    ) AND {codec} = ANY ($1::text[]) AND {durable}
    RETURNING t.key, t.value, {codec}
    """
)

FIRST = Family(
    "SELECT t.key, t.value, {codec} FROM {table} AS t WHERE {live} AND {range:1} ORDER BY {by} LIMIT 1",
    reads=True,
    replanned=True,
)

FIRST_AMONG = Family(
    """
    SELECT t.key, t.value, {codec} FROM {table} AS t
    WHERE {live} AND {range:1} ORDER BY t.seq + 0 {asc}, t.key {asc} LIMIT 1
    """,
    reads=True,
    replanned=True,
)

# Pages ---------------------------------------------------------------------------------------------------------------
# All have the same columns: key, value (when $1 asks for values), codec, `read`, seq, and the mark of the iteration's
# beginning. A page ends with its $3rd row or with the one that fills $2 bytes; then `read` is the number of that row, or
# NULL when there is none behind it. An iteration ends with the keys that were there when it began: in a table in
# insertion order the mark is the seq that was then the last in its direction.


def _bounded(rows: str, order: str, ours: str = "TRUE") -> str:
    size = "COALESCE(octet_length(p.value), 0)"
    return f"""
    SELECT p.key, p.value, p.codec,
        CASE WHEN p.goes_on AND (p.n = $3::bigint OR p.filled >= $2::bigint) THEN p.n END, p.seq, p.mark
    FROM (
        SELECT p.*, {size} AS size, sum({size}) OVER so_far AS filled, row_number() OVER so_far AS n,
            lead(TRUE) OVER so_far AS goes_on
        FROM ({rows} LIMIT $3::bigint + 1) AS p
        WINDOW so_far AS (ORDER BY {order} ROWS UNBOUNDED PRECEDING)
    ) AS p
    WHERE p.n <= $3::bigint AND p.filled - p.size < $2::bigint AND {ours}
    """


# Rows are taken off the index on seq before it is asked whether they are live, ours, and not yet too far: conditions that
# the planner could take for selective and sort the whole table for. The last of $3 rows is returned in any case, with no
# codec when it is not ours, to go on from.
PAGE = Family(
    _bounded(
        """
            SELECT t.key, CASE WHEN $1::bool AND t.ours THEN t.value END AS value,
                CASE WHEN t.ours THEN t.codec END AS codec, t.seq, t.ours, t.mark
            FROM (
                SELECT t.key, t.value, {codec} AS codec, t.seq, {live} AND {range:7} AS ours,
                    COALESCE($6::bigint, (SELECT {end}(s.seq) FROM {table} AS s)) AS mark
                FROM {table} AS t
                WHERE t.seq {after}= $4::bigint AND (t.seq <> $4::bigint OR t.key {after} $5::text)
                ORDER BY t.seq {asc}, t.key {asc} LIMIT $3::bigint + 1
            ) AS t
            WHERE t.seq {to} t.mark
        """,
        "p.seq {asc}, p.key {asc}",
        "(p.ours OR p.n = $3::bigint)",
    ),
    reads=True,
    replanned=True,
)

# The keys of a namespace that is a small part of the table. OFFSET 0 keeps the planner from walking along the index on seq.
SORTED = Family(
    """
    SELECT p.key, NULL::bytea, NULL::text, NULL::bigint, p.seq, $4::bigint
    FROM (SELECT t.key, t.seq FROM {table} AS t WHERE {live} AND {range:5} OFFSET 0) AS p
    WHERE (p.seq, p.key) {after} ($2::bigint, $3::text) AND p.seq {to} $4::bigint
    ORDER BY p.seq {asc}, p.key {asc} LIMIT $1::bigint
    """,
    reads=True,
    replanned=True,
)

# OFFSET 0 makes it one look into the index per key, where a join would sometimes read the whole table.
GET_IN_ORDER = Statement(
    _bounded(
        """
            SELECT t.key, CASE WHEN $1::bool THEN t.value END AS value, t.codec, u.n AS seq, NULL::bigint AS mark
            FROM unnest($4::text[]) WITH ORDINALITY AS u (k, n)
            CROSS JOIN LATERAL (
                SELECT t.key, t.value, {codec} AS codec FROM {table} AS t WHERE t.key = u.k AND {live} OFFSET 0
            ) AS t
            ORDER BY u.n
        """,
        "p.seq",
    ),
    reads=True,
)

# Pages by key have no `last`; what was created since the iteration began is left out instead, or a loop that adds keys
# would not end. Rows from the future (the server's clock was set back) are old. As rows, the two bounds are no range to the
# planner, which takes a range of an unknown table for so small that it reads and sorts all of it for each page.
SCAN = Family(
    _bounded(
        """
            SELECT t.key, CASE WHEN $1::bool THEN t.value END AS value, {codec} AS codec, NULL::bigint AS seq,
                COALESCE($4::timestamptz, {clock}) AS mark
            FROM {table} AS t
            WHERE {live} AND (t.key, 0) >= ($6::text, 0) AND (t.key, 0) < ($7::text, 0)
                AND (t.created_at <= $4::timestamptz OR t.created_at > {clock} OR $4::timestamptz IS NULL)
            ORDER BY t.key {asc} OFFSET $5::bigint
        """,
        "p.key {asc}",
    ),
    reads=True,
    replanned=True,
)

# The table -----------------------------------------------------------------------------------------------------------

FIND_TABLE = """
    SELECT n.nspname, c.relname, c.relpersistence, c.relkind,
        CASE WHEN a.attname IS NOT NULL THEN pg_get_serial_sequence(c.oid::regclass::text, 'seq') END,
        current_setting('server_version_num')::int, current_setting('server_encoding')
    FROM pg_class AS c
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'seq' AND NOT a.attisdropped
    WHERE c.oid = to_regclass(%s)
"""

DESCRIBE_COLUMNS = """
    SELECT a.attname, format_type(a.atttypid, NULL), COALESCE(l.collname, '')
    FROM pg_attribute AS a LEFT JOIN pg_collation AS l ON l.oid = a.attcollation
    WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped
"""

CREATION_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('pgdict: create ' || %s, 0))"

SCHEMA_EXISTS = "SELECT to_regnamespace(%s) IS NOT NULL"

CREATE_SCHEMA = "CREATE SCHEMA IF NOT EXISTS {schema}"

CREATE_TABLE = """
    CREATE {persistence} TABLE {table} (
        key        text COLLATE "C" PRIMARY KEY,
        value      bytea       NOT NULL,
        codec      text        NOT NULL DEFAULT 'bytes',
        expires_at timestamptz,
        created_at timestamptz NOT NULL DEFAULT statement_timestamp(),
        updated_at timestamptz NOT NULL DEFAULT statement_timestamp()
        {seq}
    )
"""

SEQ_COLUMN = ", seq bigint GENERATED BY DEFAULT AS IDENTITY"

CREATE_EXPIRES_INDEX = "CREATE INDEX {name} ON {table} (expires_at) WHERE expires_at IS NOT NULL"

CREATE_SEQ_INDEX = "CREATE INDEX {name} ON {table} (seq)"

ADOPT_KEY = 'ALTER TABLE {table} ALTER COLUMN key TYPE text COLLATE "C"'

ADOPT_SEQ = "ALTER TABLE {table} ADD COLUMN seq bigint GENERATED BY DEFAULT AS IDENTITY"

DROP_TABLE = "DROP TABLE IF EXISTS {table}"

TRUNCATE = "TRUNCATE TABLE {table}"

IS_UNLOGGED = "SELECT c.relpersistence = 'u' FROM pg_class AS c WHERE c.oid = to_regclass(%s)"

LOCK_TABLE = "LOCK TABLE {table}"

SET_PERSISTENCE = "ALTER TABLE {table} SET {persistence}"

# A sequence that belongs to an unlogged table is reset with it by a crash (since PostgreSQL 15), and then begins below
# this number again: so the table can tell.
BORN = 2**40

BEAR = "SELECT setval(pg_get_serial_sequence(%s, 'seq'), %s)"

RESTART_SEQUENCE = "ALTER SEQUENCE {sequence} RESTART"

SET_SEQUENCE = "SELECT setval(%s::regclass, %s)"

FORBIDDEN = {"42501", "25006"}
"""What the server answers where rights or a standby forbid to write."""

IS_DIRECT = "SELECT pg_backend_pid() = %s"

TRY_LOCK = "SELECT pg_try_advisory_lock(%s)"

UNLOCK = "SELECT pg_advisory_unlock(%s)"

MARK = "SELECT pg_try_advisory_lock_shared(held, %(wanted)s::int) FROM unnest(%(held)s::int[]) AS held"

UNMARK = "SELECT pg_advisory_unlock_shared(held, %(wanted)s::int) FROM unnest(%(held)s::int[]) AS held"

MARKS = """
    SELECT DISTINCT classid::bigint, objid::bigint FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 2
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""

BEGIN_SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

# Rendering -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Layout:
    """What the SQL of one dictionary depends on: its table, and how rows are written and seen."""

    table: str
    """Qualified and quoted."""
    order: Order = "insertion"
    sequence: str = ""
    """The sequence of `seq`, qualified and quoted."""
    expires: bool = True
    """Whether expired rows are absent."""
    commit: Literal["on", "off"] | None = None
    """`synchronous_commit` of each writing statement; None leaves the server's."""
    tag: str | None = None
    """The codec of every row of a table that has no column for it."""
    clock: str = "statement_timestamp()"
    version: int = 130000

    def render(self, statement: Statement) -> Rendered:
        """Return `statement` for this table."""
        template = statement.modern if statement.modern and self.version >= 180000 else statement.template
        sql = " ".join(template.split()).format(**_words(self)).encode()  # a table's name may hold any white space
        return Rendered(
            b"pgdict_" + hashlib.blake2s(sql, digest_size=12).hexdigest().encode(),
            sql,
            statement.reads,
            statement.replanned or statement.staged,
            statement.chore,
            statement.copies,
        )


@dataclass(frozen=True, eq=False, slots=True)
class Rendered:
    """A statement as it is sent, and the name under which it is prepared."""

    name: bytes
    sql: bytes
    reads: bool
    replanned: bool
    chore: bool
    copies: bool


class Book(dict[Statement, Rendered]):
    """The statements of one dictionary, each rendered when it is first used."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def __missing__(self, statement: Statement) -> Rendered:
        rendered = self.layout.render(statement)
        if not statement.staged:
            self[statement] = rendered
        return rendered


class _Expiry:
    def __init__(self, clock: str) -> None:
        self.clock = clock

    def __format__(self, first: str) -> str:
        return f"COALESCE(${int(first) + 1}::timestamptz, {self.clock} + ${first}::interval)"


def _oid(name: str) -> str:
    return "'" + name.replace("'", "''") + "'::regclass"


def _words(layout: Layout) -> dict[str, object]:
    """Return the placeholders of the templates with what they mean for `layout`."""
    unexpired = "({row}.expires_at IS NULL OR {row}.expires_at > {clock})"
    live = unexpired.format(row="t", clock=layout.clock) if layout.expires else "TRUE"
    seq = layout.order == "insertion"
    tagged = layout.tag is None
    tag = f"'{layout.tag}'::text"
    dead = "t.expires_at <= excluded.updated_at" if layout.expires else "FALSE"
    return {
        "table": layout.table,
        "clock": layout.clock,
        "live": live,
        "live_old": unexpired.format(row="old", clock=layout.clock) if layout.expires else "TRUE",
        "expired": f"t.expires_at <= {layout.clock}" if layout.expires else "FALSE",
        "dead": dead,
        "expiry": _Expiry(layout.clock),
        "durable": f"(SELECT set_config('synchronous_commit', '{layout.commit}', true)) IS NOT NULL"
        if layout.commit
        else "TRUE",
        # A table without tags is given none; a parameter must be mentioned all the same, to have a type.
        "value": "$2::bytea" if tagged else "COALESCE($2::bytea, $3::text::bytea)",
        "codec": "t.codec" if tagged else tag,
        "codec_old": "old.codec" if tagged else tag,
        "codec_column": "codec," if tagged else "",
        "codec_value": "$3::text," if tagged else "",
        "codec_int": "'int'," if tagged else "",
        "codec_batch": "tag," if tagged else "",
        "codec_set": "codec = $3::text," if tagged else "",
        "codec_replaced": "codec = excluded.codec," if tagged else "",
        "tagged": "TRUE" if tagged else "FALSE",
        "counts": "t.codec = 'int'" if tagged else "TRUE",
        "oid": _oid(layout.table),
        "sequence": _oid(layout.sequence),
        "sequence_name": layout.sequence,
        "number": f"nextval({_oid(layout.sequence)})" if seq else "NULL::bigint",
        "seq_column": ", seq" if seq else "",
        "seq_batch": ", s" if seq else "",
        "seq_numbered": f", nextval({_oid(layout.sequence)}) AS s" if seq else "",
        "place": f"DEFAULT nextval({_oid(layout.sequence)})" if seq else "GENERATED ALWAYS AS IDENTITY",
        "seq_replaced": f", seq = CASE WHEN {dead} THEN excluded.seq ELSE t.seq END" if seq else "",
        "seq_reborn": ", seq = excluded.seq" if seq else "",
        "by_asc": "t.seq ASC, t.key ASC" if seq else "t.key ASC",
        "by_desc": "t.seq DESC, t.key DESC" if seq else "t.key DESC",
    }
