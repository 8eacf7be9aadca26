"""Commands for many items."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from pgdict import ABSENT, DecodeError, PgDict
from pgdict.cli.program import DATA, Failure, Json, command
from pgdict.cli.text import KeyJson, as_fields, in_line, key_as_json, read_key, write, write_json, write_number

D = PgDict[Any, Any]

Prefix = Annotated[
    str, typer.Option("--prefix", "-p", metavar="TEXT", help="Only keys that begin with this.", show_default=False)
]
Limit = Annotated[int | None, typer.Option(min=0, metavar="N", help="The most that are printed.", show_default=False)]
After = Annotated[str | None, typer.Option(metavar="KEY", help="Begin behind this key.", show_default=False)]
Reverse = Annotated[bool, typer.Option("--reverse", help="From the last key down.")]


@command("keys", "pgdict keys", "pgdict keys --prefix user: --limit 10", "pgdict keys --json --after user:17 | jq -r .")
def keys(
    d: D,
    prefix: Prefix = "",
    limit: Limit = None,
    after: After = None,
    reverse: Reverse = False,
    key_json: KeyJson = False,
    json: Json = False,
) -> None:
    """Print keys in their order.

    Each is in a line of its own. Only --json tells 5 from "5", and shows every character.
    """
    for key in d.scan_keys(prefix, limit=limit, after=_place(after, key_json), reverse=reverse):
        write_json(key_as_json(key)) if json else write(in_line(key))


@command(
    "scan",
    "pgdict scan --prefix user: --limit 10",
    "pgdict scan --json | jq -r 'select(.value.age > 40) | .key'",
    """pgdict scan --key-json --after '["rate", "ann"]' --reverse""",
)
def scan(
    d: D,
    prefix: Prefix = "",
    limit: Limit = None,
    after: After = None,
    reverse: Reverse = False,
    key_json: KeyJson = False,
    json: Json = False,
) -> None:
    """Print keys and values, in the order of keys.

    They are a table on a terminal, and else have a tab between them. With --json each line is
    {"key": ..., "value": ...}. What JSON cannot hold has, in place of "value",
    its "base64" when it is bytes, or "repr", as Python writes it; what cannot
    be read has "error".
    """
    items = _Readable(d.scan(prefix, limit=limit, after=_place(after, key_json), reverse=reverse))
    if json:
        for key, value in items:
            write_json({"key": key_as_json(key), **as_fields(value)})
    elif sys.stdout.isatty():
        from pgdict.cli import show

        show.pairs(items)
    else:
        for key, value in items:
            write(f"{in_line(key)}\t{in_line(value)}")
    if items.unreadable:
        raise Failure(DATA, f"{items.unreadable} of the values cannot be read")


def _place(after: str | None, key_json: bool) -> Any:
    return ABSENT if after is None else read_key(after, key_json)


class _Readable(Iterator[tuple[Any, Any]]):
    """Pairs, with the error as the value of those that cannot be read."""

    def __init__(self, pairs: Iterator[tuple[Any, Any]]) -> None:
        self._pairs = pairs
        self.unreadable = 0

    def __next__(self) -> tuple[Any, Any]:
        try:
            return next(self._pairs)
        except DecodeError as error:
            self.unreadable += 1
            return error.key, error


@command("count", "pgdict count", "pgdict count --prefix user:")
def count(d: D, prefix: Prefix = "", json: Json = False) -> None:
    """Print how many keys there are."""
    write_number(d.count(prefix), json)


@command("cleanup", "pgdict cleanup", "pgdict cleanup --limit 10000")
def cleanup(d: D, limit: Limit = None, json: Json = False) -> None:
    """Delete expired rows, and print how many.

    Nobody sees them any more, whether they are deleted or not.
    """
    write_number(d.cleanup_expired(limit), json)


@command("dump", "pgdict dump backup.jsonl", "pgdict dump backup.msgpack --namespace users")
def dump(d: D, file: Annotated[Path, typer.Argument(metavar="FILE")], json: Json = False) -> None:
    """Write all items to a file, and print how many.

    With their expiry, as of one moment. The file is JSON lines, or msgpack when its name ends in .msgpack.
    """
    sys.set_int_max_str_digits(sys.int_info.default_max_str_digits)  # the file is for Python, too
    write_number(d.dump(file, progress=sys.stderr.isatty()), json)


@command("load", "pgdict load backup.jsonl", "pgdict load backup.msgpack --table copy --durability sync", create=True)
def load(d: D, file: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False)], json: Json = False) -> None:
    """Store what dump wrote, and print how many items it was.

    It goes over what is here, all or nothing.
    """
    write_number(d.load(file, progress=sys.stderr.isatty()), json)
