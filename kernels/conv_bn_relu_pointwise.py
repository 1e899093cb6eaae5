"""The epilogue of conv_bn_relu alone: for another library's convolution, or the parts of a sum."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common.convolution import epilogue, unit_of
from .configs.conv_bn_relu import POINTWISE_WARPS, pointwise_block


@triton.jit(do_not_specialize=["rows", "parts", "channels", "negative_slope"])
def _pointwise_kernel(
    parts_ptr,  # [parts, rows, columns], added in order
    scale_ptr,  # [channels] float32, or None
    shift_ptr,  # [channels] float32, or None
    residual_ptr,  # [rows, columns], or None
    output_ptr,  # [rows, columns]; may be the only part
    rows,
    column_units,
    parts,
    channels,
    negative_slope,
    UNIT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,  # a column is a channel; otherwise a row is one of an image
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    columns = column_units * UNIT
    column_blocks = tl.cdiv(columns, BLOCK_N)
    row = tl.program_id(0) // column_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(0) % column_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    offset = row.to(tl.int64)[:, None] * columns + column[None, :]

    acc = tl.load(parts_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    part_size = rows.to(tl.int64) * columns
    for part in range(1, parts):
        acc += tl.load(parts_ptr + part * part_size + offset, mask=mask, other=0.0).to(tl.float32)
    if CHANNELS_LAST:
        acc = epilogue(
            acc, column, column < columns, offset, mask, scale_ptr, shift_ptr, residual_ptr,
            negative_slope, 1, ACTIVATION,
        )  # fmt: skip
    else:
        acc = epilogue(
            acc, row % channels, row < rows, offset, mask, scale_ptr, shift_ptr, residual_ptr,
            negative_slope, 0, ACTIVATION,
        )  # fmt: skip
    tl.store(output_ptr + offset, acc.to(output_ptr.dtype.element_ty), mask=mask)


def launch_pointwise(
    parts: Tensor,  # one or more with output's size and layout, in any floating-point dtype
    scale: Tensor | None,  # [K] float32
    shift: Tensor | None,  # [K] float32
    residual: Tensor | None,  # like output
    output: Tensor,  # [N, K, OH, OW], contiguous or channels_last; may be the only part
    activation: int,
    negative_slope: float,
) -> None:
    """activation(sum(parts) * scale + shift + residual), rounded from float32 once."""
    if output.numel() == 0:
        return
    N, K, OH, OW = output.shape
    channels_last = output.is_contiguous(memory_format=torch.channels_last)
    rows, columns = (N * OH * OW, K) if channels_last else (N * K, OH * OW)
    unit = unit_of(columns)
    block_m, block_n = pointwise_block(columns)
    with torch.cuda.device_of(output):
        _pointwise_kernel[(triton.cdiv(rows, block_m) * triton.cdiv(columns, block_n),)](
            parts,
            scale,
            shift,
            residual,
            output,
            rows,
            columns // unit,
            parts.numel() // output.numel(),
            K,
            negative_slope,
            UNIT=unit,
            CHANNELS_LAST=channels_last,
            ACTIVATION=activation,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            num_warps=POINTWISE_WARPS,
        )
