"""The least work of each op: what no implementation can do without, for the share of the limit."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Work

IOU_FLOPS = 12  # 4 min/max, 2 differences, 2 clamps, product, union (2), threshold times union


def nms(inputs: tuple[Tensor, ...], kept: int, dropped: int) -> Work:
    """Inputs read once, 8 bytes written per kept box, one IoU for each dropped box.

    A floor that no NMS comes near: sorting and the chain of decisions are not in it.
    """
    moved = sum(t.numel() * t.element_size() for t in inputs) + 8 * kept
    return Work(moved, IOU_FLOPS * dropped)


def nms_match(inputs: tuple[Tensor, ...], kept: int) -> Work:
    """As :func:`nms`, with an index written per box."""
    count = inputs[0].shape[0]
    work = nms(inputs, kept, count - kept)
    return Work(work.bytes + 8 * count, work.flops)


def matrix_nms(inputs: tuple[Tensor, ...]) -> Work:
    """Inputs read once, a score written per box, one IoU for each pair."""
    boxes, scores = inputs[:2]
    count = boxes.shape[0]
    moved = sum(t.numel() * t.element_size() for t in inputs) + count * scores.element_size()
    return Work(moved, IOU_FLOPS * count * (count - 1) // 2)


def soft_nms(inputs: tuple[Tensor, ...], kept: int) -> Work:
    """Inputs read once, an index and a score written per kept box, one IoU for each box.

    A floor that no soft-NMS comes near: it decays scores as often as boxes are kept.
    """
    boxes, scores = inputs[:2]
    moved = sum(t.numel() * t.element_size() for t in inputs)
    return Work(moved + kept * (8 + scores.element_size()), IOU_FLOPS * boxes.shape[0])


def weighted_boxes_fusion(boxes: list[Tensor], fused: Tensor) -> Work:
    """Boxes, scores and labels read once, the fused ones written once, and one IoU for each box
    that joins another."""
    count, element = sum(map(len, boxes)), boxes[0].element_size()
    moved = (count + len(fused)) * (5 * element + 8)
    return Work(moved, IOU_FLOPS * (count - len(fused)))


# operations per pair: IoU, and what the kinds of overlap add to it
OVERLAP_FLOPS = {"iou": 14, "generalized": 24, "distance": 32, "complete": 42}


def box_iou(boxes1: Tensor, boxes2: Tensor, kind: str, *, backward: bool = False) -> Work:
    """Boxes read once and the overlaps written once; the backward reads their gradients."""
    pairs = boxes1.shape[0] * boxes2.shape[0]
    element = boxes1.element_size()
    moved = (boxes1.numel() + boxes2.numel() + pairs) * element * (1 + backward)
    return Work(moved, pairs * OVERLAP_FLOPS[kind] * (1 + 2 * backward))


def box_iou_rotated(boxes1: Tensor, boxes2: Tensor) -> Work:
    """Boxes read once and the overlaps written once; six operations tell that a pair is apart.
    Solid boxes too."""
    pairs = boxes1.shape[0] * boxes2.shape[0]
    return Work((boxes1.numel() + boxes2.numel() + pairs) * boxes1.element_size(), 6 * pairs)


def masks_to_boxes(masks: Tensor, boxes: Tensor) -> Work:
    """The pixels outside of the boxes read once, and the boxes written."""
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    outside = masks.numel() - int((sides[:, 0] * sides[:, 1]).sum())
    return Work(outside * masks.element_size() + boxes.numel() * boxes.element_size(), outside)


def mask_overlaps(inputs: tuple[Tensor, ...], result: Tensor) -> Work:
    """Masks and scores read once and the result written; counting bits is no arithmetic here."""
    tensors = (*inputs, result)
    return Work(sum(t.numel() * t.element_size() for t in tensors), 0)


def _axis(low: float, size: float, bins: int, samples: int, extent: int) -> tuple[np.ndarray, int]:
    """Pixels that one axis of a box touches, and its number of distinct (bin, pixel) pairs."""
    at = low + (np.arange(bins * samples) + 0.5) * (size / (bins * samples))
    inside = (at >= -1) & (at <= extent)
    first = np.clip(np.floor(at), 0, extent - 1).astype(np.int64)
    pixels = np.stack([first, np.minimum(first + 1, extent - 1)])[:, inside]
    bin_of = (np.arange(bins * samples) // samples)[inside]
    return np.unique(pixels), np.unique(bin_of * extent + pixels).size


def roi_align(
    features: list[Tensor],
    rois: Tensor,
    level_of: Tensor,
    scales: list[float],
    bins: int,
    sampling_ratio: int,
    *,
    forward: bool = True,
    backward: bool = False,
) -> Work:
    """Touched pixels read once, the result written once, the cheapest order of the arithmetic.

    Samples merge to one weight per (bin, pixel) and axis, and the sum is separable: rows first,
    columns first or both at once, whichever needs the fewest multiply-adds (2 operations each) per
    channel. The backward reads the gradient, writes that of all features, and does the same sums.

    Args:
        features: [N, C, H_l, W_l] per level.
        rois: [K, 5] in image coordinates; not ``aligned``.
        level_of: [K] level of each box.
        scales: of each level.
        bins: per axis.
        sampling_ratio: adaptive if 0.
        forward, backward: which of them the case runs.
    """
    touched = [np.zeros((f.shape[0], *f.shape[2:]), dtype=bool) for f in features]
    fmas = 0
    for (image, *corners), level in zip(rois.tolist(), level_of.tolist(), strict=True):
        x1, y1, x2, y2 = (corner * scales[level] for corner in corners)
        height, width = max(y2 - y1, 1), max(x2 - x1, 1)
        H, W = features[level].shape[2:]
        rows, row_taps = _axis(y1, height, bins, sampling_ratio or math.ceil(height / bins), H)
        cols, col_taps = _axis(x1, width, bins, sampling_ratio or math.ceil(width / bins), W)
        touched[level][int(image)][rows[:, None], cols] = True
        fmas += min(
            row_taps * col_taps,
            row_taps * cols.size + bins * col_taps,
            col_taps * rows.size + bins * row_taps,
        )
    channels, element = features[0].shape[1], features[0].element_size()
    pooled = len(rois) * channels * bins * bins * element
    moved = rois.numel() * rois.element_size()
    if forward:
        moved += sum(int(t.sum()) for t in touched) * channels * element + pooled
    if backward:
        moved += pooled + sum(f.numel() for f in features) * element
    return Work(moved, 2 * fmas * channels * (forward + backward))


def roi_pool(
    input: Tensor,
    rois: Tensor,
    scale: float,
    bins: int,
    *,
    forward: bool = True,
    backward: bool = False,
) -> Work:
    """Touched pixels read once and compared once per box, the result and positions written once.

    The backward reads the gradient and the positions and writes the gradient of the features; a
    forward alone needs no positions.

    Args:
        input: [N, C, H, W].
        rois: [K, 5] in image coordinates.
        scale: from those to pixels.
        bins: per axis.
        forward, backward: which of them the case runs.
    """
    N, C, H, W = input.shape
    touched = np.zeros((N, H, W), dtype=bool)
    compared = 0
    for image, *corners in rois.tolist():
        x1, y1, x2, y2 = (math.floor(corner * scale + 0.5) for corner in corners)
        rows = slice(max(y1, 0), max(max(y2, y1) + 1, 0))
        columns = slice(max(x1, 0), max(max(x2, x1) + 1, 0))
        touched[int(image), rows, columns] = True
        compared += touched[int(image), rows, columns].size
    element = input.element_size()
    results = len(rois) * C * bins * bins
    moved = rois.numel() * rois.element_size()
    if forward:
        moved += int(touched.sum()) * C * element + results * (element + 4 * backward)
    if backward:
        moved += results * (element + 4) + input.numel() * element
    return Work(moved, (compared * forward + len(rois) * bins * bins * backward) * C)


def roi_samples(
    input: Tensor,
    rois: Tensor,
    bins: int,
    sampling_ratio: int,
    *,
    backward: bool = False,
    argmax: bool = False,
) -> Work:
    """Each sample by itself: four pixels of every channel, and all pixels of the map at most.

    Args:
        input: [N, C, H, W].
        rois: [K, 5 or 6].
        bins: per axis.
        sampling_ratio: of samples per bin and axis.
        backward: also of the gradient.
        argmax: whether that needs the number of each bin's sample.
    """
    element, channels = input.element_size(), input.shape[1]
    samples = len(rois) * bins**2 * sampling_ratio**2
    results = len(rois) * channels * bins**2
    moved = rois.numel() * rois.element_size() + results * element
    moved += min(4 * samples * channels, input.numel()) * element
    if backward:
        moved += results * (element + 8 * argmax) + input.numel() * element
    return Work(moved, SAMPLE_FLOPS * samples * channels * (1 + backward))


def ps_roi_align(
    input: Tensor,
    rois: Tensor,
    scale: float,
    bins: int,
    sampling_ratio: int,
    *,
    backward: bool = False,
) -> Work:
    """As :func:`roi_align`, forward or both: a bin takes its taps from one of PH * PW channels.

    Args:
        input: [N, C * bins * bins, H, W].
        rois: [K, 5] in image coordinates.
        scale: from those to pixels.
        bins: per axis.
        sampling_ratio: of samples per bin and axis.
        backward: also of the gradient.
    """
    H, W = input.shape[2:]
    taps = 0
    for _, *corners in rois.tolist():
        x1, y1, x2, y2 = (corner * scale - 0.5 for corner in corners)
        _, rows = _axis(y1, y2 - y1, bins, sampling_ratio, H)
        _, columns = _axis(x1, x2 - x1, bins, sampling_ratio, W)
        taps += rows * columns
    return _ps_work(input, rois, bins, taps, backward)


def ps_roi_pool(
    input: Tensor, rois: Tensor, scale: float, bins: int, *, backward: bool = False
) -> Work:
    """Each pixel of a bin added once. Arguments as of :func:`ps_roi_align`."""
    H, W = input.shape[2:]
    taps = 0
    for _, *corners in rois.tolist():
        x1, y1, x2, y2 = (math.floor(corner * scale + 0.5) for corner in corners)
        rows = max(min(y2, H - 1) - max(y1, 0), 0)
        taps += rows * max(min(x2, W - 1) - max(x1, 0), 0)
    return _ps_work(input, rois, bins, taps, backward)


def _ps_work(input: Tensor, rois: Tensor, bins: int, taps: int, backward: bool) -> Work:
    """``taps``: of all boxes and bins. Reads what they touch, and all of the map at the most."""
    element, channels = input.element_size(), input.shape[1] // bins**2
    results = len(rois) * input.shape[1] * element
    moved = rois.numel() * rois.element_size() + results
    moved += min(taps * channels, input.numel()) * element
    if backward:
        moved += results + input.numel() * element
    return Work(moved, 2 * taps * channels * (1 + backward))


def convolution(input: Tensor, weight: Tensor, output: Tensor, *, residual: bool = False) -> Work:
    """Input, weight and residual read once, output written once; two operations per tap and output.
    A linear layer is a convolution of one tap per feature.

    Normalization, residual and activation are a few operations per output and not counted.
    """
    moved = sum(t.numel() * t.element_size() for t in (input, weight, output))
    if residual:
        moved += output.numel() * output.element_size()
    return Work(moved, 2 * output.numel() * weight[0].numel())


SAMPLE_FLOPS = 8  # four multiply-adds
# four more for the image's gradient, six differences, and five for the sums over channels
SAMPLE_GRADIENT_FLOPS = 8 + 6 + 10


def deformable_convolution(
    tensors: list[Tensor], output: Tensor, *, offset_groups: int, backward: bool
) -> Work:
    """All tensors read once and the output written once; two operations per tap and output, and
    those of each sample. Backward reads the output's gradient and all tensors, writes all gradients
    and does two more products.

    Args:
        tensors: input, offset, weight, then bias and mask.
        output: [N, K, OH, OW].
        offset_groups: groups that divide input's channels.
        backward: whether the case runs it too.
    """
    input, offset, weight = tensors[:3]
    moved = sum(t.numel() * t.element_size() for t in (*tensors, output))
    values = offset.numel() // (2 * offset_groups) * input.shape[1]  # of samples
    products = 2 * output.numel() * weight[0].numel()
    if not backward:
        return Work(moved, products + SAMPLE_FLOPS * values)
    per_value = 2 * SAMPLE_FLOPS + SAMPLE_GRADIENT_FLOPS
    return Work(3 * moved, 3 * products + per_value * values)


# magnitude, exponential, logarithm of 1 + e, reciprocal, two sums, maximum, power, two products,
# weight, total: a function counts as one operation
FOCAL_FLOPS = 12
FOCAL_GRADIENT_FLOPS = 6  # two products with gamma, product, sum, product with the power, weight


def focal_loss(x: Tensor, targets: Tensor, *, gradient: bool, losses: int = 0) -> Work:
    """Logits and targets read once; losses that are not summed, and the gradient, written once."""
    element = x.element_size()
    moved = x.numel() * element * (1 + gradient) + losses * element
    moved += targets.numel() * targets.element_size()
    return Work(moved, x.numel() * (FOCAL_FLOPS + gradient * FOCAL_GRADIENT_FLOPS))


def batch_norm_relu(input: Tensor, *, residual: bool = False, backward: bool = False) -> Work:
    """Input and residual read once and output written once, in training as well: a cache could hold
    the input. Backward reads the output's gradient, the input and, for the residual's gradient, the
    output, and writes one or two gradients.

    Per element 3 operations for the statistics and 3 to normalize; backward 4 for the sums and 4.
    """
    tensors = 2 + residual + (3 + 2 * residual) * backward
    return Work(tensors * input.numel() * input.element_size(), (6 + 8 * backward) * input.numel())


def transposed_convolution(
    input: Tensor, weight: Tensor, output: Tensor, *, separable_stride: int | None = None
) -> Work:
    """Input and weight read once, output written once; two operations per input, tap and filter.

    A separable filter of ``separable_stride`` that keeps the channels apart is two factors, with
    which first the rows of the input are stretched, then the columns.
    """
    C, K, R, S = weight.shape
    element = input.element_size()
    moved = (input.numel() + output.numel()) * element
    if separable_stride is None:
        return Work(moved + weight.numel() * element, 2 * input.numel() * K * R * S)
    taps = R / separable_stride, S / separable_stride
    stretched = input[..., 0].numel() * output.shape[3]
    flops = 2 * (taps[0] * output.numel() + taps[1] * stretched)
    return Work(moved + (R + S) * element, int(flops))


def max_pooling(
    shape: tuple[int, ...], kernel: int, stride: int, padding: int, dtype: torch.dtype
) -> Work:
    """The map and the maxima in memory once, and 8 bytes per index: pooling reads the former and
    writes the others; unpooling and the gradients move the same bytes in other directions.

    A comparison per tap, which only pooling needs, counts for all of them.
    """
    pixels = math.prod(shape)
    sides = [(side + 2 * padding - kernel) // stride + 1 for side in shape[2:]]
    maxima = shape[0] * shape[1] * math.prod(sides)
    return Work((pixels + maxima) * dtype.itemsize + 8 * maxima, maxima * kernel**2)
