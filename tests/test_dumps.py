from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgpack
import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from processes import program, result
from strategies import everything, exact, keys

from pgdict import DecodeError, InvalidKey, InvalidValue, PgDict
from pgdict.operations import many

SUFFIXES = (".jsonl", ".msgpack")


@pytest.fixture
def other(server_url: str, table: str, d: PgDict[Any, Any]) -> Iterator[PgDict[Any, Any]]:
    """Another dictionary, to load into."""
    with PgDict[Any, Any](server_url, table=f"{table}_o") as other:
        yield other
        other.drop()


def contents(d: PgDict[Any, Any]) -> list[Any]:
    """All that there is to the items, in order."""
    return [(exact(key), exact(value), d.entry(key).expires_at, d.entry(key).codec) for key, value in d.items()]


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(items=st.lists(st.tuples(keys, everything, st.none() | st.floats(100, 10**9)), max_size=6))
@example(items=[("\ud800\udc00", "\ud800\udc00", None), ("\ud800", ["\udfff"], 100.0), ("\0\x01", 10**5000, None)])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_round_trip(
    d: PgDict[Any, Any], other: PgDict[Any, Any], tmp_path: Path, suffix: str, items: list[tuple[Any, Any, float | None]]
) -> None:
    """What was dumped is loaded equal and of the same types, in order, with its expiry: any key, any value."""
    d.truncate()
    other.truncate()
    for key, value, ttl in items:
        with suppress(InvalidKey):  # the wildest keys are too long
            d.set(key, value, ttl=ttl)
    file = tmp_path / f"dump{suffix}"
    assert d.dump(file) == len(d)
    assert other.load(file) == len(d)
    assert contents(other) == contents(d)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_codecs(server_url: str, d: PgDict[Any, Any], tmp_path: Path, table: str, suffix: str) -> None:
    """Dictionaries of other codecs read a dump, as far as they read such values at all."""
    values = {"text": "ä", "list": [1, {"a": None}], "n": 5, "f": 0.1, "tuple": (1,)}
    d.update(values)
    file = tmp_path / f"dump{suffix}"
    d.dump(file)
    for codec in ("json", "pickle"):
        with PgDict[Any, Any](server_url, table=f"{table}_c", codec=codec) as other:
            other.load(file)
            assert exact(other.copy()) == exact(values)
            again = tmp_path / f"again{suffix}"
            other.dump(again)
            other.drop()
        if codec == "json":
            d.clear()
            d.load(again)
            assert exact(d.copy()) == exact(values)
        elif suffix == ".msgpack":
            with PgDict[Any, Any](server_url, table=table) as plain:
                plain.load(again)
    for codec, value in (("bytes", b"\0\xff"), ("text", "ä\0"), ("pickle", 1j)):
        with PgDict[Any, Any](server_url, table=f"{table}_c", codec=codec) as other:
            other["a"] = value
            other.increment("n")
            other.dump(file)
            if codec == "pickle":
                with pytest.raises(InvalidValue, match="'a' is stored with codec 'pickle'"):
                    d.load(file)
            else:
                d.clear()
                d.load(file)
                assert exact(d.copy()) == exact({"a": value, "n": 1})
            other.clear()
            assert other.load(file) == 2
            assert exact(other.copy()) == exact({"a": value, "n": 1})
            other.drop()


def test_namespaces(d: PgDict[Any, Any], other: PgDict[Any, Any], tmp_path: Path) -> None:
    """A namespace is dumped without its prefix, and loaded wherever one likes."""
    d.namespace("users").update({"ann": 1, 2: "two"})
    d["users"] = "not in it"
    assert d.namespace("users").dump(tmp_path / "users") == 2
    other.namespace("a", "b").load(tmp_path / "users")
    assert other.namespace("a", "b") == {"ann": 1, 2: "two"}
    other.load(tmp_path / "users")
    assert (other["ann"], other[2], len(other)) == (1, "two", 4)


def test_readable(d: PgDict[Any, Any], tmp_path: Path) -> None:
    """JSON lines are plain where JSON holds the value exactly, and may be written by hand."""
    moment = datetime(2100, 1, 2, 3, 4, 5, tzinfo=UTC)
    d.set("user:1", {"name": "Änn", "n": [1, 2.5, None, True]}, expires_at=moment)
    d.update({2: (1, 2), "big": 10**30})
    file = tmp_path / "dump.jsonl"
    d.dump(file)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[0] == {"key": "user:1", "value": {"name": "Änn", "n": [1, 2.5, None, True]}, "expires_at": moment.isoformat()}
    assert lines[1].keys() == {"stored_key", "codec", "base64"}
    assert lines[2] == {"key": "big", "value": 10**30}
    file.write_text('{"value": [1], "key": "by hand"}\r\n{"key": "", "value": "ä", "expires_at": "2100-01-02T03:04:05+02:00"}')
    d.clear()
    d.load(file)
    assert (d["by hand"], d[""], d.entry("").expires_at) == ([1], "ä", moment - timedelta(hours=2))


