"""Rows that others wrote, or that were damaged; hostile keys, tables and schemas."""

from __future__ import annotations

import json
import os
import pickle
import random
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgdict import PgDict
from pgdict.codecs import Values
from pgdict.errors import ConfigError, DecodeError, PgDictError

Dict = PgDict[Any, Any]
Raw = psycopg.Connection[Any]


@pytest.fixture
def raw(server_url: str) -> Iterator[Raw]:
    """A connection, to write what no dictionary would."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        yield connection


def write(raw: Raw, table: str, key: str, value: bytes, codec: str) -> None:
    insert = sql.SQL("INSERT INTO {} (key, value, codec) VALUES (%s, %s, %s)").format(sql.Identifier(table))
    raw.execute(insert, (key, value, codec))


def stored(raw: Raw, table: str) -> list[tuple[Any, ...]]:
    query = sql.SQL("SELECT key, value, codec, expires_at, created_at, updated_at FROM {} ORDER BY key")
    return raw.execute(query.format(sql.Identifier(table))).fetchall()


class Ran:
    """Tells, when it is unpickled, that code ran."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("__import__('os').environ.update(PGDICT_PICKLE_RAN='yes')",)


PICKLE = b"\x80\x04cos\nsystem\n(S'false'\ntR."
UNREADABLE = {
    "unknown codec": (b"x", "from-the-future"),
    "empty codec": (b"x", ""),
    "hostile codec": (b"x", "'; DROP TABLE x; --"),
    "pickle": (PICKLE, "pickle"),
    "signed pickle": (bytes(32) + PICKLE, "pickle-signed"),
}
CORRUPT = {
    "truncated msgpack": (b"\x93\x01\x02", "msgpack"),
    "trailing msgpack": (b"\x01\x02", "msgpack"),
    "empty msgpack": (b"", "msgpack"),
    "reserved msgpack": (b"\xc1", "msgpack"),
    "unknown extension": (b"\xd4\x7f\x00", "msgpack"),
    "huge length": (b"\xdd\xff\xff\xff\xff", "msgpack"),
    "broken json": (b'{"a": ', "json"),
    "json in latin-1": (b'"\xe9"', "json"),
    "json NaN": (b"NaN", "json"),
    "broken text": (b"\xff\xfe", "text"),
    "int with words": (b"12 monkeys", "int"),
    "empty int": (b"", "int"),
    "int with underscore": (b"1_0", "int"),
    "float out of range": (b"1e999", "float"),
    "float with words": (b"nan", "float"),
}

REMOVES: dict[str, Callable[[Dict], object]] = {
    "pop": lambda d: d.pop("bad", 1),
    "popitem": lambda d: d.popitem(),
    "popitem first": lambda d: d.popitem(last=False),
    "get_and_set": lambda d: d.get_and_set("bad", 1),
    "get_and_delete": lambda d: d.get_and_delete("bad"),
}
READS: dict[str, Callable[[Dict], object]] = {
    "[]": lambda d: d["bad"],
    "get": lambda d: d.get("bad", 1),
    "get_many": lambda d: d.get_many(["good", "bad"]),
    "setdefault": lambda d: d.setdefault("bad", 1),
    "mutate": lambda d: d.mutate("bad", lambda _: 1, default=int),
    "mutate block": lambda d: d.mutate("bad", default=int).__enter__(),
    "compare_and_swap": lambda d: d.compare_and_swap("bad", 1, 2),
    "values": lambda d: list(d.values()),
    "items": lambda d: list(d.items()),
    "scan": lambda d: list(d.scan("b")),
    "copy": lambda d: d.copy(),
    "==": lambda d: d == {"bad": 2},
    "entry": lambda d: d.entry("bad"),
}


def check(d: Dict, use_it: Callable[[Dict], object], value: bytes, codec: str) -> None:
    with pytest.raises(DecodeError) as caught:
        use_it(d)
    error = caught.value
    assert (error.key, error.codec, error.raw) == ("bad", codec, value)
    assert "'bad'" in str(error)
    assert repr(codec) in str(error)
    assert not error.recoverable


