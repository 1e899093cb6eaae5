"""Focal loss and, on request, its gradient, in one pass.

Sums are deterministic: each program stores its own in float64, and the last program to finish adds
them in order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common.focal import exp, negative_terms, soft_terms, whole_power
from .common.scalars import as_double, double_bits, select
from .configs import focal_loss as config

SUM_BLOCK = 1024

# do not specialize for row counts that are multiples of 16
_UNSPECIALIZED = ["rows", "counts", "positive", "negative", "gamma", "grad_scale", "tiles"]


@triton.jit
def _finish_sum(value, partials_ptr, ticket_ptr, total_ptr, SUM_BLOCK: tl.constexpr):
    """Stores this program's sum; the last program writes the total to ``total_ptr``."""
    programs = tl.num_programs(0)
    tl.store(partials_ptr + tl.program_id(0), value)
    tl.debug_barrier()
    if tl.atomic_add(ticket_ptr, 1, sem="acq_rel") == programs - 1:
        sums = tl.zeros([SUM_BLOCK], tl.float64)
        for first in range(0, programs, SUM_BLOCK):
            i = first + tl.arange(0, SUM_BLOCK)
            sums += tl.load(partials_ptr + i, mask=i < programs, other=0.0, cache_modifier=".cg")
        tl.store(total_ptr, tl.sum(sums, 0).to(total_ptr.dtype.element_ty))


