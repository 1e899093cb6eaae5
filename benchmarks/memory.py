"""Peak memory that a call needs beyond its inputs, its result included.

On the CPU it is the growth of the process's peak resident set, in a process of its own:
``python -m benchmarks.memory <module> <case> <provider>``.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent


def peak_bytes(
    case: Any, provider: str, device: torch.device, call: Callable[[], Any]
) -> int | None:
    """Bytes, or None where they cannot be measured."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    module = f"benchmarks.ops.bench_{case.op}"
    command = [sys.executable, "-m", "benchmarks.memory", module, case.name, provider]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return int(child.stdout) if child.returncode == 0 else None


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def _main(module: str, name: str, provider: str) -> None:
    device = torch.device("cpu")
    cases = importlib.import_module(module).CASES
    case = next(case for case in cases if case.name == name)
    small = cases[0]  # loads the code and starts the threads
    small.providers(device)[provider](*small.inputs(device))
    inputs, run = case.inputs(device), case.providers(device)[provider]
    with contextlib.suppress(AttributeError):  # glibc would use what the set-up has freed
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _resident("VmRSS")
    run(*inputs)
    print(_resident("VmHWM") - before)


if __name__ == "__main__":
    _main(*sys.argv[1:])
