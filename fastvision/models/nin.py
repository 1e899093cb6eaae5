"""Network in Network.

Lin, Chen and Yan, Network in network, 2014. The layers are those of the authors' configurations
for CIFAR-10 and ImageNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import Sequential
from ._images import enter
from ._registry import register
from ._weights import load_weights


def _mlpconv(
    inputs: int, widths: Sequence[int], kernel_size: int, stride: int = 1, padding: int = 0
) -> list[nn.Module]:
    """A convolution and 1x1 convolutions: a small network that slides over the map."""
    layers: list[nn.Module] = []
    for i, outputs in enumerate(widths):
        geometry: Any = (kernel_size, stride, padding) if i == 0 else (1,)
        layers += [nn.Conv2d(inputs, outputs, *geometry), nn.ReLU(inplace=True)]
        inputs = outputs
    return layers


class NiN(nn.Module):
    """Blocks of convolutions with a ReLU after each; the means of the last maps are the scores.

    Args:
        features: the blocks; the last map has one channel per class.
    """

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, classes], not negative, of images [N, 3, H, W]."""
        return torch.flatten(self.avgpool(self.features(enter(images))), 1)


@register("classification")
def nin_cifar10(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int = 10,
    dropout: float = 0.5,
) -> NiN:
    """Network in Network for CIFAR-10 (Lin et al. 2014): 966,986 parameters, 222 M multiply-adds at
    32x32."""
    features = Sequential(
        *_mlpconv(3, (192, 160, 96), 5, padding=2),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        nn.Dropout(dropout),
        *_mlpconv(96, (192, 192, 192), 5, padding=2),
        nn.AvgPool2d(3, stride=2, ceil_mode=True),
        nn.Dropout(dropout),
        *_mlpconv(192, (192, 192, num_classes), 3, padding=1),
    )
    return load_weights(NiN(features), "nin_cifar10", weights, progress)


@register("classification")
def nin_imagenet(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int = 1000,
    dropout: float = 0.5,
) -> NiN:
    """Network in Network for ImageNet (Lin et al. 2014): 7,595,176 parameters, 1.10 G multiply-adds
    at 224x224."""
    features = Sequential(
        *_mlpconv(3, (96, 96, 96), 11, stride=4),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        *_mlpconv(96, (256, 256, 256), 5, padding=2),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        *_mlpconv(256, (384, 384, 384), 3, padding=1),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        nn.Dropout(dropout),
        *_mlpconv(384, (1024, 1024, num_classes), 3, padding=1),
    )
    return load_weights(NiN(features), "nin_imagenet", weights, progress)
