"""Anchors by k-means."""

from __future__ import annotations

import torch
from torch import Tensor

from ....ops import box_iou
from ....ops._checks import check_floating, check_tensor, integer


def kmeans_anchors(
    sizes: Tensor, k: int, *, iterations: int = 100, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Clusters sizes of boxes by k-means with the distance 1 - IoU.

    Redmon and Farhadi, YOLO9000, 2017, section 2: boxes of one center overlap by their sizes alone,
    and large ones do not weigh more than small ones.

    Args:
        sizes: [n, 2] width and height of boxes, positive; floating-point.
        k: number of anchors, at most n.
        iterations: at most this many; the search ends when no box changes its cluster.
        seed: of the boxes to begin with.

    Returns:
        [k, 2] anchors by ascending area, and the mean IoU of the boxes with their best anchor.

    Raises:
        TypeError: sizes is no floating-point tensor, k no integer.
        ValueError: another shape, a size that is not positive, k below 1 or above n.
    """
    check_tensor(sizes, "sizes")
    check_floating(sizes.dtype, "sizes")
    if sizes.dim() != 2 or sizes.shape[1] != 2:
        raise ValueError(f"sizes must have shape [n, 2], got {list(sizes.shape)}")
    if not bool(((sizes > 0) & sizes.isfinite()).all()):
        raise ValueError("sizes must be positive and finite")
    n = len(sizes)
    if not 1 <= integer(k, "k must be an integer") <= n:
        raise ValueError(f"k must be from 1 to the number of sizes, {n}, got {k}")
    anchors, cluster = _first_anchors(sizes, k, seed), None
    for _ in range(iterations):
        last, cluster = cluster, size_iou(sizes, anchors).argmax(1)
        if last is not None and torch.equal(last, cluster):
            break
        count = torch.bincount(cluster, minlength=k)[:, None]
        total = torch.zeros_like(anchors).index_add_(0, cluster, sizes)
        anchors = torch.where(count > 0, total / count.clamp(min=1), anchors)
    anchors = anchors[anchors.prod(1).argsort()]
    return anchors, size_iou(sizes, anchors).amax(1).mean()


def _first_anchors(sizes: Tensor, k: int, seed: int) -> Tensor:
    """Of [n, 2] sizes k that are far from each other (k-means++, Arthur and Vassilvitskii 2007)."""
    generator = torch.Generator().manual_seed(seed)
    distance = torch.ones(len(sizes), dtype=torch.double)
    chosen: list[int] = []
    for _ in range(k):
        if not bool((distance > 0).any()):  # there are fewer than k sizes
            distance[chosen], distance = 0, distance + 1
        chosen.append(int(torch.multinomial(distance.square(), 1, generator=generator)))
        found = 1 - size_iou(sizes, sizes[chosen[-1:]])[:, 0].double().cpu()
        distance = torch.minimum(distance, found.clamp(min=0))
    return sizes[chosen]


def size_iou(sizes: Tensor, others: Tensor) -> Tensor:
    """[n, m] IoU of boxes of sizes [n, 2] and [m, 2] with one center."""
    # with one corner it is the same
    first, second = (torch.cat((torch.zeros_like(t), t), 1) for t in (sizes, others))
    return box_iou(first, second)
