"""How a dictionary looks in notebooks and shells."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgdict import ConfigError, PgDict, PgDictError
from pgdict.display import place
from pgdict.operations.space import Operation, Rows
from pgdict.statements import Statement

pytest.importorskip("IPython", reason="IPython is missing")

from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from IPython.lib.pretty import pretty as untyped_pretty
from traitlets.config import Config

D = PgDict[Any, Any]
pretty: Any = untyped_pretty
MILLION = 1_000_000


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A real IPython, without a history."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    history = Config(HistoryManager={"enabled": False}, TerminalInteractiveShell={"colors": "nocolor"})
    ipython: Any = InteractiveShell.instance(config=history)
    hook = sys.excepthook
    yield ipython
    sys.excepthook = hook
    InteractiveShell.clear_instance()


@pytest.fixture
def unreachable(server_url: str, table: str) -> Iterator[D]:
    """A dictionary whose server has become unreachable."""
    settings = conninfo_to_dict(server_url)
    directory = str(settings["host"])
    if not directory.startswith("/"):
        pytest.skip("the server has no unix socket that a test could take away")
    link = Path(os.environ["PGDICT_TEST_DIRECTORY"], table)
    link.symlink_to(directory)
    settings["host"] = str(link)
    with D(make_conninfo("", **settings), table=table, application_name=table, timeout=0.5) as d:
        d["a"] = 1
        link.unlink()
        with psycopg.connect(server_url) as connection:
            kill = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = %s"
            connection.execute(kill, (table,))
        yield d


def cells(d: D) -> list[list[str]]:
    """Parse what a notebook shows, and return its rows without the head."""
    return [["".join(cell.itertext()) for cell in row] for row in parsed(d).findall(".//tbody/tr")]


def parsed(d: D) -> ElementTree.Element:
    return ElementTree.fromstring(d._repr_html_())


def caption(d: D) -> str:
    small = parsed(d).find("small")
    assert small is not None
    return str(small.text)


# A table ------------------------------------------------------------------------------------------------------------


def test_table(d: D) -> None:
    """Key, type, value, time left and size are shown in the dictionary's order."""
    d["b"] = {"z": 1, "a": [2]}
    d.set("a", 7, ttl=90)
    assert cells(d) == [["'b'", "dict", "{'z': 1, 'a': [2]}", "", "8 B"], ["'a'", "int", "7", "1 min 29 s", "1 B"]]
    assert caption(d).startswith("2 items, ")


@pytest.mark.parametrize(
    ("count", "shown", "text"), [(0, 0, "0 items"), (1, 1, "1 item"), (10, 10, "10 items"), (11, 11, "11 items")]
)
def test_count(d: D, count: int, shown: int, text: str) -> None:
    """Ten items are shown, a line says that there are more, and the caption says how many."""
    d.update((n, n) for n in range(count))
    rows = cells(d)
    assert len(rows) == shown
    assert caption(d).split(", ")[0] == text
    assert [row[0] for row in rows[10:]] == ["…"] * (count > 10)


def test_escaped(d: D) -> None:
    """What looks like HTML is shown as it is, wherever it stands."""
    evil = "<script>alert(1)</script>\"'&\0\x1b\u202e\ud800"
    d.namespace(evil)[evil] = evil
    d["tuple", evil] = [evil, {evil: evil}]
    for shown in (d, d.namespace(evil)):
        html = shown._repr_html_()
        html.encode()
        assert "<script" not in html
        tags = {"div", "strong", "small", "table", "thead", "tbody", "tr", "th", "td"}
        assert {element.tag for element in parsed(shown).iter()} == tags
    assert cells(d.namespace(evil))[0][0].startswith("'<script>")


def test_table_name_escaped(server_url: str) -> None:
    """A table's name is escaped, too."""
    with D(server_url, table="<img src=x onerror=alert(1)>") as d:
        try:
            assert "<img" not in d._repr_html_()
            assert parsed(d).findtext("strong") == "PgDict <img src=x onerror=alert(1)>"
        finally:
            d.drop()


def test_no_colours(d: D) -> None:
    """No colour is set, so that the table is readable in light and dark themes."""
    d["a"] = 1
    assert not {"color", "background", "#"} & set(d._repr_html_().replace('"', ";").replace(":", ";").split(";"))


def test_short(server_url: str, table: str) -> None:
    """Whatever is in it, what is shown stays short: long keys, texts, bytes, and values of values."""
    deep: Any = "x" * 50
    for _ in range(6):
        deep = [deep] * 5
    with D(server_url, table=table) as d:
        d.update({"k" * 1000: "v" * 10**6, "bytes": bytes(10**5), "deep": deep})
        d.update(int=10**900, dict=dict.fromkeys(range(5_000)))
        d.namespace("n" * 900)["a"] = 1
        assert all(len(text) <= 200 for row in cells(d) for text in row)
        assert len(d._repr_html_()) < 12_000
        assert len(repr(d)) < 2_000
        assert len(d.namespace("n" * 900)._repr_html_()) < 3_000


