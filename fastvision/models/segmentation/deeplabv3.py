"""DeepLabV3.

Chen, Papandreou, Schroff and Adam, Rethinking atrous convolution for semantic image segmentation,
2017.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..._memory_format import is_channels_last
from ...ops import Sequential
from .._registry import register
from ..resnet import resnet50, resnet101
from ._model import SegmentationModel, build, mobilenet_stages, resnet_stages
from .fcn import FCNHead


def _conv(inputs: int, outputs: int, dilation: int | None = None) -> list[nn.Module]:
    """A 3x3 convolution with a dilation, or a 1x1."""
    if dilation is None:
        conv = nn.Conv2d(inputs, outputs, 1, bias=False)
    else:
        conv = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


class ASPPPooling(Sequential):
    """The mean of each channel, a 1x1 convolution, and the result at every pixel."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), *_conv(in_channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).expand(-1, -1, x.shape[-2], x.shape[-1])


def _concatenate(maps: Sequence[Tensor]) -> Tensor:
    """[N, C_i, H, W] along the channels, in the memory format of the first."""
    if isinstance(maps[0], Tensor) and is_channels_last(maps[0]):
        # torch.cat would choose another format, since the expanded map has none
        return torch.cat([x.permute(0, 2, 3, 1) for x in maps], -1).permute(0, 3, 1, 2)
    return torch.cat(list(maps), 1)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: convolutions of several dilations, concatenated."""

    def __init__(
        self, in_channels: int, atrous_rates: Sequence[int], out_channels: int = 256
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [
                Sequential(*_conv(in_channels, out_channels)),
                *(Sequential(*_conv(in_channels, out_channels, rate)) for rate in atrous_rates),
                ASPPPooling(in_channels, out_channels),
            ]
        )
        self.project = Sequential(
            *_conv(len(self.convs) * out_channels, out_channels), nn.Dropout(0.5)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.project(_concatenate([conv(x) for conv in self.convs]))


class DeepLabHead(Sequential):
    """Atrous spatial pyramid pooling, a 3x3 convolution, and a 1x1 to the classes."""

    def __init__(
        self, in_channels: int, num_classes: int, atrous_rates: Sequence[int] = (12, 24, 36)
    ) -> None:
        super().__init__(
            ASPP(in_channels, atrous_rates),
            *_conv(256, 256, 1),
            nn.Conv2d(256, num_classes, 1),
        )


class DeepLabV3(SegmentationModel):
    """A :class:`~fastvision.models.segmentation._model.SegmentationModel` of this paper."""


def _on_resnet(
    resnet: Callable[..., nn.Module], weights: Any, classes: int, aux: bool
) -> DeepLabV3:
    backbone = resnet_stages(resnet, weights, aux)
    aux_classifier = FCNHead(1024, classes) if aux else None  # torchvision's order
    return DeepLabV3(backbone, DeepLabHead(2048, classes), aux_classifier)


def _on_mobilenet(weights: Any, classes: int, aux: bool) -> DeepLabV3:
    backbone, channels, aux_channels = mobilenet_stages(weights, "out", "aux" if aux else None)
    aux_classifier = FCNHead(aux_channels, classes) if aux else None
    return DeepLabV3(backbone, DeepLabHead(channels, classes), aux_classifier)


@register("segmentation")
def deeplabv3_resnet50(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int | None = None,
    aux_loss: bool | None = None,
    weights_backbone: Any = "IMAGENET1K_V1",
) -> DeepLabV3:
    """DeepLabV3 (Chen et al. 2017) on ResNet-50: 39,638,869 parameters, 168.7 G multiply-adds at
    520x520. The arguments are those of :func:`fcn_resnet50`."""
    options = (weights, progress, num_classes, aux_loss, weights_backbone)
    return build("deeplabv3_resnet50", partial(_on_resnet, resnet50), *options)


@register("segmentation")
def deeplabv3_resnet101(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int | None = None,
    aux_loss: bool | None = None,
    weights_backbone: Any = "IMAGENET1K_V1",
) -> DeepLabV3:
    """DeepLabV3 (Chen et al. 2017) on ResNet-101: 58,630,997 parameters, 248.8 G multiply-adds
    at 520x520. The arguments are those of :func:`fcn_resnet50`."""
    options = (weights, progress, num_classes, aux_loss, weights_backbone)
    return build("deeplabv3_resnet101", partial(_on_resnet, resnet101), *options)


@register("segmentation")
def deeplabv3_mobilenet_v3_large(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int | None = None,
    aux_loss: bool | None = None,
    weights_backbone: Any = "IMAGENET1K_V1",
) -> DeepLabV3:
    """DeepLabV3 (Chen et al. 2017) on MobileNetV3-Large: 11,025,477 parameters, 10.4 G
    multiply-adds at 520x520. The arguments are those of :func:`fcn_resnet50`; "aux" is of 1/8 of
    the resolution."""
    options = (weights, progress, num_classes, aux_loss, weights_backbone)
    return build("deeplabv3_mobilenet_v3_large", _on_mobilenet, *options)
