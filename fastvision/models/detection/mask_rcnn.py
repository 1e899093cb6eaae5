"""Mask R-CNN.

He, Gkioxari, Dollár and Girshick, Mask R-CNN, 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ...ops import Conv2dNormActivation, MultiScaleRoIAlign, Sequential
from .._registry import register
from ._build import start
from ._parts import channels_of, check_class
from .anchors import AnchorGenerator
from .backbones import Norm
from .faster_rcnn import (
    FasterRCNN,
    classes_of,
    default_roi_pool,
    initialize_convolutions,
    on_resnet50,
    on_resnet50_v2,
)
from .masks import MaskRCNNPredictor

_WIDTH = 256  # channels in the head


class MaskRCNN(FasterRCNN):
    """A :class:`FasterRCNN` that also predicts the mask of each object.

    torchvision's constructor, initialization and state dict.

    Args:
        backbone, num_classes, ..., bbox_reg_weights: those of :class:`FasterRCNN`, which takes
            ``kwargs`` too.
        mask_roi_pool: a :class:`fastvision.ops.MultiScaleRoIAlign`; of 14x14 bins from the maps
            "0" to "3" if None.
        mask_head: on what is pooled; four convolutions if None.
        mask_predictor: gives logits [n, num_classes, M, M]; a :class:`MaskRCNNPredictor` if None.

    Raises:
        ValueError, TypeError: as in :class:`FasterRCNN`, or ``num_classes`` is given with a
            ``mask_predictor``.
    """

    def __init__(
        self,
        backbone: Any,
        num_classes: int | None = None,
        min_size: int | Sequence[int] = 800,
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
        mask_roi_pool: MultiScaleRoIAlign | None = None,
        mask_head: nn.Module | None = None,
        mask_predictor: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        check_class("mask_roi_pool", mask_roi_pool, MultiScaleRoIAlign)
        if num_classes is not None and mask_predictor is not None:
            raise ValueError("num_classes should be None when mask_predictor is specified")
        if num_classes is None and mask_predictor is None:
            raise ValueError("num_classes should not be None when mask_predictor is not specified")
        # before the other heads: torchvision's order of random numbers
        if mask_head is None:
            mask_head = MaskRCNNHeads(channels_of(backbone), [_WIDTH] * 4, 1)
        if mask_predictor is None:
            assert num_classes is not None
            mask_predictor = MaskRCNNPredictor(_WIDTH, _WIDTH, num_classes)
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
        self.roi_heads.mask_roi_pool = mask_roi_pool or default_roi_pool(14)
        self.roi_heads.mask_head = mask_head
        self.roi_heads.mask_predictor = mask_predictor


class MaskRCNNHeads(Sequential):
    """3x3 convolutions with ReLU.

    Args:
        in_channels: of the features.
        layers: outputs of each convolution.
        dilation: of all of them.
        norm_layer: called with a number of channels.
    """

    _version = 2

    def __init__(
        self,
        in_channels: int,
        layers: Sequence[int],
        dilation: int,
        norm_layer: Norm | None = None,
    ) -> None:
        convolutions = []
        for outputs in layers:
            convolutions.append(
                Conv2dNormActivation(
                    in_channels,
                    outputs,
                    3,
                    padding=dilation,
                    dilation=dilation,
                    norm_layer=norm_layer,
                )
            )
            in_channels = outputs
        super().__init__(*convolutions)
        initialize_convolutions(self)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if (local_metadata.get("version") or 1) < 2:  # its layers were convolutions
            for i in range(len(self)):
                for kind in ("weight", "bias"):
                    if (old := f"{prefix}mask_fcn{i + 1}.{kind}") in state_dict:
                        state_dict[f"{prefix}{i}.0.{kind}"] = state_dict.pop(old)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args, **kwargs)


@register("instance_segmentation")
def maskrcnn_resnet50_fpn(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: Any = "IMAGENET1K_V1",
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> MaskRCNN:
    """Mask R-CNN (He et al. 2017) on ResNet-50 with a feature pyramid: 44,401,393 parameters for
    COCO's classes. The arguments are those of :func:`fasterrcnn_resnet50_fpn`, and of
    :class:`MaskRCNN`."""
    name = "maskrcnn_resnet50_fpn"
    arguments = (weights, progress, num_classes, weights_backbone, trainable_backbone_layers)
    begin = start(name, *arguments, classes_of=classes_of)
    return begin.load(MaskRCNN(on_resnet50(begin, progress), begin.num_classes, **kwargs))


@register("instance_segmentation")
def maskrcnn_resnet50_fpn_v2(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: Any = None,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> MaskRCNN:
    """Mask R-CNN with the changes of :func:`fasterrcnn_resnet50_fpn_v2` (Li et al. 2021):
    46,359,409 parameters for COCO's classes. The arguments are those of
    :func:`fasterrcnn_resnet50_fpn`, and of :class:`MaskRCNN`."""
    name = "maskrcnn_resnet50_fpn_v2"
    arguments = (weights, progress, num_classes, weights_backbone, trainable_backbone_layers)
    begin = start(name, *arguments, classes_of=classes_of)
    backbone, heads = on_resnet50_v2(begin, progress)
    heads["mask_head"] = MaskRCNNHeads(256, [_WIDTH] * 4, 1, nn.BatchNorm2d)
    return begin.load(MaskRCNN(backbone, begin.num_classes, **{**heads, **kwargs}))
