"""The command: what it prints, and how it exits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner, Result

import pgdict
from pgdict import PgDict
from pgdict.__main__ import bench, demo
from pgdict.cli import Commands, app

PGDICT = (sys.executable, "-m", "pgdict")
COMMANDS = {
    "get", "set", "del", "keys", "scan", "count", "ttl", "expire", "persist", "incr",
    "entry", "stats", "cleanup", "dump", "load", "shell", "demo", "bench", "info",
}  # fmt: skip
CONTENTS: dict[Any, Any] = {
    "text": "häll\to\n",
    "number": 5,
    "float": 0.5,
    "json": {"a": [1, None, "ä\0"]},
    "bytes": b"\0\xff",
    "sum": Decimal("0.10"),
    "tuple": (1, "a"),
    "nan": float("nan"),
    "huge": 10**5000,
    5: "five",
    ("rate", b"\x00"): None,
    "user:1": "Ann",
    "user:2": "Bob",
}

Run = Callable[..., Result]


@pytest.fixture
def run(server_url: str, table: str) -> Iterator[Run]:
    """Run the command in this process, on the table of the test."""
    digits, levels = sys.get_int_max_str_digits(), sys.getrecursionlimit()

    def run(*arguments: str, stdin: bytes = b"", before: tuple[str, ...] = ("--table", table)) -> Result:
        Commands.elsewhere.update(demo=demo, bench=bench)
        return CliRunner(env={"PGDICT_URL": server_url}).invoke(app, [*before, *arguments], input=stdin, prog_name="pgdict")

    yield run
    sys.set_int_max_str_digits(digits)  # which the command raises
    sys.setrecursionlimit(levels)


def program(*arguments: str, command: tuple[str, ...] = PGDICT, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run the command as a process."""
    given = {"stdin": subprocess.DEVNULL} | more
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, **given)


def refused(done: Result | subprocess.CompletedProcess[str], status: int, reason: str) -> None:
    """Check that a command ended with one line that says why."""
    assert (done.exit_code if isinstance(done, Result) else done.returncode) == status
    assert done.stderr.startswith("pgdict: ")
    assert done.stderr.count("\n") == 1
    assert reason in done.stderr


# One item -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "plain", "as_json"),
    [
        (["text"], "häll\to\n\n".encode(), b'"h\xc3\xa4ll\\to\\n"\n'),
        (["number"], b"5\n", b"5\n"),
        (["float"], b"0.5\n", b"0.5\n"),
        (["json"], b'{"a": [1, null, "\xc3\xa4\\u0000"]}\n', b'{"a": [1, null, "\xc3\xa4\\u0000"]}\n'),
        (["--key-json", "5"], b"five\n", b'"five"\n'),
        (["--key-json", '["rate", {"bytes": "00"}]'], b"null\n", b"null\n"),
        (["huge"], b"1" + b"0" * 5000 + b"\n", b"1" + b"0" * 5000 + b"\n"),
        (["bytes"], b"\0\xff", None),
        (["sum"], b"Decimal('0.10')\n", None),
        (["tuple"], b"(1, 'a')\n", None),
        (["nan"], b"nan\n", None),
    ],
)
def test_get(run: Run, d: PgDict[Any, Any], arguments: list[str], plain: bytes, as_json: bytes | None) -> None:
    """A str and bytes come as they are, the rest as JSON or as Python writes it; `--json` is JSON or an error, never a loss."""
    d.update(CONTENTS)
    done = run("get", *arguments)
    assert (done.exit_code, done.stdout_bytes, done.stderr) == (0, plain, "")
    done = run("get", "--json", *arguments)
    if as_json is None:
        assert done.stdout_bytes == b""
        refused(done, 4, f"JSON cannot hold the value of key {arguments[0]!r}, of type ")
    else:
        assert (done.exit_code, done.stdout_bytes, done.stderr) == (0, as_json, "")


