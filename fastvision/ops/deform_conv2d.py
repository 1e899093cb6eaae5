"""Deformable convolution: a convolution that samples its input at learned places."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import reference
from .._memory_format import format_of
from ._checks import (
    is_batched,
    is_traced,
    is_transformed,
    needs_gradient,
    pair,
)
from ._deform_checks import check
from ._library import declare
from ._torchscript import traced_op

_CAPABILITY = (8, 0)  # for matrix products in Triton; below, its code spills

# window: stride, padding and dilation, each vertical and horizontal
_OPTIONS = "SymInt[] window, SymInt groups, SymInt offset_groups"
_SCHEMA = (
    "(Tensor input, Tensor offset, Tensor? mask, Tensor weight, Tensor? bias, "
    f"{_OPTIONS}) -> Tensor"
)
# needs: bits of the gradients of input, offset, mask, weight and bias; the others are empty
_BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor input, Tensor offset, Tensor? mask, Tensor weight, "
    f"{_OPTIONS}, int needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _fake(input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, *_: Any) -> Tensor:
    shape = (input.shape[0], weight.shape[0], *offset.shape[2:])
    return input.new_empty(shape).to(memory_format=format_of(input))


def _fake_backward(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    window: Sequence[int],
    groups: int,
    offset_groups: int,
    needs: int,
) -> tuple[Tensor, ...]:
    def like(tensor: Tensor | None, bit: int) -> Tensor:
        if tensor is None or not needs & 1 << bit:
            return grad.new_empty(0)
        return tensor.new_empty(tensor.shape).to(memory_format=format_of(tensor))

    bias = weight.new_empty(weight.shape[0] if needs & 16 else 0)
    return (
        *(like(t, bit) for bit, t in enumerate((input, offset, mask))),
        (weight.new_empty(weight.shape) if needs & 8 else grad.new_empty(0)),
        bias,
    )


_FORWARD = declare(
    "deform_conv2d",
    _SCHEMA,
    fake=_fake,
    triton="kernels.deform_conv2d.launch_deform_conv2d",
    reference=reference.deform_conv2d,
    lacks={"cuda": "the Triton kernel serves GPUs"},
    serves=("deform_conv2d",),
)
_BACKWARD = declare(
    "deform_conv2d_backward",
    _BACKWARD_SCHEMA,
    fake=_fake_backward,
    triton="kernels.deform_conv2d_backward.launch_deform_conv2d_backward",
    reference=reference.deform_conv2d_backward,
)


class _DeformConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: str, options: tuple[Any, ...], *tensors: Any) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.backend, ctx.options = backend, options
        result: Tensor = _FORWARD.run[backend](*tensors, *options)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors
        wanted = [i for i in range(5) if ctx.needs_input_grad[2 + i]]
        if not torch.compiler.is_compiling() and (
            torch.is_grad_enabled() or is_batched(grad) or _must_be_deterministic(grad)
        ):
            return None, None, *_through_reference(tensors, ctx.options, grad, wanted)
        *used, _ = tensors
        needs = sum(1 << i for i in wanted)
        found = _BACKWARD.run[ctx.backend](grad, *used, *ctx.options, needs)
        return None, None, *(g if i in wanted else None for i, g in enumerate(found))


def _must_be_deterministic(grad: Tensor) -> bool:
    """Whether the kernel's atomic additions are not allowed."""
    return (
        grad.is_cuda
        and torch.are_deterministic_algorithms_enabled()
        and not torch.is_deterministic_algorithms_warn_only_enabled()
    )


