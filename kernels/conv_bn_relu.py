"""Convolution with scale, shift, residual and activation in its epilogue.

The general kernel is an implicit GEMM of [M, R*S*C] pixels and [R*S*C, K] weights per group, where
M counts the N*OH*OW output pixels. Each row's address and its taps inside the image are computed
once, and a step along the reduction adds the same offset to all rows (Chetlur et al. 2014,
section 3). 1x1 convolutions need none of this.

If the output has too few tiles for the device, the reduction is split. The parts go to a workspace,
and the pointwise kernel adds them in order, so results are deterministic.

Weights are in the input's dtype. Batch normalization is a float32 scale and shift of the float32
sum, so only the result is rounded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common.convolution import epilogue, exceeds_int32, unit_of
from .configs.conv_bn_relu import FOLD_BLOCK, Tile, default_tile, is_flat
from .conv_bn_relu_depthwise import launch_depthwise
from .conv_bn_relu_pointwise import launch_pointwise

MAX_PIXELS = 2**31 - 4096  # per batch; the rows of the last tile are counted in 32 bits
MAX_TAPS = 31  # per axis; a bit mask holds the taps inside the image
# Triton's dot uses tensor cores from this capability on; below, its code spills
DOT_CAPABILITY = (8, 0)


@triton.jit
def _inside(start, step, extent, TAPS: tl.constexpr):
    """A mask whose bit t is set if ``start + t * step`` is in [0, extent)."""
    bits = tl.zeros_like(start)
    for t in tl.static_range(TAPS):
        position = start + t * step
        bits |= ((position >= 0) & (position < extent)).to(tl.int32) << t
    return bits


@triton.jit(do_not_specialize=["N", "negative_slope"])
def _conv_kernel(
    input_ptr,  # [N, H, W, C]
    weight_ptr,  # [K, R, S, C / groups]
    scale_ptr,  # [K] float32, or None
    shift_ptr,  # [K] float32, or None
    residual_ptr,  # like output, or None
    output_ptr,  # [N, OH, OW, K]; [splits, ...] float32 sums if IS_SPLIT
    N,
    H,
    W,
    OH,
    OW,
    C_UNITS,  # channels per group, in units of UNIT_C
    K_UNITS,
    groups,
    stride_h,
    stride_w,
    pad_top,
    pad_left,
    dilation_h,
    dilation_w,
    split_steps,  # steps of the reduction per split
    negative_slope,
    R: tl.constexpr,
    S: tl.constexpr,
    UNIT_C: tl.constexpr,  # a known divisor of the sizes, which enables wide loads
    UNIT_K: tl.constexpr,
    PADDED: tl.constexpr,  # taps may lie outside the image
    DENSE: tl.constexpr,  # 1x1 and stride 1: input rows are output rows
    FLAT_C: tl.constexpr,  # channels per group if a tile spans taps, else 0
    INT64: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    TF32: tl.constexpr,  # float32 products on tensor cores
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    C = C_UNITS * UNIT_C  # per group
    K = K_UNITS * UNIT_K
    P = OH * OW
    M = N * P
    # tiles in bands of GROUP_M rows, so that concurrent ones share rows and columns in L2
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(K, BLOCK_N)
    tile = tl.program_id(0) % (tiles_m * tiles_n)
    group = tl.program_id(0) // (tiles_m * tiles_n) % groups
    split = tl.program_id(0) // (tiles_m * tiles_n) // groups
    band = tile // (GROUP_M * tiles_n)
    rows = tl.minimum(tiles_m - band * GROUP_M, GROUP_M)
    within = tile % (GROUP_M * tiles_n)
    m = (band * GROUP_M + within % rows) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = within // rows * BLOCK_N + tl.arange(0, BLOCK_N)
    m_mask = m < M

    if DENSE:
        base = m
        row_taps = m
        col_taps = m
    else:
        h = m % P // OW * stride_h - pad_top
        w = m % OW * stride_w - pad_left
        base = (m // P * H + h) * W + w
        if PADDED:
            row_taps = _inside(h, dilation_h, H, R)
            col_taps = _inside(w, dilation_w, W, S)
    if INT64:
        base = base.to(tl.int64)
        group = group.to(tl.int64)
    row_ptr = input_ptr + base * (C * groups) + group * C  # [BLOCK_M]
    reduction = R * S * C
    column_ptr = weight_ptr + (group * K + n) * reduction  # [BLOCK_N]
    n_mask = n < K

    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if FLAT_C > 0:
        steps = tl.cdiv(R * S * FLAT_C, BLOCK_K)
    else:
        channel_steps = tl.cdiv(C, BLOCK_K)
        steps = R * S * channel_steps
    first = 0
    last = steps
    if IS_SPLIT:
        first = split * split_steps
        last = tl.minimum(first + split_steps, steps)
    for step in range(first, last):
        if FLAT_C > 0:
            q = step * BLOCK_K + tl.arange(0, BLOCK_K)
            q_mask = q < R * S * FLAT_C
            c = q % FLAT_C
            r = q // FLAT_C // S
            s = q // FLAT_C % S
            offset = (r * dilation_h * W + s * dilation_w) * (C * groups) + c
            mask = m_mask[:, None] & q_mask[None, :]
            if PADDED:
                mask &= (
                    (row_taps[:, None] >> r[None, :]) & (col_taps[:, None] >> s[None, :]) & 1
                ) > 0
            a = tl.load(row_ptr[:, None] + offset[None, :], mask=mask, other=0.0)
        else:
            if R * S == 1:
                r = 0
                s = 0
                c = step * BLOCK_K + tl.arange(0, BLOCK_K)
                q = c
            else:
                tap = step // channel_steps
                r = tap // S
                s = tap % S
                c = (step - tap * channel_steps) * BLOCK_K + tl.arange(0, BLOCK_K)
                q = tap * C + c
            mask = m_mask
            if PADDED:
                mask &= ((row_taps >> r) & (col_taps >> s) & 1) > 0
            q_mask = c < C
            offset = (r * dilation_h * W + s * dilation_w) * (C * groups) + c
            a = tl.load(
                row_ptr[:, None] + offset[None, :],
                mask=mask[:, None] & q_mask[None, :],
                other=0.0,
            )
        b = tl.load(
            column_ptr[None, :] + q[:, None], mask=q_mask[:, None] & n_mask[None, :], other=0.0
        )
        acc = tl.dot(a, b, acc, input_precision="tf32" if TF32 else "ieee")

    k = group * K + n
    if INT64:
        m = m.to(tl.int64)
    offset = m[:, None] * (K * groups) + k[None, :]
    mask = m_mask[:, None] & n_mask[None, :]
    if IS_SPLIT:
        output_ptr += split.to(tl.int64) * M * (K * groups)
    else:
        acc = epilogue(
            acc, k, n_mask, offset, mask, scale_ptr, shift_ptr, residual_ptr, negative_slope, 1,
            ACTIVATION,
        )  # fmt: skip
    tl.store(output_ptr + offset, acc.to(output_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["eps"])
def _fold_kernel(
    bias_ptr,  # [K] of the convolution, or None
    weight_ptr,  # [K] of the normalization, or None
    shift_ptr,  # [K] of the normalization, or None
    mean_ptr,  # [K]
    var_ptr,  # [K]
    scale_out_ptr,  # [K] float32
    shift_out_ptr,  # [K] float32
    K,
    eps,
    BLOCK: tl.constexpr,
):
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = k < K
    var = tl.load(var_ptr + k, mask=mask, other=1.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(var + eps)
    if weight_ptr is not None:
        scale *= tl.load(weight_ptr + k, mask=mask, other=0.0).to(tl.float32)
    shift = -tl.load(mean_ptr + k, mask=mask, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        shift += tl.load(bias_ptr + k, mask=mask, other=0.0).to(tl.float32)
    shift *= scale
    if shift_ptr is not None:
        shift += tl.load(shift_ptr + k, mask=mask, other=0.0).to(tl.float32)
    tl.store(scale_out_ptr + k, scale, mask=mask)
    tl.store(shift_out_ptr + k, shift, mask=mask)


def unsupported(
    input: Tensor,
    weight: Tensor,  # [K, C / groups, R, S]
    output_pixels: int,  # N * OH * OW
) -> str | None:
    """The reason why :func:`launch_conv` cannot run this convolution, or None."""
    if input.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"it computes in float32, not {input.dtype}"
    if max(weight.shape[2:]) > MAX_TAPS:
        return f"a side of the kernel may have up to {MAX_TAPS} taps, got {list(weight.shape[2:])}"
    N, _, H, W = input.shape
    if max(N * H * W, output_pixels) > MAX_PIXELS:
        return f"input and output may have up to {MAX_PIXELS} pixels each"
    if input.is_cuda and weight.shape[1] != 1:
        capability = torch.cuda.get_device_capability(input.device)
        if capability < DOT_CAPABILITY:
            return f"it needs compute capability 8.0, this device has {capability}"
    return None


def launch_conv(
    input: Tensor,  # [N, C, H, W]
    weight: Tensor,  # [K, R, S, C / groups], or [R, S, K] if depthwise; input's dtype
    scale: Tensor | None,  # [K] float32
    shift: Tensor | None,  # [K] float32
    residual: Tensor | None,  # like output
    output: Tensor,  # [N, K, OH, OW] in input's dtype, contiguous or channels_last
    stride: Sequence[int],
    padding: Sequence[int],  # left, right, top, bottom
    dilation: Sequence[int],
    groups: int,
    activation: int,
    negative_slope: float,
    tf32: bool = False,  # float32 products may be rounded to 10 bits
    tile: Tile | None = None,
) -> None:
    """activation(conv(input, weight) * scale + shift + residual), rounded from float32 once."""
    if output.numel() == 0:
        return
    if input.is_cpu and input.dtype == torch.bfloat16:
        # Triton's interpreter computes bfloat16 incorrectly
        input, weight = input.float(), weight.float()
        residual = None if residual is None else residual.float()
    # the kernels gather and scatter channels: copying other formats is cheaper than striding
    input = input.contiguous(memory_format=torch.channels_last)
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    target = output
    if input.dtype != output.dtype or not output.is_contiguous(memory_format=torch.channels_last):
        target = torch.empty_like(output, dtype=input.dtype, memory_format=torch.channels_last)
    launch = launch_depthwise if weight.dim() == 3 else _launch_gemm
    with torch.cuda.device_of(input):
        launch(
            input, weight, scale, shift, residual, target, stride, padding, dilation, groups,
            activation, negative_slope, tf32, tile,
        )  # fmt: skip
    if target is not output:
        output.copy_(target)


def _launch_gemm(
    input: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    output: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: int,
    negative_slope: float,
    tf32: bool,
    tile: Tile | None,
) -> None:
    N, _, H, W = input.shape
    K, R, S, C = weight.shape
    K //= groups
    OH, OW = output.shape[2:]
    M = N * OH * OW
    if tile is None:
        tile = default_tile(M, K, C, R * S, groups, input.element_size(), tf32, input.device)
    flat = is_flat(C)
    steps = triton.cdiv(R * S * C, tile.block_k) if flat else R * S * triton.cdiv(C, tile.block_k)
    split_steps = triton.cdiv(max(steps, 1), tile.splits)
    splits = triton.cdiv(max(steps, 1), split_steps)
    target = output
    if splits > 1:
        target = torch.empty(splits * output.numel(), dtype=torch.float32, device=output.device)
    padded = any(padding)
    unit_c, unit_k = unit_of(C), unit_of(K)
    tiles = triton.cdiv(M, tile.block_m) * triton.cdiv(K, tile.block_n)
    _conv_kernel[(tiles * groups * splits,)](
        input,
        weight,
        scale,
        shift,
        residual,
        target,
        N,
        H,
        W,
        OH,
        OW,
        C // unit_c,
        K // unit_k,
        groups,
        *stride,
        padding[2],
        padding[0],
        *dilation,
        split_steps,
        negative_slope,
        R=R,
        S=S,
        UNIT_C=unit_c,
        UNIT_K=unit_k,
        PADDED=padded,
        DENSE=R * S == 1 and not padded and tuple(stride) == (1, 1),
        FLAT_C=C if flat else 0,
        INT64=exceeds_int32(input, weight, output),
        IS_SPLIT=splits > 1,
        ACTIVATION=activation,
        TF32=tf32,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        GROUP_M=8,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    if splits > 1:
        launch_pointwise(target, scale, shift, residual, output, activation, negative_slope)


def launch_fold(
    bias: Tensor | None,  # [K] of the convolution; these may have any floating-point dtype
    bn_weight: Tensor | None,  # [K]
    bn_bias: Tensor | None,  # [K]
    running_mean: Tensor,  # [K]
    running_var: Tensor,  # [K]
    eps: float,
    scale: Tensor,  # [K] float32
    shift: Tensor,  # [K] float32
) -> None:
    """Folds normalization and bias into a scale and shift for the epilogue, in one launch."""
    K = len(scale)
    with torch.cuda.device_of(scale):
        _fold_kernel[(triton.cdiv(K, FOLD_BLOCK),)](
            bias, bn_weight, bn_bias, running_mean, running_var, scale, shift, K, eps,
            BLOCK=FOLD_BLOCK,
        )  # fmt: skip
