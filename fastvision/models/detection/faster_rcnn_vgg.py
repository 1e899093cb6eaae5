"""Faster R-CNN on VGG-16: the paper's own network, of one feature map.

Ren, He, Girshick and Sun, Faster R-CNN: Towards real-time object detection with region proposal
networks, 2015.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from .._images import IMAGENET_MEAN, IMAGENET_STD
from .._registry import register
from .._weights import load_weights
from ._heads import initialize
from .anchors import AnchorGenerator
from .fast_rcnn import vgg_heads
from .generalized_rcnn import GeneralizedRCNN
from .rpn import RegionProposalNetwork, RPNHead
from .transform import GeneralizedRCNNTransform
from .vgg_parts import convolutions, vgg


class SoftmaxRPNHead(RPNHead):
    """A head with two scores per anchor, background and object, as in the paper.

    A softmax of two scores is the sigmoid of their difference, which is the logit.

    Args:
        in_channels, num_anchors: see :class:`~fastvision.models.detection.RPNHead`.
    """

    def __init__(self, in_channels: int, num_anchors: int) -> None:
        super().__init__(in_channels, num_anchors)
        self.cls_logits = nn.Conv2d(in_channels, 2 * num_anchors, 1)
        initialize(self.cls_logits)

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """See :class:`~fastvision.models.detection.RPNHead`."""
        scores, offsets = super().forward(x)
        return [pairs[:, 1::2] - pairs[:, 0::2] for pairs in scores], offsets


@register("detection")
def faster_rcnn_vgg16(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int = 21,
    weights_backbone: Any = None,
    base_width: int = 64,
    batch_norm: bool = False,
    dropout: float = 0.5,
    min_size: int | Sequence[int] = 600,
    max_size: int = 1000,
    image_mean: Sequence[float] = IMAGENET_MEAN,
    image_std: Sequence[float] = IMAGENET_STD,
    anchor_sizes: Sequence[int] = (128, 256, 512),
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    pre_nms_top_n: Mapping[str, int] | None = None,
    post_nms_top_n: Mapping[str, int] | None = None,
    **options: Any,
) -> GeneralizedRCNN:
    """Faster R-CNN on VGG-16 (Ren et al. 2015): 137,078,239 parameters with 21 classes, of which
    the region proposal network has 2,387,510.

    Its four losses are trained jointly: the sum of "loss_objectness", "loss_rpn_box_reg",
    "loss_classifier" and "loss_box_reg".

    Args:
        weights, progress, num_classes, weights_backbone, base_width, batch_norm, dropout: see
            :func:`fast_rcnn_vgg16`.
        min_size, max_size, image_mean, image_std: see :class:`GeneralizedRCNNTransform`.
        anchor_sizes: square roots of the anchors' areas in pixels of the resized image.
        aspect_ratios: of height to width.
        pre_nms_top_n, post_nms_top_n: see :class:`RegionProposalNetwork`; 12,000 and 2,000 in
            training, 6,000 and 300 in evaluation if None.
        options: of the :class:`RoIHeads`.
    """
    network = vgg(weights_backbone, progress, base_width, batch_norm, dropout)
    backbone = convolutions(network)
    anchors = AnchorGenerator((tuple(anchor_sizes),), (tuple(aspect_ratios),))
    channels: Any = backbone.out_channels
    rpn = RegionProposalNetwork(
        anchors,
        SoftmaxRPNHead(channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n=pre_nms_top_n or {"training": 12_000, "testing": 6000},
        post_nms_top_n=post_nms_top_n or {"training": 2000, "testing": 300},
        nms_thresh=0.7,
    )
    model = GeneralizedRCNN(
        backbone,
        rpn,
        vgg_heads(network, num_classes, **options),
        GeneralizedRCNNTransform(min_size, max_size, image_mean, image_std),
    )
    return load_weights(model, "faster_rcnn_vgg16", weights, progress)