@pytest.mark.parametrize(("value", "codec"), [pytest.param(*row, id=name) for name, row in (UNREADABLE | CORRUPT).items()])
def test_undecodable(d: Dict, table: str, raw: Raw, value: bytes, codec: str) -> None:
    """Whatever meets a row that cannot be read says which one, holds its bytes, and leaves it as it is."""
    write(raw, table, "bad", value, codec)
    before = stored(raw, table)
    for name, read in READS.items():
        check(d, read, value, codec)
        assert stored(raw, table) == before, name
    for name, remove in REMOVES.items():
        check(d, remove, value, codec)
        if (value, codec) in UNREADABLE.values():
            assert stored(raw, table) == before, name
        else:  # only the tag can be seen in time: the error has what is left of the value
            d.pop("bad", None) if name == "get_and_set" else None
            assert "bad" not in d
            write(raw, table, "bad", value, codec)
            before = stored(raw, table)
    with pytest.raises((TypeError, DecodeError)):
        d.increment("bad")
    with pytest.raises((TypeError, DecodeError)):
        d.increment("bad", 0.5)
    assert stored(raw, table) == before
    assert "bad" in d
    assert list(d) == ["bad"]
    assert len(d) == 1
    assert "DecodeError" in repr(d) or "cannot be read" in repr(d)
    d["bad"] = "mended"
    assert d.pop("bad") == "mended"
    write(raw, table, "bad", value, codec)
    del d["bad"]
    assert not d


def test_pickle_is_not_read(d: Dict, table: str, raw: Raw) -> None:
    """A pickle in the table runs no code, but in a dictionary that chose pickle."""
    os.environ.pop("PGDICT_PICKLE_RAN", None)
    write(raw, table, "bad", pickle.dumps(Ran()), "pickle")
    for codec in ("msgpack", "json", "bytes", "text"):
        with PgDict[Any, Any](d.url, table=table, codec=codec) as other:
            for name, read in (READS | REMOVES).items():
                with pytest.raises((DecodeError, TypeError)) as caught:  # a codec that does not hold the new value either
                    read(other)
                assert "does not read such rows" in str(caught.value) or caught.type is TypeError, name
                assert "PGDICT_PICKLE_RAN" not in os.environ, name
    assert d.increment("other") == 1
    with PgDict[Any, Any](d.url, table=table, codec="pickle") as chosen:
        chosen.get("bad")
    assert os.environ.pop("PGDICT_PICKLE_RAN") == "yes"


def test_others_stay_readable(d: Dict, table: str, raw: Raw) -> None:
    """An iteration names each row that cannot be read, and goes on behind it."""
    for n in range(10):
        d[n] = n
        write(raw, table, f"bad {n}", b"x", "unknown")
    for view in (d.items(), d.scan()):
        iterator, good, bad = iter(view), [], []
        while True:
            try:
                good.append(next(iterator))
            except DecodeError as error:
                bad.append(error.key)
            except StopIteration:
                break
        assert sorted(good) == [(n, n) for n in range(10)]
        assert bad == [f"bad {n}" for n in range(10)]
    assert len(list(d)) == len(d) == 20
    assert d.get_many(range(10)) == {n: n for n in range(10)}
    with pytest.raises(DecodeError):
        d.get_many(["bad 3"])
    for n in reversed(range(10)):
        with pytest.raises(DecodeError):
            d.popitem()
        del d[f"bad {n}"]
        assert d.popitem() == (n, n)


