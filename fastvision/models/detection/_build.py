"""How builders of detectors begin: weights, classes, and what is trained of the backbone."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

from ...ops import FrozenBatchNorm2d
from .._urls import addresses
from .._weights import read_weights
from .backbones import Norm, trained_layers

CLASSES = 91  # of COCO's category numbers, background included

Model = TypeVar("Model", bound=nn.Module)

# trained with no eps in the normalizations of their backbones
_WITHOUT_EPS = (
    "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
    "keypointrcnn_resnet50_fpn_coco-fc266e95.pth",
    "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
    "retinanet_resnet50_fpn_coco-eeacb38b.pth",
)


class Start(NamedTuple):
    """What a builder makes its detector of.

    ``state`` holds the weights of the whole detector, or None; ``norm_layer`` and
    ``trainable_layers`` are the backbone's.
    """

    state: Mapping[str, Tensor] | None
    num_classes: int
    weights_backbone: Any
    norm_layer: Norm
    trainable_layers: int
    without_eps: bool

    def load(self, model: Model) -> Model:
        """The model with the weights, if there are any."""
        if self.state is not None:
            model.load_state_dict(self.state)
        if self.without_eps:
            for module in model.modules():
                if isinstance(module, FrozenBatchNorm2d):
                    module.eps = 0.0
        return model


def start(
    name: str,
    weights: Any,
    progress: bool,
    num_classes: int | None,
    weights_backbone: Any,
    trainable_layers: int | None,
    *,
    classes_of: Callable[[Mapping[str, Tensor]], int],
    stages: int = 5,
    default_stages: int = 3,
    classes: int = CLASSES,
) -> Start:
    """Reads the weights of the detector, which decide over its classes and normalizations.

    The backbone's normalizations are constants (:class:`FrozenBatchNorm2d`) if anything is trained,
    as in torchvision, unless the weights come from a detector that trained its own.

    Args:
        name: of the builder.
        weights, progress, num_classes, weights_backbone: the builder's arguments.
        trainable_layers: its ``trainable_backbone_layers``.
        classes_of: number of classes of a state dict.
        stages, default_stages: how many of the backbone can be trained, and are by default.
        classes: without weights and ``num_classes``.

    Raises:
        ValueError: ``num_classes`` is not the weights' own, they are not a detector's, or a number
            is out of range.
    """
    state = None if weights is None else read_weights(name, weights, progress)
    norm_layer: Norm = FrozenBatchNorm2d
    if state is not None:
        try:
            weights_backbone, found = None, classes_of(state)
        except KeyError as error:
            file = f" {weights}" if isinstance(weights, (str, os.PathLike)) else ""
            first = ", ".join(itertools.islice(state, 3)) or "nothing"
            raise ValueError(
                f"weights{file} do not fit {name}, which has {error}: "
                f"the state dict has {first} ..."
            ) from error
        if num_classes not in (None, found):
            raise ValueError(f"num_classes must be {found} for these weights, got {num_classes}")
        num_classes = found
        if any(key.startswith("backbone.body.") and "num_batches" in key for key in state):
            norm_layer = nn.BatchNorm2d
    is_trained = state is not None or weights_backbone is not None
    return Start(
        state,
        classes if num_classes is None else num_classes,
        weights_backbone,
        norm_layer if is_trained else nn.BatchNorm2d,
        trained_layers(is_trained, trainable_layers, stages, default_stages),
        _file_of(name, weights) in _WITHOUT_EPS,
    )


def _file_of(name: str, weights: Any) -> str | None:
    """The name of the file that the weights come from."""
    if isinstance(weights, (str, os.PathLike)):
        place = os.fspath(weights)
        return os.path.basename(addresses(name).get(place, place))
    url = getattr(weights, "url", None)
    return url.rpartition("/")[2] if isinstance(url, str) else None
