"""`pgdict shell`: Python with a dictionary open."""

from __future__ import annotations

import code
import os
import platform
import sys
import traceback
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import typer

import pgdict
from pgdict import PgDict, PgDictError
from pgdict.cli.program import command


@command(
    "shell",
    "pgdict shell",
    "pgdict shell --url ./cache --namespace users",
    "echo 'print(len(d))' | pgdict shell",
    create=True,
)
def shell(d: PgDict[Any, Any]) -> None:
    """Open Python with the dictionary as d, IPython where it is installed.

    A program on standard input is run instead.
    """
    names = {"d": d, "pgdict": pgdict, "PgDict": PgDict, "__name__": "__main__"}
    if not sys.stdin.isatty():
        _run(sys.stdin.read(), names)
        return
    banner = (
        f"pgdict {pgdict.__version__}, Python {platform.python_version()}: d is {d!r}\n"
        "Try len(d), d['key'] = 'value', list(d.scan('k')), help(d). Ctrl-D ends."
    )
    if find_spec("IPython"):
        _ipython(names, banner)
    else:
        _python(names, banner)


def _run(program: str, names: dict[str, Any]) -> None:
    """Run a program; where it fails is told without what is around it, and what the command knows better is left to it."""
    try:
        exec(compile(program, "<stdin>", "exec"), names)
    except (PgDictError, OSError):
        raise
    except Exception as error:  # noqa: BLE001 - of a program that is not ours
        traceback.print_exception(error.with_traceback(error.__traceback__ and error.__traceback__.tb_next))
        raise typer.Exit(1) from None


def _ipython(names: dict[str, Any], banner: str) -> None:
    from IPython.terminal.interactiveshell import TerminalInteractiveShell
    from IPython.terminal.ipapp import TerminalIPythonApp
    from traitlets.config import Config

    config = Config()
    config.TerminalInteractiveShell.banner1 = f"{banner}\n"
    config.TerminalInteractiveShell.confirm_exit = False
    if hasattr(TerminalInteractiveShell, "enable_tip"):
        config.TerminalInteractiveShell.enable_tip = False
    config.InteractiveShellApp.extensions = ["pgdict"]
    TerminalIPythonApp.launch_instance(argv=[], user_ns=names, config=config)


def _python(names: dict[str, Any], banner: str) -> None:
    """Run Python's own prompt, with its history and completion."""
    os.environ["PYTHON_BASIC_REPL"] = "1"  # or Python 3.13 would keep the history of its new prompt, which `code` does not use
    with suppress(ImportError, AttributeError):
        sys.__interactivehook__()
        import readline
        import rlcompleter

        readline.set_completer(rlcompleter.Completer(names).complete)
    code.interact(banner, local=names, exitmsg="")
