"""How a dictionary looks in notebooks and shells: bounded, escaped, and never the reason of an error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from reprlib import Repr
from typing import Any, Protocol

SHOWN = 10
"""Items that are shown."""

short = Repr()
short.maxstring = short.maxother = short.maxlong = 60
short.maxdict = short.maxlist = short.maxtuple = short.maxset = short.maxfrozenset = 6


class Line(Protocol):
    """One item as it is shown."""

    @property
    def key(self) -> Any:
        """The key."""

    @property
    def value(self) -> Any:
        """The value, or the error of reading it."""

    @property
    def seconds(self) -> float | None:
        """Seconds until it expires."""

    @property
    def size(self) -> int:
        """Bytes of the stored value."""


def brief(value: object) -> str:
    """Return a short text for any value, also for one whose `repr` fails.

    >>> brief("x" * 100)
    "'xxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxxxx'"
    """
    try:
        return short.repr(value)
    except Exception as error:  # noqa: BLE001 - somebody's __repr__
        return f"<{type(value).__name__}: {type(error).__name__}>"


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


_STYLE = "text-align:left;vertical-align:top;padding:.15em .8em .15em 0;font-family:monospace;white-space:pre-wrap"


def html(title: str, subtitle: str, lines: Sequence[Line], more: bool) -> str:
    """Return a table. It sets no colours, so it reads in light and dark themes alike."""
    head = _row("th", ("key", "type", "value", "expires in", "size"))
    body = [_row("td", _cells(line)) for line in lines]
    if more:
        body.append(_row("td", ("…", "", "", "", "")))
    return (
        f"<div><strong>{escape(title)}</strong> <small>{escape(subtitle)}</small>"
        f'<table style="border-collapse:collapse"><thead>{head}</thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def _cells(line: Line) -> tuple[str, ...]:
    kind = "?" if isinstance(line.value, Exception) else type(line.value).__name__
    return brief(line.key), kind, brief(line.value), duration(line.seconds), size(line.size)


def _row(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f'<{tag} style="{_STYLE}">{escape(cell)}</{tag}>' for cell in cells) + "</tr>"


_TYPED = re.compile(r"""\[\s*['"]([^'"]*)$""")


def typed_prefix() -> str:
    """Return how the key begins that is being typed in IPython, `""` when that is not to be found out."""
    try:
        from IPython import get_ipython  # whoever completes keys has it

        match = _TYPED.search(get_ipython().Completer.text_until_cursor)
    except (ImportError, AttributeError, TypeError):
        return ""
    return match[1] if match else ""
