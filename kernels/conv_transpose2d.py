"""Transposed convolution without inserted zeros and without atomics.

Outputs whose positions are equal modulo the stride form a phase and share their taps. Each phase is
a dense convolution with stride 1: an implicit GEMM over its pixels and over taps times channels
(Dumoulin and Visin 2016, section 4). All phases run in one launch, those with the most taps first.
With a kernel as large as the stride, this is a GEMM followed by a pixel shuffle. Depthwise and
separable filters have separate kernels, since there is no matrix to multiply.

Weights are in the input's dtype. Batch normalization is a float32 scale and shift of the float32
sum, so only the result is rounded.
"""

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common.activation import activate
from .common.convolution import unit_of
from .configs.conv_transpose2d import ELEMENTWISE_WARPS, SEPARABLE_BLOCK, depthwise_block, tile

# a phase's row of the table, per axis: taps, first tap, first input pixel, first output pixel,
# number of outputs
_COLUMNS = tl.constexpr(10)


@triton.jit
def _epilogue(
    acc,  # float32
    k,  # output channels, of a shape that broadcasts with acc
    k_mask,
    offset,  # in the output
    mask,
    scale_ptr,
    shift_ptr,
    residual_ptr,
    negative_slope,
    ACTIVATION: tl.constexpr,
):
    if scale_ptr is not None:
        acc *= tl.load(scale_ptr + k, mask=k_mask, other=0.0)
    if shift_ptr is not None:
        acc += tl.load(shift_ptr + k, mask=k_mask, other=0.0)
    if residual_ptr is not None:
        acc += tl.load(residual_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    return activate(acc, negative_slope, ACTIVATION)


@triton.jit
def _pixels(m, row_ptr, N, OH, OW, stride_h, stride_w):
    """Mask, image, first input row and column, and output pixel of the phase's pixels ``m``."""
    grid_h = tl.load(row_ptr + 4)
    grid_w = tl.load(row_ptr + 9)
    n = m // (grid_h * grid_w)
    i = m // grid_w % grid_h
    j = m % grid_w
    oy = tl.load(row_ptr + 3) + i * stride_h
    ox = tl.load(row_ptr + 8) + j * stride_w
    y = i + tl.load(row_ptr + 2)
    x = j + tl.load(row_ptr + 7)
    return n < N, n, y, x, (n * OH + oy) * OW + ox


@triton.jit(do_not_specialize=["N", "max_pixels", "phases", "negative_slope"])
def _conv_transpose2d_kernel(
    input_ptr,  # [N, H, W, C]
    weight_ptr,  # [groups, K / groups, R, S, C / groups]
    scale_ptr,  # [K] float32, or None
    shift_ptr,  # [K] float32, or None
    residual_ptr,  # like output, or None
    phases_ptr,  # [phases, 10]
    output_ptr,  # [N, OH, OW, K]
    N,
    H,
    W,
    OH,
    OW,
    C_UNITS,  # channels per group, in units of UNIT_C
    K_UNITS,
    groups,
    max_pixels,  # per phase and image
    phases,
    stride_h,
    stride_w,
    tap_step_h,  # between the taps of a phase
    tap_step_w,
    in_step_h,  # between the input pixels of these taps
    in_step_w,
    negative_slope,
    R: tl.constexpr,
    S: tl.constexpr,
    UNIT_C: tl.constexpr,  # a known divisor of the sizes, which enables wide loads
    UNIT_K: tl.constexpr,
    EQUAL: tl.constexpr,  # all phases have as many taps, so adjacent ones share the input in L2
    INT64: tl.constexpr,
    ACTIVATION: tl.constexpr,
    TF32: tl.constexpr,  # float32 products on tensor cores
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    C = C_UNITS * UNIT_C  # per group
    K = K_UNITS * UNIT_K
    tiles_n = tl.cdiv(K, BLOCK_N)
    tiles = tl.cdiv(N * max_pixels, BLOCK_M) * tiles_n
    group = tl.program_id(0) // (tiles * phases)
    within = tl.program_id(0) % (tiles * phases)
    if EQUAL:
        phase = within % phases
        tile = within // phases
    else:
        phase = within // tiles
        tile = within % tiles
    row_ptr = phases_ptr + phase * _COLUMNS
    m = tile // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tile % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k_mask = k < K
    m_mask, n, y, x, pixel = _pixels(m, row_ptr, N, OH, OW, stride_h, stride_w)
    base = (n * H + y) * W + x
    if INT64:
        base = base.to(tl.int64)
        pixel = pixel.to(tl.int64)
        group = group.to(tl.int64)
    pixel_ptr = input_ptr + base * (C * groups) + group * C  # [BLOCK_M]
    column_ptr = weight_ptr + (group * K + k) * (R * S * C)  # [BLOCK_N]

    taps_h = tl.load(row_ptr)
    taps_w = tl.load(row_ptr + 5)
    first_h = tl.load(row_ptr + 1)
    first_w = tl.load(row_ptr + 6)
    channel_steps = tl.cdiv(C, BLOCK_K)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(taps_h * taps_w * channel_steps):
        tap = step // channel_steps
        r = tap // taps_w
        s = tap % taps_w
        c = (step - tap * channel_steps) * BLOCK_K + tl.arange(0, BLOCK_K)
        c_mask = c < C
        row = y - r * in_step_h
        column = x - s * in_step_w
        inside = m_mask & (row >= 0) & (row < H) & (column >= 0) & (column < W)
        offset = c - (r * in_step_h * W + s * in_step_w) * (C * groups)
        a = tl.load(
            pixel_ptr[:, None] + offset[None, :],
            mask=inside[:, None] & c_mask[None, :],
            other=0.0,
        )
        place = (first_h + r * tap_step_h) * S + first_w + s * tap_step_w
        b = tl.load(
            column_ptr[None, :] + (place * C + c)[:, None],
            mask=c_mask[:, None] & k_mask[None, :],
            other=0.0,
        )
        acc = tl.dot(a, b, acc, input_precision="tf32" if TF32 else "ieee")

    channel = group * K + k
    offset = pixel[:, None] * (K * groups) + channel[None, :]
    mask = m_mask[:, None] & k_mask[None, :]
    acc = _epilogue(
        acc, channel[None, :], k_mask[None, :], offset, mask, scale_ptr, shift_ptr, residual_ptr,
        negative_slope, ACTIVATION,
    )  # fmt: skip
    tl.store(output_ptr + offset, acc.to(output_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["N", "max_pixels", "negative_slope"])
def _depthwise_kernel(
    input_ptr,  # [N, H, W, C]
    weight_ptr,  # [K, R, S]
    scale_ptr,  # [K] float32, or None
    shift_ptr,  # [K] float32, or None
    residual_ptr,  # like output, or None
    phases_ptr,  # [phases, 10]
    output_ptr,  # [N, OH, OW, K]
    N,
    H,
    W,
    OH,
    OW,
    C_UNITS,
    max_pixels,
    stride_h,
    stride_w,
    tap_step_h,
    tap_step_w,
    in_step_h,
    in_step_w,
    negative_slope,
    R: tl.constexpr,
    S: tl.constexpr,
    UNIT_C: tl.constexpr,
    MULTIPLIER: tl.constexpr,  # output channels per input channel
    INT64: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    C = C_UNITS * UNIT_C
    K = C * MULTIPLIER
    blocks = tl.cdiv(K, BLOCK_N)
    rows = tl.cdiv(N * max_pixels, BLOCK_M)
    row_ptr = phases_ptr + tl.program_id(0) // blocks // rows * _COLUMNS
    m = tl.program_id(0) // blocks % rows * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    k_mask = k < K
    m_mask, n, y, x, pixel = _pixels(m, row_ptr, N, OH, OW, stride_h, stride_w)
    base = (n * H + y) * W + x
    if INT64:
        base = base.to(tl.int64)
        pixel = pixel.to(tl.int64)
    pixel_ptr = input_ptr + base[:, None] * C + (k // MULTIPLIER)[None, :]

    taps_w = tl.load(row_ptr + 5)
    first_h = tl.load(row_ptr + 1)
    first_w = tl.load(row_ptr + 6)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for r in range(tl.load(row_ptr)):
        row = y - r * in_step_h
        row_mask = m_mask & (row >= 0) & (row < H)
        for s in range(taps_w):
            column = x - s * in_step_w
            mask = (row_mask & (column >= 0) & (column < W))[:, None] & k_mask[None, :]
            value = tl.load(pixel_ptr - (r * in_step_h * W + s * in_step_w) * C, mask, other=0.0)
            place = (first_h + r * tap_step_h) * S + first_w + s * tap_step_w
            weight = tl.load(weight_ptr + k * (R * S) + place, mask=k_mask, other=0.0)
            # pixels outside must not multiply an infinite weight
            product = value.to(tl.float32) * weight.to(tl.float32)[None, :]
            acc += tl.where(mask, product, 0.0)

    offset = pixel[:, None] * K + k[None, :]
    mask = m_mask[:, None] & k_mask[None, :]
    acc = _epilogue(
        acc, k[None, :], k_mask[None, :], offset, mask, scale_ptr, shift_ptr, residual_ptr,
        negative_slope, ACTIVATION,
    )  # fmt: skip
    tl.store(output_ptr + offset, acc.to(output_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["negative_slope"])
def _separable_kernel(
    input_ptr,  # [N, C, H, W], or [N, H, W, C] if CHANNELS_LAST
    taps_ptr,  # [R + S] float32: the rows' factors, then the columns'
    scale_ptr,  # [C] float32
    shift_ptr,  # [C] float32, or None
    residual_ptr,  # like output, or None
    output_ptr,  # [N, C, OH, OW], or [N, OH, OW, C]
    C,
    H,
    W,
    OH,
    OW,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    negative_slope,
    R: tl.constexpr,
    S: tl.constexpr,
    TAPS_H: tl.constexpr,  # at most, per output
    TAPS_W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # a program computes part of one output row, so its vertical taps are scalars
    length = OW * C if CHANNELS_LAST else OW
    blocks = tl.cdiv(length, BLOCK)
    line = (tl.program_id(0) // blocks).to(tl.int64)
    i = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = i < length
    u = (line % OH).to(tl.int32) + padding_h
    plane = line // OH  # an image, or a channel of one
    if CHANNELS_LAST:
        c = i % C
        v = i // C + padding_w
        pixel_size = C
        input_ptr += plane * H * W * C
        channel_offset = c
    else:
        c = (plane % C).to(tl.int32) + tl.zeros_like(i)
        v = i + padding_w
        pixel_size = 1
        input_ptr += plane * H * W
        channel_offset = tl.zeros_like(i)

    acc = tl.zeros([BLOCK], tl.float32)
    for t in range(TAPS_H):
        place = u % stride_h + t * stride_h
        row = u // stride_h - t
        valid = (place < R) & (row >= 0) & (row < H)
        weight = tl.load(taps_ptr + place, mask=valid, other=0.0)
        for s in tl.static_range(TAPS_W):
            at = v % stride_w + s * stride_w
            column = v // stride_w - s
            inside = mask & valid & (at < S) & (column >= 0) & (column < W)
            value = tl.load(
                input_ptr + (row.to(tl.int64) * W + column) * pixel_size + channel_offset,
                mask=inside,
                other=0.0,
            )
            tap = tl.load(taps_ptr + R + at, mask=inside, other=0.0)
            acc += value.to(tl.float32) * (weight * tap)

    offset = line * length + i
    acc = _epilogue(
        acc, c, mask, offset, mask, scale_ptr, shift_ptr, residual_ptr, negative_slope, ACTIVATION
    )
    tl.store(output_ptr + offset, acc.to(output_ptr.dtype.element_ty), mask=mask)


def _axis(
    size: int, output: int, taps: int, stride: int, padding: int, dilation: int
) -> list[tuple[int, ...]]:
    """Part of the table's row for each phase of one axis that has outputs."""
    step = stride // math.gcd(stride, dilation)
    phases = []
    for first_output in range(min(stride, output)):
        u = first_output + padding
        first_tap = next((t for t in range(step) if (u - t * dilation) % stride == 0), taps)
        count = (taps - first_tap - 1) // step + 1 if first_tap < taps else 0
        first_input = (u - first_tap * dilation) // stride
        outputs = (output - first_output - 1) // stride + 1
        phases.append((count, first_tap if count else 0, first_input, first_output, outputs))
    return phases


@functools.lru_cache(maxsize=256)
def _phases(
    sizes: tuple[int, int],
    outputs: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    device: torch.device,
) -> tuple[Tensor, int, bool]:
    """The table, most taps first; the largest output count; whether all phases are equal."""
    rows, columns = (
        _axis(*of_axis)
        for of_axis in zip(sizes, outputs, kernel, stride, padding, dilation, strict=True)
    )
    table = [y + x for y in rows for x in columns]
    table.sort(key=lambda phase: -phase[0] * phase[5])
    most = max(phase[4] * phase[9] for phase in table)
    equal = len({(phase[0] * phase[5], phase[4] * phase[9]) for phase in table}) == 1
    return torch.tensor(table, dtype=torch.int32, device=device), most, equal


def _for_interpreter(x: Tensor) -> Tensor:
    # Triton's interpreter multiplies bfloat16 matrices as integers
    return x.float() if x.device.type == "cpu" and x.dtype == torch.bfloat16 else x


def launch_conv_transpose2d(
    input: Tensor,  # [N, C, H, W] channels_last
    weight: Tensor,  # [groups, K / groups, R, S, C / groups]
    scale: Tensor | None,  # [K] float32
    shift: Tensor | None,  # [K] float32
    residual: Tensor | None,  # like output
    output: Tensor,  # [N, K, OH, OW] channels_last
    groups: int,
    dilation: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    activation: int,
    negative_slope: float,
) -> None:
    N, _, H, W = input.shape
    OH, OW = output.shape[2:]
    _, K, R, S, C = weight.shape
    if output.numel() == 0:
        return
    phases, pixels, equal = _phases(
        (H, W), (OH, OW), (R, S), stride, padding, dilation, input.device
    )
    common = [math.gcd(s, d) for s, d in zip(stride, dilation, strict=True)]
    steps = (
        *(s // g for s, g in zip(stride, common, strict=True)),
        *(d // g for d, g in zip(dilation, common, strict=True)),
    )
    x, w = _for_interpreter(input), _for_interpreter(weight)
    int64 = max(input.numel(), output.numel()) >= 2**31
    tensors = (x, w, scale, shift, residual, phases, output, N, H, W, OH, OW)
    with torch.cuda.device_of(input):
        if C == 1 and groups > 1:
            block_m, block_n = depthwise_block(groups * K)
            unit = unit_of(groups)
            tiles = triton.cdiv(N * pixels, block_m) * triton.cdiv(groups * K, block_n)
            _depthwise_kernel[(tiles * len(phases),)](
                *(*tensors, groups // unit, pixels, *stride, *steps, negative_slope),
                R=R, S=S, UNIT_C=unit, MULTIPLIER=K, INT64=int64, ACTIVATION=activation,
                BLOCK_M=block_m, BLOCK_N=block_n, num_warps=ELEMENTWISE_WARPS,
            )  # fmt: skip
            return
        tf32 = x.dtype == torch.float32 and x.is_cuda and torch.backends.cudnn.allow_tf32
        chosen = tile(N * pixels, K, C, x.element_size(), tf32)
        tiles = triton.cdiv(N * pixels, chosen.block_m) * triton.cdiv(K, chosen.block_n)
        unit_c, unit_k = unit_of(C), unit_of(K)
        _conv_transpose2d_kernel[(tiles * len(phases) * groups,)](
            *(*tensors, C // unit_c, K // unit_k, groups, pixels, len(phases)),
            *(*stride, *steps, negative_slope),
            R=R, S=S, UNIT_C=unit_c, UNIT_K=unit_k, EQUAL=equal, INT64=int64,
            ACTIVATION=activation, TF32=tf32, BLOCK_M=chosen.block_m, BLOCK_N=chosen.block_n,
            BLOCK_K=chosen.block_k, num_warps=chosen.warps, num_stages=chosen.stages,
        )  # fmt: skip


def launch_separable(
    input: Tensor,  # [N, C, H, W] in the output's memory format
    taps: Tensor,  # [R + S] float32
    kernel: tuple[int, int],
    scale: Tensor,  # [C] float32
    shift: Tensor | None,  # [C] float32
    residual: Tensor | None,  # like output
    output: Tensor,  # [N, C, OH, OW] contiguous or channels_last
    channels_last: bool,
    stride: tuple[int, int],
    padding: tuple[int, int],
    activation: int,
    negative_slope: float,
) -> None:
    N, C, H, W = input.shape
    OH, OW = output.shape[2:]
    if output.numel() == 0:
        return
    lines, length = (N * OH, OW * C) if channels_last else (N * C * OH, OW)
    block = min(triton.next_power_of_2(length), SEPARABLE_BLOCK)
    R, S = kernel
    with torch.cuda.device_of(input):
        _separable_kernel[(lines * triton.cdiv(length, block),)](
            *(input, taps, scale, shift, residual, output, C, H, W, OH, OW, *stride, *padding),
            negative_slope,
            R=R, S=S, TAPS_H=triton.cdiv(R, stride[0]), TAPS_W=triton.cdiv(S, stride[1]),
            CHANNELS_LAST=channels_last, ACTIVATION=activation, BLOCK=block,
            num_warps=ELEMENTWISE_WARPS,
        )  # fmt: skip
