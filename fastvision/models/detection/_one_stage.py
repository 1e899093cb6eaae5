"""What one-stage detectors share: the call, the assignment of objects, and the detections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...ops import box_iou
from ._heads import DenseHead, is_own, split_levels
from ._selection import Detections, best_pairs, check_call, detect, take
from .anchors import shared
from .image_list import ImageList, Target
from .postprocess import clip, limits
from .targets import check_boxes, check_labels, check_targets
from .transform import sizes_of


class OneStageDetector(nn.Module):
    """A backbone, and a head that predicts classes and boxes at every place of its maps."""

    backbone: nn.Module
    head: nn.Module
    anchor_generator: nn.Module
    transform: Any

    def forward(self, images: Sequence[Tensor], targets: Sequence[Target] | None = None) -> Any:
        """Detections of images, or losses in training.

        Args:
            images: [3, H, W] each, of any size, floating-point in 0..1.
            targets: in training, for each image "boxes" [L, 4] (x1, y1, x2, y2) in pixels and
                "labels" int64 [L].

        Returns:
            In evaluation for each image "boxes" [n, 4] in its pixels, "scores" [n] in descending
            order and "labels" int64 [n]. In training a dict of scalar losses.

        Raises:
            AssertionError: there are no targets in training, or boxes of another shape, without
                area or not finite.
            TypeError, ValueError: an image of another dtype or number of dimensions; labels of
                another shape or dtype, or that are no class.
        """
        if self.training:
            check_targets(targets, images)
            check_labels(targets or ())
        sizes = sizes_of(images)
        batch, targets = self.transform(images, targets)
        check_boxes(targets)
        maps = self._maps(batch)
        if self.training:
            return self._losses(targets, batch, maps)
        found = self._detections(batch, maps)
        return self.transform.postprocess(found, batch.image_sizes, sizes)

    def detect(self, images: Tensor) -> Detections:
        """The detections of images of one size, in tensors of a fixed size.

        What is detected decides over no shape, and nothing synchronizes with the device.

        Args:
            images: [N, 3, H, W], floating-point in 0..1.

        Returns:
            :class:`~fastvision.models.detection.Detections`, with boxes in pixels of the images.

        Raises:
            RuntimeError: the model is in training.
            TypeError: images is no floating-point tensor.
            ValueError: images of another shape.
        """
        check_call(self, images)
        batch = self.transform.batch_of(images)
        found = self._fixed(batch, self._maps(batch))
        old, new = limits(batch.image_sizes[:1], found.boxes), images.shape[-2:]
        return found._replace(boxes=found.boxes * (limits([(new[0], new[1])], old) / old))

    def _maps(self, batch: ImageList) -> list[Tensor]:
        features = self.backbone(batch.tensors)
        return [features] if isinstance(features, Tensor) else list(features.values())

    def _losses(self, targets: Any, batch: ImageList, maps: list[Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} has no losses")

    def _detections(self, batch: ImageList, maps: list[Tensor]) -> list[dict[str, Tensor]]:
        raise NotImplementedError(f"{type(self).__name__} has no detections")

    def _fixed(self, batch: ImageList, maps: list[Tensor]) -> Detections:
        raise NotImplementedError(f"{type(self).__name__} has no detections of a fixed size")


class FixedShape(nn.Module):
    """A one-stage detector whose images and detections are tensors of fixed shapes, for
    :func:`torch.export.export` and CUDA graphs.

    Args:
        model: the detector, in evaluation.

    Its result is a plain tuple, as files of exported programs hold no other types.
    """

    def __init__(self, model: OneStageDetector) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See :meth:`OneStageDetector.detect`."""
        boxes, scores, labels, counts = self.model.detect(images)
        return boxes, scores, labels, counts


class PyramidDetector(OneStageDetector):
    """A detector whose levels have a limited number of candidates each, of all classes."""

    score_thresh: float
    nms_thresh: float
    detections_per_img: int
    topk_candidates: int

    def decode(self, codes: Tensor, anchors: Tensor) -> Tensor:
        """Boxes [N, M, 4] of offsets and anchors of the same shape."""
        raise NotImplementedError(f"{type(self).__name__} has no decode")

    def _detections(self, batch: ImageList, maps: list[Tensor]) -> list[dict[str, Tensor]]:
        levels = self._levels(maps)
        counts = [level.shape[1] for level in levels["cls_logits"]]
        of_images = self.anchor_generator(batch, maps)
        split = {id(anchors): list(anchors.split(counts)) for anchors in of_images}
        anchors = [split[id(anchors)] for anchors in of_images]
        return self.postprocess_detections(levels, anchors, batch.image_sizes)

    def _fixed(self, batch: ImageList, maps: list[Tensor]) -> Detections:
        levels = self._levels(maps)
        counts = [level.shape[1] for level in levels["cls_logits"]]
        anchors = self.anchor_generator(batch, maps)[0][None].split(counts, 1)
        return self.detections_of(levels, anchors, limits(batch.image_sizes, anchors[0]))

    def _levels(self, maps: list[Tensor]) -> dict[str, list[Tensor]]:
        """The head's results [N, H W A, columns] of each level."""
        head = self.head
        if is_own(head, DenseHead):
            return head.levels(maps)
        return {name: split_levels(rows, maps) for name, rows in head(maps).items()}

    def postprocess_detections(
        self,
        head_outputs: dict[str, list[Tensor]],
        anchors: Sequence[Sequence[Tensor]],
        image_shapes: Sequence[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Detections of each image, in pixels of the batch.

        Args:
            head_outputs: of each level, [N, H W A, columns].
            anchors: for each image those of each level, [H W A, 4].
            image_shapes: (height, width) of each image.
        """
        levels = [shared(level) for level in zip(*anchors, strict=True)]
        sizes = limits(image_shapes, levels[0])
        return self.detections_of(head_outputs, levels, sizes).unpadded()

    def detections_of(
        self, head_outputs: dict[str, list[Tensor]], anchors: Sequence[Tensor], sizes: Tensor
    ) -> Detections:
        """The detections in tensors of a fixed size.

        Args:
            head_outputs: of each level, [N, H W A, columns].
            anchors: of each level, [N, H W A, 4], or [1, H W A, 4] for all images.
            sizes: (width, height, width, height) [N, 4] of the images.
        """
        found: list[tuple[Tensor, ...]] = []
        quality = head_outputs.get("bbox_ctrness", [None] * len(anchors))
        parts = head_outputs["cls_logits"], quality, head_outputs["bbox_regression"], anchors
        for logits, weight, codes, boxes in zip(*parts, strict=True):
            scores, place, labels = best_pairs(logits, weight, self.topk_candidates)
            found.append((scores, labels, take(codes, place), take(boxes, place)))
        columns = zip(*found, strict=True)
        scores, labels, codes, boxes = (torch.cat(of_levels, 1) for of_levels in columns)
        return detect(
            clip(self.decode(codes, boxes), sizes[:, None]),
            scores,
            labels,
            self.score_thresh,
            self.nms_thresh,
            self.detections_per_img,
        )


def match(
    matcher: Callable[[Tensor], Tensor], targets: Sequence[Target], anchors: Sequence[Tensor]
) -> list[Tensor]:
    """The object of each anchor, int64 [A] per image; negative for none, see
    :class:`~fastvision.models.detection.Matcher`."""
    return [
        matcher(box_iou(target["boxes"], boxes))
        if len(target["boxes"]) > 0
        else torch.full((len(boxes),), -1, dtype=torch.int64, device=boxes.device)
        for target, boxes in zip(targets, anchors, strict=True)
    ]
