"""How a dictionary looks in notebooks and shells: bounded, escaped, and never the reason of an error."""

from __future__ import annotations

import operator
import os
import re
from ast import literal_eval
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from reprlib import Repr
from typing import Any, TypeVar

from pgdict.errors import ConfigError, DecodeError, PgDictError
from pgdict.operations.whole import Glimpse, Long

T = TypeVar("T")

SHOWN = 10
"""Items that are shown."""
_LONGEST, _LONGEST_TITLE = 100, 200


class _Short(Repr):
    """Shortens, and leaves dicts in their order, where `Repr` sorts them."""

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        if level <= 0 < len(x):
            return "{...}"
        shown = islice(x.items(), self.maxdict)
        pairs = [f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}" for key, value in shown]
        return "{" + ", ".join(pairs + ["..."] * (len(x) > self.maxdict)) + "}"


_short = _Short()
_short.maxlevel = 3
_short.maxstring = _short.maxlong = 60
_short.maxother = 80
_short.maxdict = _short.maxlist = _short.maxtuple = _short.maxset = _short.maxfrozenset = 6


def brief(value: object) -> str:
    """Return a short text for any value, also for one whose `repr` fails.

    >>> brief("x" * 100)
    "'xxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxxxx'"
    >>> brief({"b": 1, "a": [[[[2]]]]})
    "{'b': 1, 'a': [[[...]]]}"
    """
    try:
        return _cut(_short.repr(value), _LONGEST)
    except Exception as error:  # noqa: BLE001 - somebody's __repr__
        return f"<{type(value).__name__}: {type(error).__name__}>"


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def place(name: str) -> str:
    """Return where the data is, as somebody says it who is in the present directory."""
    try:
        return f"{os.curdir}{os.sep}{Path(name).relative_to(Path.cwd())}"
    except (OSError, ValueError):
        return name


def number_of_items(counted: int, estimated: int | None) -> str:
    """Return a number of items as people say it.

    >>> number_of_items(1, None), number_of_items(100_000, 1_234_567), number_of_items(100_000, 0)
    ('1 item', 'about 1,234,567 items', 'more than 100,000 items')
    """
    if estimated is None:
        return f"{counted:,} item{'s' * (counted != 1)}"
    return f"about {estimated:,} items" if estimated > counted else f"more than {counted:,} items"


def duration(seconds: float | None) -> str:
    """Return a time span as people say it.

    >>> duration(None), duration(0.25), duration(75), duration(90_000)
    ('', '0.2 s', '1 min 15 s', '1 d 1 h')
    """
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    for name, unit, part, smaller in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= unit:
            whole, rest = divmod(int(seconds), unit)
            return f"{whole} {name} {rest // smaller} {part}"
    raise AssertionError(seconds)


def size(count: int) -> str:
    """Return a number of bytes as people say it.

    >>> size(12), size(2_048), size(5 * 2**20)
    ('12 B', '2.0 KB', '5.0 MB')
    """
    number = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if number < 1024 or unit == "GB":
            break
        number /= 1024
    return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"


_STYLE = "text-align:left;vertical-align:top;padding:.15em .8em .15em 0;font-family:monospace;white-space:"
_WRAPPED = ("pre-wrap", "pre", "pre-wrap", "pre", "pre")


def html(title: str, subtitle: str, lines: Sequence[Glimpse] = (), *, more: bool = False) -> str:
    """Return a table. It sets no colours, so it reads in light and dark themes alike."""
    rows = [_row("td", _cells(line)) for line in lines] + [_row("td", ("…", "", "", "", ""))] * more
    table = ""
    if rows:
        head = _row("th", ("key", "type", "value", "expires in", "size"))
        table = f'<table style="border-collapse:collapse"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'
    return f"<div><strong>{_text(title)}</strong> <small>{_text(subtitle)}</small>{table}</div>"


def _cells(line: Glimpse) -> tuple[str, ...]:
    kind, value = type(line.value).__name__, brief(line.value)
    if isinstance(line.value, DecodeError):
        kind, value = "", f"cannot be read: {line.value}"
    elif isinstance(line.value, Long):
        kind, value = "", f"too long to show, {line.value.codec}"
    return brief(line.key), kind, value, duration(line.seconds), size(line.size)


def _row(tag: str, cells: Iterable[str]) -> str:
    styled = zip(_WRAPPED, cells, strict=True)
    return "<tr>" + "".join(f'<{tag} style="{_STYLE}{wrapped}">{_text(cell)}</{tag}>' for wrapped, cell in styled) + "</tr>"


def _text(text: str) -> str:
    """Return any text as HTML: bounded, and without the surrogates and controls that it cannot hold."""
    shown = (letter if letter.isprintable() else ascii(letter)[1:-1] for letter in _cut(text, _LONGEST_TITLE))
    return escape("".join(shown))


_TYPED = re.compile(r"""\[\s*((['"])(?:\\.|(?!\2|\\).)*)$""")


def typed_prefix() -> str:
    """Return how the key begins that is being typed in IPython, `""` when that is not to be found out."""
    try:
        from IPython import get_ipython  # whoever completes keys has it

        match = _TYPED.search(get_ipython().Completer.text_until_cursor)
        return str(literal_eval(match[1] + match[2])) if match else ""
    except (ImportError, AttributeError, TypeError, ValueError, SyntaxError):
        return ""


def readable(keys: Iterator[T]) -> Iterator[T]:
    """Yield those keys that can be read, until the end or a failure."""
    while True:
        try:
            yield next(keys)
        except DecodeError:
            continue
        except (PgDictError, StopIteration):
            return


def with_progress(items: Iterable[T], counted: object) -> Iterable[T]:
    """Show a progress bar while iterating, as long as `counted`: a widget in a notebook with widgets, else a line of text."""
    try:
        tqdm = import_module("tqdm.auto" if find_spec("ipywidgets") else "tqdm").tqdm  # auto warns where they are missing
    except ImportError:
        raise ConfigError("progress=True needs tqdm: pip install '.[progress]'") from None
    bar: Iterable[T] = tqdm(items, total=operator.length_hint(counted) or None, unit=" items")
    return bar
