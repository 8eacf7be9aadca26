"""`pgdict bench`: whoever can takes part, figures are told honestly, and nothing is left behind."""

from __future__ import annotations

import gc
import itertools
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from rich.console import Console

from pgdict import ConfigError, PgDict
from pgdict.bench import FULL, Report, Result, Scale, plot, run
from pgdict.bench.contestants import CONTESTANTS, PREFIX, TABLE
from pgdict.bench.groups import NORMAL, plan
from pgdict.bench.report import document, figure, show
from pgdict.bench.targets import TARGETS, judge

TINY = Scale(0.001, 1, (64, 1024), (10,), 300, (1, 2), (100, 200), 1_000)
BENCH = (sys.executable, "-m", "pgdict", "bench")

POSTGRESQL = ("PgDict unlogged", "PgDict async", "PgDict sync")
SERVERS = (*POSTGRESQL, "psycopg", "Redis")
DICTS = (*SERVERS, "diskcache", "sqlitedict", "shelve", "dict")

TAKE_PART = {
    "set": {*DICTS, "pgbench"},
    "get": {*DICTS, "pgbench"},
    "in": {*DICTS},
    "delete": {*DICTS},
    "increment": {*SERVERS, "pgbench", "diskcache"},
    "ttl": {*SERVERS, "diskcache"},
    "mixed": {*DICTS},
    "memoize": {*POSTGRESQL, "diskcache", "joblib", "dict"},
    "threads": {*DICTS, "pgbench"},
    "scan": {*SERVERS},
    "set_many": {*DICTS, "COPY"},
    "get_many": {*SERVERS},
    "items": {*DICTS},
    "growth": {*DICTS},
    "first": {*POSTGRESQL},
    "memory": {*DICTS},
    "import": {"PgDict unlogged", "psycopg", "Redis", "diskcache", "sqlitedict", "shelve", "joblib"},
}

needs_matplotlib = pytest.mark.skipif(not find_spec("matplotlib"), reason="plots need matplotlib: pip install '.[bench]'")
needs_redis = pytest.mark.skipif(
    not shutil.which("redis-server"), reason="needs redis-server on PATH, which Debian's package of that name brings"
)


@pytest.fixture(scope="module")
def report(server_url: str) -> Report:
    """A run of everything, with tiny counts."""
    with pytest.MonkeyPatch.context() as environment, warnings.catch_warnings():
        environment.delenv("REDIS_URL", raising=False)
        warnings.simplefilter("ignore", ResourceWarning)  # diskcache leaves connections open in threads: Python 3.13 says so
        found = run(server_url, scale=TINY)
        gc.collect()
    return found


