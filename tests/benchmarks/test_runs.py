"""The benchmark harness measures, pairs, refuses wrong results and writes its report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("torchvision")
ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
LIMITS = {"copy_bytes_per_second": {"1024": 1e9}, "flops_per_second": 1e9, "how": "made up"}

FAKE_CASES = """
import time
import pytest, torch
from benchmarks.harness import Case, Work

def times_two(seconds, result=2):
    def run(x):
        time.sleep(seconds)
        return result * x
    return run

def case(name, result):
    return Case(
        "fake", name,
        inputs=lambda device: (torch.ones(3, device=device),),
        providers=lambda device: {"torchvision": times_two(4e-3), "cpp": times_two(1e-4, result)},
        check=torch.testing.assert_close,
        work=lambda inputs, expected: Work(24, 3),
    )

CASES = [case("right", 2), case("wrong", 3)]

@pytest.mark.parametrize("case", CASES, ids=str)
def test_fake(case, compare):
    compare(case)
"""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    pytest.importorskip("pytest_benchmark")
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import builds, catalog, document, harness, load, tables, work

    modules = {"builds": builds, "catalog": catalog, "document": document, "harness": harness}
    return SimpleNamespace(**modules, load=load, tables=tables, work=work)


class Rounds:
    """Stands for pytest-benchmark's fixture."""

    def pedantic(self, target, setup, rounds):
        for _ in range(rounds):
            setup()
            target()


def fake_case(bench, providers, **options):
    return bench.harness.Case(
        "fake",
        "one",
        inputs=lambda device: (torch.ones(3),),
        providers=lambda device: providers,
        check=torch.testing.assert_close,
        **options,
    )


def test_providers_take_turns(bench):
    order = []

    def provider(name):
        def run(x):
            if order[-1:] != [name]:
                order.append(name)
            return 2 * x

        return run

    effort = bench.harness.Effort(case_seconds=0.0, round_seconds=1e-5, rounds=(4, 4))
    case = fake_case(bench, {"torchvision": provider("A"), "cpp": provider("B")})
    row = bench.harness.compare(Rounds(), case, CPU, effort=effort)
    assert row["status"] == "ok"
    # the check, the estimate, and four rounds
    assert order == ["A", "B"] * 6
    for entry in row["providers"].values():
        assert entry["rounds"] == 4
        assert 0 < entry["seconds"] <= entry["median_seconds"]


def test_host_time_on_a_gpu_ends_with_the_device(bench, monkeypatch):
    log = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    device = torch.device("cuda")
    trial = bench.harness.Trial("ours", lambda: log.append("call"), (), device, host_time=True)
    assert trial.time(trial.call, 2) > 0
    assert log == ["wait", "call", "call", "wait"]


def test_repeated_calls_are_right_and_on_one_thread(bench):
    effort = bench.harness.Effort(case_seconds=0.0, round_seconds=0.0, rounds=(1, 1))
    threads = torch.get_num_threads()
    for case in bench.catalog.cases_of("calls"):
        row = bench.harness.compare(Rounds(), case, CPU, effort=effort)
        assert row["status"] == "ok", row
        assert torch.get_num_threads() == threads
        for provider in case.providers(CPU).values():
            with provider.around():
                assert torch.get_num_threads() == 1
                assert torch.is_inference_mode_enabled()


def test_cases_are_found_by_file_and_name(bench):
    pytest.importorskip("sklearn")
    for op in bench.catalog.FILES:
        found = bench.catalog.cases_of(op)
        assert {case.op for case in found} == {op}
        assert len({case.name for case in found}) == len(found) > 0


def test_no_speed_for_a_wrong_or_failing_backend(bench):
    def fails(x):
        raise RuntimeError("no kernel")

    for ours, status in ((lambda x: 3 * x, "wrong"), (fails, "failed")):
        case = fake_case(bench, {"torchvision": lambda x: 2 * x, "cpp": ours})
        row = bench.harness.compare(Rounds(), case, CPU, quick=True)
        assert row["status"] == status
        assert row["providers"] == {}
        assert "cpp" in row["reason"]
        assert status.upper() in str(bench.tables.case_table([row], LIMITS).lines)


def test_failing_peer_is_noted(bench):
    def fails(x):
        raise RuntimeError("does not compile")

    providers = {"torchvision": lambda x: 2 * x, "torch.compile": fails, "cpp": lambda x: x + x}
    row = bench.harness.compare(Rounds(), fake_case(bench, providers), CPU, quick=True)
    assert row["status"] == "ok"
    assert "does not compile" in row["providers"]["torch.compile"]["reason"]
    assert row["providers"]["cpp"]["seconds"] > 0


