"""Thin residual networks for small images, and the same without shortcuts.

He, Zhang, Ren and Sun, Deep residual learning for image recognition, 2016, section 4.2.
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


class CifarBlock(nn.Module):
    """Two 3x3 convolutions, around which the input is added unless the network is plain.

    Where the block halves the resolution, the shortcut takes every second pixel and pads the new
    channels with zeros (option A): it has no parameters.
    """

    def __init__(self, inplanes: int, planes: int, stride: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride = stride
        self.new_channels = planes - inplanes
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        z = conv_norm_act(x, self.conv1, self.bn1, self.relu)
        residual = self._identity(x) if self.shortcut else None
        return conv_norm_act(z, self.conv2, self.bn2, self.relu, residual=residual)

    def _identity(self, x: Tensor) -> Tensor:
        if self.stride != 1:
            x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels)) if self.new_channels else x


class CifarResNet(nn.Module):
    """A 3x3 convolution, three stages of 16, 32 and 64 channels, and a linear classifier.

    Args:
        depth: layers with weights, 6n + 2 for n blocks per stage.
        num_classes: outputs of the classifier.
        shortcut: whether blocks are residual; a plain network has the same parameters.

    Raises:
        ValueError: ``depth`` is not 6n + 2.
    """

    def __init__(self, depth: int, num_classes: int = 10, shortcut: bool = True) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if blocks < 1 or rest:
            raise ValueError(f"depth must be 6n + 2 with n > 0, got {depth}")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._stage(16, 16, blocks, 1, shortcut)
        self.layer2 = self._stage(16, 32, blocks, 2, shortcut)
        self.layer3 = self._stage(32, 64, blocks, 2, shortcut)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(
        inplanes: int, planes: int, blocks: int, stride: int, shortcut: bool
    ) -> nn.Sequential:
        first = CifarBlock(inplanes, planes, stride, shortcut)
        rest = (CifarBlock(planes, planes, 1, shortcut) for _ in range(blocks - 1))
        return nn.Sequential(first, *rest)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, num_classes] of images [N, 3, H, W], 32x32 in the paper."""
        x = conv_norm_act(enter(images), self.conv1, self.bn1, self.relu)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


@register("classification")
def resnet20(*, weights: Any = None, progress: bool = True, **options: Any) -> CifarResNet:
    """ResNet-20 for CIFAR-10 (He et al. 2016): 269,722 parameters, 41 M multiply-adds at 32x32."""
    return load_weights(CifarResNet(20, **options), "resnet20", weights, progress)


@register("classification")
def resnet56(*, weights: Any = None, progress: bool = True, **options: Any) -> CifarResNet:
    """ResNet-56 for CIFAR-10 (He et al. 2016): 853,018 parameters, 125 M multiply-adds at 32x32."""
    return load_weights(CifarResNet(56, **options), "resnet56", weights, progress)


@register("classification")
def plain20(*, weights: Any = None, progress: bool = True, **options: Any) -> CifarResNet:
    """ResNet-20 for CIFAR-10 without shortcuts (He et al. 2016): 269,722 parameters, 41 M
    multiply-adds at 32x32."""
    model = CifarResNet(20, shortcut=False, **options)
    return load_weights(model, "plain20", weights, progress)


@register("classification")
def plain56(*, weights: Any = None, progress: bool = True, **options: Any) -> CifarResNet:
    """ResNet-56 for CIFAR-10 without shortcuts (He et al. 2016): 853,018 parameters, 125 M
    multiply-adds at 32x32."""
    model = CifarResNet(56, shortcut=False, **options)
    return load_weights(model, "plain56", weights, progress)
