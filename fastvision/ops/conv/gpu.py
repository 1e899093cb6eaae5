"""Selects the implementation of a convolution with epilogue on a GPU by measurement.

Candidates are cuDNN's convolution followed by one pointwise kernel, the fused forms of cuDNN and
cuBLAS, and this package's kernels. The first call with new sizes times them on random data, and the
choice is cached, see :mod:`.tuning`. The first candidate is PyTorch's own convolution; another one
replaces it only if it is faster. After MAX_SIZES sizes, a layer uses the choice of the nearest size
instead of measuring.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ... import _device, reference
from ..._memory_format import format_of, is_channels_last
from ..._version import __version__
from ...reference.activations import ACTIVATIONS
from .spec import Weights, output_size, symmetric_padding
from .tuning import Tuner, cache_folder

_NONE, _RELU = ACTIVATIONS.index("none"), ACTIVATIONS.index("relu")
_TUNED = (torch.float16, torch.bfloat16, torch.float32)
MAX_SIZES = 8  # input sizes measured per layer

_Maybe: TypeAlias = Tensor | None


class Problem(NamedTuple):
    """The operator's arguments."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    bn_weight: Tensor | None
    bn_bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    residual: Tensor | None
    stride: list[int]
    padding: list[int]  # left, right, top, bottom
    dilation: list[int]
    groups: int
    eps: float
    activation: int
    negative_slope: float

    @property
    def weights(self) -> Weights:
        return Weights(*self[1:7])

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        size = output_size(
            self.input.shape[2:], self.weight.shape[2:], self.stride, self.padding, self.dilation
        )
        return (self.input.shape[0], self.weight.shape[0], *size)

    def empty_output(self) -> Tensor:
        return torch.empty(
            self.output_shape,
            dtype=self.input.dtype,
            device=self.input.device,
            memory_format=format_of(self.input),
        )


Candidate = Callable[[Problem], Tensor]


def _tf32() -> bool:
    return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


def kernel_order(weight: Tensor) -> Tensor:
    """Permutes [K, C / groups, R, S] to the order of this package's kernels: [K, R, S, C / groups],
    or [R, S, K] for a depthwise convolution."""
    depthwise = weight.shape[1] == 1
    return weight[:, 0].permute(1, 2, 0) if depthwise else weight.permute(0, 2, 3, 1)


def _scale_and_shift(weights: Weights, eps: float) -> tuple[_Maybe, _Maybe]:
    """Scale and shift of the epilogue, [K] float32 each, applied to the unrounded sum.

    Computed in every call: on a GPU, detecting a change of the statistics would synchronize.
    """
    weight, bias, bn_weight, bn_bias, mean, var = weights
    vectors = [t for t in (bias, bn_weight, bn_bias, mean, var) if t is not None]
    if (
        mean is not None
        and var is not None
        and weight.is_cuda
        and _device.triton_missing() is None
        and all(t.is_contiguous() and t.dtype != torch.float64 for t in vectors)
    ):
        from ...kernels.conv_bn_relu import launch_fold

        folded = torch.empty((2, len(weight)), device=weight.device)
        launch_fold(bias, bn_weight, bn_bias, mean, var, eps, folded[0], folded[1])
        return folded[0], folded[1]
    ones = torch.ones(len(weight), device=weight.device)
    scale, shift = reference.fold_batch_norm(ones, *weights[1:], eps)
    return (
        None if scale is ones else scale,
        None if shift is None else shift.to(torch.float32),
    )


def _unfolded(p: Problem) -> tuple[Tensor, _Maybe, _Maybe]:
    """Weight in the input's dtype and memory format, scale and shift."""
    weight = p.weight.detach().to(p.input.dtype).contiguous(memory_format=format_of(p.input))
    return weight, *_scale_and_shift(p.weights, p.eps)


