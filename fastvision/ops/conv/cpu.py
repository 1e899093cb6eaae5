"""Convolution of one layer on the CPU with weights packed once: direct, Winograd, separable or by
oneDNN."""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ... import reference
from .._library import direct
from . import onednn
from .packing import Packs, fingerprint
from .prepared import Prepared, by_torch, prepare
from .spec import ConvSpec, Weights

# options: csrc/ops/conv_engine.h, ConvOptions
_PACKED = "Tensor input, Tensor packed, Tensor? residual, Tensor options"
_PACKED_SCHEMA = f"({_PACKED}) -> Tensor"
_IN_PLACE_SCHEMA = "(Tensor input, Tensor packed, Tensor(a!) residual, Tensor options) -> ()"
# refuses weights that are not those that were packed (csrc/ops/conv_guarded.cpp)
_GUARDED_SCHEMA = (
    f"({_PACKED}, Tensor weight, Tensor? bias, Tensor? bn_weight, Tensor? bn_bias, "
    "Tensor? running_mean, Tensor? running_var) -> Tensor"
)
for _name, _schema in {
    "conv_packed": _PACKED_SCHEMA,
    "conv_winograd": _PACKED_SCHEMA,
    "conv_transpose2d_packed": _PACKED_SCHEMA,
    # the result takes the residual's memory
    "conv_packed_": _IN_PLACE_SCHEMA,
    "conv_winograd_": _IN_PLACE_SCHEMA,
    "conv_packed_guarded": _GUARDED_SCHEMA,
    "conv_winograd_guarded": _GUARDED_SCHEMA,
    "conv_transpose2d_packed_guarded": _GUARDED_SCHEMA,
    # without normalization and residual: five arguments less
    "conv_transpose2d_alone_guarded": (
        "(Tensor input, Tensor packed, Tensor options, Tensor weight, Tensor? bias) -> Tensor"
    ),
    "conv_pack": "(Tensor weight, Tensor? bias, SymInt groups) -> Tensor",
    "conv_winograd_pack": (
        "(Tensor weight, Tensor? bias, bool turned=False, int stride=1) -> Tensor"
    ),
    "conv_weight_gradient": "(Tensor grad, Tensor input, Tensor options) -> Tensor",
    "conv_winograd_gradient": "(Tensor grad, Tensor input, Tensor options) -> Tensor",
    "conv_transpose2d_pack": (
        "(Tensor weight, Tensor? bias, int stride_y, int stride_x, int dilation_y, "
        "int dilation_x, int groups) -> Tensor"
    ),
    "conv_transpose2d_separable": (
        "(Tensor input, float[] rows, float[] columns, Tensor scale, Tensor? shift, "
        "Tensor? residual, int stride_y, int stride_x, int padding_y, int padding_x, int OH, "
        "int OW, int activation, float negative_slope) -> Tensor"
    ),
}.items():
    torch.library.define(f"fastvision::{_name}", _schema)

_OPS = torch.ops.fastvision
_PLAIN, _WINOGRAD = _OPS.conv_packed.default, _OPS.conv_winograd.default
_PLAIN_IN_PLACE, _WINOGRAD_IN_PLACE = _OPS.conv_packed_.default, _OPS.conv_winograd_.default
_PLAIN_GUARDED = direct(_OPS.conv_packed_guarded.default)
_WINOGRAD_GUARDED = direct(_OPS.conv_winograd_guarded.default)
_TRANSPOSED_GUARDED = direct(_OPS.conv_transpose2d_packed_guarded.default)
transposed_alone = direct(_OPS.conv_transpose2d_alone_guarded.default)
_MIN_WINOGRAD_PIXELS = 96
_MIN_STRIDED_PIXELS = 256  # of results with stride 2
# input times output channels with stride 2: enough to pay for the transforms, and so many that the
# transformed weights, nine times the original ones, take 42 MB
_MIN_STRIDED, _MAX_STRIDED = 1 << 13, 1 << 17
_MIN_INSIDE = 0.85  # share of the taps' reads; about where the two were equally fast
_MIN_PIXELS_OF_TILE, _MIN_PIXELS_OF_STRIDED_TILE = 8, 12  # of 16, averaged over a map's tiles
# with AVX-512, oneDNN is faster on convolutions with many terms per sum and many multiply-adds;
# half of the terms are enough with many filters
_MIN_ONEDNN_TERMS, _MIN_ONEDNN_WORK, _MANY_FILTERS = 512, 100e6, 1024