def test_least_work_of_roi_align(bench):
    # one sample, at pixel (1, 1): bilinear interpolation takes rows 1 and 2 and columns 1 and 2
    rois = torch.tensor([[0.0, 0.0, 0.0, 2.0, 2.0]])
    x, level = torch.zeros(1, 1, 4, 4), torch.zeros(1, dtype=torch.int64)
    least = bench.work.roi_align([x], rois, level, [1.0], bins=1, sampling_ratio=1)
    assert least == bench.harness.Work(bytes=4 * (4 + 1 + 5), flops=2 * 4)
    # two samples per axis, at 0.5 and 1.5, share pixel 1: nine pixels, all weighted at once
    least = bench.work.roi_align([x], rois, level, [1.0], bins=1, sampling_ratio=2)
    assert least == bench.harness.Work(bytes=4 * (9 + 1 + 5), flops=2 * 9)


def test_least_work_of_focal_loss(bench):
    x, labels = torch.zeros(3, 5, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.int64)
    least = bench.work.focal_loss(x, labels, gradient=True)
    assert least == bench.harness.Work(bytes=2 * 15 * 2 + 3 * 8, flops=15 * 18)
    least = bench.work.focal_loss(x, x, gradient=False, losses=15)
    assert least == bench.harness.Work(bytes=2 * 15 * 3, flops=15 * 12)


def run_benchmarks(file: Path, output: Path) -> subprocess.CompletedProcess[str]:
    program = (
        "import sys; from pathlib import Path; import torch; from benchmarks.run import measure; "
        "sys.exit(measure([Path(sys.argv[1])], torch.device('cpu'), quick=True, "
        "output=Path(sys.argv[2])))"
    )
    command = [sys.executable, "-c", program, str(file), str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads wait long on a busy machine
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_runner_writes_records_and_report(tmp_path):
    pytest.importorskip("pytest_benchmark")
    (tmp_path / "bench_fake.py").write_text(FAKE_CASES)
    (tmp_path / "conftest.py").write_text("from benchmarks.conftest import *")
    output = tmp_path / "report"
    done = run_benchmarks(tmp_path / "bench_fake.py", output)
    assert done.returncode == 1, done.stderr  # one case is wrong
    assert "[2/2] wrong: WRONG" in done.stdout

    record = json.loads((output / "fake.json").read_text())
    right, wrong = record["rows"]
    assert right["status"] == "ok"
    assert right["providers"]["cpp"]["seconds"] < right["providers"]["torchvision"]["seconds"]
    assert wrong["status"] == "wrong"
    assert wrong["providers"] == {}
    assert right["dtype"] == "float32"
    assert record["machine"]["torch"] == torch.__version__
    assert all(rate > 0 for rate in record["limits"]["copy_bytes_per_second"].values())
    report = (output / "report.md").read_text()
    assert "| right" in report
    assert "WRONG" in report


def test_a_stopped_run_leaves_its_rows(tmp_path):
    pytest.importorskip("pytest_benchmark")
    # the second case, which is wrong, ends the process
    stop = "compare(case) if case.name == 'right' else __import__('os')._exit(9)"
    (tmp_path / "bench_fake.py").write_text(FAKE_CASES.replace("compare(case)", stop))
    (tmp_path / "conftest.py").write_text("from benchmarks.conftest import *")
    output = tmp_path / "report"
    assert run_benchmarks(tmp_path / "bench_fake.py", output).returncode == 9
    record = json.loads((output / "fake.json").read_text())
    assert [row["case"] for row in record["rows"]] == ["right"]
    assert "stopped" in record["remark"]


def test_what_makes_a_machine_busy(bench):
    assert bench.load.reasons(0.2, 0.0, 0.05) == []
    busy = bench.load.reasons(3.6, 0.25, 0.5)
    assert len(busy) == 3
    assert "3.6 processes" in busy[0]
    assert "25 %" in busy[1]
    assert bench.load.loop_spread() >= 0


class FakeSide:
    """Stands for a process with one build."""

    def __init__(self, name, seconds, log):
        self.name, self.seconds, self.log = name, iter(seconds), log

    def ask(self, **request):
        if not request.get("round"):
            return {"seconds": 1.0, "calls": 1}
        self.log.append(self.name)
        return {"seconds": next(self.seconds)}


def test_two_builds_take_turns(bench):
    log = []
    sides = [FakeSide("base", [4, 3, 5, 6, 7], log), FakeSide("ours", [2, 2, 1, 2, 2], log)]
    case = fake_case(bench, {}, most_seconds=0.0)
    assert bench.builds.compare_case(sides, "fake", case, CPU, quick=True) == [3, 1]
    assert log == ["base", "ours", "ours", "base"] * 2 + ["base", "ours"]


def test_two_builds_in_processes(bench):
    """Both of them this tree's, on the smallest case."""
    case = next(case for case in bench.catalog.cases_of("nms") if case.name == "nms, uniform, 10")
    sides = [bench.builds.Side(name, ROOT) for name in ("base", "ours")]
    try:
        times = bench.builds.compare_case(sides, "nms", case, CPU, quick=True)
        assert min(times) > 0
        missing = fake_case(bench, {})
        reason = bench.builds.compare_case(sides, "nms", missing, CPU, quick=True)
        assert reason.startswith("base: StopIteration")
    finally:
        for side in sides:
            side.close()
