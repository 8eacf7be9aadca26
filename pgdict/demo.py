"""A tour on real data: Python's own sources, indexed by several processes in one dictionary."""

from __future__ import annotations

import ast
import inspect
import multiprocessing
import os
import reprlib
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import psycopg
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.syntax import Syntax
from rich.table import Table

from pgdict.dictionary import PgDict
from pgdict.errors import ConfigError
from pgdict.server import locate, mask

TABLE = "pgdict_demo"
FILES = 120
WORKERS = 4

Index = PgDict[str, Any]

STEPS = {
    "It is a dict": ("len(uses)", "uses['self']", "'no_such_name' in uses", "max(uses.items(), key=lambda item: item[1])"),
    "All processes counted at once, and nothing was lost": ("sum(uses.values()) == counted", "defined['__init__']"),
    "Keys can be read in their order": ("list(uses.scan_keys('read', limit=4))",),
    "Operations are atomic": ("uses.increment('self')", "d.set_nx('winner', 'me'), d.set_nx('winner', 'you')"),
    "Entries can expire": ("d.set('note', 'back soon', ttl=0.5)", "d['note'], d.ttl('note')", "time.sleep(0.5)", "'note' in d"),
}

SQL = f"""\
SELECT substr(key, 6) AS name, convert_from(value, 'UTF8')::bigint AS uses
FROM {TABLE} WHERE key LIKE 'uses:%' ORDER BY uses DESC LIMIT 5"""

_short = reprlib.Repr()
_short.maxlist = _short.maxtuple = 5
_short.maxstring = 60


def command(
    url: Annotated[str | None, typer.Option(metavar="URL|DIRECTORY", help="Where, as for PgDict.", show_default=False)] = None,
    files: Annotated[int, typer.Option(min=1, help="How many source files to index.")] = FILES,
    workers: Annotated[int, typer.Option(min=1, max=64, help="How many processes share the work.")] = WORKERS,
    remove: Annotated[bool, typer.Option("--remove", help="Only drop the table that an earlier demo left.")] = False,
) -> None:
    """Index Python's own sources with several processes in one dictionary."""
    if remove:
        drop(url)
    else:
        run(url, files, workers)


def index(d: Index) -> int:
    """Index files until none is left; return how many names it saw."""
    uses, defined = d.namespace("uses"), d.namespace("defined")
    counted = 0
    for module, file in taken(d.namespace("todo")):
        names, definitions = parsed(file)
        for name, times in names.items():
            uses.increment(name, times)
        for name in definitions:
            with defined.mutate(name, default=list) as modules:
                modules.value.append(module)
        counted += names.total()
    return counted


def taken(todo: Index) -> Iterator[tuple[str, Any]]:
    """Take the oldest items; each goes to one process."""
    with suppress(KeyError):
        while True:
            yield todo.popitem(last=False)


def parsed(file: str) -> tuple[Counter[str], set[str]]:
    """Return how often each name is used in a source file, and the names of its functions and classes."""
    names: Counter[str] = Counter()
    definitions = set()
    with warnings.catch_warnings(action="ignore"):
        nodes = ast.walk(ast.parse(Path(file).read_bytes()))
    for node in nodes:
        if isinstance(node, ast.Name):
            names[node.id] += 1
        elif isinstance(node, ast.Attribute):
            names[node.attr] += 1
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            definitions.add(node.name)
    return names, definitions


def sources(count: int) -> dict[str, str]:
    """Return modules of the standard library and their files, those outside packages first."""
    library = Path(sysconfig.get_path("stdlib"))
    files = sorted(library.glob("*.py")) + sorted(library.glob("[a-z]*/*.py"))
    modules = {".".join(file.relative_to(library).with_suffix("").parts): str(file) for file in files}
    if not modules:
        raise ConfigError(f"there are no sources of Python in {library} to index")
    return dict(list(modules.items())[:count])