@pytest.mark.parametrize(
    ("arguments", "stdin", "stored"),
    [
        (["hello"], b"", "hello"),
        (["5"], b"", "5"),
        (["-5"], b"", "-5"),
        (["--json", "-5"], b"", -5),
        (["--json", '{"a": [1.5, null, true]}'], b"", {"a": [1.5, None, True]}),
        (["--json", "-"], b" [1,\n2] ", [1, 2]),
        (["-"], "zwölf\n".encode(), "zwölf\n"),
        (["--", "--json"], b"", "--json"),
        (["--codec", "bytes", "-"], b"\0\xff\n", b"\0\xff\n"),
        (["--codec", "bytes", "ä"], b"", "ä".encode()),
        (["--codec", "text", "ä"], b"", "ä"),
        ([""], b"", ""),
    ],
)
def test_set(run: Run, d: PgDict[Any, Any], arguments: list[str], stdin: bytes, stored: Any) -> None:
    """VALUE is text, or JSON, or standard input to its last byte; the codec decides how it is stored."""
    done = run("set", "key", *arguments, stdin=stdin)
    assert (done.exit_code, done.output) == (0, "")
    assert d["key"] == stored
    assert type(d["key"]) is type(stored)
    if "--codec" in arguments:
        assert d.entry("key").codec == arguments[1]


def test_set_with_ttl(run: Run, d: PgDict[Any, Any]) -> None:
    """`--ttl` gives an expiry, and its absence takes it away."""
    run("set", "a", "1", "--ttl", "60")
    assert 50 < (d.ttl("a") or 0) <= 60
    run("set", "a", "1")
    assert d.ttl("a") is None


def test_set_nx(run: Run, d: PgDict[Any, Any]) -> None:
    """`--nx` stores once, and exits with 1 when the key is there."""
    assert run("set", "leader", "me", "--nx", "--ttl", "60").exit_code == 0
    refused(run("set", "leader", "you", "--nx"), 1, "key 'leader' is there already")
    assert d["leader"] == "me"
    assert d.ttl("leader") is not None


