"""Loads the compiled library once, and says why not where it cannot be loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

_C: ModuleType | None = None
missing: str | None = None


def _load() -> None:
    global _C, missing
    library = Path(__file__).with_name("libfastvision.so")
    if not library.exists():
        missing = f"the compiled library is not installed ({library.name} not found)"
        return
    try:
        # torch must be in the process first: the library finds its symbols through libtorch.so
        torch.ops.load_library(str(library))
        from . import _C as module
    except (OSError, ImportError) as error:
        missing = f"the compiled library does not load: {error}"
        return
    _C = module


_load()


def cuda_architectures() -> list[str]:
    """CUDA architectures in the compiled library; empty where it has no CUDA kernels."""
    return [] if _C is None else _C.cuda_architectures()


# instruction set of the CPU kernels in use, by which the layout of packed weights goes
cpu_level: Callable[[], str] = (lambda: "") if _C is None else _C.cpu_capability