def run(location: str | None, files: int, workers: int) -> None:
    """Give the tour."""
    console = Console(highlight=False)
    where = locate(location)
    begin = time.perf_counter()
    with Index(where, table=TABLE) as d:
        try:
            _say(console, "A dictionary in PostgreSQL")
            _code(console, f">>> d = {_call(location, mask)}")
            shown = f"embedded PostgreSQL in {where}" if isinstance(where, Path) else mask(where)
            console.print(f"{shown}, open after {time.perf_counter() - begin:.1f} s", soft_wrap=True)
            counted = _index_all(d, sources(files), workers, console)
            _tour(d, counted, console)
        except KeyboardInterrupt:
            d.drop()
            raise
    _look_again(location, console)


def drop(location: str | None) -> None:
    """Drop the table that a tour left."""
    with Index(locate(location), table=TABLE) as d:
        d.drop()


def _index_all(d: Index, modules: dict[str, str], workers: int, console: Console) -> int:
    todo = d.namespace("todo")
    d.clear()
    todo.update(modules)
    _say(console, f"{workers} processes run this function on {len(modules)} files of Python's own sources")
    _code(console, inspect.getsource(index).rstrip())
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as processes:
        with _unheard(signal.SIGINT):
            indexing = [processes.submit(index, d) for _ in range(workers)]
        try:
            columns = (TextColumn("files"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            with Progress(*columns, console=console) as progress:
                task = progress.add_task("", total=len(modules))
                while wait(indexing, timeout=0.1).not_done:
                    progress.update(task, completed=len(modules) - len(todo))
                progress.update(task, completed=len(modules) - len(todo))
        except BaseException:
            todo.clear()  # so that the processes come to an end
            raise
        return sum(done.result() for done in indexing)


@contextmanager
def _unheard(interrupt: signal.Signals) -> Iterator[None]:
    """Let processes begin that do not hear Ctrl-C, which is their parent's to handle."""
    before = signal.signal(interrupt, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(interrupt, before)


def _tour(d: Index, counted: int, console: Console) -> None:
    names = {"d": d, "uses": d.namespace("uses"), "defined": d.namespace("defined"), "counted": counted, "time": time}
    for title, lines in STEPS.items():
        _say(console, title)
        for line in lines:
            _code(console, f">>> {line}")
            value = eval(line, names)
            if value is not None:
                console.print(_short.repr(value), markup=False)
    _say(console, "It is a table, for SQL")
    _code(console, SQL, "sql")
    with psycopg.connect(d.url) as connection:
        cursor = connection.execute(SQL.encode())
        table = Table(*(column.name for column in cursor.description or ()))
        for row in cursor:
            table.add_row(*map(str, row))
    console.print(table)


def _look_again(location: str | None, console: Console) -> None:
    _say(console, "It is shared and kept: a new process finds it, now that this one has left")
    command = "from pgdict import PgDict; print({}['uses:self'])"
    found = subprocess.run(
        [sys.executable, "-c", command.format(_call(location))], check=True, stdout=subprocess.PIPE, text=True
    )
    _shell(console, "-c", _quoted(command.format(_call(location, mask))))
    console.print(found.stdout.rstrip(), markup=False)
    _say(console, "Look at all of it with SQL, or remove it")
    query = f"psycopg.connect(d.url).execute('SELECT key, codec FROM {TABLE} LIMIT 5')"
    program = f"import psycopg; from pgdict import PgDict; d = {_call(location, mask)}; print(*{query})"
    _shell(console, "-c", _quoted(program))
    _shell(console, "-m pgdict demo --remove", "" if location is None else f"--url {_quoted(mask(location))}")


def _call(location: str | None, shown: Callable[[str], str] = str) -> str:
    return f"PgDict({'' if location is None else repr(shown(location)) + ', '}table={TABLE!r})"


def _say(console: Console, title: str) -> None:
    console.print(f"\n[bold]{title}[/bold]")


def _code(console: Console, code: str, language: str = "python") -> None:
    console.print(Syntax(code, language, theme="ansi_dark", background_color="default", word_wrap=True))


def _quoted(word: str) -> str:
    return shlex.quote(word) if set(word) & set('"$`\\!') else f'"{word}"'


def _shell(console: Console, *arguments: str) -> None:
    """Show a command of Python on one line, however narrow the terminal, so that it can be copied."""
    python = shlex.quote(sys.executable.removeprefix(f"{Path.cwd()}{os.sep}"))
    console.print("$", python, *arguments, style="cyan", markup=False, soft_wrap=True)