def _for_kernels(p: Problem) -> tuple[Tensor, _Maybe, _Maybe]:
    """Weight in :func:`kernel_order`, scale and shift."""
    weight = kernel_order(p.weight.detach().to(p.input.dtype)).contiguous()
    return weight, *_scale_and_shift(p.weights, p.eps)


def _folded(p: Problem) -> tuple[Tensor, Tensor]:
    """Weight and bias with the normalization folded in, in the input's dtype."""
    weight, bias = reference.fold_batch_norm(*p.weights, p.eps)
    if bias is None:
        bias = weight.new_zeros(len(weight))
    weight = weight.detach().to(p.input.dtype).contiguous(memory_format=format_of(p.input))
    return weight, bias.detach().to(p.input.dtype)


def _finish(y: Tensor, scale: Tensor | None, shift: Tensor | None, p: Problem) -> Tensor:
    """activation(y * scale + shift + residual) in one pass, in place."""
    y = y.contiguous(memory_format=format_of(p.input))
    if scale is None and shift is None and p.residual is None and p.activation == _NONE:
        return y
    N, K, OH, OW = y.shape
    huge = N * max(K, OH * OW) > 2**31 - 4096  # the kernel counts rows in 32 bits
    if _device.triton_missing() is not None or y.is_cpu or huge:
        wide = y.float()
        if scale is not None:
            wide = wide * scale.view(-1, 1, 1)
        if shift is not None:
            wide = wide + shift.view(-1, 1, 1)
        if p.residual is not None:
            wide = wide + p.residual
        activation = ACTIVATIONS[p.activation]
        return reference.activate(wide, activation, p.negative_slope).to(y.dtype)
    from ...kernels.conv_bn_relu import launch_pointwise

    launch_pointwise(y, scale, shift, p.residual, y, p.activation, p.negative_slope)
    return y


def _torch(p: Problem) -> Tensor:
    input, padding = symmetric_padding(p.input, p.padding)
    weight, scale, shift = _unfolded(p)
    y = torch.conv2d(input, weight, None, p.stride, padding, p.dilation, p.groups)
    return _finish(y, scale, shift, p)


def _deterministic() -> bool:
    return torch.backends.cudnn.deterministic or torch.are_deterministic_algorithms_enabled()


def _cudnn(p: Problem, search: bool = True) -> Tensor:
    """``search``: let cuDNN time its algorithms for sizes that are new to it."""
    input, padding = symmetric_padding(p.input, p.padding)
    weight, scale, shift = _unfolded(p)
    fixed = _deterministic()
    y = torch.cudnn_convolution(
        input, weight, padding, p.stride, p.dilation, p.groups, search and not fixed, fixed, _tf32()
    )
    return _finish(y, scale, shift, p)


def _cudnn_fused(p: Problem, search: bool = True) -> Tensor:
    input, padding = symmetric_padding(p.input, p.padding)
    weight, bias = _folded(p)
    shape = (p.stride, padding, p.dilation, p.groups)
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = search and not _deterministic()  # not an argument
    try:
        if p.residual is None:
            y = torch.cudnn_convolution_relu(input, weight, bias, *shape)
        else:
            y = torch.cudnn_convolution_add_relu(input, weight, p.residual, 1.0, bias, *shape)
    finally:
        torch.backends.cudnn.benchmark = before
    return y.contiguous(memory_format=format_of(p.input))


def _cublas(p: Problem) -> Tensor:
    N, K, OH, OW = p.output_shape
    weight, bias = _folded(p)
    pixels = p.input.permute(0, 2, 3, 1).view(N * OH * OW, -1)
    y = torch._addmm_activation(bias, pixels, weight.flatten(1).t())
    return y.view(N, OH, OW, K).permute(0, 3, 1, 2)


def _triton(p: Problem, tile: Any = None) -> Tensor:
    from ...kernels.conv_bn_relu import launch_conv

    output = p.empty_output()
    launch_conv(
        p.input, *_for_kernels(p), p.residual, output, p.stride, p.padding, p.dilation, p.groups,
        p.activation, p.negative_slope, _tf32(), tile,
    )  # fmt: skip
    return output


