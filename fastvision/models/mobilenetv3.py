"""MobileNetV3.

Howard, Sandler, Chu, Chen, Chen, Tan, Wang, Zhu, Pang, Vasudevan, Le and Adam, Searching for
MobileNetV3, 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import Conv2dNormActivation, Sequential, SqueezeExcitation
from ._blocks import add_input, initialize, make_divisible
from ._images import enter
from ._registry import register
from ._weights import load_weights

Norm = Callable[..., nn.Module]

Row = tuple[int, int, int, int, bool, str, int, int]  # of the paper's tables 1 and 2
_GATE = partial(SqueezeExcitation, scale_activation=nn.Hardsigmoid)


class InvertedResidualConfig:
    """A row of the paper's tables 1 and 2.

    Args:
        input_channels, expanded_channels, out_channels: before ``width_mult``.
        kernel: of the depthwise convolution.
        use_se: whether the block has squeeze and excitation.
        activation: "HS" for Hardswish, "RE" for ReLU.
        stride, dilation: of the depthwise convolution; with a dilation its stride is 1.
        width_mult: factor of the numbers of channels, which are rounded to multiples of 8.
    """

    def __init__(
        self,
        input_channels: int,
        kernel: int,
        expanded_channels: int,
        out_channels: int,
        use_se: bool,
        activation: str,
        stride: int,
        dilation: int,
        width_mult: float,
    ) -> None:
        self.input_channels = self.adjust_channels(input_channels, width_mult)
        self.kernel = kernel
        self.expanded_channels = self.adjust_channels(expanded_channels, width_mult)
        self.out_channels = self.adjust_channels(out_channels, width_mult)
        self.use_se = use_se
        self.use_hs = activation == "HS"
        self.stride = stride
        self.dilation = dilation

    @staticmethod
    def adjust_channels(channels: int, width_mult: float) -> int:
        return make_divisible(channels * width_mult)


class InvertedResidual(nn.Module):
    """A depthwise convolution and a gate between a 1x1 convolution that expands and a linear one
    that projects.

    The input is added where the shape stays.
    """

    def __init__(
        self,
        cnf: InvertedResidualConfig,
        norm_layer: Norm,
        se_layer: Callable[..., nn.Module] = _GATE,
    ) -> None:
        super().__init__()
        if cnf.stride not in (1, 2):
            raise ValueError(f"stride must be 1 or 2, got {cnf.stride}")
        expanded = cnf.expanded_channels
        ends: dict[str, Any] = {
            "norm_layer": norm_layer,
            "activation_layer": nn.Hardswish if cnf.use_hs else nn.ReLU,
        }
        layers: list[nn.Module] = []
        if expanded != cnf.input_channels:
            layers.append(Conv2dNormActivation(cnf.input_channels, expanded, 1, **ends))
        layers.append(
            Conv2dNormActivation(
                expanded,
                expanded,
                cnf.kernel,
                stride=1 if cnf.dilation > 1 else cnf.stride,
                dilation=cnf.dilation,
                groups=expanded,
                **ends,
            )
        )
        if cnf.use_se:
            layers.append(se_layer(expanded, make_divisible(expanded // 4)))
        ends["activation_layer"] = None
        layers.append(Conv2dNormActivation(expanded, cnf.out_channels, 1, **ends))
        self.block = nn.Sequential(*layers)
        self.out_channels = cnf.out_channels
        self.use_res_connect = cnf.stride == 1 and cnf.input_channels == cnf.out_channels
        self.is_strided = cnf.stride > 1

    def forward(self, x: Tensor) -> Tensor:
        return add_input(self.block, x) if self.use_res_connect else self.block(x)


class MobileNetV3(nn.Module):
    """Inverted residual blocks, and a classifier of two linear layers.

    torchvision's constructor, initialization and state dict.

    Args:
        inverted_residual_setting: of the blocks.
        last_channel: outputs of the first linear layer.
        num_classes: outputs of the classifier.
        block: :class:`~fastvision.models.mobilenetv3.InvertedResidual` if None.
        norm_layer: called with a number of channels.
        dropout: probability of a zero in the input of the last linear layer.

    Raises:
        ValueError: ``inverted_residual_setting`` is empty.
        TypeError: it is not a sequence of InvertedResidualConfig, or there are other arguments,
            which torchvision's ignores.
    """

    def __init__(
        self,
        inverted_residual_setting: Sequence[InvertedResidualConfig],
        last_channel: int,
        num_classes: int = 1000,
        block: Callable[..., nn.Module] | None = None,
        norm_layer: Norm | None = None,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        setting = inverted_residual_setting
        if not setting:
            raise ValueError("inverted_residual_setting must not be empty")
        if not isinstance(setting, Sequence) or not all(
            isinstance(row, InvertedResidualConfig) for row in setting
        ):
            raise TypeError(
                f"inverted_residual_setting must be a list of InvertedResidualConfig, got {setting}"
            )
        block = block or InvertedResidual
        norm_layer = norm_layer or partial(nn.BatchNorm2d, eps=0.001, momentum=0.01)
        ends: dict[str, Any] = {"norm_layer": norm_layer, "activation_layer": nn.Hardswish}
        outputs = setting[-1].out_channels
        self.features = nn.Sequential(
            Conv2dNormActivation(3, setting[0].input_channels, stride=2, **ends),
            *(block(row, norm_layer) for row in setting),
            Conv2dNormActivation(outputs, 6 * outputs, 1, **ends),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = Sequential(
            nn.Linear(6 * outputs, last_channel),
            nn.Hardswish(inplace=True),
            nn.Dropout(dropout, inplace=True),
            nn.Linear(last_channel, num_classes),
        )
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, num_classes] of images [N, 3, H, W], normalized as in training."""
        x = self.features(enter(images))
        return self.classifier(torch.flatten(self.avgpool(x), 1))


