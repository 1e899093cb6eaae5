"""Makes isinstance() accept our layers as torchvision's.

torchvision's classes become bases of ours once they exist: now, or when torchvision is imported,
which an import hook detects; nothing here imports torchvision. To change nothing else, our classes
define everything that torchvision's override, and call the constructor of torch's class directly.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from ... import ops
from ...ops import feature_pyramid_network
from ...ops.misc import ConvNormActivation

# by torchvision module: our class, and torchvision's with the same constructor and state
_TYPES: dict[str, list[tuple[type, str]]] = {
    "torchvision.ops.drop_block": [
        (ops.DropBlock2d, "DropBlock2d"),
        (ops.DropBlock3d, "DropBlock3d"),
    ],
    "torchvision.ops.feature_pyramid_network": [
        (feature_pyramid_network.ExtraFPNBlock, "ExtraFPNBlock"),
        (feature_pyramid_network.FeaturePyramidNetwork, "FeaturePyramidNetwork"),
        (feature_pyramid_network.LastLevelMaxPool, "LastLevelMaxPool"),
        (feature_pyramid_network.LastLevelP6P7, "LastLevelP6P7"),
    ],
    "torchvision.ops.deform_conv": [(ops.DeformConv2d, "DeformConv2d")],
    "torchvision.ops.misc": [
        (ops.FrozenBatchNorm2d, "FrozenBatchNorm2d"),
        (ConvNormActivation, "ConvNormActivation"),
        (ops.Conv2dNormActivation, "Conv2dNormActivation"),
        (ops.Conv3dNormActivation, "Conv3dNormActivation"),
        (ops.MLP, "MLP"),
        (ops.Permute, "Permute"),
        (ops.SqueezeExcitation, "SqueezeExcitation"),
    ],
    "torchvision.ops.poolers": [(ops.MultiScaleRoIAlign, "MultiScaleRoIAlign")],
    "torchvision.ops.ps_roi_align": [(ops.PSRoIAlign, "PSRoIAlign")],
    "torchvision.ops.ps_roi_pool": [(ops.PSRoIPool, "PSRoIPool")],
    "torchvision.ops.roi_align": [(ops.RoIAlign, "RoIAlign")],
    "torchvision.ops.roi_pool": [(ops.RoIPool, "RoIPool")],
    "torchvision.ops.stochastic_depth": [(ops.StochasticDepth, "StochasticDepth")],
}


def _inherit(module: ModuleType) -> None:
    for ours, name in _TYPES[module.__name__]:
        theirs = getattr(module, name, None)
        if theirs is not None and not issubclass(ours, theirs):
            kept = tuple(base for base in ours.__bases__ if not issubclass(theirs, base))
            ours.__bases__ = (*kept, theirs)


class _Finder(MetaPathFinder):
    """Runs :func:`_inherit` after the modules in ``_TYPES`` are executed; finds nothing itself."""

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
