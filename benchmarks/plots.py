"""The report's pictures: all ops at a glance, and for each op its groups of cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import COMPILED
from benchmarks.records import (
    Record,
    Row,
    compiled_speedup,
    converts,
    family,
    group,
    our_speedup,
    summarize,
)
from benchmarks.tables import format_ratio

FASTER, SLOWER, PEER = "#1f77b4", "#d62728", "#8c8c8c"
ROW_INCHES, FRAME_INCHES, MAX_INCHES = 0.3, 1.5, 8.0  # a screen of 1080 lines holds 8 at 110 dpi
MAX_LINES = int((MAX_INCHES - FRAME_INCHES) / ROW_INCHES)
DPI = 110
# where the axis spans less than the first, its ticks are the second times powers of ten
SUBDIVISIONS = [(20, (1, 1.5, 2, 3, 5, 7)), (2000, (1, 2, 5)), (math.inf, (1,))]


@dataclass(frozen=True)
class Line:
    """A line of a picture: dots of one group."""

    label: str
    rows: list[Row]


def load_pyplot() -> Any:
    """matplotlib without a screen, or None where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def lines_of(rows: Iterable[Row], name: Callable[[Row], str]) -> list[Line]:
    lines: dict[str, list[Row]] = {}
    for row in rows:
        if our_speedup(row) is not None:
            lines.setdefault(name(row), []).append(row)
    return [Line(label, rows) for label, rows in lines.items()]


def title(subject: str, record: Record) -> str:
    machine = record["machine"]
    device = machine["device"]
    if machine["cpu"].startswith(device):  # a CPU's record: its cores and instruction set matter
        device = f"{machine['cpu'].rsplit(', ', 1)[0]}, {machine['isa level'].split()[0]}"
    busy = ", busy machine" if "busy" in machine else ""
    return f"{subject}: speed-up on {device}, {machine['date'][:10]}{busy}"


def _dots(axes: Any, at: int, rows: list[Row]) -> None:
    for row in rows:
        ratio = our_speedup(row)
        assert ratio is not None
        color, marker = FASTER if ratio >= 1 else SLOWER, "^" if converts(row) else "o"
        axes.plot(ratio, at, marker, color=color, markersize=5.5, alpha=0.7, markeredgewidth=0)
        compiled = compiled_speedup(row)
        if compiled is not None:
            axes.plot(compiled, at, "x", color=PEER, markersize=5, markeredgewidth=1.3)


def _legend(axes: Any, lines: list[Line]) -> None:
    rows = [row for line in lines for row in line.rows]
    entries = [("o", FASTER, "fastvision", True)]
    ratios = [our_speedup(row) or 1 for row in rows]
    entries.append(("o", SLOWER, "fastvision, slower", min(ratios) < 1))
    entries.append(
        (
            "^",
            FASTER,
            "converted: torchvision changes format or dtype in each call",
            any(map(converts, rows)),
        )
    )
    entries.append(("|", "black", "geometric mean", len(rows) > len(lines)))
    entries.append(("x", PEER, COMPILED, any(compiled_speedup(row) is not None for row in rows)))
    for marker, color, label, used in entries:
        if used:
            axes.plot([], [], marker, color=color, label=label, markeredgewidth=1.3)
    figure = axes.figure
    figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=8)


def draw(path: Path, lines: list[Line], heading: str) -> bool:
    """Writes the picture; False where there is nothing to draw, or nothing to draw with."""
    pyplot = load_pyplot()
    if pyplot is None or not lines:
        return False
    from matplotlib import ticker

    height = FRAME_INCHES + ROW_INCHES * len(lines)
    figure, axes = pyplot.subplots(figsize=(10, height), layout="constrained")
    for at, line in enumerate(lines):
        axes.axhline(at, color="#eeeeee", linewidth=0.8, zorder=0)
        _dots(axes, at, line.rows)
    axes.set_yticks(range(len(lines)), [line.label for line in lines], fontsize=8)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    _figures(axes, lines)
    axes.set_xscale("log")
    _ticks(axes, ticker)
    axes.axvline(1, color="black", linewidth=0.8, zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    _legend(axes, lines)
    figure.suptitle(heading, fontsize=10)
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)
    return True


def _ticks(axes: Any, ticker: Any) -> None:
    """As many labelled ticks as the range needs, so few that they do not overlap."""
    axes.margins(x=0.04)
    low, high = axes.get_xlim()
    low, high = min(low, 0.95), max(high, 1.05)
    axes.set_xlim(low, high)
    if high / low < 2:
        ticks = [0.05 * step for step in range(1, 60)]
    else:
        subs = next(subs for span, subs in SUBDIVISIONS if high / low < span)
        ticks = [sub * 10.0**power for power in range(-3, 7) for sub in subs]
    axes.xaxis.set_major_locator(ticker.FixedLocator([t for t in ticks if low <= t <= high]))
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.tick_params(axis="x", labelsize=8)


def _figures(axes: Any, lines: list[Line]) -> None:
    """Geometric mean and range of each line, right of the axes, where no dot can be."""
    for at, line in enumerate(lines):
        summary = summarize(line.label, line.rows)
        assert summary is not None
        text = format_ratio(summary.mean)
        if summary.count > 1:
            axes.plot(summary.mean, at, "|", color="black", markersize=13, markeredgewidth=1.2)
            text += f" ({format_ratio(summary.least)} to {format_ratio(summary.most)})"
        axes.annotate(
            text,
            (1, at),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=SLOWER if summary.least < 1 else "black",
        )


def draw_overview(path: Path, records: dict[str, Record]) -> bool:
    """All ops in one picture, a line each."""
    rows = [row for record in records.values() for row in record["rows"]]
    lines = lines_of(rows, family)
    latest = max(records.values(), key=lambda record: record["machine"]["date"])
    return draw(path, lines, title("all cases", latest))


def draw_op(path: Path, op: str, record: Record) -> bool:
    """The cases of one op, a line for each group, or one for all where these would overlap."""
    lines = lines_of(record["rows"], group)
    if len(lines) > MAX_LINES:
        lines = lines_of(record["rows"], family)
    return draw(path, lines, title(op, record))
