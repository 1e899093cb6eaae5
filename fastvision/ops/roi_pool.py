"""RoIPool: the maximum of each bin of each box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import reference
from .._memory_format import format_of, is_channels_last, memory_format
from ._checks import is_traced
from ._functions import differentiated, in_one_step
from ._library import declare
from ._rois import as_recorded, as_rois, bins_of, check_feature, check_scale
from ._torchscript import traced_op

_ARGUMENTS = (
    "Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
)
# with_argmax: the second result is empty without it
_SCHEMA = f"({_ARGUMENTS}, bool with_argmax) -> (Tensor, Tensor)"
# sizes: N, H, W
_BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor rois, Tensor argmax, float spatial_scale, SymInt[] sizes, "
    "bool channels_last) -> Tensor"
)


def _fake(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    with_argmax: bool,
) -> tuple[Tensor, Tensor]:
    shape = (rois.shape[0], input.shape[1], pooled_height, pooled_width)
    pooled = input.new_empty(shape).to(memory_format=format_of(input))
    if not with_argmax:
        return pooled, input.new_empty((0,), dtype=torch.int32)
    return pooled, torch.empty_like(pooled, dtype=torch.int32)


def _fake_backward(
    grad: Tensor,
    rois: Tensor,
    argmax: Tensor,
    spatial_scale: float,
    sizes: list[int],
    channels_last: bool,
) -> Tensor:
    N, H, W = sizes
    shape = (N, grad.shape[1], H, W)
    return grad.new_empty(shape).to(memory_format=memory_format(channels_last))


def _run_reference(*args: Any) -> tuple[Tensor, Tensor]:
    return reference.roi_pool(*args[:-1])


# a maximum over loops of varying length has nothing for blocks of a tensor language to gain
_NO_TRITON = {"triton": "roi_pool has no Triton kernel"}
_FORWARD = declare(
    "roi_pool", _SCHEMA, fake=_fake, reference=_run_reference, lacks=_NO_TRITON,
    serves=("roi_pool",),
)  # fmt: skip
_BACKWARD = declare("roi_pool_backward", _BACKWARD_SCHEMA, fake=_fake_backward, lacks=_NO_TRITON)


class _RoIPool(torch.autograd.Function):
    """Takes the pixels at positions that it finds: linear once those are known."""

    @staticmethod
    def forward(
        backend: str, rois: Tensor, options: tuple[Any, ...], input: Tensor
    ) -> tuple[Tensor, Tensor]:
        pooled, argmax = _FORWARD.run[backend](input, rois, *options, True)
        return pooled, argmax

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        backend, rois, options, input = inputs
        argmax = output[1]
        ctx.mark_non_differentiable(argmax)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(rois, argmax)
        ctx.save_for_forward(rois, argmax)
        ctx.backend, ctx.spatial_scale = backend, options[0]
        ctx.sizes = [input.shape[0], *input.shape[2:]]
        ctx.channels_last = is_channels_last(input)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * 4
        rois, argmax = ctx.saved_tensors
        arguments = (grad, rois, argmax, ctx.spatial_scale, ctx.sizes, ctx.channels_last)
        if torch.is_grad_enabled() and grad.requires_grad:
            return (None, None, None, _RoIPoolBackward.apply(ctx.backend, *arguments))
        return (None, None, None, _BACKWARD.run[ctx.backend](*arguments))


_RoIPoolEager = in_one_step(_RoIPool)


class _RoIPoolDual(_RoIPool):
    """With forward-mode derivatives."""

    @staticmethod
    def jvp(
        ctx: Any, _backend: None, _rois: None, _options: None, tangent: Tensor
    ) -> tuple[Tensor, None]:
        rois, argmax = ctx.saved_tensors
        return reference.pixels_at(tangent, rois, argmax), None


class _RoIPoolBackward(torch.autograd.Function):
    @staticmethod
    def forward(backend: str, *arguments: Any) -> Tensor:
        grad: Tensor = _BACKWARD.run[backend](*arguments)
        return grad

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[2:4])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return (None, reference.pixels_at(grad, *ctx.saved_tensors), *(None,) * 5)


def _run(
    backend: str, rois: Tensor, options: tuple[Any, ...], input: Tensor, with_argmax: bool
) -> tuple[Tensor, Tensor]:
    """The op, through autograd only where a derivative is wanted."""
    if backend == "reference":
        return reference.roi_pool(input, rois, *options)
    function = differentiated((input,), _RoIPool, _RoIPoolEager, _RoIPoolDual)
    if function is not None:
        pooled, argmax = function.apply(backend, rois, options, input)
    else:
        pooled, argmax = _FORWARD.run[backend](input, rois, *options, with_argmax)
    return pooled, argmax


def _traced(
    input: Tensor, rois: Tensor, spatial_scale: float, PH: int, PW: int, backend: str | None
) -> Tensor:
    return roi_pool(input, rois, (PH, PW), spatial_scale, backend=backend)


_TRACED = traced_op("roi_pool", f"({_ARGUMENTS}, str? backend) -> Tensor", _traced)


@torch.fx.wrap
def roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    *,
    backend: str | None = None,
) -> Tensor:
    """Largest pixel in each bin of each box (Fast R-CNN, section 2.1).

    Corners times ``spatial_scale`` are rounded to whole pixels, half away from zero. A box contains
    both corners, is at least one pixel wide and high, and is cut into equal bins; a bin has the
    pixels that it touches, so neighbours can share some.

    Args:
        input: [N, C, H, W] features; float16, bfloat16, float32 or float64, contiguous or
            channels_last.
        boxes: [K, 5] (batch index, x1, y1, x2, y2), or one [L, 4] per image.
        output_size: bins (PH, PW), or one number for both.
        spatial_scale: from the boxes' coordinates to those of ``input``; finite.
        backend: "cuda", "cpp" or "reference"; None takes the fastest that can run.

    Returns:
        [K, C, PH, PW] in the dtype and memory format of ``input``. Coordinates are float32
        (float64 for float64 features), also under autocast and for 16-bit features.

    Differentiable in ``input``, any number of times and in forward mode; the gradient of a bin goes
    to its largest pixel, the first in row-major order of several, and is deterministic. The boxes
    get no gradient.

    ===============================================  ===============================  ============
    input                                            CPU                              CUDA
    ===============================================  ===============================  ============
    batch index outside [0, N), or NaN               RuntimeError                     zeros
    NaN or infinite coordinate, scaled or not        zeros                            zeros
    coordinate beyond 2**31 pixels, scaled           counts as 2**31                  the same
    bin without a pixel of the map                   0                                0
    bin whose pixels are all NaN or below -3.4e38    -3.4e38 (-inf in 16 bits),       the same
                                                     no gradient
    NaN next to other pixels                         is left out                      is left out
    K, C, PH or PW of 0                              empty result of that shape       the same
    H or W of 0                                      zeros                            zeros
    a map of more than 2**31 - 1 pixels              RuntimeError with a gradient     the same
    more than 2**31 elements                         works                            works
    ===============================================  ===============================  ============

    Raises:
        AssertionError: shape of ``boxes`` (torchvision's error type).
        TypeError, ValueError: other arguments that do not fit; ``backend`` cannot run here.
        NotImplementedError: sparse, nested or mkldnn tensors.
    """
    pooled = bins_of(output_size)
    check_scale(spatial_scale)
    if is_traced():
        return _TRACED(input, as_recorded(boxes, input), spatial_scale, *pooled, backend)
    check_feature(input, "input")
    rois = as_rois(boxes, input)
    options = (float(spatial_scale), *pooled)
    return _run(_FORWARD.choose(input, backend), rois, options, input, with_argmax=False)[0]


class RoIPool(nn.Module):
    """See :func:`roi_pool`."""

    def __init__(self, output_size: int | Sequence[int], spatial_scale: float) -> None:
        nn.Module.__init__(self)  # torchvision's class may stand between
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        return roi_pool(input, rois, self.output_size, self.spatial_scale)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"

    __repr__ = nn.Module.__repr__
