"""Fully convolutional networks.

Long, Shelhamer and Darrell, Fully convolutional networks for semantic segmentation, 2015.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from ...ops import Sequential
from .._registry import register
from ..resnet import resnet50, resnet101
from ._model import SegmentationModel, build, resnet_stages


class FCNHead(Sequential):
    """A 3x3 convolution to a quarter of the channels, and a 1x1 to the classes."""

    def __init__(self, in_channels: int, channels: int) -> None:
        width = in_channels // 4
        super().__init__(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv2d(width, channels, 1),
        )


class FCN(SegmentationModel):
    """A :class:`~fastvision.models.segmentation._model.SegmentationModel` of this paper."""


def _make(resnet: Callable[..., nn.Module], weights: Any, classes: int, aux: bool) -> FCN:
    backbone = resnet_stages(resnet, weights, aux)
    aux_classifier = FCNHead(1024, classes) if aux else None  # torchvision's order
    return FCN(backbone, FCNHead(2048, classes), aux_classifier)


@register("segmentation")
def fcn_resnet50(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int | None = None,
    aux_loss: bool | None = None,
    weights_backbone: Any = "IMAGENET1K_V1",
) -> FCN:
    """FCN (Long et al. 2015) on ResNet-50 with dilated last stages: 32,957,013 parameters, 142.7 G
    multiply-adds at 520x520.

    Args:
        weights: of the whole model; they replace ``weights_backbone``.
        progress: whether a download shows its progress.
        num_classes: background included; 21 if None.
        aux_loss: adds a classifier on the last stage but one, "aux" in the result.
        weights_backbone: of :func:`~fastvision.models.resnet50`; None starts at random.

    Raises:
        ValueError: ``aux_loss`` is not what the weights have.
    """
    options = (weights, progress, num_classes, aux_loss, weights_backbone)
    return build("fcn_resnet50", partial(_make, resnet50), *options)


@register("segmentation")
def fcn_resnet101(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int | None = None,
    aux_loss: bool | None = None,
    weights_backbone: Any = "IMAGENET1K_V1",
) -> FCN:
    """FCN (Long et al. 2015) on ResNet-101 with dilated last stages: 51,949,141 parameters,
    222.7 G multiply-adds at 520x520. The arguments are those of :func:`fcn_resnet50`."""
    options = (weights, progress, num_classes, aux_loss, weights_backbone)
    return build("fcn_resnet101", partial(_make, resnet101), *options)
