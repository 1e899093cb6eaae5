"""Max unpooling: puts maxima back where they came from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import reference
from .._memory_format import format_of
from ._checks import (
    check_floating,
    check_tensor,
    is_traced,
    is_transformed,
    needs_gradient,
    pair,
)
from ._library import declare


def _fake(input: Tensor, indices: Tensor, *output_size: int) -> Tensor:
    shape = (*input.shape[:2], *output_size)
    return input.new_empty(shape).to(memory_format=format_of(input))


def _fake_backward(grad: Tensor, indices: Tensor, *_stride: int) -> Tensor:
    return grad.new_empty(indices.shape).to(memory_format=format_of(indices))


def _reference(input: Tensor, indices: Tensor, *output_size: int) -> Tensor:
    return reference.max_unpool2d(input, indices, output_size)


def _reference_backward(grad: Tensor, indices: Tensor, *stride: int) -> Tensor:
    return reference.max_unpool2d_backward(grad, indices, stride)


_FORWARD = declare(
    "max_unpool2d",
    "(Tensor input, Tensor indices, SymInt output_h, SymInt output_w) -> Tensor",
    fake=_fake,
    triton="kernels.max_unpool2d.launch_max_unpool2d",
    reference=_reference,
    lacks={"cuda": "the Triton kernel serves GPUs"},
    serves=("max_unpool2d",),
)
_BACKWARD = declare(
    "max_unpool2d_backward",
    "(Tensor grad, Tensor indices, SymInt stride_h, SymInt stride_w) -> Tensor",
    fake=_fake_backward,
    triton="kernels.max_unpool2d.launch_max_unpool2d_backward",
    reference=_reference_backward,
)


class _MaxUnpool2d(torch.autograd.Function):
    """Linear in the values: the gradient of its gradient is the op itself."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, indices: Tensor, backend: str, size: Any, stride: Any
    ) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.backend, ctx.stride = backend, stride
        result: Tensor = _FORWARD.run[backend](input, indices, *size)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (indices,) = ctx.saved_tensors
        return _backward(grad, indices, ctx.backend, ctx.stride), None, None, None, None


class _MaxUnpool2dBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, indices: Tensor, backend: str, stride: Any) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.backend, ctx.size, ctx.stride = backend, grad.shape[2:], stride
        result: Tensor = _BACKWARD.run[backend](grad, indices, *stride)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (indices,) = ctx.saved_tensors
        return _run(grad, indices, ctx.backend, list(ctx.size), ctx.stride), None, None, None


def _run(
    input: Tensor, indices: Tensor, backend: str, size: list[int], stride: list[int]
) -> Tensor:
    if backend == "reference" or is_transformed() or is_traced():
        return reference.max_unpool2d(input, indices, size)
    if needs_gradient((input,)):
        result: Tensor = _MaxUnpool2d.apply(input, indices, backend, size, stride)
        return result
    result = _FORWARD.run[backend](input, indices, *size)
    return result


def _backward(grad: Tensor, indices: Tensor, backend: str, stride: list[int]) -> Tensor:
    """``stride``: no two indices are equal if each is in its own tile of this size, which is
    faster to find out than whose value is the last."""
    if is_transformed():
        return reference.max_unpool2d_backward(grad, indices, stride)
    if needs_gradient((grad,)):
        result: Tensor = _MaxUnpool2dBackward.apply(grad, indices, backend, stride)
        return result
    result = _BACKWARD.run[backend](grad, indices, *stride)
    return result


def _output_size(
    input: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    wanted: Sequence[int] | None,
) -> list[int]:
    sizes = [
        (n - 1) * s + k - 2 * p
        for n, k, s, p in zip(input.shape[2:], kernel, stride, padding, strict=True)
    ]
    if wanted is not None:
        if len(wanted) not in (2, 3, 4):
            raise ValueError(
                f"output_size must be (OH, OW) or the result's shape, got {tuple(wanted)}"
            )
        for size, least, step in zip(wanted[-2:], sizes, stride, strict=True):
            if not least - step < size < least + step:
                raise ValueError(
                    f"output_size must differ from {sizes} by less than the stride "
                    f"{list(stride)}, got {tuple(wanted)}"
                )
        sizes = list(wanted[-2:])
    if min(sizes) < 1:
        raise ValueError(f"output_size must be at least 1, got {sizes}")
    return sizes


@torch.fx.wrap
def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    output_size: Sequence[int] | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Zeros with each value at its index: as torch.nn.functional.max_unpool2d.

    Where several values have one index, the last in row-major order is taken and the others get no
    gradient. (In torch the order is open on several threads and on GPUs, and each of them gets the
    gradient of the pixel.)

    Args:
        input: [N, C, H, W] or [C, H, W] values; float16, bfloat16, float32 or float64, contiguous
            or channels_last.
        indices: int64 of the same shape, row * OW + column in the result, as from
            :func:`max_pool2d_with_indices`.
        kernel_size, stride, padding: of the pooling that is undone: the result has
            (H - 1) * stride + kernel_size - 2 * padding rows. The stride is the kernel's size if
            None.
        output_size: (OH, OW), or a shape that ends with them; differs from these by less than the
            stride.
        backend: "triton", "cpp" or "reference"; None picks the fastest that can run.

    Returns:
        [N, C, OH, OW] in the dtype and memory format of ``input``.

    Differentiable in ``input`` any number of times.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, device or value; ``backend`` cannot run here.
        RuntimeError: an index is outside of the result, on the CPU. On a GPU the value is left out,
            since a check would synchronize with the device, and under the transforms of torch.func.
        NotImplementedError: a sparse or nested tensor.
    """
    check_tensor(input, "input")
    check_tensor(indices, "indices")
    check_floating(input.dtype, "input")
    if indices.dtype != torch.int64:
        raise TypeError(f"indices must be int64, got {indices.dtype}")
    if indices.shape != input.shape or indices.device != input.device:
        raise ValueError(
            f"indices must have the shape and device of input, {list(input.shape)} on "
            f"{input.device}, got {list(indices.shape)} on {indices.device}"
        )
    if input.dim() == 3:
        batch = input.unsqueeze(0), indices.unsqueeze(0)
        return max_unpool2d(
            *batch, kernel_size, stride, padding, output_size, backend=backend
        ).squeeze(0)
    if input.dim() != 4:
        raise ValueError(
            f"input must have shape [N, C, H, W] or [C, H, W], got {list(input.shape)}"
        )
    kernel = pair(kernel_size, "kernel_size")
    steps = kernel if stride is None or stride == [] else pair(stride, "stride")
    size = _output_size(input, kernel, steps, pair(padding, "padding"), output_size)
    return _run(input, indices, _FORWARD.choose(input, backend), size, list(steps))


class MaxUnpool2d(nn.MaxUnpool2d):
    """:class:`torch.nn.MaxUnpool2d` on :func:`max_unpool2d`."""

    def forward(
        self, input: Tensor, indices: Tensor, output_size: Sequence[int] | None = None
    ) -> Tensor:
        return max_unpool2d(
            input, indices, self.kernel_size, self.stride, self.padding, output_size
        )
