"""Replacements for RoIAlign on one feature map and on a pyramid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import ops
from ...ops._rois import as_rois
from ...ops.roi_align import _BACKWARD, MAX_LEVELS, _run_backward
from . import devices
from .recording import is_exporting, keeping_torchscript


def forward(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    try:
        pooled = ops.roi_align(
            input, rois, (pooled_height, pooled_width), spatial_scale, sampling_ratio, aligned
        )
    except (AssertionError, TypeError, ValueError) as error:
        raise RuntimeError(str(error)) from error  # torchvision's error type
    # torchvision's result is contiguous, and callers view() it
    return pooled.contiguous()


def backward(
    grad: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    batch_size: int,
    channels: int,
    height: int,
    width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Backward of graphs recorded by torchvision's own autograd before enable()."""
    backend = _BACKWARD.choose(grad, None)
    if backend == "reference":
        raise RuntimeError(f"no kernel for the backward of torchvision::roi_align on {grad.device}")
    options = ([spatial_scale], pooled_height, pooled_width, sampling_ratio, aligned, 0.0, 0.0, 0)
    sizes = [batch_size, height, width]
    return _run_backward(backend, as_rois(rois, grad), options, sizes, False, grad)[0]


def fake(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    *_: Any,
) -> Tensor:
    return input.new_empty((rois.shape[0], input.shape[1], pooled_height, pooled_width))


def fake_backward(
    grad: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    batch_size: int,
    channels: int,
    height: int,
    width: int,
    *_: Any,
) -> Tensor:
    return grad.new_empty((batch_size, channels, height, width))


class Recorded(torch.autograd.Function):
    """torchvision's operators in both directions.

    torchvision's own formula is the same, but refuses CUDA in deterministic mode.
    """

    @staticmethod
    def forward(ctx: Any, keyset: Any, input: Tensor, rois: Tensor, *options: Any) -> Tensor:
        ctx.save_for_backward(rois)
        ctx.shape, ctx.options = input.shape, options
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.torchvision.roi_align.default.redispatch(keyset, input, rois, *options)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (rois,) = ctx.saved_tensors
        scale, height, width, *sampling = ctx.options
        grad_input = torch.ops.torchvision._roi_align_backward(
            grad, rois, scale, height, width, *ctx.shape, *sampling
        )
        return (None, grad_input, *(None,) * 6)


def multiscale_roi_align_instead_of(stock: Callable[..., Tensor]) -> Callable[..., Tensor]:
    from torchvision.ops import poolers

    @keeping_torchscript(stock)
    def multiscale_roi_align(
        x_filtered: list[Tensor],
        boxes: list[Tensor],
        output_size: list[int],
        sampling_ratio: int,
        scales: list[float] | None,
        mapper: Any,
    ) -> Tensor:
        levels = len(x_filtered)
        if (
            is_exporting()
            or scales is None
            or mapper is None
            or not 1 <= levels <= MAX_LEVELS
            or len(scales) != levels
            # a pyramid with a gap: torchvision returns zeros for boxes of the missing levels
            or (levels > 1 and mapper.k_max - mapper.k_min + 1 != levels)
            or x_filtered[0].device.type not in devices.active
            or x_filtered[0].is_quantized
        ):
            return stock(x_filtered, boxes, output_size, sampling_ratio, scales, mapper)
        pooled = ops.multiscale_roi_align(
            x_filtered,
            poolers._convert_to_roi_format(boxes),
            output_size,
            scales,
            sampling_ratio,
            canonical_scale=mapper.s0,
            canonical_level=mapper.lvl0,
            min_level=mapper.k_min,
        )
        return pooled.contiguous()

    return multiscale_roi_align


def is_compile_supported_instead_of(stock: Callable[[str], bool]) -> Callable[[str], bool]:
    def is_compile_supported(device_type: str) -> bool:
        # if true, torchvision uses its slow Python version in deterministic mode
        return device_type not in devices.active and stock(device_type)

    return is_compile_supported
