"""Convolutions at full resolution: what networks that downsample are compared with."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...ops import Conv2dNormActivation
from .._images import enter, leave
from .._registry import register
from .._weights import load_weights


class FullResolutionFCN(nn.Module):
    """3x3 convolutions with normalization and ReLU, and a 1x1 convolution that gives the scores.

    Nothing downsamples, so the cost per pixel is that of every layer, and ``depth`` layers see
    only 2 · depth + 1 pixels in either direction.

    Args:
        num_classes: scores per pixel.
        width: channels of the convolutions.
        depth: number of 3x3 convolutions.
    """

    def __init__(self, num_classes: int = 21, width: int = 64, depth: int = 8) -> None:
        super().__init__()
        channels = [3] + [width] * depth
        self.features = nn.Sequential(
            *(Conv2dNormActivation(channels[i], width) for i in range(depth))
        )
        self.classifier = nn.Conv2d(channels[-1], num_classes, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """{"out": scores [N, num_classes, H, W]} of images [N, 3, H, W]."""
        scores = self.classifier(self.features(enter(images)))
        return {"out": leave(scores, images)}


@register("segmentation")
def fcn_full_resolution(
    *, weights: Any = None, progress: bool = True, **options: Any
) -> FullResolutionFCN:
    """Eight convolutions of width 64 at full resolution: 262,165 parameters, 13.10 G
    multiply-adds at 224x224."""
    return load_weights(FullResolutionFCN(**options), "fcn_full_resolution", weights, progress)
