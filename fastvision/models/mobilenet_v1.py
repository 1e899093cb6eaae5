"""MobileNet.

Howard, Zhu, Chen, Kalenichenko, Wang, Weyand, Andreetto and Adam, MobileNets: efficient
convolutional neural networks for mobile vision applications, 2017.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops import Conv2dNormActivation
from ._images import enter
from ._registry import register
from ._weights import load_weights

# channels and stride of the separable convolutions (table 1)
_LAYERS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1),
    (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip


class MobileNetV1(nn.Module):
    """A 3x3 convolution, thirteen depthwise separable ones, and a linear classifier.

    Normalization and ReLU follow both halves of a separable convolution.

    Args:
        num_classes: outputs of the classifier.
        width_mult: factor of the numbers of channels, rounded down.
        dropout: in front of the classifier.
    """

    def __init__(
        self, num_classes: int = 1000, width_mult: float = 1.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        channels = int(32 * width_mult)
        layers: list[nn.Module] = [Conv2dNormActivation(3, channels, 3, stride=2)]
        for planes, stride in _LAYERS:
            outputs = int(planes * width_mult)
            layers.append(
                nn.Sequential(
                    Conv2dNormActivation(channels, channels, 3, stride=stride, groups=channels),
                    Conv2dNormActivation(channels, outputs, 1),
                )
            )
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, num_classes] of images [N, 3, H, W]."""
        x = self.avgpool(self.features(enter(images)))
        return self.classifier(torch.flatten(x, 1))


@register("classification")
def mobilenet_v1_x1_0(*, weights: Any = None, progress: bool = True, **options: Any) -> MobileNetV1:
    """MobileNet of width 1 (Howard et al. 2017): 4,231,976 parameters, 569 M multiply-adds at
    224x224."""
    return load_weights(MobileNetV1(**options), "mobilenet_v1_x1_0", weights, progress)


@register("classification")
def mobilenet_v1_x0_75(
    *, weights: Any = None, progress: bool = True, **options: Any
) -> MobileNetV1:
    """MobileNet of width 0.75 (Howard et al. 2017): 2,585,560 parameters, 325 M multiply-adds at
    224x224."""
    model = MobileNetV1(width_mult=0.75, **options)
    return load_weights(model, "mobilenet_v1_x0_75", weights, progress)


@register("classification")
def mobilenet_v1_x0_5(*, weights: Any = None, progress: bool = True, **options: Any) -> MobileNetV1:
    """MobileNet of width 0.5 (Howard et al. 2017): 1,331,592 parameters, 149 M multiply-adds at
    224x224."""
    model = MobileNetV1(width_mult=0.5, **options)
    return load_weights(model, "mobilenet_v1_x0_5", weights, progress)


@register("classification")
def mobilenet_v1_x0_25(
    *, weights: Any = None, progress: bool = True, **options: Any
) -> MobileNetV1:
    """MobileNet of width 0.25 (Howard et al. 2017): 470,072 parameters, 41 M multiply-adds at
    224x224."""
    model = MobileNetV1(width_mult=0.25, **options)
    return load_weights(model, "mobilenet_v1_x0_25", weights, progress)
