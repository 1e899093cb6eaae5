"""Loads the compiled library once, says why not where it cannot be loaded, and asks it how it was
built and which CPU level its kernels run at (csrc/python/library.h)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

missing: str | None = None


def _load() -> ctypes.PyDLL | None:
    global missing
    path = Path(__file__).with_name("libfastvision.so")
    if not path.exists():
        missing = f"the compiled library is not installed ({path.name} not found)"
        return None
    try:
        # torch must be in the process first: the library finds its symbols through libtorch.so
        torch.ops.load_library(str(path))
        # PyDLL keeps the GIL: these functions are shorter than giving it up
        library = ctypes.PyDLL(str(path))
        for name in (
            "compiler",
            "cuda_version",
            "cuda_architectures",
            "cpu_levels",
            "set_cpu_level",
        ):
            getattr(library, f"fastvision_{name}").restype = ctypes.c_char_p
        library.fastvision_ask_for_huge_pages.argtypes = ctypes.c_void_p, ctypes.c_int64
        return library
    except (OSError, AttributeError) as error:  # AttributeError: of another version
        missing = f"the compiled library does not load: {error}"
        return None


_library = _load()


def _text(name: str) -> str:
    """What a function without arguments tells; empty where there is no library."""
    return "" if _library is None else getattr(_library, f"fastvision_{name}")().decode()


def compiler() -> str:
    """Name and version of the C++ compiler."""
    return _text("compiler")


def cuda_version() -> str:
    """Version of the CUDA compiler; empty without CUDA kernels."""
    return _text("cuda_version")


def cuda_architectures() -> list[str]:
    """CUDA architectures in the compiled library; empty without CUDA kernels."""
    return _text("cuda_architectures").split()


def ask_for_huge_pages(address: int, bytes: int) -> None:
    """Asks the system for huge pages in a block that has not been touched yet."""
    if _library is not None:
        _library.fastvision_ask_for_huge_pages(address, bytes)


def cpu_levels() -> list[str]:
    """Instruction sets that the CPU kernels are compiled for, lowest first."""
    return _text("cpu_levels").split()


_levels = (*cpu_levels(), "")  # ends in the level without a library
_level: Callable[[], int] = (lambda: -1) if _library is None else _library.fastvision_cpu_level


def cpu_level() -> str:
    """Instruction set of the CPU kernels in use, by which the layout of packed weights goes."""
    return _levels[_level()]


def cpu_level_supported() -> str:
    """The highest level that this CPU can run."""
    return "" if _library is None else _levels[_library.fastvision_cpu_level_supported()]


def set_cpu_level(level: str) -> None:
    """Runs the CPU kernels at ``level``.

    Raises:
        ValueError: the library has no such level, or this CPU cannot run it.
    """
    if _library is None:
        raise ValueError(f"CPU level {level!r}: {missing}")
    reason = _library.fastvision_set_cpu_level(level.encode())
    if reason is not None:
        raise ValueError(f"CPU level {level!r}: {reason.decode()}")
