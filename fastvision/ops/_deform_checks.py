"""Argument checks of deformable convolution, with torchvision's types of errors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ._checks import check_floating, check_tensor

MAX_EXTENT = 2**30  # of positions along an axis, which kernels count in 32 bits
MAX_PIXELS = 2**31 - 1  # of an image


def check(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    window: Sequence[int],
) -> tuple[int, int]:
    """Groups of the channels, and of the offsets, as the shapes tell.

    ``window``: stride, padding and dilation, each vertical and horizontal.
    """
    _check_tensors(input, offset, mask, weight, bias)
    _check_window(window)
    groups, offset_groups = _groups(input, offset, weight)
    _check_sizes(input, offset, mask, weight, bias, window, offset_groups)
    return groups, offset_groups


def _check_tensors(
    input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None
) -> None:
    check_tensor(input, "input")
    check_floating(input.dtype, "input", RuntimeError)
    if input.dim() != 4:
        raise ValueError(f"input must have shape [N, C, H, W], got {list(input.shape)}")
    for name, tensor, dim in (
        ("offset", offset, 4),
        ("weight", weight, 4),
        ("bias", bias, None),
        ("mask", mask, 4),
    ):
        if tensor is None and name in ("bias", "mask"):
            continue
        check_tensor(tensor, name)
        assert tensor is not None
        if dim is not None and tensor.dim() != dim:
            raise RuntimeError(f"{name} must have {dim} dimensions, got {list(tensor.shape)}")
        if tensor.dtype != input.dtype or tensor.device != input.device:
            raise RuntimeError(
                f"{name} must be {input.dtype} on {input.device} as input, "
                f"got {tensor.dtype} on {tensor.device}"
            )


def _check_window(window: Sequence[int]) -> None:
    for name, values, least in (
        ("stride", window[:2], 1),
        ("padding", window[2:4], 0),
        ("dilation", window[4:], 1),
    ):
        if min(values) < least:
            raise RuntimeError(f"{name} must be at least {least}, got {tuple(values)}")


def _groups(input: Tensor, offset: Tensor, weight: Tensor) -> tuple[int, int]:
    C, (K, per_group, R, S) = input.shape[1], weight.shape
    if min(R, S, per_group) < 1:
        raise RuntimeError(f"weight must not have empty dimensions, got {list(weight.shape)}")
    groups, offset_groups = C // per_group, offset.shape[1] // (2 * R * S)
    if offset_groups == 0:
        raise RuntimeError(
            "the shape of the offset tensor at dimension 1 is not valid. It should "
            "be a multiple of 2 * weight.size[2] * weight.size[3].\n"
            f"Got offset.shape[1]={offset.shape[1]}, while 2 * weight.size[2] * "
            f"weight.size[3]={2 * R * S}"
        )
    if groups < 1 or groups * per_group != C or K % groups:
        raise RuntimeError(
            f"weight must have shape [K, C / groups, R, S] with C = {C} and K a multiple of "
            f"groups, got {list(weight.shape)}"
        )
    if offset.shape[1] != offset_groups * 2 * R * S:
        raise RuntimeError(
            f"offset.shape[1] is not valid: got: {offset.shape[1]} "
            f"expected: {offset_groups * 2 * R * S}"
        )
    if C % offset_groups:
        raise RuntimeError(
            f"offset must have a number of groups that divides input's {C} channels, "
            f"got {offset_groups}"
        )
    return groups, offset_groups


def _check_sizes(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    window: Sequence[int],
    offset_groups: int,
) -> None:
    kernel = weight.shape[2:]
    size = []
    for axis in (0, 1):
        stride, padding, dilation = window[axis], window[2 + axis], window[4 + axis]
        reach = dilation * (kernel[axis] - 1) + 1
        size.append((input.shape[2 + axis] + 2 * padding - reach) // stride + 1)
        if max(input.shape[2 + axis] + 2 * padding, reach) >= MAX_EXTENT:
            raise RuntimeError(
                f"input, padding, dilation and kernel must reach less than {MAX_EXTENT} pixels "
                f"along an axis, got {tuple(window)} and a kernel of {list(kernel)}"
            )
    if input.shape[2] * input.shape[3] > MAX_PIXELS:
        raise RuntimeError(f"input must have at most {MAX_PIXELS} pixels, got {list(input.shape)}")
    for name, tensor in (("offset", offset), ("mask", mask)):
        if tensor is None:
            continue
        if tensor.shape[0] != input.shape[0]:
            raise RuntimeError(
                f"invalid batch size of {name}: got {tensor.shape[0]}, expected {input.shape[0]}"
            )
        if list(tensor.shape[2:]) != size:
            raise RuntimeError(
                f"{name} output dims: {tuple(tensor.shape[2:])} - computed output dims: "
                f"{tuple(size)}"
            )
    if min(size) < 1:
        raise RuntimeError(f"Calculated output size too small - out_h: {size[0]} out_w: {size[1]}")
    channels = offset_groups * kernel[0] * kernel[1]
    if mask is not None and mask.shape[1] != channels:
        raise RuntimeError(f"mask.shape[1] is not valid: got: {mask.shape[1]} expected: {channels}")
    if bias is not None and bias.numel() != weight.shape[0]:
        raise RuntimeError(f"bias must have shape [{weight.shape[0]}], got {list(bias.shape)}")
