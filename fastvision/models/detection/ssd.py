"""SSD: a single shot at every place of several maps.

Liu, Anguelov, Erhan, Szegedy, Reed, Fu and Berg, SSD: single shot multibox detector, 2016.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...ops._topk_above import has_kernel, topk_above
from ._heads import LevelHead, predict
from ._one_stage import OneStageDetector, match
from ._parts import check_counts, check_numbers
from ._selection import Detections, detect, take
from .anchors import shared
from .box_coder import BoxCoder
from .default_boxes import DefaultBoxGenerator
from .image_list import ImageList, Target
from .matching import Matcher
from .postprocess import clip, limits
from .targets import check_classes
from .transform import GeneralizedRCNNTransform


class SSDMatcher(Matcher):
    """Assigns to each default box the object that it overlaps most, and to each object the default
    box that overlaps it most.

    Args:
        threshold: an overlap of at least this is a match.
    """

    def __init__(self, threshold: float) -> None:
        super().__init__(threshold, threshold)

    def __call__(self, match_quality_matrix: Tensor) -> Tensor:
        """See :class:`Matcher`; of objects with the same best box the last one has it."""
        matches = super().__call__(match_quality_matrix)
        best = match_quality_matrix.argmax(1)
        which = torch.arange(len(best), device=best.device)
        return matches.scatter_reduce(0, best, which, "amax", include_self=False)


class SSDScoringHead(LevelHead):
    """A predictor for each map.

    Args:
        module_list: the predictors, which give [N, A num_columns, H, W].
        num_columns: of the rows.
    """

    def __init__(self, module_list: nn.ModuleList, num_columns: int) -> None:
        super().__init__()
        self.module_list = module_list
        self.num_columns = num_columns

    def levels(self, x: Sequence[Tensor]) -> list[Tensor]:
        """Rows [N, H W A, num_columns] of each map [N, C, H, W].

        Raises:
            ValueError: another number of maps than of predictors.
        """
        if len(x) != len(self.module_list):
            raise ValueError(f"x must have {len(self.module_list)} maps, got {len(x)}")
        pairs = zip(x, self.module_list, strict=True)
        return [predict(maps, module, self.num_columns) for maps, module in pairs]


def _predictors(
    in_channels: Sequence[int], num_anchors: Sequence[int], columns: int
) -> nn.ModuleList:
    convs = nn.ModuleList(
        nn.Conv2d(channels, columns * anchors, 3, padding=1)
        for channels, anchors in zip(in_channels, num_anchors, strict=True)
    )
    initialize_uniform(convs)
    return convs


def initialize_uniform(module: nn.Module) -> None:
    """Weights of convolutions of the variance that keeps those of results and of gradients
    (Glorot and Bengio 2010), and zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class SSDClassificationHead(SSDScoringHead):
    """Logits of the classes of each default box, by a 3x3 convolution.

    Args:
        in_channels: of each map.
        num_anchors: at a place of each map.
        num_classes: background, 0, included.
    """

    def __init__(
        self, in_channels: Sequence[int], num_anchors: Sequence[int], num_classes: int
    ) -> None:
        super().__init__(_predictors(in_channels, num_anchors, num_classes), num_classes)


class SSDRegressionHead(SSDScoringHead):
    """Offsets of the box of each default box, by a 3x3 convolution.

    Args:
        in_channels: of each map.
        num_anchors: at a place of each map.
    """

    def __init__(self, in_channels: Sequence[int], num_anchors: Sequence[int]) -> None:
        super().__init__(_predictors(in_channels, num_anchors, 4), 4)


class SSDHead(nn.Module):
    """The two heads, with weights of their own on every map.

    Args:
        in_channels: of each map.
        num_anchors: at a place of each map.
        num_classes: background, 0, included.
    """

    classification_head: nn.Module
    regression_head: nn.Module

    def __init__(
        self, in_channels: Sequence[int], num_anchors: Sequence[int], num_classes: int
    ) -> None:
        super().__init__()
        self.classification_head = SSDClassificationHead(in_channels, num_anchors, num_classes)
        self.regression_head = SSDRegressionHead(in_channels, num_anchors)

    def forward(self, x: Sequence[Tensor]) -> dict[str, Tensor]:
        """Offsets [N, sum of H W A, 4] and logits [N, sum of H W A, num_classes] of all maps."""
        return {
            "bbox_regression": self.regression_head(x),
            "cls_logits": self.classification_head(x),
        }


