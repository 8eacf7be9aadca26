from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from processes import at_once
from psycopg.conninfo import make_conninfo

from pgdict import ABSENT, ConfigError, DecodeError, InvalidValue, PgDict

Connection = psycopg.Connection[Any]


class Crate:
    """What the Rust crate pgkv does with its table: the same statements' effects, in our words."""

    def __init__(self, connection: Connection, table: str) -> None:
        self.connection, self.table = connection, table
        self._execute(
            "CREATE UNLOGGED TABLE {table} (key text PRIMARY KEY, value bytea NOT NULL, expires_at timestamptz, "
            "created_at timestamptz NOT NULL DEFAULT now(), updated_at timestamptz NOT NULL DEFAULT now())"
        )
        self._execute('CREATE INDEX "{table}_expires_idx" ON {table} (expires_at) WHERE expires_at IS NOT NULL')

    def _execute(self, query: str, *params: object) -> Any:
        cursor = self.connection.execute(query.format(table=self.table).encode(), params or None)
        return (cursor.fetchone() or [None])[0] if cursor.description else None

    def set(self, key: str, value: bytes, expires_at: str | None = None) -> None:
        self._execute(
            "INSERT INTO {table} (key, value, expires_at, created_at, updated_at) "
            "VALUES (%s, %s, %s::timestamptz, now(), now()) ON CONFLICT (key) DO UPDATE "
            "SET value = excluded.value, expires_at = excluded.expires_at, updated_at = now()",
            key, value, expires_at,
        )  # fmt: skip

    def get(self, key: str) -> Any:
        return self._execute("SELECT value FROM {table} WHERE key = %s AND (expires_at IS NULL OR expires_at > now())", key)

    def increment(self, key: str, by: int = 1) -> Any:
        return self._execute(
            "INSERT INTO {table} (key, value, created_at, updated_at) VALUES (%s, %s::text::bytea, now(), now()) "
            "ON CONFLICT (key) DO UPDATE SET "
            "value = (encode({table}.value, 'escape')::bigint + %s)::text::bytea, updated_at = now() "
            "RETURNING encode(value, 'escape')::bigint",
            key, str(by), by,
        )  # fmt: skip


