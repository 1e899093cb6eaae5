"""PSRoIAlign and PSRoIPool, whose operators differ in name and options."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...ops._linear_pooling import _OPERATORS, run, run_backward, sensitive_bins_of
from ...ops._rois import as_rois, check_feature
from . import roi_pool


def _channel_mapping(pooled: Tensor, channels: int) -> Tensor:
    """The channel of the input that each value is pooled from."""
    numbers = torch.arange(channels, dtype=torch.int32, device=pooled.device)
    return numbers.view(pooled.shape[1:]).expand(pooled.shape).contiguous()


def _forward(
    name: str,
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    *rest: int,
) -> tuple[Tensor, Tensor]:
    try:
        check_feature(input, "input")
        rois = as_rois(rois, input)
        bins = sensitive_bins_of((pooled_height, pooled_width), input)
    except (AssertionError, TypeError, ValueError) as error:
        raise RuntimeError(str(error)) from error  # as torchvision's operator
    backend = _OPERATORS[name].forward.choose(input, None)
    pooled = run(name, backend, rois, (spatial_scale, *bins, *rest), input)
    # torchvision's result is contiguous, and callers view() it
    return pooled.contiguous(), _channel_mapping(pooled, input.shape[1])


def _backward(
    name: str,
    grad: Tensor,
    rois: Tensor,
    channel_mapping: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    *rest: int,
) -> Tensor:
    """For graphs that torchvision's own autograd has recorded, before enable()."""
    *options, batch_size, channels, height, width = rest
    bins = (pooled_height, pooled_width)
    if grad.shape[2:] != bins or grad.shape[1] * pooled_height * pooled_width != channels:
        raise RuntimeError(
            f"grad must have shape [K, C, {pooled_height}, {pooled_width}] with {channels} values "
            f"per box, got {list(grad.shape)}"
        )
    backend = _OPERATORS[name].backward.choose(grad, None)
    if backend == "reference":
        raise RuntimeError(f"no kernel for the backward of torchvision::{name} on {grad.device}")
    arguments = (spatial_scale, pooled_height, pooled_width, *options)
    sizes = [batch_size, height, width]
    return run_backward(name, backend, as_rois(rois, grad), arguments, sizes, False, grad)


def fake(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    channels = input.shape[1] // (pooled_height * pooled_width)
    shape = (rois.shape[0], channels, pooled_height, pooled_width)
    return input.new_empty(shape), input.new_empty(shape, dtype=torch.int32)


ps_roi_align: Callable[..., Any] = partial(_forward, "ps_roi_align")
ps_roi_align_backward: Callable[..., Any] = partial(_backward, "ps_roi_align")
PSRoIAlignRecorded = roi_pool.recorded("ps_roi_align")
ps_roi_pool: Callable[..., Any] = partial(_forward, "ps_roi_pool")
ps_roi_pool_backward: Callable[..., Any] = partial(_backward, "ps_roi_pool")
PSRoIPoolRecorded = roi_pool.recorded("ps_roi_pool")