def test_over(d: PgDict[Any, Any], tmp_path: Path) -> None:
    """Loading replaces what the file has, and keeps the rest and its places."""
    d.update(a=1, b=2)
    d.dump(tmp_path / "dump")
    d.update(a=3, c=4)
    del d["b"]
    d.load(tmp_path / "dump")
    assert list(d.items()) == [("a", 1), ("c", 4), ("b", 2)]


def test_default_ttl(server_url: str, table: str, tmp_path: Path) -> None:
    """What never expired does not begin to by being loaded."""
    with PgDict[Any, Any](server_url, table=table, ttl=1000) as d:
        d.set("a", 1, ttl=None)
        d["b"] = 2
        left = d.entry("b").expires_at
        d.dump(tmp_path / "dump")
        d.clear()
        d.load(tmp_path / "dump")
        assert (d.ttl("a"), d.entry("b").expires_at) == (None, left)


def test_expired(d: PgDict[Any, Any], tmp_path: Path) -> None:
    """What has expired is not dumped; what expires between dump and load is absent."""
    d.set("old", 1, ttl=0.01)
    d.set("soon", 1, ttl=0.3)
    d["a"] = 1
    time.sleep(0.05)
    assert d.dump(tmp_path / "dump") == 2
    d.clear()
    time.sleep(0.3)
    d.load(tmp_path / "dump")
    assert list(d) == ["a"]


