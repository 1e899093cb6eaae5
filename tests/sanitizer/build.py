"""The package with a library built with the sanitizers of addresses and undefined behaviour."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import fastvision

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(fastvision.__file__).parent
TOOLS = ("g++", "cmake", "ninja")


def sanitizer_runtime() -> list[str]:
    """What has to be loaded before anything else; of libstdc++ the runtime watches throw.

    Raises:
        FileNotFoundError: g++ has no such library.
    """
    paths = []
    for name in ("libasan.so", "libstdc++.so"):
        command = ["g++", f"-print-file-name={name}"]
        path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        if not Path(path).is_absolute():
            raise FileNotFoundError(f"g++ has no {name}")
        paths.append(str(Path(path).resolve()))
    return paths


def build(folder: Path) -> None:
    """Copies the package to ``folder``, with a sanitized library. Raises CalledProcessError."""
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
        subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
        )
    library = build / "libfastvision.so"
    checks = library.read_bytes()
    assert b"__asan_report_load" in checks and b"__ubsan_handle" in checks
    shutil.copy(library, folder / "fastvision")


def environment(package: Path) -> dict[str, str]:
    """Variables for a Python that imports the package in this folder under the sanitizers."""
    asan = {
        "detect_leaks": 0,  # Python frees little on exit
        "halt_on_error": 1,
        # a read far behind the end of a small tensor should not meet the next one
        "redzone": 128,
        # what was freed is watched for this long; a longer list spoils the caches
        "quarantine_size_mb": 16,
        "malloc_context_size": 4,
    }
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(sanitizer_runtime()),
        "ASAN_OPTIONS": ":".join(f"{name}={value}" for name, value in asan.items()),
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "OMP_WAIT_POLICY": "passive",  # most inputs need no second thread
        "OPENBLAS_NUM_THREADS": "1",  # NumPy's threads begin on import, before processes fork
        "PYTHONPATH": os.pathsep.join((str(package), str(ROOT / "tests"))),
    }