def _cuda_depthwise(p: Problem) -> Tensor:
    def aligned(t: Tensor) -> Tensor:
        return t if t.data_ptr() % 16 == 0 else t.clone()

    input, residual = aligned(p.input), None if p.residual is None else aligned(p.residual)
    return torch.ops.fastvision.conv_depthwise.default(
        input, *_for_kernels(p), residual, p.stride, p.padding, p.activation, p.negative_slope
    )


def _is_plain_matrix_product(p: Problem) -> bool:
    return (
        tuple(p.weight.shape[2:]) == (1, 1)
        and tuple(p.stride) == (1, 1)
        and not any(p.padding)
        and p.groups == 1
        and is_channels_last(p.input)
    )


def _fits_cuda_depthwise(p: Problem) -> bool:
    K, channels, R, S = p.weight.shape
    return (
        channels == 1
        and p.groups == K
        and R == S
        and R in (3, 5, 7)
        and p.stride[0] == p.stride[1]
        and p.stride[0] in (1, 2)
        and tuple(p.dilation) == (1, 1)
        and is_channels_last(p.input)
        and K * p.input.element_size() % 16 == 0
    )


def _triton_unsupported(p: Problem) -> str | None:
    from ...kernels.conv_bn_relu import unsupported

    N, _, OH, OW = p.output_shape
    return unsupported(p.input, p.weight, N * OH * OW)


def candidates(p: Problem) -> dict[str, Candidate]:
    """Candidates by name; of equally fast ones the first wins."""
    found: dict[str, Candidate] = {"torch": _torch}
    if 0 in p.input.shape or 0 in p.output_shape:
        return found
    if p.input.is_cuda:
        if torch.backends.cudnn.is_available() and torch.backends.cudnn.enabled:
            found["cudnn"] = _cudnn
            if p.activation == _RELU:
                found["cudnn_fused"] = _cudnn_fused
        if _is_plain_matrix_product(p) and p.activation == _RELU and p.residual is None:
            found["cublas"] = _cublas
        if _fits_cuda_depthwise(p) and not _device.cuda_kernels_missing(p.input.device.index):
            found["cuda_depthwise"] = _cuda_depthwise
    if _device.triton_missing() is None and _triton_unsupported(p) is None:
        if p.weight.shape[1] == 1:
            return found | {"triton_depthwise": _triton}
        from ...kernels.configs.conv_bn_relu import candidate_tiles

        N, K, OH, OW = p.output_shape
        _, C, R, S = p.weight.shape
        tiles = candidate_tiles(
            N * OH * OW, K // p.groups, C, R * S, p.groups, p.input.element_size(), _tf32(),
            p.input.device,
        )  # fmt: skip
        found |= {f"triton {tile}": functools.partial(_triton, tile=tile) for tile in tiles}
    return found


def _random(p: Problem) -> Problem:
    """The same problem with random data: errors must not hide in the caller's (zeros, say)."""

    def like(t: Tensor | None) -> Tensor | None:
        return None if t is None else torch.randn_like(t)

    input, weight, bias, bn_weight, bn_bias, mean, variance, residual = p[:8]
    if variance is not None:
        variance = 0.5 + torch.rand_like(variance)
    weight = torch.randn_like(weight) / max(weight[0].numel(), 1) ** 0.5
    return p._replace(
        input=torch.randn_like(input),
        weight=weight,
        bias=like(bias),
        bn_weight=like(bn_weight),
        bn_bias=like(bn_bias),
        running_mean=like(mean),
        running_var=variance,
        residual=like(residual),
    )