@functools.lru_cache(maxsize=4096)
def conv_options(*numbers: int, negative_slope: float = 0.0) -> Tensor:
    """K, R, S, stride, padding (left, right, top, bottom), dilation, groups, activation."""
    (slope,) = struct.unpack("q", struct.pack("d", negative_slope))
    with torch.inference_mode(False):
        return torch.tensor([*numbers, slope], dtype=torch.int64, device="cpu")


def engine_options(shape: Sequence[int], spec: ConvSpec) -> Tensor:
    """:func:`conv_options` for a weight of shape ``shape``."""
    left, right, top, bottom = spec.padding
    outputs, kernel = shape[0], shape[2:]
    if spec.transposed:  # the output padding reduces right and bottom
        outputs = shape[1] * spec.groups
        right, bottom = right - spec.output_padding[1], bottom - spec.output_padding[0]
    return conv_options(
        *(outputs, *kernel, *spec.stride, left, right, top, bottom, *spec.dilation, spec.groups),
        spec.activation,
        negative_slope=spec.negative_slope,
    )


class Tiles(NamedTuple):
    """What Winograd's algorithm needs to pay for its transforms and larger weights."""

    stride: int
    pixels: int  # of the result, at least
    pixels_of_tile: int  # of the result in a tile, on average, at least

    def suffice(self, shape: Sequence[int]) -> bool:
        """Whether an input of this shape has enough of them. The result's size is taken to be the
        input's, divided by the stride."""
        N, _, H, W = shape
        H, W = -(-H // self.stride), -(-W // self.stride)
        pixels, tiles = H * W, -(-H // 4) * -(-W // 4)
        return N * pixels >= self.pixels and pixels >= self.pixels_of_tile * tiles


def winograd_wins(input: Tensor, weight: Tensor, spec: ConvSpec) -> bool:
    """Whether Winograd's algorithm is the fastest, packing of weights aside."""
    tiles = winograd_tiles(weight, input.dtype, spec)
    return tiles is not None and tiles.suffice(input.shape)


def winograd_tiles(weight: Tensor, dtype: torch.dtype, spec: ConvSpec) -> Tiles | None:
    """When Winograd's algorithm pays; None for never."""
    K, C, R, S = weight.shape
    window = (R, S, *spec.dilation, spec.groups)
    if window != (3, 3, 1, 1, 1) or spec.transposed or dtype != torch.float32 or K < 16:
        return None
    if spec.stride == (1, 1) and C >= 32:
        return Tiles(1, _MIN_WINOGRAD_PIXELS, _MIN_PIXELS_OF_TILE)
    if spec.stride == (2, 2) and C >= 64 and _MIN_STRIDED <= C * K <= _MAX_STRIDED:
        return Tiles(2, _MIN_STRIDED_PIXELS, _MIN_PIXELS_OF_STRIDED_TILE)
    return None


def least_onednn_pixels(shape: Sequence[int], dtype: torch.dtype, spec: ConvSpec) -> float:
    """The number of output pixels from which on oneDNN beats the engine, where it is fast."""
    if spec.transposed or dtype not in onednn.fast_dtypes():
        return math.inf
    if dtype != torch.float32:  # oneDNN uses 16-bit instructions, the engine does not
        return 0
    K, *depth = shape
    terms = math.prod(depth)
    least = _MIN_ONEDNN_TERMS // 2 if K >= _MANY_FILTERS else _MIN_ONEDNN_TERMS
    return _MIN_ONEDNN_WORK / (K * terms) if terms >= least else math.inf


def sees_padding(size: Sequence[int], taps: Sequence[int], spec: ConvSpec) -> bool:
    """Whether the taps of a convolution with dilation miss the map so often that oneDNN, which
    skips them there, beats the engine, which does not."""
    left, _, top, _ = spec.padding
    share = 1.0
    axes = zip(size, taps, spec.output_size(size, taps), spec.stride, (top, left), spec.dilation)  # noqa: B905
    for length, count, outputs, stride, before, dilation in axes:
        inside = 0
        for shift in range(-before, count * dilation - before, dilation):
            first = max(-(shift // stride), 0)  # output that reads at 0 or behind
            last = min((length - 1 - shift) // stride, outputs - 1)
            inside += max(last - first + 1, 0)
        share *= inside / max(count * outputs, 1)
    return share < _MIN_INSIDE


def _are_channels_last(*maps: Tensor) -> bool:
    """Whether the maps lie in memory without gaps, channels last."""
    for x in maps:
        _, C, H, W = x.shape
        if x.stride() != (C * H * W, 1, W * C, C):
            return False
    return True


class Layer:
    """A convolution with packed weights and options, for inputs of one dtype.

    It holds only the packed weights; each call passes the original ones.
    """

    def __init__(self, weights: Weights, dtype: torch.dtype, spec: ConvSpec) -> None:
        """``dtype``: dtype of the inputs."""
        weight = weights.weight
        self.packs = Packs()
        self.spec, self.shape = spec, tuple(weight.shape)
        self.channels = self.shape[0] if spec.transposed else self.shape[1] * spec.groups
        self.options = engine_options(self.shape, spec)
        self.dtype = torch.float64 if dtype == torch.float64 else torch.float32  # to compute in
        dense = not spec.transposed
        self.onednn_pixels = least_onednn_pixels(self.shape, dtype, spec)
        self.may_skip_padding = (
            dense and spec.dilation != (1, 1) and dtype == torch.float32 and onednn.is_available()
        )
        self.may_use_onednn = self.may_skip_padding or self.onednn_pixels < math.inf
        self.tiles = winograd_tiles(weight, dtype, spec)

    @functools.cached_property  # not before, since most weights may come only once
    def guarded_options(self) -> Tensor:
        """The options of the ops that compare the weights with :attr:`packs`."""
        values = self.packs.fingerprint
        assert values is not None
        with torch.inference_mode(False):
            numbers = (self.options.new_full((1,), number) for number in (values, self.channels))
            return torch.cat([self.options, *numbers])

    @property
    def transposed_packs(self) -> Tensor | None:
        """The packed weights of a transposed convolution, if it has run with such."""
        prepared: Prepared | None = self.packs.find("prepared")
        return None if prepared is None else prepared.packed

    def again(
        self, input: Tensor, residual: Tensor | None, weights: tuple[Tensor | None, ...]
    ) -> Tensor | None:
        """The result if the weights are those that were packed; otherwise None or an error.

        The op says what does not fit in a RuntimeError.
        """
        if self.spec.transposed:
            packed, run = self.transposed_packs, _TRANSPOSED_GUARDED
        else:
            winograd = self.tiles is not None and self.tiles.suffice(input.shape)
            if self.may_use_onednn and self._onednn_wins(input.shape, winograd, residual):
                packed = None
            elif winograd:
                packed, run = self.packs.find("winograd"), _WINOGRAD_GUARDED
            else:
                packed, run = self.packs.find("plain"), _PLAIN_GUARDED
        if packed is not None:
            return run(input, packed, residual, self.guarded_options, *weights)
        if input.shape[1] != self.channels or fingerprint(weights) != self.packs.fingerprint:
            return None
        return self(input, residual, Weights(*weights))  # type: ignore[arg-type]

    @property
    def checks(self) -> bool:
        """Whether its kernel, chosen in the first call, checks shapes and dtypes itself."""
        if not self.spec.transposed:
            return True
        prepared = self.packs.find("prepared")
        return prepared is not None and prepared.weight is None

    def __call__(
        self,
        input: Tensor,
        residual: Tensor | None,
        weights: Weights,
        overwrite: bool = False,
    ) -> Tensor:
        """``weights``: the same values as in the constructor; ``overwrite``: whether the result may
        take the residual's memory."""
        if self.spec.transposed:
            return self._transposed(input, residual, weights)
        winograd = self.tiles is not None and self.tiles.suffice(input.shape)
        if self._onednn_wins(input.shape, winograd, residual) and onednn.supports(
            input, self.shape, residual, self.spec
        ):
            # oneDNN's weight layout depends on the input's shape
            packed = self.packs.get(input.shape, weights, lambda: self._reordered(input, weights))
            return onednn.convolution(input, packed, self.shape, residual, self.spec)
        form = "winograd" if winograd else "plain"
        packed = self.packs.find(form)
        if packed is None:
            make = self._transformed if winograd else self._packed
            packed = self.packs.get(form, weights, lambda: make(weights))
        if overwrite and residual is not None and _are_channels_last(input, residual):
            run_in_place = _WINOGRAD_IN_PLACE if winograd else _PLAIN_IN_PLACE
            run_in_place(input, packed, residual, self.options)
            return residual
        run = _WINOGRAD if winograd else _PLAIN
        return run(input, packed, residual, self.options)

    def _onednn_wins(self, shape: Sequence[int], winograd: bool, residual: Tensor | None) -> bool:
        N, _, H, W = shape
        (down, across), taps = self.spec.stride, self.shape[2:]
        # oneDNN's sum with a float32 residual is a pass of its own, which costs more than it gains
        adds_later = residual is not None and self.onednn_pixels > 0
        if not (winograd or adds_later) and N * (H // down) * (W // across) >= self.onednn_pixels:
            return True
        return self.may_skip_padding and sees_padding((H, W), taps, self.spec)

    def _folded(self, weights: Weights) -> tuple[Tensor, Tensor | None]:
        weight, bias = reference.fold_batch_norm(*weights, self.spec.eps)
        return (
            weight.detach().to(self.dtype),
            None if bias is None else bias.detach().to(self.dtype),
        )

    def _packed(self, weights: Weights) -> Tensor:
        return _OPS.conv_pack.default(*self._folded(weights), self.spec.groups)

    def _transformed(self, weights: Weights) -> Tensor:
        return _OPS.conv_winograd_pack.default(*self._folded(weights), False, self.spec.stride[0])

    def _reordered(self, input: Tensor, weights: Weights) -> tuple[Tensor, Tensor | None]:
        return onednn.pack(*self._folded(weights), input.shape, input.dtype, self.spec)

    def _transposed(self, input: Tensor, residual: Tensor | None, weights: Weights) -> Tensor:
        spec = self.spec
        prepared: Prepared = self.packs.get(
            "prepared", weights, lambda: prepare(weights, "cpp", self.dtype, spec)
        )
        if prepared.packed is not None:
            return _OPS.conv_transpose2d_packed.default(
                input, prepared.packed, residual, self.options
            )
        separable = prepared.separable
        if separable is None:
            return by_torch(input, prepared, residual, spec)
        left, _, top, _ = spec.padding
        size = spec.output_size(input.shape[2:], self.shape[2:])
        return _OPS.conv_transpose2d_separable.default(
            *(input, separable.rows, separable.columns, separable.scale, prepared.shift, residual),
            *(*spec.stride, top, left, *size, spec.activation, spec.negative_slope),
        )
