"""ResNet, Wide ResNet and ResNeXt.

He, Zhang, Ren and Sun, Deep residual learning for image recognition, 2016. Zagoruyko and
Komodakis, Wide residual networks, 2016. Xie, Girshick, Dollár, Tu and He, Aggregated residual
transformations for deep neural networks, 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import Sequential, conv_norm_act
from ._images import enter
from ._registry import register
from ._weights import load_weights

Norm = Callable[..., nn.Module]


def _conv(inputs: int, outputs: int, kernel_size: int, **options: Any) -> nn.Conv2d:
    padding = kernel_size // 2 * options.get("dilation", 1)
    return nn.Conv2d(inputs, outputs, kernel_size, padding=padding, bias=False, **options)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around which the input is added."""

    expansion = 1

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        if groups != 1 or base_width != 64:
            raise ValueError(
                f"a BasicBlock has groups=1 and base_width=64, got {groups} and {base_width}"
            )
        if dilation > 1:
            raise NotImplementedError(f"a BasicBlock has dilation=1, got {dilation}")
        self.conv1 = _conv(inplanes, planes, 3, stride=stride)
        self.bn1 = norm_layer(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv(planes, planes, 3)
        self.bn2 = norm_layer(planes)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = conv_norm_act(x, self.conv1, self.bn1, self.relu)
        return conv_norm_act(x, self.conv2, self.bn2, self.relu, residual=identity)

    @property
    def last_norm(self) -> nn.Module:
        return self.bn2


class Bottleneck(nn.Module):
    """A 3x3 convolution between two of 1x1, around which the input is added.

    The stride is in the 3x3 convolution, where the paper has it in the first (ResNet v1.5).
    """

    expansion = 4

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        width = int(planes * (base_width / 64)) * groups
        self.conv1 = _conv(inplanes, width, 1)
        self.bn1 = norm_layer(width)
        self.conv2 = _conv(width, width, 3, stride=stride, groups=groups, dilation=dilation)
        self.bn2 = norm_layer(width)
        self.conv3 = _conv(width, planes * self.expansion, 1)
        self.bn3 = norm_layer(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = conv_norm_act(x, self.conv1, self.bn1, self.relu)
        x = conv_norm_act(x, self.conv2, self.bn2, self.relu)
        return conv_norm_act(x, self.conv3, self.bn3, self.relu, residual=identity)

    @property
    def last_norm(self) -> nn.Module:
        return self.bn3


class ResNet(nn.Module):
    """A 7x7 stem, four stages of residual blocks, and a linear classifier.

    torchvision's constructor, initialization and state dict.

    Args:
        block: :class:`~fastvision.models.resnet.BasicBlock` or
            :class:`~fastvision.models.resnet.Bottleneck`.
        layers: number of blocks in each of the four stages.
        num_classes: outputs of the classifier.
        zero_init_residual: starts every block as the identity, by a zero weight in its last
            normalization.
        groups, width_per_group: of the 3x3 convolutions in bottlenecks.
        replace_stride_with_dilation: for each of the last three stages, whether it keeps the
            resolution and dilates its convolutions instead.
        norm_layer: called with a number of channels.
        stem_width: channels of the stem and, before the expansion, of the first stage; each later
            stage has twice as many.

    Raises:
        ValueError: ``replace_stride_with_dilation`` has not three elements.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        layers: Sequence[int],
        num_classes: int = 1000,
        zero_init_residual: bool = False,
        groups: int = 1,
        width_per_group: int = 64,
        replace_stride_with_dilation: Sequence[bool] | None = None,
        norm_layer: Norm | None = None,
        *,
        stem_width: int = 64,
    ) -> None:
        super().__init__()
        dilate = replace_stride_with_dilation or (False, False, False)
        if len(dilate) != 3:
            raise ValueError(
                "replace_stride_with_dilation must have 3 elements, "
                f"got {replace_stride_with_dilation}"
            )
        self.inplanes, self.dilation = stem_width, 1
        self.groups, self.base_width = groups, width_per_group
        self._norm_layer = norm_layer or nn.BatchNorm2d
        self.conv1 = nn.Conv2d(3, stem_width, 7, stride=2, padding=3, bias=False)
        self.bn1 = self._norm_layer(stem_width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._stage(block, stem_width, layers[0])
        self.layer2 = self._stage(block, 2 * stem_width, layers[1], stride=2, dilate=dilate[0])
        self.layer3 = self._stage(block, 4 * stem_width, layers[2], stride=2, dilate=dilate[1])
        self.layer4 = self._stage(block, 8 * stem_width, layers[3], stride=2, dilate=dilate[2])
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8 * stem_width * block.expansion, num_classes)
        self._initialize(zero_init_residual)

    def _stage(
        self,
        block: type[BasicBlock | Bottleneck],
        planes: int,
        blocks: int,
        stride: int = 1,
        dilate: bool = False,
    ) -> nn.Sequential:
        first_dilation = self.dilation
        if dilate:
            self.dilation *= stride
            stride = 1
        outputs = planes * block.expansion
        downsample = None
        if stride != 1 or self.inplanes != outputs:
            projection = _conv(self.inplanes, outputs, 1, stride=stride)
            downsample = Sequential(projection, self._norm_layer(outputs))
        made = []
        for i in range(blocks):
            made.append(
                block(
                    self.inplanes,
                    planes,
                    stride if i == 0 else 1,
                    downsample if i == 0 else None,
                    self.groups,
                    self.base_width,
                    first_dilation if i == 0 else self.dilation,
                    self._norm_layer,
                )
            )
            self.inplanes = outputs
        return nn.Sequential(*made)

    def _initialize(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, (BasicBlock, Bottleneck)):
                    nn.init.zeros_(module.last_norm.weight)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, num_classes] of images [N, 3, H, W], normalized as in training."""
        x = conv_norm_act(enter(images), self.conv1, self.bn1, self.relu)
        x = self.maxpool(x)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


@register("classification")
def resnet18(*, weights: Any = None, progress: bool = True, **options: Any) -> ResNet:
    """ResNet-18 (He et al. 2016): 11,689,512 parameters, 1.81 G multiply-adds at 224x224."""
    return load_weights(ResNet(BasicBlock, (2, 2, 2, 2), **options), "resnet18", weights, progress)


@register("classification")
def resnet34(*, weights: Any = None, progress: bool = True, **options: Any) -> ResNet:
    """ResNet-34 (He et al. 2016): 21,797,672 parameters, 3.66 G multiply-adds at 224x224."""
    return load_weights(ResNet(BasicBlock, (3, 4, 6, 3), **options), "resnet34", weights, progress)


@register("classification")
def resnet50(*, weights: Any = None, progress: bool = True, **options: Any) -> ResNet:
    """ResNet-50 v1.5 (He et al. 2016): 25,557,032 parameters, 4.09 G multiply-adds at 224x224."""
    return load_weights(ResNet(Bottleneck, (3, 4, 6, 3), **options), "resnet50", weights, progress)


@register("classification")
def resnet101(*, weights: Any = None, progress: bool = True, **options: Any) -> ResNet:
    """ResNet-101 v1.5 (He et al. 2016): 44,549,160 parameters, 7.80 G multiply-adds at 224x224."""
    model = ResNet(Bottleneck, (3, 4, 23, 3), **options)
    return load_weights(model, "resnet101", weights, progress)


@register("classification")
def resnet152(*, weights: Any = None, progress: bool = True, **options: Any) -> ResNet:
    """ResNet-152 v1.5 (He et al. 2016): 60,192,808 parameters, 11.51 G multiply-adds at 224x224."""
    model = ResNet(Bottleneck, (3, 8, 36, 3), **options)
    return load_weights(model, "resnet152", weights, progress)


@register("classification")
def wide_resnet50_2(*, weights: Any = None, progress: bool = True, **options: Any) -> ResNet:
    """ResNet-50 with 3x3 convolutions of twice the width (Zagoruyko and Komodakis 2016):
    68,883,240 parameters, 11.40 G multiply-adds at 224x224."""
    options = {"width_per_group": 128, **options}
    model = ResNet(Bottleneck, (3, 4, 6, 3), **options)
    return load_weights(model, "wide_resnet50_2", weights, progress)


@register("classification")
def wide_resnet101_2(*, weights: Any = None, progress: bool = True, **options: Any) -> ResNet:
    """ResNet-101 with 3x3 convolutions of twice the width (Zagoruyko and Komodakis 2016):
    126,886,696 parameters, 22.75 G multiply-adds at 224x224."""
    options = {"width_per_group": 128, **options}
    model = ResNet(Bottleneck, (3, 4, 23, 3), **options)
    return load_weights(model, "wide_resnet101_2", weights, progress)


@register("classification")
def resnext50_32x4d(*, weights: Any = None, progress: bool = True, **options: Any) -> ResNet:
    """ResNeXt-50 with 32 groups of 4 channels (Xie et al. 2017): 25,028,904 parameters, 4.23 G
    multiply-adds at 224x224."""
    options = {"groups": 32, "width_per_group": 4, **options}
    model = ResNet(Bottleneck, (3, 4, 6, 3), **options)
    return load_weights(model, "resnext50_32x4d", weights, progress)


@register("classification")
def resnext101_32x8d(*, weights: Any = None, progress: bool = True, **options: Any) -> ResNet:
    """ResNeXt-101 with 32 groups of 8 channels (Xie et al. 2017): 88,791,336 parameters, 16.41 G
    multiply-adds at 224x224."""
    options = {"groups": 32, "width_per_group": 8, **options}
    model = ResNet(Bottleneck, (3, 4, 23, 3), **options)
    return load_weights(model, "resnext101_32x8d", weights, progress)


@register("classification")
def resnext101_64x4d(*, weights: Any = None, progress: bool = True, **options: Any) -> ResNet:
    """ResNeXt-101 with 64 groups of 4 channels (Xie et al. 2017): 83,455,272 parameters, 15.46 G
    multiply-adds at 224x224."""
    options = {"groups": 64, "width_per_group": 4, **options}
    model = ResNet(Bottleneck, (3, 4, 23, 3), **options)
    return load_weights(model, "resnext101_64x4d", weights, progress)
