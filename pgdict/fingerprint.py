"""Functions → names, arguments of a call → a key: exact, the same in every process, on every machine and Python.

Each argument is written as a text that only its equals have: of the same type and the same content. `1`, `1.0`, `True` and
`"1"` are four arguments, `0.0` and `-0.0` two, `Decimal("1.0")` and `Decimal("1.00")` two. The order of a dict or a set does
not count. A text that is too long is replaced by its digest.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import sys
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path, PurePath
from typing import Any
from uuid import UUID

LONGEST = 200
"""Characters of a key that is shown as it is."""

_LITERALS = frozenset({type(None), bool, int, float, complex, str, bytes, type(Ellipsis)})
_LITERAL_TUPLE = _LITERALS.issuperset


class Unsupported(TypeError):
    """A type that has no text."""


def key_of(arguments: tuple[Any, ...], *, typed: bool = True) -> str:
    """Return the key for the arguments of a call.

    Args:
        arguments: in the order of the signature.
        typed: whether equal numbers of different types are different.

    >>> key_of((1, "a")), key_of((True, "a")), key_of((True, 1.0), typed=False)
    ("(1, 'a')", "(True, 'a')", '(1, 1)')
    """
    if typed and _LITERAL_TUPLE(map(type, arguments)):
        text = ascii(arguments)  # ascii, not repr: what is printable differs between versions of Python
    else:
        text = _text(arguments, typed)
    return text if len(text) <= LONGEST else "#" + blake2b(text.encode(), digest_size=16).hexdigest()


def text_of(value: Any, *, typed: bool = True) -> str:
    """Return the text of one argument.

    >>> text_of({"b": [1, {2}], "a": None})
    "{'a':None,'b':[1,{2}]}"

    Raises:
        Unsupported: a type without a text is in it.
    """
    return _text(value, typed)


def _text(value: Any, typed: bool) -> str:
    kind = type(value)
    if kind in _LITERALS:
        return ascii(value if typed else _number(value))
    writer = _WRITERS.get(kind) or _writer(value, kind)
    return writer(value, typed)


def _number(value: Any) -> Any:
    """Return the one number that stands for all that equal it, as in a dict."""
    if isinstance(value, complex) and value.imag == 0:
        value = value.real
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    return value


def _joined(values: Iterable[Any], typed: bool) -> str:
    return ",".join(_text(value, typed) for value in values)


def _unordered(values: Iterable[Any], typed: bool) -> str:
    return ",".join(sorted(_text(value, typed) for value in values))


def _pairs(value: dict[Any, Any], typed: bool) -> str:
    pairs = (f"{_text(key, typed)}:{_text(item, typed)}" for key, item in value.items())
    return "{" + ",".join(sorted(pairs)) + "}"


_WRITERS: dict[type, Callable[[Any, bool], str]] = {
    list: lambda value, typed: f"[{_joined(value, typed)}]",
    tuple: lambda value, typed: f"({_joined(value, typed)},)",
    dict: _pairs,
    set: lambda value, typed: f"{{{_unordered(value, typed)}}}" if value else "set()",
    frozenset: lambda value, typed: f"frozenset({_unordered(value, typed)})",
    bytearray: lambda value, _: ascii(value),
    range: lambda value, _: ascii(value),
    slice: lambda value, typed: f"slice({_joined((value.start, value.stop, value.step), typed)})",
    Decimal: lambda value, _: f"Decimal({value!s})",
    UUID: lambda value, _: f"UUID({value!s})",
    timedelta: lambda value, _: f"timedelta({value.days},{value.seconds},{value.microseconds})",
    date: lambda value, _: f"date({value.isoformat()})",
    time: lambda value, _: f"time({value.isoformat()},{value.fold},{str(value.tzinfo)!a})",
    datetime: lambda value, _: f"datetime({value.isoformat()},{value.fold},{str(value.tzinfo)!a})",
}


def _writer(value: Any, kind: type) -> Callable[[Any, bool], str]:
    name = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, enum.Enum):
        return lambda member, _: f"{name}.{member.name}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return lambda data, typed: name + _pairs({f.name: getattr(data, f.name) for f in dataclasses.fields(data)}, typed)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return lambda named, typed: f"{name}({_joined(named, typed)})"
    if isinstance(value, PurePath):
        return lambda path, _: f"{name}({str(path)!a})"
    if isinstance(value, type):
        return lambda cls, _: f"<class {cls.__module__}.{cls.__qualname__}>"
    return _by_content(value, name)


def _by_content(value: Any, name: str) -> Callable[[Any, bool], str]:
    """Return the writer for what numpy and pandas hold, when they are in use at all."""
    numpy, pandas = sys.modules.get("numpy"), sys.modules.get("pandas")
    if numpy is not None and (type(value) in (numpy.ndarray, numpy.memmap) or isinstance(value, numpy.generic)):
        return lambda array, typed: f"{name}{_array(array, typed)}"
    if pandas is not None:
        if isinstance(value, pandas.DataFrame):
            return lambda frame, typed: f"{name}({_joined((frame.index, frame.columns), typed)},{_columns(frame, typed)})"
        if isinstance(value, pandas.Series):
            return lambda series, typed: f"{name}({_joined((series.name, series.index), typed)},{_values(series, typed)})"
        if isinstance(value, pandas.MultiIndex):
            return lambda index, typed: f"{name}({_joined((list(index.names), index.to_list()), typed)})"
        if isinstance(value, pandas.Index):
            return lambda index, typed: f"{name}({_text(index.name, typed)},{_values(index, typed)})"
        if isinstance(value, pandas.Timestamp | pandas.Timedelta) or value is pandas.NaT or value is pandas.NA:
            return lambda moment, _: f"{name}({repr(moment)!a})"
    raise Unsupported(f"type {name}")


def _array(array: Any, typed: bool) -> str:
    if array.dtype.hasobject:
        return f"({array.shape},[{_joined(array.ravel().tolist(), typed)}])"
    digest = blake2b(array.tobytes(), digest_size=16).hexdigest()
    return f"({array.dtype.str if array.dtype.names is None else str(array.dtype.descr)!a},{array.shape},{digest})"


def _columns(frame: Any, typed: bool) -> str:
    return ",".join(_values(frame.iloc[:, place], typed) for place in range(frame.shape[1]))


def _values(column: Any, typed: bool) -> str:
    """Write the values of a Series or Index: those of numpy as bytes, any other one by one."""
    values = column.to_numpy()
    if str(column.dtype) != str(values.dtype):
        return f"{column.dtype!s}[{_joined(column.tolist(), typed)}]"
    return _array(values, typed)


Bind = Callable[[tuple[Any, ...], dict[str, Any]], str]


def binder(function: Callable[..., Any], *, ignore: tuple[str, ...] = (), typed: bool = True) -> Bind:
    """Return what makes the key of a call: however it is spelled, with the defaults."""
    signature = inspect.signature(function)
    names = tuple(signature.parameters)
    unknown = set(ignore) - set(names)
    if unknown:
        raise ValueError(f"ignore names no parameter of {function.__qualname__}: {', '.join(sorted(unknown))}")
    kept = [place for place, name in enumerate(names) if name not in ignore]
    positional = all(p.kind <= p.POSITIONAL_OR_KEYWORD for p in signature.parameters.values())
    all_kept = len(kept) == len(names)

    def bind(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        if kwargs or not positional or len(args) != len(names):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            args = tuple(bound.arguments.values())
        if not all_kept:
            args = tuple([args[place] for place in kept])
        try:
            return key_of(args, typed=typed)
        except Unsupported:
            for place, argument in zip(kept, args, strict=True):
                _check(function, names[place], argument)
            raise

    return bind


def _check(function: Callable[..., Any], name: str, argument: Any) -> None:
    try:
        text_of(argument)
    except Unsupported as error:
        raise TypeError(
            f"argument {name!r} of {function.__qualname__} cannot be part of a key: {error}; "
            f"leave it out with ignore=({name!r},), or make the key yourself with key="
        ) from None


def name_of(function: Callable[..., Any]) -> str:
    """Return the name under which the results of a function are stored.

    A function of a module has its place there. In a script or a notebook there may be another one of that name, so the digest
    of its source is added: edited, it is another function.

    Raises:
        ValueError: a lambda, or a function inside another one, which has no name of its own.
    """
    module, name = function.__module__, function.__qualname__
    if "<" in name:
        raise ValueError(f"{name} has no name that lasts: give memoize a name=")
    if module != "__main__":
        return f"{module}.{name}"
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:  # python -m
        return f"{spec.name}.{name}"
    try:
        source = inspect.getsource(inspect.unwrap(function))
    except (OSError, TypeError):
        raise ValueError(f"the source of {name} is not to be found: give memoize a name=") from None
    digest = blake2b(source.encode(), digest_size=5).hexdigest()
    return f"{Path(getattr(main, '__file__', '') or 'notebook').stem}.{name}@{digest}"