def _model(
    rows: Sequence[Row],
    last_channel: int,
    width_mult: float = 1.0,
    **options: Any,
) -> MobileNetV3:
    setting = [InvertedResidualConfig(*row, width_mult) for row in rows]
    return MobileNetV3(
        setting, InvertedResidualConfig.adjust_channels(last_channel, width_mult), **options
    )


@register("classification")
def mobilenet_v3_large(
    *,
    weights: Any = None,
    progress: bool = True,
    reduced_tail: bool = False,
    dilated: bool = False,
    **options: Any,
) -> MobileNetV3:
    """MobileNetV3-Large (Howard et al. 2019): 5,483,032 parameters, 0.22 G multiply-adds at
    224x224.

    Args:
        weights, progress: what is loaded, and whether a download shows its progress.
        reduced_tail: halves the channels of the last stage, as for segmentation in the paper.
        dilated: the last stage keeps the resolution and dilates its convolutions instead.
        options: ``width_mult``, and those of :class:`MobileNetV3`.
    """
    tail, dilation = 2 if reduced_tail else 1, 2 if dilated else 1
    last, expanded = 160 // tail, 960 // tail
    rows = (
        (16, 3, 16, 16, False, "RE", 1, 1),
        (16, 3, 64, 24, False, "RE", 2, 1),
        (24, 3, 72, 24, False, "RE", 1, 1),
        (24, 5, 72, 40, True, "RE", 2, 1),
        (40, 5, 120, 40, True, "RE", 1, 1),
        (40, 5, 120, 40, True, "RE", 1, 1),
        (40, 3, 240, 80, False, "HS", 2, 1),
        (80, 3, 200, 80, False, "HS", 1, 1),
        (80, 3, 184, 80, False, "HS", 1, 1),
        (80, 3, 184, 80, False, "HS", 1, 1),
        (80, 3, 480, 112, True, "HS", 1, 1),
        (112, 3, 672, 112, True, "HS", 1, 1),
        (112, 5, 672, last, True, "HS", 2, dilation),
        (last, 5, expanded, last, True, "HS", 1, dilation),
        (last, 5, expanded, last, True, "HS", 1, dilation),
    )
    model = _model(rows, 1280 // tail, **options)
    return load_weights(model, "mobilenet_v3_large", weights, progress)


@register("classification")
def mobilenet_v3_small(
    *,
    weights: Any = None,
    progress: bool = True,
    reduced_tail: bool = False,
    dilated: bool = False,
    **options: Any,
) -> MobileNetV3:
    """MobileNetV3-Small (Howard et al. 2019): 2,542,856 parameters, 0.06 G multiply-adds at
    224x224.

    The arguments are those of :func:`mobilenet_v3_large`.
    """
    tail, dilation = 2 if reduced_tail else 1, 2 if dilated else 1
    last, expanded = 96 // tail, 576 // tail
    rows = (
        (16, 3, 16, 16, True, "RE", 2, 1),
        (16, 3, 72, 24, False, "RE", 2, 1),
        (24, 3, 88, 24, False, "RE", 1, 1),
        (24, 5, 96, 40, True, "HS", 2, 1),
        (40, 5, 240, 40, True, "HS", 1, 1),
        (40, 5, 240, 40, True, "HS", 1, 1),
        (40, 5, 120, 48, True, "HS", 1, 1),
        (48, 5, 144, 48, True, "HS", 1, 1),
        (48, 5, 288, last, True, "HS", 2, dilation),
        (last, 5, expanded, last, True, "HS", 1, dilation),
        (last, 5, expanded, last, True, "HS", 1, dilation),
    )
    model = _model(rows, 1024 // tail, **options)
    return load_weights(model, "mobilenet_v3_small", weights, progress)
