"""The CPU's convolution of one layer: the engine, Winograd's algorithm or oneDNN, packed once."""

from __future__ import annotations

import functools
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..reference.activations import ACTIVATIONS
from ..reference.roi_align import is_channels_last
from . import _onednn
from ._packing import Packs
from ._repeat import made_once

# options: csrc/ops/conv_engine.h, ConvOptions
for _name in ("conv_packed", "conv_winograd"):
    torch.library.define(
        f"fastvision::{_name}",
        "(Tensor input, Tensor packed, Tensor? residual, Tensor options) -> Tensor",
    )
torch.library.define(
    "fastvision::conv_pack", "(Tensor weight, Tensor? bias, SymInt groups) -> Tensor"
)
torch.library.define(
    "fastvision::conv_weight_gradient", "(Tensor grad, Tensor input, Tensor options) -> Tensor"
)
torch.library.define("fastvision::conv_winograd_pack", "(Tensor weight, Tensor? bias) -> Tensor")

_OPS = torch.ops.fastvision
_PACKED, _WINOGRAD = _OPS.conv_packed.default, _OPS.conv_winograd.default
_LEAST_WINOGRAD_PIXELS = 96
_LEAST_PIXELS_OF_TILE = 8  # of the 16: on average over the tiles of a map


@functools.lru_cache(maxsize=4096)
def conv_options(*numbers: int, negative_slope: float = 0.0) -> Tensor:
    """K, R, S, stride, padding (left, right, top, bottom), dilation, groups, activation."""
    (slope,) = struct.unpack("q", struct.pack("d", negative_slope))
    with torch.inference_mode(False):
        return torch.tensor([*numbers, slope], dtype=torch.int64, device="cpu")


def winograd_wins(
    input: Tensor, weight: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int
) -> bool:
    """3x3 with so many channels that the transforms, and tiles that the weights, are worth it."""
    return winograd_fits(weight, input.dtype, stride, dilation, groups) and has_tiles(input)


