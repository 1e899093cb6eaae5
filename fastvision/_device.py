"""Facts about this machine, asked at most once."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

from . import _extension


@functools.cache
def triton_missing() -> str | None:
    """Why Triton kernels cannot be compiled here, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None


@functools.cache
def triton_interpreted() -> bool:
    """Triton's interpreter runs the kernels on CPU tensors (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def cuda_kernels_missing(index: int) -> str | None:
    """Why the compiled CUDA kernels cannot run on CUDA device ``index``, or None."""
    if _extension.missing is not None:
        return _extension.missing
    built = _extension.cuda_architectures()
    if not built:
        return "the compiled library has no CUDA kernels (built without nvcc)"
    major, minor = torch.cuda.get_device_capability(index)
    capability = 10 * major + minor
    # binary code runs on its own major version from its minor version on; the last architecture is
    # in the library as PTX too, which is compiled for any later device
    real = [int(arch.rstrip("af")) for arch in built]  # 90a is for 9.0 alone, 100f for its family
    if any(arch // 10 == major and arch <= capability for arch in real) or capability >= real[-1]:
        return None
    return f"the CUDA kernels are built for {', '.join(built)}, this device is {capability}"


@functools.cache
def triton_has_tensor_cores(index: int) -> bool:
    """Triton's dot uses CUDA device ``index``'s tensor cores: from compute capability 8.0 on."""
    return torch.cuda.get_device_capability(index) >= (8, 0)