def test_bytes_that_are_no_text(server_url: str, table: str, d: PgDict[Any, Any]) -> None:
    """Bytes of an argument that are no UTF-8 come out as they went in; standard input says what to do."""
    environment = os.environ | {"PGDICT_URL": server_url}
    arguments = [*PGDICT, "--table", table]
    subprocess.run([*arguments, "set", b"k\xff", b"v\xfe"], check=True, env=environment)
    assert subprocess.check_output([*arguments, "get", b"k\xff"], env=environment) == b"v\xfe\n"
    assert subprocess.check_output([*arguments, "keys"], env=environment) == b"k\\udcff\n"
    assert subprocess.check_output([*arguments, "keys", "--json"], env=environment) == b'"k\\udcff"\n'
    done = subprocess.run([*arguments, "set", "k", "-"], input=b"\xff", capture_output=True, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr == b"pgdict: standard input is not UTF-8: invalid start byte; store it with --codec bytes\n"


def test_del(run: Run, d: PgDict[Any, Any]) -> None:
    """`del` removes keys, prints how many, and exits with 1 when that is none."""
    d.update({"a": 1, "b": 2, 5: 3})
    done = run("del", "a", "b", "nothing")
    assert (done.exit_code, done.stdout) == (0, "2\n")
    done = run("del", "a")
    assert done.stdout == "0\n"
    refused(done, 1, "no key 'a'")
    refused(run("del", "a", "b", "--json"), 1, "none of the keys")
    assert run("del", "--key-json", "5").stdout == "1\n"
    assert not d


def test_ttl(run: Run, d: PgDict[Any, Any]) -> None:
    """`ttl` prints seconds, `expire` sets them, `persist` takes them away."""
    d["a"] = 1
    assert run("ttl", "a").stdout == "never\n"
    assert run("ttl", "a", "--json").stdout == "null\n"
    done = run("expire", "a", "60")
    assert (done.exit_code, done.output) == (0, "")
    for option in ([], ["--json"]):
        assert 50 < float(run("ttl", "a", *option).stdout) <= 60
    done = run("persist", "a")
    assert (done.exit_code, done.output) == (0, "")
    assert d.ttl("a") is None
    refused(run("persist", "a"), 1, "no key 'a' that expires")


def test_incr(run: Run, d: PgDict[Any, Any]) -> None:
    """`incr` adds ints and floats of either sign, and its ttl counts when a number begins."""
    assert run("incr", "n").stdout == "1\n"
    assert run("incr", "n", "10", "--json").stdout == "11\n"
    assert run("incr", "n", "-5").stdout == "6\n"
    assert run("incr", "n", "-0.5").stdout == "5.5\n"
    assert run("incr", "--key-json", '["calls", 1]', "--ttl", "60").stdout == "1\n"
    assert d.ttl("n") is None
    assert d.ttl(("calls", 1)) is not None


def test_entry(run: Run, d: PgDict[Any, Any]) -> None:
    """`entry` shows what is known of an item."""
    d.set("json", {"a": 1}, ttl=60)
    entry = d.entry("json")
    shown = run("entry", "json").stdout
    for word in ("json", "{'a': 1}", "dict", "msgpack", f"{entry.size} B", f"{entry.expires_at:%Y-%m-%d %H:%M:%S} UTC"):
        assert word in shown
    found = json.loads(run("entry", "json", "--json").stdout)
    assert datetime.fromisoformat(found.pop("created_at")) == entry.created_at
    assert datetime.fromisoformat(found.pop("updated_at")) == entry.updated_at
    assert datetime.fromisoformat(found.pop("expires_at")) == entry.expires_at
    assert found == {"key": "json", "value": {"a": 1}, "codec": "msgpack", "size": entry.size}
    d["sum"] = Decimal("0.10")
    assert json.loads(run("entry", "sum", "--json").stdout)["repr"] == "Decimal('0.10')"
    assert json.loads(run("entry", "sum", "--json").stdout)["expires_at"] is None


@pytest.mark.parametrize("name", ["get", "ttl", "entry", "del", "expire", "persist"])
def test_absent(run: Run, d: PgDict[Any, Any], name: str) -> None:
    """An absent or expired key is exit status 1, and nothing on standard output but the count of `del`."""
    d.set("gone", 1, ttl=0.001)
    time.sleep(0.002)
    ways: dict[str, list[list[str]]] = {"expire": [["60"]], "persist": [[]]}
    for key in ("nothing", "gone"):
        for rest in ways.get(name, [[], ["--json"]]):
            done = run(name, key, *rest)
            refused(done, 1, f"no key {key!r}")
            assert done.stdout == ("0\n" if name == "del" else "")


# Many items -----------------------------------------------------------------------------------------------------------


def test_keys(run: Run, d: PgDict[Any, Any]) -> None:
    """`keys` prints keys in their order: one in a line for people, exactly with `--json`, in a form that `--key-json` takes."""
    keys = ["a", "b\nc", "ü", 5, -0.5, None, b"\xff", float("inf"), ("a", (1, b""), None)]
    d.update(dict.fromkeys(keys))
    shown = run("keys").stdout.splitlines()
    assert set(shown) == {"a", r"b\nc", "ü", "5", "-0.5", "null", r"b'\xff'", "inf", r"('a', (1, b''), None)"}
    lines = run("keys", "--json").stdout.splitlines()
    assert len(lines) == len(keys)
    for line, key in zip(lines, d.scan_keys(), strict=True):
        d[key] = repr(key)
        assert run("get", "--key-json", line).stdout == f"{key!r}\n"


def test_choice_of_keys(run: Run, d: PgDict[Any, Any]) -> None:
    """Prefix, limit, place and direction choose among the keys, for `keys` and `scan` alike."""
    d.update({f"user:{n}": n for n in range(5)} | {"x": 1, 3: 1})
    cases: dict[tuple[str, ...], list[str]] = {
        ("--prefix", "user:", "--limit", "2"): ["user:0", "user:1"],
        ("-p", "user:", "--after", "user:2"): ["user:3", "user:4"],
        ("--reverse", "--after", "user:2", "--prefix", "user:"): ["user:1", "user:0"],
        ("--limit", "0"): [],
        ("--after", "user:4"): ["x"],
        ("--key-json", "--after", "3", "--limit", "1"): ["user:0"],
        ("--prefix", "%"): [],
    }
    for options, expected in cases.items():
        assert run("keys", *options).stdout.splitlines() == expected, options
        scanned = run("scan", "--json", *options).stdout.splitlines()
        assert [json.loads(line)["key"] for line in scanned] == expected, options
    assert run("count").stdout == "7\n"
    assert run("count", "--prefix", "user:", "--json").stdout == "5\n"


def test_scan(run: Run, d: PgDict[Any, Any]) -> None:
    """`scan` puts a tab between key and value, and breaks no line; its JSON lines mark what JSON cannot hold."""
    d.update(CONTENTS)
    lines = run("scan").stdout.splitlines()
    assert len(lines) == len(CONTENTS)
    assert all(line.count("\t") == 1 for line in lines)
    for line in ("text\thäll\\to\\n", "number\t5", 'json\t{"a": [1, null, "ä\\u0000"]}', "sum\tDecimal('0.10')", "5\tfive"):
        assert line in lines
    found = {json.dumps(line.pop("key")): line for line in map(json.loads, run("scan", "--json").stdout.splitlines())}
    assert found['"text"'] == {"value": "häll\to\n"}
    assert found["5"] == {"value": "five"}
    assert found['["rate", {"bytes": "00"}]'] == {"value": None}
    assert found['"bytes"'] == {"base64": "AP8="}
    assert found['"sum"'] == {"repr": "Decimal('0.10')"}
    assert found['"tuple"'] == {"repr": "(1, 'a')"}
    assert found['"nan"'] == {"repr": "nan"}
    assert found['"huge"'] == {"value": 10**5000}


def test_deep(run: Run, d: PgDict[Any, Any]) -> None:
    """A value that is nested as deeply as can be stored is printed; one that is nested more deeply is refused."""
    deepest: list[Any] = []
    for _ in range(900):
        deepest = [deepest]
    d["deep"] = deepest
    assert run("get", "deep").stdout == "[" * 901 + "]" * 901 + "\n"
    assert run("scan", "--json").exit_code == 0
    refused(run("set", "deeper", "--json", "[" * 1200 + "]" * 1200), 4, "nested too deeply")


def test_unreadable(run: Run, d: PgDict[Any, Any], server_url: str, table: str) -> None:
    """A value that cannot be read is said to be so, and the others are there all the same."""
    d.update(a=1, b=2, c=3)
    with psycopg.connect(server_url) as connection:
        connection.execute(f"UPDATE \"{table}\" SET value = '\\xc1', codec = 'msgpack' WHERE key = 'b'".encode())
    refused(run("get", "b"), 4, "value of key 'b', stored with codec 'msgpack', cannot be read")
    for options in ((), ("--json",)):
        done = run("scan", *options)
        refused(done, 4, "1 of the values cannot be read")
        assert len(done.stdout.splitlines()) == 3
    assert "cannot be read" in json.loads(done.stdout.splitlines()[1])["error"]
    assert [json.loads(line)["value"] for line in done.stdout.splitlines()[::2]] == [1, 3]


def test_pickles_are_not_read_unasked(run: Run, d: PgDict[Any, Any], server_url: str, table: str) -> None:
    """Reading a pickle needs `--codec pickle`."""
    assert run("set", "p", "x", "--codec", "pickle").exit_code == 0
    refused(run("get", "p"), 4, "does not read such rows")
    assert run("get", "p", "--codec", "pickle").stdout == "x\n"


@pytest.mark.parametrize("name", ["dump.jsonl", "dump.msgpack"])
def test_dump_and_load(run: Run, d: PgDict[Any, Any], table: str, tmp_path: Path, name: str) -> None:
    """What `dump` writes, `load` stores, in another table too, which it makes; without a terminal there is no bar."""
    d.update(CONTENTS)
    file = str(tmp_path / name)
    done = run("dump", file)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "13\n", "")
    d.clear()
    done = run("load", file, "--json")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "13\n", "")
    assert repr(d.copy()) == repr(CONTENTS)
    with d.transaction():
        d.drop()
        refused(run("load", str(tmp_path / "no such file")), 2, "no such file")
    refused(run("dump", file), 1, f"there is no table {table!r}")
    run("load", file, "--durability", "sync")
    assert run("count").stdout == "13\n"


