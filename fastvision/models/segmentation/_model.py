"""What the segmentation models share: backbones, the call, and the loading of weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from .._images import leave
from .._stages import Stages
from .._weights import read_weights
from ..mobilenetv3 import mobilenet_v3_large

CLASSES = 21  # of PASCAL VOC, background included

Model = TypeVar("Model", bound=nn.Module)


class SegmentationModel(nn.Module):
    """A backbone, and heads on its results.

    torchvision's constructor and state dict.

    Args:
        backbone: gives {"out": [N, C, h, w]} for images, and "aux" if there is an
            ``aux_classifier``.
        classifier: gives [N, num_classes, h, w] for "out".
        aux_classifier: the same for "aux", for an auxiliary loss in training.
    """

    def __init__(
        self, backbone: nn.Module, classifier: nn.Module, aux_classifier: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        self.aux_classifier = aux_classifier

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Scores {"out": [N, num_classes, H, W]}, and "aux" with an auxiliary classifier, of images
        [N, 3, H, W], normalized as in training; in the memory format of the images."""
        features = self.backbone(images)
        result = {"out": to_size_of(images, self.classifier(features["out"]))}
        if self.aux_classifier is not None:
            result["aux"] = to_size_of(images, self.aux_classifier(features["aux"]))
        return result


def to_size_of(images: Tensor, scores: Tensor) -> Tensor:
    """Scores [N, num_classes, h, w] at every pixel of the images."""
    scores = leave(scores, images)  # before it is large
    return F.interpolate(scores, size=images.shape[-2:], mode="bilinear", align_corners=False)


def resnet_stages(builder: Callable[..., nn.Module], weights: Any, aux: bool) -> Stages:
    """A ResNet whose last two stages are dilated: 1/8 of the resolution, 2048 channels in "out"
    and 1024 in "aux"."""
    resnet = builder(weights=weights, replace_stride_with_dilation=(False, True, True))
    return Stages(resnet, {"layer4": "out", **({"layer3": "aux"} if aux else {})})


def mobilenet_stages(weights: Any, high: str, low: str | None) -> tuple[Stages, int, int]:
    """MobileNetV3-Large with a dilated last stage, and the channels of its results.

    Args:
        high: the name of the result of 1/16 of the resolution.
        low: of that of 1/8; None for none.
    """
    features: Any = mobilenet_v3_large(weights=weights, dilated=True).features
    strided = [i for i, block in enumerate(features) if getattr(block, "is_strided", False)]
    at_low, at_high = strided[1], len(features) - 1  # the stem and two strided blocks: 1/8
    stages = {str(at_high): high, **({} if low is None else {str(at_low): low})}
    return Stages(features, stages), features[at_high].out_channels, features[at_low].out_channels


def build(
    name: str,
    make: Callable[[Any, int, bool], Model],
    weights: Any,
    progress: bool,
    num_classes: int | None,
    aux_loss: bool | None,
    weights_backbone: Any,
) -> Model:
    """make(weights of the backbone, classes, whether there is an auxiliary classifier), loaded.

    Weights of the whole model decide whether it has an auxiliary classifier.
    """
    state = None if weights is None else read_weights(name, weights, progress)
    if state is not None:
        has_aux = any(key.startswith("aux_classifier.") for key in state)
        if aux_loss not in (None, has_aux):
            raise ValueError(f"aux_loss must be {has_aux} for these weights, got {aux_loss}")
        aux_loss, weights_backbone = has_aux, None
    model = make(weights_backbone, CLASSES if num_classes is None else num_classes, bool(aux_loss))
    if state is not None:
        model.load_state_dict(state)
    return model
