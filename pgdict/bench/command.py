"""The command `pgdict bench`."""

from __future__ import annotations

import json as json_text
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pgdict.bench import plot as plots
from pgdict.bench import report as reports
from pgdict.bench.contestants import CONTESTANTS
from pgdict.bench.engine import Telling, choose_contestants, choose_groups, run
from pgdict.bench.groups import FULL, NORMAL, QUICK, plan
from pgdict.errors import ConfigError


def bench(
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL|DIRECTORY",
            help="The server, or an embedded server's directory.  \\[default: $PGDICT_URL, else this user's embedded server]",
            show_default=False,
        ),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option("--group", "-g", metavar="NAME", help=f"Only this group: {', '.join(g.name for g in plan(NORMAL))}."),
    ] = None,
    contestant: Annotated[
        list[str] | None,
        typer.Option(
            "--contestant", "-c", metavar="NAME", help=f"Only these, as they begin: {', '.join(c.name for c in CONTESTANTS)}."
        ),
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="The most rounds.", show_default=False)] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write everything as JSON; - is standard output.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw a plot: .png, .svg or .pdf.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A rough look: half a minute.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Longer rounds, and ten million keys: an hour or so.")] = False,
) -> None:
    """Measure dictionaries side by side: PgDict, plain psycopg, Redis, diskcache and others, those that are installed."""
    if quick and full:
        raise ConfigError("--quick or --full, not both")
    scale = QUICK if quick else FULL if full else NORMAL
    if rounds:
        scale = replace(scale, rounds=rounds)
    groups = choose_groups(group or (), scale)
    choose_contestants(contestant or ())
    for path in (json, plot):
        if path and not path.absolute().parent.is_dir():
            raise ConfigError(f"there is no directory {str(path.parent)!r}")
    if plot:
        plots.check(plot, groups)
    with _progress() as telling:
        report = run(url, groups=group or (), contestants=contestant or (), scale=scale, telling=telling)
    if json == Path("-"):
        typer.echo(json_text.dumps(reports.document(report), indent=1, ensure_ascii=False))
    else:
        reports.show(report, Console(highlight=False, markup=False))
    if json and json != Path("-"):
        reports.save(report, json)
    if plot:
        plots.draw(report, plot)


@contextmanager
def _progress() -> Iterator[Telling]:
    columns = (BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn(), TextColumn("{task.description}"))
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("")
        yield lambda done, total, what: progress.update(task, completed=done, total=total, description=what)