def test_long_values_stay_where_they_are(d: D) -> None:
    """A value that is too long to look at is not fetched: its size is shown."""
    d["long"] = "x" * 5_000_000
    assert cells(d) == [["'long'", "", "too long to show, msgpack", "", "4.8 MB"]]


def test_unreadable(d: D, server_url: str, table: str) -> None:
    """An item that cannot be decoded is shown as such, among the others."""
    d.update(a=1, b=2, c=3)
    with psycopg.connect(server_url) as connection:
        connection.execute(f"UPDATE {table} SET codec = 'msgpack', value = '\\xc1' WHERE key = 'b'".encode())
    first, second, third = cells(d)
    assert (first[2], third[2]) == ("1", "3")
    assert second[:2] == ["'b'", ""]
    assert second[2].startswith("cannot be read: ")
    assert "'a': 1" in repr(d)


def test_expired(d: D) -> None:
    """Expired items are not shown and not counted."""
    d.set("gone", 1, ttl=0.01)
    d["here"] = 2
    time.sleep(0.02)
    assert [row[0] for row in cells(d)] == ["'here'"]
    assert caption(d).startswith("1 item, ")


def test_namespace(d: D) -> None:
    """A namespace shows its own items, and its name."""
    d["other"] = 1
    users = d.namespace("users")
    users["ann"] = 2
    assert [row[0] for row in cells(users)] == ["'ann'"]
    assert str(parsed(users).findtext("strong")).endswith(" users:")
    assert caption(users).startswith("1 item, ")


def test_closed(server_url: str, table: str) -> None:
    """A closed dictionary says so."""
    d = D(server_url, table=table)
    d.close()
    assert caption(d).startswith("closed, ")
    assert "<closed>" in repr(d)
    assert d._ipython_key_completions_() == []


def test_unreachable(unreachable: D) -> None:
    """Where the server is gone, its reason is shown, and nothing raises."""
    with pytest.raises(PgDictError):
        unreachable["a"]
    assert "failed" in caption(unreachable) or "bad" in caption(unreachable)
    assert cells(unreachable) == []
    assert pretty(unreachable)
    assert list(unreachable._ipython_key_completions_()) == []


def test_dropped(d: D) -> None:
    """Where the table is gone, that is shown."""
    d.drop()
    assert "does not exist" in caption(d)


def test_failed_transaction(d: D) -> None:
    """Looking at a dictionary inside a failed transaction shows why nothing can be seen."""
    with suppress(PgDictError), d.transaction():
        with pytest.raises(PgDictError):
            d._session.run(wrong())
        assert "aborted" in caption(d)
        assert "aborted" in repr(d)


def wrong() -> Operation[Rows]:
    return (yield Statement("SELECT 1 / 0", reads=True), ())


def test_relative_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory below the present one is shown as seen from there: no home, no user's name."""
    monkeypatch.chdir("/usr")
    assert (place("/usr/share/x"), place("/var/x"), place("postgresql://u@h/x")) == (
        "./share/x",
        "/var/x",
        "postgresql://u@h/x",
    )


@pytest.mark.slow
def test_million(d: D, server_url: str, table: str) -> None:
    """With a million keys the table and the completions come at once, and the count is an estimate."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        rows = f"SELECT 'k' || n, convert_to(n::text, 'UTF8'), 'int' FROM generate_series(1, {MILLION}) AS n"
        connection.execute(f"INSERT INTO {table} (key, value, codec) {rows}".encode())
        assert caption(d).startswith(("more than 100,000 items", "about "))
        connection.execute(f"ANALYZE {table}".encode())
    assert len(cells(d)) == 11
    about = int(caption(d).removeprefix("about ").split()[0].replace(",", ""))
    assert abs(about - MILLION) < MILLION / 20
    for look in (d._repr_html_, d.__repr__, d._ipython_key_completions_):
        assert min(lasts(look) for _ in range(3)) < 0.5


def lasts(work: Callable[[], object]) -> float:
    """Return how many seconds something takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


# IPython ------------------------------------------------------------------------------------------------------------


def test_formats(shell: Any, d: D) -> None:
    """IPython gets HTML for a notebook and text for a terminal, which is the `repr`."""
    d["a"] = [1]
    data, _ = shell.display_formatter.format(d)
    assert data == {"text/plain": repr(d), "text/html": d._repr_html_()}
    assert pretty([d]) == f"[{d!r}]"


def completed(shell: Any, line: str) -> list[str]:
    """Return what a Tab at the end of the line offers."""
    with provisionalcompleter():
        return [completion.text for completion in shell.Completer.completions(line, len(line))]


