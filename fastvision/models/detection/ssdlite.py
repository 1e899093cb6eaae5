"""SSDlite: SSD of depthwise separable convolutions.

Sandler, Howard, Zhu, Zhmoginov and Chen, MobileNetV2, 2018, section 6.2; Howard et al., Searching
for MobileNetV3, 2019, section 6.3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from ...ops import Conv2dNormActivation, Sequential
from .._images import enter
from .._registry import register
from ..mobilenetv3 import mobilenet_v3_large
from ._build import start
from ._heads import initialize
from .default_boxes import DefaultBoxGenerator
from .ssd import SSD, SSDHead, SSDScoringHead, check_maps, without_size

Norm = Callable[..., nn.Module]


_STD = 0.03  # of new weights


def _predictors(
    in_channels: Sequence[int], num_anchors: Sequence[int], columns: int, norm_layer: Norm
) -> nn.ModuleList:
    modules = nn.ModuleList()
    for channels, anchors in zip(in_channels, num_anchors, strict=True):
        depthwise = Conv2dNormActivation(
            channels, channels, groups=channels, norm_layer=norm_layer, activation_layer=nn.ReLU6
        )
        modules.append(Sequential(depthwise, nn.Conv2d(channels, columns * anchors, 1)))
    initialize(modules, std=_STD)
    return modules


class SSDLiteClassificationHead(SSDScoringHead):
    """Logits of the classes of each default box, by a depthwise and a 1x1 convolution.

    Args:
        in_channels: of each map.
        num_anchors: at a place of each map.
        num_classes: background, 0, included.
        norm_layer: called with the channels of a depthwise convolution.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_anchors: Sequence[int],
        num_classes: int,
        norm_layer: Norm,
    ) -> None:
        modules = _predictors(in_channels, num_anchors, num_classes, norm_layer)
        super().__init__(modules, num_classes)


class SSDLiteRegressionHead(SSDScoringHead):
    """Offsets of the box of each default box, by a depthwise and a 1x1 convolution.

    Args:
        in_channels: of each map.
        num_anchors: at a place of each map.
        norm_layer: called with the channels of a depthwise convolution.
    """

    def __init__(
        self, in_channels: Sequence[int], num_anchors: Sequence[int], norm_layer: Norm
    ) -> None:
        super().__init__(_predictors(in_channels, num_anchors, 4, norm_layer), 4)


class SSDLiteHead(SSDHead):
    """The two heads, with weights of their own on every map.

    Args:
        in_channels: of each map.
        num_anchors: at a place of each map.
        num_classes: background, 0, included.
        norm_layer: called with the channels of a depthwise convolution.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_anchors: Sequence[int],
        num_classes: int,
        norm_layer: Norm,
    ) -> None:
        nn.Module.__init__(self)
        self.classification_head = SSDLiteClassificationHead(
            in_channels, num_anchors, num_classes, norm_layer
        )
        self.regression_head = SSDLiteRegressionHead(in_channels, num_anchors, norm_layer)


def _reduced(channels: int, outputs: int, norm_layer: Norm) -> nn.Sequential:
    """1x1, depthwise with stride 2, 1x1."""
    ends: dict[str, Any] = {"norm_layer": norm_layer, "activation_layer": nn.ReLU6}
    inner = outputs // 2
    return nn.Sequential(
        Conv2dNormActivation(channels, inner, 1, **ends),
        Conv2dNormActivation(inner, inner, 3, stride=2, groups=inner, **ends),
        Conv2dNormActivation(inner, outputs, 1, **ends),
    )


class SSDLiteFeatureExtractorMobileNet(nn.Module):
    """The expansion of the last strided block of a MobileNet, its last map, and four smaller ones.

    Args:
        backbone: the features of a MobileNetV3.
        c4_pos: the place of the last strided block.
        norm_layer: called with a number of channels, in the smaller maps.
        width_mult: factor of their channels.
        min_depth: the least number of them.

    Raises:
        ValueError: the block at ``c4_pos`` adds its input to its result.
    """

    def __init__(
        self,
        backbone: nn.Sequential,
        c4_pos: int,
        norm_layer: Norm,
        width_mult: float = 1.0,
        min_depth: int = 16,
    ) -> None:
        super().__init__()
        strided: Any = backbone[c4_pos]
        if strided.use_res_connect:
            raise ValueError(
                f"backbone[c4_pos].use_res_connect should be False, got True for {c4_pos}"
            )
        self.features = nn.Sequential(
            nn.Sequential(*backbone[:c4_pos], strided.block[0]),
            nn.Sequential(strided.block[1:], *backbone[c4_pos + 1 :]),
        )
        last: Any = backbone[-1]
        widths = [max(min_depth, int(width * width_mult)) for width in (512, 256, 256, 128)]
        inputs = [last.out_channels, *widths[:-1]]
        self.extra = nn.ModuleList(
            _reduced(*pair, norm_layer) for pair in zip(inputs, widths, strict=True)
        )
        initialize(self.extra, std=_STD)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps [N, C, H/16, W/16] and smaller ones of images [N, 3, H, W], by their number."""
        x, maps = enter(images), []
        for block in (*self.features, *self.extra):
            x = block(x)
            maps.append(x)
        return {str(i): level for i, level in enumerate(maps)}


