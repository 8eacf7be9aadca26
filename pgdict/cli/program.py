"""What all commands share: which dictionary, errors in one line, exit statuses."""

from __future__ import annotations

import inspect
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn

import psycopg
import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

from pgdict import PgDict, __version__
from pgdict.errors import ConfigError, ConnectionFailed, InvalidKey, LockTimeout, NoTable, PgDictError, QueryFailed
from pgdict.server import locate

ABSENT, USAGE, SERVER, DATA, CUT = 1, 2, 3, 4, 141

EPILOG = """\
Exit status:
0    done
1    no such key or table; with set --nx: the key is there
2    the command line is wrong
3    the server cannot be reached, or refuses
4    a value or a file is not what is needed: unreadable, no number, nothing that JSON can hold
130  interrupted
141  nobody reads the output any more"""

_ERRORS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], int], ...] = (
    (NoTable, ABSENT),  # before its base
    ((ConfigError, InvalidKey), USAGE),
    ((ConnectionFailed, QueryFailed, LockTimeout), SERVER),
    ((PgDictError, OSError), DATA),
)
_NEGATIVE = re.compile(r"-[\d.]+(e[+-]?\d+)?")
_SETTINGS = {"help_option_names": ["-h", "--help"]}


class Failure(Exception):
    """The reason why a command fails, and its exit status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@contextmanager
def asking() -> Iterator[None]:
    """Take a refusal of what the block passes on for an error of the command line."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if isinstance(error, PgDictError):
            raise
        raise Failure(USAGE, str(error)) from error


def explain(error: Exception) -> tuple[int, str]:
    """Return the exit status of an error, and what to say; raise it again when nobody foresaw it."""
    if isinstance(error, Failure):
        return error.status, str(error)
    if isinstance(error, typer.TyperException):
        message, context = error.format_message().rstrip("."), getattr(error, "ctx", None)
        more = f" (see {context.command_path} --help)" if context else ""
        return USAGE, f"{message[:1].lower()}{message[1:]}{more}"
    if isinstance(error, ModuleNotFoundError):
        return USAGE, f"the command needs {str(error.name).partition('.')[0]}: pip install '.[cli]'"
    if isinstance(error, OSError) and error.filename:
        return DATA, f"{error.filename2 or error.filename}: {error.strerror}"  # of two, what the user named is the second
    for kinds, status in _ERRORS:
        if isinstance(error, kinds):
            return status, str(error)
    raise error


