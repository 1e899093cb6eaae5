"""The detector of all versions of YOLO."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ....ops import Conv2dNormActivation
from ...darknet.config import Section
from ...darknet.layers import Connected
from ...darknet.network import Darknet
from .._parts import check_counts, check_numbers
from .._selection import Detections, check_call, detect, take
from ..image_list import Target
from ..targets import check_targets
from ._truth import truth_of
from .anchored import AnchorHead
from .grid import GridHead
from .letterbox import letterbox
from .logistic import YOLOHead
from .region import RegionHead

# share of the predictions that find an object at the beginning, as in RetinaNet
_PRIOR = 0.01


class YOLO(nn.Module):
    """A network of a Darknet configuration that ends in [detection], [region] or [yolo] sections:
    YOLOv1, YOLOv2 or YOLOv3.

    Redmon, Divvala, Girshick and Farhadi, You only look once: unified, real-time object detection,
    2016; Redmon and Farhadi, YOLO9000: better, faster, stronger, 2017; YOLOv3: an incremental
    improvement, 2018.

    Images are scaled into the middle of grey ones of the network's size (letterbox). Labels begin
    with 1, as 0 is the background for the other detectors: a Darknet network of 80 classes finds
    labels from 1 to 80.

    Args:
        config: the path of a .cfg file, or sections; see
            :class:`~fastvision.models.darknet.Darknet`.
        score_thresh: least score of a detection.
        nms_thresh: largest IoU of two detections of one class.
        detections_per_img: at most this many are returned for an image, the best ones.
        topk_candidates: at most this many predictions of an image, those of the highest objectness,
            and as many of their scores are looked at.
        box_loss: of YOLOv2 and YOLOv3: "squared" for the papers' errors of the four numbers, or
            "giou", "diou" or "ciou" for one minus that IoU.
        sizes: multi-scale training: input sizes, multiples of the largest stride, one of which is
            drawn for every batch (every tenth in the paper); None for the configured size.

    Attributes:
        network: the :class:`~fastvision.models.darknet.Darknet`, for .weights files.
        size: (H, W) of the input in evaluation; may be set to other multiples of the largest stride
            where the network has no [connected] or [local] section.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: the configuration is wrong or has no such head.
        ValueError: another argument is out of range.
        TypeError: an option is no number.
    """

    def __init__(
        self,
        config: str | os.PathLike[str] | Sequence[Section],
        *,
        score_thresh: float = 0.05,
        nms_thresh: float = 0.45,
        detections_per_img: int = 100,
        topk_candidates: int = 1000,
        box_loss: str = "squared",
        sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_numbers(score_thresh=score_thresh, nms_thresh=nms_thresh)
        check_counts(detections_per_img=detections_per_img, topk_candidates=topk_candidates)
        self.network = Darknet(config)
        self.head = _head_of(self.network, box_loss)
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.detections_per_img = detections_per_img
        self.topk_candidates = topk_candidates
        self.size = self.network.size
        self.sizes = None if sizes is None else tuple(sizes)
        for size in self.sizes or ():
            self._check_size((size, size))
        self._initialize()

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> list[dict[str, Tensor]] | dict[str, Tensor]:
        """In evaluation the objects in each image, in training the losses.

        Args:
            images: [3, H, W] each, floating-point from 0 to 1, of any sizes.
            targets: in training "boxes" [n, 4] (x1, y1, x2, y2) in pixels of the image, with an
                area, and "labels" int64 [n] from 1; n may be 0.

        Returns:
            For each image "boxes" [n, 4] in its pixels, "labels" int64 [n] and "scores" [n] in
            descending order. In training scalars: "loss_box_reg" (YOLOv1: "loss_center" and
            "loss_size"), "loss_objectness" (YOLOv1 also "loss_no_object") and "loss_classifier".

        Raises:
            TypeError: an image is no floating-point tensor.
            ValueError: an image or a label has a wrong shape or value.
            AssertionError: there are no targets in training, or boxes have a wrong shape or no
                area, as with the other detectors.
        """
        if self.training:
            check_targets(targets, images)
        frame = letterbox(images, self._size_of_batch())
        if self.training:
            assert targets is not None
            truth = truth_of(targets, frame, self.head.classes)
            size = (frame.images.shape[-2], frame.images.shape[-1])
            return self.head.losses(self._outputs(frame.images), truth, size)
        found = self.detect(frame.images)
        return found._replace(boxes=frame.leave(found.boxes)).unpadded()

    def detect(self, images: Tensor) -> Detections:
        """The detections in a batch, in tensors of a fixed size.

        What is detected decides over no shape, and nothing synchronizes with the device.

        Args:
            images: [N, 3, H, W] from 0 to 1, of a size that the network takes.

        Returns:
            :class:`Detections`, with boxes in pixels of the images.

        Raises:
            RuntimeError: the model is in training.
            TypeError: images is no floating-point tensor.
            ValueError: images of another shape, or of a size that the network does not take.
        """
        check_call(self, images)
        size = (images.shape[-2], images.shape[-1])
        self._check_size(size)
        boxes, scores = self.head.predict(self._outputs(images), size, self.topk_candidates)
        classes = scores.shape[2]
        scores = scores.nan_to_num(nan=-1).flatten(1)  # NaN would be the largest
        scores, index = scores.topk(min(self.topk_candidates, scores.shape[1]), 1)
        return detect(
            take(boxes, index // classes), scores, index % classes + 1, self.score_thresh,
            self.nms_thresh, self.detections_per_img,
        )  # fmt: skip

    def _outputs(self, images: Tensor) -> list[Tensor]:
        """Of the heads, in the precision of coordinates."""
        outputs = self.network(images)
        assert isinstance(outputs, list)
        return [x.to(torch.promote_types(x.dtype, torch.float32)) for x in outputs]

    def _size_of_batch(self) -> tuple[int, int]:
        if self.training and self.sizes:
            size = self.sizes[int(torch.randint(len(self.sizes), ()))]
            return size, size
        self._check_size(self.size)
        return self.size

    def _check_size(self, size: tuple[int, int]) -> None:
        if size == self.network.size:
            return
        if isinstance(self.head, GridHead):
            raise ValueError(f"size must be {self.network.size}, as the network has it, got {size}")
        stride = math.lcm(*self.head.strides)
        if min(size) < stride or any(n % stride for n in size):
            raise ValueError(f"size must be two multiples of {stride}, got {size}")

    def _initialize(self) -> None:
        """Predictions begin near 0, which is at the anchors. With logistic objectness they find few
        objects, so that the many places without one do not decide about the first steps (Lin et al.
        2017)."""
        for i in self.network.head_layers:
            layer = self.network.layers[i - 1]
            if not isinstance(layer, (Conv2dNormActivation, Connected)) or len(layer) > 1:
                continue
            scores: Any = layer[0]
            nn.init.normal_(scores.weight, std=0.01)
            nn.init.zeros_(scores.bias)
            if isinstance(self.head, YOLOHead):
                with torch.no_grad():
                    bias = scores.bias.view(-1, 5 + self.head.classes)
                    bias[:, 4] = -math.log((1 - _PRIOR) / _PRIOR)


def _head_of(network: Darknet, box_loss: str) -> AnchorHead | GridHead:
    if not network.heads:
        network.sections[-1].error("is the last section, but a detector ends in a head")
    kinds = {head.section.kind for head in network.heads}
    if len(kinds) > 1:
        network.heads[-1].section.error(f"cannot be mixed with others of {sorted(kinds)}")
    kind = kinds.pop()
    if kind == "detection":
        return GridHead(network.heads)
    make = RegionHead if kind == "region" else YOLOHead
    return make(network.heads, network.size, box_loss)
