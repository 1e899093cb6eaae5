"""RetinaNet.

Lin, Goyal, Girshick, He and Dollar, Focal loss for dense object detection, 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...ops import (
    Conv2dNormActivation,
    Sequential,
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
    sigmoid_focal_loss,
)
from ...ops.feature_pyramid_network import LastLevelP6P7
from .._registry import register
from ..resnet import resnet50
from ._build import start
from ._heads import DenseHead, LevelHead, initialize, initialize_prior, levels_of, predict
from ._one_stage import PyramidDetector, match
from ._parts import channels_of, check_class, check_counts, check_numbers
from .anchors import AnchorGenerator
from .backbones import resnet_pyramid
from .box_coder import BoxCoder
from .image_list import ImageList, Target
from .matching import Matcher
from .targets import check_classes
from .transform import GeneralizedRCNNTransform

Norm = Callable[..., nn.Module]
_PER_PLACE = 9  # anchors of the builders
_IOU_LOSSES = {
    "giou": generalized_box_iou_loss,
    "diou": distance_box_iou_loss,
    "ciou": complete_box_iou_loss,
}


class _Tower(LevelHead):
    """Four 3x3 convolutions before the one that predicts."""

    _version = 2

    def __init__(self, in_channels: int, norm_layer: Norm | None) -> None:
        super().__init__()
        self.conv = Sequential(
            *(
                Conv2dNormActivation(in_channels, in_channels, norm_layer=norm_layer)
                for _ in range(4)
            )
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        if (local_metadata.get("version") or 1) < 2:  # convolutions and ReLUs in turn
            for i in range(4):
                for name in ("weight", "bias"):
                    if (old := f"{prefix}conv.{2 * i}.{name}") in state_dict:
                        state_dict[f"{prefix}conv.{i}.0.{name}"] = state_dict.pop(old)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class RetinaNetClassificationHead(_Tower):
    """Logits of the classes of each anchor.

    Args:
        in_channels: of every map.
        num_anchors: at a place.
        num_classes: the logits of an anchor, a background's included if the labels have one.
        prior_probability: of each class at the start.
        norm_layer: called with ``in_channels`` after each convolution; None for none.
    """

    def __init__(
        self,
        in_channels: int,
        num_anchors: int,
        num_classes: int,
        prior_probability: float = 0.01,
        norm_layer: Norm | None = None,
    ) -> None:
        super().__init__(in_channels, norm_layer)
        initialize(self.conv)
        self.cls_logits = nn.Conv2d(in_channels, num_anchors * num_classes, 3, padding=1)
        initialize_prior(self.cls_logits, prior_probability)
        self.num_classes, self.num_anchors = num_classes, num_anchors
        self.alpha, self.gamma = 0.25, 2.0  # of the focal loss

    def levels(self, x: Sequence[Tensor]) -> list[Tensor]:
        """Logits [N, H W A, num_classes] of each map [N, C, H, W]."""
        return [predict(self.conv(maps), self.cls_logits, self.num_classes) for maps in x]

    def compute_loss(
        self,
        targets: Sequence[Target],
        head_outputs: dict[str, Tensor],
        matched_idxs: Sequence[Tensor],
    ) -> Tensor:
        """Focal loss: of an image the sum over its anchors, per anchor with an object."""
        losses = []
        logits = head_outputs["cls_logits"]
        check_classes(targets, logits.shape[-1])
        for target, rows, matched in zip(targets, logits, matched_idxs, strict=True):
            classes = _labels(target["labels"], matched)
            count = (matched >= 0).sum().clamp(min=1)
            loss = sigmoid_focal_loss(rows, classes, self.alpha, self.gamma, reduction="sum")
            losses.append(loss / count)
        return torch.stack(losses).mean()


def _labels(labels: Tensor, matched: Tensor) -> Tensor:
    """Of each anchor the label of its object, or the matcher's negative number, which focal loss
    has for background (-1) and for what is ignored (-2), too."""
    if len(labels) == 0:
        return matched
    return torch.where(matched >= 0, labels[matched.clamp(min=0)], matched)


class RetinaNetRegressionHead(_Tower):
    """Offsets of the box of each anchor.

    Args:
        in_channels: of every map.
        num_anchors: at a place.
        norm_layer: called with ``in_channels`` after each convolution; None for none.
    """

    def __init__(self, in_channels: int, num_anchors: int, norm_layer: Norm | None = None) -> None:
        super().__init__(in_channels, norm_layer)
        self.bbox_reg = nn.Conv2d(in_channels, num_anchors * 4, 3, padding=1)
        initialize(self.bbox_reg, self.conv)
        self.box_coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        self._loss_type = "l1"

    def levels(self, x: Sequence[Tensor]) -> list[Tensor]:
        """Offsets [N, H W A, 4] of each map [N, C, H, W]."""
        return [predict(self.conv(maps), self.bbox_reg, 4) for maps in x]

    def compute_loss(
        self,
        targets: Sequence[Target],
        head_outputs: dict[str, Tensor],
        anchors: Sequence[Tensor],
        matched_idxs: Sequence[Tensor],
    ) -> Tensor:
        """L1 or IoU loss of the anchors with an object: of an image the mean over them."""
        codes, boxes, wanted, weights = [], [], [], []
        offsets = head_outputs["bbox_regression"]
        for target, rows, of_image, matched in zip(
            targets, offsets, anchors, matched_idxs, strict=True
        ):
            found = torch.where(matched >= 0)[0]
            codes.append(rows[found])
            boxes.append(of_image[found])
            wanted.append(target["boxes"][matched[found]])
            weights.append(rows.new_full((len(found),), 1 / max(1, len(found))))
        losses = self._box_loss(torch.cat(codes), torch.cat(boxes), torch.cat(wanted))
        return (losses * torch.cat(weights)).sum() / max(1, len(targets))

    def _box_loss(self, codes: Tensor, anchors: Tensor, wanted: Tensor) -> Tensor:
        """[L] of offsets, anchors and boxes [L, 4]."""
        if self._loss_type == "l1":
            return (codes - self.box_coder.encode_single(wanted, anchors)).abs().sum(1)
        if self._loss_type not in _IOU_LOSSES:
            names = ["l1", *_IOU_LOSSES]
            raise ValueError(f"_loss_type must be one of {names}, got {self._loss_type!r}")
        boxes = self.box_coder.decode_single(codes, anchors)
        return _IOU_LOSSES[self._loss_type](boxes, wanted, reduction="none")


class RetinaNetHead(DenseHead):
    """The two heads, with the same weights on every level.

    Args:
        in_channels: of every map.
        num_anchors: at a place.
        num_classes: the logits of an anchor.
        norm_layer: called with ``in_channels`` after each convolution; None for none.
    """

    def __init__(
        self, in_channels: int, num_anchors: int, num_classes: int, norm_layer: Norm | None = None
    ) -> None:
        super().__init__()
        self.classification_head = RetinaNetClassificationHead(
            in_channels, num_anchors, num_classes, norm_layer=norm_layer
        )
        self.regression_head = RetinaNetRegressionHead(
            in_channels, num_anchors, norm_layer=norm_layer
        )

    def levels(self, x: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """Logits [N, H W A, num_classes] and offsets [N, H W A, 4] of each map."""
        return {
            "cls_logits": levels_of(self.classification_head, x),
            "bbox_regression": levels_of(self.regression_head, x),
        }

    def compute_loss(
        self,
        targets: Sequence[Target],
        head_outputs: dict[str, Tensor],
        anchors: Sequence[Tensor],
        matched_idxs: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """The losses "classification" and "bbox_regression".

        Args:
            targets: "boxes" and "labels" of each image.
            head_outputs: of ``forward``.
            anchors: [A, 4] of each image.
            matched_idxs: int64 [A] of each image, see :class:`Matcher`.
        """
        matched = matched_idxs
        return {
            "classification": self.classification_head.compute_loss(targets, head_outputs, matched),
            "bbox_regression": self.regression_head.compute_loss(
                targets, head_outputs, anchors, matched
            ),
        }


def _default_anchors() -> AnchorGenerator:
    """Three sizes, a third of an octave apart, and three shapes on each of five levels."""
    sizes = tuple(
        (x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512)
    )
    return AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))


class RetinaNet(PyramidDetector):
    """Two convolutional heads on a feature pyramid, trained with focal loss.

    torchvision's constructor, initialization, state dict, losses and detections.

    Args:
        backbone: gives maps [N, out_channels, h, w] for images, as a tensor or a dict; has the
            attribute ``out_channels``.
        num_classes: number of logits of an anchor; labels are 0 to num_classes - 1.
        min_size, max_size, image_mean, image_std: see :class:`GeneralizedRCNNTransform`; further
            options are its own.
        anchor_generator: the anchors; nine a place on five levels if None.
        head: the predictions; a :class:`RetinaNetHead` if None.
        proposal_matcher: assigns objects; a :class:`Matcher` of the two IoU thresholds if None.
        score_thresh: detections have a score above it.
        nms_thresh: IoU above which a detection removes another of its class.
        detections_per_img: limit of the detections of an image.
        fg_iou_thresh, bg_iou_thresh: an anchor with at least the first IoU is trained for the
            object, one below the second for the background.
        topk_candidates: limit of the candidates of a level.

    Raises:
        ValueError: the backbone has no ``out_channels``, or a number is out of range.
        TypeError: ``anchor_generator`` is no :class:`AnchorGenerator`, or an option no number.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        min_size: int | Sequence[int] = 800,
        max_size: int = 1333,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        anchor_generator: AnchorGenerator | None = None,
        head: nn.Module | None = None,
        proposal_matcher: Matcher | None = None,
        score_thresh: float = 0.05,
        nms_thresh: float = 0.5,
        detections_per_img: int = 300,
        fg_iou_thresh: float = 0.5,
        bg_iou_thresh: float = 0.4,
        topk_candidates: int = 1000,
        **options: Any,
    ) -> None:
        super().__init__()
        check_class("anchor_generator", anchor_generator, AnchorGenerator)
        check_numbers(
            score_thresh=score_thresh,
            nms_thresh=nms_thresh,
            fg_iou_thresh=fg_iou_thresh,
            bg_iou_thresh=bg_iou_thresh,
        )
        check_counts(detections_per_img=detections_per_img, topk_candidates=topk_candidates)
        channels = channels_of(backbone)
        self.backbone = backbone
        self.anchor_generator = anchor_generator or _default_anchors()
        if head is None:
            per_place = self.anchor_generator.num_anchors_per_location()[0]
            head = RetinaNetHead(channels, per_place, num_classes)
        self.head = head
        self.proposal_matcher = proposal_matcher or Matcher(
            fg_iou_thresh, bg_iou_thresh, allow_low_quality_matches=True
        )
        self.box_coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        self.transform = GeneralizedRCNNTransform(
            min_size, max_size, image_mean, image_std, **options
        )
        self.score_thresh, self.nms_thresh = score_thresh, nms_thresh
        self.detections_per_img, self.topk_candidates = detections_per_img, topk_candidates

    def compute_loss(
        self, targets: Sequence[Target], head_outputs: dict[str, Tensor], anchors: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """The head's losses; the arguments are those of :meth:`RetinaNetHead.compute_loss`."""
        matched = match(self.proposal_matcher, targets, anchors)
        head: Any = self.head
        return head.compute_loss(targets, head_outputs, anchors, matched)

    def _losses(self, targets: Any, batch: ImageList, maps: list[Tensor]) -> dict[str, Tensor]:
        return self.compute_loss(targets, self.head(maps), self.anchor_generator(batch, maps))

    def decode(self, codes: Tensor, anchors: Tensor) -> Tensor:
        """Boxes [N, M, 4] of offsets and anchors of the same shape."""
        return self.box_coder.decode_single(codes, anchors)


def _classes_of(state: Mapping[str, Tensor]) -> int:
    head = "head.classification_head.cls_logits.bias"
    return len(state[head]) // _PER_PLACE


@register("detection")
def retinanet_resnet50_fpn(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: Any = "IMAGENET1K_V1",
    trainable_backbone_layers: int | None = None,
    **options: Any,
) -> RetinaNet:
    """RetinaNet (Lin et al. 2017) on ResNet-50 with a feature pyramid: 34,014,999 parameters.

    Args:
        weights: of the whole model; they replace ``weights_backbone``.
        progress: whether a download shows its progress.
        num_classes: of the labels, 0 included; 91 if None.
        weights_backbone: of :func:`~fastvision.models.resnet50`; None starts at random.
        trainable_backbone_layers: how many stages of the backbone are trained, from the last; 3 of
            5 if None, all of a network that starts at random.
        options: of :class:`RetinaNet`.

    Raises:
        ValueError: ``num_classes`` is not the weights' own, or a number is out of range.
    """
    begin = start(
        "retinanet_resnet50_fpn", weights, progress, num_classes, weights_backbone,
        trainable_backbone_layers, classes_of=_classes_of,
    )  # fmt: skip
    resnet = resnet50(
        weights=begin.weights_backbone, progress=progress, norm_layer=begin.norm_layer
    )
    backbone = resnet_pyramid(resnet, begin.trainable_layers, (2, 3, 4), LastLevelP6P7(256, 256))
    return begin.load(RetinaNet(backbone, begin.num_classes, **options))


@register("detection")
def retinanet_resnet50_fpn_v2(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: Any = None,
    trainable_backbone_layers: int | None = None,
    **options: Any,
) -> RetinaNet:
    """RetinaNet with group normalization in its heads and an IoU loss, on ResNet-50 with batch
    normalization: 38,198,935 parameters.

    Zhang, Chi, Yao, Lei and Li, Bridging the gap between anchor-based and anchor-free detection,
    2020. The arguments are those of :func:`retinanet_resnet50_fpn`.
    """
    begin = start(
        "retinanet_resnet50_fpn_v2", weights, progress, num_classes, weights_backbone,
        trainable_backbone_layers, classes_of=_classes_of,
    )  # fmt: skip
    resnet = resnet50(weights=begin.weights_backbone, progress=progress)
    backbone = resnet_pyramid(resnet, begin.trainable_layers, (2, 3, 4), LastLevelP6P7(2048, 256))
    anchors = _default_anchors()
    norm = partial(nn.GroupNorm, 32)
    head = RetinaNetHead(backbone.out_channels, _PER_PLACE, begin.num_classes, norm)
    head.regression_head._loss_type = "giou"
    return begin.load(
        RetinaNet(backbone, begin.num_classes, anchor_generator=anchors, head=head, **options)
    )