def test_completions(shell: Any, d: D) -> None:
    """Tab completes keys, with either quote, in any expression, also in a namespace and where there are many others."""
    d.update((f"a{n}", n) for n in range(1_000))
    d.update({"user:ann": 1, "user:bob": 2, "it's": 3, 'a "b"': 4})
    d.namespace("users").update(ann=1, eve=2)
    shell.push({"d": d, "users": d.namespace("users")})
    assert sorted(completed(shell, "d['user:")) == ["ann", "bob"]
    assert sorted(completed(shell, 'x = 1 + d["user:')) == ["ann", "bob"]
    assert [text.strip("'\"]") for text in completed(shell, 'users["')] == ["ann", "eve"]
    assert completed(shell, 'users["e') == ["eve"]
    assert any("it" in text for text in completed(shell, 'd["it'))
    assert completed(shell, "d['it\\'")
    assert completed(shell, 'd["nothing') == []


def test_completions_are_bounded(shell: Any, d: D) -> None:
    """Of very many keys a Tab offers some, and it finds each once its beginning is typed."""
    d.update((f"key{n:05}", n) for n in range(5_000))
    shell.push({"d": d})
    assert 10 <= len(completed(shell, "d['k")) <= 200
    assert len(completed(shell, "d['key0412")) == 10


def test_completions_of_other_keys(shell: Any, d: D) -> None:
    """Keys that are no ordinary text do not keep others from being completed."""
    d.update({1: 1, 1.5: 1, b"\xff": 1, None: 1, ("a", 1): 1, "\0": 1, "\ud800": 1, "\x01": 1, "line\nbreak": 1, "plain": 1})
    shell.push({"d": d})
    assert completed(shell, "d['pl") == ["plain"]
    assert "1" in completed(shell, "d[")
    assert completed(shell, "d['\\n") is not None


def test_completions_beside_unreadable_keys(shell: Any, d: D, server_url: str, table: str) -> None:
    """A key that cannot be read is left out."""
    d["\x01a"] = d["b"] = 1
    with psycopg.connect(server_url) as connection:
        connection.execute(f"UPDATE {table} SET key = E'\\x01?' WHERE key <> 'b'".encode())
    shell.push({"d": d})
    assert [text.strip("'") for text in completed(shell, "d[")] == ["b"]


def test_magic(shell: Any, server_url: str, d: D) -> None:
    """`%pgdict URL as name` binds a dictionary and returns it; the location may be a variable, the name is `d` by default."""
    shell.run_line_magic("load_ext", "pgdict")
    shell.push({"url": server_url})
    for line, name in ((f"{server_url} as users", "users"), ("$url", "d"), (f"'{server_url}' as x", "x")):
        found = shell.run_cell(f"%pgdict {line}").result
        with found:
            assert shell.user_ns[name] is found
            assert isinstance(found, PgDict)
            assert found.url == d.url


def test_magic_without_location(shell: Any, server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a location it is the one of `PgDict()`."""
    monkeypatch.setenv("PGDICT_URL", server_url)
    shell.run_line_magic("load_ext", "pgdict")
    with shell.run_line_magic("pgdict", "as here") as found:
        assert shell.user_ns["here"] is found


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("./x as 1d", "'1d' is no name of a variable"),
        ("./x as class", "'class' is no name of a variable"),
        ("postgresql://u:secret@127.0.0.1:1/x", "Connection refused"),
    ],
)
def test_magic_refuses(shell: Any, line: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be is said in one line, without a traceback or a password, and binds nothing."""
    shell.run_line_magic("load_ext", "pgdict")
    shell.run_cell(f"%pgdict {line}")
    said = capsys.readouterr().err
    assert said.startswith("UsageError: %pgdict: ")
    assert reason in said
    assert "secret" not in said
    assert "d" not in shell.user_ns


# Progress -----------------------------------------------------------------------------------------------------------


def test_progress(d: D, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Long calls show a bar in a terminal: with the end in sight where the number is known."""
    d.set_many({n: n for n in range(1_000)}, progress=True)
    assert "100%" in capsys.readouterr().err
    d.set_many(((n, n) for n in range(1_000)), progress=True)
    assert "1000 items" in capsys.readouterr().err
    assert d.dump(tmp_path / "dump", progress=True) == 1_000
    assert "1000/1000" in capsys.readouterr().err
    assert d.load(tmp_path / "dump", progress=True) == 1_000
    assert "1000 items" in capsys.readouterr().err


def test_no_progress_unless_asked(d: D, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is printed by a call that was not asked to."""
    d.set_many({1: 1})
    assert capsys.readouterr() == ("", "")


def test_progress_without_tqdm(d: D, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without tqdm, asking for a bar says how to get it, before anything is stored."""
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ConfigError, match="progress=True needs tqdm"):
        d.set_many({1: 1}, progress=True)
    assert not d


def test_progress_in_a_notebook(server_url: str, table: str) -> None:
    """In a notebook there is a bar and no warning, whether or not ipywidgets are installed."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    opening = f"from pgdict import PgDict\nd = PgDict({server_url!r}, table={table!r})"
    code = f"{opening}\nd.set_many(((n, n) for n in range(9)), progress=True)"
    with warnings.catch_warnings(action="ignore"):  # of the packages that run notebooks
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
        nbclient.NotebookClient(notebook, kernel_name="python3", timeout=60).execute()
    said = str(notebook.cells[0].outputs)
    assert "items" in said
    assert "Warning" not in said
