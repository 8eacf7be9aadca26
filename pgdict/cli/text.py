"""Keys and values ↔ text and JSON."""

from __future__ import annotations

import base64
import json
import sys
from math import isfinite, isinf
from types import NoneType
from typing import Annotated, Any

import typer

from pgdict import DecodeError, codecs
from pgdict.cli.program import DATA, USAGE, Failure
from pgdict.display import brief

Key = Annotated[str, typer.Argument(metavar="KEY", help="The key.")]
KeyJson = Annotated[
    bool,
    typer.Option("--key-json", help='Keys are given as JSON: 5, null, \\["a", 1] for a tuple, {"bytes": "00ff"}.'),
]


def read_json(text: str | bytes, what: str) -> Any:
    """Return the value of JSON, exactly."""
    try:
        return codecs.json.decode(text if isinstance(text, bytes) else text.encode())
    except (ValueError, RecursionError) as error:
        raise Failure(USAGE, f"{what} is not JSON: {error}") from None


def read_key(text: str, key_json: bool) -> Any:
    r"""Return the key that an argument means.

    >>> read_key("5", False), read_key('["a", 5, {"bytes": "00"}]', True)
    ('5', ('a', 5, b'\x00'))
    """
    return _as_key(read_json(text, "KEY")) if key_json else text


def _as_key(value: Any) -> Any:
    match value:
        case list():
            return tuple(map(_as_key, value))
        case {"bytes": str(digits), **rest} if not rest:
            try:
                return bytes.fromhex(digits)
            except ValueError as error:
                raise Failure(USAGE, f"KEY is not hexadecimal: {error}") from None
        case {"float": "inf" | "-inf" as name, **rest} if not rest:
            return float(name)
        case dict():
            raise Failure(USAGE, f"no key is like {json.dumps(value)}")
    return value


def key_as_json(key: Any) -> Any:
    r"""Return what JSON shows for a key, and `--key-json` takes.

    >>> json.dumps(key_as_json(("a", 5, b"\x00", float("inf"))))
    '["a", 5, {"bytes": "00"}, {"float": "inf"}]'
    """
    if isinstance(key, tuple):
        return [key_as_json(part) for part in key]
    if isinstance(key, bytes):
        return {"bytes": key.hex()}
    if isinstance(key, float) and isinf(key):
        return {"float": str(key)}
    return key


def read_value(text: str, as_json: bool, codec: str) -> Any:
    """Return the value that an argument means; `-` is standard input."""
    data = sys.stdin.buffer.read() if text == "-" else text.encode(errors="surrogateescape")
    if as_json:
        return read_json(data, "VALUE")
    if codec == "bytes":
        return data
    if text != "-":
        return text
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Failure(USAGE, f"standard input is not UTF-8: {error.reason}; store it with --codec bytes") from None


def is_json(value: Any) -> bool:
    """Tell whether JSON holds a value exactly.

    >>> is_json({"a": [1, 0.5, None]}), is_json((1,)), is_json({1: 2}), is_json(float("nan"))
    (True, False, False, False)
    """
    pending = [value]  # not recursive, as Python 3.12 allows some 500 levels when `all` and `map` are between them
    while pending:
        part = pending.pop()
        kind = type(part)
        if kind is list:
            pending += part
        elif kind is dict and all(type(key) is str for key in part):
            pending += part.values()
        elif not (kind in (NoneType, bool, int, str) or (kind is float and isfinite(part))):
            return False
    return True


def to_json(value: Any) -> str:
    """Return JSON in one line."""
    return json.dumps(value, ensure_ascii=False)


def as_fields(value: Any) -> dict[str, Any]:
    """Return what JSON shows for a value of which nothing is known: `value`, or what else it is.

    >>> as_fields([1]), as_fields(b"a"), as_fields((1,))
    ({'value': [1]}, {'base64': 'YQ=='}, {'repr': '(1,)'})
    """
    if isinstance(value, DecodeError):
        return {"error": str(value)}
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    return {"value": value} if is_json(value) else {"repr": as_text(value)}


def exact(key: Any, value: Any) -> Any:
    """Return a value if JSON holds it exactly, else fail."""
    if not is_json(value):
        raise Failure(DATA, f"JSON cannot hold the value of key {key!r}, of type {type(value).__name__}: {brief(value)}")
    return value


def as_text(value: Any) -> str:
    """Return what people are shown: a str as it is, anything else as JSON, or as Python writes it."""
    if isinstance(value, str):
        return value
    if isinstance(value, DecodeError):
        return f"<{value.reason}>"
    return to_json(value) if is_json(value) else repr(value)


def in_line(value: Any) -> str:
    """Return a text that stays in its line and column, and sends no codes to a terminal."""
    text = as_text(value)
    return text if text.isprintable() else repr(text)[1:-1]


def write(text: str, *, end: str = "\n") -> None:
    """Print a line, in UTF-8 whatever the locale; a byte of an argument that was none comes out as it went in."""
    text += end
    try:
        data = text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        data = text.encode(errors="surrogatepass")
    sys.stdout.buffer.write(data)


def write_json(value: Any) -> None:
    """Print JSON in a line."""
    sys.stdout.buffer.write(to_json(value).encode(errors="backslashreplace") + b"\n")  # \ud800 is JSON for a lone surrogate


def write_number(number: float, json: bool) -> None:
    """Print a number: with commas for people, at a terminal, and alike for all programs."""
    write(f"{number:,}" if sys.stdout.isatty() and not json else str(number))