def test_torn_dump(run: Run, d: PgDict[Any, Any], tmp_path: Path) -> None:
    """A file that is no dump is exit status 4, and nothing is loaded; so is one that cannot be written."""
    file = tmp_path / "dump.jsonl"
    file.write_text('{"key": "a", "value": 1}\n{"key": "b"')
    refused(run("load", str(file)), 4, f"{file}, entry 2: ")
    assert not d
    refused(run("dump", str(tmp_path / "no/directory")), 4, "No such file or directory")
    refused(run("dump", str(tmp_path)), 4, f"pgdict: {tmp_path}: Is a directory")


def test_cleanup(run: Run, server_url: str, table: str) -> None:
    """`cleanup` prints how many expired rows it has deleted, at most so many as asked."""
    with PgDict[int, int](server_url, table=table, cleanup="manual") as d:
        d.set_many({n: n for n in range(5)}, ttl=0.001)
    time.sleep(0.002)
    assert run("cleanup", "--limit", "2").stdout == "2\n"
    assert run("cleanup", "--json").stdout == "3\n"
    assert run("cleanup").stdout == "0\n"


def test_stats(run: Run, d: PgDict[Any, Any]) -> None:
    """`stats` shows numbers, counted or estimated."""
    d.update({n: n for n in range(1234)})
    assert "1,234" in run("stats").stdout
    found = json.loads(run("stats", "--json").stdout)
    assert found | {"live": 1234, "expired": 0, "exact": True, "emptied": False} == found
    found = json.loads(run("stats", "--json", "--estimate").stdout)
    assert found | {"expired": None, "bytes": None, "exact": False} == found
    assert "about" in run("stats", "--estimate").stdout


