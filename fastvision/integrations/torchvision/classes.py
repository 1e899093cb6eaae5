"""Our layers are torchvision's layers where somebody asks isinstance().

torchvision's own classes become bases of ours as soon as they exist: now, or when torchvision gets
imported, of which a finder tells; nothing here imports torchvision. So that this changes nothing
else, ours define whatever torchvision's class overrides of torch's, and call the constructor of
torch's class directly.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from ... import ops
from ...ops.misc import _ConvNormActivation

# by torchvision's module: our class, and torchvision's of the same constructor and state
_TYPES: dict[str, list[tuple[type, str]]] = {
    "torchvision.ops.misc": [
        (ops.FrozenBatchNorm2d, "FrozenBatchNorm2d"),
        (_ConvNormActivation, "ConvNormActivation"),
        (ops.Conv2dNormActivation, "Conv2dNormActivation"),
        (ops.SqueezeExcitation, "SqueezeExcitation"),
    ],
    "torchvision.ops.roi_align": [(ops.RoIAlign, "RoIAlign")],
    "torchvision.ops.poolers": [(ops.MultiScaleRoIAlign, "MultiScaleRoIAlign")],
}


def _inherit(module: ModuleType) -> None:
    for ours, name in _TYPES[module.__name__]:
        theirs = getattr(module, name, None)
        if theirs is not None and not issubclass(ours, theirs):
            kept = tuple(base for base in ours.__bases__ if not issubclass(theirs, base))
            ours.__bases__ = (*kept, theirs)


class _Finder(MetaPathFinder):
    """Finds nothing of its own: runs :func:`_inherit` behind the modules of ``_TYPES``."""

    _looking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _TYPES or self._looking:
            return None
        self._looking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._looking = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _inherit(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    for name in _TYPES:
        if (module := sys.modules.get(name)) is not None:
            _inherit(module)
    sys.meta_path.insert(0, _Finder())