def test_no_wrong_value(d: Dict, table: str, raw: Raw) -> None:
    """Random and damaged bytes under any tag are an error, or a value that is written as these very bytes."""
    rng = random.Random(1)
    samples = [[1, "two", None, 3.5, {"k": (1, 2)}], "text", b"bytes", {"a": [True]}, 12345, 2.5]
    for n in range(150):
        codec = rng.choice(["msgpack", "json", "text", "int", "float"])
        if n % 3 or codec in ("int", "float"):
            data = rng.randbytes(rng.randrange(12))
        else:
            data = Values("json" if codec == "json" else "msgpack").encode(rng.choice(samples[3:4]))[0]
            data = data[: rng.randrange(len(data))]
        write(raw, table, f"k{n}", data, codec)
        try:
            value = d[f"k{n}"]
        except DecodeError as error:
            assert error.raw == data  # noqa: PT017 - most of them, but not all
        else:
            again, _ = Values(codec if codec not in ("int", "float") else "msgpack").encode(value)
            assert codec == "json" or Values().decode("k", again, b"msgpack" if codec == "msgpack" else codec.encode()) == value


def test_foreign_keys(d: Dict, table: str, raw: Raw) -> None:
    """Keys in a form that no key is stored in are a DecodeError of the iteration alone; what can be read is read."""
    d["a"] = 1
    foreign = ["\x01", "\x01q", "\x01\x02", "\x01\x02zzz", "\x01\x02n1", "\x01\x02b0", "\x01\x01\x01", "\x01\x02t"]
    unread = []
    for key in foreign:
        write(raw, table, key, b"\x01", "msgpack")
    iterator, keys = iter(d), []
    while True:
        try:
            keys.append(next(iterator))
        except DecodeError as error:
            unread.append(error.raw.decode())
        except StopIteration:
            break
    assert "a" in keys
    assert unread
    assert set(unread) <= set(foreign)
    assert len(keys) + len(unread) == len(foreign) + 1 == len(d)
    assert d["a"] == 1
    d.clear()
    assert not d


def test_null_bytes_of_values(d: Dict, table: str, raw: Raw) -> None:
    """A row with a NULL cannot be: the table does not allow it."""
    with pytest.raises(psycopg.errors.NotNullViolation):
        raw.execute(sql.SQL("INSERT INTO {} (key, value) VALUES ('a', NULL)").format(sql.Identifier(table)))


def test_rows_written_in_sql(d: Dict, table: str, raw: Raw) -> None:
    """A row written in SQL without more is bytes, at the end; a number in decimal text can be counted on."""
    d["first"] = 1
    raw.execute(sql.SQL("INSERT INTO {} (key, value) VALUES ('a', 'raw')").format(sql.Identifier(table)))
    write(raw, table, "n", b"41", "int")
    assert dict(d.items()) == {"first": 1, "a": b"raw", "n": 41}
    assert d.increment("n") == 42


def test_json_in_sql(server_url: str, table: str, raw: Raw) -> None:
    """What the codec json stores can be read and queried in SQL, numbers too; any text comes back from jsonb equal."""
    values: list[Any] = [
        {"name": "Ann", "tags": ["a", "b"], "deep": {"n": 1.5, "none": None, "yes": True}},
        [],
        "text",
        'quotes " and \\ and \n',
        "ünïcödé 🙂 \u2028",
        None,
        False,
        12,
        -(10**30),
        1.5,
        5e-324,
        {"": {"'": "''"}},
    ]
    with PgDict[str, Any](server_url, table=table, codec="json") as d:
        d.update((str(n), value) for n, value in enumerate(values))
        query = sql.SQL("SELECT key, convert_from(value, 'UTF8')::jsonb::text FROM {}").format(sql.Identifier(table))
        read = {key: json.loads(text) for key, text in raw.execute(query)}
        assert read == {str(n): value for n, value in enumerate(values)}
        name = sql.SQL("SELECT convert_from(value, 'UTF8')::jsonb ->> 'name' FROM {} WHERE key = '0'")
        assert raw.execute(name.format(sql.Identifier(table))).fetchone() == ("Ann",)
        for value in ("\0", {"\0": 1}, "\ud800"):
            with pytest.raises(ValueError, match="jsonb cannot hold"):
                d["x"] = value


