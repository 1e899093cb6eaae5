"""A detector of two stages: proposals of boxes, and heads on the features in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .image_list import Target
from .targets import check_boxes, check_targets
from .transform import sizes_of


class GeneralizedRCNN(nn.Module):
    """A backbone, a network that proposes boxes, and heads that classify and refine them.

    torchvision's constructor and state dict.

    Args:
        backbone: gives feature maps by name, or one tensor, for images [N, C, H, W].
        rpn: gives proposals and losses for (images, features, targets).
        roi_heads: gives detections and losses for (features, proposals, image sizes, targets).
        transform: see :class:`GeneralizedRCNNTransform`.
    """

    def __init__(
        self, backbone: nn.Module, rpn: nn.Module, roi_heads: nn.Module, transform: nn.Module
    ) -> None:
        super().__init__()
        self.transform: Any = transform
        self.backbone = backbone
        self.rpn = rpn
        self.roi_heads = roi_heads

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[Target]:
        """Detections in evaluation, losses in training.

        Args:
            images: [C, H, W] each, floating-point in 0..1, of any sizes.
            targets: for each image "boxes" [L, 4] (x1, y1, x2, y2) in pixels and "labels" int64
                [L], from 1; "masks" [L, H, W] and "keypoints" float32 [L, K, 3] (x, y,
                visibility) if there are heads for them. Images without objects have L = 0.

        Returns:
            In training a dict of the losses, scalars. In evaluation a list with a dict for each
            image, of "boxes" [n, 4], "labels" int64 [n] and "scores" [n] in descending order; with
            heads for them "masks" [n, 1, H, W] in 0..1, and "keypoints" [n, K, 3] (x, y, 1) with
            "keypoints_scores" [n, K].

        A program of ``torch.export`` has results of a fixed size: beyond the detections boxes and
        scores are 0, and so are labels. Keypoints cannot be exported.

        Raises:
            AssertionError: no targets in training, boxes of another shape, or one without area or
                not finite.
            ValueError, TypeError: an image or a target of another form.
        """
        if self.training:
            check_targets(targets, images)
        original_sizes = sizes_of(images)
        batch, targets = self.transform(images, targets)
        check_boxes(targets)
        features = self.backbone(batch.tensors)
        if isinstance(features, Tensor):
            features = {"0": features}
        proposals, proposal_losses = self.rpn(batch, features, targets)
        detections, losses = self.roi_heads(features, proposals, batch.image_sizes, targets)
        if self.training:
            return {**losses, **proposal_losses}
        return self.transform.postprocess(detections, batch.image_sizes, original_sizes)
