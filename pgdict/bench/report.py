"""Show a run in a terminal, and keep it as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pgdict.bench.engine import Report, Result
from pgdict.bench.groups import Case, Group, Unit
from pgdict.bench.targets import TIMES, judge
from pgdict.display import size

_COLUMNS = 4


def document(report: Report) -> dict[str, Any]:
    """Return everything, as JSON has it."""
    targets = [outcome._asdict() for outcome in judge(report)]
    return report.document() | {"targets": targets}


def save(report: Report, path: Path) -> None:
    """Write JSON."""
    path.write_text(json.dumps(document(report), indent=1, ensure_ascii=False) + "\n", "utf-8")


def show(report: Report, console: Console) -> None:
    """Print the tables, the targets, and what has to be known to judge them."""
    console.print(summary(report), soft_wrap=True)
    if report.machine["load"] > report.machine["cpus"] / 2:
        console.print("The machine was busy with something else: these figures tell little.", style="bold")
    reference = report.reference
    if reference:
        console.print(f"Operations per second, time, or bytes. More than 1{TIMES} is better than {reference}.\n")
    for title, columns in _sheets(report):
        console.print(_sheet(report, title, columns))
    _targets(report, console)
    _crashes(report, console)


def summary(report: Report) -> str:
    """Return the machine in one line or two."""
    machine = report.machine
    postgresql = machine["postgresql"]
    return (
        f"{machine['cpus']} {TIMES} {machine['processor']}, load {machine['load']} at the beginning; "
        f"Python {machine['python']}; PostgreSQL {postgresql['server_version']} ({machine['server']}, {machine['connection']}, "
        f"fsync {postgresql['fsync']}); files on {machine['files']}; {report.began}"
    )


def figure(unit: Unit, median: float) -> str:
    """Return a result as people say it.

    >>> figure("rate", 1 / 12_345), figure("time", 0.25), figure("bytes", 2048)
    ('12.3 k', '250 ms', '2.0 KB')
    """
    if unit == "rate":
        return _short(1 / median)
    return f"{median * 1000:.3g} ms" if unit == "time" else size(round(median))


def _short(number: float) -> str:
    for power, letter in ((1e6, " M"), (1e3, " k")):
        if number >= power * 0.9995:
            return f"{number / power:#.3g}".rstrip(".") + letter
    return f"{number:#.3g}".rstrip(".")


def _sheets(report: Report) -> Iterator[tuple[str, list[tuple[str, Group, Case]]]]:
    """Gather the columns that share a table: those of a group, or neighbouring groups of one case each."""
    singles: list[tuple[str, Group, Case]] = []
    for group in report.groups:
        if len(group.cases) == 1:
            case = group.cases[0]
            singles.append((group.name if case.name == group.name else f"{group.name}\n{case.name}", group, case))
        if singles and (len(group.cases) > 1 or len(singles) == _COLUMNS):
            yield "; ".join(f"{g.name}: {g.title}" for _, g, _ in singles), singles
            singles = []
        if len(group.cases) > 1:
            yield f"{group.name}: {group.title}", [(case.name, group, case) for case in group.cases]
    if singles:
        yield "; ".join(f"{g.name}: {g.title}" for _, g, _ in singles), singles


def _sheet(report: Report, title: str, columns: list[tuple[str, Group, Case]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("")
    for name, _, _ in columns:
        table.add_column(name, justify="right")
    for name in report.contestants:
        results = [report.find(group.name, case.name, name) for _, group, case in columns]
        if any(results):
            table.add_row(name, *(_cell(report, result) for result in results))
    return table


def _cell(report: Report, result: Result | None) -> Text:
    if result is None:
        return Text("\N{EN DASH}", style="dim")
    text = Text(figure(result.unit, result.median))
    ratio = report.ratio(result)
    if ratio is not None and result.contestant != report.reference:
        text.append(f" {_times(ratio):>5}", style="bold" if ratio > 1 else "dim")
    return text


def _times(ratio: float) -> str:
    if ratio >= 9999.5:
        return f"{ratio / 1000:.0f}k{TIMES}"
    return f"{ratio:.2f}{TIMES}" if ratio < 9.995 else f"{ratio:.0f}{TIMES}"


def _targets(report: Report, console: Console) -> None:
    outcomes = list(judge(report))
    if not outcomes:
        return
    table = Table(title="Targets", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1))
    for name, justify in (("", "left"), ("target", "left"), ("value", "right"), ("", "left")):
        table.add_column(name, justify="right" if justify == "right" else "left")
    styles = {"ok": "green", "missed": "bold red", "not measured": "dim"}
    for outcome in outcomes:
        value = "" if outcome.value is None else f"{outcome.value:.3g}" if outcome.value < 1000 else f"{outcome.value:,.0f}"
        table.add_row(outcome.target, outcome.bound, value, Text(outcome.verdict, style=styles[outcome.verdict]))
    console.print(table)


def _crashes(report: Report, console: Console) -> None:
    table = Table(title="Who took part, and what a crash loses", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name in ("", "version", "lost"):
        table.add_column(name)
    for name, about in report.contestants.items():
        table.add_row(name, about["version"], about["crash"])
    for name, reason in report.missing.items():
        table.add_row(name, Text("missing", style="bold"), reason)
    console.print(table)