# Which dictionary -----------------------------------------------------------------------------------------------------


def test_before_and_behind(run: Run, d: PgDict[Any, Any], server_url: str, table: str) -> None:
    """Which dictionary can be said before the command or behind it; behind it wins; $PGDICT_URL is where none is said."""
    d["a"] = 1
    nowhere = "postgresql://127.0.0.1:1/x"
    for before, behind in (
        (["--table", table], []),
        ([], ["--table", table]),
        (["--table", "no_such_table"], ["--table", table]),
        (["--url", nowhere], ["--url", server_url, "--table", table]),
        (["--url", server_url], ["--table", table]),
    ):
        assert run("get", "a", *behind, before=tuple(before)).stdout == "1\n"
    refused(run("get", "a", before=("--url", nowhere)), 3, "refused")


def test_namespace(run: Run, d: PgDict[Any, Any]) -> None:
    """`--namespace` is a part of the dictionary, also of a part."""
    d.namespace("a", "b")["c"] = 1
    assert run("get", "-n", "a:b", "c").stdout == "1\n"
    assert run("keys", "--namespace", "a").stdout == "b:c\n"
    assert run("keys").stdout == "a:b:c\n"
    refused(run("keys", "-n", "a:"), 2, "namespace")


def test_schema(run: Run, server_url: str, table: str) -> None:
    """`--schema` is that of the table, made by what makes the table."""
    refused(run("get", "a", "--schema", table), 1, "there is no table")
    assert run("set", "a", "b", "--schema", table).exit_code == 0
    assert run("get", "a", "--schema", table).stdout == "b\n"
    with psycopg.connect(server_url) as connection:
        connection.execute(f'DROP SCHEMA "{table}" CASCADE'.encode())


@pytest.mark.parametrize(
    "arguments",
    [
        "get a",
        "del a",
        "keys",
        "scan",
        "count",
        "ttl a",
        "expire a 1",
        "persist a",
        "entry a",
        "stats",
        "cleanup",
        "dump no_such_file",
    ],
)
def test_missing_table(run: Run, server_url: str, table: str, arguments: str) -> None:
    """Reading a table that is not there is exit status 1, makes none, and writes nothing."""
    done = run(*arguments.split())
    refused(done, 1, f"there is no table {table!r}; `pgdict set` and `pgdict load` make it")
    assert done.stdout == ""
    assert not Path("no_such_file").exists()
    with psycopg.connect(server_url) as connection:
        assert connection.execute("SELECT to_regclass(%s)", [table]).fetchone() == (None,)