def _key(p: Problem) -> tuple[Any, ...]:
    """Everything a choice depends on, except for the device and versions in the file's name."""
    input = p.input
    return (
        input.device.index,
        input.dtype,
        tuple(input.shape),
        is_channels_last(input),
        tuple(p.weight.shape),
        *map(tuple, (p.stride, p.padding, p.dilation)),
        p.groups,
        p.activation,
        p.running_mean is not None,
        p.bias is not None or p.running_mean is not None,
        p.residual is not None,
        input.dtype == torch.float32 and _tf32(),
    )


def tuning_file(device: torch.device) -> Path | None:
    """The file that caches the choices for ``device`` and the versions in use, or None."""
    folder = cache_folder()
    if folder is None:
        return None
    parts = ["conv_bn_relu", device.type]
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        parts += [torch.cuda.get_device_name(device), f"sm{major}{minor}"]
    parts += [f"torch{torch.__version__}", f"cudnn{torch.backends.cudnn.version()}"]
    name = "-".join([*parts, f"fastvision{__version__}"])
    return folder / (re.sub(r"[^\w.+-]+", "_", name) + ".json")


@functools.cache
def _tuner(device: torch.device) -> Tuner:
    return Tuner(tuning_file(device))


_chosen: dict[tuple[Any, ...], Candidate] = {}
# per layer, choices by input size; see MAX_SIZES
_measured: dict[tuple[Any, ...], dict[int, str]] = {}


def _capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _unmeasured(name: str, choices: dict[str, Candidate]) -> Candidate:
    """The candidate for an unmeasured problem, given the choice ``name`` of a similar one."""
    for search in (_cudnn, _cudnn_fused):
        if choices.get(name) is search:
            return functools.partial(search, search=False)
    if name.startswith("triton"):  # other sizes have other tiles
        name = next((n for n in (name, *choices) if n in choices and n[:6] == "triton"), "torch")
    return choices.get(name, _torch)


def _choose(p: Problem, tuner: Tuner) -> Candidate:
    choices = candidates(p)
    key = _key(p)
    name = str(key[1:])
    known = tuner.known(name)
    if _capturing():
        return _unmeasured(known or "torch", choices)
    device, dtype, shape, *layer = key
    measured = _measured.setdefault((device, dtype, shape[1], *layer), {})
    size = p.input.numel()
    chosen: Candidate = _torch
    if known in choices:
        measured[size], chosen = known, choices[known]
    elif len(measured) >= MAX_SIZES:
        nearest = min(measured, key=lambda other: abs(math.log(other / size)))
        chosen = _unmeasured(measured[nearest], choices)
    elif len(choices) > 1:
        # out of memory: use torch, but do not store that, another process may have room
        with contextlib.suppress(torch.OutOfMemoryError):
            data = _random(p)
            trials = {n: functools.partial(candidate, data) for n, candidate in choices.items()}
            measured[size] = tuner.choose(name, trials)
            chosen = choices[measured[size]]
    _chosen[key] = chosen
    return chosen


def _prepared(*args: Any) -> Problem:
    p = Problem(*args)
    input, residual = p.input, p.residual
    if not is_channels_last(input):
        input = input.contiguous()
    if residual is not None:
        residual = residual.to(input.dtype).contiguous(memory_format=format_of(input))
    return p._replace(input=input, residual=residual)


def run(*args: Any) -> Tensor:
    """``fastvision::conv_bn_relu`` on CUDA tensors."""
    p = _prepared(*args)
    if p.input.dtype not in _TUNED:
        return reference.conv_bn_relu(*p[:13], ACTIVATIONS[p.activation], p.negative_slope)
    with torch.cuda.device_of(p.input):
        candidate = _chosen.get(_key(p)) or _choose(p, _tuner(p.input.device))
        return candidate(p)


def run_triton(*args: Any) -> Tensor:
    """``fastvision::conv_bn_relu_triton``."""
    p = _prepared(*args)
    if (reason := _triton_unsupported(p)) is not None:
        raise ValueError(f"backend='triton' cannot do this convolution: {reason}")
    return _triton(p)
