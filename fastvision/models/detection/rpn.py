"""The region proposal network.

Ren, He, Girshick and Sun, Faster R-CNN: Towards real-time object detection with region proposal
networks, 2015.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...ops import Conv2dNormActivation, Sequential, box_iou
from ._heads import initialize, results_of, rows_of
from ._parts import check_counts, check_numbers
from ._selection import take
from .anchors import AnchorGenerator, shared
from .box_coder import BoxCoder
from .image_list import ImageList, Size, Target
from .matching import BalancedPositiveNegativeSampler, Matcher
from .postprocess import clip, large, limits, suppress_padded, top_of_levels


class RPNHead(nn.Module):
    """3x3 convolutions, and one of 1x1 each for the scores and the offsets of anchors.

    torchvision's constructor, initialization and state dict.

    Args:
        in_channels: of the feature maps.
        num_anchors: around each pixel.
        conv_depth: number of 3x3 convolutions.
    """

    _version = 2

    def __init__(self, in_channels: int, num_anchors: int, conv_depth: int = 1) -> None:
        super().__init__()
        layers = [
            Conv2dNormActivation(in_channels, in_channels, 3, norm_layer=None)
            for _ in range(conv_depth)
        ]
        self.conv = Sequential(*layers)
        self.cls_logits = nn.Conv2d(in_channels, num_anchors, 1)
        self.bbox_pred = nn.Conv2d(in_channels, 4 * num_anchors, 1)
        initialize(self)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if (local_metadata.get("version") or 1) < 2:  # it had a single convolution
            for kind in ("weight", "bias"):
                if (old := f"{prefix}conv.{kind}") in state_dict:
                    state_dict[f"{prefix}conv.0.0.{kind}"] = state_dict.pop(old)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args, **kwargs)

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits [N, A, H, W] and offsets [N, 4 A, H, W] of each map [N, C, H, W]."""
        maps = [self.conv(features) for features in x]
        logits, offsets = results_of(maps, self.cls_logits, self.bbox_pred)
        return logits, offsets