def winograd_fits(
    weight: Tensor,
    dtype: torch.dtype,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> bool:
    K, C, R, S = weight.shape
    ones = (*stride, *dilation, groups)
    return R == S == 3 and C >= 32 and K >= 16 and dtype == torch.float32 and ones == (1,) * 5


def has_tiles(input: Tensor) -> bool:
    N, _, H, W = input.shape
    pixels, tiles = H * W, -(-H // 4) * -(-W // 4)
    return (
        N * pixels >= _LEAST_WINOGRAD_PIXELS
        and pixels >= _LEAST_PIXELS_OF_TILE * tiles
        and is_channels_last(input)
    )


def onednn_wins(input: Tensor, shape: Sequence[int], *, winograd: bool) -> bool:
    """Whether oneDNN is faster than what would do a convolution else that it can do."""
    if input.dtype != torch.float32:  # of which oneDNN has instructions that the engine lacks
        return True
    pointwise = tuple(shape[2:]) == (1, 1)
    kind = "winograd" if winograd else "pointwise" if pointwise else "window"
    return not torch.are_deterministic_algorithms_enabled() and _onednn_wins_trial(
        kind, torch.get_num_threads()
    )


@functools.cache
def _onednn_wins_trial(kind: str, threads: int) -> bool:
    """Measured once on a typical convolution, some hundredths of a second, with as many threads."""
    ours, theirs = _trial(kind)
    best = [float("inf"), float("inf")]
    for _ in range(6):
        for i, run in enumerate((ours, theirs)):
            start = time.perf_counter()
            run()
            best[i] = min(best[i], time.perf_counter() - start)
    return best[1] < 0.98 * best[0]


@torch.inference_mode(False)
def _trial(kind: str) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """A convolution by the engine, or by Winograd's algorithm, and by oneDNN."""
    C, taps = (256, 1) if kind == "pointwise" else (128, 3)
    like: Any = {"dtype": torch.float32, "device": "cpu"}
    x = torch.full((1, C, 28, 28), 0.5, **like)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.full((C, C, taps, taps), 0.01, **like)
    padding = (taps // 2,) * 4
    options = conv_options(C, taps, taps, 1, 1, *padding, 1, 1, 1, 0)
    window = ((1, 1), padding, (1, 1))
    reordered = _onednn.pack(weight, None, x.shape, torch.float32, window)

    def theirs() -> Tensor:
        return _onednn.convolution(x, reordered, weight.shape, None, window, 0)

    if kind == "winograd":
        packed = _OPS.conv_winograd_pack.default(weight, None)
        return lambda: _OPS.conv_winograd.default(x, packed, None, options), theirs
    packed = _OPS.conv_pack.default(weight, None, 1)
    return lambda: _OPS.conv_packed.default(x, packed, None, options), theirs


class Layer:
    """A convolution with its packed weights and options, ready for any input of its dtype.

    It holds no weights but the packed ones: each call brings those that they were packed from.
    """

    def __init__(
        self,
        tensors: Sequence[Any],  # weight, bias, bn_weight, bn_bias, running_mean, running_var
        dtype: torch.dtype,  # the input's
        stride: Sequence[int],
        padding: Sequence[int],  # left, right, top, bottom
        dilation: Sequence[int],
        groups: int,
        eps: float,
        activation: int,
        negative_slope: float,
    ) -> None:
        weight = tensors[0]
        self.packs = Packs()
        self.shape = tuple(weight.shape)
        self.window = (stride, padding, dilation)
        self.groups, self.eps, self.activation = groups, eps, activation
        self.channels = weight.shape[1] * groups
        self.dtype = torch.float64 if dtype == torch.float64 else torch.float32  # to compute in
        self.may_use_onednn = dtype in _onednn.fast_dtypes()
        self.may_use_winograd = winograd_fits(weight, dtype, stride, dilation, groups)
        self.options = conv_options(
            *(weight.shape[0], *weight.shape[2:], *stride, *padding, *dilation, groups, activation),
            negative_slope=negative_slope,
        )

    def __call__(self, input: Tensor, residual: Tensor | None, tensors: tuple[Any, ...]) -> Tensor:
        """``tensors``: as the constructor's, with the same values."""
        winograd = self.may_use_winograd and has_tiles(input)
        if self.may_use_onednn:
            name = ACTIVATIONS[self.activation]
            if _onednn.preferred(
                input, self.shape, residual, self.window[1], self.groups, name
            ) and onednn_wins(input, self.shape, winograd=winograd):
                # oneDNN chooses a layout of the weights by the input's shape
                packed = self.packs.get(
                    input.shape, tensors, lambda: self._reordered(input, tensors)
                )
                return _onednn.convolution(
                    input, packed, self.shape, residual, self.window, self.activation
                )
        form = "winograd" if winograd else "plain"
        packed = self.packs.find(form)
        if packed is None:
            make = self._transformed if winograd else self._packed
            packed = self.packs.get(form, tensors, lambda: make(tensors))
        run = _WINOGRAD if winograd else _PACKED
        return run(input, packed, residual, self.options)

    def _folded(self, tensors: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
        weight, bias = reference.fold_batch_norm(*tensors, self.eps)  # type: ignore[call-arg]
        return (
            weight.detach().to(self.dtype),
            None if bias is None else bias.detach().to(self.dtype),
        )

    def _packed(self, tensors: Sequence[Any]) -> Tensor:
        return _OPS.conv_pack.default(*self._folded(tensors), self.groups)

    def _transformed(self, tensors: Sequence[Any]) -> Tensor:
        return _OPS.conv_winograd_pack.default(*self._folded(tensors))

    def _reordered(self, input: Tensor, tensors: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
        weight, bias = self._folded(tensors)
        return _onednn.pack(weight, bias, input.shape, input.dtype, self.window)


def conv_bn_relu(input: Tensor, *args: Any) -> Tensor:
    """The kernel of the op."""
    tensors, residual, options = args[:6], args[6], _options(args)
    return made_once(Layer, tensors, input.dtype, *options)(input, residual, tensors)


def conv_bn_relu_once(input: Tensor, *args: Any) -> Tensor:
    """The same for weights that change before the next call: nothing is kept of them."""
    tensors, residual = args[:6], args[6]
    return Layer(tensors, input.dtype, *_options(args))(input, residual, tensors)


def _options(args: Sequence[Any]) -> tuple[Any, ...]:
    stride, padding, dilation, *rest = args[7:]
    return (tuple(stride), tuple(padding), tuple(dilation), *rest)
