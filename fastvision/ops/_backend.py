"""The backends, and which of them can run on a device."""

from __future__ import annotations

import os
from typing import Literal

from .. import _device, _extension

Backend = Literal["cuda", "triton", "cpp", "reference"]
BACKENDS: tuple[Backend, ...] = ("cuda", "triton", "cpp", "reference")
# per device type, fastest first
ORDER: dict[str, tuple[Backend, ...]] = {
    "cpu": ("cpp", "reference"),
    "cuda": ("cuda", "triton", "reference"),
}

requested_by_environment = os.environ.get("FASTVISION_BACKEND") or None


def unsupported(backend: str, device_type: str, device_index: int | None) -> str | None:
    """The reason why ``backend`` cannot run on the device, or None."""
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
