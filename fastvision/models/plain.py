"""The ResNets without their shortcuts.

He, Zhang, Ren and Sun, Deep residual learning for image recognition, 2016, section 3.3: what
residual networks are compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..ops import conv_norm_act
from ._registry import register
from ._weights import load_weights
from .resnet import BasicBlock, Bottleneck, ResNet


class PlainBlock(BasicBlock):
    """The two convolutions of a :class:`~fastvision.models.resnet.BasicBlock`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.downsample = None

    def forward(self, x: Tensor) -> Tensor:
        x = conv_norm_act(x, self.conv1, self.bn1, self.relu)
        return conv_norm_act(x, self.conv2, self.bn2, self.relu)


class PlainBottleneck(Bottleneck):
    """The three convolutions of a :class:`~fastvision.models.resnet.Bottleneck`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.downsample = None

    def forward(self, x: Tensor) -> Tensor:
        x = conv_norm_act(x, self.conv1, self.bn1, self.relu)
        x = conv_norm_act(x, self.conv2, self.bn2, self.relu)
        return conv_norm_act(x, self.conv3, self.bn3, self.relu)


class PlainNet(ResNet):
    """A :class:`~fastvision.models.ResNet` without shortcuts.

    State dict keys are the ResNet's, less ``downsample``.

    Args:
        block: :class:`~fastvision.models.plain.PlainBlock` or
            :class:`~fastvision.models.plain.PlainBottleneck`.
        layers: number of blocks in each of the four stages.
        options: of :class:`~fastvision.models.ResNet`, without ``zero_init_residual``.

    Raises:
        ValueError: ``zero_init_residual``, after which all scores would be equal.
    """

    def __init__(
        self, block: type[PlainBlock | PlainBottleneck], layers: Sequence[int], **options: Any
    ) -> None:
        if options.get("zero_init_residual"):
            raise ValueError("zero_init_residual must be False: a plain network has no residuals")
        super().__init__(block, layers, **options)


@register("classification")
def plain18(*, weights: Any = None, progress: bool = True, **options: Any) -> PlainNet:
    """ResNet-18 without shortcuts (He et al. 2016): 11,515,688 parameters, 1.79 G multiply-adds at
    224x224."""
    return load_weights(PlainNet(PlainBlock, (2, 2, 2, 2), **options), "plain18", weights, progress)


@register("classification")
def plain34(*, weights: Any = None, progress: bool = True, **options: Any) -> PlainNet:
    """ResNet-34 without shortcuts (He et al. 2016): 21,623,848 parameters, 3.64 G multiply-adds at
    224x224."""
    return load_weights(PlainNet(PlainBlock, (3, 4, 6, 3), **options), "plain34", weights, progress)


@register("classification")
def plain50(*, weights: Any = None, progress: bool = True, **options: Any) -> PlainNet:
    """ResNet-50 v1.5 without shortcuts; not in the paper: 22,780,456 parameters, 3.73 G
    multiply-adds at 224x224."""
    model = PlainNet(PlainBottleneck, (3, 4, 6, 3), **options)
    return load_weights(model, "plain50", weights, progress)


@register("classification")
def plain101(*, weights: Any = None, progress: bool = True, **options: Any) -> PlainNet:
    """ResNet-101 v1.5 without shortcuts; not in the paper: 41,772,584 parameters, 7.44 G
    multiply-adds at 224x224."""
    model = PlainNet(PlainBottleneck, (3, 4, 23, 3), **options)
    return load_weights(model, "plain101", weights, progress)


@register("classification")
def plain152(*, weights: Any = None, progress: bool = True, **options: Any) -> PlainNet:
    """ResNet-152 v1.5 without shortcuts; not in the paper: 57,416,232 parameters, 11.15 G
    multiply-adds at 224x224."""
    model = PlainNet(PlainBottleneck, (3, 8, 36, 3), **options)
    return load_weights(model, "plain152", weights, progress)
