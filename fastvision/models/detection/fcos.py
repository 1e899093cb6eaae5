"""FCOS.

Tian, Shen, Chen and He, FCOS: fully convolutional one-stage object detection, 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...ops import Sequential, generalized_box_iou_loss, sigmoid_focal_loss
from ...ops.feature_pyramid_network import LastLevelP6P7
from .._registry import register
from ..resnet import resnet50
from ._build import start
from ._heads import (
    DenseHead,
    LevelHead,
    initialize,
    initialize_prior,
    is_own,
    levels_of,
    predict,
    results_of,
    rows_of,
    split_levels,
)
from ._one_stage import PyramidDetector
from ._parts import channels_of, check_class, check_counts, check_numbers
from .anchors import AnchorGenerator, shared
from .backbones import resnet_pyramid
from .box_coder import BoxLinearCoder
from .image_list import ImageList, Target
from .targets import check_classes
from .transform import GeneralizedRCNNTransform

Norm = Callable[..., nn.Module]


def _tower(channels: int, convs: int, norm_layer: Norm | None) -> Sequential:
    norm_layer = norm_layer or partial(nn.GroupNorm, 32)
    layers: list[nn.Module] = []
    for _ in range(convs):
        conv = nn.Conv2d(channels, channels, 3, padding=1)
        layers += [conv, norm_layer(channels), nn.ReLU(inplace=True)]
    return Sequential(*layers)


class FCOSClassificationHead(LevelHead):
    """Logits of the classes at each place.

    Args:
        in_channels: of every map.
        num_anchors: at a place.
        num_classes: the logits of an anchor.
        num_convs: number of convolutions before the one that predicts.
        prior_probability: of each class at the start.
        norm_layer: called with ``in_channels`` after each convolution; a group normalization of 32
            groups if None.
    """

    def __init__(
        self,
        in_channels: int,
        num_anchors: int,
        num_classes: int,
        num_convs: int = 4,
        prior_probability: float = 0.01,
        norm_layer: Norm | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_anchors = num_classes, num_anchors
        self.conv = _tower(in_channels, num_convs, norm_layer)
        initialize(self.conv)
        self.cls_logits = nn.Conv2d(in_channels, num_anchors * num_classes, 3, padding=1)
        initialize_prior(self.cls_logits, prior_probability)

    def levels(self, x: Sequence[Tensor]) -> list[Tensor]:
        """Logits [N, H W A, num_classes] of each map [N, C, H, W]."""
        return [predict(self.conv(maps), self.cls_logits, self.num_classes) for maps in x]


class FCOSRegressionHead(nn.Module):
    """Distances to the sides of the box at each place, and how central the place is in it.

    Args:
        in_channels: of every map.
        num_anchors: at a place.
        num_convs: number of convolutions before those that predict.
        norm_layer: called with ``in_channels`` after each convolution; a group normalization of 32
            groups if None.
    """

    def __init__(
        self,
        in_channels: int,
        num_anchors: int,
        num_convs: int = 4,
        norm_layer: Norm | None = None,
    ) -> None:
        super().__init__()
        self.conv = _tower(in_channels, num_convs, norm_layer)
        self.bbox_reg = nn.Conv2d(in_channels, num_anchors * 4, 3, padding=1)
        self.bbox_ctrness = nn.Conv2d(in_channels, num_anchors, 3, padding=1)
        initialize(self.bbox_reg, self.bbox_ctrness, self.conv)

    def levels(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Distances [N, H W A, 4] and logits of centrality [N, H W A, 1] of each map
        [N, C, H, W]."""
        features = [self.conv(maps) for maps in x]
        sides, centrality = results_of(features, self.bbox_reg, self.bbox_ctrness)
        distances = [rows_of(F.relu(maps), 4) for maps in sides]
        return distances, [rows_of(maps, 1) for maps in centrality]

    def forward(self, x: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """:meth:`levels`, concatenated to [N, sum of H W A, 4] and [N, sum of H W A, 1]."""
        distances, centrality = self.levels(x)
        return torch.cat(distances, 1), torch.cat(centrality, 1)


class FCOSHead(DenseHead):
    """The two heads, with the same weights on every level.

    Args:
        in_channels: of every map.
        num_anchors: at a place.
        num_classes: the logits of an anchor.
        num_convs: number of convolutions before those that predict.
    """

    def __init__(
        self, in_channels: int, num_anchors: int, num_classes: int, num_convs: int = 4
    ) -> None:
        super().__init__()
        self.box_coder = BoxLinearCoder(normalize_by_size=True)
        self.classification_head = FCOSClassificationHead(
            in_channels, num_anchors, num_classes, num_convs
        )
        self.regression_head = FCOSRegressionHead(in_channels, num_anchors, num_convs)

    def levels(self, x: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """Logits [N, H W A, num_classes], distances [N, H W A, 4] and logits of centrality
        [N, H W A, 1] of each map."""
        logits = levels_of(self.classification_head, x)
        head = self.regression_head
        if is_own(head, FCOSRegressionHead):
            distances, centrality = head.levels(x)
        else:
            distances, centrality = (split_levels(rows, x) for rows in head(x))
        return {"cls_logits": logits, "bbox_regression": distances, "bbox_ctrness": centrality}

    def compute_loss(
        self,
        targets: Sequence[Target],
        head_outputs: dict[str, Tensor],
        anchors: Sequence[Tensor],
        matched_idxs: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """The losses "classification" (focal), "bbox_regression" (generalized IoU) and
        "bbox_ctrness" (binary cross entropy), each per place with an object.

        Args:
            targets: "boxes" and "labels" of each image.
            head_outputs: of ``forward``.
            anchors: [A, 4] of each image.
            matched_idxs: int64 [A] of each image: the object of each anchor, negative for none.
        """
        check_classes(targets, head_outputs["cls_logits"].shape[-1])
        matched = torch.stack(list(matched_idxs))
        found = matched >= 0
        image, place = torch.where(found)
        # of all images one after the other; image i has those from first[i] on
        first = torch.tensor([0, *(len(t["labels"]) for t in targets)]).cumsum(0)[:-1]
        which = matched[found] + first.to(matched.device)[image]
        wanted = torch.cat([t["boxes"] for t in targets])[which]
        classes = torch.full_like(matched, -1)
        classes[found] = torch.cat([t["labels"] for t in targets])[which]
        boxes = shared(anchors).expand(len(matched), -1, 4)[image, place]

        logits, centrality = head_outputs["cls_logits"], head_outputs["bbox_ctrness"]
        distances = head_outputs["bbox_regression"][image, place]
        regression = generalized_box_iou_loss(
            self.box_coder.decode(distances, boxes), wanted, reduction="sum"
        )
        sides = self.box_coder.encode(boxes, wanted)
        across, down = sides[:, 0::2], sides[:, 1::2]
        central = ((across.amin(1) / across.amax(1)) * (down.amin(1) / down.amax(1))).sqrt()
        centered = F.binary_cross_entropy_with_logits(
            centrality[image, place, 0], central, reduction="sum"
        )
        count = max(1, len(image))
        return {
            "classification": sigmoid_focal_loss(logits, classes, reduction="sum") / count,
            "bbox_regression": regression / count,
            "bbox_ctrness": centered / count,
        }


class FCOS(PyramidDetector):
    """A class, the distances to the sides of a box, and a centrality at every place of a pyramid.

    torchvision's constructor, initialization, state dict, losses and detections.

    Args:
        backbone: gives maps [N, out_channels, h, w] for images, as a tensor or a dict; has the
            attribute ``out_channels``.
        num_classes: number of logits of a place; labels are 0 to num_classes - 1.
        min_size, max_size, image_mean, image_std: see :class:`GeneralizedRCNNTransform`; further
            options are its own.
        anchor_generator: one square a place, whose size is the unit of the distances; of five
            levels of strides 8 to 128 if None.
        head: the predictions; an :class:`FCOSHead` if None.
        center_sampling_radius: places nearer to the centre of a box than this, in units of the
            square, are trained for it.
        score_thresh: detections have a score above it, the geometric mean of the class's
            probability and the centrality.
        nms_thresh: IoU above which a detection removes another of its class.
        detections_per_img: limit of the detections of an image.
        topk_candidates: limit of the candidates of a level.

    Raises:
        ValueError: the backbone has no ``out_channels``, there are several anchors a place, or a
            number is out of range.
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
        center_sampling_radius: float = 1.5,
        score_thresh: float = 0.2,
        nms_thresh: float = 0.6,
        detections_per_img: int = 100,
        topk_candidates: int = 1000,
        **options: Any,
    ) -> None:
        super().__init__()
        check_class("anchor_generator", anchor_generator, AnchorGenerator)
        check_numbers(
            center_sampling_radius=center_sampling_radius,
            score_thresh=score_thresh,
            nms_thresh=nms_thresh,
        )
        check_counts(detections_per_img=detections_per_img, topk_candidates=topk_candidates)
        channels = channels_of(backbone)
        self.backbone = backbone
        self.anchor_generator = anchor_generator or AnchorGenerator(
            ((8,), (16,), (32,), (64,), (128,)), ((1.0,),) * 5
        )
        per_place = self.anchor_generator.num_anchors_per_location()[0]
        if per_place != 1:
            raise ValueError(
                f"anchor_generator.num_anchors_per_location()[0] should be 1 instead of {per_place}"
            )
        self.head = head or FCOSHead(channels, per_place, num_classes)
        self.box_coder = BoxLinearCoder(normalize_by_size=True)
        self.transform = GeneralizedRCNNTransform(
            min_size, max_size, image_mean, image_std, **options
        )
        self.center_sampling_radius = center_sampling_radius
        self.score_thresh, self.nms_thresh = score_thresh, nms_thresh
        self.detections_per_img, self.topk_candidates = detections_per_img, topk_candidates

    def compute_loss(
        self,
        targets: Sequence[Target],
        head_outputs: dict[str, Tensor],
        anchors: Sequence[Tensor],
        num_anchors_per_level: Sequence[int],
    ) -> dict[str, Tensor]:
        """The head's losses; the arguments are those of :meth:`FCOSHead.compute_loss`, and the
        number of anchors of each level."""
        matched = [
            self._match(target["boxes"], boxes, num_anchors_per_level)
            for target, boxes in zip(targets, anchors, strict=True)
        ]
        head: Any = self.head
        losses: dict[str, Tensor] = head.compute_loss(targets, head_outputs, anchors, matched)
        return losses

    def _match(self, boxes: Tensor, anchors: Tensor, of_levels: Sequence[int]) -> Tensor:
        """int64 [A]: of the boxes that a place is trained for the smallest one, or -1.

        Such a box contains the place, has its centre nearby, and is of the size of the level.
        """
        if len(boxes) == 0:
            return torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
        boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))  # areas exceed 16 bits
        places = (anchors[:, :2] + anchors[:, 2:]) / 2
        unit = (anchors[:, 2] - anchors[:, 0])[:, None]
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        off = (places[:, None] - centres).abs().amax(2)
        before, behind = places[:, None] - boxes[:, :2], boxes[:, 2:] - places[:, None]
        nearest = torch.minimum(before, behind).amin(2)
        farthest = torch.maximum(before, behind).amax(2)
        low, high = unit * 4, unit * 8
        low[: of_levels[0]] = 0
        high[len(high) - of_levels[-1] :] = torch.inf
        fits = (off < self.center_sampling_radius * unit) & (nearest > 0)
        fits &= (farthest > low) & (farthest < high)
        size = boxes[:, 2:] - boxes[:, :2]
        # as in torchvision, whose float32 does not tell areas of nearly the same size apart
        smallness, which = (fits.float() * (1e8 - size[:, 0] * size[:, 1])).max(1)
        return which.masked_fill(smallness < 1e-5, -1)

    def _losses(self, targets: Any, batch: ImageList, maps: list[Tensor]) -> dict[str, Tensor]:
        outputs, anchors = self.head(maps), self.anchor_generator(batch, maps)
        return self.compute_loss(targets, outputs, anchors, [x.shape[2] * x.shape[3] for x in maps])

    def decode(self, codes: Tensor, anchors: Tensor) -> Tensor:
        """Boxes [N, M, 4] of distances and anchors of the same shape."""
        return self.box_coder.decode(codes, anchors)


def _classes_of(state: Mapping[str, Tensor]) -> int:
    return len(state["head.classification_head.cls_logits.bias"])


@register("detection")
def fcos_resnet50_fpn(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: Any = "IMAGENET1K_V1",
    trainable_backbone_layers: int | None = None,
    **options: Any,
) -> FCOS:
    """FCOS (Tian et al. 2019) on ResNet-50 with a feature pyramid: 32,269,600 parameters.

    The arguments are those of :func:`retinanet_resnet50_fpn`; ``options`` are of :class:`FCOS`.
    """
    begin = start(
        "fcos_resnet50_fpn", weights, progress, num_classes, weights_backbone,
        trainable_backbone_layers, classes_of=_classes_of,
    )  # fmt: skip
    resnet = resnet50(
        weights=begin.weights_backbone, progress=progress, norm_layer=begin.norm_layer
    )
    backbone = resnet_pyramid(resnet, begin.trainable_layers, (2, 3, 4), LastLevelP6P7(256, 256))
    return begin.load(FCOS(backbone, begin.num_classes, **options))
