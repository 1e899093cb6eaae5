"""Every CUDA kernel in the library is compiled for each of its architectures, in registers alone:
no GPU needed. The build fails where one does not compile."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from fastvision import _extension

triton = pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(source.stem for source in (ROOT / "csrc/cuda").glob("*.cu"))
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
ARCHITECTURES = _extension.cuda_architectures()

pytestmark = [
    pytest.mark.skipif(not ARCHITECTURES, reason="needs a library with CUDA kernels"),
    pytest.mark.skipif(not CUOBJDUMP.exists(), reason="needs a Triton with cuobjdump"),
]

# as cuobjdump -res-usage prints them; spilled registers are on the stack
KERNEL = re.compile(r"Function (\S+):\s+REG:\d+ STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")
# kernels are in anonymous namespaces, whose mangled name has the file's
FILE = re.compile(r"_GLOBAL__N__\w{8}_\d+_(\w+?)_cu_")


@pytest.fixture(scope="module")
def kernels() -> dict[tuple[str, str], list[tuple[str, str, str]]]:
    """Name, stack and local memory of each kernel, by (source, architecture)."""
    library = Path(_extension.__file__).with_name("libfastvision.so")
    report = subprocess.check_output([CUOBJDUMP, "-res-usage", library], text=True)
    found: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    _, *parts = re.split(r"arch = sm_(\w+)", report)
    for architecture, part in zip(parts[::2], parts[1::2], strict=True):
        for kernel in KERNEL.findall(part):
            if source := FILE.search(kernel[0]):  # CUB's kernels are its own business
                found.setdefault((source[1], architecture), []).append(kernel)
    return found


@pytest.mark.parametrize("source", SOURCES)
def test_no_spills(source, kernels):
    for architecture in ARCHITECTURES:
        own = kernels.get((source, architecture))
        assert own, f"no kernel found for sm_{architecture}"
        spilled = [kernel for kernel in own if kernel[1:] != ("0", "0")]
        assert not spilled, f"sm_{architecture}: {spilled}"
