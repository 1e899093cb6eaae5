"""scripts/gpu_record.py shares its time out, and a stop at any point leaves what was measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import gpu_record
    import timeboxes

    return SimpleNamespace(gpu_record=gpu_record, timeboxes=timeboxes)


class FakeTime:
    """A clock, and steps that take the given seconds of it or as long as they may."""

    def __init__(self, seconds: dict[str, float], codes: dict[str, int] | None = None) -> None:
        self.now, self.seconds, self.codes = 0.0, seconds, codes or {}
        self.limits: dict[str, float] = {}

    def clock(self) -> float:
        return self.now

    def execute(self, step, limit, log):
        self.limits[step.name] = limit
        self.now += min(self.seconds[step.name], limit)
        return self.codes.get(step.name, 0) if self.seconds[step.name] <= limit else None


def steps_of(scripts, **shares):
    step = scripts.timeboxes.Step
    return [
        step(name, ["run", name], share, needed=name == "build") for name, share in shares.items()
    ]


def run(scripts, tmp_path, steps, fake, seconds=100.0):
    record = scripts.timeboxes.Record(tmp_path / "gpu_record.json", {"device": "fake"}, steps)
    passed = scripts.timeboxes.run(steps, seconds, record, fake.execute, fake.clock)
    return passed, json.loads((tmp_path / "gpu_record.json").read_text())


def test_plan_shares_all_the_time_out(scripts):
    steps = steps_of(scripts, build=5, test=3, bench=2)
    limits = [limit for _, limit in scripts.timeboxes.plan(steps, 100)]
    assert limits == pytest.approx([50, 30, 20])


def test_unused_time_is_passed_on(scripts, tmp_path):
    fake = FakeTime({"build": 10, "test": 1000, "bench": 5})
    steps = steps_of(scripts, build=5, test=3, bench=2)
    passed, record = run(scripts, tmp_path, steps, fake)
    assert fake.limits == pytest.approx({"build": 50, "test": 54, "bench": 36})
    statuses = [entry["status"] for entry in record["steps"].values()]
    assert statuses == ["passed", "out of time", "passed"]
    assert record["not reached"] == []
    assert not passed


def test_nothing_runs_on_a_failed_build(scripts, tmp_path):
    fake = FakeTime({"build": 10, "test": 1}, codes={"build": 1})
    _, record = run(scripts, tmp_path, steps_of(scripts, build=1, test=1), fake)
    assert record["steps"]["build"]["status"] == "failed"
    assert record["not reached"] == ["test"]


def test_a_failed_step_does_not_stop_the_others(scripts, tmp_path):
    fake = FakeTime({"test": 1, "bench": 1}, codes={"test": 1})
    _, record = run(scripts, tmp_path, steps_of(scripts, test=1, bench=1), fake)
    assert [entry["status"] for entry in record["steps"].values()] == ["failed", "passed"]


def test_no_step_starts_when_time_is_over(scripts, tmp_path):
    fake = FakeTime({"build": 50, "test": 1})
    fake.execute = lambda step, limit, log: setattr(fake, "now", 99.0)  # ends late
    _, record = run(scripts, tmp_path, steps_of(scripts, build=1, test=1), fake)
    assert record["not reached"] == ["test"]


def test_interruption_is_recorded(scripts, tmp_path):
    fake = FakeTime({"test": 1})

    def interrupted(step, limit, log):
        log.write_text(
            "tests/a.py::test_one PASSED [ 50%]\ntests/a.py::test_b[1 box] FAILED [99%]\n"
        )
        raise KeyboardInterrupt

    fake.execute = interrupted
    with pytest.raises(KeyboardInterrupt):
        run(scripts, tmp_path, steps_of(scripts, test=1, bench=1), fake)
    record = json.loads((tmp_path / "gpu_record.json").read_text())
    entry = record["steps"]["test"]
    assert entry["status"] == "stopped"
    assert entry["tests"] == {"passed": 1, "failed": 1}
    assert entry["failed tests"] == ["tests/a.py::test_b[1 box]"]
    assert record["not reached"] == ["bench"]


def test_missing_command_is_a_failure(scripts, tmp_path):
    step = scripts.timeboxes.Step("sanitize", ["no-such-command"], 1)
    record = scripts.timeboxes.Record(tmp_path / "gpu_record.json", {}, [step])
    execute = scripts.timeboxes.execute
    scripts.timeboxes.run([step], 10, record, lambda *step: execute(*step, tmp_path))
    assert record.steps["sanitize"]["status"] == "failed"
    assert "no-such-command" in record.steps["sanitize"]["reason"]


def test_a_step_ends_with_its_children(scripts, tmp_path):
    child = "import subprocess, sys; print('started', flush=True); subprocess.run(['sleep', '600'])"
    step = scripts.timeboxes.Step("test", [sys.executable, "-c", child], 1)
    log = tmp_path / "log.txt"
    begin = time.monotonic()
    assert scripts.timeboxes.execute(step, 3.0, log, tmp_path) is None
    assert time.monotonic() - begin < 60
    assert log.read_text() == "started\n"


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=str)
def test_stopped_run_leaves_a_record(tmp_path, sign):
    program = """if True:
        import signal, sys, time
        from pathlib import Path
        import gpu_record, timeboxes
        signal.signal(signal.SIGTERM, gpu_record._stop)
        # a background job inherits that it is ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
        folder = Path(sys.argv[1])
        quick, slow = [sys.executable, "-c", "print('done')"], ["sleep", "30"]
        shares = {"build": quick, "test": slow, "bench": quick}
        steps = [timeboxes.Step(name, command, 1) for name, command in shares.items()]
        record = timeboxes.Record(folder / "gpu_record.json", {"device": "fake"}, steps)
        execute = lambda *step: timeboxes.execute(*step, folder)
        timeboxes.run(steps, 300, record, execute)
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("test: at most"):
                process.send_signal(sign)
                break
    record = json.loads((tmp_path / "gpu_record.json").read_text())
    assert record["steps"]["build"]["status"] == "passed"
    expected = "running" if sign == signal.SIGKILL else "stopped"
    assert record["steps"]["test"]["status"] == expected
    assert record["not reached"] == ["bench"]
    assert (tmp_path / "gpu_build.txt").read_text() == "done\n"


def test_every_gpu_test_has_a_family(scripts):
    families = {
        family: scripts.gpu_record.test_files(family) for family in scripts.gpu_record.FAMILIES
    }
    assert all(families.values())
    found = {file for files in families.values() for file in files}
    assert {str(path) for path in (ROOT / "tests" / "gpu").glob("test_*.py")} <= found


def test_dry_run_prints_the_plan(scripts, capsys):
    assert scripts.gpu_record.main(["--minutes", "6", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(scripts.gpu_record.ORDER)
    assert "-m pip install" in lines[0]
    assert sum(float(line.split(" s ")[0]) for line in lines) == pytest.approx(360, abs=len(lines))
    benches = {part for kind, part, _ in scripts.gpu_record.ORDER if kind == "bench"}
    assert benches <= {path.stem[6:] for path in (ROOT / "benchmarks").glob("*/bench_*.py")}
