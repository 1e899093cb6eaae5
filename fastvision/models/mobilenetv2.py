"""MobileNetV2.

Sandler, Howard, Zhu, Zhmoginov and Chen, MobileNetV2: inverted residuals and linear bottlenecks,
2018.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import Conv2dNormActivation, Sequential
from ._blocks import add_input, initialize, make_divisible
from ._images import enter
from ._registry import register
from ._weights import load_weights

Norm = Callable[..., nn.Module]

# of the paper's table 2: expansion, channels, blocks, stride of the first
_SETTING = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """A 3x3 depthwise convolution between a 1x1 that expands and a linear 1x1 that projects.

    The input is added where the shape stays.
    """

    def __init__(
        self,
        inp: int,
        oup: int,
        stride: int,
        expand_ratio: float,
        norm_layer: Norm | None = None,
    ) -> None:
        super().__init__()
        if stride not in (1, 2):
            raise ValueError(f"stride must be 1 or 2, got {stride}")
        norm_layer = norm_layer or nn.BatchNorm2d
        hidden = round(inp * expand_ratio)
        ends: dict[str, Any] = {"norm_layer": norm_layer, "activation_layer": nn.ReLU6}
        layers: list[nn.Module] = []
        if expand_ratio != 1:
            layers.append(Conv2dNormActivation(inp, hidden, 1, **ends))
        layers.append(Conv2dNormActivation(hidden, hidden, stride=stride, groups=hidden, **ends))
        layers += [nn.Conv2d(hidden, oup, 1, bias=False), norm_layer(oup)]
        self.conv = Sequential(*layers)
        self.stride = stride
        self.out_channels = oup
        self.use_res_connect = stride == 1 and inp == oup
        self.is_strided = stride > 1

    def forward(self, x: Tensor) -> Tensor:
        return add_input(self.conv, x) if self.use_res_connect else self.conv(x)


class MobileNetV2(nn.Module):
    """Inverted residual blocks, and a linear classifier.

    torchvision's constructor, initialization and state dict.

    Args:
        num_classes: outputs of the classifier.
        width_mult: factor of the number of channels in each layer.
        inverted_residual_setting: expansion, channels, number of blocks and stride of each stage;
            those of the paper if None.
        round_nearest: numbers of channels are multiples of it.
        block: :class:`~fastvision.models.mobilenetv2.InvertedResidual` if None.
        norm_layer: called with a number of channels.
        dropout: probability of a zero in the input of the classifier.

    Raises:
        ValueError: ``inverted_residual_setting`` is empty, or its first stage has not four numbers.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        width_mult: float = 1.0,
        inverted_residual_setting: Sequence[Sequence[int]] | None = None,
        round_nearest: int = 8,
        block: Callable[..., nn.Module] | None = None,
        norm_layer: Norm | None = None,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        block, norm_layer = block or InvertedResidual, norm_layer or nn.BatchNorm2d
        setting = _SETTING if inverted_residual_setting is None else inverted_residual_setting
        if len(setting) == 0 or len(setting[0]) != 4:
            raise ValueError(
                "inverted_residual_setting must be stages of 4 numbers each, "
                f"got {inverted_residual_setting}"
            )
        ends: dict[str, Any] = {"norm_layer": norm_layer, "activation_layer": nn.ReLU6}
        channels = make_divisible(32 * width_mult, round_nearest)
        self.last_channel = make_divisible(1280 * max(1.0, width_mult), round_nearest)
        features: list[nn.Module] = [Conv2dNormActivation(3, channels, stride=2, **ends)]
        for expansion, width, blocks, first_stride in setting:
            outputs = make_divisible(width * width_mult, round_nearest)
            for i in range(blocks):
                stride = first_stride if i == 0 else 1
                features.append(
                    block(channels, outputs, stride, expand_ratio=expansion, norm_layer=norm_layer)
                )
                channels = outputs
        features.append(Conv2dNormActivation(channels, self.last_channel, 1, **ends))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(self.last_channel, num_classes)
        )
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, num_classes] of images [N, 3, H, W], normalized as in training."""
        x = self.features(enter(images))
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


@register("classification")
def mobilenet_v2(*, weights: Any = None, progress: bool = True, **options: Any) -> MobileNetV2:
    """MobileNetV2 (Sandler et al. 2018): 3,504,872 parameters, 0.30 G multiply-adds at 224x224."""
    return load_weights(MobileNetV2(**options), "mobilenet_v2", weights, progress)
