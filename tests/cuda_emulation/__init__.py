"""Runs the CUDA kernels of csrc/cuda on the CPU, under AddressSanitizer and UBSan.

``build`` compiles a kernel's source and a driver (a ``main`` that reads arrays from files, calls
the kernel's launcher and writes arrays) for the host against an emulation of CUDA's execution
model; ``run`` passes arrays through it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
# no fused multiply-adds, as in the product's build
FLAGS = (
    *("-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-ffp-contract=off"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DFASTVISION_CUDA_EMULATION"),
)


def build(output: Path, driver: Path, *kernels: Path, definitions: tuple[str, ...] = ()) -> Path:
    """Compiles ``driver`` and the .cu files ``kernels`` to the executable ``output``."""
    includes = [f"-I{HERE / 'include'}", f"-I{HERE}", f"-I{ROOT / 'csrc'}"]
    if (
        "-fsanitize-sections"
        in subprocess.run([COMPILER, "--help=common"], capture_output=True, text=True).stdout
    ):
        includes.append("-fsanitize-sections=cuda_shared")  # bounds of __shared__ variables too
    sources = [HERE / "fiber.cpp", HERE / "scheduler.cpp", driver, *kernels]
    command = [COMPILER, *FLAGS, *(f"-D{d}" for d in definitions), *includes, "-o", output]
    # "-x c++": .cu files are taken for C++
    result = subprocess.run([*command, "-x", "c++", *sources], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return output


def run(
    program: Path,
    folder: Path,
    *arguments: object,
    inputs: dict[str, np.ndarray] | None = None,
    reverse: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Runs ``program folder arguments...`` after writing each input to the file ``folder/name``.

    ``reverse`` runs blocks and threads in descending order.
    """
    for name, array in (inputs or {}).items():
        np.ascontiguousarray(array).tofile(folder / name)
    environment = {
        **os.environ,
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "CUDA_EMULATION_REVERSE": "1" if reverse else "0",
    }
    return subprocess.run(
        [program, folder, *map(str, arguments)], capture_output=True, text=True, env=environment
    )


def read(path: Path, dtype: str) -> np.ndarray:
    """An array that a driver wrote."""
    return np.fromfile(path, dtype)
