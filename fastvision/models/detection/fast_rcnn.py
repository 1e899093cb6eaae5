"""Fast R-CNN: one pass over the image, and RoI pooling in given proposals.

Girshick, Fast R-CNN, 2015.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._images import IMAGENET_MEAN, IMAGENET_STD
from .._registry import register
from .._weights import load_weights
from .faster_rcnn import FastRCNNPredictor
from .image_list import Target
from .rcnn import Proposals
from .roi_heads import RoIHeads
from .selective_search import SelectiveSearch, check_proposals
from .targets import check_boxes, check_targets
from .transform import GeneralizedRCNNTransform, resize_boxes, sizes_of
from .vgg_parts import RoIPooling, VGGBoxHead, convolutions, truncated_svd, vgg


class FastRCNN(nn.Module):
    """A backbone, and heads that classify and refine proposals from elsewhere.

    Args:
        backbone: gives feature maps by name, or one tensor, for images [N, C, H, W].
        roi_heads: see :class:`RoIHeads`.
        transform: see :class:`GeneralizedRCNNTransform`.
        proposals: gives boxes [n, 4] for each of a list of images; :class:`SelectiveSearch` if
            None.
    """

    def __init__(
        self,
        backbone: nn.Module,
        roi_heads: nn.Module,
        transform: nn.Module,
        proposals: Proposals | None = None,
    ) -> None:
        super().__init__()
        self.transform: Any = transform
        self.backbone = backbone
        self.roi_heads: Any = roi_heads
        self.proposals = SelectiveSearch() if proposals is None else proposals

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        proposals: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor] | list[Target]:
        """Detections in evaluation, losses in training.

        Args:
            images, targets: see :class:`GeneralizedRCNN`.
            proposals: boxes [n, 4] (x1, y1, x2, y2) in pixels of each image; the module's own if
                None.

        Returns:
            As :class:`GeneralizedRCNN`; the losses are "loss_classifier" and "loss_box_reg".

        Raises:
            AssertionError, ValueError, TypeError: as there, and for proposals of another form.
        """
        if self.training:
            check_targets(targets, images)
        if proposals is None:
            proposals = self.proposals(images)
        proposals = check_proposals(proposals, images)
        original_sizes = sizes_of(images)
        batch, targets = self.transform(images, targets)
        check_boxes(targets)
        sizes = batch.image_sizes
        proposals = [
            resize_boxes(*each) for each in zip(proposals, original_sizes, sizes, strict=True)
        ]
        features = self.backbone(batch.tensors)
        if isinstance(features, Tensor):
            features = {"0": features}
        detections, losses = self.roi_heads(features, proposals, sizes, targets)
        if self.training:
            return losses
        return self.transform.postprocess(detections, sizes, original_sizes)

    @torch.no_grad()
    def compress(self, fc6: int = 1024, fc7: int = 256) -> FastRCNN:
        """Replaces VGG's two linear layers by truncated singular value decompositions.

        Args:
            fc6, fc7: ranks; the paper's are 1024 and 256.

        Raises:
            ValueError: a rank is out of its range.
        """
        head = self.roi_heads.box_head
        layers = truncated_svd(head.fc6, fc6), truncated_svd(head.fc7, fc7)
        head.fc6, head.fc7 = layers
        return self


def vgg_heads(
    network: Any,
    num_classes: int,
    *,
    fg_iou_thresh: float = 0.5,
    bg_iou_thresh: float = 0.5,
    batch_size_per_image: int = 128,
    positive_fraction: float = 0.25,
    bbox_reg_weights: tuple[float, float, float, float] | None = None,
    score_thresh: float = 0.05,
    nms_thresh: float = 0.3,
    detections_per_img: int = 100,
) -> RoIHeads:
    """Heads on VGG-16's linear layers, with new ones for scores and boxes.

    Args:
        network: VGG-16.
        num_classes: the background included.
        fg_iou_thresh, ..., detections_per_img: see :class:`RoIHeads`.
    """
    predictor = FastRCNNPredictor(network.classifier[3].out_features, num_classes)
    for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, 0, std)
        nn.init.zeros_(layer.bias)
    return RoIHeads(
        RoIPooling(),
        VGGBoxHead(network),
        predictor,
        fg_iou_thresh,
        bg_iou_thresh,
        batch_size_per_image,
        positive_fraction,
        bbox_reg_weights,
        score_thresh,
        nms_thresh,
        detections_per_img,
    )


@register("detection")
def fast_rcnn_vgg16(
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
    proposals: Proposals | None = None,
    **options: Any,
) -> FastRCNN:
    """Fast R-CNN on VGG-16 (Girshick 2015): 134,690,729 parameters with 21 classes.

    Args:
        weights: None, a state dict, or the path of a file.
        progress: whether a download shows a progress bar.
        num_classes: the background included.
        weights_backbone: of VGG-16, see :func:`fastvision.models.vgg16`.
        base_width: channels of VGG's first stage, of which all widths are multiples.
        batch_norm: whether a batch normalization follows each convolution; the paper has none.
        dropout: probability behind VGG's linear layers.
        min_size, max_size, image_mean, image_std: see :class:`GeneralizedRCNNTransform`.
        proposals: see :class:`FastRCNN`.
        options: of the :class:`RoIHeads`: thresholds, samples per image and so on.
    """
    network = vgg(weights_backbone, progress, base_width, batch_norm, dropout)
    model = FastRCNN(
        convolutions(network),
        vgg_heads(network, num_classes, **options),
        GeneralizedRCNNTransform(min_size, max_size, image_mean, image_std),
        proposals,
    )
    return load_weights(model, "fast_rcnn_vgg16", weights, progress)
