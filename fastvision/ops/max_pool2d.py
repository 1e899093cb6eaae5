"""Max pooling that also says where each maximum was."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import reference
from .._memory_format import format_of
from ._checks import (
    FLOATING,
    check_tensor,
    is_traced,
    is_transformed,
    needs_gradient,
    pair,
)
from ._library import declare, direct
from ._plain import MISFITS, is_plain

# one by one, since a list costs a call more than its integers
_WINDOW = (
    "SymInt kernel_h, SymInt kernel_w, SymInt stride_h, SymInt stride_w, SymInt padding_h, "
    "SymInt padding_w, SymInt dilation_h, SymInt dilation_w"
)


def _fake(input: Tensor, *window: Any) -> tuple[Tensor, Tensor]:
    shape = (*input.shape[:2], *window[-2:])
    output = input.new_empty(shape).to(memory_format=format_of(input))
    return output, torch.empty_like(output, dtype=torch.int64)


def _fake_backward(grad: Tensor, indices: Tensor, *window: Any) -> Tensor:
    return grad.new_empty((*grad.shape[:2], *window[-2:])).to(memory_format=format_of(indices))


def _reference(input: Tensor, *window: Any) -> tuple[Tensor, Tensor]:
    return reference.max_pool2d_with_indices(input, *(window[i : i + 2] for i in range(0, 10, 2)))


def _reference_backward(grad: Tensor, indices: Tensor, *window: Any) -> Tensor:
    return reference.max_pool2d_backward(grad, indices, window[-2:])


_FORWARD = declare(
    "max_pool2d_with_indices",
    f"(Tensor input, {_WINDOW}, SymInt output_h, SymInt output_w) -> (Tensor, Tensor)",
    fake=_fake,
    triton="kernels.max_pool2d.launch_max_pool2d",
    reference=_reference,
    lacks={"cuda": "the Triton kernel serves GPUs"},
    serves=("max_pool2d_with_indices",),
)
_BACKWARD = declare(
    "max_pool2d_with_indices_backward",
    f"(Tensor grad, Tensor indices, {_WINDOW}, SymInt input_h, SymInt input_w) -> Tensor",
    fake=_fake_backward,
    triton="kernels.max_pool2d.launch_max_pool2d_backward",
    reference=_reference_backward,
)

# the same with all integers in one tensor, and the input's size behind them
torch.library.define(
    "fastvision::max_pool2d_of_window", "(Tensor input, Tensor window) -> (Tensor, Tensor)"
)
_of_window = direct(torch.ops.fastvision.max_pool2d_of_window.default)


class _MaxPool2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, backend: str, window: Any) -> tuple[Tensor, Tensor]:
        output, indices = _FORWARD.run[backend](input, *window)
        ctx.save_for_backward(indices)
        ctx.mark_non_differentiable(indices)
        ctx.set_materialize_grads(False)  # the indices' would be zeros, as large as themselves
        ctx.backend, ctx.window = backend, (*window[:-2], *input.shape[2:])
        return output, indices

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
        if grad is None:
            return None, None, None
        (indices,) = ctx.saved_tensors
        return _backward(grad, indices, ctx.backend, ctx.window), None, None


class _MaxPool2dBackward(torch.autograd.Function):
    """Linear in the gradient: its own gradient gathers where it adds."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, indices: Tensor, backend: str, window: Any) -> Tensor:
        ctx.save_for_backward(indices)
        result: Tensor = _BACKWARD.run[backend](grad, indices, *window)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (indices,) = ctx.saved_tensors
        gathered = grad.flatten(2).gather(2, indices.flatten(2)).view(indices.shape)
        return gathered, None, None, None


def _backward(grad: Tensor, indices: Tensor, backend: str, window: Any) -> Tensor:
    if is_transformed():
        return _reference_backward(grad, indices, *window)
    if needs_gradient((grad,)):
        result: Tensor = _MaxPool2dBackward.apply(grad, indices, backend, window)
        return result
    result = _BACKWARD.run[backend](grad, indices, *window)
    return result


