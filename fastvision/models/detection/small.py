"""Narrow detectors of small objects, which a CPU trains in minutes.

Their backbone is a ResNet-18 of a quarter of its width, and their pyramid has 64 channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

from ...ops import MultiScaleRoIAlign
from .._registry import register
from .._stages import Stages
from .._weights import load_weights
from ..resnet import resnet18
from .anchors import AnchorGenerator
from .backbones import BackboneWithFPN
from .default_boxes import DefaultBoxGenerator
from .faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from .fcos import FCOS, FCOSHead
from .image_list import Target
from .mask_rcnn import MaskRCNN, MaskRCNNHeads
from .masks import MaskRCNNPredictor
from .retinanet import RetinaNet, RetinaNetHead
from .ssd import SSD
from .transform import GeneralizedRCNNTransform

Detector = TypeVar("Detector", bound=nn.Module)

_CHANNELS = 64  # of the pyramids
_SHAPES = (1.0, 1.6, 3.0)  # of anchors, height to width: upright, as digits are
_STATISTICS: dict[str, Any] = {"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}


class _AsTheyAre(GeneralizedRCNNTransform):
    """Puts images into one batch, without a change of their size."""

    def __init__(self) -> None:
        super().__init__(1, 1, **_STATISTICS)

    def resize(self, image: Tensor, target: Target | None = None) -> tuple[Tensor, Target | None]:
        return image, target

    def _size_of(self, height: int, width: int, shorter: int) -> tuple[int, int]:
        return height, width


@register("detection")
def small_retinanet(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int = 11,
    stem_width: int = 16,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> RetinaNet:
    """:class:`RetinaNet` with normalized heads, for objects of 15 to 80 pixels: 1,175,274
    parameters with 11 classes.

    Args:
        weights: None, a state dict, or the path of a file.
        progress: whether a download shows a progress bar.
        num_classes: with the background.
        stem_width: channels of the backbone's stem.
        alpha, gamma: of :func:`fastvision.ops.sigmoid_focal_loss`; -1 and 0 for cross entropy.
    """
    anchors = _anchors((16, 22), (32, 44), (56, 72), (96, 128))
    norm = partial(nn.GroupNorm, 8)
    head = RetinaNetHead(_CHANNELS, len(_SHAPES) * 2, num_classes, norm_layer=norm)
    head.classification_head.alpha, head.classification_head.gamma = alpha, gamma
    model = RetinaNet(
        _pyramid(stem_width, (2, 3, 4)),
        num_classes,
        anchor_generator=anchors,
        head=head,
        detections_per_img=100,
    )
    return _finished(model, "small_retinanet", weights, progress)


@register("detection")
def small_fcos(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int = 11,
    stem_width: int = 16,
    num_convs: int = 4,
) -> FCOS:
    """:class:`FCOS` for objects of 15 to 80 pixels: 1,133,088 parameters with 11 classes.

    Args:
        weights, progress: see :func:`small_retinanet`.
        num_classes: with the background.
        stem_width: channels of the backbone's stem.
        num_convs: convolutions of each head before the one that predicts.
    """
    model = FCOS(
        _pyramid(stem_width, (2, 3, 4)),
        num_classes,
        anchor_generator=AnchorGenerator(((4,), (8,), (16,), (32,)), ((1.0,),) * 4),
        head=FCOSHead(_CHANNELS, 1, num_classes, num_convs),
        detections_per_img=100,
    )
    return _finished(model, "small_fcos", weights, progress)


@register("detection")
def small_ssd(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int = 11,
    stem_width: int = 16,
    size: int = 96,
) -> SSD:
    """:class:`SSD` on the last three stages of the backbone: 883,806 parameters with 11 classes.

    Args:
        weights, progress: see :func:`small_retinanet`.
        num_classes: with the background.
        stem_width: channels of the backbone's stem.
        size: pixels of the sides to which images are stretched.
    """
    stages = {f"layer{i}": str(i - 2) for i in (2, 3, 4)}
    backbone = Stages(resnet18(stem_width=stem_width), stages)
    boxes = DefaultBoxGenerator([[2, 3]] * 3, scales=[0.2, 0.4, 0.65, 0.9])
    options = {**_STATISTICS, "detections_per_img": 100}
    model = SSD(backbone, boxes, (size, size), num_classes, **options)
    return load_weights(model, "small_ssd", weights, progress)


@register("detection")
def small_faster_rcnn(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int = 11,
    stem_width: int = 16,
) -> FasterRCNN:
    """:class:`FasterRCNN` for objects of 15 to 80 pixels: 1,291,429 parameters with 11 classes.

    Args:
        weights, progress: see :func:`small_retinanet`.
        num_classes: with the background.
        stem_width: channels of the backbone's stem.
    """
    anchors = _anchors((18, 26), (32, 44), (64, 72), (96, 128))
    options = _two_stages(anchors, ["0", "1", "2"], num_classes)
    model = FasterRCNN(_pyramid(stem_width, (2, 3, 4)), **options)
    return _finished(model, "small_faster_rcnn", weights, progress)


@register("instance_segmentation")
def small_mask_rcnn(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int = 11,
    stem_width: int = 16,
) -> MaskRCNN:
    """:class:`MaskRCNN` for objects of 15 to 80 pixels, with masks from the finest level: 1,419,489
    parameters with 11 classes.

    Args:
        weights, progress: see :func:`small_retinanet`.
        num_classes: with the background.
        stem_width: channels of the backbone's stem.
    """
    anchors = _anchors((16,), (24,), (36,), (56,), (96,))
    options = _two_stages(anchors, ["0", "1", "2", "3"], num_classes)
    model = MaskRCNN(
        _pyramid(stem_width, (1, 2, 3, 4)),
        mask_roi_pool=MultiScaleRoIAlign(["0"], 14, 2),
        mask_head=MaskRCNNHeads(_CHANNELS, (_CHANNELS, _CHANNELS), 1),
        mask_predictor=MaskRCNNPredictor(_CHANNELS, _CHANNELS, num_classes),
        **options,
    )
    return _finished(model, "small_mask_rcnn", weights, progress)


def _pyramid(stem_width: int, stages: Sequence[int]) -> BackboneWithFPN:
    return BackboneWithFPN(
        resnet18(stem_width=stem_width),
        {f"layer{stage}": str(level) for level, stage in enumerate(stages)},
        [stem_width * 2 ** (stage - 1) for stage in stages],
        _CHANNELS,
    )


def _anchors(*sizes: Sequence[int]) -> AnchorGenerator:
    return AnchorGenerator(sizes, (_SHAPES,) * len(sizes))


def _two_stages(anchors: AnchorGenerator, levels: list[str], num_classes: int) -> dict[str, Any]:
    """What :class:`FasterRCNN` and :class:`MaskRCNN` have in common, for few proposals."""
    return {
        "rpn_anchor_generator": anchors,
        "rpn_pre_nms_top_n_train": 400,
        "rpn_pre_nms_top_n_test": 200,
        "rpn_post_nms_top_n_train": 100,
        "rpn_post_nms_top_n_test": 50,
        "rpn_batch_size_per_image": 64,
        "box_batch_size_per_image": 32,
        "box_roi_pool": MultiScaleRoIAlign(levels, 7, 2),
        "box_head": TwoMLPHead(_CHANNELS * 7 * 7, 128),
        "box_predictor": FastRCNNPredictor(128, num_classes),
    }


def _finished(model: Detector, name: str, weights: Any, progress: bool) -> Detector:
    model.transform = _AsTheyAre()
    return load_weights(model, name, weights, progress)
