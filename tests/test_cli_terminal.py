"""The command in a real terminal: prompts, tables, progress bars, completion."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import psycopg
import pytest

from pgdict import PgDict

PGDICT = f"{shlex.quote(sys.executable)} -m pgdict"
WITHOUT_IPYTHON = "import sys; sys.modules['IPython'] = None; from pgdict.__main__ import main; main()"

Terminal = Any
Opened = Callable[..., Terminal]


@pytest.fixture
def terminal(server_url: str, table: str, tmp_path: Path) -> Iterator[Opened]:
    """Run a command in a terminal of 80 columns, on the table of the test, with a home of its own."""
    opened = []
    clean = {
        name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "PYTHONSTARTUP")
    }

    def open_terminal(command: str, columns: int = 80) -> Terminal:
        environment = clean | {"PGDICT_URL": server_url, "HOME": str(tmp_path), "IPYTHONDIR": str(tmp_path), "TERM": "xterm"}
        new = pexpect.spawn("bash", ["-c", command], env=environment, encoding="utf-8", dimensions=(30, columns), timeout=30)
        opened.append(new)
        return new

    yield open_terminal
    for each in opened:
        each.close(force=True)


def plain(text: str) -> str:
    """Return what a terminal shows, without the codes that draw it."""
    return re.sub(r"\x1b(\[[\d;?]*[ -/]*[@-~]|[=>]|\][^\x07]*\x07)", "", text).replace("\r\n", "\n")


def end(running: Terminal) -> tuple[str, int | None]:
    """Return the rest of what a command prints, and its exit status."""
    running.expect(pexpect.EOF)
    running.close()
    return plain(running.before), running.exitstatus


def test_shell(terminal: Opened, d: PgDict[Any, Any], table: str) -> None:
    """`shell` is IPython with `d` open, after two lines of greeting; Tab completes keys, and Ctrl-D ends it."""
    d["usable"] = 1
    shell = terminal(f"{PGDICT} --table {table} shell", columns=200)
    shell.expect(r"pgdict [^\r\n]*\r\n[^\r\n]*Ctrl-D[^\r\n]*\r\n")
    assert f"table='{table}'" in plain(shell.after)
    shell.expect("In ")
    assert plain(shell.before).strip() == ""
    shell.send("d['answer'] = 6 * 7; d['answer'], PgDict.__name__, pgdict.__name__\r")
    shell.expect(re.escape("(42, 'PgDict', 'pgdict')"))
    shell.expect("In ")
    shell.send("d['usa\t")
    shell.expect("usable")
    shell.send("\x15\x04")
    assert end(shell)[1] == 0
    assert d["answer"] == 42


def test_shell_without_ipython(terminal: Opened, d: PgDict[Any, Any], table: str) -> None:
    """Where IPython is missing, `shell` is Python's own prompt, with its history and completion."""
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(WITHOUT_IPYTHON)} --table {table} shell"
    for number in (1, 2):
        shell = terminal(command, columns=200)
        shell.expect(r"pgdict [^\r\n]*\r\n[^\r\n]*Ctrl-D[^\r\n]*\r\n>>> ")
        if number == 1:
            shell.send("d['answer'] = 6 * 7\rd['answ' + 'er']\r")
            shell.expect("42\r\n")
            shell.send("d.move_to_e\t'answer')\r")
            shell.expect(re.escape("move_to_end("))
        else:
            shell.send("\x1b[A\x1b[A\r")  # two lines up
            shell.expect("42\r\n")
        shell.expect(">>> ")
        shell.send("\x04")
        assert end(shell)[1] == 0
    assert d["answer"] == 42


def test_progress(terminal: Opened, d: PgDict[Any, Any], table: str, tmp_path: Path) -> None:
    """On a terminal `dump` and `load` show a bar, on standard error alone."""
    d.update(dict.fromkeys(range(1234), "x"))
    for command in ("dump", "load"):
        running = terminal(f"{PGDICT} {command} {tmp_path}/dump.jsonl --table {table} > {tmp_path}/out")
        shown, status = end(running)
        assert "1234" in shown
        assert "items/s" in shown
        assert status == 0
        assert (tmp_path / "out").read_text() == "1234\n"
        shown, status = end(terminal(f"{PGDICT} {command} {tmp_path}/dump.jsonl --table {table} 2> {tmp_path}/err"))
        assert (shown, status) == ("1,234\n", 0)
        assert (tmp_path / "err").read_text() == ""


def test_scan_is_a_table(terminal: Opened, d: PgDict[Any, Any], table: str) -> None:
    """On a terminal `scan` is a table, each item in one line, that sends no codes of values to the terminal."""
    d.update({"short": 1, "a" * 200: "b" * 2000, "evil\x1b[31m": "\x1b]0;title\x07\r\n[bold]", "ü": {"a": [1]}})
    running = terminal(f"{PGDICT} scan --table {table}", columns=60)
    running.expect(pexpect.EOF)
    assert "\x1b[31m" not in running.before
    assert "title\x07" not in running.before
    head, *lines = (line.rstrip() for line in plain(running.before).splitlines())
    assert head.split() == ["key", "value"]
    assert len(lines) == 4
    assert all(len(line) <= 60 for line in lines)
    assert "[bold]" in running.before
    assert "…" in lines[0]
    assert lines[-1].split(maxsplit=1) == ["ü", '{"a": [1]}']


def test_bytes_are_not_sent_to_a_terminal(terminal: Opened, d: PgDict[Any, Any], table: str) -> None:
    """On a terminal bytes are shown as Python writes them, and numbers with commas."""
    d.update(data=b"\x00\x1b[31m", number=1234567)
    assert end(terminal(f"{PGDICT} get data --table {table}")) == ("b'\\x00\\x1b[31m'\n", 0)
    assert end(terminal(f"{PGDICT} incr number --table {table}")) == ("1,234,568\n", 0)
    assert end(terminal(f"{PGDICT} incr number --table {table} --json")) == ("1234569\n", 0)


def test_interrupt(terminal: Opened, server_url: str, table: str) -> None:
    """Ctrl-C while standard input is awaited ends the command without a word, and stores nothing."""
    running = terminal(f"{PGDICT} set key - --table {table}; echo status $?")
    running.send("never stored\r")
    running.expect("never stored\r\n")
    with psycopg.connect(server_url, autocommit=True) as connection:
        until = time.monotonic() + 20
        while connection.execute("SELECT to_regclass(%s)", [table]).fetchone() == (None,):  # which it makes before it reads
            assert time.monotonic() < until
    time.sleep(0.2)  # for it to read
    running.sendintr()
    running.expect("status 130")
    assert plain(running.before).strip() in ("", "^C")
    with PgDict[str, str](server_url, table=table) as d:
        assert not d


def test_completion_of_bash(terminal: Opened, tmp_path: Path) -> None:
    """What `--show-completion` prints lets bash complete commands and options."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pgdict").write_text(f'#!/bin/sh\nexec {PGDICT} "$@"\n')
    (tmp_path / "bin" / "pgdict").chmod(0o755)
    bash = terminal(f"export PATH={shlex.quote(str(tmp_path))}/bin:$PATH; exec bash --norc --noprofile -i")
    bash.sendline("PS1='READ''Y> '")
    bash.expect("READY> ")
    bash.sendline('eval "$(pgdict --show-completion)"; complete -p pgdict')
    bash.expect("complete -o default -F _pgdict_completion pgdict")
    bash.expect("READY> ")
    bash.send("pgdict cle\t")
    bash.expect("pgdict cleanup ")
    bash.send("--lim\t")
    bash.expect("--limit ")
