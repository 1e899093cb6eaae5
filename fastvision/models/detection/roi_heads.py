"""The second stage of a detector: classes, boxes, masks and keypoints of proposals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...fusion.border import tensor_of
from ...ops import box_iou
from . import keypoints, masks
from ._parts import check_counts, check_numbers
from ._selection import take
from .box_coder import BoxCoder
from .image_list import Size, Target
from .matching import BalancedPositiveNegativeSampler, Matcher
from .postprocess import clip, large, limits, suppress, suppress_padded
from .targets import check_classes, check_labels

_SMALLEST = 1e-2  # pixels; a detection below this is dropped


class RoIHeads(nn.Module):
    """Pools features in proposals, classifies and refines them; masks and keypoints if there are
    heads for them.

    torchvision's constructor, attributes and state dict.

    Args:
        box_roi_pool: gives [sum of L, C, h, w] for (features, proposals, image sizes), as
            :class:`fastvision.ops.MultiScaleRoIAlign`.
        box_head: on what is pooled.
        box_predictor: gives logits [sum of L, classes] and offsets [sum of L, 4 classes].
        fg_iou_thresh: a proposal with such an overlap with an object has its label in training.
        bg_iou_thresh: one whose overlaps are less is background.
        batch_size_per_image, positive_fraction: proposals per image in training, and the share of
            those with a label among them, at most.
        bbox_reg_weights: of the :class:`BoxCoder`; (10, 10, 5, 5) if None.
        score_thresh: detections have a greater probability.
        nms_thresh: see :func:`fastvision.ops.nms`.
        detections_per_img: at most.
        mask_roi_pool, mask_head, mask_predictor: the same for masks: logits [n, classes, M, M].
        keypoint_roi_pool, keypoint_head, keypoint_predictor: for keypoints: heatmaps
            [n, K, M, M].

    Raises:
        ValueError: a number is out of range.
        TypeError: an option is no number.
    """

    def __init__(
        self,
        box_roi_pool: Any,
        box_head: Any,
        box_predictor: Any,
        fg_iou_thresh: float,
        bg_iou_thresh: float,
        batch_size_per_image: int,
        positive_fraction: float,
        bbox_reg_weights: tuple[float, float, float, float] | None,
        score_thresh: float,
        nms_thresh: float,
        detections_per_img: int,
        mask_roi_pool: Any = None,
        mask_head: Any = None,
        mask_predictor: Any = None,
        keypoint_roi_pool: Any = None,
        keypoint_head: Any = None,
        keypoint_predictor: Any = None,
    ) -> None:
        super().__init__()
        check_numbers(
            fg_iou_thresh=fg_iou_thresh,
            bg_iou_thresh=bg_iou_thresh,
            positive_fraction=positive_fraction,
            score_thresh=score_thresh,
            nms_thresh=nms_thresh,
        )
        check_counts(
            batch_size_per_image=batch_size_per_image, detections_per_img=detections_per_img
        )
        self.box_similarity = box_iou
        self.proposal_matcher = Matcher(fg_iou_thresh, bg_iou_thresh)
        self.fg_bg_sampler = BalancedPositiveNegativeSampler(
            batch_size_per_image, positive_fraction
        )
        self.box_coder = BoxCoder(bbox_reg_weights or (10.0, 10.0, 5.0, 5.0))
        self.box_roi_pool = box_roi_pool
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.detections_per_img = detections_per_img
        self.mask_roi_pool = mask_roi_pool
        self.mask_head = mask_head
        self.mask_predictor = mask_predictor
        self.keypoint_roi_pool = keypoint_roi_pool
        self.keypoint_head = keypoint_head
        self.keypoint_predictor = keypoint_predictor

    def has_mask(self) -> bool:
        return None not in (self.mask_roi_pool, self.mask_head, self.mask_predictor)

    def has_keypoint(self) -> bool:
        return None not in (self.keypoint_roi_pool, self.keypoint_head, self.keypoint_predictor)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: Sequence[Tensor],
        image_shapes: Sequence[Size],
        targets: Sequence[Target] | None = None,
    ) -> tuple[list[Target], dict[str, Tensor]]:
        """Detections of each image in evaluation, losses in training.

        Args:
            features: maps [N, C, H, W] by name.
            proposals: [L, 4] of each image.
            image_shapes: (height, width) of each image.
            targets: see :class:`GeneralizedRCNN`.

        Raises:
            TypeError: an entry of a target has another dtype.
            ValueError: no targets in training, an entry is missing, or labels are not as many as
                boxes or no classes.
        """
        self._check_dtypes(targets)
        if self.training:
            check_labels(targets or ())
            return [], self._losses(features, proposals, image_shapes, self.check_targets(targets))
        pooled = self.box_roi_pool(features, proposals, image_shapes)
        scores, codes = map(tensor_of, self.box_predictor(self.box_head(pooled)))
        found = self.postprocess_detections(scores, codes, proposals, image_shapes)
        detections = [
            {"boxes": boxes, "labels": labels, "scores": scores}
            for boxes, scores, labels in zip(*found, strict=True)
        ]
        boxes, _, labels = found
        if self.has_mask():
            of_boxes = self._mask_features(features, boxes, image_shapes)
            logits = masks.predict(self.mask_predictor, of_boxes, torch.cat(labels))
            probabilities = logits.sigmoid()[:, None]
            if torch.compiler.is_exporting():
                probabilities = probabilities * (torch.cat(labels) > 0)[:, None, None, None]
            _add(detections, "masks", probabilities)
        if self.has_keypoint():
            heatmaps = tensor_of(self._heatmaps(features, boxes, image_shapes))
            places, scores = keypoints.heatmaps_to_keypoints(heatmaps, torch.cat(boxes))
            _add(detections, "keypoints", places)
            _add(detections, "keypoints_scores", scores)
        return detections, {}

    def postprocess_detections(
        self,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: Sequence[Tensor],
        image_shapes: Sequence[Size],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Boxes [n, 4], scores [n] and labels [n] of each image, best first.

        Args:
            class_logits: [sum of L, classes]; the first is the background.
            box_regression: offsets [sum of L, 4 classes].
            proposals: [L, 4] of each image.
            image_shapes: (height, width) of each image.
        """
        scores = class_logits.to(torch.promote_types(class_logits.dtype, torch.float32)).softmax(-1)
        if torch.compiler.is_exporting():
            return self._postprocess_padded(scores, box_regression, proposals, image_shapes)
        # few pass the threshold, and only they need boxes
        roi, label = torch.where(scores[:, 1:] > self.score_thresh)
        label = label + 1
        scores = scores[roi, label]
        counts = torch.tensor([len(boxes) for boxes in proposals], device=roi.device)
        image = torch.arange(len(proposals), device=roi.device).repeat_interleave(counts)[roi]
        codes = box_regression.unflatten(1, (-1, 4))[roi, label]
        boxes = self.box_coder.decode_single(codes, torch.cat(list(proposals))[roi])
        boxes = clip(boxes, limits(image_shapes, boxes)[image])
        wanted = large(boxes, _SMALLEST)
        boxes, scores, label, image = (x[wanted] for x in (boxes, scores, label, image))
        kept = suppress(
            boxes, scores, label, image, len(proposals), self.nms_thresh, self.detections_per_img
        )
        found = (list(kept.split(values)) for values in (boxes, scores, label))
        return next(found), next(found), next(found)

    def _postprocess_padded(
        self,
        scores: Tensor,
        box_regression: Tensor,
        proposals: Sequence[Tensor],
        image_shapes: Sequence[Size],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The same of ``detections_per_img`` boxes of each image, of which those beyond the
        detections are zeros with the label 0."""
        boxes = torch.stack(list(proposals))
        batch, count = boxes.shape[:2]
        codes = box_regression.view(batch, count, -1, 4)[:, :, 1:]
        boxes = self.box_coder.decode_single(codes, boxes[:, :, None]).flatten(1, 2)
        boxes = clip(boxes, limits(image_shapes, boxes)[:, None])
        scores = scores.view(batch, count, -1)[..., 1:]
        labels = torch.arange(scores.shape[-1], device=boxes.device).repeat(count) + 1
        labels, scores = labels.expand(batch, -1), scores.flatten(1)
        kept, _ = suppress_padded(
            boxes,
            scores,
            labels,
            (scores > self.score_thresh) & large(boxes, _SMALLEST),
            self.nms_thresh,
            self.detections_per_img,
        )
        missing, kept = kept < 0, kept.clamp(min=0)
        boxes = take(boxes, kept).masked_fill(missing[..., None], 0)
        scores, labels = (x.gather(1, kept).masked_fill(missing, 0) for x in (scores, labels))
        return list(boxes), list(scores), list(labels)

    def _mask_features(
        self, features: dict[str, Tensor], boxes: Sequence[Tensor], sizes: Sequence[Size]
    ) -> Tensor:
        return self.mask_head(self.mask_roi_pool(features, boxes, sizes))

    def _heatmaps(
        self, features: dict[str, Tensor], boxes: Sequence[Tensor], sizes: Sequence[Size]
    ) -> Tensor:
        pooled = self.keypoint_roi_pool(features, boxes, sizes)
        return self.keypoint_predictor(self.keypoint_head(pooled))

    def _losses(
        self,
        features: dict[str, Tensor],
        proposals: Sequence[Tensor],
        sizes: Sequence[Size],
        targets: Sequence[Target],
    ) -> dict[str, Tensor]:
        boxes, match, labels, offsets = self.select_training_samples(proposals, targets)
        pooled = self.box_roi_pool(features, boxes, sizes)
        scores, codes = self.box_predictor(self.box_head(pooled))
        check_classes(targets, scores.shape[-1])
        losses = fastrcnn_loss(scores, codes, labels, offsets)
        if not (self.has_mask() or self.has_keypoint()):
            return losses
        positive = [torch.where(of_image > 0)[0] for of_image in labels]
        boxes = [b[index] for b, index in zip(boxes, positive, strict=True)]
        match = [m[index] for m, index in zip(match, positive, strict=True)]
        if self.has_mask():
            logits = self.mask_predictor(self._mask_features(features, boxes, sizes))
            losses["loss_mask"] = masks.loss(logits, boxes, targets, match)
        if self.has_keypoint():
            heatmaps = self._heatmaps(features, boxes, sizes)
            losses["loss_keypoint"] = keypoints.loss(heatmaps, boxes, targets, match)
        return losses

    def _check_dtypes(self, targets: Sequence[Target] | None) -> None:
        for target in targets or ():
            if not target["boxes"].is_floating_point():
                raise TypeError(
                    f"target boxes must of float type, instead got {target['boxes'].dtype}"
                )
            if target["labels"].dtype != torch.int64:
                raise TypeError(
                    f"target labels must of int64 type, instead got {target['labels'].dtype}"
                )
            if self.has_keypoint() and not target["keypoints"].is_floating_point():
                raise TypeError(
                    f"target keypoints must of float type, instead got {target['keypoints'].dtype}"
                )

    def check_targets(self, targets: Sequence[Target] | None) -> Sequence[Target]:
        """The targets, if they have all entries that the heads are trained for."""
        if targets is None:
            raise ValueError("targets should not be None")
        names = ["boxes", "labels"]
        names += ["masks"] * self.has_mask() + ["keypoints"] * self.has_keypoint()
        for name in names:
            if not all(name in target for target in targets):
                raise ValueError(f"Every element of targets should have a {name} key")
        return targets

    def select_training_samples(
        self, proposals: Sequence[Tensor], targets: Sequence[Target]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], tuple[Tensor, ...]]:
        """For each image the boxes that are trained, among them the objects' own: [k, 4], the
        object of each [k], its label [k], and the offsets [k, 4] to the object's box."""
        truth = [target["boxes"].to(proposals[0].dtype) for target in targets]
        boxes = [torch.cat(pair) for pair in zip(proposals, truth, strict=True)]
        match, labels = self.assign_targets_to_proposals(
            boxes, truth, [target["labels"] for target in targets]
        )
        positive, negative = self.fg_bg_sampler(labels)
        objects = []
        for i, (one, other) in enumerate(zip(positive, negative, strict=True)):
            drawn = torch.where(one | other)[0]
            boxes[i], match[i], labels[i] = boxes[i][drawn], match[i][drawn], labels[i][drawn]
            objects.append(truth[i][match[i]] if len(truth[i]) > 0 else torch.zeros_like(boxes[i]))
        return boxes, match, labels, self.box_coder.encode(objects, boxes)

    def assign_targets_to_proposals(
        self, proposals: Sequence[Tensor], gt_boxes: Sequence[Tensor], gt_labels: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The object of each box [L], 0 if there is none, and its label [L]: 0 for background and
        -1 for neither."""
        matches, labels = [], []
        for boxes, truth, kinds in zip(proposals, gt_boxes, gt_labels, strict=True):
            if len(truth) == 0:
                nothing = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
                matches.append(nothing)
                labels.append(nothing.clone())
                continue
            match = self.proposal_matcher(self.box_similarity(truth, boxes))
            label = kinds[match.clamp(min=0)].masked_fill(match == Matcher.BELOW_LOW_THRESHOLD, 0)
            labels.append(label.masked_fill(match == Matcher.BETWEEN_THRESHOLDS, -1))
            matches.append(match.clamp(min=0))
        return matches, labels


def fastrcnn_loss(
    class_logits: Tensor,
    box_regression: Tensor,
    labels: Sequence[Tensor],
    regression_targets: Sequence[Tensor],
) -> dict[str, Tensor]:
    """Cross entropy of the classes, and smooth L1 of the offsets of boxes with a label (Girshick,
    Fast R-CNN, 2015, section 2.3).

    Args:
        class_logits: [k, classes].
        box_regression: [k, 4 classes].
        labels: int64, of each image.
        regression_targets: [., 4], of each image.
    """
    label = torch.cat(list(labels))
    if len(label) == 0:  # no proposal and no object in the batch, of which a mean would be NaN
        nothing = 0 * (class_logits.sum() + box_regression.sum())
        return {"loss_classifier": nothing, "loss_box_reg": nothing}
    positive = torch.where(label > 0)[0]
    codes = box_regression.unflatten(1, (-1, 4))[positive, label[positive]]
    wanted = torch.cat(list(regression_targets))[positive]
    box_loss = F.smooth_l1_loss(codes, wanted, beta=1 / 9, reduction="sum")
    return {
        "loss_classifier": F.cross_entropy(class_logits, label),
        "loss_box_reg": box_loss / label.numel(),
    }


def _add(detections: list[Target], name: str, values: Tensor) -> None:
    """Gives each image its part of ``values``, which are of all of them."""
    parts = values.split([len(found["boxes"]) for found in detections])
    for found, part in zip(detections, parts, strict=True):
        found[name] = part
