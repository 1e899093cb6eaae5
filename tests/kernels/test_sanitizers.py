"""The CPU kernels under the sanitizers of addresses and undefined behaviour."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastvision
from fastvision import _extension

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(fastvision.__file__).parent


def sanitizer_runtime() -> str:
    """What has to be loaded before anything else; of libstdc++ the runtime watches throw."""
    paths = []
    for name in ("libasan.so", "libstdc++.so"):
        command = ["g++", f"-print-file-name={name}"]
        path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        if not Path(path).is_absolute():
            pytest.skip(f"g++ has no {name}")
        paths.append(str(Path(path).resolve()))
    return " ".join(paths)


@pytest.fixture(scope="module")
def sanitized_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package whose library is built with the sanitizers."""
    if _extension.missing is not None:
        pytest.skip(_extension.missing)
    for command in ("g++", "cmake", "ninja"):
        if shutil.which(command) is None:
            pytest.skip(f"{command} is not installed")
    folder = tmp_path_factory.mktemp("sanitized")
    shutil.copytree(PACKAGE, folder / "fastvision", ignore=shutil.ignore_patterns("__pycache__"))
    # kept between runs, so only what changed is compiled again
    build = ROOT / "build" / f"sanitized-{sys.implementation.cache_tag}"
    options = {
        "CMAKE_BUILD_TYPE": "None",
        "CMAKE_CXX_COMPILER": shutil.which("g++"),
        "CMAKE_CXX_FLAGS": "-Og",
        "CMAKE_MAKE_PROGRAM": shutil.which("ninja"),
        "CMAKE_SKIP_RPATH": "ON",
        "FASTVISION_CUDA": "OFF",
        "FASTVISION_SANITIZE": "address,undefined",
        "FASTVISION_EMULATE_AVX512": "ON",
        "Python_EXECUTABLE": sys.executable,
    }
    configure = ["cmake", "-G", "Ninja", "-S", ROOT, "-B", build]
    configure += [f"-D{name}={value}" for name, value in options.items()]
    for command in (configure, ["cmake", "--build", build, "--target", "fastvision"]):
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert run.returncode == 0, run.stdout
    library = build / "libfastvision.so"
    checks = library.read_bytes()
    assert b"__asan_report_load" in checks and b"__ubsan_handle" in checks
    shutil.copy(library, folder / "fastvision")
    return folder


def run_sanitized(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "LD_PRELOAD": sanitizer_runtime(),
        # Python frees little on exit
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONPATH": str(package),
        "PYTHONMALLOC": "malloc",
    }
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True)


def test_fuzz(sanitized_package: Path) -> None:
    run = run_sanitized(sanitized_package, str(ROOT / "tests/sanitizer/fuzz.py"), "--seconds", "12")
    last_input = "\n".join(run.stdout.splitlines()[-1:])
    assert run.returncode == 0, f"{last_input}\n{run.stderr[:4000]}"
    assert "ERROR: AddressSanitizer" not in run.stderr
    assert run.stdout.splitlines()[-1].startswith("fuzzed ")


OVERFLOW = """
import ctypes
from fastvision import _extension
memory = ctypes.create_string_buffer(16)
ctypes.memset(ctypes.addressof(memory) + 16, 0, 1 << 12)
"""


def test_the_sanitizer_is_awake(sanitized_package: Path) -> None:
    run = run_sanitized(sanitized_package, "-c", OVERFLOW)
    assert run.returncode != 0
    assert "AddressSanitizer" in run.stderr