def test_one_moment(d: PgDict[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dump is of one moment, even when others write while it runs; its own transaction is not in it."""
    d.update(dict.fromkeys(range(12_000), 0))
    entries = d._entries

    def slowly(self: PgDict[Any, Any]) -> Iterator[Any]:
        for number, entry in enumerate(entries.__func__(self)):  # type: ignore[attr-defined]
            if number == 10:
                d.update(dict.fromkeys(range(13_000), 1))
            yield entry

    monkeypatch.setattr(PgDict, "_entries", slowly)
    assert d.dump(tmp_path / "dump.msgpack") == 12_000
    monkeypatch.undo()
    d.clear()
    d.load(tmp_path / "dump.msgpack")
    assert set(d.values()) == {0}


def packed(*records: Any) -> bytes:
    return b"".join(msgpack.packb(record) for record in records)


GOOD, WELL = b'{"key": "a", "value": 2}\n', packed([b"a", "int", b"2", None])


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        (".jsonl", GOOD + b"{", "entry 2"),
        (".jsonl", GOOD + b'{"key": "b", "val', "entry 2"),
        (".jsonl", GOOD * 3 + b"[]\n", "entry 4: not a JSON object"),
        (".jsonl", GOOD + b"\n" + GOOD, "entry 2"),
        (".jsonl", GOOD + b'{"key": "b"}\n', "entry 2: it has no 'base64'"),
        (".jsonl", GOOD + b'{"value": 1}\n', "entry 2: it has no 'stored_key'"),
        (".jsonl", GOOD + b'{"key": 1, "value": 1}\n', "entry 2: its key is no string"),
        (".jsonl", GOOD + b'{"key": ["b"], "value": 1}\n', "entry 2: its key is no string"),
        (".jsonl", GOOD + b'{"stored_key": "\\u0001x", "value": 1}\n', "entry 2: stored key"),
        (".jsonl", GOOD + b'{"key": "b", "value": NaN}\n', "entry 2"),
        (".jsonl", GOOD + b'{"key": "b", "codec": "msgpack", "base64": "?"}\n', "entry 2"),
        (".jsonl", GOOD + b'{"key": "b", "value": 1, "expires_at": "soon"}\n', "entry 2"),
        (".jsonl", GOOD + b'{"key": "b", "value": 1, "expires_at": 5}\n', "entry 2"),
        (".jsonl", GOOD + b'{"key": "b", "value": 1, "expires_at": "2100-01-01T00:00:00"}\n', "entry 2: .*time zone"),
        (".jsonl", GOOD + b'{"key": "b", "value": ' + b"[" * 100_000, "entry 2"),
        (".jsonl", GOOD + b"\xff\xfe\n", "entry 2"),
        (".jsonl", GOOD + b'{"key": "b", "codec": "zip", "base64": ""}\n', "'b' is stored with codec 'zip'"),
        (".jsonl", WELL, "entry 1"),
        (".msgpack", WELL + WELL[:-1], "entry 2: the file ends"),
        (".msgpack", WELL + b"\x94", "entry 2: the file ends"),
        (".msgpack", WELL + packed(5), "entry 2"),
        (".msgpack", WELL + packed(None) + WELL, "entry 2"),
        (".msgpack", WELL + packed([b"b", "int", b"2"]), "entry 2"),
        (".msgpack", WELL + packed(["b", "int", b"2", None]), "entry 2: not an array"),
        (".msgpack", WELL + packed([b"\xff", "int", b"2", None]), "entry 2"),
        (".msgpack", WELL + packed([b"b", "int", b"2", 7]), "entry 2"),
        (".msgpack", WELL + b"\xc1", "entry 2"),
        (".msgpack", WELL + b"\xa2\xff\xff", "entry 2"),
        (".msgpack", WELL + packed([b"b", "zip", b"2", None]), "'b' is stored with codec 'zip'"),
        (".msgpack", GOOD, "entry 1"),
    ],
)
def test_broken(d: PgDict[Any, Any], tmp_path: Path, suffix: str, content: bytes, message: str) -> None:
    """A broken file is an error that names the entry, and nothing of it is loaded."""
    d["a"] = 1
    file = tmp_path / f"dump{suffix}"
    file.write_bytes(content)
    with pytest.raises(InvalidValue, match=message):
        d.load(file)
    assert d.copy() == {"a": 1}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pipes(d: PgDict[Any, Any], tmp_path: Path, suffix: str) -> None:
    """A dump can be loaded from a pipe, whose size nobody knows."""
    d.update({str(n): "x" * n for n in range(1000)})
    file, pipe = tmp_path / f"dump{suffix}", tmp_path / f"pipe{suffix}"
    d.dump(file)
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(file.read_bytes()))
    writer.start()
    assert d.load(pipe) == 1000
    writer.join()


def test_dump_of_the_command(d: PgDict[Any, Any], server_url: str, table: str, tmp_path: Path) -> None:
    """What `pgdict dump` writes, Python loads: also an int of more digits than it reads by default, which the command does."""
    d["a"] = [10**5000]
    file = tmp_path / "dump.jsonl"
    subprocess.run([sys.executable, "-m", "pgdict", "dump", file, "--url", server_url, "--table", table], check=True)
    d.clear()
    assert d.load(file) == 1
    assert d["a"] == [10**5000]


def test_no_deadlock(d: PgDict[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the same keys in opposite orders are loaded at the same time, whatever their size."""
    monkeypatch.setattr(many, "BUFFER", 20_000)
    lines = [json.dumps({"key": str(n), "value": n}) + "\n" for n in range(1000)]
    forwards, backwards = tmp_path / "forwards.jsonl", tmp_path / "backwards.jsonl"
    forwards.write_text("".join(lines))
    backwards.write_text("".join(reversed(lines)))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(d.load, [forwards, backwards] * 6)) == [1000] * 12
    assert dict(d.items()) == {str(n): n for n in range(1000)}


def test_all_or_nothing(d: PgDict[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error behind the first batches, whatever its kind, undoes them as well."""
    monkeypatch.setattr(many, "BUFFER", 10_000)
    file = tmp_path / "dump.jsonl"
    lines = [json.dumps({"key": str(n), "value": n}) for n in range(1000)]
    file.write_text("\n".join([*lines, '{"key": "x", "value"']))
    with pytest.raises(InvalidValue, match="entry 1001"):
        d.load(file)
    assert not d
    file.write_text("\n".join([*lines, json.dumps({"key": "k" * 3000, "value": 1})]))
    with pytest.raises(InvalidKey):
        d.load(file)
    assert not d
    file.write_text("\n".join(lines))
    assert d.load(file) == 1000
    assert list(d) == [str(n) for n in range(1000)]


def test_unreadable_row(d: PgDict[Any, Any], server_url: str, table: str, tmp_path: Path) -> None:
    """Rows that cannot be read are dumped and loaded as they are."""
    d["a"] = 1
    with psycopg.connect(server_url) as connection:
        connection.execute(f"INSERT INTO {table} (key, value, codec) VALUES ('b', '\\xc1', 'msgpack')".encode())
    for suffix in SUFFIXES:
        file = tmp_path / f"dump{suffix}"
        assert d.dump(file) == 2
        d.clear()
        assert d.load(file) == 2
        with pytest.raises(DecodeError) as caught:
            d["b"]
        assert caught.value.raw == b"\xc1"


def test_complete_or_absent(d: PgDict[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file appears when it is complete: a dump that fails leaves an older one, and nothing else."""
    file = tmp_path / "dump.jsonl"
    neighbour = tmp_path / "dump.jsonl.partial"
    neighbour.write_text("somebody's own")
    d.update({n: n for n in range(10)})
    d.dump(file)
    before = file.read_bytes()
    entries = PgDict._entries

    def failing(self: PgDict[Any, Any]) -> Iterator[Any]:
        for number, entry in enumerate(entries(self)):
            if number == 5:
                assert file.read_bytes() == before
                raise KeyboardInterrupt
            yield entry

    monkeypatch.setattr(PgDict, "_entries", failing)
    with pytest.raises(KeyboardInterrupt):
        d.dump(file)
    assert file.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["dump.jsonl", "dump.jsonl.partial"]  # noqa: PTH208
    assert neighbour.read_text() == "somebody's own"


def test_paths(d: PgDict[Any, Any], tmp_path: Path) -> None:
    """A path that will not do is Python's own error; a str is a path, too."""
    d["a"] = 1
    cases: list[tuple[Callable[[Any], object], Path, type[OSError]]] = [
        (d.dump, tmp_path / "nowhere" / "dump", FileNotFoundError),
        (d.dump, tmp_path, IsADirectoryError),
        (d.load, tmp_path / "nothing", FileNotFoundError),
        (d.load, tmp_path, IsADirectoryError),
    ]
    for call, path, error in cases:
        with pytest.raises(error):
            call(path)
    assert not list(tmp_path.iterdir())
    assert d.dump(str(tmp_path / "dump")) == 1
    assert d.load(str(tmp_path / "dump")) == 1
    (tmp_path / "empty").touch()
    assert d.load(tmp_path / "empty") == 0


def test_progress(d: PgDict[Any, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A progress bar is shown when asked for."""
    d.update({n: n for n in range(10)})
    d.dump(tmp_path / "dump", progress=True)
    assert "10/10" in capfd.readouterr().err
    d.load(tmp_path / "dump", progress=True)
    assert "10 items" in capfd.readouterr().err


def test_disabled(server_url: str, table: str, tmp_path: Path) -> None:
    """Where expiry is ignored, expired rows are dumped like all others."""
    with PgDict[Any, Any](server_url, table=table, cleanup="disabled") as d:
        d.set("a", 1, ttl=0.001)
        time.sleep(0.01)
        assert d.dump(tmp_path / "dump") == 1
        d.clear()
        assert d.load(tmp_path / "dump") == 1
        assert d["a"] == 1


def test_key_order(d: PgDict[Any, Any], server_url: str, table: str, tmp_path: Path) -> None:
    """A table in key order is loaded from, and into, one in insertion order."""
    d.update(b=1, a=2)
    d.dump(tmp_path / "dump")
    with PgDict[Any, Any](server_url, table=f"{table}_k", order="key") as keyed:
        keyed.load(tmp_path / "dump")
        assert list(keyed.items()) == [("a", 2), ("b", 1)]
        keyed.dump(tmp_path / "dump")
        keyed.drop()
    d.clear()
    d.load(tmp_path / "dump")
    assert list(d) == ["a", "b"]


MEMORY = """
import resource
d = PgDict(url, table=table)
d["a"] = 1
def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
begin = most()
d.update((n, "x" * 1000) for n in range(150_000))
print(most() - begin)
d.dump(sys.argv[3])
print(most() - begin)
d.load(sys.argv[3])
print(most() - begin)
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_memory(server_url: str, table: str, tmp_path: Path, suffix: str) -> None:
    """Dumping and loading 150 MB take no more memory than some pages."""
    with program(MEMORY, server_url, table, tmp_path / f"dump{suffix}") as process:
        megabytes = [int(line) for line in result(process).split()]
    assert megabytes[-1] <= 64, megabytes


def test_only_files_are_replaced(d: PgDict[Any, Any], tmp_path: Path) -> None:
    """A dump replaces no pipe or device, such as `/dev/stdout`; through a link it replaces the file behind it."""
    pipe, link, file = tmp_path / "pipe", tmp_path / "link.jsonl", tmp_path / "elsewhere"
    os.mkfifo(pipe)
    with pytest.raises(FileExistsError, match="pipe"):
        d.dump(pipe)
    assert pipe.is_fifo()
    link.symlink_to(file)
    d["a"] = 1
    d.dump(link)
    assert link.is_symlink()
    assert file.read_text() == '{"key": "a", "value": 1}\n'
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "link.jsonl", "elsewhere"}
