"""The tables of the report, and how its figures are written."""

from __future__ import annotations

from benchmarks.document import Table
from benchmarks.harness import BASELINES
from benchmarks.records import (
    DIRECT_SUM,
    Row,
    Summary,
    baseline_seconds,
    bound_seconds,
    our_providers,
    our_speedup,
    speedup,
)


def format_seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def format_ratio(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 100 else f"{ratio:.3g}x"


def short_ratio(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}" if ratio >= 2 else f"{ratio:.2f}"


def format_share(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.005 else "<1 %"


def _headline(row: Row) -> str:
    """Both times in the baseline's unit."""
    ours, baseline = row["providers"][our_providers(row)[0]]["seconds"], baseline_seconds(row)
    unit, size = ("us", 1e-6) if baseline is not None and baseline < 1e-3 else ("ms", 1e-3)
    times = [_figure(seconds / size) for seconds in (baseline, ours) if seconds is not None]
    return f"{' to '.join(times)} {unit}: {row['case']}"


def _figure(number: float) -> str:
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"


def summary_table(parts: list[Summary]) -> Table:
    """A line per op: how much faster, and the case that takes the baseline longest."""
    lines = [["op", "cases", "geometric mean", "least", "most", "longest case"]]
    for part in parts:
        ratios = [format_ratio(ratio) for ratio in (part.mean, part.least, part.most)]
        lines.append([part.name, str(part.count), *ratios, _headline(part.headline)])
    return Table(lines)


def slowdown_table(slow: list[tuple[float, Row]]) -> Table:
    lines = [["op", "slower than its baseline", "speed-up", "time", "baseline"]]
    for ratio, row in slow:
        ours = row["providers"][our_providers(row)[0]]["seconds"]
        times = [format_seconds(seconds) for seconds in (ours, baseline_seconds(row))]
        lines.append([row["op"], row["case"], format_ratio(ratio), *times])
    return Table(lines)


def _cells(row: Row, provider: str, limits: Row) -> list[str]:
    entry = row["providers"][provider]
    if "seconds" not in entry:
        return [provider, entry["status"], "", "", ""]
    once = " (once)" if entry["rounds"] == 1 else ""
    bound, ratio = bound_seconds(row, limits), speedup(row, provider)
    memory = entry.get("peak_bytes")
    return [
        provider,
        format_seconds(entry["seconds"]) + once,
        format_ratio(ratio) if ratio and provider not in BASELINES else "",
        format_share(bound / entry["seconds"]) if bound else "",
        f"{memory / 2**20:.1f} MiB" if memory is not None else "",
    ]


def case_table(rows: list[Row], limits: Row) -> Table:
    """A line per case and provider; slowdowns first, then in the order of the cases."""
    bound = "direct-sum bound" if rows and rows[0]["op"] in DIRECT_SUM else "bound"
    lines = [["case", "provider", "time", "speed-up", "share", "memory", bound]]
    for row in sorted(rows, key=lambda row: min(our_speedup(row) or 1, 1)):
        if row["status"] != "ok":
            lines.append([row["case"], "", row["status"].upper(), "", "", "", ""])
        time = format_seconds(bound_seconds(row, limits))
        for index, provider in enumerate(row["providers"]):
            first = index == 0
            cells = _cells(row, provider, limits)
            lines.append([row["case"] if first else "", *cells, time if first else ""])
    return Table(lines).without_empty_columns()


def stage_tables(rows: list[Row]) -> list[tuple[str, Table]]:
    """Where a model's time goes, before and after: a title and a table per case with stages."""
    parts = []
    for row in rows:
        details = {
            name: entry["details"]
            for name, entry in row["providers"].items()
            if "stages" in entry.get("details", {})
        }
        if not details:
            continue
        first = next(iter(details.values()))
        lines = [["stage", *details]]
        for stage in first["stages"]:
            times = [format_seconds(one["stages"].get(stage)) for one in details.values()]
            lines.append([stage, *times])
        # records of before the one estimator have medians here
        of = first.get("stages of", "medians of all runs")
        parts.append((f"{row['case']}: stages, {of}. {first['remark']}.", Table(lines)))
    return parts