class Commands(TyperGroup):
    """All commands. What goes wrong in them is one line and an exit status."""

    elsewhere: ClassVar[dict[str, Callable[[], Callable[..., None]]]] = {}
    """Commands by name that are imported only when they are asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands."""
        return [*super().list_commands(ctx), *self.elsewhere]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command."""
        if cmd_name not in self.elsewhere:
            return super().get_command(ctx, cmd_name)
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, context_settings=_SETTINGS)
        alone.command(cmd_name)(self.elsewhere[cmd_name]())
        return typer.main.get_command(alone)

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, *_: Any, **extra: Any) -> NoReturn:
        """Run what the arguments say, and exit."""
        sys.set_int_max_str_digits(0)  # a stored value may have more digits, and more levels, than Python prints by default
        sys.setrecursionlimit(5_000)
        args = list(sys.argv[1:] if args is None else args)
        try:
            status = super().main(args or ["--help"], prog_name, **extra | {"standalone_mode": False})
        except SystemExit as end:  # also rich's answer to an output that nobody reads
            status = CUT if isinstance(end.__context__, BrokenPipeError) else end.code
        except Exception as error:  # noqa: BLE001 - those that it does not know it raises again
            status, reason = explain(error)
            typer.echo(f"pgdict: {' '.join(reason.split())}", err=True)
        sys.exit(status)

    def invoke(self, ctx: Any) -> Any:
        """Run a command, to its last output."""
        try:
            super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end
            raise typer.Exit(CUT) from None


class _Command(TyperCommand):
    """A command that takes `-5` for a number, not for options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments."""
        options = {"--help", "-h"}.union(*(parameter.opts for parameter in self.params))
        dashed = [arg for arg in args[: args.index("--") if "--" in args else None] if arg.startswith("-") and arg != "-"]
        ctx.ignore_unknown_options = all(arg.split("=")[0] in options or _NEGATIVE.fullmatch(arg) for arg in dashed)
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=Commands,
    epilog=EPILOG,
    pretty_exceptions_enable=False,
    context_settings=_SETTINGS,
)

_PANEL = "Which dictionary"
Url = Annotated[
    str | None,
    typer.Option(
        metavar="URL|DIRECTORY",
        help="The server, or an embedded server's directory.  \\[default: $PGDICT_URL, else this user's embedded server]",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
TableName = Annotated[str, typer.Option(metavar="NAME", help="Its table.", rich_help_panel=_PANEL)]
Schema = Annotated[str | None, typer.Option(metavar="NAME", help="The schema of its table.", rich_help_panel=_PANEL)]
Namespace = Annotated[
    str | None,
    typer.Option("--namespace", "-n", metavar="NAME[:NAME]", help="Only a part of it.", rich_help_panel=_PANEL),
]
Codec = Annotated[
    Literal["msgpack", "json", "pickle", "bytes", "text"],
    typer.Option(help="How values are stored; pickle also allows reading such.", rich_help_panel=_PANEL),
]
Durability = Annotated[
    Literal["unlogged", "async", "sync"] | None,
    typer.Option(
        help="What a new table keeps when the server crashes: nothing, nearly all, all.  "
        "\\[default: async in a directory, unlogged on a server]",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@contextmanager
def opened(
    url: Url = None,
    table: TableName = "kv_store",
    schema: Schema = None,
    namespace: Namespace = None,
    codec: Codec = "msgpack",
    durability: Durability = None,
    *,
    create: bool = False,
) -> Iterator[PgDict[Any, Any]]:
    """Open the dictionary that the options name."""
    where = locate(url)
    if isinstance(where, Path) and not create and not where.exists():
        raise NoTable(f"there is nothing in {str(where)!r}")
    try:
        d = PgDict[Any, Any](where, table=table, schema=schema, codec=codec, durability=durability, create=create)
    except NoTable:
        raise NoTable(f"there is no table {table!r}; `pgdict set` and `pgdict load` make it") from None
    with d:
        yield d.namespace(*namespace.split(":")) if namespace is not None else d


_WHICH = {name: option for name, option in inspect.signature(opened, eval_str=True).parameters.items() if name != "create"}


def command(name: str, *examples: str, create: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function of a dictionary a command, with the options that say which dictionary.

    Args:
        name: what the command is called.
        examples: commands that its help shows.
        create: whether it makes a table that is missing.

    The function takes the dictionary, arguments and options of its own, and by name those of the former that it needs to know.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        which = {name: option for name, option in _WHICH.items() if create or name != "durability"}
        own = dict(list(inspect.signature(function, eval_str=True).parameters.items())[1:])

        @wraps(function)
        def run(**given: Any) -> None:
            with opened(**{option: given[option] for option in which}, create=create) as d:
                function(d, **{option: given[option] for option in own})

        run.__signature__ = inspect.Signature([*(own[name] for name in own if name not in which), *which.values()])  # type: ignore[attr-defined]
        app.command(name, cls=_Command, epilog=shown(examples))(run)
        return run

    return register


def shown(examples: tuple[str, ...]) -> str:
    """Return examples as help shows them."""
    return "\n".join(("Examples:", *examples)).replace("[", r"\[")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"pgdict {__version__} (Python {platform.python_version()}, psycopg {psycopg.__version__})")
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    url: Url = None,
    table: TableName = "kv_store",
    schema: Schema = None,
    namespace: Namespace = None,
    codec: Codec = "msgpack",
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    """A Python dict that lives in PostgreSQL.

    Which dictionary can be said before the command or behind it. See pgdict COMMAND --help for examples.
    """
    given = {"url": url, "table": table, "schema": schema, "namespace": namespace, "codec": codec}
    ctx.default_map = dict.fromkeys(ctx.command.list_commands(ctx), given)  # type: ignore[attr-defined]
