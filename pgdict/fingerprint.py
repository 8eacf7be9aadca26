"""Functions → names, arguments of a call → a key: exact, the same in every process, on every machine and Python.

Each argument is written as a text that only its equals have: of the same type and the same content.

* `1`, `1.0`, `True` and `"1"` are four arguments, `0.0` and `-0.0` two, `Decimal("1.0")` and `Decimal("1.00")` two; NaN is one.
  With `typed=False` the `bool`, `int`, `float` and `complex` that equal each other are one, wherever they are inside.
* The order of dicts and sets does not count; ranges of the same numbers are equal.
* Moments are equal with the same clock reading in the same zone.
* Enum members, classes and the types of dataclasses and named tuples go by their module and name, dataclasses by the fields
  that they compare.
* Arrays are equal with the same dtype, shape and elements, bit by bit, in whatever order of bytes and memory; frames with the
  same dtypes, labels and elements (a `RangeIndex` is an index like any other).

A text that is too long is replaced by its digest.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import sys
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from hashlib import blake2b
from itertools import repeat
from pathlib import Path, PurePath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

LONGEST = 200
"""Characters of a key that is shown as it is."""

_LITERALS = frozenset({type(None), bool, int, float, complex, str, bytes, type(Ellipsis)})
_LITERAL_TUPLE = _LITERALS.issuperset
_LARGE = 2**600


class Unsupported(TypeError):
    """A type that has no text."""


def key_of(arguments: tuple[Any, ...], *, typed: bool = True) -> str:
    """Return the key for the arguments of a call.

    Args:
        arguments: in the order of the signature.
        typed: whether equal numbers of different types are different.

    >>> key_of((1, "a")), key_of((True, "a")), key_of((True, 1.0), typed=False)
    ("(1, 'a')", "(True, 'a')", '(1,1,)')

    Raises:
        Unsupported: a type without a text is in it.
    """
    if typed and _LITERAL_TUPLE(map(type, arguments)):
        try:
            text = ascii(arguments)  # ascii, not repr: what is printable differs between versions of Python
        except ValueError:  # more digits than Python likes to write
            text = ""
        if 0 < len(text) <= LONGEST:
            return text
    try:
        text = _text(arguments, typed)
    except RecursionError:
        raise Unsupported("it is nested too deeply, or holds itself") from None
    return text if len(text) <= LONGEST else "#" + _digest(text.encode())


def _digest(data: Any) -> str:
    return blake2b(data, digest_size=16).hexdigest()


def _text(value: Any, typed: bool) -> str:
    kind = type(value)
    if kind in _LITERALS:
        number = value if typed else _number(value)
        return hex(number) if type(number) is int and not -_LARGE < number < _LARGE else ascii(number)
    writer = _WRITERS.get(kind) or _writer(value, kind)
    return writer(value, typed)


def _number(value: Any) -> Any:
    """Return the one number that stands for all that equal it, as in a dict."""
    if isinstance(value, complex) and value.imag == 0:
        value = value.real
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    return value + 0 if isinstance(value, complex) else value  # no negative zeros in it


def _joined(values: Iterable[Any], typed: bool) -> str:
    return ",".join(map(_text, values, repeat(typed)))


def _unordered(values: Iterable[Any], typed: bool) -> str:
    return ",".join(sorted(map(_text, values, repeat(typed))))


def _pairs(value: dict[Any, Any], typed: bool) -> str:
    return "{" + ",".join(sorted([f"{_text(key, typed)}:{_text(item, typed)}" for key, item in value.items()])) + "}"


def _range(value: range, typed: bool) -> str:
    return f"range({_joined((value[0], value[-1], value[0] != value[-1] and value.step), typed)})" if value else "range()"


def _moment(value: datetime | time, _: bool) -> str:
    zone = value.tzinfo
    if not (zone is None or type(zone) in (timezone, ZoneInfo)) or str(zone).startswith("zoneinfo.ZoneInfo.from_file("):
        raise Unsupported(f"a time zone of type {type(zone).__module__}.{type(zone).__qualname__} without a key")
    return f"{type(value).__name__}({value.isoformat()},{value.fold},{type(zone).__name__},{str(zone)!a})"


_WRITERS: dict[type, Callable[[Any, bool], str]] = {
    list: lambda value, typed: f"[{_joined(value, typed)}]",
    tuple: lambda value, typed: f"({_joined(value, typed)},)",
    dict: _pairs,
    set: lambda value, typed: f"{{{_unordered(value, typed)}}}" if value else "set()",
    frozenset: lambda value, typed: f"frozenset({_unordered(value, typed)})",
    bytearray: lambda value, _: ascii(value),
    range: _range,
    slice: lambda value, typed: f"slice({_joined((value.start, value.stop, value.step), typed)})",
    Decimal: lambda value, _: f"Decimal{tuple(value.as_tuple())}",  # its str depends on the context
    UUID: lambda value, _: f"UUID({value!s})",
    timedelta: lambda value, _: f"timedelta({value.days},{value.seconds},{value.microseconds})",
    date: lambda value, _: f"date({value.isoformat()})",
    time: _moment,
    datetime: _moment,
}


def _name(kind: type) -> str:
    """Return the name of a class that lasts; in numpy, pandas and pathlib it has moved between modules."""
    if "<" in kind.__qualname__:
        raise Unsupported(f"class {kind.__qualname__} inside a function has no name that lasts")
    package = kind.__module__.partition(".")[0]
    return f"{package if package in ('numpy', 'pandas', 'pathlib') else _module(kind)}.{kind.__qualname__}"


def _module(thing: Any) -> str | None:
    """Return the module of a class or function: that of `python -m` by its own name, else a script as `__main__`."""
    module: str | None = getattr(thing, "__module__", None)
    if module not in ("__main__", "__mp_main__"):  # the latter is what multiprocessing makes of the former
        return module
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else "__main__"


def _writer(value: Any, kind: type) -> Callable[[Any, bool], str]:
    if isinstance(value, enum.Flag):
        return lambda flag, _: f"{_name(kind)}({int(flag.value)})"
    if isinstance(value, enum.Enum):
        return lambda member, _: f"{_name(kind)}.{member._name_}"
    if isinstance(value, type):
        return lambda cls, _: f"<class {_name(cls)}>"
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value) if field.compare]
        return lambda data, typed: _name(kind) + _pairs({name: getattr(data, name) for name in fields}, typed)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return lambda named, typed: f"{_name(kind)}({_joined(named, typed)})"
    if isinstance(value, PurePath):
        return lambda path, _: f"{_name(kind)}({str(path)!a})"
    if kind.__module__.partition(".")[0] in ("numpy", "pandas"):
        return _by_content(value, kind)
    raise Unsupported(f"type {kind.__module__}.{kind.__qualname__}")


def _by_content(value: Any, kind: type) -> Callable[[Any, bool], str]:
    """Return the writer for what numpy and pandas hold."""
    numpy, pandas = sys.modules["numpy"], sys.modules.get("pandas")
    if kind in (numpy.ndarray, numpy.memmap):
        return lambda array, typed: f"ndarray({_array(array, typed)})"
    if isinstance(value, numpy.generic):
        return lambda scalar, typed: f"scalar({_array(numpy.asarray(scalar), typed)})"
    if kind is getattr(pandas, "DataFrame", None):
        return _frame
    if kind is getattr(pandas, "Series", None):
        return lambda series, typed: f"Series({_joined((series.name, series.index), typed)},{_values(series, typed)})"
    if kind is getattr(pandas, "MultiIndex", None):
        return lambda index, typed: f"MultiIndex({_joined(map(index.get_level_values, range(index.nlevels)), typed)})"
    return _of_pandas(pandas, value, kind)


def _of_pandas(pandas: Any, value: Any, kind: type) -> Callable[[Any, bool], str]:
    if pandas is not None:
        if isinstance(value, pandas.Index):
            return lambda index, typed: f"Index({_text(index.name, typed)},{_values(index, typed)})"
        if isinstance(value, pandas.api.extensions.ExtensionArray):
            return lambda array, typed: f"array({_values(pandas.Series(array), typed)})"
        if isinstance(value, pandas.Interval):
            return lambda span, typed: f"Interval({_joined((span.left, span.right, span.closed), typed)})"
        if isinstance(value, pandas.Timestamp | pandas.Timedelta | pandas.Period) or value is pandas.NaT or value is pandas.NA:
            return lambda scalar, _: f"{kind.__name__}({scalar!a})"
    raise Unsupported(f"type {kind.__module__}.{kind.__qualname__}")


def _array(array: Any, typed: bool) -> str:
    """Write an array: a structured one by its fields, as what is between them has no meaning."""
    dtype = array.dtype
    if dtype.names is not None:
        fields = ",".join([f"{name!a}:{_array(array[name], typed)}" for name in dtype.names])
        return f"{array.shape},{{{fields}}}"
    if dtype.hasobject:
        return f"{dtype!s},{array.shape},[{_joined(array.ravel().tolist(), typed)}]"
    if dtype.char in "gG":  # long doubles: some of their bytes have no meaning
        return f"{dtype.str},{array.shape},{array.ravel().tolist()!a}"
    if dtype.str.startswith(">"):
        return _array(array.astype(dtype.newbyteorder("<")), typed)
    return f"{dtype.str},{array.shape},{_digest(array.tobytes())}"


def _frame(frame: Any, typed: bool) -> str:
    columns = [_values(frame.iloc[:, place], typed) for place in range(frame.shape[1])]
    return f"DataFrame({_joined((frame.index, frame.columns), typed)},{','.join(columns)})"


def _values(column: Any, typed: bool) -> str:
    """Write the values of a Series or Index: those of numpy as bytes, any other one by one."""
    dtype = column.dtype
    if hasattr(dtype, "categories"):
        values = column.array
        return f"category({dtype.ordered},{_text(dtype.categories, typed)},{_array(values.codes, typed)})"
    values = column.to_numpy()
    if str(dtype) != str(values.dtype):
        return f"{dtype!s}[{_joined(column.tolist(), typed)}]"
    return _array(values, typed)


Bind = Callable[[tuple[Any, ...], dict[str, Any]], str]


def binder(function: Callable[..., Any], *, ignore: tuple[str, ...] = (), typed: bool = True) -> Bind:
    """Return what makes the key of a call: however it is spelled, with the defaults.

    The key of a call whose arguments have none is a TypeError that names the argument, and the ways out.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:
        raise TypeError(f"{shown(function)} does not tell its parameters: make the key yourself with key=") from None
    names = tuple(signature.parameters)
    unknown = set(ignore) - set(names)
    if unknown:
        raise ValueError(f"ignore names no parameter of {shown(function)}: {', '.join(sorted(unknown))}")
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
        key_of((argument,))
    except Unsupported as error:
        raise TypeError(
            f"argument {name!r} of {shown(function)} cannot be part of a key: {error}; "
            f"leave it out with ignore=({name!r},), or make the key yourself with key="
        ) from None


def shown(function: Callable[..., Any]) -> str:
    """Return what messages call a function."""
    return getattr(function, "__qualname__", None) or repr(function)


def name_of(function: Callable[..., Any]) -> str:
    """Return the name under which the results of a function are stored.

    A function of a module has its place there. In a script or a notebook there may be another one of that name, so the digest
    of its source is added: edited, it is another function.

    Raises:
        ValueError: a lambda, or a function inside another one, which has no name of its own; a bound method, whose object
            is no part of its name.
    """
    module, name = _module(function), shown(function)
    if "<" in name or module is None or not hasattr(function, "__qualname__"):
        raise ValueError(f"{name} has no name that lasts: give memoize a name=")
    if inspect.ismethod(function):
        raise ValueError(f"{name} is bound to an object that its name does not tell: give memoize a name=")
    if module != "__main__":
        return f"{module}.{name}"
    try:
        source = inspect.getsource(inspect.unwrap(function))
    except (OSError, TypeError):
        raise ValueError(f"the source of {name} is not to be found: give memoize a name=") from None
    digest = blake2b(source.encode(), digest_size=5).hexdigest()
    return f"{Path(getattr(sys.modules['__main__'], '__file__', '') or 'notebook').stem}.{name}@{digest}"
