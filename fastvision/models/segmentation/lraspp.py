"""Lite reduced atrous spatial pyramid pooling.

Howard et al., Searching for MobileNetV3, 2019, section 6.4.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ...ops import Sequential, conv_norm_act
from .._registry import register
from ._model import build, mobilenet_stages, to_size_of


class LRASPPHead(nn.Module):
    """Gated scores of a map of low resolution, added to those of a map of high resolution.

    The low-resolution scores are made before they are interpolated, which is the same up to
    rounding as torchvision's order, and less to compute.
    """

    def __init__(
        self, low_channels: int, high_channels: int, num_classes: int, inter_channels: int
    ) -> None:
        super().__init__()
        self.cbr = Sequential(
            nn.Conv2d(high_channels, inter_channels, 1, bias=False),
            nn.BatchNorm2d(inter_channels),
            nn.ReLU(inplace=True),
        )
        self.scale = Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(high_channels, inter_channels, 1, bias=False),
            nn.Sigmoid(),
        )
        self.low_classifier = nn.Conv2d(low_channels, num_classes, 1)
        self.high_classifier = nn.Conv2d(inter_channels, num_classes, 1)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """[N, num_classes, h, w] of the maps "low" [N, low_channels, h, w] and "high"."""
        low, high = features["low"], features["high"]
        x = conv_norm_act(self.cbr(high) * self.scale(high), self.high_classifier)
        x = F.interpolate(x, size=low.shape[-2:], mode="bilinear", align_corners=False)
        return conv_norm_act(low, self.low_classifier, residual=x)


class LRASPP(nn.Module):
    """A backbone with results of two resolutions, and the head.

    torchvision's constructor, initialization and state dict.

    Args:
        backbone: gives {"low": [N, low_channels, h, w], "high": [N, high_channels, h', w']} for
            images, "low" of the higher resolution.
        low_channels, high_channels: of these maps.
        num_classes: of the scores.
        inter_channels: of the convolutions in between.
    """

    def __init__(
        self,
        backbone: nn.Module,
        low_channels: int,
        high_channels: int,
        num_classes: int,
        inter_channels: int = 128,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = LRASPPHead(low_channels, high_channels, num_classes, inter_channels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Scores {"out": [N, num_classes, H, W]} of images [N, 3, H, W], normalized as in training;
        in the memory format of the images."""
        return {"out": to_size_of(images, self.classifier(self.backbone(images)))}


def _make(weights: Any, classes: int, _: bool) -> LRASPP:
    backbone, high_channels, low_channels = mobilenet_stages(weights, "high", "low")
    return LRASPP(backbone, low_channels, high_channels, classes)


@register("segmentation")
def lraspp_mobilenet_v3_large(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int | None = None,
    aux_loss: bool | None = None,
    weights_backbone: Any = "IMAGENET1K_V1",
) -> LRASPP:
    """LR-ASPP on MobileNetV3-Large (Howard et al. 2019): 3,221,538 parameters, 2.1 G multiply-adds
    at 520x520.

    Args:
        weights: of the whole model; they replace ``weights_backbone``.
        progress: whether a download shows its progress.
        num_classes: background included; 21 if None.
        aux_loss: there is none.
        weights_backbone: of :func:`~fastvision.models.mobilenet_v3_large`; None starts at random.

    Raises:
        NotImplementedError: with ``aux_loss``.
    """
    if aux_loss:
        raise NotImplementedError("lraspp_mobilenet_v3_large has no auxiliary loss: aux_loss=True")
    options = (weights, progress, num_classes, None, weights_backbone)
    return build("lraspp_mobilenet_v3_large", _make, *options)
