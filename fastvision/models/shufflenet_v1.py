"""ShuffleNet.

Zhang, Zhou, Lin and Sun, ShuffleNet: an extremely efficient convolutional neural network for mobile
devices, 2018.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops import conv_norm_act
from ._images import enter
from ._registry import register
from ._weights import load_weights

# channels of the first stage by the number of groups; each stage doubles them (table 1)
_CHANNELS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
_STEM = 24


class ShuffleUnit(nn.Module):
    """A 3x3 convolution of each channel between two 1x1 convolutions of groups of channels.

    The channels are shuffled after the first, so that groups mix. A unit of stride 2 halves the
    resolution and puts its channels behind those of its averaged input; any other adds its input.

    Args:
        inputs, outputs: channels.
        stride: 1 or 2.
        groups: of the 1x1 convolutions.
        first_groups: of the first one.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, groups: int, first_groups: int
    ) -> None:
        super().__init__()
        width = outputs // 4
        made = outputs - inputs if stride == 2 else outputs
        self.conv1 = nn.Conv2d(inputs, width, 1, groups=first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.shuffle = nn.ChannelShuffle(groups)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, made, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(made)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(3, 2, 1) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        z = self.shuffle(conv_norm_act(x, self.conv1, self.bn1, self.relu))
        z = conv_norm_act(z, self.conv2, self.bn2)
        if self.avgpool is None:
            return conv_norm_act(z, self.conv3, self.bn3, self.relu, residual=x)
        # the paper's ReLU follows the concatenation, but averages of a ReLU's results are positive
        return torch.cat((self.avgpool(x), conv_norm_act(z, self.conv3, self.bn3, self.relu)), 1)


class ShuffleNetV1(nn.Module):
    """A 3x3 convolution, three stages of shuffle units, and a linear classifier.

    Args:
        groups: of the 1x1 convolutions, which sets the widths too: 1, 2, 3, 4 or 8.
        num_classes: outputs of the classifier.

    Raises:
        ValueError: the paper has no widths for ``groups``.
    """

    def __init__(self, groups: int = 3, num_classes: int = 1000) -> None:
        super().__init__()
        if groups not in _CHANNELS:
            raise ValueError(f"groups must be one of {list(_CHANNELS)}, got {groups}")
        width = _CHANNELS[groups]
        self.conv1 = nn.Conv2d(3, _STEM, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        # too few channels to convolve groups of them
        self.stage2 = self._stage(_STEM, width, 4, groups, first_groups=1)
        self.stage3 = self._stage(width, 2 * width, 8, groups, first_groups=groups)
        self.stage4 = self._stage(2 * width, 4 * width, 4, groups, first_groups=groups)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(
        inputs: int, outputs: int, units: int, groups: int, first_groups: int
    ) -> nn.Sequential:
        first = ShuffleUnit(inputs, outputs, 2, groups, first_groups)
        rest = (ShuffleUnit(outputs, outputs, 1, groups, groups) for _ in range(units - 1))
        return nn.Sequential(first, *rest)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, num_classes] of images [N, 3, H, W]."""
        x = conv_norm_act(enter(images), self.conv1, self.bn1, self.relu)
        x = self.maxpool(x)
        x = self.stage4(self.stage3(self.stage2(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


@register("classification")
def shufflenet_v1_g1(*, weights: Any = None, progress: bool = True, **options: Any) -> ShuffleNetV1:
    """ShuffleNet with 1 group (Zhang et al. 2018): 1,531,936 parameters, 143 M multiply-adds at
    224x224."""
    return load_weights(ShuffleNetV1(1, **options), "shufflenet_v1_g1", weights, progress)


@register("classification")
def shufflenet_v1_g2(*, weights: Any = None, progress: bool = True, **options: Any) -> ShuffleNetV1:
    """ShuffleNet with 2 groups (Zhang et al. 2018): 1,733,848 parameters, 141 M multiply-adds at
    224x224."""
    return load_weights(ShuffleNetV1(2, **options), "shufflenet_v1_g2", weights, progress)


@register("classification")
def shufflenet_v1_g3(*, weights: Any = None, progress: bool = True, **options: Any) -> ShuffleNetV1:
    """ShuffleNet with 3 groups (Zhang et al. 2018): 1,865,728 parameters, 137 M multiply-adds at
    224x224."""
    return load_weights(ShuffleNetV1(3, **options), "shufflenet_v1_g3", weights, progress)


@register("classification")
def shufflenet_v1_g4(*, weights: Any = None, progress: bool = True, **options: Any) -> ShuffleNetV1:
    """ShuffleNet with 4 groups (Zhang et al. 2018): 1,968,344 parameters, 134 M multiply-adds at
    224x224."""
    return load_weights(ShuffleNetV1(4, **options), "shufflenet_v1_g4", weights, progress)


@register("classification")
def shufflenet_v1_g8(*, weights: Any = None, progress: bool = True, **options: Any) -> ShuffleNetV1:
    """ShuffleNet with 8 groups (Zhang et al. 2018): 2,434,768 parameters, 138 M multiply-adds at
    224x224."""
    return load_weights(ShuffleNetV1(8, **options), "shufflenet_v1_g8", weights, progress)
