"""Keypoint R-CNN.

He, Gkioxari, Dollár and Girshick, Mask R-CNN, 2017, section 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ...ops import MultiScaleRoIAlign, Sequential, conv_norm_act
from .._registry import register
from ._build import start
from ._parts import channels_of, check_class
from .anchors import AnchorGenerator
from .faster_rcnn import (
    FasterRCNN,
    classes_of,
    default_roi_pool,
    initialize_convolutions,
    on_resnet50,
)

_KEYPOINTS = 17  # of a person in COCO
_WIDTH = 512  # channels in the head


class KeypointRCNN(FasterRCNN):
    """A :class:`FasterRCNN` that also finds the keypoints of each object.

    torchvision's constructor, initialization and state dict.

    Args:
        backbone, num_classes, ..., bbox_reg_weights: those of :class:`FasterRCNN`, which takes
            ``kwargs`` too.
        min_size: of :class:`FasterRCNN`; if None, training draws one of 640 to 800, and
            evaluation takes 800.
        keypoint_roi_pool: a :class:`fastvision.ops.MultiScaleRoIAlign`; of 14x14 bins from the
            maps "0" to "3" if None.
        keypoint_head: on what is pooled; eight convolutions if None.
        keypoint_predictor: gives heatmaps [n, K, M, M]; a :class:`KeypointRCNNPredictor` if None.
        num_keypoints: K; 17 if None.

    Raises:
        ValueError, TypeError: as in :class:`FasterRCNN`, or ``num_keypoints`` is given with a
            ``keypoint_predictor``.
    """

    def __init__(
        self,
        backbone: Any,
        num_classes: int | None = None,
        min_size: int | Sequence[int] | None = None,
        max_size: int = 1333,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        rpn_anchor_generator: AnchorGenerator | None = None,
        rpn_head: nn.Module | None = None,
        rpn_pre_nms_top_n_train: int = 2000,
        rpn_pre_nms_top_n_test: int = 1000,
        rpn_post_nms_top_n_train: int = 2000,
        rpn_post_nms_top_n_test: int = 1000,
        rpn_nms_thresh: float = 0.7,
        rpn_fg_iou_thresh: float = 0.7,
        rpn_bg_iou_thresh: float = 0.3,
        rpn_batch_size_per_image: int = 256,
        rpn_positive_fraction: float = 0.5,
        rpn_score_thresh: float = 0.0,
        box_roi_pool: MultiScaleRoIAlign | None = None,
        box_head: nn.Module | None = None,
        box_predictor: nn.Module | None = None,
        box_score_thresh: float = 0.05,
        box_nms_thresh: float = 0.5,
        box_detections_per_img: int = 100,
        box_fg_iou_thresh: float = 0.5,
        box_bg_iou_thresh: float = 0.5,
        box_batch_size_per_image: int = 512,
        box_positive_fraction: float = 0.25,
        bbox_reg_weights: tuple[float, float, float, float] | None = None,
        keypoint_roi_pool: MultiScaleRoIAlign | None = None,
        keypoint_head: nn.Module | None = None,
        keypoint_predictor: nn.Module | None = None,
        num_keypoints: int | None = None,
        **kwargs: Any,
    ) -> None:
        check_class("keypoint_roi_pool", keypoint_roi_pool, MultiScaleRoIAlign)
        if num_keypoints is not None and keypoint_predictor is not None:
            raise ValueError("num_keypoints should be None when keypoint_predictor is specified")
        if min_size is None:
            min_size = (640, 672, 704, 736, 768, 800)
        # before the other heads: torchvision's order of random numbers
        if keypoint_head is None:
            keypoint_head = KeypointRCNNHeads(channels_of(backbone), [_WIDTH] * 8)
        if keypoint_predictor is None:
            count = _KEYPOINTS if num_keypoints is None else num_keypoints
            keypoint_predictor = KeypointRCNNPredictor(_WIDTH, count)
        super().__init__(
            backbone,
            num_classes,
            min_size,
            max_size,
            image_mean,
            image_std,
            rpn_anchor_generator,
            rpn_head,
            rpn_pre_nms_top_n_train,
            rpn_pre_nms_top_n_test,
            rpn_post_nms_top_n_train,
            rpn_post_nms_top_n_test,
            rpn_nms_thresh,
            rpn_fg_iou_thresh,
            rpn_bg_iou_thresh,
            rpn_batch_size_per_image,
            rpn_positive_fraction,
            rpn_score_thresh,
            box_roi_pool,
            box_head,
            box_predictor,
            box_score_thresh,
            box_nms_thresh,
            box_detections_per_img,
            box_fg_iou_thresh,
            box_bg_iou_thresh,
            box_batch_size_per_image,
            box_positive_fraction,
            bbox_reg_weights,
            **kwargs,
        )
        self.roi_heads.keypoint_roi_pool = keypoint_roi_pool or default_roi_pool(14)
        self.roi_heads.keypoint_head = keypoint_head
        self.roi_heads.keypoint_predictor = keypoint_predictor


class KeypointRCNNHeads(Sequential):
    """3x3 convolutions with ReLU.

    Args:
        in_channels: of the features.
        layers: outputs of each convolution.
    """

    def __init__(self, in_channels: int, layers: Sequence[int]) -> None:
        modules: list[nn.Module] = []
        for outputs in layers:
            modules += [nn.Conv2d(in_channels, outputs, 3, padding=1), nn.ReLU(inplace=True)]
            in_channels = outputs
        super().__init__(*modules)
        initialize_convolutions(self)


class KeypointRCNNPredictor(nn.Module):
    """A transposed convolution to twice the size, and a bilinear enlargement to twice that.

    Args:
        in_channels: of the head.
        num_keypoints: heatmaps of a box.
    """

    def __init__(self, in_channels: int, num_keypoints: int) -> None:
        super().__init__()
        self.kps_score_lowres = nn.ConvTranspose2d(in_channels, num_keypoints, 4, 2, 1)
        nn.init.kaiming_normal_(self.kps_score_lowres.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.kps_score_lowres.bias)  # type: ignore[arg-type]
        self.up_scale = 2
        self.out_channels = num_keypoints

    def forward(self, x: Tensor) -> Tensor:
        """Heatmaps [n, num_keypoints, 4 H, 4 W] of [n, C, H, W]."""
        scores = conv_norm_act(x, self.kps_score_lowres)
        size = [side * self.up_scale for side in scores.shape[-2:]]
        return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)


@register("keypoints")
def keypointrcnn_resnet50_fpn(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int | None = None,
    num_keypoints: int | None = None,
    weights_backbone: Any = "IMAGENET1K_V1",
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> KeypointRCNN:
    """Keypoint R-CNN (He et al. 2017) on ResNet-50 with a feature pyramid: 59,137,258 parameters
    for persons.

    Args:
        num_classes: background included; 2 if None.
        num_keypoints: of an object; 17 if None.
        weights, progress, weights_backbone, trainable_backbone_layers, kwargs: see
            :func:`fasterrcnn_resnet50_fpn` and :class:`KeypointRCNN`.

    Raises:
        ValueError: ``num_classes`` or ``num_keypoints`` is not the weights' own, or a number is out
            of range.
    """
    name = "keypointrcnn_resnet50_fpn"
    arguments = (weights, progress, num_classes, weights_backbone, trainable_backbone_layers)
    begin = start(name, *arguments, classes_of=classes_of, classes=2)
    if begin.state is not None:
        found = len(begin.state["roi_heads.keypoint_predictor.kps_score_lowres.bias"])
        if num_keypoints not in (None, found):
            raise ValueError(
                f"num_keypoints must be {found} for these weights, got {num_keypoints}"
            )
        num_keypoints = found
    backbone = on_resnet50(begin, progress)
    model = KeypointRCNN(backbone, begin.num_classes, num_keypoints=num_keypoints, **kwargs)
    return begin.load(model)
