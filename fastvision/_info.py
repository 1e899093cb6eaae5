"""What is installed, what this machine has, and which backends of the ops can run on it."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch

from . import _extension
from ._version import __version__
from .integrations.torchvision import enabled_names
from .ops._backend import BACKENDS
from .ops._library import PUBLIC, Operator


def installed(distribution: str) -> str | None:
    """Version of an installed distribution, without importing it."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _library() -> dict[str, Any]:
    if _extension.missing is not None:
        return {"missing": _extension.missing}
    return {
        "missing": None,
        "compiler": _extension.compiler(),
        "cpu_levels": _extension.cpu_levels(),
        "cpu_level_supported": _extension.cpu_level_supported(),
        "cpu_level": _extension.cpu_level(),
        "cuda": _extension.cuda_version() or None,
        "cuda_architectures": _extension.cuda_architectures(),
    }


def _gpus() -> list[dict[str, str]]:
    gpus = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        name = torch.cuda.get_device_name(index)
        gpus.append({"device": f"cuda:{index}", "name": name, "capability": f"{major}.{minor}"})
    return gpus


def _backends(operator: Operator, device: str) -> dict[str, str | None]:
    kind, _, index = device.partition(":")
    return {backend: operator.unsupported(backend, kind, int(index or 0)) for backend in BACKENDS}


def info() -> dict[str, Any]:
    """Versions, hardware and backends, as plain data.

    Returns:
        A dictionary with the following keys.

        - ``fastvision``, ``python``, ``platform``, ``torch``, ``torch_cuda``, ``torchvision``,
          ``triton``: versions, or None if missing.
        - ``library``: build options of the compiled library and the CPU level in use. If it cannot
          be used, only ``missing``, the reason.
        - ``enabled``: backends by the name in torchvision that they serve, see
          :func:`fastvision.enabled_names`; empty unless :func:`fastvision.enable` was called.
        - ``gpus``: device, name and compute capability of each GPU.
        - ``ops``: per op, device and backend, None if it can run, or the reason why not.
    """
    gpus = _gpus()
    devices = ("cpu", *(gpu["device"] for gpu in gpus))
    return {
        "fastvision": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "torchvision": installed("torchvision"),
        "triton": installed("triton"),
        "library": _library(),
        "enabled": {name: list(backends) for name, backends in enabled_names()},
        "gpus": gpus,
        "ops": {
            name: {device: _backends(operator, device) for device in devices}
            for name, operator in sorted(PUBLIC.items())
        },
    }
