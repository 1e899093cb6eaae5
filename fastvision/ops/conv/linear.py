"""Linear layer and activation as one op."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import _extension
from ...reference.activations import ACTIVATIONS, activate
from .._checks import (
    check_floating,
    check_tensor,
    is_eager,
    is_traced,
    is_transformed,
    needs_gradient,
)
from .._library import declare, direct
from .._plain import MISFITS, is_plain
from .._torchscript import traced_op
from . import onednn
from .cpu import conv_options
from .packing import Packs, remembered

# fewer rows are bound by reading the weight: a kernel of their own takes it as it is
_MIN_ROWS = 4  # csrc/ops/linear.h, kMostLinearRows
_MIN_PACKED = 1 << 18  # elements of the weight; smaller ones fit the caches anyway

torch.library.define(
    "fastvision::linear_rows",
    "(Tensor input, Tensor weight, Tensor? bias, int activation, float negative_slope) -> Tensor",
)
torch.library.define(
    "fastvision::linear_relu_rows", "(Tensor input, Tensor weight, Tensor? bias) -> Tensor"
)
_LINEAR_RELU_ROWS = direct(torch.ops.fastvision.linear_relu_rows.default)
_LINEAR_ROWS = direct(torch.ops.fastvision.linear_rows.default)
_OF_ROWS = frozenset((torch.float32, torch.float64))
_is_any_autocast_enabled = torch._C._is_any_autocast_enabled


@functools.cache
def _taps(features: int) -> int | None:
    """Number of taps to split ``features`` into so that the weights of a few stay in the L2 cache;
    None if no number divides them."""
    if features <= 512:
        return 1
    counts = range(features // 512, features // 64 + 1)
    return next((n for n in counts if n and features % n == 0 and features // n <= 1024), None)


def _pack(tensors: Sequence[Any], taps: int) -> Tensor:
    weight, bias = tensors
    K, features = weight.shape
    dtype = torch.promote_types(weight.dtype, torch.float32)
    filters = (
        weight.detach().to(dtype).view(K, taps, features // taps).transpose(1, 2).unsqueeze(-1)
    )
    shift = None if bias is None else bias.detach().to(dtype)
    return torch.ops.fastvision.conv_pack.default(filters, shift, 1)


def _can_pack(input: Tensor, weight: Tensor) -> bool:
    return (
        input.numel() >= _MIN_ROWS * input.shape[-1]
        and weight.numel() >= _MIN_PACKED
        and (input.itemsize != 2 or input.dtype not in onednn.fast_dtypes())
        and _extension.missing is None
    )


def _is_read_once(input: Tensor, weight: Tensor) -> bool:
    """Whether the rows are so few that the time is that of reading the weight."""
    return (
        0 < input.numel() < _MIN_ROWS * input.shape[-1]
        and weight.numel() >= _MIN_PACKED
        and input.dtype in _OF_ROWS
        and weight.is_contiguous()
        and _extension.missing is None
    )


def _any_device(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: int, negative_slope: float
) -> Tensor:
    name = ACTIVATIONS[activation]
    if name == "relu":
        return F.linear(input, weight, bias).relu_()
    return activate(F.linear(input, weight, bias), name, negative_slope)


def _cpu(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: int, negative_slope: float
) -> Tensor:
    def pack(taps: int) -> Tensor:
        purpose = ("linear", taps, _extension.cpu_level())
        return remembered((weight, bias), purpose, _pack, taps)

    return _by_packs(input, weight, bias, activation, negative_slope, pack)


def _by_packs(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: int,
    negative_slope: float,
    pack: Callable[[int], Tensor],  # packs the weight for a number of taps
) -> Tensor:
    K, features = weight.shape
    if _is_read_once(input, weight):
        x = input.reshape(-1, features)
        shift = None if bias is None else bias.contiguous()
        y = torch.ops.fastvision.linear_rows.default(x, weight, shift, activation, negative_slope)
        return y.view(*input.shape[:-1], K)
    if not _can_pack(input, weight) or (taps := _taps(features)) is None:
        return _any_device(input, weight, bias, activation, negative_slope)
    # each row becomes an image `taps` pixels high, under a window of the same height
    rows = input.reshape(-1, taps, 1, features // taps).permute(0, 3, 1, 2)
    window = (taps, 1, 1, 1, 0, 0, 0, 0, 1, 1)
    options = conv_options(K, *window, 1, activation, negative_slope=negative_slope)
    output = torch.ops.fastvision.conv_packed.default(rows, pack(taps), None, options)
    return output.view(*input.shape[:-1], K)


class PackedLinear:
    """The op on the CPU with packs that the caller owns and replaces when the weights change."""

    def __init__(self) -> None:
        self.packs = Packs()

    def __call__(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, activation: int, slope: float
    ) -> Tensor:
        def pack(taps: int) -> Tensor:
            tensors = (weight, bias)
            return self.packs.get(taps, tensors, lambda: _pack(tensors, taps))

        return _by_packs(input, weight, bias, activation, slope, pack)


def _fake(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: int, negative_slope: float
) -> Tensor:
    return input.new_empty((*input.shape[:-1], weight.shape[0]))


_LINEAR = declare(
    "linear_act",
    "(Tensor input, Tensor weight, Tensor? bias, int activation, float negative_slope) -> Tensor",
    fake=_fake, cpu=_cpu, cuda=_any_device, reference=_any_device,
    lacks=dict.fromkeys(("cuda", "triton"), "torch's matrix product is as fast"),
    serves=("linear_act",),
)  # fmt: skip


def linear_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "relu",
    negative_slope: float = 0.01,
) -> Tensor:
    """Computes ``activation(input @ weight.T + bias)``.

    On the CPU, large weights run as a convolution with packed weights, which are cached until the
    weight changes, and for up to three rows weights of any size by a kernel that reads them as they
    are. Otherwise small weights, GPUs and calls that need a gradient use torch's linear layer
    followed by the activation.

    Args:
        input: [..., I] float16, bfloat16, float32 or float64.
        weight: [O, I] in the dtype of ``input``.
        bias: [O] in the dtype of ``input``, or None.
        activation: "none", "relu", "relu6", "leaky_relu", "silu", "hardswish" or "sigmoid".
        negative_slope: slope of leaky_relu.

    Returns:
        [..., O] in the dtype of ``input``, contiguous.

    Differentiable in ``input``, ``weight`` and ``bias``, any number of times and in forward mode.

    Raises:
        TypeError: an argument is not a tensor, ``input`` is not floating-point, or dtypes differ.
        ValueError: shapes or devices do not match, or the activation is unknown.
        NotImplementedError: a sparse, nested or mkldnn tensor.
    """
    if type(negative_slope) is float and is_plain(input, (weight, bias)):
        try:
            shape = input.shape
            if (
                len(shape) == 2
                and 0 < shape[0] < _MIN_ROWS
                and input.dtype in _OF_ROWS
                and weight.is_contiguous()
                and not _is_any_autocast_enabled()
            ):
                if activation == "relu":
                    return _LINEAR_RELU_ROWS(input, weight, bias)
                index = ACTIVATIONS.index(activation)
                return _LINEAR_ROWS(input, weight, bias, index, negative_slope)
        except MISFITS:
            pass
    check_tensor(input, "input")
    check_tensor(weight, "weight")
    if is_traced():
        return _TRACED(input, weight, bias, activation, negative_slope)
    check_floating(input.dtype, "input")
    if weight.dtype != input.dtype or (bias is not None and bias.dtype != input.dtype):
        raise TypeError(f"weight and bias must have input's dtype {input.dtype}")
    if weight.dim() != 2 or input.dim() == 0 or input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"input must be [..., I] and weight [O, I], got {tuple(input.shape)} and "
            f"{tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{weight.shape[0]}], got {tuple(bias.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.device != input.device:
            raise ValueError(f"{name} must be on {input.device} as input, got {tensor.device}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")
    if is_transformed() or needs_gradient((input, weight, bias)):
        return activate(F.linear(input, weight, bias), activation, negative_slope)
    backend = _LINEAR.choose(input, None)
    # the dispatcher takes longer to call Python than a small layer takes
    direct = backend == "cpp" and input.is_cpu and type(input) is Tensor and is_eager()
    run = _cpu if direct else _LINEAR.run[backend]
    return run(input, weight, bias, ACTIVATIONS.index(activation), negative_slope)


_TRACED = traced_op(
    "linear_act",
    "(Tensor input, Tensor weight, Tensor? bias, str activation, float slope) -> Tensor",
    lambda *args: linear_act(*args[:3], activation=args[3], negative_slope=args[4]),
)
