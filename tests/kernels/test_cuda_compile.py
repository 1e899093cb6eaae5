"""Every CUDA kernel compiles for every listed architecture, in registers alone: no GPU needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))
CMAKE = (ROOT / "CMakeLists.txt").read_text()
ARCHITECTURES = re.search(r'set\(FASTVISION_CUDA_ARCHS "([\d;]+)"', CMAKE)[1].split(";")
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")

pytestmark = pytest.mark.skipif(NVCC is None, reason="needs nvcc")

# as ptxas -v prints them for each function
PROPERTIES = re.compile(
    r"Function properties for (\S+)\s+"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
)


def compile_for(source: Path, architecture: str, folder: Path) -> list[tuple[str, ...]]:
    """Properties of the kernels of ``source`` compiled for ``architecture``."""
    command = [NVCC, "-std=c++17", "-O3", "-cubin", f"-arch=sm_{architecture}", "-Xptxas", "-v"]
    output = folder / f"{source.stem}_{architecture}.cubin"
    result = subprocess.run(
        [*command, f"-I{ROOT / 'csrc'}", "-o", output, source], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return PROPERTIES.findall(result.stderr)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_no_spills(source: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda arch: compile_for(source, arch, tmp_path), ARCHITECTURES)
    for architecture, kernels in zip(ARCHITECTURES, results, strict=True):
        # CUB's kernels in the same file are its own business
        own = [kernel for kernel in kernels if kernel[0].startswith("_ZN10fastvision")]
        assert own, f"no kernel found for sm_{architecture}"
        spilled = [kernel for kernel in own if kernel[1:] != ("0", "0", "0")]
        assert not spilled, f"sm_{architecture}: {spilled}"
