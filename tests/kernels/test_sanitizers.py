"""The CPU kernels under the sanitizers of addresses and undefined behaviour."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastvision import _extension
from fastvision.ops._library import PUBLIC

sys.path.append(str(Path(__file__).parents[1]))
from sanitizer.build import ROOT, TOOLS, build, environment
from sanitizer.engine import FUZZERS

pytestmark = pytest.mark.long

# eager calls take a shorter way to the kernels of these
IN_PYTHON = {"conv_bn_relu", "conv_transpose2d", "linear_act"}
# counts the calls of operators; the parsed events of a profile take much longer
REACHED = """
import collections, sys, torch
from torch.profiler import ProfilerActivity, profile
from sanitizer.engine import FUZZERS, Engine, reach_kernels
reach_kernels()
with profile(activities=[ProfilerActivity.CPU]) as found:
    for name in FUZZERS:
        engine = Engine(name)
        for seed in range(int(sys.argv[1])):
            engine.run(seed)
names = (event.name() for event in found.profiler.kineto_results.events())
for name, number in collections.Counter(names).items():
    if name.startswith("fastvision::"):
        print(name.removeprefix("fastvision::"), number)
"""


@pytest.fixture(scope="module")
def library() -> None:
    if _extension.missing is not None:
        pytest.skip(_extension.missing)


@pytest.fixture(scope="module")
def sanitized_package(library: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package whose library is built with the sanitizers."""
    for command in TOOLS:
        if shutil.which(command) is None:
            pytest.skip(f"{command} is not installed")
    folder = tmp_path_factory.mktemp("sanitized")
    try:
        environment(folder)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    try:
        build(folder)
    except subprocess.CalledProcessError as error:
        pytest.fail(error.stdout)
    return folder


def run_sanitized(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command, variables = [sys.executable, *arguments], environment(package)
    return subprocess.run(command, cwd=package, env=variables, capture_output=True, text=True)


def test_fuzz(sanitized_package: Path) -> None:
    run = run_sanitized(sanitized_package, "-m", "sanitizer.fuzz", "--seconds", "12")
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert run.stdout.splitlines()[-1].startswith("fuzzed ")


OVERFLOW = """
import ctypes, torch
from fastvision import _extension
memory = torch.zeros(16, dtype=torch.uint8)
ctypes.memset(memory.data_ptr() + 16, 0, 1 << 12)
"""


def test_the_sanitizer_is_awake(sanitized_package: Path) -> None:
    run = run_sanitized(sanitized_package, "-c", OVERFLOW)
    assert run.returncode != 0
    assert "AddressSanitizer" in run.stderr


FOUND = """
import torch
from fastvision import _extension, ops
from sanitizer.engine import levels

for level in levels():
    _extension.set_cpu_level(level)
    for dtype in (torch.float32, torch.float64):
        logits = torch.tensor([0.5, -2.0, float("inf"), 1e30, -4.6], dtype=dtype)
        for target in (-1.0, 2.0, -1e30):  # the loss takes the logarithm of a negative number
            ops.sigmoid_focal_loss(logits, torch.full_like(logits, target), 0.25, 5.5)
"""


def test_what_was_found_once(sanitized_package: Path) -> None:
    run = run_sanitized(sanitized_package, "-c", FOUND)
    assert run.returncode == 0, run.stderr[:4000]


def test_every_op_has_a_fuzzer() -> None:
    assert not PUBLIC.keys() - FUZZERS.keys()


def test_every_kernel_is_reached(library: None) -> None:
    """Backward ops and those that only some arguments lead to included."""
    names = {
        name.removeprefix("fastvision::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("fastvision::")
        and torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")
    }
    kernels = {name for name in names if not name.rstrip("_").endswith("_triton")}
    kernels -= IN_PYTHON
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "-c", REACHED, "60"]
    run = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    reached = dict(line.split() for line in run.stdout.splitlines())
    assert sorted(kernels - reached.keys()) == []


FAULT = """
import sanitizer.fuzz as fuzz, sys
from sanitizer.engine import FUZZERS
from sanitizer.inputs import Results
import ctypes, torch

def overflow():
    x = torch.zeros(7)
    ctypes.memset(x.data_ptr() + 28, 0, 1)
    return Results([x])

def unwritten():
    return Results([torch.empty(7)])

FUZZERS.clear()
FUZZERS.update(
    fine=lambda rng: lambda: Results([torch.zeros(7)]),
    overflow=lambda rng: overflow if rng.chance(0.1) else Results,
    refusal=lambda rng: lambda: torch.zeros(2) @ torch.zeros(3),
    unwritten=lambda rng: unwritten,
)
sys.argv[1:] = ["--inputs", "100"]
sys.exit(fuzz.main())
"""


def test_a_fault_ends_only_its_op(sanitized_package: Path) -> None:
    """And is told with the seed that repeats it."""
    run = run_sanitized(sanitized_package, "-c", FAULT)
    assert run.returncode == 1, run.stdout + run.stderr
    assert run.stdout.splitlines()[-1] == "failed: overflow, refusal, unwritten"
    assert "heap-buffer-overflow" in run.stdout
    assert "uninitialised" in run.stdout
    assert " 100 inputs" in next(
        line for line in run.stdout.splitlines() if line.startswith("fine")
    )
