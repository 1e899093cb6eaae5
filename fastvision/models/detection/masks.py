"""Masks of boxes: their prediction, their place in the image, and their loss."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...fusion.border import tensor_of
from ...fusion.layers import note_alone
from ...ops import Sequential, roi_align
from ...ops._layers import own_class
from ...ops.chain import run_layers
from ._heads import may_rearrange
from ._resize import resized
from .image_list import Target


class MaskRCNNPredictor(Sequential):
    """A transposed convolution with ReLU to twice the size, and a 1x1 to the classes.

    Args:
        in_channels: of the head.
        dim_reduced: channels between the two.
        num_classes: background included.
    """

    def __init__(self, in_channels: int, dim_reduced: int, num_classes: int) -> None:
        enlarge = nn.ConvTranspose2d(in_channels, dim_reduced, 2, 2)
        classify = nn.Conv2d(dim_reduced, num_classes, 1)
        layers = {"conv5_mask": enlarge, "relu": nn.ReLU(inplace=True), "mask_fcn_logits": classify}
        super().__init__(OrderedDict(layers))
        for layer in (enlarge, classify):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def predict(predictor: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Logits [n, M, M] of the label [n] of each box, by a predictor of those of all classes.

    Args:
        predictor: gives [n, classes, M, M].
        x: [n, C, M / 2, M / 2].
    """
    if own_class(predictor) is not MaskRCNNPredictor or len(predictor) != 3:  # type: ignore[arg-type]
        return of_labels(predictor(x), labels)
    first: list[Any] = list(predictor.children())
    last = first.pop()
    if not (_is_pointwise(last) and may_rearrange(x, predictor, last)):
        return of_labels(predictor(x), labels)
    # the 1x1 convolution of one class for each box, as rows: torch's products of columns are slower
    x = tensor_of(run_layers(first, x))
    note_alone(last)
    logits = last.weight[labels].flatten(1)[:, None] @ x.flatten(2)
    return logits.view(len(x), *x.shape[2:]) + last.bias[labels, None, None]


def _is_pointwise(layer: Any) -> bool:
    """Whether it is a 1x1 convolution with a bias, and no subclass of one but those of fuse()."""
    return (
        own_class(layer) is nn.Conv2d
        and layer.kernel_size == layer.stride == (1, 1)
        and layer.padding == (0, 0)
        and layer.groups == 1
        and layer.bias is not None
    )


def paste_masks_in_image(
    masks: Tensor, boxes: Tensor, img_shape: Sequence[int], padding: int = 1
) -> Tensor:
    """Masks at the places of their boxes, resized to them bilinearly.

    All at once: a mask is multiplied by the weights of its rows and of its columns at the pixels of
    the image.

    Args:
        masks: [n, 1, M, M], floating-point.
        boxes: [n, 4] (x1, y1, x2, y2) in pixels of the image.
        img_shape: (height, width) of the image.
        padding: cells of zeros around a mask, by which its box grows.

    Returns:
        [n, 1, H, W], zero outside the boxes; in float32 for 16-bit masks.
    """
    cells = masks.shape[-1]
    masks = masks[:, 0].to(torch.promote_types(masks.dtype, torch.float32))
    masks = F.pad(masks, (padding,) * 4)
    centre = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * ((cells + 2 * padding) / cells)
    low, high = (centre - half).to(torch.int64), (centre + half).to(torch.int64)
    columns, rows = (
        _weights(low[:, axis], high[:, axis], img_shape[1 - axis], masks) for axis in (0, 1)
    )
    return resized(rows, masks, columns)[:, None]


def _weights(low: Tensor, high: Tensor, pixels: int, masks: Tensor) -> Tensor:
    """[n, pixels, cells]: the share of each cell in a pixel from ``low`` to ``high``, inclusive."""
    cells = masks.shape[-1]
    extent = (high - low + 1).clamp(min=1)[:, None]
    place = torch.arange(pixels, device=low.device) - low[:, None]
    inside = (place >= 0) & (place < extent)
    source = (place + 0.5).to(masks.dtype) * (cells / extent.to(masks.dtype)) - 0.5
    source = source.clamp(0, cells - 1)[..., None]
    weights = 1 - (source - torch.arange(cells, dtype=masks.dtype, device=low.device)).abs()
    return weights.clamp_(min=0).mul_(inside[..., None])


def of_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """[n, M, M]: of logits [n, classes, M, M] those of each box's label [n]."""
    return logits[torch.arange(len(labels), device=labels.device), labels]


def loss(
    logits: Tensor, boxes: Sequence[Tensor], targets: Sequence[Target], match: Sequence[Tensor]
) -> Tensor:
    """Binary cross entropy of the masks of the boxes' labels (He, Gkioxari, Dollár and Girshick,
    Mask R-CNN, 2017, section 3).

    Args:
        logits: [n, classes, M, M].
        boxes: [., 4] of each image, together n.
        targets: "labels" [L] and "masks" [L, H, W] of each image.
        match: the object of each box.
    """
    if len(logits) == 0:
        return logits.sum() * 0
    size = logits.shape[-2:]
    wanted, labels = [], []
    for of_image, target, index in zip(boxes, targets, match, strict=True):
        rois = torch.cat((index[:, None].to(of_image), of_image), 1)
        truth = target["masks"][:, None].to(of_image.dtype)
        wanted.append(roi_align(truth, rois, (size[0], size[1]), 1.0)[:, 0])
        labels.append(target["labels"][index])
    chosen = of_labels(logits, torch.cat(labels))
    return F.binary_cross_entropy_with_logits(chosen, torch.cat(wanted).to(logits.dtype))