@pytest.fixture(scope="module", params=["C", "icu"])
def database(request: pytest.FixtureRequest, server_url: str) -> Iterator[str]:
    """A database whose collation is that of bytes, and one that sorts as people do."""
    name = f"pgdict_{request.param.lower()}_{secrets.token_hex(4)}"
    how = {"C": "LOCALE 'C'", "icu": "LOCALE_PROVIDER icu ICU_LOCALE 'en-US' LOCALE 'C'"}[request.param]
    with psycopg.connect(server_url, autocommit=True) as connection:
        try:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' {how}".encode())
        except (psycopg.errors.SyntaxError, psycopg.errors.FeatureNotSupported) as error:
            pytest.skip(f"this server has no ICU: {error}")
        yield make_conninfo(server_url, dbname=name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def crate(database: str) -> Iterator[Crate]:
    """The other user of the table."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield Crate(connection, f"t_{secrets.token_hex(6)}")


def adopted(crate: Crate, **options: Any) -> PgDict[Any, Any]:
    options = {"codec": "bytes"} | options
    info = crate.connection.info
    return PgDict(make_conninfo(info.dsn, password=info.password or None), table=crate.table, adopt=True, **options)


def test_shared(crate: Crate) -> None:
    """What one side writes or overwrites the other sees at once, numbers included."""
    crate.set("a", b"1")
    with adopted(crate) as d:
        assert (d["a"], d.get("b"), len(d)) == (b"1", None, 1)
        d["b"] = b"\0\xff"
        assert crate.get("b") == b"\0\xff"
        crate.set("b", b"new")
        assert (d["b"], d.entry("b").codec) == (b"new", "bytes")
        d["b"] = b"newer"
        assert crate.get("b") == b"newer"
        assert [d.increment("n"), crate.increment("n", 10), d.increment("n", -20), crate.increment("n")] == [1, 11, -9, -8]
        assert (d["n"], d.increment("a", 5), crate.get("a")) == (b"-8", 6, b"6")
        crate.set("n", b"text")
        with pytest.raises(TypeError, match="no number"):
            d.increment("n")
        crate.set("old", b"1", "2000-01-01")
        assert ("old" in d, d.increment("old"), crate.get("old")) == (False, 1, b"1")
        crate.set("new", b"1", "2100-01-01")
        assert (d.ttl("new") or 0) > 10**9
        assert d.expire("new", 1000)
        assert d.persist("new")
        crate.set("old", b"1", "2000-01-01")
        assert d.cleanup_expired() == 1


def test_counting_together(crate: Crate) -> None:
    """Both count on one number at once, and no step is lost."""
    with adopted(crate) as d, psycopg.connect(crate.connection.info.dsn, autocommit=True) as connection:
        second = object.__new__(Crate)
        second.connection, second.table = connection, crate.table

        def ours() -> None:
            for _ in range(100):
                d.increment("n")

        def theirs(crate: Crate) -> None:
            for _ in range(100):
                crate.increment("n")

        assert at_once(ours, ours, lambda: theirs(crate), lambda: theirs(second)) == [None] * 4
        assert d["n"] == b"400"


@pytest.mark.parametrize("order", ["key", "insertion"])
def test_every_operation(crate: Crate, order: Any) -> None:
    """Every operation of a dictionary works on the adopted table."""
    for key in "ba":
        crate.set(key, key.encode())
    with adopted(crate, order=order, ttl=1000) as d:
        assert list(d) == (["a", "b"] if order == "key" else list(d))
        d.clear()
        d["b"] = b"1"
        d.update({"a": b"2"}, c=b"3")
        assert list(d.items()) == sorted(d.items()) if order == "key" else [("b", b"1"), ("a", b"2"), ("c", b"3")]
        assert (d.pop("c"), d.pop("c", None), d.setdefault("c", b"4"), d.setdefault("c", b"5")) == (b"3", None, b"4", b"4")
        assert (d.set_nx("d", b"1"), d.set_nx("d", b"2"), d.get_and_set("d", b"3"), d.get_and_set("e", b"4")) == (
            True, False, b"1", None,
        )  # fmt: skip
        assert d.get_and_delete("e") == b"4"
        assert d.compare_and_swap("d", b"3", b"4")
        assert d.compare_and_swap("d", b"3", b"5").current == b"4"
        assert d.compare_and_swap("new", ABSENT, b"6")
        assert d.mutate("new", lambda value: value + b"!") == b"6!"
        with d.mutate("new") as box:
            box.value += b"?"
        assert (d["new"], d.get_many(["a", "new", "zzz"])) == (b"6!?", {"a": b"2", "new": b"6!?"})
        assert (d.increment("n", 10**40), d.decrement("n", 1)) == (10**40, 10**40 - 1)
        with pytest.raises(TypeError):
            d.increment("n", 0.5)
        assert (d.delete_many(["n", "d"]), d.count("n"), d.delete_prefix("ne"), "new" in d) == (2, 1, 1, False)
        assert d.popitem() == ("c", b"4")
        if order == "insertion":
            d.move_to_end("b")
            assert d.popitem() == ("b", b"1")
            assert d.stats().emptied is False
        assert 900 < (d.ttl("a") or 0) <= 1000
        with d.transaction(), d.snapshot() as then:
            d.update({str(n): b"x" for n in range(7_000)})
            assert (len(then), len(d)) == (len(list(then)), len(list(d)))
        users = d.namespace("users", ttl=None)
        users[("a", 1)] = b"tuple"
        assert (list(users.items()), users.ttl(("a", 1)), users.stats().live) == ([(("a", 1), b"tuple")], None, 1)
        assert (list(users.scan()), users.popitem(last=False), bool(users)) == (
            [(("a", 1), b"tuple")],
            (("a", 1), b"tuple"),
            False,
        )
        with d.lock("name"):
            d.truncate()
        assert d == {}
        d.set_durability("sync")
        assert d.stats().emptied is False


def test_large_batch(crate: Crate, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch through a temporary table writes plain rows as well."""
    monkeypatch.setattr("pgdict.operations.many.BUFFER", 10_000)
    crate.set("7", b"old")
    with adopted(crate) as d:
        d.update((str(n), b"%d" % n) for n in range(500))
        assert (len(d), d["7"], crate.get("499")) == (500, b"7", b"499")


def test_ranges(crate: Crate) -> None:
    """Prefixes and the order of keys are those of a dictionary, whatever the database's collation."""
    names = ["a", "B", "a:1", "A:1", "a b", "ä", "aB", "a-b", "ab", "Z", "_", "a:ä", "a:", "a;"]
    for name in names:
        crate.set(name, name.encode())
    with adopted(crate) as d:
        assert list(d.scan_keys()) == sorted(names)
        for prefix in ("a", "a:", "A", "ä", "_", "a-"):
            assert list(d.scan_keys(prefix)) == sorted(name for name in names if name.startswith(prefix))
        assert sorted(d.namespace("a")) == ["", "1", "ä"]
        assert d.delete_prefix("a:") == 3
        crate.set("a:1", b"again")
        assert crate.get("a:1") == d["a:1"] == b"again"


def test_order_added(crate: Crate) -> None:
    """`order="insertion"` adds the column for it, once; both sides then write in order."""
    for n in range(5):
        crate.set(str(n), b"")
    with adopted(crate, order="insertion") as d:
        crate.set("Z", b"")
        d["A"] = b""
        crate.set("0", b"again")
        assert list(d)[-2:] == ["Z", "A"]
        assert (len(d), d.stats().emptied) == (7, False)
    with adopted(crate) as d:
        assert list(d)[-2:] == ["Z", "A"]
        d.move_to_end("Z")
        assert list(d)[-2:] == ["A", "Z"]


def test_text(crate: Crate) -> None:
    """With `codec="text"` every row is a str, and one that is none is an error that leaves it there."""
    crate.set("a", "ä".encode())
    crate.set("b", b"\xff")
    with adopted(crate, codec="text") as d:
        assert d["a"] == "ä"
        d["c"] = "ü"
        assert crate.get("c") == "ü".encode()
        with pytest.raises(DecodeError) as caught:
            d["b"]
        assert (caught.value.raw, caught.value.codec) == (b"\xff", "text")
        assert d.increment("n", 5) == 5
        assert d["n"] == "5"
        d["n"] = "7"
        assert d.increment("n") == 8


def test_only_bytes(crate: Crate, tmp_path: Any) -> None:
    """What would come back as something else is refused: other types, other codecs, other dictionaries' dumps."""
    with adopted(crate) as d:
        for value in (5, 1.5, "text", None, [1]):
            with pytest.raises(TypeError):
                d["a"] = value
            with pytest.raises(TypeError):
                d.update(a=value)
        with pytest.raises(ConfigError, match="codec='json'"):
            d.namespace("n", codec="json")
        assert d.namespace("n", codec="bytes") is not None
        for line in (b'{"key": "a", "value": 5}', b'{"key": "a", "codec": "msgpack", "base64": "kQE="}'):
            (tmp_path / "dump").write_bytes(line)
            with pytest.raises(InvalidValue):
                d.load(tmp_path / "dump")
        assert not d
        d["a"] = b"1"
        d.dump(tmp_path / "dump")
        d.clear()
        d.load(tmp_path / "dump")
        assert d.copy() == {"a": b"1"}


def test_refused(crate: Crate, server_url: str, table: str) -> None:
    """What cannot be adopted is a `ConfigError` that says why."""
    url = crate.connection.info.dsn
    for codec in ("msgpack", "json", "pickle"):
        with pytest.raises(ConfigError, match="codec"):
            PgDict(url, table=crate.table, adopt=True, codec=codec)
    with pytest.raises(ConfigError, match="nothing to adopt"):
        PgDict(url, table="nothing", adopt=True, codec="bytes")
    with pytest.raises(ConfigError, match="lacks codec"):
        PgDict(url, table=crate.table)
    with PgDict[Any, Any](server_url, table=table), pytest.raises(ConfigError, match="no table of pgkv"):
        PgDict(server_url, table=table, adopt=True, codec="bytes")
    crate.connection.execute(f"ALTER TABLE {crate.table} DROP COLUMN value".encode())
    with pytest.raises(ConfigError, match="lacks value bytea"):
        adopted(crate)


def test_rights(crate: Crate) -> None:
    """Who may not change the table cannot adopt it, but may use it once it is adopted."""
    role = crate.table
    crate.connection.execute(f"CREATE ROLE {role} LOGIN".encode())
    crate.connection.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {crate.table} TO {role}".encode())
    url = make_conninfo(crate.connection.info.dsn, user=role)
    try:
        with pytest.raises(ConfigError, match="cannot be adopted: must be owner"):
            PgDict(url, table=crate.table, adopt=True, codec="bytes")
        crate.set("a", b"1")
        adopted(crate).close()
        with PgDict[str, bytes](url, table=crate.table, adopt=True, codec="bytes") as d:
            d["b"] = d["a"]
            assert crate.get("b") == b"1"
    finally:
        crate.connection.execute(f"DROP OWNED BY {role}".encode())
        crate.connection.execute(f"DROP ROLE {role}".encode())


def test_at_once(crate: Crate) -> None:
    """Many may adopt a table at the same time."""
    crate.set("a", b"1")

    def adopt() -> list[str]:
        with adopted(crate, order="insertion") as d:
            return list(d)

    assert at_once(*[adopt] * 4) == [["a"]] * 4


def test_encoding(server_url: str) -> None:
    """A database that is not UTF8 is refused, as it does not hold every key."""
    name = f"pgdict_latin_{secrets.token_hex(4)}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'".encode())
        try:
            url = make_conninfo(server_url, dbname=name)
            for options in ({"adopt": True, "codec": "bytes"}, {}):
                with pytest.raises(ConfigError, match="encoding LATIN1"):
                    PgDict(url, **options)  # type: ignore[arg-type]
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
