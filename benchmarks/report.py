"""Writes the report of a device's records: report.md, report.html and pictures.

python -m benchmarks.report [FOLDER ...] [--readme]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import plots, readme, records, tables
from benchmarks.document import (
    Block,
    Bullets,
    Folded,
    Heading,
    Paragraph,
    Picture,
    to_html,
    to_markdown,
)
from benchmarks.records import Record, Row

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"

EXPLANATION = """\
Every provider of a case runs on the same inputs, and its result is checked before anything is \
timed: indices must be identical, features within the dtype's tolerance; a wrong result gets no \
times. Then the providers take turns, round by round. A time is the best round's time per call; \
a speed-up is the baseline's time over it, and a ratio above 1 means faster. The baseline is \
torchvision, or torch's layers one by one in the faster memory format. `once` marks a provider \
so slow that it was timed in a single call. `converted` marks cases in which torchvision \
converts its input in each call, to NCHW or to float32."""
BOUNDS = """\
The bound is the time that the least bytes and operations of any implementation \
(`benchmarks/work.py` counts them) take at this machine's limits; the share is the bound over the \
time. For convolutions it counts a direct sum: Winograd's algorithm multiplies less and may \
pass 100 %. NMS is limited by sorting and by its chain of decisions, which the bound leaves out. \
Memory is the peak beyond the inputs."""

SHOWN_SLOWDOWNS = 5
NO_SLOWDOWN = Paragraph("No case is slower than its baseline.")


def _first_screen(folder: Path, found: dict[str, Record]) -> list[Block]:
    blocks: list[Block] = []
    busy = [op for op, record in found.items() if "busy" in record["machine"]]
    if busy:
        blocks.append(Paragraph(f"**Measured on a busy machine: {', '.join(busy)}.**"))
    slow = records.slowdowns(found)
    blocks.append(tables.slowdown_table(slow[:SHOWN_SLOWDOWNS]) if slow else NO_SLOWDOWN)
    if rest := slow[SHOWN_SLOWDOWNS:]:
        blocks.append(Folded(f"{len(rest)} more", [tables.slowdown_table(rest)]))
    blocks.append(tables.summary_table(records.summaries(found)))
    remarks = [
        f"the record of {op} is {record['remark']}"
        for op, record in found.items()
        if "remark" in record
    ]
    blocks += [Bullets(remarks)] if remarks else []
    if plots.draw_overview(folder / "overview.png", found):
        blocks.append(Picture("overview.png", "speed-up of all cases"))
    return blocks


def _conditions(record: Record) -> Bullets:
    facts = [f"{name}: {fact}" for name, fact in record["machine"].items()]
    return Bullets([*facts, "a quick run: few rounds, small cases"] if record["quick"] else facts)


def _limits(limits: Row) -> Paragraph:
    copy = ", ".join(
        f"{rate / 1e9:.0f} GB/s at {int(size) / 2**20:g} MiB"
        for size, rate in limits["copy_bytes_per_second"].items()
    )
    arithmetic = f"{limits['flops_per_second'] / 1e9:.0f} GFLOP/s"
    for dtype, rate in limits["flops_per_second_of"].items():
        arithmetic += f", {rate / 1e9:.0f} in {dtype}"
    return Paragraph(
        f"Limits, the highest of all runs: copy {copy}; arithmetic {arithmetic}. {limits['how']}."
    )


def _remarks(rows: list[Row]) -> list[str]:
    remarks = [f"{row['case']}: {row['note']}" for row in rows if row["note"]]
    remarks += [f"{row['case']}: {row['reason']}" for row in rows if "reason" in row]
    remarks += [
        f"{row['case']}: {entry['status']}: {entry['reason']}"
        for row in rows
        for entry in row["providers"].values()
        if "reason" in entry
    ]
    return [" ".join(remark.split()) for remark in remarks]


def op_tables(rows: list[Row], limits: Row) -> list[Block]:
    """All cases of an op, and the stages of models."""
    blocks: list[Block] = [tables.case_table(rows, limits)]
    for text, table in tables.stage_tables(rows):
        blocks += [Paragraph(text), table]
    return blocks


def _section(folder: Path, op: str, record: Record, limits: Row) -> list[Block]:
    rows = record["rows"]
    blocks: list[Block] = [Heading(op)]
    if "busy" in record["machine"]:
        blocks.append(Paragraph(f"**Busy machine: {record['machine']['busy']}.**"))
    if plots.draw_op(folder / f"{op}.png", op, record):
        blocks.append(Picture(f"{op}.png", f"speed-up of {op}"))
    inside = op_tables(rows, limits)
    remarks = _remarks(rows)
    inside += [Bullets(remarks)] if remarks else []
    blocks.append(Folded(f"{len(rows)} cases", inside))
    return [*blocks, Folded("machine and versions", [_conditions(record)])]


def write_report(folder: Path) -> Path:
    """report.md and report.html of all records in ``folder``, with the pictures next to them."""
    found = records.load(folder)
    limits = records.highest_limits(found.values())
    device = next(iter(found.values()))["machine"]["device"]
    title = f"fastvision and torchvision on {device}"
    blocks: list[Block] = [Heading(title, 1), *_first_screen(folder, found)]
    blocks.append(Folded("How it is measured", [Paragraph(EXPLANATION), Paragraph(BOUNDS)]))
    blocks.append(Folded("Limits of the machine", [_limits(limits)]))
    for op, record in found.items():
        blocks += _section(folder, op, record, limits)
    records.write_atomically(folder / "report.html", to_html(title, blocks))
    path = folder / "report.md"
    records.write_atomically(path, to_markdown(blocks))
    return path


def write_readme() -> None:
    text = README.read_text()
    found = {name: records.load(RESULTS / name) for name in readme.folders(text)}
    README.write_text(readme.rewrite(text, found))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="*", help="default: all of benchmarks/results")
    parser.add_argument("--readme", action="store_true", help="write README's tables, too")
    options = parser.parse_args(arguments)
    for folder in options.folder or sorted(p for p in RESULTS.iterdir() if p.is_dir()):
        print(write_report(folder))
    if options.readme:
        write_readme()


if __name__ == "__main__":
    main()