def test_durability(run: Run, server_url: str, table: str) -> None:
    """What makes a table can say what it keeps in a crash, which the table then has."""
    assert run("incr", "a", "--durability", "sync").exit_code == 0
    refused(run("set", "a", "b", "--durability", "unlogged"), 2, "contradicts")
    with psycopg.connect(server_url) as connection:
        persistence = connection.execute("SELECT relpersistence FROM pg_class WHERE relname = %s", [table]).fetchone()
    assert persistence == ("p",)


def test_info(run: Run, server_url: str, d: PgDict[Any, Any], table: str) -> None:
    """`info` tells server, table and size."""
    d.update({n: n for n in range(1234)})
    done = run("info")
    assert (done.exit_code, done.stderr) == (0, "")
    for word in ("PostgreSQL 1", f"{table}, in insertion order, unlogged", "1,234"):
        assert word in done.stdout
    found = json.loads(run("info", "--json").stdout)
    assert found | {"pgdict": pgdict.__version__, "table": table, "exists": True, "live": 1234, "embedded": False} == found
    d.set_durability("sync")
    assert f"{table}, in insertion order, logged" in run("info").stdout
    found = json.loads(run("info", "--json").stdout)
    assert (found["unlogged"], found["order"]) == (False, "insertion")


def test_info_on_nothing(run: Run, table: str, tmp_path: Path) -> None:
    """`info` on a missing table or directory says so, makes none, and does not fail."""
    done = run("info")
    assert (done.exit_code, done.stderr) == (0, "")
    assert f"{table}, not there yet: `pgdict set` makes it" in done.stdout
    assert "PostgreSQL 1" in done.stdout
    assert json.loads(run("info", "--json").stdout)["exists"] is False
    nowhere = str(tmp_path / "nowhere")
    done = run("info", "--url", nowhere)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "not there yet" in done.stdout
    refused(run("get", "a", "--url", nowhere), 1, f"there is nothing in {nowhere!r}")
    assert not Path(nowhere).exists()


def test_shell_runs_a_program(run: Run, d: PgDict[Any, Any]) -> None:
    """What is piped into `shell` is a program; what the options name is its `d`; an error of pgdict's is one line."""
    program = b"import sys\nd['ann'] = 1\nfor key in d:\n    print(key, d[key])\n"
    done = run("shell", "--namespace", "users", stdin=program)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "ann 1\n", "")
    assert d.copy() == {"users:ann": 1}
    refused(run("shell", stdin=b"d.namespace('')"), 2, "namespace")


