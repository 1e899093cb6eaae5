"""Keypoints as places in heatmaps of boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .heatmaps import largest_of_resized
from .image_list import Target


def keypoints_to_heatmap(
    keypoints: Tensor, rois: Tensor, heatmap_size: int
) -> tuple[Tensor, Tensor]:
    """The cell of each keypoint in its box's heatmap, by rows, and whether there is one.

    Args:
        keypoints: [n, K, 3] (x, y, visibility).
        rois: boxes [n, 4]; their right and lower borders belong to the last cells.
        heatmap_size: rows and columns of the heatmap.

    Returns:
        int64 [n, K], 0 where there is none, and int64 [n, K] of 0 and 1: for visible keypoints
        in their boxes.
    """
    low, high = rois[:, None, :2], rois[:, None, 2:]
    places = keypoints[..., :2]
    cells = ((places - low) * (heatmap_size / (high - low))).floor().long()
    cells = torch.where(places == high, heatmap_size - 1, cells)
    valid = ((cells >= 0) & (cells < heatmap_size)).all(-1) & (keypoints[..., 2] > 0)
    x, y = cells.unbind(-1)
    return (y * heatmap_size + x) * valid, valid.long()


def loss(
    heatmaps: Tensor, boxes: Sequence[Tensor], targets: Sequence[Target], match: Sequence[Tensor]
) -> Tensor:
    """Cross entropy over the cells of each heatmap (He et al., Mask R-CNN, 2017, section 5).

    Args:
        heatmaps: logits [n, K, M, M].
        boxes: [., 4] of each image, together n.
        targets: "keypoints" [L, K, 3] of each image.
        match: the object of each box.

    Raises:
        ValueError: the heatmaps are not square.
    """
    rows, columns = heatmaps.shape[-2:]
    if rows != columns:
        raise ValueError(
            "keypoint_logits height and width (last two elements of shape) should be equal. "
            f"Instead got H = {rows} and W = {columns}"
        )
    of_boxes = [t["keypoints"][index] for t, index in zip(targets, match, strict=True)]
    cells, valid = keypoints_to_heatmap(torch.cat(of_boxes), torch.cat(list(boxes)), rows)
    valid = torch.where(valid.flatten())[0]
    if len(valid) == 0:
        return heatmaps.sum() * 0
    return F.cross_entropy(heatmaps.flatten(2).flatten(0, 1)[valid], cells.flatten()[valid])


def heatmaps_to_keypoints(maps: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
    """The place of the largest value of each heatmap, resized bicubically to its box.

    Args:
        maps: [n, K, M, M].
        rois: boxes [n, 4] in pixels.

    Returns:
        Places [n, K, 3] (x, y, 1), and the values there [n, K]; float32.
    """
    extents = (rois[:, 2:] - rois[:, :2]).clamp(min=1)
    sizes = extents.ceil()
    values, pixels = largest_of_resized(maps, sizes.flip(1).long())
    places = (pixels.flip(-1) + 0.5) * (extents / sizes)[:, None] + rois[:, None, :2]
    return F.pad(places, (0, 1), value=1.0).float(), values.float()