@pytest.fixture
def database(server_url: str) -> Iterator[str]:
    """A database of its own, which shows what is left in it."""
    name = f"bench_{secrets.token_hex(6)}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
        yield make_conninfo(server_url, dbname=name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def tables(url: str) -> list[str]:
    """Return what tables, sequences and indexes there are."""
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace").fetchall()
    return [name for (name,) in found]


def commanded(directory: Path, url: str = "", **more: str) -> dict[str, str]:
    """Return the environment of a command whose temporary files go to a directory."""
    own = {k: v for k, v in os.environ.items() if k not in ("REDIS_URL", "FORCE_COLOR")}
    return own | {"TMPDIR": str(directory), "PGDICT_URL": url, "COLUMNS": "80"} | more


@pytest.mark.parametrize("group", [group.name for group in plan(NORMAL)])
def test_everybody_takes_part(report: Report, group: str) -> None:
    """In every group all who have the operation, and are installed, have positive figures."""
    results = [result for result in report.results if result.group == group]
    assert {result.contestant for result in results} == TAKE_PART[group] - set(report.missing)
    for result in results:
        assert result.rounds
        assert all(measured > 0 for measured in result.rounds)


def test_all_are_named(report: Report) -> None:
    """Each contestant either took part, with its version and what a crash loses, or is missing for a reason."""
    assert {*report.contestants, *report.missing} == {contestant.name for contestant in CONTESTANTS}
    for name in ("PgDict unlogged", "psycopg", "shelve", "dict"):  # which need nothing that pgdict does not bring
        assert name in report.contestants
    assert all(about["version"] and about["crash"] for about in report.contestants.values())
    assert all(report.missing.values())


def test_nothing_is_left(report: Report, server_url: str) -> None:
    """A run drops all its tables."""
    assert report.results
    assert [name for name in tables(server_url) if name.startswith(TABLE)] == []


def test_rounds_are_interleaved(server_url: str) -> None:
    """A round of each contestant, then the next round of each, so that a slow moment hits all alike."""
    told: list[str] = []
    names = ["pgdict-async", "shelve", "dict"]
    found = run(
        server_url, groups=["in"], contestants=names, scale=replace(TINY, rounds=2), telling=lambda *step: told.append(step[2])
    )
    rounds = [what for what in told if "round" in what]
    in_turn = itertools.product("12", ("PgDict async", "shelve", "dict"))
    assert rounds == [f"in: round {number} of {name}" for number, name in in_turn]
    assert [len(result.rounds) for result in found.results] == [2, 2, 2]


def test_progress(server_url: str) -> None:
    """What is told of the progress goes from nothing to everything, and never back."""
    told: list[float] = []
    run(
        server_url, groups=["in", "get"], contestants=["shelve", "dict"], scale=TINY, telling=lambda d, t, _: told.append(d / t)
    )
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0, 1)


