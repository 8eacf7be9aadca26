"""Draw a run: one small panel for each kind of operation, on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from textwrap import wrap
from typing import Any

from pgdict.bench.engine import Report
from pgdict.bench.groups import Case, Group
from pgdict.bench.report import figure, summary
from pgdict.errors import ConfigError

SUFFIXES = (".pdf", ".png", ".svg")

# Okabe and Ito's colours, which everybody can tell apart
_KINDS = (
    ("PgDict", "#0072B2", ("PgDict unlogged", "PgDict async", "PgDict sync")),
    ("PostgreSQL without PgDict", "#767676", ("psycopg", "COPY", "pgbench")),
    ("Redis", "#D55E00", ("Redis",)),
    ("files, one machine", "#009E73", ("diskcache", "sqlitedict", "shelve", "joblib")),
    ("memory of one process", "#CC79A7", ("dict",)),
)
_COLOURS = {name: colour for _, colour, names in _KINDS for name in names}
_COLUMNS = 3


def check(path: Path, groups: Iterable[Group]) -> None:
    """See beforehand that these groups can be drawn there.

    Raises:
        ConfigError: it cannot.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"a plot is {', '.join(SUFFIXES)}, not {path.name!r}")
    if not any(case.headline for group in groups for case in group.cases):
        raise ConfigError("these groups have nothing to plot")
    try:
        import_module("matplotlib")
    except ImportError:
        raise ConfigError("--plot needs matplotlib: pip install '.[bench]'") from None


def draw(report: Report, path: Path) -> None:
    """Draw the headline cases into a file."""
    matplotlib = import_module("matplotlib")
    with matplotlib.rc_context(
        {"font.size": 8, "font.family": "DejaVu Sans", "svg.fonttype": "none", "svg.hashsalt": "pgdict", "pdf.fonttype": 42}
    ):
        _draw(report).savefig(path, dpi=200)


def _draw(report: Report) -> Any:
    panels = [
        (group, case)
        for group in report.groups
        for case in group.cases
        if case.headline and any(report.find(group.name, case.name, name) for name in report.contestants)
    ]
    names = [name for name in report.contestants if any(report.find(g.name, c.name, name) for g, c in panels)]
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    height = rows * (0.62 + 0.165 * len(names)) + 1.7
    canvas = import_module("matplotlib.figure").Figure(figsize=(2.2 + 2.75 * columns, height), layout="constrained")
    canvas.get_layout_engine().set(rect=(0, 0.9 / height, 1, 1 - 1.5 / height), hspace=0.04)
    grid = canvas.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, (group, case) in zip(grid.flat, panels, strict=False):
        _panel(axes, report, group, case, names)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    _captions(canvas, report, names, height)
    return canvas


def _panel(axes: Any, report: Report, group: Group, case: Case, names: list[str]) -> None:
    axes.set_title(case.headline, fontsize=8.5, fontweight="bold", loc="left")
    axes.set_xscale("log")
    found = [(row, name, report.find(group.name, case.name, name)) for row, name in enumerate(names)]
    rates = [1 / result.median for _, _, result in found if result]
    low, high = min(rates) / 1.6, max(rates) * 8  # room for the labels
    axes.set_xlim(low, max(high, low * 100))
    reference = report.find(group.name, case.name, report.reference)
    if reference:
        axes.axvline(1 / reference.median, color=_COLOURS["PgDict unlogged"], linewidth=0.7, linestyle=":", zorder=1)
    for row, name, result in found:
        if result is None:
            continue
        rate, colour = 1 / result.median, _COLOURS[name]
        axes.plot([low, rate], [row, row], color=colour, linewidth=0.8, alpha=0.45, zorder=2)
        axes.plot(rate, row, "o", color=colour, markersize=4.5, zorder=3)
        axes.annotate(
            figure("rate", result.median),
            (rate, row),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"},
            fontweight="bold" if name == report.reference else "normal",
        )
    axes.set_yticks(range(len(names)), names)
    for tick in axes.get_yticklabels():
        tick.set_color(_COLOURS[tick.get_text()])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", which="both", labelbottom=False, length=0)
    axes.spines[:].set_visible(False)


def _captions(canvas: Any, report: Report, names: list[str], height: float) -> None:
    canvas.suptitle(
        "Operations per second from Python (to the right is better, logarithmic)",
        x=0.01,
        y=1 - 0.1 / height,
        ha="left",
        va="top",
        fontsize=11,
        fontweight="bold",
    )
    x = 0.01
    for kind, colour, members in _KINDS:
        if set(members) & set(names):
            text = canvas.text(x, 1 - 0.42 / height, f"● {kind}", color=colour, fontsize=8.5, va="top")
            x = text.get_window_extent().transformed(canvas.transFigure.inverted()).x1 + 0.02
    lost: dict[str, list[str]] = {}
    for name in names:
        lost.setdefault(report.contestants[name]["crash"], []).append(name)
    crashes = "; ".join(f"{', '.join(who)}: {what}" for what, who in lost.items())
    notes = f"{summary(report)}. Dotted: {report.reference}. Blank: has no such operation.\nWhat is lost: {crashes}."
    width = round(canvas.get_figwidth() * 20)  # characters of that size
    lines = [line for note in notes.splitlines() for line in wrap(note, width)]
    canvas.text(0.01, 0.1 / height, "\n".join(lines), fontsize=6.5, color="#444444", va="bottom")