def _output_extent(
    size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> int:
    extent = dilation * (kernel - 1) + 1
    if not 0 <= padding <= kernel // 2:
        raise ValueError(
            f"padding must be at least 0 and at most half of the kernel's size {kernel}, "
            f"got {padding}"
        )
    output = (size + 2 * padding - extent + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (output - 1) * stride >= size + padding:
        output -= 1  # the last window would lie in the padding
    if output < 1:
        raise ValueError(f"input: a kernel that spans {extent} pixels does not fit into {size}")
    # windows that begin in the padding: their first tap behind it
    if padding > 0 and dilation > 1 and dilation > size:
        for start in range(-padding, 0, stride):
            if start % dilation >= size:
                raise ValueError(f"dilation {dilation}: a window has none of the {size} pixels")
    return output


def _checked_window(
    height: int,
    width: int,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None,
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    ceil_mode: bool,
) -> tuple[int, ...]:
    """The operator's arguments after the tensor."""
    kernel = kernel_h, kernel_w = pair(kernel_size, "kernel_size")
    steps = kernel if stride is None or stride == [] else pair(stride, "stride")
    gaps = dilation_h, dilation_w = pair(dilation, "dilation")
    padding_h, padding_w = pair(padding, "padding")
    stride_h, stride_w = steps
    # in one condition, since a loop takes several times as long
    if (
        kernel_h < 1
        or kernel_w < 1
        or stride_h < 1
        or stride_w < 1
        or dilation_h < 1
        or dilation_w < 1
    ):
        for name, sizes in (("kernel_size", kernel), ("stride", steps), ("dilation", gaps)):
            if min(sizes) < 1:
                raise ValueError(f"{name} must be at least 1, got {sizes}")
    output_h = _output_extent(height, kernel_h, stride_h, padding_h, dilation_h, ceil_mode)
    output_w = _output_extent(width, kernel_w, stride_w, padding_w, dilation_w, ceil_mode)
    return (
        *(kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w),
        *(output_h, output_w),
    )


# of plain integers only: True and 1.0 are equal to 1, but refused
_known_window = functools.lru_cache(maxsize=1024)(_checked_window)


@functools.lru_cache(maxsize=1024)
def _window_of(height: int, width: int, *options: Any) -> Tensor:
    numbers = (*_checked_window(height, width, *options), height, width)
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=torch.int64, device="cpu")


@torch.fx.wrap
def max_pool2d_with_indices(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Maximum of each window, and its place: as torch.nn.functional.max_pool2d_with_indices.

    Args:
        input: [N, C, H, W] or [C, H, W], contiguous or channels_last. Kernels take float16,
            bfloat16, float32 and float64; torch's op pools other types.
        kernel_size, stride, padding, dilation: one or two integers; the stride is the kernel's size
            if None. Padding counts as minus infinity.
        ceil_mode: whether a last window that the border cuts off has a result too.
        return_indices: has no effect, as in torch: indices are always returned.
        backend: "triton", "cpp" or "reference"; None picks the fastest that can run.

    Returns:
        Values [N, C, OH, OW] in the dtype and memory format of ``input``, and int64 indices of the
        same shape and format: the maximum's row * W + column. Of equal maxima the first in
        row-major order counts, and a NaN is larger than any number (the last NaN of a window
        counts).

    Differentiable any number of times; sums of the gradient are in a fixed order, and in float32
    for 16-bit types.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has the wrong shape or value; a window has no pixel of the input,
            for which torch returns an index outside of it; ``backend`` cannot run here.
        NotImplementedError: a sparse or nested tensor.
    """
    of_integers = (
        type(kernel_size) is type(padding) is type(dilation) is int
        and (stride is None or type(stride) is int)
        and type(ceil_mode) is bool
    )
    if of_integers and (backend is None or backend == "cpp") and is_plain(input):
        try:
            _, _, height, width = input.shape
            options = (kernel_size, stride, padding, dilation, ceil_mode)
            return _of_window(input, _window_of(height, width, *options))
        except MISFITS:
            pass
    check_tensor(input, "input")
    shape = input.shape
    if len(shape) == 3:
        values, indices = max_pool2d_with_indices(
            input.unsqueeze(0), kernel_size, stride, padding, dilation, ceil_mode, backend=backend
        )
        return values.squeeze(0), indices.squeeze(0)
    if len(shape) != 4:
        raise ValueError(f"input must have shape [N, C, H, W] or [C, H, W], got {list(shape)}")
    height, width = shape[2], shape[3]
    plain = of_integers and type(height) is type(width) is int
    find = _known_window if plain and not torch.compiler.is_compiling() else _checked_window
    window = find(height, width, kernel_size, stride, padding, dilation, ceil_mode)
    chosen = _FORWARD.choose(input, backend)
    if chosen == "reference" or is_transformed() or is_traced() or input.dtype not in FLOATING:
        return _reference(input, *window)
    if needs_gradient((input,)):
        result: tuple[Tensor, Tensor] = _MaxPool2d.apply(input, chosen, window)
        return result
    result = _FORWARD.run[chosen](input, *window)
    return result


class MaxPool2d(nn.MaxPool2d):
    """:class:`torch.nn.MaxPool2d`, on :func:`max_pool2d_with_indices` if ``return_indices``."""

    def forward(self, input: Tensor) -> Any:
        if not self.return_indices:
            return super().forward(input)
        return max_pool2d_with_indices(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        )