def test_missing(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is not installed is named with what to do about it, and the others are measured."""
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setitem(sys.modules, "diskcache", None)
    report = run(server_url, groups=["get"], contestants=["redis", "diskcache", "dict"], scale=TINY)
    assert list(report.contestants) == ["dict"]
    assert report.missing["diskcache"] == "diskcache is not installed: pip install '.[bench]'"
    assert report.missing["Redis"]
    shown = text(report)
    assert "missing" in shown
    assert "diskcache is not installed" in shown
    with pytest.raises(ConfigError, match="diskcache is not installed"):
        run(server_url, contestants=["diskcache"], scale=TINY)


@needs_redis
def test_own_redis(server_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the Redis that `REDIS_URL` names all other keys stay, and ours go."""
    redis = pytest.importorskip("redis", reason="needs redis-py: pip install '.[bench]'")
    socket = tmp_path / "s"
    options = ("--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(tmp_path))
    with subprocess.Popen(("redis-server", *options), stdout=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 10
            while not socket.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            with closing(redis.Redis(unix_socket_path=str(socket))) as client:
                client.set("mine", "stays")
                monkeypatch.setenv("REDIS_URL", f"unix://{socket}")
                report = run(server_url, groups=["get", "set_many"], contestants=["redis"], scale=TINY)
                assert report.contestants["Redis"]["crash"] == "as its server is set up"
                assert client.keys() == [b"mine"]
        finally:
            server.terminate()


# What is shown -------------------------------------------------------------------------------------------------------


def text(report: Report) -> str:
    """Return what a terminal of 80 columns shows."""
    file = StringIO()
    show(report, Console(file=file, width=80, markup=False, highlight=False))
    return file.getvalue()


def test_tables(report: Report) -> None:
    """All groups and contestants are shown with their figures, within the width of a terminal."""
    shown = text(report)
    for group in report.groups:
        assert re.search(rf"(^|; ){group.name}: ", shown, re.MULTILINE)
    for name in (*report.contestants, *report.missing):
        assert name in shown
    result = report.find("get", "hit", "dict")
    assert result
    assert figure("rate", result.median) in shown
    assert max(len(line.rstrip()) for line in shown.splitlines()[1:]) <= 80


def test_ratio() -> None:
    """A ratio above 1 is better than the first PgDict: a higher rate, a shorter time, fewer bytes."""
    found = Report("", {}, {"dict": {}, "PgDict async": {}, "PgDict sync": {}}, {}, ())
    ours, theirs = Result("get", "hit", "PgDict async", "rate", (3.0, 1.0, 2.0)), Result("get", "hit", "dict", "rate", (1.0,))
    found.results += [theirs, ours]
    assert found.reference == "PgDict async"
    assert ours.median == 2.0
    assert (found.ratio(theirs), found.ratio(ours)) == (2.0, 1.0)
    assert found.ratio(Result("set", "", "dict", "rate", (1.0,))) is None


def outcomes(*results: Result, nonstandard: tuple[str, ...] = ()) -> dict[str, tuple[float | None, str]]:
    """Return values and verdicts for a report with only these results."""
    found = Report("", {}, {result.contestant: {} for result in results}, {}, plan(NORMAL), nonstandard, list(results))
    return {outcome.target: (outcome.value and round(outcome.value, 6), outcome.verdict) for outcome in judge(found)}


def test_targets() -> None:
    """A target is met, missed, or not measured; against a Redis by TCP nothing is claimed."""
    ours = Result("get", "hit", "PgDict unlogged", "rate", (50e-6,))
    redis = Result("get", "hit", "Redis", "rate", (100e-6,))
    found = outcomes(ours, redis, Result("get", "hit", "pgbench", "rate", (25e-6,)))
    assert found["d[k] against redis-py on a unix socket"] == (2, "ok")
    assert found["d[k], latency against pgbench"] == (2, "missed")
    assert found["d[k] = v against redis-py"] == (None, "not measured")
    assert outcomes(ours, redis, nonstandard=("Redis",))["d[k] against redis-py on a unix socket"] == (None, "not measured")


def test_targets_with_units() -> None:
    """Targets that are no proportions are in the unit they name."""
    name = "PgDict unlogged"
    found = outcomes(
        Result("items", "100,000", name, "rate", (2e-6,)),
        Result("memory", "client, 10,000,000", name, "bytes", (65 * 2**20,)),
        Result("first", "all", name, "time", (0.002,)),
        Result("import", "import", name, "time", (0.3,)),
        Result("import", "import", "psycopg", "time", (0.2,)),
    )
    assert found["items()"] == (500, "ok")
    assert found["memory, 10,000,000 loaded and iterated"] == (65, "missed")
    assert found["first item of an iteration"] == (2, "ok")
    assert found["import, above psycopg_pool's"] == (100, "ok")


def test_targets_can_be_measured() -> None:
    """Every target is about something that a run at full length measures, of contestants that there are."""
    cases = {(group.name, case.name) for group in plan(FULL) for case in group.cases}
    for target in TARGETS:
        assert (target.group, target.case) in cases
        if target.against:
            assert target.against[:2] in cases
            assert target.against[2] in {contestant.name for contestant in CONTESTANTS}


def test_json(report: Report) -> None:
    """JSON holds the machine, all contestants, and every round, in units that it explains."""
    found: dict[str, Any] = json.loads(json.dumps(document(report)))
    assert found["format"] == 1
    assert {"cpus", "processor", "python", "postgresql", "server", "connection", "load"} <= found["machine"].keys()
    assert {"server_version", "fsync", "synchronous_commit"} <= found["machine"]["postgresql"].keys()
    assert found["reference"] == "PgDict unlogged"
    assert {result["unit"] for result in found["results"]} <= found["units"].keys()
    for result in found["results"]:
        assert result["group"] in found["groups"]
        assert result["contestant"] in found["contestants"]
        assert min(result["rounds"]) <= result["median"] <= max(result["rounds"])
        assert result["ratio"] is None or result["ratio"] > 0
        if result["unit"] == "rate":
            assert result["operations_per_second"] == pytest.approx(1e6 / result["microseconds"])
    assert {"target", "bound", "value", "verdict"} == found["targets"][0].keys()


@needs_matplotlib
def test_plot(report: Report, tmp_path: Path) -> None:
    """A plot is a real PNG, or an SVG whose words say who did what, on which machine, and what a crash loses."""
    plot.draw(report, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    plot.draw(report, tmp_path / "plot.svg")
    words = " ".join("".join(ElementTree.parse(tmp_path / "plot.svg").getroot().itertext()).split())
    for name in report.contestants:
        assert name in words
    for word in ("d[key] = value", "memoized call, hit", "empties the table", report.machine["python"]):
        assert word in words


# The command ---------------------------------------------------------------------------------------------------------


@needs_matplotlib
def test_command(database: str, tmp_path: Path) -> None:
    """The command prints tables, writes what was asked for, and leaves nothing else behind."""
    temporary, results = tmp_path / "temporary", tmp_path / "results"
    temporary.mkdir()
    results.mkdir()
    options = ("-g", "get", "-g", "increment", "-c", "pgdict", "-c", "redis", "-c", "dict", "--rounds", "1", "--quick")
    files = ("--json", str(results / "r.json"), "--plot", str(results / "r.png"))
    environment = commanded(temporary, database, MPLCONFIGDIR=str(tmp_path))
    done = subprocess.run((*BENCH, *options, *files), env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "d[key]" in done.stdout
    assert sorted(path.name for path in results.iterdir()) == ["r.json", "r.png"]
    assert all(len(result["rounds"]) == 1 for result in json.loads((results / "r.json").read_text())["results"])
    assert list(temporary.iterdir()) == []
    assert tables(database) == []


def test_json_alone(database: str, tmp_path: Path) -> None:
    """`--json -` prints JSON and nothing else."""
    options = ("-g", "in", "-c", "dict", "--quick", "--json", "-")
    done = subprocess.run((*BENCH, *options), env=commanded(tmp_path, database), capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)["groups"] == {"in": "key in d, half of them there"}


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(database: str, tmp_path: Path, ending: signal.Signals) -> None:
    """Ctrl-C in the middle of a run, or SIGTERM, leaves no table, file or process behind."""
    arguments = (*BENCH, "--url", database, "-g", "get", "--full")
    with subprocess.Popen(
        arguments, env=commanded(tmp_path), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as bench:
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob("pgdict-bench-*/shelve/*")) and time.monotonic() < deadline:
            assert bench.poll() is None
            time.sleep(0.05)
        time.sleep(1)  # by now it measures
        assert any(name.startswith("pgdict_bench") for name in tables(database))
        if ending == signal.SIGINT:
            os.killpg(bench.pid, ending)  # as a terminal does
        else:
            bench.send_signal(ending)
        _, complaints = bench.communicate(timeout=30)
    assert bench.returncode == 128 + ending
    assert "Traceback" not in complaints
    assert list(tmp_path.iterdir()) == []
    assert tables(database) == []
    with pytest.raises(ProcessLookupError):
        os.killpg(bench.pid, 0)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("-g", "nothing"), "no group 'nothing'; there are set, get"),
        (("-c", "nobody"), "no contestant 'nobody'; there are PgDict unlogged"),
        (("--quick", "--full"), "--quick or --full, not both"),
        (("--plot", "plot.gif"), "a plot is .pdf, .png, .svg"),
        (("--json", "no/such/directory.json"), "there is no directory 'no/such'"),
    ],
)
def test_refused(options: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    """What cannot be done is said at once in one line, before anything is measured or even connected."""
    environment = commanded(tmp_path, "postgresql://nobody@localhost:1/none")
    done = subprocess.run((*BENCH, *options), env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"pgdict: {reason}")
    assert done.stderr.count("\n") == 1


def test_own_table_stays(d: PgDict[str, Any], server_url: str) -> None:
    """A user's own table is not touched."""
    d["mine"] = 1
    run(server_url, groups=["get", "set"], contestants=["pgdict", "psycopg"], scale=TINY)
    assert d.copy() == {"mine": 1}
    assert not any(key.startswith(PREFIX) for key in d)
