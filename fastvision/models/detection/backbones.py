"""Backbones of detectors: the stages of a classifier, and a feature pyramid on them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ...ops import FeaturePyramidNetwork, FrozenBatchNorm2d, Sequential
from ...ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool
from .._registry import get_model
from .._stages import Stages
from ..mobilenetv2 import MobileNetV2
from ..mobilenetv3 import MobileNetV3
from ..resnet import ResNet

Norm = Callable[..., nn.Module]
_CHANNELS = 256  # of the pyramids


class BackboneWithFPN(nn.Module):
    """Stages of a model, and a :class:`fastvision.ops.FeaturePyramidNetwork` of their results.

    torchvision's constructor and state dict.

    Args:
        backbone: calls its children in their order, see :class:`fastvision.models.Stages`.
        return_layers: the name of a child, and the name of its result.
        in_channels_list: channels of the results, in the order of the layers.
        out_channels: of the pyramid; also an attribute, from which detectors make their heads.
        extra_blocks: adds levels; ``LastLevelMaxPool`` if None.
        norm_layer: called with ``out_channels`` after each convolution of the pyramid.
    """

    def __init__(
        self,
        backbone: nn.Module,
        return_layers: Mapping[str, str],
        in_channels_list: list[int],
        out_channels: int,
        extra_blocks: ExtraFPNBlock | None = None,
        norm_layer: Norm | None = None,
    ) -> None:
        super().__init__()
        self.body = Stages(backbone, return_layers)
        self.fpn = FeaturePyramidNetwork(
            in_channels_list,
            out_channels,
            LastLevelMaxPool() if extra_blocks is None else extra_blocks,
            norm_layer,
        )
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps [N, out_channels, h, w] by name, finest first, of images [N, C, H, W]."""
        return self.fpn(self.body(x))


def resnet_fpn_backbone(
    *,
    backbone_name: str,
    weights: Any,
    norm_layer: Norm = FrozenBatchNorm2d,
    trainable_layers: int = 3,
    returned_layers: Sequence[int] | None = None,
    extra_blocks: ExtraFPNBlock | None = None,
) -> BackboneWithFPN:
    """A ResNet with a feature pyramid of 256 channels.

    Args:
        backbone_name: of the ResNet's builder.
        weights: of the ResNet, see :func:`fastvision.models.resnet50`.
        norm_layer: of the ResNet.
        trainable_layers: number of stages that are trained, counted from the last, 0 to 5; the
            stem is the fifth.
        returned_layers: the stages with a level of the pyramid, of 1 to 4; all if None.
        extra_blocks: see :class:`BackboneWithFPN`.

    Raises:
        ValueError: the name is not a ResNet's, or a number is out of its range.
    """
    backbone = get_model(backbone_name, weights=weights, norm_layer=norm_layer)
    if not isinstance(backbone, ResNet):
        raise ValueError(f"backbone_name must be a ResNet's, got {backbone_name!r}")
    return resnet_pyramid(backbone, trainable_layers, returned_layers, extra_blocks)


def resnet_pyramid(
    backbone: ResNet,
    trainable_layers: int,
    returned_layers: Sequence[int] | None = None,
    extra_blocks: ExtraFPNBlock | None = None,
    norm_layer: Norm | None = None,
) -> BackboneWithFPN:
    """:func:`resnet_fpn_backbone` of a network; ``norm_layer`` is the pyramid's."""
    _check_range("trainable_layers", trainable_layers, 0, 5)
    stages = (1, 2, 3, 4) if returned_layers is None else returned_layers
    for stage in stages:
        _check_range("returned_layers", stage, 1, 4)
    parts = ("layer4", "layer3", "layer2", "layer1", "conv1", "bn1")
    trained = parts if trainable_layers == 5 else parts[:trainable_layers]
    for name, parameter in backbone.named_parameters():
        if not name.startswith(trained):
            parameter.requires_grad_(False)
    first = backbone.inplanes // 8
    return BackboneWithFPN(
        backbone,
        {f"layer{stage}": str(i) for i, stage in enumerate(stages)},
        [first * 2 ** (stage - 1) for stage in stages],
        _CHANNELS,
        extra_blocks,
        norm_layer,
    )


def mobilenet_backbone(
    *,
    backbone_name: str,
    weights: Any,
    fpn: bool,
    norm_layer: Norm = FrozenBatchNorm2d,
    trainable_layers: int = 2,
    returned_layers: Sequence[int] | None = None,
    extra_blocks: ExtraFPNBlock | None = None,
) -> nn.Module:
    """A MobileNetV2 or V3 with a feature pyramid, or a single map, of 256 channels.

    Args:
        backbone_name: of the MobileNet's builder.
        weights: of the MobileNet.
        fpn: whether there is a pyramid.
        norm_layer: of the MobileNet.
        trainable_layers: number of stages that are trained, counted from the last; a stage begins
            at the stem, at every strided block, and at the last layer.
        returned_layers: the stages with a level of the pyramid, from 0; the last two if None.
        extra_blocks: see :class:`BackboneWithFPN`.

    Raises:
        ValueError: the name is not a MobileNet's, or a number is out of its range.
    """
    backbone = get_model(backbone_name, weights=weights, norm_layer=norm_layer)
    if not isinstance(backbone, (MobileNetV2, MobileNetV3)):
        raise ValueError(f"backbone_name must be a MobileNetV2's or V3's, got {backbone_name!r}")
    return mobilenet_features(backbone, fpn, trainable_layers, returned_layers, extra_blocks)


def mobilenet_features(
    backbone: MobileNetV2 | MobileNetV3,
    fpn: bool,
    trainable_layers: int,
    returned_layers: Sequence[int] | None = None,
    extra_blocks: ExtraFPNBlock | None = None,
    norm_layer: Norm | None = None,
) -> nn.Module:
    """:func:`mobilenet_backbone` of a network; ``norm_layer`` is the pyramid's."""
    features: Any = backbone.features
    last = len(features) - 1
    strided = [i for i, block in enumerate(features) if getattr(block, "is_strided", False)]
    starts = [0, *strided, last]
    _check_range("trainable_layers", trainable_layers, 0, len(starts))
    for block in features[: [*starts, last + 1][len(starts) - trainable_layers]]:
        block.requires_grad_(False)
    if not fpn:
        reduced = nn.Conv2d(features[last].out_channels, _CHANNELS, 1)
        single = Sequential(features, reduced)
        single.out_channels = _CHANNELS  # type: ignore[assignment]
        return single
    stages = [len(starts) - 2, len(starts) - 1] if returned_layers is None else returned_layers
    for stage in stages:
        _check_range("returned_layers", stage, 0, len(starts) - 1)
    return BackboneWithFPN(
        features,
        {str(starts[stage]): str(i) for i, stage in enumerate(stages)},
        [features[starts[stage]].out_channels for stage in stages],
        _CHANNELS,
        extra_blocks,
        norm_layer,
    )


def trained_layers(is_trained: bool, wanted: int | None, most: int, default: int) -> int:
    """How many stages of the backbone are trained: all of a network that starts at random.

    Raises:
        ValueError: ``wanted`` is out of range.
    """
    if not is_trained:
        if wanted is not None:
            warnings.warn(
                "trainable_backbone_layers has no effect without weights or weights_backbone: "
                f"all {most} are trained",
                stacklevel=5,
            )
        return most
    if wanted is None:
        return default
    _check_range("trainable_backbone_layers", wanted, 0, most)
    return wanted


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be in the range [{low},{high}], got {value}")
