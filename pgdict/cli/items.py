"""Commands for one item, or a few."""

from __future__ import annotations

import sys
from contextlib import suppress
from math import isfinite
from typing import Annotated, Any

import typer

from pgdict import PgDict
from pgdict.cli.program import ABSENT, DATA, USAGE, Failure, Json, asking, command
from pgdict.cli.text import (
    Key,
    KeyJson,
    as_fields,
    exact,
    in_line,
    key_as_json,
    read_key,
    read_value,
    write,
    write_json,
    write_number,
)
from pgdict.display import brief, size

D = PgDict[Any, Any]

Keys = Annotated[list[str], typer.Argument(metavar="KEY", help="The keys.", show_default=False)]
Ttl = Annotated[float | None, typer.Option(metavar="SECONDS", help="When it expires; never, unless given.", show_default=False)]


def absent(key: Any) -> Failure:
    """Return what is raised when there is no such key."""
    return Failure(ABSENT, f"no key {key!r}")


@command("get", "pgdict get greeting", "pgdict get --json ann | jq .age", "pgdict get photo > photo.png")
def get(d: D, key: Key, key_json: KeyJson = False, json: Json = False) -> None:
    """Print a value.

    A str is printed as it is, bytes are raw, anything else is JSON.
    What JSON cannot hold is printed as Python writes it; with --json it is an error.
    """
    name = read_key(key, key_json)
    try:
        value = d[name]
    except KeyError:
        raise absent(name) from None
    if json:
        write_json(exact(name, value))
    elif isinstance(value, bytes) and not sys.stdout.isatty():
        sys.stdout.buffer.write(value)
    else:
        write(value if isinstance(value, str) else in_line(value))


@command(
    "set",
    "pgdict set greeting hello",
    "pgdict set token s3cret --ttl 60",
    """pgdict set --json ann '{"age": 41, "mail": null}'""",
    "pgdict set photo - --codec bytes < photo.png",
    "pgdict set leader $HOSTNAME --nx --ttl 10 && echo elected",
    create=True,
)
def set_(
    d: D,
    key: Key,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="Text; - is standard input.")],
    json: Annotated[bool, typer.Option("--json", help="VALUE is JSON: a number, null, true, a list, an object, ...")] = False,
    nx: Annotated[bool, typer.Option("--nx", help="Only if the key is absent.")] = False,
    ttl: Ttl = None,
    key_json: KeyJson = False,
    codec: str = "",
) -> None:
    """Store a value. Prints nothing."""
    name, given = read_key(key, key_json), read_value(value, json, codec)
    with asking():
        if not nx:
            d.set(name, given, ttl=ttl)
        elif not d.set_nx(name, given, ttl=ttl):
            raise Failure(ABSENT, f"key {name!r} is there already")


@command("del", "pgdict del greeting", "pgdict del a b c")
def del_(d: D, keys: Keys, key_json: KeyJson = False, json: Json = False) -> None:
    """Remove keys, and print how many were there."""
    names = [read_key(key, key_json) for key in keys]
    count = d.delete_many(names)
    write_number(count, json)
    if not count:
        raise absent(names[0]) if len(names) == 1 else Failure(ABSENT, "none of the keys is there")


@command("ttl", "pgdict ttl token")
def ttl_(d: D, key: Key, key_json: KeyJson = False, json: Json = False) -> None:
    """Print the seconds that a key has left, or never."""
    name = read_key(key, key_json)
    try:
        left = d.ttl(name)
    except KeyError:
        raise absent(name) from None
    write("never" if left is None and not json else "null" if left is None else f"{left:.3f}")


@command("expire", "pgdict expire token 3600")
def expire(
    d: D,
    key: Key,
    ttl: Annotated[float, typer.Argument(metavar="SECONDS", help="When it expires.")],
    key_json: KeyJson = False,
) -> None:
    """Let a key expire. Prints nothing."""
    name = read_key(key, key_json)
    with asking():
        if not d.expire(name, ttl):
            raise absent(name)


@command("persist", "pgdict persist token")
def persist(d: D, key: Key, key_json: KeyJson = False) -> None:
    """Let a key no longer expire. Prints nothing."""
    name = read_key(key, key_json)
    if not d.persist(name):
        raise Failure(ABSENT, f"no key {name!r} that expires")


@command(
    "incr",
    "pgdict incr visits",
    "pgdict incr stock -5",
    "pgdict incr calls:ann --ttl 60",
    create=True,
)
def incr(
    d: D,
    key: Key,
    by: Annotated[str, typer.Argument(metavar="BY", help="What to add: an int or a float.", show_default=False)] = "1",
    ttl: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Counts only when this starts a new number.", show_default=False),
    ] = None,
    key_json: KeyJson = False,
    json: Json = False,
) -> None:
    """Add to a number, and print the sum.

    It begins with 0 when there is none. Atomic, whoever else adds.
    """
    name, amount = read_key(key, key_json), _number(by)
    with asking():
        try:
            total = d.increment(name, amount, ttl=ttl)
        except TypeError as error:
            raise Failure(DATA, f"{error}; a number is stored with set --json") from None
    write_number(total, json)


def _number(text: str) -> int | float:
    with suppress(ValueError):
        number = int(text) if text.lstrip("+-").isdecimal() else float(text)
        if isinstance(number, int) or isfinite(number):
            return number
    raise Failure(USAGE, f"BY is no number: {text!r}")


@command("entry", "pgdict entry token", "pgdict entry token --json | jq -r .expires_at")
def entry(d: D, key: Key, key_json: KeyJson = False, json: Json = False) -> None:
    """Show a value with its codec, size and times."""
    name = read_key(key, key_json)
    try:
        found = d.entry(name)
    except KeyError:
        raise absent(name) from None
    moments = {"created": found.created_at, "updated": found.updated_at, "expires": found.expires_at}
    if json:
        times = {f"{what}_at": moment and moment.isoformat() for what, moment in moments.items()}
        write_json({"key": key_as_json(name), **as_fields(found.value), "codec": found.codec, "size": found.size, **times})
        return
    from pgdict.cli import show  # rich takes a while

    show.grid(
        ("key", in_line(name)),
        ("value", brief(found.value)),
        ("type", type(found.value).__name__),
        ("codec", found.codec),
        ("size", size(found.size)),
        *((what, f"{moment:%Y-%m-%d %H:%M:%S} UTC" if moment else "never") for what, moment in moments.items()),
    )
