"""Compares this tree's build of the package with another revision's, in one run.

Each side is a process of its own, and the two take turns round by round, so that a change of the
machine's load meets both. Either side runs the benchmarks of this tree; a ratio is the other
revision's best round over this tree's: above 1, this tree is faster.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import catalog
from benchmarks.harness import BASELINES, PEERS, Case, Effort, Trial
from benchmarks.load import Watch
from benchmarks.tables import format_ratio, format_seconds

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("csrc", "CMakeLists.txt", "setup.py")  # what decides the compiled library
# longer rounds than within one process: at the start of each the caches hold the other side's data
FULL = Effort(case_seconds=4.0, round_seconds=1e-2, rounds=(5, 100))
QUICK = Effort(case_seconds=1.0, round_seconds=5e-3, rounds=(5, 50))
IDLE_SECONDS = 0.01  # for the threads of the side that has just run to fall asleep
# the package from one tree, the benchmarks from this one
BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); import fastvision; sys.path[0] = sys.argv[2]; "
    "from benchmarks import builds; builds.serve()"
)


def _git(*arguments: str | Path) -> None:
    subprocess.run(["git", *map(str, arguments)], cwd=ROOT, check=True, capture_output=True)


@contextlib.contextmanager
def tree_of(revision: str) -> Iterator[Path]:
    """A checkout of ``revision`` with its library, copied where its sources are this tree's."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "base"
        _git("worktree", "add", "--detach", tree, revision)
        try:
            diff = ["git", "diff", "--quiet", revision, "--", *SOURCES]
            if subprocess.run(diff, cwd=ROOT).returncode == 0:
                for library in (ROOT / "fastvision").glob("*.so"):
                    shutil.copy2(library, tree / "fastvision")
            else:
                print(f"building {revision}", flush=True)
                build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
                subprocess.run(build, cwd=tree, check=True, stdout=sys.stderr)
            yield tree
        finally:
            _git("worktree", "remove", "--force", tree)


class Side:
    """The process that runs one build, and waits while the other one runs."""

    def __init__(self, name: str, tree: Path) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-c", BOOT, str(tree), str(ROOT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(f"{self.name}: its process ended with {self.process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def _prepare(op: str, name: str, device: torch.device, effort: Effort) -> Trial:
    """The default backend of fastvision on a case, its result checked."""
    case = next(case for case in catalog.cases_of(op) if case.name == name)
    inputs, providers = case.inputs(device), case.providers(device)
    ours = next(name for name in providers if name not in PEERS)
    if case.expected is not None:
        expected = case.expected(*inputs)
    else:
        baseline = next(name for name in providers if name in BASELINES)
        expected = Trial(baseline, providers[baseline], inputs, device).first_result()
    trial = Trial(ours, providers[ours], inputs, device, host_time=case.host_time)
    case.check(trial.first_result(), expected)
    trial.prepare(effort, once=False)
    return trial


def serve() -> None:
    """Answers the requests of a ``Side``, a line of JSON for each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    trial: Trial | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("round"):
            assert trial is not None
            trial.time(trial.call, 1)
            trial.run()
            answer: dict[str, Any] = {"seconds": trial.samples[-1]}
        else:
            trial = None  # frees the last case first
            effort = QUICK if request["quick"] else FULL
            device = torch.device(request["device"])
            try:
                trial = _prepare(request["op"], request["case"], device, effort)
                answer = {"seconds": trial.seconds, "calls": trial.calls}
            except Exception as error:
                answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:400]}
        print(json.dumps(answer), file=answers, flush=True)


def compare_case(
    sides: Sequence[Side], op: str, case: Case, device: torch.device, *, quick: bool
) -> list[float] | str:
    """Best seconds of each side, or why there are none."""
    effort = QUICK if quick else FULL
    request = {"op": op, "case": case.name, "device": device.type, "quick": quick}
    one_round = 0.0
    for side in sides:
        answer = side.ask(**request)
        if "error" in answer:
            return f"{side.name}: {answer['error']}"
        one_round += answer["seconds"] * (answer["calls"] + 1)
    least, most = effort.rounds
    wanted = int(min(effort.case_seconds, case.most_seconds) / one_round)
    best = dict.fromkeys(sides, math.inf)
    for index in range(min(max(wanted, case.least_rounds or least), most)):
        for side in sides if index % 2 == 0 else reversed(sides):
            best[side] = min(best[side], side.ask(round=True)["seconds"])
            time.sleep(IDLE_SECONDS)
    return [best[side] for side in sides]


def compare(revision: str, ops: Sequence[str], device: torch.device, *, quick: bool) -> None:
    """Prints the ratio of each case and their geometric mean."""
    watch = Watch()
    with contextlib.ExitStack() as stack:
        sides = [Side(revision, stack.enter_context(tree_of(revision))), Side("this tree", ROOT)]
        for side in sides:
            stack.callback(side.close)
        ratios = []
        for op in ops:
            for case in catalog.cases_of(op):
                if quick and not case.quick:
                    continue
                result = compare_case(sides, op, case, device, quick=quick)
                if isinstance(result, str):
                    print(f"{op}: {case.name}: FAILED: {result}", flush=True)
                    continue
                base, ours = result
                ratios.append(base / ours)
                times = f"{revision} {format_seconds(base)}, this tree {format_seconds(ours)}"
                print(f"{op}: {case.name}: {times}, {format_ratio(ratios[-1])}", flush=True)
    if ratios:
        mean = format_ratio(statistics.geometric_mean(ratios))
        print(f"{len(ratios)} cases on {device.type}, geometric mean {mean}; above 1: faster now")
    watch.look()
    if busy := watch.busy():
        print(f"WARNING: this machine is busy: {busy}")