@pytest.mark.parametrize(
    ("program", "line"), [(b"0\nd['nothing']", 'File "<stdin>", line 2'), (b"print(len(d)", "SyntaxError")]
)
def test_shell_shows_where_a_program_fails(run: Run, d: PgDict[Any, Any], program: bytes, line: str) -> None:
    """A traceback begins with the program: what is around it does not concern its author."""
    done = run("shell", stdin=program)
    assert done.exit_code == 1
    assert line in done.stderr
    assert "shell.py" not in done.stderr


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["nonsense"], 2, "no such command 'nonsense' (see pgdict --help)"),
        (["--nonsense"], 2, "no such option: --nonsense"),
        (["get"], 2, "missing argument 'KEY' (see pgdict get --help)"),
        (["get", "a", "b"], 2, "unexpected extra argument"),
        (["get", "--tll", "a"], 2, "no such option: --tll"),
        (["set", "a", "5", "--tll", "60"], 2, "no such option: --tll"),
        (["incr", "a", "-5", "--tll", "60"], 2, "no such option: "),
        (["incr", "a", "1e400"], 2, "BY is no number: '1e400'"),
        (["set", "a", "b", "--ttl", "x"], 2, "'--ttl'"),
        (["set", "a", "b", "--ttl", "-1"], 2, "a ttl lies above 0"),
        (["set", "a", "b", "--ttl", "nan"], 2, "a ttl lies above 0"),
        (["expire", "a", "0"], 2, "a ttl lies above 0"),
        (["incr", "a", "--ttl", "0"], 2, "a ttl lies above 0"),
        (["set", "a", "--json", "{"], 2, "VALUE is not JSON: "),
        (["set", "a", "--json", "NaN"], 2, "VALUE is not JSON: "),
        (["set", "a", "--json", '{"a": 1, "a": 2}'], 2, "the same key twice"),
        (["set", "a", "--json", "[" * 100_000], 2, "VALUE is not JSON: "),
        (["set", "a", "--json", "1", "--codec", "text"], 2, "int"),
        (["set", "k" * 5000, "v"], 2, "key"),
        (["get", "--key-json", "{}"], 2, "no key is like {}"),
        (["get", "--key-json", '{"bytes": "xy"}'], 2, "KEY is not hexadecimal"),
        (["get", "--key-json", "a"], 2, "KEY is not JSON: "),
        (["incr", "a", "x"], 2, "BY is no number: 'x'"),
        (["incr", "text"], 4, "is no number but str"),
        (["scan", "--limit", "-1"], 2, "'--limit'"),
        (["get", "a", "--codec", "xml"], 2, "'--codec'"),
        (["get", "a", "--table", "t" * 80], 2, "is no name of 1 to"),
        (["get", "a", "--url", "mysql://u:hush@127.0.0.1/d"], 2, "mysql:// is no PostgreSQL location"),
        (["get", "a", "--url", "postgresql://u:hush@127.0.0.1:1/d"], 3, "refused"),
        (["info", "--url", "postgresql://u:hush@127.0.0.1:1/d"], 3, "refused"),
        (["set", "a", "b", "--url", "/dev/null/x"], 2, "/dev/null/x"),
    ],
)
def test_errors(run: Run, d: PgDict[Any, Any], arguments: list[str], status: int, reason: str) -> None:
    """An error is one line with the reason, without a password, nothing on standard output, and nothing changed."""
    d.update(text="x", float=0.5)
    done = run(*arguments)
    refused(done, status, reason)
    assert done.stdout == ""
    assert "hush" not in done.stderr
    assert d.copy() == {"text": "x", "float": 0.5}


def test_refused_by_the_server(run: Run, server_url: str, d: PgDict[Any, Any], table: str) -> None:
    """What the server refuses is exit status 3."""
    with psycopg.connect(server_url) as connection:
        connection.execute(f"ALTER TABLE \"{table}\" ADD CHECK (key <> 'a')".encode())
    refused(run("set", "a", "b"), 3, "violates check constraint")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["set", "a", "b"], 0),
        (["get", "nothing"], 1),
        (["get"], 2),
        (["get", "a", "--url", "postgresql://u:hush@127.0.0.1:1/d"], 3),
        (["incr", "text"], 4),
        (["demo", "--url", "postgresql://u:hush@127.0.0.1:1/d"], 3),
        (["bench", "--quick", "--full"], 2),
    ],
)
def test_processes(server_url: str, table: str, d: PgDict[Any, Any], arguments: list[str], status: int) -> None:
    """A process exits with the status, and says why in one line."""
    d["text"] = "x"
    at = [] if "--url" in arguments else ["--url", server_url]
    done = program(*at, "--table", table, *arguments)
    if status:
        refused(done, status, "")
    assert (done.returncode, done.stdout) == (status, "")
    assert "hush" not in done.stderr


def test_interrupted(server_url: str, table: str, d: PgDict[Any, Any]) -> None:
    """Ctrl-C ends a command that waits for somebody, at once and without a word."""
    d["a"] = 1
    command = [*PGDICT, "set", "a", "2", "--url", server_url, "--table", table]
    with d.transaction():
        d["a"] = 3
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
            waits = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s"
            with psycopg.connect(server_url, autocommit=True) as connection:
                until = time.monotonic() + 20
                while connection.execute(waits, [f"%{table}%"]).fetchone() is None:
                    assert time.monotonic() < until
            begin = time.monotonic()
            waiting.send_signal(signal.SIGINT)
            assert waiting.communicate(timeout=20) == ("", "")
            assert time.monotonic() - begin < 5
    assert waiting.returncode == 130
    assert d["a"] == 3


