"""Xception.

Chollet, Xception: deep learning with depthwise separable convolutions, 2017.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import conv_norm_act
from ._images import enter
from ._registry import register
from ._weights import load_weights


class SeparableConv2d(nn.Module):
    """A 3x3 convolution of each channel and a 1x1 convolution of all, with nothing between."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(
            in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False
        )
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(
        self,
        x: Tensor,
        norm: nn.Module | None = None,
        activation: nn.Module | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """activation(norm(pointwise(conv1(x))) + residual)"""
        return conv_norm_act(
            conv_norm_act(x, self.conv1), self.pointwise, norm, activation, residual
        )


class XceptionBlock(nn.Module):
    """Separable convolutions, each after a ReLU, around which the input is added.

    Args:
        in_channels, out_channels: of the block.
        convolutions: how many.
        stride: of the max-pooling at the end, and of the convolution on the shortcut; 1 for
            neither of the two.
        start_with_relu: whether there is a ReLU before the first convolution.
        grow_first: whether the first convolution changes the number of channels, or the last.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        convolutions: int,
        stride: int = 1,
        start_with_relu: bool = True,
        grow_first: bool = True,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.start_with_relu = start_with_relu
        self.skip: nn.Module | None = None
        if stride != 1:
            self.skip = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.skipbn = nn.BatchNorm2d(out_channels)
        rep: list[nn.Module] = []
        channels = in_channels
        for i in range(convolutions):
            if i > 0 or start_with_relu:
                rep.append(nn.ReLU(inplace=i > 0))  # the first reads the shortcut's input
            grows = i == 0 if grow_first else i == convolutions - 1
            outputs = out_channels if grows else channels
            rep += [SeparableConv2d(channels, outputs), nn.BatchNorm2d(outputs)]
            channels = outputs
        if stride != 1:
            rep.append(nn.MaxPool2d(3, stride, 1))
        self.rep = nn.Sequential(*rep)

    def forward(self, x: Tensor) -> Tensor:
        layers = list(self.rep)
        z = layers.pop(0)(x) if self.start_with_relu else x
        pool = layers.pop() if self.stride != 1 else None
        while len(layers) > 2:
            conv, norm, activation = (layers.pop(0) for _ in range(3))
            z = conv(z, norm, activation)
        conv, norm = layers
        if self.skip is None or pool is None:
            return conv(z, norm, residual=x)
        return conv_norm_act(x, self.skip, self.skipbn, residual=pool(conv(z, norm)))


class Xception(nn.Module):
    """Twelve residual blocks of separable convolutions between two pairs of convolutions.

    Constructor, initialization and state dict are those of timm's ``legacy_xception``.

    Args:
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        drop_rate: dropout in front of the classifier.
    """

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.conv1 = nn.Conv2d(in_chans, 32, 3, stride=2, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(32, 64, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.act2 = nn.ReLU(inplace=True)
        self.block1 = XceptionBlock(64, 128, 2, stride=2, start_with_relu=False)
        self.block2 = XceptionBlock(128, 256, 2, stride=2)
        self.block3 = XceptionBlock(256, 728, 2, stride=2)
        for i in range(4, 12):
            self.add_module(f"block{i}", XceptionBlock(728, 728, 3))
        self.block12 = XceptionBlock(728, 1024, 2, stride=2, grow_first=False)
        self.conv3 = SeparableConv2d(1024, 1536)
        self.bn3 = nn.BatchNorm2d(1536)
        self.act3 = nn.ReLU(inplace=True)
        self.conv4 = SeparableConv2d(1536, 2048)
        self.bn4 = nn.BatchNorm2d(2048)
        self.act4 = nn.ReLU(inplace=True)
        self.global_pool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(2048, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, num_classes] of images [N, in_chans, H, W], 299x299 in the paper."""
        x = conv_norm_act(enter(images), self.conv1, self.bn1, self.act1)
        x = conv_norm_act(x, self.conv2, self.bn2, self.act2)
        for i in range(1, 13):
            x = getattr(self, f"block{i}")(x)
        x = self.conv3(x, self.bn3, self.act3)
        x = self.conv4(x, self.bn4, self.act4)
        x = torch.flatten(self.global_pool(x), 1)
        return self.fc(F.dropout(x, self.drop_rate, self.training))


@register("classification")
def xception(*, weights: Any = None, progress: bool = True, **options: Any) -> Xception:
    """Xception (Chollet 2017): 22,855,952 parameters, 8.36 G multiply-adds at 299x299."""
    return load_weights(Xception(**options), "xception", weights, progress)
