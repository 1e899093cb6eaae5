"""Records as JSON, one file per op, and the report made of them: Markdown with plots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.harness import BASELINES, PEERS
from benchmarks.machine import floor_seconds

Row = dict[str, Any]

EXPLANATION = """\
Every provider of a case runs on the same inputs. Results are checked before anything is timed:
indices must be identical, features within the dtype's tolerance, and a case with a wrong result
gets no times. Then the providers take turns, round by round. A time is the best round's time per
call, the speed-up is torchvision's time over it, or that of torch's layers one by one in the
memory format in which they are faster; `once` marks what is so slow that it was timed
in a single call. The floor is the time that the least bytes and operations of any implementation
(`benchmarks/work.py` counts them) take at this machine's limits, the share is the floor over the
time. NMS is bound by sorting and by its chain of decisions, which the floor leaves out. Memory is
the peak beyond the inputs."""


def save_records(folder: Path, rows: list[Row], machine: Row, limits: Row, *, quick: bool) -> None:
    """Writes <op>.json for every op among ``rows``; the other ops' files stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for op in dict.fromkeys(row["op"] for row in rows):
        record = {
            "machine": machine,
            "quick": quick,
            "limits": limits,
            "rows": [row for row in rows if row["op"] == op],
        }
        (folder / f"{op}.json").write_text(json.dumps(record, indent=1) + "\n")


def format_seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def format_ratio(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 100 else f"{ratio:.3g}x"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share >= 1e-4 else "<0.01 %"


def speedup(row: Row, provider: str) -> float | None:
    """The fastest baseline's time over the provider's, or None where either is missing."""
    entries = row["providers"]
    baselines = [entries[name].get("seconds") for name in BASELINES if name in entries]
    seconds = entries.get(provider, {}).get("seconds")
    fastest = min((s for s in baselines if s is not None), default=None)
    return None if fastest is None or seconds is None else fastest / seconds


def _cells(row: Row, provider: str, limits: Row) -> list[str]:
    entry = row["providers"][provider]
    if "seconds" not in entry:
        return [provider, entry["status"], "", "", ""]
    once = " (once)" if entry["rounds"] == 1 else ""
    floor, ratio = floor_seconds(row, limits), speedup(row, provider)
    memory = entry.get("peak_bytes")
    return [
        provider,
        format_seconds(entry["seconds"]) + once,
        format_ratio(ratio) if ratio and provider not in BASELINES else "",
        _percent(floor / entry["seconds"]) if floor else "",
        f"{memory / 2**20:.1f} MiB" if memory is not None else "",
    ]


def table(rows: list[Row], limits: Row) -> str:
    """One line per case and provider, as Markdown that reads well in a terminal too."""
    lines = [["case", "provider", "time", "speed-up", "share", "memory", "floor"]]
    for row in rows:
        if row["status"] != "ok":
            lines.append([row["case"], "", row["status"].upper(), "", "", "", ""])
        floor = format_seconds(floor_seconds(row, limits))
        for index, provider in enumerate(row["providers"]):
            first = index == 0
            cells = _cells(row, provider, limits)
            lines.append([row["case"] if first else "", *cells, floor if first else ""])
    used = [any(line[i] for line in lines[1:]) for i in range(len(lines[0]))]
    lines = [[cell for cell, keep in zip(line, used, strict=True) if keep] for line in lines]
    return _markdown(lines)


def stage_tables(rows: list[Row]) -> str:
    """Where a model's time goes, before and after; empty where no row has stages."""
    parts = []
    for row in rows:
        stages = {
            name: entry["details"]["stages"]
            for name, entry in row["providers"].items()
            if "stages" in entry.get("details", {})
        }
        if stages:
            lines = [["stage", *stages]]
            for stage in next(iter(stages.values())):
                lines.append([stage, *(format_seconds(s.get(stage)) for s in stages.values())])
            remark = row["providers"][next(iter(stages))]["details"]["remark"]
            parts.append(f"{row['case']}: median of each stage. {remark}.\n\n{_markdown(lines)}")
    return "\n\n".join(parts)


def _markdown(lines: list[list[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    rows = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    return "\n".join([rows[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *rows[1:]])


def draw_speedups(path: Path, rows: list[Row]) -> bool:
    """A bar per case and backend; False where there is nothing to draw with."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    bars = [
        (row, name, speedup(row, name))
        for row in rows
        for name in row["providers"]
        if name not in (*PEERS, "reference")  # the reference is not meant to be fast
    ]
    bars = [bar for bar in bars if bar[2] is not None]
    if not bars:
        return False
    names = list(dict.fromkeys(name for _, name, _ in bars))
    figure, axes = pyplot.subplots(figsize=(10, 0.8 + 0.25 * len(bars)), layout="constrained")
    for at, (_, name, ratio) in enumerate(bars):
        axes.barh(at, ratio - 1, left=1, color=f"C{names.index(name)}")
        axes.text(max(ratio, 1), at, f" {format_ratio(ratio)}", va="center", fontsize=7)
    labels = [row["case"] + (f" ({name})" if len(names) > 1 else "") for row, name, _ in bars]
    axes.set_yticks(range(len(bars)), labels, fontsize=7)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.margins(x=0.12, y=0.01)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("speed-up over torchvision or torch (longer is faster)")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def _conditions(record: Row) -> str:
    limits = record["limits"]
    copy = ", ".join(
        f"{rate / 1e9:.1f} GB/s at {int(size) / 2**20:g} MiB"
        for size, rate in limits["copy_bytes_per_second"].items()
    )
    facts = "\n".join(f"- {name}: {fact}" for name, fact in record["machine"].items())
    return (
        f"{facts}\n- limits: copy {copy}; arithmetic "
        f"{limits['flops_per_second'] / 1e9:.0f} GFLOP/s ({limits['how']})"
    )


def _section(folder: Path, op: str, record: Row) -> str:
    rows, limits = record["rows"], record["limits"]
    parts = []
    if record["quick"]:
        parts.append("A quick run: few rounds and the small cases only.")
    if draw_speedups(folder / f"{op}.png", rows):
        parts.append(f"![speed-up of {op}]({op}.png)")
    parts += [table(rows, limits), stage_tables(rows)]
    remarks = [f"{row['case']}: {row['note']}" for row in rows if row["note"]]
    remarks += [f"{row['case']}: {row['reason']}" for row in rows if "reason" in row]
    remarks += [
        f"{row['case']}: {entry['status']}: {entry['reason']}"
        for row in rows
        for entry in row["providers"].values()
        if "reason" in entry
    ]
    parts.append("\n".join("- " + " ".join(remark.split()) for remark in remarks))
    return "\n\n".join(part for part in parts if part)


def write_report(folder: Path) -> Path:
    """report.md of all records in ``folder``, with the plots beside it."""
    records = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    device = next(iter(records.values()))["machine"]["device"]
    parts = [f"# fastvision and torchvision on {device}", EXPLANATION]
    conditions = ""
    for op, record in records.items():
        parts.append(f"## {op}")
        if _conditions(record) != conditions:  # they hold for the next sections too
            conditions = _conditions(record)
            parts.append(conditions)
        parts.append(_section(folder, op, record))
    path = folder / "report.md"
    path.write_text("\n\n".join(parts) + "\n")
    return path
