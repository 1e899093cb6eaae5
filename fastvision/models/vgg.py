"""VGG.

Simonyan and Zisserman, Very deep convolutional networks for large-scale image recognition, 2015.
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

_WIDTHS = (1, 2, 4, 8, 8)  # of the stages, in units of the first
# 3x3 convolutions between poolings, by the letters of table 1
_DEPTHS = {"A": (1, 1, 2, 2, 2), "B": (2, 2, 2, 2, 2), "D": (2, 2, 3, 3, 3), "E": (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    """3x3 convolutions with five poolings between them, and a classifier of three linear layers.

    torchvision's constructor, initialization and state dict.

    Args:
        features: gives maps of 8 · base_width channels.
        num_classes: outputs of the classifier.
        init_weights: whether convolutions start with He's initialization; torch's otherwise.
        dropout: probability behind the first two linear layers.
        base_width: channels of the first stage, of which all widths are multiples; torchvision's
            is 64.
    """

    def __init__(
        self,
        features: nn.Module,
        num_classes: int = 1000,
        init_weights: bool = True,
        dropout: float = 0.5,
        *,
        base_width: int = 64,
    ) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        wide = 64 * base_width
        self.classifier = Sequential(
            nn.Linear(8 * base_width * 7 * 7, wide),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(wide, wide),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(wide, num_classes),
        )
        if init_weights:
            self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, num_classes] of images [N, 3, H, W], normalized as in training."""
        x = self.avgpool(self.features(enter(images)))
        return self.classifier(torch.flatten(x, 1))


def _features(depths: Sequence[int], base_width: int, batch_norm: bool) -> Sequential:
    layers: list[nn.Module] = []
    inputs = 3
    for depth, width in zip(depths, _WIDTHS, strict=True):
        outputs = width * base_width
        for _ in range(depth):
            layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.ReLU(inplace=True))
            inputs = outputs
        layers.append(nn.MaxPool2d(2, stride=2))
    return Sequential(*layers)


def _vgg(
    name: str, letter: str, batch_norm: bool, weights: Any, progress: bool, options: dict[str, Any]
) -> VGG:
    if weights is not None:
        options["init_weights"] = False
    features = _features(_DEPTHS[letter], options.get("base_width", 64), batch_norm)
    model = VGG(features, **options)
    return load_weights(model, name, weights, progress)


@register("classification")
def vgg11(*, weights: Any = None, progress: bool = True, **options: Any) -> VGG:
    """VGG-11 (Simonyan and Zisserman 2015, configuration A): 132,863,336 parameters,
    7.61 G multiply-adds at 224x224."""
    return _vgg("vgg11", "A", False, weights, progress, options)


@register("classification")
def vgg11_bn(*, weights: Any = None, progress: bool = True, **options: Any) -> VGG:
    """VGG-11 with batch normalization (Simonyan and Zisserman 2015, configuration A):
    132,868,840 parameters, 7.61 G multiply-adds at 224x224."""
    return _vgg("vgg11_bn", "A", True, weights, progress, options)


@register("classification")
def vgg13(*, weights: Any = None, progress: bool = True, **options: Any) -> VGG:
    """VGG-13 (Simonyan and Zisserman 2015, configuration B): 133,047,848 parameters,
    11.31 G multiply-adds at 224x224."""
    return _vgg("vgg13", "B", False, weights, progress, options)


@register("classification")
def vgg13_bn(*, weights: Any = None, progress: bool = True, **options: Any) -> VGG:
    """VGG-13 with batch normalization (Simonyan and Zisserman 2015, configuration B):
    133,053,736 parameters, 11.31 G multiply-adds at 224x224."""
    return _vgg("vgg13_bn", "B", True, weights, progress, options)


@register("classification")
def vgg16(*, weights: Any = None, progress: bool = True, **options: Any) -> VGG:
    """VGG-16 (Simonyan and Zisserman 2015, configuration D): 138,357,544 parameters,
    15.47 G multiply-adds at 224x224."""
    return _vgg("vgg16", "D", False, weights, progress, options)


@register("classification")
def vgg16_bn(*, weights: Any = None, progress: bool = True, **options: Any) -> VGG:
    """VGG-16 with batch normalization (Simonyan and Zisserman 2015, configuration D):
    138,365,992 parameters, 15.47 G multiply-adds at 224x224."""
    return _vgg("vgg16_bn", "D", True, weights, progress, options)


@register("classification")
def vgg19(*, weights: Any = None, progress: bool = True, **options: Any) -> VGG:
    """VGG-19 (Simonyan and Zisserman 2015, configuration E): 143,667,240 parameters,
    19.63 G multiply-adds at 224x224."""
    return _vgg("vgg19", "E", False, weights, progress, options)


@register("classification")
def vgg19_bn(*, weights: Any = None, progress: bool = True, **options: Any) -> VGG:
    """VGG-19 with batch normalization (Simonyan and Zisserman 2015, configuration E):
    143,678,248 parameters, 19.63 G multiply-adds at 224x224."""
    return _vgg("vgg19_bn", "E", True, weights, progress, options)
