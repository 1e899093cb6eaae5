"""Which implementation of an operator runs: the first that can, or the one asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from torch import Tensor

from .. import _device, _extension

Backend = Literal["cuda", "triton", "cpp", "reference"]
BACKENDS: tuple[Backend, ...] = ("cuda", "triton", "cpp", "reference")
_ORDER: dict[str, tuple[Backend, ...]] = {
    "cpu": ("cpp", "reference"),
    "cuda": ("cuda", "triton", "reference"),
}

requested_by_environment = os.environ.get("FASTVISION_BACKEND") or None


def unsupported(backend: str, device_type: str, device_index: int | None) -> str | None:
    """Why ``backend`` cannot run on that device, or None."""
    if backend == "reference":
        return None
    if backend == "cpp":
        return _extension.missing if device_type == "cpu" else "cpp runs on CPU tensors"
    if backend == "cuda":
        if device_type != "cuda":
            return "cuda runs on CUDA tensors"
        return _device.cuda_kernels_missing(device_index or 0)
    if backend == "triton":
        if _device.triton_missing() is not None:
            return _device.triton_missing()
        if device_type == "cuda" or (device_type == "cpu" and _device.triton_interpreted()):
            return None
        return "triton runs on CUDA tensors (on CPU tensors only in its interpreter)"
    return f"unknown backend, expected one of {', '.join(BACKENDS)}"


def choose(
    tensor: Tensor,
    requested: str | None,
    lacks: Mapping[str, str] = MappingProxyType({}),
    *,
    automatic: bool = False,
) -> str:
    """The backend for an operator on ``tensor``.

    Args:
        tensor: an input.
        requested: what the caller asks for, if anything.
        lacks: the backends that the operator has no kernel of, and why.
        automatic: on CUDA tensors the operator chooses among kernels itself.

    Raises:
        ValueError: ``requested`` (or FASTVISION_BACKEND) names a backend that cannot run here.
    """
    if requested is None:
        requested = requested_by_environment
    if tensor.is_meta:  # the operators' fake implementations answer
        return "cpp"
    if requested is None:
        if tensor.is_cpu:  # asking tensor.device for its type is slow
            return "cpp" if _extension.missing is None else "reference"
        if automatic and tensor.is_cuda:
            return "cuda"
        device = tensor.device
        for backend in _ORDER.get(device.type, ("reference",)):
            if backend not in lacks and unsupported(backend, device.type, device.index) is None:
                return backend
        return "reference"
    device = tensor.device
    reason = unsupported(requested, device.type, device.index) or lacks.get(requested)
    if reason is not None:
        source = "FASTVISION_BACKEND" if requested is requested_by_environment else "backend"
        raise ValueError(f"{source}={requested!r} cannot run on {device}: {reason}")
    return requested