def test_text_in_sql(server_url: str, table: str, raw: Raw) -> None:
    """Ordinary keys and texts are readable in SQL as they are."""
    with PgDict[str, str](server_url, table=table, codec="text") as d:
        d["schlüssel"] = "wert"
        query = sql.SQL("SELECT key, convert_from(value, 'UTF8'), codec FROM {}").format(sql.Identifier(table))
        assert raw.execute(query).fetchall() == [("schlüssel", "wert", "text")]


# Hostile names -------------------------------------------------------------------------------------------------------

HOSTILE = [
    "'; DROP TABLE kv_store; --",
    '"; DROP TABLE kv_store; --',
    "a'b\"c`d",
    "%s",
    "%(name)s",
    "%%",
    "{x}",
    "{0}",
    "{",
    "}}",
    "$1",
    "\\",
    "\\'",
    "a;b",
    "a.b",
    "a b",
    "a  b",
    "--",
    "/*",
    "select",
    "SELECT",
    "TaBlE",
    "ünïcödé",
    "🙂",
    "e\u0301",
    "\u202e",
    "a\nb",
    "\t",
    " ",
    "0",
    ":",
    "?",
    "pg_class",
]


def use(d: Dict) -> None:
    d["a"] = 1
    d.set("b", 2, ttl=100)
    d.update(c=3, d=4)
    with d.transaction():
        assert d.increment("a") == 2
        d.move_to_end("a")
    assert d.popitem() == ("a", 2)
    assert d.get_and_set("b", 5) == 2
    assert d.namespace("n").setdefault("x", 1) == 1
    assert list(d.items()) == [("b", 5), ("c", 3), ("d", 4), ("n:x", 1)]
    assert list(d.scan("c", limit=1)) == [("c", 3)]
    assert d.delete_many(["b"]) == 1
    assert d.stats().live == 3
    assert d.pop("c") == 3
    assert d.cleanup_expired() == 0


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_table(server_url: str, raw: Raw, name: str) -> None:
    """Any name is a table's name, and never more than a name."""
    name = f"{name}{secrets.token_hex(4)}"
    with PgDict[Any, Any](server_url, table=name) as d:
        try:
            use(d)
            assert repr(name) in repr(d)
            found = raw.execute("SELECT count(*) FROM pg_class WHERE relname = %s", (name,)).fetchone()
            assert found == (1,)
            with PgDict[Any, Any](server_url, table=name, create=False) as again:
                assert list(again) == ["d", "n:x"]
        finally:
            d.drop()


def test_hostile_schema(server_url: str, raw: Raw) -> None:
    """So it is with schemas."""
    mark = secrets.token_hex(4)
    for name in HOSTILE[:12:2] + HOSTILE[12:-1:4]:
        schema = f"{name}{mark}"
        try:
            with PgDict[Any, Any](server_url, table=name, schema=schema) as d:
                use(d)
                query = "SELECT nspname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE relname = %s"
                assert (schema,) in raw.execute(query, (name,)).fetchall()
        finally:
            raw.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))


@pytest.mark.parametrize("order", ["insertion", "key"])
def test_long_names(server_url: str, raw: Raw, order: Any) -> None:
    """A name as long as it may be works, with its indexes; one byte more is refused, not cut off."""
    longest = f"{secrets.token_hex(4)}é" + "x" * 41
    assert len(longest.encode()) == 51
    schema = f"{secrets.token_hex(4)}" + "s" * 55
    with PgDict[Any, Any](server_url, table=longest, schema=schema, order=order) as d:
        d["a"] = 1
        assert d["a"] == 1
    raw.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
    wrong: list[dict[str, Any]] = [{"table": longest + "x"}, {"schema": schema + "s"}, {"table": ""}, {"schema": ""}]
    for options in wrong:
        with pytest.raises(ConfigError):
            PgDict(server_url, **options)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "", "x" * 64])
def test_impossible_names(server_url: str, name: str) -> None:
    """A name that PostgreSQL cannot have is refused."""
    with pytest.raises(ConfigError):
        PgDict(server_url, table=name)
    with pytest.raises(ConfigError):
        PgDict(server_url, schema=name)


