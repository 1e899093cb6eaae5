"""Measures fastvision and torchvision on this machine and writes the report: make bench.

With --base REV it compares this tree with another revision of the package instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from benchmarks import builds, catalog, machine, records, report
from benchmarks.document import to_markdown
from benchmarks.harness import BASELINES
from benchmarks.load import Watch
from benchmarks.records import Row
from benchmarks.tables import format_ratio, format_seconds
from fastvision import _extension

HERE = Path(__file__).resolve().parent


class Collector:
    """A pytest plugin: prints a line per case and saves each row as it arrives."""

    def __init__(self, save: Callable[[list[Row]], None]) -> None:
        self.save = save
        self.rows: list[Row] = []
        self.done = self.total = 0

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.total = len(session.items)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        return (report.outcome, "", "") if report.when == "call" else None  # no dots

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call":
            return
        self.done += 1
        row = dict(report.user_properties).get("row")
        if row is not None:
            self.rows.append(row)
            self.save(self.rows)
        text = progress(row) if row else f"{report.nodeid}\n{report.longreprtext}"
        print(f"[{self.done}/{self.total}] {text}", flush=True)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            print(report.longreprtext, flush=True)


def progress(row: Row) -> str:
    if row["status"] != "ok":
        return f"{row['case']}: {row['status'].upper()}: {row['reason']}"
    times = []
    for name, entry in row["providers"].items():
        text = f"{name} {format_seconds(entry.get('seconds')) or entry['status']}"
        if name not in BASELINES and (ratio := records.speedup(row, name)):
            text += f" ({format_ratio(ratio)})"
        times.append(text)
    return f"{row['case']}: {', '.join(times)}"


def measure(
    files: Sequence[Path], device: torch.device, *, quick: bool, output: Path | None
) -> int:
    """Runs the cases of ``files`` on one device. Returns 0, or pytest's exit status."""
    target = output or report.RESULTS / (machine.slug(device) + ("-quick" if quick else ""))
    watch = Watch()
    facts = machine.describe(device)
    print("\n".join(f"{name}: {fact}" for name, fact in facts.items()), flush=True)
    limits = machine.measure_limits(device, seconds=0.1 if quick else 0.5)

    def save(rows: list[Row], *, finished: bool = False) -> None:
        busy = watch.busy()
        conditions = facts | ({"busy": busy} if busy else {})
        records.save(target, rows, conditions, limits, quick=quick, finished=finished)

    if busy := watch.busy():
        print(f"WARNING: this machine is busy: {busy}", flush=True)
    collector = Collector(save)
    options = ["-c", str(HERE / "pytest.ini"), "--device", device.type, "--tb=short"]
    options += ["--benchmark-quiet", "--no-header", "--no-summary", "-qq"]
    status = pytest.main(
        [*options, *(["--quick"] if quick else []), *map(str, files)], plugins=[collector]
    )
    if collector.rows:
        watch.look()
        save(collector.rows, finished=status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED))
        for op in dict.fromkeys(row["op"] for row in collector.rows):
            rows = [row for row in collector.rows if row["op"] == op]
            print(f"\n{op}\n\n{to_markdown(report.op_tables(rows, limits))}".rstrip())
        print(f"\n{report.write_report(target)}")
        if busy := watch.busy():
            print(f"WARNING: the record is marked, as this machine was busy: {busy}", flush=True)
    return int(status)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument(
        "--op", action="append", choices=catalog.FILES, help="only this one (repeatable)"
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], help="only this one; default: all there are"
    )
    parser.add_argument("--quick", action="store_true", help="small cases only, few rounds")
    parser.add_argument(
        "--output", type=Path, help="folder of the report; default: benchmarks/results/<device>"
    )
    parser.add_argument(
        "--base", metavar="REV", help="compare with this revision, in turns; writes no record"
    )
    options = parser.parse_args(arguments)
    if _extension.missing:
        print(f"only the slow reference can be measured: {_extension.missing}")
    if options.device:
        devices = [options.device]
    else:
        devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    statuses = [0]
    for device in devices:
        ops = [op for op in options.op or catalog.FILES if op in catalog.ops_for(device)]
        if options.base:
            builds.compare(options.base, ops, torch.device(device), quick=options.quick)
            continue
        output = options.output
        if output is not None and len(devices) > 1:
            output = output / device
        if ops:
            files = [catalog.FILES[op] for op in ops]
            status = measure(files, torch.device(device), quick=options.quick, output=output)
            statuses.append(status)
    return max(statuses)


if __name__ == "__main__":
    raise SystemExit(main())