def _classes_of(state: Mapping[str, Tensor]) -> int:
    return len(state["head.classification_head.module_list.0.1.bias"]) // 6


@register("detection")
def ssdlite320_mobilenet_v3_large(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: Any = "IMAGENET1K_V1",
    trainable_backbone_layers: int | None = None,
    norm_layer: Norm | None = None,
    **options: Any,
) -> SSD:
    """SSDlite (Howard et al. 2019) on MobileNetV3-Large, for images resized to 320x320: 3,440,060
    parameters.

    Args:
        weights: of the whole model; they replace ``weights_backbone``.
        progress: whether a download shows its progress.
        num_classes: background, 0, included; 91 if None.
        weights_backbone: of :func:`~fastvision.models.mobilenet_v3_large`; with None it starts at
            random, and its last stage has half the channels.
        trainable_backbone_layers: how many stages of the backbone are trained, from the last; all 6
            if None.
        norm_layer: called with a number of channels; a batch normalization if None.
        options: of :class:`~fastvision.models.detection.SSD` and ``width_mult`` of the backbone.

    Raises:
        ValueError: ``num_classes`` is not the weights' own, or a number is out of range.
    """
    options = without_size(options)
    begin = start(
        "ssdlite320_mobilenet_v3_large", weights, progress, num_classes, weights_backbone,
        trainable_backbone_layers, classes_of=_classes_of, stages=6, default_stages=6,
    )  # fmt: skip
    norm_layer = norm_layer or partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
    mobilenet = mobilenet_v3_large(
        weights=begin.weights_backbone,
        progress=progress,
        norm_layer=norm_layer,
        reduced_tail=begin.weights_backbone is None,
        **options,
    )
    if begin.weights_backbone is None:
        initialize(mobilenet, std=_STD)
    features: Any = mobilenet.features
    strided = [i for i, block in enumerate(features) if getattr(block, "is_strided", False)]
    starts = [0, *strided, len(features) - 1, len(features)]
    features[: starts[6 - begin.trainable_layers]].requires_grad_(False)
    backbone = SSDLiteFeatureExtractorMobileNet(features, strided[-1], norm_layer)
    size = (320, 320)
    anchors = DefaultBoxGenerator([[2, 3] for _ in range(6)], min_ratio=0.2, max_ratio=0.95)
    head = SSDLiteHead(*check_maps(backbone, anchors, size), begin.num_classes, norm_layer)
    options = {
        "score_thresh": 0.001,
        "nms_thresh": 0.55,
        "detections_per_img": 300,
        "topk_candidates": 300,
        "image_mean": (0.5, 0.5, 0.5),
        "image_std": (0.5, 0.5, 0.5),
        **options,
    }
    return begin.load(SSD(backbone, anchors, size, begin.num_classes, head=head, **options))