def test_hostile_keys(d: Dict, raw: Raw) -> None:
    """Any string is a key, a prefix, a value and part of a tuple, and never anything else."""
    strings = [*HOSTILE, "", "\0", "\x01", "\x01\x02n", "\ud800", "\udfff", "\ud7ff", "\U0010ffff", "a\0b", "_", "%", "x" * 900]
    for n, key in enumerate(strings):
        d[key] = n
        d["tuple", key] = key
    assert [d[key] for key in strings] == list(range(len(strings)))
    assert [key for key in d if isinstance(key, str)] == strings
    assert [d["tuple", key] for key in strings] == strings
    for prefix in strings:
        expected = sorted((s for s in strings if s.startswith(prefix)), key=lambda s: [ord(c) for c in s])
        assert [key for key in d.scan_keys(prefix) if isinstance(key, str)] == expected
    for name in strings:
        if name and ":" not in name:
            part = d.namespace(name)
            part["key"] = name
            assert dict(part.items()) == {"key": name}
            assert d.delete_prefix(name + ":") == 1
    assert d.delete_many(strings) == len(strings)


# Tables that are none ------------------------------------------------------------------------------------------------


COLUMNS = """
key text COLLATE "C" PRIMARY KEY, value bytea, codec text,
expires_at timestamptz, created_at timestamptz, updated_at timestamptz
"""


def test_no_dictionary(server_url: str, table: str, raw: Raw) -> None:
    """A table, view or sequence that is no dictionary's is refused, and stays as it is."""
    for create, reason in (
        ("CREATE TABLE {} (id int PRIMARY KEY, name text)", "is no dictionary: it lacks key text, value bytea"),
        ("CREATE TABLE {} (key int, value bytea, codec text)", "it lacks key text"),
        (f"CREATE TABLE {{}} ({COLUMNS}, seq bigint)", "has a column seq without a sequence of its own"),
        ("CREATE VIEW {} AS SELECT 1 AS key", "is no table"),
        ("CREATE SEQUENCE {}", "is no table"),
        ("CREATE MATERIALIZED VIEW {} AS SELECT 1 AS key", "is no table"),
    ):
        name = sql.Identifier(table)
        raw.execute(sql.SQL(create).format(name))
        kind = create.split(" {}")[0].removeprefix("CREATE ")
        before = raw.execute("SELECT attname, atttypid FROM pg_attribute WHERE attrelid = to_regclass(%s)", (table,)).fetchall()
        with pytest.raises(ConfigError, match=reason):
            PgDict(server_url, table=table)
        after = raw.execute("SELECT attname, atttypid FROM pg_attribute WHERE attrelid = to_regclass(%s)", (table,)).fetchall()
        assert before == after
        raw.execute(sql.SQL(f"DROP {kind} {{}}").format(name))


def test_wrong_collation(server_url: str, table: str, raw: Raw) -> None:
    """A key in another collation would make ranges wrong, and is refused."""
    with PgDict[Any, Any](server_url, table=table):
        raw.execute(sql.SQL('ALTER TABLE {} ALTER COLUMN key TYPE text COLLATE "default"').format(sql.Identifier(table)))
    with pytest.raises(ConfigError, match="default"):
        PgDict(server_url, table=table)


def test_missing_table(d: Dict, table: str) -> None:
    """A table that somebody has dropped is a clear error of each operation; a new dictionary creates it again."""
    d["a"] = 1
    with PgDict[Any, Any](d.url, table=table) as other:
        other.drop()
    for use_it in (lambda: d["a"], lambda: d.set("a", 1), lambda: len(d), lambda: d.popitem(), lambda: list(d)):
        with pytest.raises(PgDictError, match=f'relation ".*{table}" does not exist'):
            use_it()
    with PgDict[Any, Any](d.url, table=table):
        d["a"] = 2
        assert d["a"] == 2
