"""Device types on which torchvision runs, or can run, on our kernels."""

from __future__ import annotations

from ... import _device, _extension
from ...ops import _backend

active: tuple[str, ...] = ()  # set by switch.py, read in each call


def has_kernels(device_type: str) -> bool:
    """Whether a kernel can run on this device type. Does not initialise CUDA."""
    runs = {
        "cpp": device_type == "cpu" and _extension.missing is None,
        "cuda": device_type == "cuda" and bool(_extension.cuda_architectures()),
        "triton": _device.triton_missing() is None
        and (device_type == "cuda" or _device.triton_interpreted()),
    }
    requested = _backend.requested_by_environment
    return any(
        runs.get(b, False) for b in ((requested,) if requested else _backend.ORDER[device_type])
    )
