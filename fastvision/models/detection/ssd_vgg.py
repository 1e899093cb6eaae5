"""SSD on VGG-16.

Liu, Anguelov, Erhan, Szegedy, Reed, Fu and Berg, SSD: single shot multibox detector, 2016.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...ops import Sequential
from .._images import enter
from .._registry import register
from ..vgg import vgg16
from ._build import start
from .default_boxes import DefaultBoxGenerator
from .ssd import SSD, initialize_uniform, without_size

# 1x1 channels, 3x3 channels, stride and padding of the layers behind VGG's
_EXTRA = ((256, 512, 2, 1), (128, 256, 2, 1), (128, 256, 1, 0), (128, 256, 1, 0))


class SSDFeatureExtractorVGG(nn.Module):
    """The six maps of SSD300, from VGG-16 with its linear layers as convolutions (section 3 of the
    paper), or the seven of SSD512.

    Args:
        backbone: the features of :func:`~fastvision.models.vgg16`, which are changed: the third
            pooling rounds up.
        highres: adds a map, for images of 512x512.
    """

    def __init__(self, backbone: nn.Sequential, highres: bool) -> None:
        super().__init__()
        pools = [i for i, layer in enumerate(backbone) if isinstance(layer, nn.MaxPool2d)]
        third: Any = backbone[pools[2]]
        third.ceil_mode = True
        self.scale_weight = nn.Parameter(torch.ones(512) * 20)
        self.features = backbone[: pools[3]]
        extra = nn.ModuleList()
        channels = 1024
        for inner, outer, stride, padding in _EXTRA:
            extra.append(_reduced(channels, inner, outer, 3, stride, padding))
            channels = outer
        if highres:
            extra.append(_reduced(channels, 128, 256, 4, 1, 0))
        initialize_uniform(extra)
        linear = Sequential(
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.Conv2d(512, 1024, 3, padding=6, dilation=6),
            nn.ReLU(inplace=True),
            nn.Conv2d(1024, 1024, 1),
            nn.ReLU(inplace=True),
        )
        initialize_uniform(linear)
        extra.insert(0, Sequential(*backbone[pools[3] : -1], linear))
        self.extra = extra

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps [N, 512, H/8, W/8], [N, 1024, H/16, W/16] and smaller ones of images [N, 3, H, W],
        by their number; the first one is normalized at every pixel and scaled per channel."""
        x = self.features(enter(images))
        maps = [self.scale_weight.view(1, -1, 1, 1) * F.normalize(x)]
        for block in self.extra:
            x = block(x)
            maps.append(x)
        return {str(i): level for i, level in enumerate(maps)}


def _reduced(
    channels: int, inner: int, outer: int, kernel: int, stride: int, padding: int
) -> Sequential:
    return Sequential(
        nn.Conv2d(channels, inner, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(inner, outer, kernel, stride, padding),
        nn.ReLU(inplace=True),
    )


def _classes_of(state: Mapping[str, Tensor]) -> int:
    return len(state["head.classification_head.module_list.0.bias"]) // 4


@register("detection")
def ssd300_vgg16(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: Any = "IMAGENET1K_FEATURES",
    trainable_backbone_layers: int | None = None,
    **options: Any,
) -> SSD:
    """SSD300 (Liu et al. 2016) on VGG-16, for images resized to 300x300: 35,641,826 parameters.

    Args:
        weights: of the whole model; they replace ``weights_backbone``.
        progress: whether a download shows its progress.
        num_classes: background, 0, included; 91 if None.
        weights_backbone: of :func:`~fastvision.models.vgg16`; None starts at random.
        trainable_backbone_layers: how many stages of the backbone are trained, from the last; 4 of
            5 if None, all of a network that starts at random.
        options: of :class:`SSD`.

    Raises:
        ValueError: ``num_classes`` is not the weights' own, or a number is out of range.
    """
    options = without_size(options)
    begin = start(
        "ssd300_vgg16", weights, progress, num_classes, weights_backbone,
        trainable_backbone_layers, classes_of=_classes_of, default_stages=4,
    )  # fmt: skip
    features: Any = vgg16(weights=begin.weights_backbone, progress=progress).features
    pools = [i for i, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
    starts = [0, *pools[:-1], len(features)]
    features[: starts[5 - begin.trainable_layers]].requires_grad_(False)
    anchors = DefaultBoxGenerator(
        [[2], [2, 3], [2, 3], [2, 3], [2], [2]],
        scales=[0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05],
        steps=[8, 16, 32, 64, 100, 300],
    )
    options = {
        "image_mean": (0.48235, 0.45882, 0.40784),
        "image_std": (1 / 255, 1 / 255, 1 / 255),  # the network is trained on 0..255
        **options,
    }
    backbone = SSDFeatureExtractorVGG(features, highres=False)
    return begin.load(SSD(backbone, anchors, (300, 300), begin.num_classes, **options))