def _through_reference(
    tensors: Sequence[Any], options: tuple[Any, ...], grad: Tensor, wanted: Sequence[int]
) -> list[Tensor | None]:
    """The gradients by torch's own operators: differentiable, and in batches."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # aliases, since arguments may be the same Tensor or derived from each other
        tensors = [None if t is None else t.view_as(t) for t in tensors]
        y = reference.deform_conv2d(*tensors, *options)
    found = torch.autograd.grad(y, [tensors[i] for i in wanted], grad, create_graph=create_graph)
    grads: list[Tensor | None] = [None] * 5
    for i, g in zip(wanted, found, strict=True):
        grads[i] = g
    return grads


def _without_kernel(x: Tensor) -> str | None:
    """Why there is no Triton kernel for ``x``, or None."""
    if x.dtype == torch.float64:
        return "the Triton kernel has no float64"
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < _CAPABILITY:
        return f"the Triton kernel needs compute capability {_CAPABILITY[0]}.{_CAPABILITY[1]}"
    return None


def _choose(input: Tensor, requested: str | None) -> str:
    chosen = _FORWARD.choose(input, requested)
    if chosen != "triton" or (reason := _without_kernel(input)) is None:
        return chosen
    if requested is not None:
        raise ValueError(f"backend={requested!r} cannot run on {input.device}: {reason}")
    return "reference"


def _run(backend: str, options: tuple[Any, ...], *tensors: Any) -> Tensor:
    if backend == "reference" or is_transformed():
        return reference.deform_conv2d(*tensors, *options)
    if needs_gradient(tensors):
        result: Tensor = _DeformConv2d.apply(backend, options, *tensors)
        return result
    result = _FORWARD.run[backend](*tensors, *options)
    return result


def _traced(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Sequence[int],
    mask: Tensor | None,
    backend: str | None,
) -> Tensor:
    stride, padding, dilation = ((window[i], window[i + 1]) for i in (0, 2, 4))
    return deform_conv2d(
        input, offset, weight, bias, stride, padding, dilation, mask, backend=backend
    )


_TRACED = traced_op(
    "deform_conv2d",
    "(Tensor input, Tensor offset, Tensor weight, Tensor? bias, SymInt[] window, Tensor? mask, "
    "str? backend) -> Tensor",
    _traced,
)


def _to_float32(tensor: Tensor) -> Tensor:
    lower = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.float() if lower else tensor


def _is_mixed(input: Any, *others: Any) -> bool:
    """Whether autocast has left floating-point tensors of different types."""
    if not isinstance(input, Tensor) or input.is_meta:
        return False
    if not torch.is_autocast_enabled(input.device.type):
        return False
    return any(isinstance(t, Tensor) and t.dtype != input.dtype for t in others)


@torch.fx.wrap
def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    mask: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Convolution that samples the input at an offset per tap and output pixel.

    Dai et al., Deformable Convolutional Networks, 2017, equation 2; with ``mask`` Zhu et al.,
    Deformable ConvNets v2, 2019, equation 1. Samples are bilinear, with zeros around the image;
    one more than a pixel outside is 0.

    Args:
        input: [N, C, H, W] float16, bfloat16, float32 or float64; contiguous or channels_last
            (others are copied).
        offset: [N, 2 * offset_groups * R * S, OH, OW] distances from the regular places, in pixels
            of the input; (y, x) per tap, taps in row-major order. Each offset group serves
            C / offset_groups consecutive channels.
        weight: [K, C / groups, R, S].
        bias: [K]; None for none.
        stride, padding, dilation: vertical and horizontal, or one integer for both; pixels.
        mask: [N, offset_groups * R * S, OH, OW] factors of the samples; None for ones.
        backend: "triton", "cpp" or "reference"; None takes the fastest that can run.

    Returns:
        [N, K, OH, OW] in the dtype and memory format of ``input``; OH is
        (H + 2 * padding - dilation * (R - 1) - 1) // stride + 1. Positions and sums are in float32
        (float64 for float64 tensors), rounded once.

    The numbers of groups follow from the shapes. Differentiable in all tensors, any number of times
    and in forward mode; second derivatives are by the operations of PyTorch. On the CPU, gradients
    are the same for any number of threads. On a GPU the gradient of ``input`` is added atomically,
    so that its last bits vary, except under ``torch.use_deterministic_algorithms(True)``. At an
    integer position, where it has a kink, the derivative is the one towards larger positions.
    Under autocast, tensors of different dtypes are converted to float32.

    ===============================================  ================================
    input                                            result
    ===============================================  ================================
    NaN or infinite offset                           the sample is 0
    sample at -1 or less, or at H (W) or more        0, times the mask
    infinite or NaN pixel next to a sample           spreads, also if its weight is 0
    N or K of 0                                      empty
    H or W of 0                                      samples are 0
    ===============================================  ================================

    Raises:
        RuntimeError: shapes, dtypes, devices or options that do not fit (torchvision's type).
        TypeError: an argument is not a tensor, or an option no integer.
        ValueError: ``backend`` cannot run here; an option has neither one nor two values.
        NotImplementedError: sparse, nested or mkldnn tensors.
    """
    window = (*pair(stride, "stride"), *pair(padding, "padding"), *pair(dilation, "dilation"))
    if is_traced():
        return _TRACED(input, offset, weight, bias, window, mask, backend)
    if _is_mixed(input, offset, weight, bias, mask):
        x, o, w, b, m = (
            None if t is None else _to_float32(t) for t in (input, offset, weight, bias, mask)
        )
        assert x is not None and o is not None and w is not None
        result = deform_conv2d(x, o, w, b, stride, padding, dilation, m, backend=backend)
        return result.to(input.dtype)
    options = (window, *check(input, offset, mask, weight, bias, window))
    if bias is not None:
        bias = bias.reshape(-1)  # torchvision takes any shape
    return _run(_choose(input, backend), options, input, offset, mask, weight, bias)


class DeformConv2d(nn.Module):
    """See :func:`deform_conv2d`.

    torchvision's constructor, initialization and state dict (``weight``, ``bias``).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        nn.Module.__init__(self)  # torchvision's class may stand between
        if in_channels % groups != 0:
            raise ValueError(
                f"in_channels must be divisible by groups, got {in_channels} and {groups}"
            )
        if out_channels % groups != 0:
            raise ValueError(
                f"out_channels must be divisible by groups, got {out_channels} and {groups}"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = pair(kernel_size, "kernel_size")
        self.stride = pair(stride, "stride")
        self.padding = pair(padding, "padding")
        self.dilation = pair(dilation, "dilation")
        self.groups = groups
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, *self.kernel_size)
        )
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As in torch.nn.Conv2d."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        return deform_conv2d(
            input,
            offset,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            mask=mask,
        )

    def __repr__(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}", f"kernel_size={self.kernel_size}"]
        parts.append(f"stride={self.stride}")
        if self.padding != (0, 0):
            parts.append(f"padding={self.padding}")
        if self.dilation != (1, 1):
            parts.append(f"dilation={self.dilation}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.bias is None:
            parts.append("bias=False")
        return f"{type(self).__name__}({', '.join(parts)})"