@pytest.mark.parametrize("arguments", ["keys", "scan", "scan --json"])
def test_head(server_url: str, table: str, d: PgDict[Any, Any], arguments: str) -> None:
    """`| head` ends a command quietly, as it ends `cat`."""
    d.update({f"{n:0100}": n for n in range(5000)})
    line = f"{sys.executable} -m pgdict --table {table} {arguments} | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = program(line, command=("bash", "-c"), env=os.environ | {"PGDICT_URL": server_url})
    assert (done.returncode, done.stderr) == (141, "")
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("arguments", [["get", "a"], ["info"], ["entry", "a"], ["--help"], ["get", "--help"]])
def test_nobody_reads(server_url: str, table: str, d: PgDict[Any, Any], arguments: list[str]) -> None:
    """So does an output that is closed from the beginning."""
    d["a"] = 1
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        command = [*PGDICT, "--url", server_url, "--table", table, *arguments]
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (141, b"")


def test_streams(server_url: str, table: str, d: PgDict[Any, Any]) -> None:
    """`scan` prints while it reads: the first lines are there long before the last row was read."""
    d.update(dict.fromkeys(range(60_000), "x" * 100))
    with subprocess.Popen([*PGDICT, "scan", "--url", server_url, "--table", table], stdout=subprocess.PIPE) as scan:
        assert scan.stdout is not None
        assert scan.stdout.readline().endswith(b"x\n")
        assert scan.poll() is None  # it waits for somebody to read on
        assert len(scan.stdout.read().splitlines()) == 59_999
    assert scan.returncode == 0


# Help -----------------------------------------------------------------------------------------------------------------


def test_version(run: Run) -> None:
    """`--version` says it, and is the one of the package."""
    assert run("--version", before=()).stdout.startswith(f"pgdict {pgdict.__version__} ")
    assert program("--version").stdout.startswith(f"pgdict {pgdict.__version__} ")


def test_help(run: Run) -> None:
    """`--help`, or nothing at all, names the commands and the exit statuses."""
    for arguments in (["--help"], ["-h"], []):
        done = run(*arguments, before=())
        assert (done.exit_code, done.stderr) == (0, "")
        words = done.stdout.split()
        assert set(words) >= COMMANDS
        assert "Exit status" in done.stdout
        assert "$PGDICT_URL" in done.stdout


@pytest.mark.parametrize("command", sorted(COMMANDS - {"demo", "bench"}))
def test_help_of_a_command(run: Run, command: str) -> None:
    """Each command has examples, of itself, with options that there are."""
    done = run(command, "--help", before=())
    assert done.exit_code == 0
    examples = [line.strip() for line in done.stdout.splitlines() if "pgdict " in line and "Usage" not in line]
    assert examples
    for example in examples:
        assert f"pgdict {command}" in example
        for option in (word for word in example.split() if word.startswith("--")):
            assert option in done.stdout.partition("Examples:")[0]


@pytest.mark.parametrize("extra", ["typer", "rich"])
def test_without_the_extra(extra: str) -> None:
    """Without its packages the command says in one line what to install."""
    without = f"import sys; sys.modules[{extra!r}] = None; from pgdict.__main__ import main; main()"
    done = program(command=(sys.executable, "-c", without))
    assert done.returncode == 2
    assert done.stderr == f"pgdict: the command needs {extra}: pip install '.[cli]'\n"


@pytest.mark.parametrize("module", ["rich", "IPython", "tqdm", "matplotlib", "redis", "pgdict.bench", "pgdict.demo"])
def test_quick_start(server_url: str, table: str, d: PgDict[Any, Any], module: str) -> None:
    """A command imports nothing that it does not need."""
    d["a"] = 1
    arguments = ["pgdict", "get", "a", "--url", server_url, "--table", table]
    code = f"import sys; sys.argv = {arguments}; sys.modules[{module!r}] = None; from pgdict.__main__ import main; main()"
    done = program(command=(sys.executable, "-c", code))
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_completion() -> None:
    """A shell that asks gets commands, options and codecs to complete."""
    for words, expected in (
        ("pgdict sc", ["scan"]),
        ("pgdict get --names", ["--namespace"]),
        ("pgdict get --codec m", ["msgpack"]),
        ("pgdict be", ["bench"]),
    ):
        asked = {"_PGDICT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        assert program(env=os.environ | asked).stdout.split() == expected