class SSD(OneStageDetector):
    """Convolutional predictors on several maps of one image size.

    torchvision's constructor, initialization, state dict, losses and detections.

    Args:
        backbone: gives maps for images [N, 3, height, width], as a tensor or a dict; their channels
            are its attribute ``out_channels``, or found by a call.
        anchor_generator: the default boxes.
        size: (width, height) that all images are resized to.
        num_classes: background, 0, included.
        image_mean, image_std: see :class:`GeneralizedRCNNTransform`; further options are its own.
        head: the predictions; an :class:`SSDHead` if None.
        score_thresh: detections have a score above it.
        nms_thresh: IoU above which a detection removes another of its class.
        detections_per_img: limit of the detections of an image.
        iou_thresh: a default box with at least this IoU is trained for the object.
        topk_candidates: limit of the candidates of a class.
        positive_fraction: share of the boxes with an object among those that are trained to
            classify; the others are the background boxes of the highest loss.

    Raises:
        ValueError: the default boxes are for another number of maps, or a number is out of range.
        TypeError: an option is no number.
    """

    def __init__(
        self,
        backbone: nn.Module,
        anchor_generator: DefaultBoxGenerator,
        size: tuple[int, int],
        num_classes: int,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        head: nn.Module | None = None,
        score_thresh: float = 0.01,
        nms_thresh: float = 0.45,
        detections_per_img: int = 200,
        iou_thresh: float = 0.5,
        topk_candidates: int = 400,
        positive_fraction: float = 0.25,
        **options: Any,
    ) -> None:
        super().__init__()
        check_numbers(
            score_thresh=score_thresh,
            nms_thresh=nms_thresh,
            iou_thresh=iou_thresh,
            positive_fraction=positive_fraction,
        )
        if not 0 < positive_fraction <= 1:
            raise ValueError(
                f"positive_fraction must be above 0 and at most 1, got {positive_fraction!r}"
            )
        check_counts(detections_per_img=detections_per_img, topk_candidates=topk_candidates)
        self.backbone = backbone
        self.anchor_generator = anchor_generator
        self.box_coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
        self.head = head or SSDHead(*check_maps(backbone, anchor_generator, size), num_classes)
        self.proposal_matcher = SSDMatcher(iou_thresh)
        self.transform = GeneralizedRCNNTransform(
            min(size),
            max(size),
            image_mean,
            image_std,
            size_divisible=1,
            fixed_size=size,
            **options,
        )
        self.score_thresh, self.nms_thresh = score_thresh, nms_thresh
        self.detections_per_img, self.topk_candidates = detections_per_img, topk_candidates
        self.neg_to_pos_ratio = (1 - positive_fraction) / positive_fraction

    def compute_loss(
        self,
        targets: Sequence[Target],
        head_outputs: dict[str, Tensor],
        anchors: Sequence[Tensor],
        matched_idxs: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """The losses "bbox_regression" (smooth L1) and "classification" (cross entropy), per box
        with an object.

        Args:
            targets: "boxes" and "labels" of each image, labels from 1.
            head_outputs: "bbox_regression" [N, A, 4] and "cls_logits" [N, A, num_classes].
            anchors: [A, 4] of each image.
            matched_idxs: int64 [A] of each image, see :class:`SSDMatcher`.
        """
        offsets, logits = head_outputs["bbox_regression"], head_outputs["cls_logits"]
        check_classes(targets, logits.shape[-1])
        codes, wanted, labels = [], [], []
        for target, rows, boxes, matched in zip(
            targets, offsets, anchors, matched_idxs, strict=True
        ):
            found = torch.where(matched >= 0)[0]
            objects = matched[found]
            codes.append(rows[found])
            wanted.append(self.box_coder.encode_single(target["boxes"][objects], boxes[found]))
            labels.append(torch.zeros_like(matched).index_put_((found,), target["labels"][objects]))
        count = max(1, sum(map(len, codes)))
        regression = F.smooth_l1_loss(torch.cat(codes), torch.cat(wanted), reduction="sum")
        classes = torch.stack(labels)
        losses = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none")
        losses = losses.view(classes.shape)
        hard = self._hardest(losses.detach(), classes > 0)
        classification = losses[classes > 0].sum() + losses.gather(1, hard[0])[hard[1]].sum()
        return {"bbox_regression": regression / count, "classification": classification / count}

    def _hardest(self, losses: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes of each image by descending loss on the background, those with an object last; and
        a mask of those at the front that are trained, ``neg_to_pos_ratio`` for each of the others.
        """
        order = losses.masked_fill(positive, -torch.inf).argsort(1, descending=True)
        counts = self.neg_to_pos_ratio * positive.sum(1, keepdim=True)
        return order, torch.arange(losses.shape[1], device=losses.device) < counts

    def _losses(self, targets: Any, batch: ImageList, maps: list[Tensor]) -> dict[str, Tensor]:
        outputs, anchors = self.head(maps), self.anchor_generator(batch, maps)
        matched = match(self.proposal_matcher, targets, anchors)
        return self.compute_loss(targets, outputs, anchors, matched)

    def _detections(self, batch: ImageList, maps: list[Tensor]) -> list[dict[str, Tensor]]:
        anchors = self.anchor_generator(batch, maps)
        return self.postprocess_detections(self.head(maps), anchors, batch.image_sizes)

    def _fixed(self, batch: ImageList, maps: list[Tensor]) -> Detections:
        anchors = self.anchor_generator(batch, maps)[0][None]
        return self.detections_of(self.head(maps), anchors, limits(batch.image_sizes, anchors))

    def postprocess_detections(
        self,
        head_outputs: dict[str, Tensor],
        image_anchors: Sequence[Tensor],
        image_shapes: Sequence[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Detections of each image, in pixels of the batch.

        Args:
            head_outputs: "bbox_regression" [N, A, 4] and "cls_logits" [N, A, num_classes].
            image_anchors: [A, 4] of each image.
            image_shapes: (height, width) of each image.
        """
        anchors = shared(image_anchors)
        sizes = limits(image_shapes, anchors)
        return self.detections_of(head_outputs, anchors, sizes).unpadded()

    def detections_of(
        self, head_outputs: dict[str, Tensor], anchors: Tensor, sizes: Tensor
    ) -> Detections:
        """The detections in tensors of a fixed size.

        Args:
            head_outputs: "bbox_regression" [N, A, 4] and "cls_logits" [N, A, num_classes].
            anchors: [N, A, 4], or [1, A, 4] for all images.
            sizes: (width, height, width, height) [N, 4] of the images.
        """
        boxes = self.box_coder.decode_single(head_outputs["bbox_regression"], anchors)
        boxes = clip(boxes, sizes[:, None])
        logits = head_outputs["cls_logits"]
        scores = logits.to(boxes.dtype).softmax(2)[..., 1:]
        classes = scores.shape[2]
        best, place = self._best_places(scores)
        labels = torch.arange(1, classes + 1, device=scores.device)[:, None].expand_as(place)
        return detect(
            take(boxes, place.flatten(1)),
            best.flatten(1),
            labels.flatten(1),
            self.score_thresh,
            self.nms_thresh,
            self.detections_per_img,
        )

    def _best_places(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Of scores [N, A, K] the highest of each class, and their places, [N, K, k] each."""
        if has_kernel(scores):
            return topk_above(scores, self.topk_candidates, self.score_thresh)
        scores = scores.nan_to_num(nan=-1).transpose(1, 2)  # NaN would be the largest
        return scores.topk(min(self.topk_candidates, scores.shape[2]), dim=2)


def check_maps(
    backbone: nn.Module, anchor_generator: DefaultBoxGenerator, size: tuple[int, int]
) -> tuple[list[int], list[int]]:
    """Channels of the backbone's maps, and the number of default boxes at a place of each.

    Raises:
        ValueError: the default boxes are for another number of maps.
    """
    channels = getattr(backbone, "out_channels", None)
    channels = _channels_of(backbone, size) if channels is None else list(channels)
    if len(channels) != len(anchor_generator.aspect_ratios):
        raise ValueError(
            f"The length of the output channels from the backbone ({len(channels)}) do not match "
            "the length of the anchor generator aspect ratios "
            f"({len(anchor_generator.aspect_ratios)})"
        )
    return channels, anchor_generator.num_anchors_per_location()


def _channels_of(backbone: nn.Module, size: tuple[int, int]) -> list[int]:
    parameter = next(backbone.parameters())
    images = parameter.new_zeros((1, 3, size[1], size[0]))
    training = backbone.training
    with torch.no_grad():
        features: Any = backbone.eval()(images)
    backbone.train(training)
    maps: Iterable[Tensor] = [features] if isinstance(features, Tensor) else features.values()
    return [x.shape[1] for x in maps]


def without_size(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a builder whose size is fixed, which warns of one (as torchvision's)."""
    if "size" not in options:
        return options
    warnings.warn("The size of the model is already fixed; ignoring the parameter.", stacklevel=4)
    return {name: value for name, value in options.items() if name != "size"}
