"""What a record of a GPU says of where it was made; needs torch, but no fastvision."""

from __future__ import annotations

import datetime
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def results_folder(device: str) -> Path:
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return ROOT / "benchmarks" / "results" / slug


def _first_line(*command: str) -> str:
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return run.stdout.strip().split("\n")[-1]


def revision() -> str:
    return _first_line("git", "describe", "--always", "--dirty") or "unknown"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def facts() -> dict[str, str]:
    """Device, versions and date, as they stand at the head of a record."""
    capability = "{}.{}".format(*torch.cuda.get_device_capability())
    driver = _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "device": torch.cuda.get_device_name(),
        "capability": capability,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "revision": revision(),
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "triton": _version("triton"),
        "python": platform.python_version(),
        "nvcc": _first_line("nvcc", "--version") or "not found",
        "driver": driver or "unknown",
    }
