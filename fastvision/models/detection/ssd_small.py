"""A small SSD: three maps, one default box per cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...ops import Conv2dNormActivation
from .._images import enter
from .._registry import register
from .._weights import read_weights
from .default_boxes import DefaultBoxGenerator
from .ssd import SSD

_WIDTHS = (16, 32, 64, 128, 256)  # of the stages, each of which halves the resolution
_CLASSES = 21  # of PASCAL VOC, background included


class SquareBoxGenerator(DefaultBoxGenerator):
    """One square at the centre of every cell.

    Args:
        scales: side of the squares of each map, in units of the image's width and height.
    """

    def __init__(self, scales: Sequence[float]) -> None:
        super().__init__([[] for _ in scales], scales=[*scales, 1.0])

    def _shapes(self, k: int) -> Tensor:
        return torch.full((1, 2), self.scales[k])


class SmallSSDBackbone(nn.Module):
    """3x3 convolutions: five stages with batch normalization to 7x7, and the maps.

    ``out_channels``: 256 for each of the three.
    """

    def __init__(self) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        channels = 3
        for width in _WIDTHS:
            stages += [
                Conv2dNormActivation(channels, width),
                Conv2dNormActivation(width, width),
                nn.MaxPool2d(2),
            ]
            channels = width
        self.stages = nn.Sequential(*stages)
        self.extra = nn.ModuleList(
            # a batch of one image has a single value per channel in the last map
            Conv2dNormActivation(channels, channels, stride=2, norm_layer=None)
            for _ in range(3)
        )
        self.out_channels = [channels] * 3

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps [N, 256, 4, 4], [N, 256, 2, 2] and [N, 256, 1, 1] of images [N, 3, 224, 224]."""
        x, maps = self.stages(enter(images)), {}
        for i, layer in enumerate(self.extra):
            x = layer(x)
            maps[str(i)] = x
        return maps


def _classes_of(state: Mapping[str, Tensor]) -> int:
    return len(state["head.classification_head.module_list.0.bias"])


@register("detection")
def ssd224_small(
    *, weights: Any = None, progress: bool = True, num_classes: int | None = None, **options: Any
) -> SSD:
    """An :class:`SSD` for images of 224x224 with 21 default boxes, one for each cell of the maps
    [256, 4, 4], [256, 2, 2] and [256, 1, 1]: 3,123,643 parameters.

    A 3x3 convolution of a map gives the four offsets of the boxes, [4, h, w], and another one the
    scores, [num_classes, h, w].

    Args:
        weights: of the whole model.
        progress: whether a download shows its progress.
        num_classes: background, 0, included; 21 if None.
        options: of :class:`SSD`.

    Raises:
        ValueError: ``num_classes`` is not the weights' own.
    """
    state = None if weights is None else read_weights("ssd224_small", weights, progress)
    if state is not None:
        found = _classes_of(state)
        if num_classes not in (None, found):
            raise ValueError(f"num_classes must be {found} for these weights, got {num_classes}")
        num_classes = found
    classes = _CLASSES if num_classes is None else num_classes
    boxes = SquareBoxGenerator((1 / 4, 1 / 2, 1.0))
    model = SSD(SmallSSDBackbone(), boxes, (224, 224), classes, **options)
    if state is not None:
        model.load_state_dict(state)
    return model
