"""Device types on which torchvision runs, or can run, on our kernels."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from ... import _device, _extension
from ...ops import _backend
from ...ops._checks import FLOATING, is_eager

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


def takes(*tensors: Any, dtypes: Collection[torch.dtype] = FLOATING) -> bool:
    """Whether all are plain tensors of these types on one device of ours, and no program is
    recorded."""
    return is_eager() and all(
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.dtype in dtypes
        and tensor.device.type in active
        and tensor.device == tensors[0].device
        for tensor in tensors
    )
