"""Imports torchvision, also if its compiled library is missing or built for another torch."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from pathlib import Path

import torch

from . import operators

# needed because `import torchvision` registers a fake for it; we have no kernel
_QNMS = "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_schemas: torch.library.Library | None = None  # kept alive, since torchvision stays imported


def import_torchvision() -> bool:
    """Imports torchvision and returns whether its compiled library is loaded."""
    if "torchvision" not in sys.modules:
        spec = importlib.util.find_spec("torchvision")
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError("fastvision.enable() needs torchvision", name="torchvision")
        _load_or_define(Path(spec.origin).parent)
    extension = importlib.import_module("torchvision.extension")
    importlib.import_module("torchvision.ops")
    return bool(extension._has_ops())


def _load_or_define(package: Path) -> None:
    # loading the library after its schemas are defined ends the process, so it is tried first
    global _schemas
    for path in sorted(package.glob("_C*.so")):
        if not hasattr(torch.ops.torchvision, "nms"):
            with contextlib.suppress(OSError):
                torch.ops.load_library(str(path))
    if not hasattr(torch.ops.torchvision, "nms"):
        _schemas = torch.library.Library("torchvision", "FRAGMENT")
        for schema in (_QNMS, *(operator.schema for operator in operators.OPERATORS)):
            _schemas.define(schema)
