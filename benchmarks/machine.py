"""What this machine is, and the most it can do: the measure for every share of the limit."""

from __future__ import annotations

import datetime
import functools
import math
import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision

import fastvision
from fastvision import _extension
from fastvision.ops import _backend

COPY_BYTES = {"cpu": [1 << 16, 1 << 20, 1 << 24, 1 << 28], "cuda": [1 << 31]}
MATRIX = {"cpu": 2048, "cuda": 8192}
# dtypes with arithmetic units of their own: a CPU's kernels compute 16-bit values in float32
MATRIX_DTYPES = {"cpu": [], "cuda": [torch.bfloat16, torch.float16]}


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""

    def field(name: str) -> str | None:
        match = re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
        return match[1] if match else None

    name = field("model name") or platform.machine()
    family, model = field("cpu family"), field("model")
    # virtual machines may hide which generation it is
    hidden = not re.search(r"\d", name) and family and model
    return f"{name} family {family} model {model}" if hidden else name


def _isa_level() -> str:
    if _extension.missing is None:
        return _extension.cpu_level()
    return torch.backends.cpu.get_cpu_capability().lower()


def cores() -> int:
    return len(os.sched_getaffinity(0))


def slug(device: torch.device) -> str:
    """The folder of a device's records, such as amd-epyc-2-cores-avx2."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        model = re.sub(r"\((R|TM)\)|\bCPU\b|@.*", "", _cpu_model())
        name = f"{model} {cores()} cores {_isa_level()}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def describe(device: torch.device) -> dict[str, Any]:
    facts = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_model(),
        "cpu": f"{_cpu_model()}, {cores()} cores, {torch.get_num_threads()} threads used",
        "isa level": f"{_isa_level()} (torch: {torch.backends.cpu.get_cpu_capability()})",
        "load before the run": f"{os.getloadavg()[0]:.1f} processes wanting a core",
        "fastvision": fastvision.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
    if _extension.missing is None:
        facts["compiler"] = _extension.compiler()
        if device.type == "cuda":
            facts["cuda"] = f"{torch.version.cuda}, kernels by {_extension.cuda_version()}"
    for name in _backend.ORDER[device.type]:
        reason = _backend.unsupported(name, device.type, device.index)
        if reason is not None:
            facts[f"backend {name}"] = f"left out: {reason}"
    return facts


def _best_seconds(call: Callable[[], Any], device: torch.device, seconds: float) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    call()
    wait()
    best, spent = math.inf, 0.0
    while spent < seconds:
        start = time.perf_counter()
        call()
        wait()
        elapsed = time.perf_counter() - start
        best, spent = min(best, elapsed), spent + elapsed
    return best


def measure_limits(device: torch.device, *, seconds: float = 0.5) -> dict[str, Any]:
    """Copy bandwidth by bytes moved, and multiply-add rates: the best of repeated calls."""
    copy = {}
    for moved in COPY_BYTES[device.type]:
        source = torch.ones(moved // 2, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        best = _best_seconds(lambda t=target, s=source: t.copy_(s), device, seconds)
        copy[str(moved)] = moved / best
    size = MATRIX[device.type]

    def flops_per_second(dtype: torch.dtype) -> float:
        # random: a GPU clocks higher on equal numbers
        a = torch.rand(size, size, device=device, dtype=dtype)
        product = torch.empty_like(a)
        call = functools.partial(torch.mm, a, a, out=product)
        return 2 * size**3 / _best_seconds(call, device, 2 * seconds)

    return {
        "copy_bytes_per_second": copy,
        "flops_per_second": flops_per_second(torch.float32),
        "flops_per_second_of": {
            str(dtype).removeprefix("torch."): flops_per_second(dtype)
            for dtype in MATRIX_DTYPES[device.type]
        },
        "how": (
            "copy: torch's copy_ of one buffer to another, bytes read and written counted; "
            f"arithmetic: torch.mm of {size}x{size} matrices, float32 if not said; "
            f"{torch.get_num_threads()} threads, best of {seconds} s of calls each"
        ),
    }