@triton.jit
def _level_of(tile, tiles):
    """Level of a tile and its index within the level; ``tiles`` counts the tiles per level."""
    level = 0
    for i in tl.static_range(len(tiles) - 1):
        beyond = (level == i) & (tile >= tiles[i])
        level = tl.where(beyond, i + 1, level)
        tile = tl.where(beyond, tile - tiles[i], tile)
    return level, tile


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _labels_kernel(
    inputs,  # of each level [rows, K]
    labels,  # [rows] int64
    losses_ptr,  # [rows, K] of the one level, unless SUM
    grads,  # [rows, K] if GRAD
    partials_ptr,  # [programs]
    ticket_ptr,  # 0
    total_ptr,
    rows,  # of each level
    tiles,
    K,
    positive,  # bits of doubles
    negative,
    gamma,
    grad_scale,
    GAMMA: tl.constexpr,
    GRAD: tl.constexpr,
    SUM: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    SUM_BLOCK: tl.constexpr,
):
    dtype = tl.float64 if DOUBLE else tl.float32
    level, tile = _level_of(tl.program_id(0), tiles)
    count = select(rows, level)
    row = tile.to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    label = tl.load(select(labels, level) + row, mask=row < count, other=-2)[:, None]
    row = row[:, None]
    positive_weight = as_double(positive).to(dtype)
    negative_weight = as_double(negative).to(dtype)
    gamma = as_double(gamma).to(dtype)
    scale = as_double(grad_scale).to(dtype)
    inputs_ptr = select(inputs, level)
    acc = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], dtype)
    for first in range(0, K, BLOCK_COLUMNS):
        column = first + tl.arange(0, BLOCK_COLUMNS)[None, :]
        offset = row * K + column
        inside = (row < count) & (column < K)
        x = tl.load(inputs_ptr + offset, mask=inside, other=0.0).to(dtype)
        is_positive = label == column
        loss, grad = negative_terms(tl.where(is_positive, -x, x), gamma, GAMMA)
        weight = tl.where(is_positive, positive_weight, negative_weight)
        counts = inside & (label >= -1)
        loss = tl.where(counts, loss * weight, 0.0)
        loss = tl.where(label >= K, float("nan"), loss)
        if SUM:
            acc += tl.where(inside, loss, 0.0)
        else:
            tl.store(losses_ptr + offset, loss.to(losses_ptr.dtype.element_ty), mask=inside)
        if GRAD:
            grad *= tl.where(is_positive, -weight, weight) * scale
            grad = tl.where(counts, grad, 0.0)
            grad = tl.where(label >= K, float("nan"), grad)
            grads_ptr = select(grads, level)
            tl.store(grads_ptr + offset, grad.to(grads_ptr.dtype.element_ty), mask=inside)
    if SUM:
        value = tl.sum(tl.sum(acc, 1).to(tl.float64), 0)
        _finish_sum(value, partials_ptr, ticket_ptr, total_ptr, SUM_BLOCK)


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _numbers_kernel(
    inputs,  # of each level [count]
    targets,  # [count]
    losses_ptr,  # [count] of the one level, unless SUM
    grads,  # [count] if GRAD
    partials_ptr,  # [programs]
    ticket_ptr,  # 0
    total_ptr,
    counts,  # of each level
    tiles,
    positive,  # bits of doubles
    negative,
    gamma,
    grad_scale,
    GAMMA: tl.constexpr,
    GRAD: tl.constexpr,
    SUM: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
    SUM_BLOCK: tl.constexpr,
):
    dtype = tl.float64 if DOUBLE else tl.float32
    level, tile = _level_of(tl.program_id(0), tiles)
    offset = tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < select(counts, level)
    # past the end: a negative with no loss
    x = tl.load(select(inputs, level) + offset, mask=inside, other=float("-inf")).to(dtype)
    t = tl.load(select(targets, level) + offset, mask=inside, other=0.0).to(dtype)
    positive_weight = as_double(positive).to(dtype)
    negative_weight = as_double(negative).to(dtype)
    gamma = as_double(gamma).to(dtype)
    if tl.max((t != 0).to(tl.int32), 0) == 0:  # true for nearly all labels of a detector
        loss, grad = negative_terms(x, gamma, GAMMA)
        loss *= negative_weight
        grad *= negative_weight
    else:
        loss, grad = soft_terms(x, t, positive_weight, negative_weight, gamma, GAMMA)
    if GRAD:
        grad *= as_double(grad_scale).to(dtype)
        grads_ptr = select(grads, level)
        tl.store(grads_ptr + offset, grad.to(grads_ptr.dtype.element_ty), mask=inside)
    if SUM:
        value = tl.sum(tl.where(inside, loss, 0.0).to(tl.float64), 0)
        _finish_sum(value, partials_ptr, ticket_ptr, total_ptr, SUM_BLOCK)
    else:
        tl.store(losses_ptr + offset, loss.to(losses_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _softmax_kernel(
    inputs_ptr,  # [rows, K]
    labels_ptr,  # [rows] int64
    weights_ptr,  # [K] or None
    losses_ptr,  # [rows], unless SUM
    grads_ptr,  # [rows, K] if GRAD
    partials_ptr,  # [programs]
    ticket_ptr,  # 0
    total_ptr,
    rows,
    K,
    gamma,  # bits of doubles
    grad_scale,
    ignore_index,
    GAMMA: tl.constexpr,
    GRAD: tl.constexpr,
    SUM: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SUM_BLOCK: tl.constexpr,
):
    dtype = tl.float64 if DOUBLE else tl.float32
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside_row = row < rows
    label = tl.load(labels_ptr + row, mask=inside_row, other=0)
    ignored = (label == ignore_index) | (row >= rows)
    bad = ((label < 0) | (label >= K)) & (ignored == 0)
    column = tl.arange(0, BLOCK_K)[None, :]
    row_ptr = inputs_ptr + row[:, None] * K

    most = tl.full([BLOCK_ROWS], float("-inf"), dtype)
    for first in range(0, K, BLOCK_K):
        inside = inside_row[:, None] & (first + column < K)
        x = tl.load(row_ptr + (first + column), mask=inside, other=float("-inf")).to(dtype)
        most = tl.maximum(most, tl.max(x, 1))
    most = tl.where(inside_row, most, 0.0)
    # 1 - p from the other classes, to avoid cancellation
    others = tl.zeros([BLOCK_ROWS], dtype)
    for first in range(0, K, BLOCK_K):
        inside = inside_row[:, None] & (first + column < K)
        x = tl.load(row_ptr + (first + column), mask=inside, other=float("-inf")).to(dtype)
        e = tl.where(inside & (first + column != label[:, None]), exp(x - most[:, None]), 0.0)
        others += tl.sum(e, 1)
    known = inside_row & (label >= 0) & (label < K)
    own_x = tl.load(inputs_ptr + row * K + label, mask=known, other=0.0).to(dtype) - most
    own = exp(own_x)
    scale = 1.0 / (own + others)
    p = own * scale
    rest = others * scale
    # log(1 + x) without cancellation for any x (Kahan)
    sum_ = 1.0 + others
    log1p = tl.where(sum_ == 1.0, others, tl.log(sum_) * (others / (sum_ - 1.0)))
    log_p = tl.where(own_x == 0, -log1p, own_x - tl.log(own + others))

    gamma = as_double(gamma).to(dtype)
    modulator = whole_power(rest, GAMMA) if GAMMA >= 0 else exp(gamma * tl.log(rest))
    # p log(p) and log(p) / (1 - p) have the limits 0 and -1
    slope = tl.where(p == 0, 0.0, p * log_p / rest)
    slope = tl.where(rest == 0, -1.0, slope)
    loss = -modulator * log_p
    factor = modulator * (1.0 - gamma * slope)
    if weights_ptr is not None:
        weight = tl.load(weights_ptr + label, mask=known, other=0.0).to(dtype)
        loss *= weight
        factor *= weight
    loss = tl.where(ignored, 0.0, tl.where(bad, float("nan"), loss))
    if SUM:
        value = tl.sum(loss.to(tl.float64), 0)
        _finish_sum(value, partials_ptr, ticket_ptr, total_ptr, SUM_BLOCK)
    else:
        tl.store(losses_ptr + row, loss.to(losses_ptr.dtype.element_ty), mask=inside_row)
    if GRAD:
        factor = (factor * as_double(grad_scale).to(dtype))[:, None]
        for first in range(0, K, BLOCK_K):
            inside = inside_row[:, None] & (first + column < K)
            x = tl.load(row_ptr + (first + column), mask=inside, other=float("-inf")).to(dtype)
            share = exp(x - most[:, None]) * scale[:, None]
            grad = factor * tl.where(first + column == label[:, None], -rest[:, None], share)
            grad = tl.where(ignored[:, None], 0.0, tl.where(bad[:, None], float("nan"), grad))
            out = grads_ptr + row[:, None] * K + (first + column)
            tl.store(out, grad.to(grads_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["count", "scale"])
def _scale_kernel(grads_ptr, factor_ptr, count, scale, BLOCK: tl.constexpr):
    factor = tl.load(factor_ptr)
    product = (factor.to(tl.float64) * as_double(scale)).to(factor.dtype)
    if product != 1.0:
        offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        grad = tl.load(grads_ptr + offset, mask=offset < count, other=0.0)
        scaled = (grad.to(factor.dtype) * product).to(grads_ptr.dtype.element_ty)
        tl.store(grads_ptr + offset, scaled, mask=offset < count)


def whole_gamma(gamma: float) -> int:
    """The kernels' constant GAMMA: gamma if it is 0, 1, 2 or 3, otherwise -1."""
    return int(gamma) if gamma in (0, 1, 2, 3) else -1


def _total(first: Tensor, programs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Buffers for partial sums, ticket and total."""
    dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    partials = first.new_empty(programs, dtype=torch.float64)
    return partials, first.new_zeros(1, dtype=torch.int32), first.new_empty((), dtype=dtype)


def launch_sigmoid_focal_loss(
    inputs: list[Tensor],  # [..., K] each
    targets: list[Tensor],  # of the same shapes, or int64 labels [...]
    alpha: float,
    gamma: float,
    reduce: bool,
    grad_scale: float,
) -> list[Tensor]:
    """The loss or its sum, and the gradients if grad_scale is not 0.

    See :func:`fastvision.ops.sigmoid_focal_loss`.
    """
    inputs = [x.contiguous() for x in inputs]
    targets = [t.contiguous() for t in targets]
    first = inputs[0]
    labels = targets[0].dtype == torch.int64
    sizes = tuple(t.numel() for t in targets)
    block = config.BLOCK_ROWS if labels else config.BLOCK_NUMBERS
    tiles = tuple(triton.cdiv(size, block) for size in sizes)
    programs = sum(tiles)
    grads = [torch.empty_like(x) for x in inputs] if grad_scale else []
    partials, ticket, total = _total(first, programs)
    losses = total if reduce else torch.empty_like(first)
    if programs == 0:
        return [total.zero_() if reduce else losses, *grads]
    options = {
        "GAMMA": whole_gamma(gamma),
        "GRAD": bool(grad_scale),
        "SUM": reduce,
        "DOUBLE": first.dtype == torch.float64,
        "SUM_BLOCK": SUM_BLOCK,
        "enable_fp_fusion": False,
    }
    weights = (1.0, 1.0) if alpha < 0 else (alpha, 1 - alpha)
    numbers = [double_bits(value) for value in (*weights, gamma, grad_scale)]
    tensors = (
        tuple(inputs), tuple(targets), losses, tuple(grads) or tuple(inputs), partials, ticket,
        total,
    )  # fmt: skip
    with torch.cuda.device_of(first):
        if labels:
            _labels_kernel[(programs,)](
                *tensors, sizes, tiles, first.shape[-1], *numbers, **options,
                BLOCK_ROWS=config.BLOCK_ROWS, BLOCK_COLUMNS=config.BLOCK_COLUMNS,
                num_warps=config.LABELS_WARPS,
            )  # fmt: skip
        else:
            _numbers_kernel[(programs,)](
                *tensors, sizes, tiles, *numbers, **options,
                BLOCK=config.BLOCK_NUMBERS, num_warps=config.NUMBERS_WARPS,
            )  # fmt: skip
    return [losses, *grads]


def launch_softmax_focal_loss(
    inputs: Tensor,  # [..., K]
    targets: Tensor,  # [...] int64
    weights: Tensor | None,  # [K]
    gamma: float,
    ignore_index: int,
    reduce: bool,
    grad_scale: float,
) -> list[Tensor]:
    """The losses or their sum, and the gradient if grad_scale is not 0.

    See :func:`fastvision.ops.softmax_focal_loss`.
    """
    inputs, targets = inputs.contiguous(), targets.contiguous()
    rows, classes = targets.numel(), inputs.shape[-1]
    block_rows, block_k, num_warps = config.softmax_tile(classes)
    programs = triton.cdiv(rows, block_rows)
    grads = [torch.empty_like(inputs)] if grad_scale else []
    partials, ticket, total = _total(inputs, programs)
    losses = total if reduce else inputs.new_empty(targets.shape)
    if programs == 0:
        return [total.zero_() if reduce else losses, *grads]
    with torch.cuda.device_of(inputs):
        _softmax_kernel[(programs,)](
            inputs,
            targets,
            None if weights is None else weights.contiguous(),
            losses,
            grads[0] if grads else inputs,
            partials,
            ticket,
            total,
            rows,
            classes,
            double_bits(gamma),
            double_bits(grad_scale),
            ignore_index,
            GAMMA=whole_gamma(gamma),
            GRAD=bool(grad_scale),
            SUM=reduce,
            DOUBLE=inputs.dtype == torch.float64,
            BLOCK_ROWS=block_rows,
            BLOCK_K=block_k,
            SUM_BLOCK=SUM_BLOCK,
            num_warps=num_warps,
            enable_fp_fusion=False,
        )
    return [losses, *grads]


def launch_focal_loss_scale(grads: Sequence[Tensor], factor: Tensor, scale: float) -> None:
    """Computes grads *= factor * scale in place, unless the product is 1."""
    for grad in grads:
        if grad.numel():
            with torch.cuda.device_of(grad):
                _scale_kernel[(triton.cdiv(grad.numel(), config.BLOCK_SCALE),)](
                    grad, factor, grad.numel(), double_bits(scale), BLOCK=config.BLOCK_SCALE
                )
