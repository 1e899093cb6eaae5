"""Greedy non-maximum suppression of a batch of images, exact per class; of corners, rotated boxes
or solid ones.

The boxes of each image are sorted by class, then by score, and split into blocks. Step ``s``
decides the ``s``-th block of all classes. One kernel removes the boxes that the previous block
suppresses, in this and all later blocks, in parallel; a second kernel settles the block.

Only the pairs within a block run in a single program; all others are distributed over the device.
No pairs are stored, so memory is O(N). The number of launches only depends on N, so the host never
synchronizes; steps that no class needs return early.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common.geometry import intersection_over_union, load_box
from .common.rotated_box import load_sized_box, rotated_overlap
from .common.scalars import as_double, threshold_bits

# larger blocks mean fewer launches, but more pairs for the program that settles a block
BLOCK = 512
TILE = 64
COMPACT = 2048
# settling needs registers for a second tile of overlaps
SUPPRESS_WARPS, SETTLE_WARPS, COMPACT_WARPS = 4, 8, 8
# a pair of rotated boxes takes more of everything, and half a tile if it is in double
ROTATED_BLOCK, ROTATED_TILE, ROTATED_WARPS = 256, 32, 8
ROTATED_REGISTERS = 255  # ptxas otherwise spills some to fit more programs
MATCH_BLOCK, MATCH_TILE, MATCH_WARPS = 64, 32, 4
LAST_CLASS = tl.constexpr(2**63 - 1)
# kinds of boxes, and how many numbers each has
UPRIGHT, ROTATED, SOLID = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
COLUMNS = (4, 5, 7)


@triton.jit
def _any(x, axis: tl.constexpr):
    return tl.max(x.to(tl.int32), axis) > 0


@triton.jit
def _load(boxes_ptr, index, mask, KIND: tl.constexpr):
    if KIND == UPRIGHT:
        return load_box(boxes_ptr + index * 4, mask)
    else:
        size: tl.constexpr = 7 if KIND == SOLID else 5
        double: tl.constexpr = boxes_ptr.dtype.element_ty == tl.float64
        return load_sized_box(boxes_ptr + index * size, mask, KIND == SOLID, double)


@triton.jit
def _overlap(a, b, mask, KIND: tl.constexpr):
    """Intersection over union [M, N] of boxes a, [M], and b, [N]; of the pairs in ``mask``."""
    if KIND == UPRIGHT:
        return intersection_over_union(a, b)
    else:
        return rotated_overlap(
            (
                a[0][:, None], a[1][:, None], a[2][:, None], a[3][:, None], a[4][:, None],
                a[5][:, None], a[6][:, None], a[7][:, None], a[8][:, None],
            ),
            (
                b[0][None, :], b[1][None, :], b[2][None, :], b[3][None, :], b[4][None, :],
                b[5][None, :], b[6][None, :], b[7][None, :], b[8][None, :],
            ),
            mask,
            KIND == SOLID,
        )  # fmt: skip


@triton.jit(do_not_specialize=["N", "step", "max_output", "iou_threshold"])
def _nms_suppress_kernel(
    boxes_ptr,  # [B, N, columns] sorted
    classes_ptr,  # [B, N] sorted, or None
    origins_ptr,  # [B, blocks] where the class of each block's first box starts, or None
    alive_ptr,  # [B, N] changed in place
    counts_ptr,  # [B] boxes kept in earlier blocks; only without classes
    N,
    step,
    max_output,
    iou_threshold,  # bits of a double
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Removes the boxes of a tile that are suppressed by boxes kept in the previous step."""
    threshold = as_double(iou_threshold)
    tiles = tl.cdiv(N - step * BLOCK, TILE)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    first = tl.program_id(0) % tiles * TILE
    target = step * BLOCK + first + tl.arange(0, TILE)
    block = step + first // BLOCK
    boxes_ptr += image * N * (4 if KIND == UPRIGHT else 7 if KIND == SOLID else 5)
    alive_ptr += image * N
    source_block = step - 1
    if classes_ptr is not None:
        classes_ptr += image * N
        origin = tl.load(origins_ptr + image * tl.cdiv(N, BLOCK) + block)
        source_block += origin.to(tl.int32) // BLOCK
        # later steps do not involve this class
        is_due = source_block < block
    else:
        is_due = tl.load(counts_ptr + image) < max_output
    if is_due:
        alive = tl.load(alive_ptr + target, mask=target < N, other=0) != 0
        if classes_ptr is not None:
            # only the class that the block begins with comes from an earlier block
            label = tl.load(classes_ptr + block * BLOCK)
            alive &= tl.load(classes_ptr + target, mask=alive, other=0) == label
        if _any(alive, 0):
            target_boxes = _load(boxes_ptr, target, alive, KIND)
            suppressed = tl.zeros([TILE, TILE], tl.int1)
            for tile in range(BLOCK // TILE):
                source = source_block * BLOCK + tile * TILE + tl.arange(0, TILE)
                kept = tl.load(alive_ptr + source) != 0
                if classes_ptr is not None:
                    kept &= tl.load(classes_ptr + source) == label
                if _any(kept, 0):
                    source_boxes = _load(boxes_ptr, source, kept, KIND)
                    iou = _overlap(source_boxes, target_boxes, kept[:, None] & alive[None, :], KIND)
                    suppressed |= (iou > threshold.to(iou.dtype)) & kept[:, None]
            tl.store(alive_ptr + target, 0, mask=alive & _any(suppressed, 0))


@triton.jit(do_not_specialize=["N", "step", "max_output", "iou_threshold"])
def _nms_settle_kernel(
    boxes_ptr,  # [B, N, columns] sorted
    classes_ptr,  # [B, N] sorted, or None
    origins_ptr,  # [B, blocks] where the class of each block's first box starts, or None
    alive_ptr,  # [B, N] changed in place
    counts_ptr,  # [B] boxes kept in earlier blocks, changed in place; only without classes
    N,
    step,
    max_output,
    iou_threshold,  # bits of a double
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Suppresses within a block, among boxes whose class started ``step`` blocks earlier."""
    threshold = as_double(iou_threshold)
    due = 1  # without classes all boxes start in block 0
    if classes_ptr is not None:
        due = tl.cdiv(N, BLOCK) - step
    image = (tl.program_id(0) // due).to(tl.int64)
    block = step + tl.program_id(0) % due
    boxes_ptr += image * N * (4 if KIND == UPRIGHT else 7 if KIND == SOLID else 5)
    alive_ptr += image * N
    depth = block
    if classes_ptr is not None:
        classes_ptr += image * N
        origin = tl.load(origins_ptr + image * tl.cdiv(N, BLOCK) + block)
        depth -= origin.to(tl.int32) // BLOCK
        label = tl.load(classes_ptr + block * BLOCK)
        # classes that start within the block are settled in step 0
        is_due = (depth == step) | (step == 0)
    else:
        # once enough boxes are kept, the others may stay, since they rank lower
        count = tl.load(counts_ptr + image)
        is_due = count < max_output
    if is_due:
        tiles = tl.cdiv(tl.minimum(N - block * BLOCK, BLOCK), TILE)
        for tile in range(tiles):
            target = block * BLOCK + tile * TILE + tl.arange(0, TILE)
            alive = tl.load(alive_ptr + target, mask=target < N, other=0) != 0
            if classes_ptr is not None:
                target_class = tl.load(classes_ptr + target, mask=target < N, other=LAST_CLASS)
                alive &= tl.where(target_class == label, depth == step, step == 0)
            target_boxes = _load(boxes_ptr, target, alive, KIND)
            suppressed = tl.zeros([TILE, TILE], tl.int1)
            for earlier in range(tile):
                source = block * BLOCK + earlier * TILE + tl.arange(0, TILE)
                kept = tl.load(alive_ptr + source) != 0
                if classes_ptr is not None:
                    source_class = tl.load(classes_ptr + source)
                    kept &= source_class >= tl.min(target_class, 0)
                if _any(kept, 0):
                    source_boxes = _load(boxes_ptr, source, kept, KIND)
                    iou = _overlap(source_boxes, target_boxes, kept[:, None] & alive[None, :], KIND)
                    overlaps = (iou > threshold.to(iou.dtype)) & kept[:, None]
                    if classes_ptr is not None:
                        overlaps &= source_class[:, None] == target_class[None, :]
                    suppressed |= overlaps

            iou = _overlap(target_boxes, target_boxes, alive[:, None] & alive[None, :], KIND)
            overlaps = (iou > threshold.to(iou.dtype)) & (target[:, None] < target[None, :])
            if classes_ptr is not None:
                overlaps &= target_class[:, None] == target_class[None, :]
            # a box is kept if no kept box suppresses it. Starting from all kept, each iteration
            # corrects one more link of each chain of suppressions, until the greedy result
            open_boxes = alive & ~_any(suppressed, 0)
            kept = open_boxes
            changed = _any(kept, 0)
            while changed:
                survivors = open_boxes & ~_any(overlaps & kept[:, None], 0)
                changed = _any(survivors != kept, 0)
                kept = survivors
            tl.store(alive_ptr + target, 0, mask=alive & ~kept)
            tl.debug_barrier()  # the next tile reads these stores
            if classes_ptr is None:
                count += tl.sum(kept.to(tl.int32), 0)
        if classes_ptr is None:
            tl.store(counts_ptr + image, count)


@triton.jit(do_not_specialize=["N", "max_output"])
def _nms_compact_kernel(
    kept_ptr,  # [B, N] by decreasing score
    order_ptr,  # [B, N] index of each box
    indices_ptr,  # [B, max_output]
    counts_ptr,  # [B]
    N,
    max_output,
    BLOCK: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    kept_ptr += image * N
    order_ptr += image * N
    indices_ptr += image * max_output
    count = 0
    for first in range(0, N, BLOCK):
        position = first + tl.arange(0, BLOCK)
        kept = tl.load(kept_ptr + position, mask=position < N, other=0).to(tl.int32)
        slot = count + tl.cumsum(kept, 0) - kept
        mask = (kept != 0) & (slot < max_output)
        tl.store(indices_ptr + slot, tl.load(order_ptr + position, mask=mask), mask=mask)
        count += tl.sum(kept, 0)
    count = tl.minimum(count, max_output)
    for first in range(0, max_output, BLOCK):
        slot = first + tl.arange(0, BLOCK)
        tl.store(indices_ptr + slot, -1, mask=(slot >= count) & (slot < max_output))
    tl.store(counts_ptr + image, count.to(tl.int64))


@triton.jit(do_not_specialize=["N", "K", "iou_threshold"])
def _nms_match_kernel(
    boxes_ptr,  # [N, 4]
    classes_ptr,  # [N], or None
    keep_ptr,  # [K] by descending score
    match_ptr,  # [N] changed in place where a kept box matches; the others are kept themselves
    N,
    K,
    iou_threshold,  # bits of a double
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Compares a block of boxes with the kept ones, by descending score, until all match one."""
    threshold = as_double(iou_threshold)
    target = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = target < N
    # a box that is kept matches itself already
    is_open = here & (tl.load(match_ptr + target, mask=here, other=0) < 0)
    target_boxes = load_box(boxes_ptr + target * 4, is_open)
    if classes_ptr is not None:
        label = tl.load(classes_ptr + target, mask=is_open, other=0)
    first = 0
    searching = tl.max(is_open.to(tl.int32), 0) > 0
    while searching:
        rank = first + tl.arange(0, TILE)
        exists = rank < K
        source = tl.load(keep_ptr + rank, mask=exists, other=0)
        iou = intersection_over_union(load_box(boxes_ptr + source * 4, exists), target_boxes)
        covers = (iou > threshold.to(iou.dtype)) & exists[:, None]
        if classes_ptr is not None:
            covers &= tl.load(classes_ptr + source, mask=exists, other=0)[:, None] == label[None, :]
        best = tl.min(tl.where(covers, rank[:, None], K), 0)
        matched = is_open & (best < K)
        tl.store(match_ptr + target, tl.load(keep_ptr + best, mask=matched), mask=matched)
        is_open = is_open & ~matched
        first += TILE
        searching = (first < K) & (tl.max(is_open.to(tl.int32), 0) > 0)


def _gather_boxes(boxes: Tensor, order: Tensor) -> Tensor:
    return boxes.gather(1, order[..., None].expand(-1, -1, boxes.shape[2]))


def launch_nms_padded(
    boxes: Tensor,  # [B, N, columns]
    scores: Tensor,  # [B, N]
    idxs: Tensor | None,  # [B, N]
    iou_threshold: float,
    score_threshold: float | None,
    max_output: int,
) -> tuple[Tensor, Tensor]:
    """Indices [B, max_output] in descending order of score, padded with -1, and counts [B]."""
    B, N = scores.shape
    kind = COLUMNS.index(boxes.shape[2])
    block, tile = BLOCK, TILE
    suppress: dict[str, object] = {"num_warps": SUPPRESS_WARPS}
    settle: dict[str, object] = {"num_warps": SETTLE_WARPS}
    if kind != UPRIGHT.value:
        block, tile = ROTATED_BLOCK, ROTATED_TILE // (2 if boxes.dtype == torch.float64 else 1)
        suppress = settle = {"num_warps": ROTATED_WARPS, "maxnreg": ROTATED_REGISTERS}
    indices = boxes.new_empty((B, max_output), dtype=torch.int64)
    counts = boxes.new_empty((B,), dtype=torch.int64)
    if B * N * max_output == 0:
        return indices.fill_(-1), counts.zero_()

    order = by_class = scores.argsort(descending=True, stable=True)
    classes = origins = rank = None
    if idxs is not None:
        classes, rank = idxs.gather(1, order).sort(stable=True)
        origins = torch.searchsorted(classes, classes[:, ::block].contiguous())
        by_class = order.gather(1, rank)
    compute_type = torch.float64 if boxes.dtype == torch.float64 else torch.float32
    in_blocks = _gather_boxes(boxes.to(compute_type), by_class)
    if score_threshold is None:
        alive = torch.ones_like(by_class, dtype=torch.int8)
    else:
        alive = (scores > score_threshold).gather(1, by_class).to(torch.int8)

    blocks = triton.cdiv(N, block)
    threshold = threshold_bits(iou_threshold, compute_type)
    counts.zero_()
    most = min(max_output, N)
    with torch.cuda.device_of(boxes):
        for step in range(blocks):
            args = (
                in_blocks, classes, origins, alive, counts, N, step, most, threshold,
                kind, block, tile,
            )  # fmt: skip
            if step > 0:
                tiles = triton.cdiv(N - step * block, tile)
                _nms_suppress_kernel[(B * tiles,)](*args, **suppress, enable_fp_fusion=False)
            # without classes all boxes start in block 0, so only one block is due
            due = 1 if classes is None else blocks - step
            _nms_settle_kernel[(B * due,)](*args, **settle, enable_fp_fusion=False)
        kept = alive if rank is None else torch.empty_like(alive).scatter_(1, rank, alive)
        _nms_compact_kernel[(B,)](
            kept, order, indices, counts, N, max_output, BLOCK=COMPACT, num_warps=COMPACT_WARPS
        )
    return indices, counts


def launch_nms(
    boxes: Tensor,  # [N, columns]
    scores: Tensor,  # [N]
    idxs: Tensor | None,  # [N]
    iou_threshold: float,
    score_threshold: float | None = None,
    max_output: int | None = None,
) -> Tensor:
    """Indices of the kept boxes in descending order of score. See :func:`fastvision.ops.nms`,
    ``nms_rotated`` and ``nms_3d``, whose boxes have 4, 5 and 7 numbers."""
    idxs = None if idxs is None else idxs[None]
    most = len(boxes) if max_output is None else min(max_output, len(boxes))
    indices, counts = launch_nms_padded(
        boxes[None], scores[None], idxs, iou_threshold, score_threshold, most
    )
    return indices[0, : int(counts)]


def launch_nms_match(
    boxes: Tensor,  # [N, 4]
    scores: Tensor,  # [N]
    idxs: Tensor | None,  # [N]
    iou_threshold: float,
) -> tuple[Tensor, Tensor]:
    """Kept boxes [K] and the one that matches each box [N]. See
    :func:`fastvision.ops.nms_match`."""
    keep = launch_nms(boxes, scores, idxs, iou_threshold)
    match = torch.full_like(scores, -1, dtype=torch.int64).scatter_(0, keep, keep)
    if len(keep) < len(boxes):
        dtype = torch.float64 if boxes.dtype == torch.float64 else torch.float32
        with torch.cuda.device_of(boxes):
            _nms_match_kernel[(triton.cdiv(len(boxes), MATCH_BLOCK),)](
                boxes.to(dtype).contiguous(), None if idxs is None else idxs.contiguous(),
                keep, match, len(boxes), len(keep), threshold_bits(iou_threshold, dtype),
                BLOCK=MATCH_BLOCK, TILE=MATCH_TILE, num_warps=MATCH_WARPS, enable_fp_fusion=False,
            )  # fmt: skip
    return keep, match