class RegionProposalNetwork(nn.Module):
    """Scores and refines the anchors of a batch, and proposes the best of them.

    torchvision's constructor and attributes.

    Args:
        anchor_generator: gives the anchors of each image, [L, 4], for an image list and maps.
        head: gives logits and offsets of each map, see :class:`RPNHead`.
        fg_iou_thresh: an anchor with such an overlap with an object is positive; and the best
            ones of each object.
        bg_iou_thresh: one whose overlaps are less is negative.
        batch_size_per_image: anchors per image in the losses.
        positive_fraction: the share of positive ones among them, at most.
        pre_nms_top_n, post_nms_top_n: number of proposals of a level before the suppression, and
            of an image after it, {"training", "testing"}.
        nms_thresh: see :func:`fastvision.ops.nms`.
        score_thresh: least probability of a proposal.

    Raises:
        ValueError: a number is out of range.
        TypeError: an option is no number.
    """

    def __init__(
        self,
        anchor_generator: nn.Module,
        head: nn.Module,
        fg_iou_thresh: float,
        bg_iou_thresh: float,
        batch_size_per_image: int,
        positive_fraction: float,
        pre_nms_top_n: Mapping[str, int],
        post_nms_top_n: Mapping[str, int],
        nms_thresh: float,
        score_thresh: float = 0.0,
    ) -> None:
        super().__init__()
        check_numbers(
            fg_iou_thresh=fg_iou_thresh,
            bg_iou_thresh=bg_iou_thresh,
            positive_fraction=positive_fraction,
            nms_thresh=nms_thresh,
            score_thresh=score_thresh,
        )
        check_counts(batch_size_per_image=batch_size_per_image)
        self.anchor_generator = anchor_generator
        self.head = head
        self.box_coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        self.box_similarity = box_iou
        self.proposal_matcher = Matcher(fg_iou_thresh, bg_iou_thresh, True)
        self.fg_bg_sampler = BalancedPositiveNegativeSampler(
            batch_size_per_image, positive_fraction
        )
        self._pre_nms_top_n = pre_nms_top_n
        self._post_nms_top_n = post_nms_top_n
        self.nms_thresh = nms_thresh
        self.score_thresh = score_thresh
        self.min_size = 1e-3

    def pre_nms_top_n(self) -> int:
        return self._pre_nms_top_n["training" if self.training else "testing"]

    def post_nms_top_n(self) -> int:
        return self._post_nms_top_n["training" if self.training else "testing"]

    def forward(
        self,
        images: ImageList,
        features: Mapping[str, Tensor],
        targets: Sequence[Target] | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals [L, 4] of each image, best first, and in training the losses.

        Args:
            images: their sizes limit the proposals.
            features: maps [N, C, H, W].
            targets: "boxes" [L, 4] of each image.

        Raises:
            ValueError: no targets in training.
        """
        maps = list(features.values())
        logits, offsets = self.head(maps)
        anchors = self.anchor_generator(images, maps)
        scores = [rows_of(x, 1).squeeze(-1) for x in logits]
        codes = torch.cat([rows_of(x, 4) for x in offsets], 1)
        boxes, counts = self.propose(scores, codes, anchors, images.image_sizes)
        if torch.compiler.is_exporting() and not self.training:
            # of a fixed size: no feature is pooled in NaN
            rank = torch.arange(boxes.shape[1], device=boxes.device)
            missing = rank >= counts[:, None]
            return list(boxes.masked_fill(missing[..., None], torch.nan)), {}
        proposals = [b[:count] for b, count in zip(boxes, counts.tolist(), strict=True)]
        if not self.training:
            return proposals, {}
        if targets is None:
            raise ValueError("targets should not be None")
        return proposals, self._losses(torch.cat(scores, 1), codes, anchors, targets)

    @torch.no_grad()
    def propose(
        self,
        scores: Sequence[Tensor],
        codes: Tensor,
        anchors: Sequence[Tensor],
        image_sizes: Sequence[Size],
    ) -> tuple[Tensor, Tensor]:
        """Proposals [B, M, 4] of a batch, best first, and how many there are of each image [B].

        Args:
            scores: logits [B, N_l] of each level.
            codes: offsets [B, sum of N_l, 4].
            anchors: [sum of N_l, 4] of each image.
            image_sizes: (height, width) of each.
        """
        best, index = top_of_levels(scores, self.pre_nms_top_n())
        kinds = [
            torch.full((min(x.shape[1], self.pre_nms_top_n()),), i, device=best.device)
            for i, x in enumerate(scores)
        ]
        boxes = self.box_coder.decode_single(take(codes, index), take(shared(anchors), index))
        boxes = clip(boxes, limits(image_sizes, boxes)[:, None])
        wanted = large(boxes, self.min_size) & (best.sigmoid() >= self.score_thresh)
        kept, counts = suppress_padded(
            boxes,
            best,
            torch.cat(kinds).expand_as(best),
            wanted,
            self.nms_thresh,
            self.post_nms_top_n(),
        )
        return take(boxes, kept.clamp(min=0)), counts

    def _losses(
        self, scores: Tensor, codes: Tensor, anchors: Sequence[Tensor], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        labels, objects = self.assign_targets_to_anchors(anchors, targets)
        positive, negative = (torch.cat(x).nonzero()[:, 0] for x in self.fg_bg_sampler(labels))
        drawn = torch.cat((positive, negative))
        wanted = self.box_coder.encode_single(
            torch.cat(objects)[positive], torch.cat(list(anchors))[positive]
        )
        box_loss = F.smooth_l1_loss(
            codes.flatten(0, 1)[positive], wanted, beta=1 / 9, reduction="sum"
        )
        return {
            "loss_objectness": F.binary_cross_entropy_with_logits(
                scores.flatten()[drawn], torch.cat(labels)[drawn].to(scores.dtype)
            ),
            "loss_rpn_box_reg": box_loss / len(drawn),
        }

    def assign_targets_to_anchors(
        self, anchors: Sequence[Tensor], targets: Sequence[Target]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """For each image labels [L], 1 for an object, 0 for background and -1 for neither, and the
        object's box [L, 4]."""
        labels, objects = [], []
        for boxes, target in zip(anchors, targets, strict=True):
            truth = target["boxes"]
            if len(truth) == 0:
                labels.append(boxes.new_zeros(len(boxes)))
                objects.append(torch.zeros_like(boxes))
                continue
            match = self.proposal_matcher(self.box_similarity(truth, boxes))
            label = (match >= 0).to(boxes.dtype)
            labels.append(label.masked_fill(match == Matcher.BETWEEN_THRESHOLDS, -1))
            objects.append(truth[match.clamp(min=0)])
        return labels, objects


def default_anchors() -> AnchorGenerator:
    """One size and three shapes on each of five levels."""
    return AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), (0.5, 1.0, 2.0))
