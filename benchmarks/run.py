"""Measures fastvision beside torchvision on this machine and writes the report: make bench."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks import machine, report
from benchmarks.harness import BASELINES
from fastvision import _extension

HERE = Path(__file__).resolve().parent
FILES = {path.stem.removeprefix("bench_"): path for path in sorted(HERE.glob("*/bench_*.py"))}


class Collector:
    """A pytest plugin that keeps the rows and shows the progress, a line per case."""

    def __init__(self) -> None:
        self.rows: list[report.Row] = []
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
        text = progress(row) if row else f"{report.nodeid}\n{report.longreprtext}"
        print(f"[{self.done}/{self.total}] {text}", flush=True)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            print(report.longreprtext, flush=True)


def progress(row: report.Row) -> str:
    if row["status"] != "ok":
        return f"{row['case']}: {row['status'].upper()}: {row['reason']}"
    times = []
    for name, entry in row["providers"].items():
        text = f"{name} {report.format_seconds(entry.get('seconds')) or entry['status']}"
        if name not in BASELINES and (ratio := report.speedup(row, name)):
            text += f" ({report.format_ratio(ratio)})"
        times.append(text)
    return f"{row['case']}: {', '.join(times)}"


def measure(
    files: Sequence[Path], device: torch.device, *, quick: bool, output: Path | None
) -> int:
    """Runs the cases of ``files`` on one device. Returns 0, or pytest's exit status."""
    target = output or HERE / "results" / (machine.slug(device) + ("-quick" if quick else ""))
    facts = machine.describe(device)
    print("\n".join(f"{name}: {fact}" for name, fact in facts.items()), flush=True)
    limits = machine.measure_limits(device, seconds=0.1 if quick else 0.5)
    collector = Collector()
    options = ["-c", str(HERE / "pytest.ini"), "--device", device.type, "--tb=short"]
    options += ["--benchmark-quiet", "--no-header", "--no-summary", "-qq"]
    status = pytest.main(
        [*options, *(["--quick"] if quick else []), *map(str, files)], plugins=[collector]
    )
    if collector.rows:
        report.save_records(target, collector.rows, facts, limits, quick=quick)
        for op in dict.fromkeys(row["op"] for row in collector.rows):
            rows = [row for row in collector.rows if row["op"] == op]
            print(f"\n{op}\n\n{report.table(rows, limits)}\n\n{report.stage_tables(rows)}".rstrip())
        print(f"\n{report.write_report(target)}")
    return int(status)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--op", action="append", choices=FILES, help="only this one (repeatable)")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], help="only this one; default: all there are"
    )
    parser.add_argument("--quick", action="store_true", help="small cases only, few rounds")
    parser.add_argument(
        "--output", type=Path, help="folder of the report; default: benchmarks/results/<device>"
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
        output = options.output
        if output is not None and len(devices) > 1:
            output = output / device
        # bench_<op>_gpu.py has cases for CUDA devices alone
        files = [FILES[op] for op in options.op or FILES if device == "cuda" or op[-4:] != "_gpu"]
        if files:
            status = measure(files, torch.device(device), quick=options.quick, output=output)
            statuses.append(status)
    return max(statuses)


if __name__ == "__main__":
    raise SystemExit(main())
