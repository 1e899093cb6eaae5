"""The types of device that run torchvision on our kernels: those that could, and those that do."""

from __future__ import annotations

from ... import _device, _extension
from ...ops import _backend

active: tuple[str, ...] = ()  # at this moment; set by switch.py, asked in each call


def has_kernels(device_type: str) -> bool:
    """Whether more than the reference can run there. Asks no device: that would initialise CUDA."""
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
