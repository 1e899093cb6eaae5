"""Classification and localization of a single object by one network of 4 + n outputs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ._registry import get_model, register
from ._weights import load_weights


class LocalizationLoss(NamedTuple):
    """Scalars: ``total`` = ``box`` + alpha * ``label``."""

    total: Tensor
    box: Tensor
    label: Tensor


class Localizer(nn.Module):
    """A classifier of 4 + n outputs, of which the first four are a box.

    Args:
        backbone: gives [N, 4 + n] for images, such as
            ``fastvision.models.resnet18(num_classes=4 + n)``.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [N, 4] and scores [N, n] of images [N, C, H, W].

        Boxes are (x1, y1, x2, y2) in units of the image's width and height.
        """
        outputs = self.backbone(images)
        return outputs[:, :4], outputs[:, 4:]


def localization_loss(
    boxes: Tensor,
    scores: Tensor,
    target_boxes: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
) -> LocalizationLoss:
    """The L1 distance of the boxes plus ``alpha`` times the cross entropy of the scores.

    Args:
        boxes: [N, 4].
        scores: [N, n].
        target_boxes: [N, 4], in the units of ``boxes``.
        labels: int64 [N].
        alpha: weight of the classification.

    Returns:
        The total and its terms, means over the images; the distance of a box is the sum over its
        four coordinates.

    Raises:
        ValueError: ``boxes`` and ``target_boxes`` have not the same shape [N, 4].
    """
    if boxes.shape != target_boxes.shape or boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(
            "boxes and target_boxes must have the same shape [N, 4], "
            f"got {list(boxes.shape)} and {list(target_boxes.shape)}"
        )
    box = (boxes - target_boxes).abs().sum(1).mean()
    label = F.cross_entropy(scores, labels)
    return LocalizationLoss(box + alpha * label, box, label)


@register("localization")
def localizer(
    *,
    weights: Any = None,
    progress: bool = True,
    backbone: str = "resnet18",
    num_classes: int = 20,
    **options: Any,
) -> Localizer:
    """One network for the class and the box of a single object.

    Args:
        backbone: name of the classifier; in training it has to return one tensor.
        num_classes: n; the backbone has 4 + n outputs.
        options: of the backbone's builder.

    Raises:
        ValueError: there is no classifier of this name.
    """
    model = Localizer(get_model(backbone, num_classes=4 + num_classes, **options))
    return load_weights(model, "localizer", weights, progress)
