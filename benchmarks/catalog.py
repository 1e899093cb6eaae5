"""Where the cases are: bench_<op>.py has those of one op, as CASES."""

from __future__ import annotations

import importlib
from pathlib import Path

from benchmarks.harness import Case

HERE = Path(__file__).resolve().parent
FILES = {path.stem.removeprefix("bench_"): path for path in sorted(HERE.glob("*/bench_*.py"))}


def ops_for(device_type: str) -> list[str]:
    """bench_<op>_gpu.py has cases for CUDA devices alone."""
    return [op for op in FILES if device_type == "cuda" or not op.endswith("_gpu")]


def cases_of(op: str) -> list[Case]:
    path = FILES[op]
    return importlib.import_module(f"benchmarks.{path.parent.name}.{path.stem}").CASES
