r"""Dictionaries ↔ files, one entry after the other, exactly.

A file ending in `.msgpack` holds a stream of msgpack arrays `[stored key, codec, stored value, expires_at]`; any other
holds a JSON object a line:

    {"key": "user:1", "value": {"name": "Ann"}, "expires_at": "2026-01-02T03:04:05+00:00"}
    {"stored_key": "\u0001\u0002b00ff", "codec": "msgpack", "base64": "k6FhAQ=="}

`value` is there when JSON holds it exactly, else the stored bytes and their codec; `stored_key` when the key is no string,
or none that JSON holds exactly.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgpack

from pgdict import codecs
from pgdict.codecs import Values
from pgdict.errors import DecodeError, InvalidValue
from pgdict.keys import MAX_KEY_LENGTH, Keys

_KEYS = Keys(max_length=MAX_KEY_LENGTH)
_CHUNK = 2**20


class Stored(NamedTuple):
    """A key, and its value as the table has it."""

    key: Any
    value: bytes
    codec: bytes
    expires_at: datetime | None


def write(path: Path, entries: Iterable[Stored], values: Values) -> int:
    """Write the entries and return how many; the file appears, or is replaced, when it is complete and on the disk.

    Raises:
        OSError: the file cannot be written, or is a pipe or a device such as `/dev/stdout`, which must not be replaced.
    """
    record = _packed if path.suffix == ".msgpack" else _line
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise FileExistsError(errno.EEXIST, "a pipe or device cannot be replaced", str(path))
    path = path.resolve()
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    written = 0
    try:
        with partial.open("xb") as file:
            for entry in entries:
                file.write(record(entry, values))
                written += 1
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return written


def read(path: Path, values: Values) -> Iterator[Stored]:
    """Yield the entries of a file.

    Raises:
        InvalidValue: a record is not one; its place in the file is named.
    """
    parse = _unpacked if path.suffix == ".msgpack" else _parsed
    with path.open("rb") as file:
        records = _packed_records(file) if path.suffix == ".msgpack" else iter(file)
        for number in count(1):
            try:
                record = next(records, None)
                entry = None if record is None else parse(record, values)
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise InvalidValue(f"{path}, entry {number}: {_reason(error)}") from error
            if entry is None:
                break
            yield entry


def _reason(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__


def _packed_records(file: BinaryIO) -> Iterator[Any]:
    """Yield the records of a stream of msgpack, whose own reader takes a torn last one for the end."""
    records = msgpack.Unpacker(use_list=True, max_buffer_size=0)
    size = end = 0
    while chunk := file.read(_CHUNK):
        size += len(chunk)
        records.feed(chunk)
        for record in records:
            end = records.tell()
            yield record if record is not None else ()
    if end != size:
        raise ValueError("the file ends in the middle of it")


def _packed(entry: Stored, _: Values) -> bytes:
    expires = None if entry.expires_at is None else entry.expires_at.isoformat()
    return msgpack.packb([_KEYS.encode(entry.key), entry.codec.decode(), entry.value, expires])  # type: ignore[no-any-return]


def _unpacked(record: Any, _: Values) -> Stored:
    key, codec, value, expires = record
    if not (isinstance(key, bytes) and isinstance(codec, str) and isinstance(value, bytes)):
        raise ValueError("not an array of stored key, codec, stored value and expiry")
    return Stored(_KEYS.decode(key), value, codec.encode(), _moment(expires))


def _line(entry: Stored, values: Values) -> bytes:
    record: dict[str, Any] = {}
    key = entry.key
    plain = isinstance(key, str) and json.loads(json.dumps(key)) == key  # JSON makes one character of two surrogates
    record |= {"key": key} if plain else {"stored_key": _KEYS.encode(key).decode()}
    try:
        value = values.decode(key, entry.value, entry.codec)
        exact = values.encode(value) == (entry.value, entry.codec)
        text = codecs.json.encode(value).decode() if exact else None
    except (DecodeError, TypeError, ValueError):
        text = None
    if text is None:
        record |= {"codec": entry.codec.decode(), "base64": base64.b64encode(entry.value).decode()}
    if entry.expires_at is not None:
        record["expires_at"] = entry.expires_at.isoformat()
    line = json.dumps(record)
    if text is not None:
        line = f'{line[:-1]}, "value": {text}}}'
    return line.encode() + b"\n"


def _parsed(line: bytes, values: Values) -> Stored:
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    key = record["key"] if "key" in record else _KEYS.decode(record["stored_key"].encode())
    if "key" in record and not isinstance(key, str):
        raise ValueError(f"its key is no string, but {key!r}")
    if "value" in record:
        value, codec = values.encode(codecs.json.decode(json.dumps(record["value"]).encode()))
    else:
        value, codec = base64.b64decode(record["base64"], validate=True), str(record["codec"]).encode()
    return Stored(key, value, codec, _moment(record.get("expires_at")))


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    moment = datetime.fromisoformat(text)
    if moment.utcoffset() is None:
        raise ValueError(f"expires_at needs a time zone: {text!r}")
    return moment
