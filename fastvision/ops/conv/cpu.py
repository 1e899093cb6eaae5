"""Convolution of one layer on the CPU with weights packed once: direct, by Winograd's algorithm or
by oneDNN."""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from ... import reference
from .._library import direct
from . import onednn
from .packing import Packs, fingerprint
from .spec import ConvSpec, Weights
from .winograd import tiles_of

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
    "conv_transpose2d_winograd": _PACKED_SCHEMA,
    # the result takes the residual's memory
    "conv_packed_": _IN_PLACE_SCHEMA,
    "conv_winograd_": _IN_PLACE_SCHEMA,
    "conv_packed_guarded": _GUARDED_SCHEMA,
    "conv_winograd_guarded": _GUARDED_SCHEMA,
    "conv_transpose2d_packed_guarded": _GUARDED_SCHEMA,
    "conv_transpose2d_winograd_guarded": _GUARDED_SCHEMA,
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
    "conv_transpose2d_winograd_pack": (
        "(Tensor weight, Tensor? bias, int stride_y, int stride_x) -> Tensor"
    ),
    "conv_transpose2d_separable": (
        "(Tensor input, float[] rows, float[] columns, Tensor scale, Tensor? shift, "
        "Tensor? residual, int stride_y, int stride_x, int padding_y, int padding_x, int OH, "
        "int OW, int activation, float negative_slope) -> Tensor"
    ),
}.items():
    torch.library.define(f"fastvision::{_name}", _schema)

_OPS = torch.ops.fastvision
# by whether they use Winograd's algorithm
_RUN = _OPS.conv_packed.default, _OPS.conv_winograd.default
_RUN_IN_PLACE = _OPS.conv_packed_.default, _OPS.conv_winograd_.default
_GUARDED = direct(_OPS.conv_packed_guarded.default), direct(_OPS.conv_winograd_guarded.default)
_FORMS = "plain", "winograd"  # of packs
_MIN_INSIDE = 0.85  # share of the taps' reads; about where the two were equally fast
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


def least_onednn_pixels(shape: Sequence[int], dtype: torch.dtype, spec: ConvSpec) -> float:
    """The number of output pixels from which on oneDNN beats the engine, where it is fast."""
    if dtype not in onednn.fast_dtypes():
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


class PackedLayer:
    """A convolution with packed weights and options, for inputs of one dtype.

    It holds only the packed weights; each call passes the original ones.
    """

    def __init__(
        self, shape: Sequence[int], dtype: torch.dtype, spec: ConvSpec, *, once: bool = False
    ) -> None:
        """``shape``: of the weight; ``dtype``: of the inputs; ``once``: it runs once."""
        self.packs = Packs()
        self.tiles = tiles_of(shape, dtype, spec, once=once)
        self.spec, self.shape = spec, tuple(shape)
        self.channels = shape[0] if spec.transposed else shape[1] * spec.groups
        self.options = engine_options(shape, spec)
        self.dtype = torch.float64 if dtype == torch.float64 else torch.float32  # to compute in

    @functools.cached_property  # not before, since most weights may come only once
    def guarded_options(self) -> Tensor:
        """The options of the ops that compare the weights with :attr:`packs`."""
        values = self.packs.fingerprint
        assert values is not None
        with torch.inference_mode(False):
            numbers = (self.options.new_full((1,), number) for number in (values, self.channels))
            return torch.cat([self.options, *numbers])

    def again(
        self, input: Tensor, residual: Tensor | None, weights: tuple[Tensor | None, ...]
    ) -> Tensor | None:
        """The result if the weights are those that were packed; otherwise None or an error.

        The op says what does not fit in a RuntimeError.
        """
        raise NotImplementedError

    def _unguarded(
        self, input: Tensor, residual: Tensor | None, weights: tuple[Tensor | None, ...]
    ) -> Tensor | None:
        """:meth:`again` where no op compares the weights."""
        if input.shape[1] != self.channels or fingerprint(weights) != self.packs.fingerprint:
            return None
        return self(input, residual, Weights(*weights))  # type: ignore[arg-type]

    def __call__(
        self,
        input: Tensor,
        residual: Tensor | None,
        weights: Weights,
        overwrite: bool = False,
    ) -> Tensor:
        """``weights``: those of the fingerprint, if there is one; ``overwrite``: whether the result
        may take the residual's memory."""
        raise NotImplementedError


class Layer(PackedLayer):
    """A convolution that is not transposed."""

    def __init__(
        self, shape: Sequence[int], dtype: torch.dtype, spec: ConvSpec, *, once: bool = False
    ) -> None:
        super().__init__(shape, dtype, spec, once=once)
        self.onednn_pixels = least_onednn_pixels(shape, dtype, spec)
        self.may_skip_padding = (
            spec.dilation != (1, 1) and dtype == torch.float32 and onednn.is_available()
        )
        self.may_use_onednn = self.may_skip_padding or self.onednn_pixels < math.inf

    def again(
        self, input: Tensor, residual: Tensor | None, weights: tuple[Tensor | None, ...]
    ) -> Tensor | None:
        shape = input.shape
        winograd = self.tiles is not None and self.tiles.suffice(shape)
        if not (self.may_use_onednn and self._onednn_wins(shape, winograd, residual)):
            packed = self.packs.find(_FORMS[winograd])
            if packed is not None:
                run = _GUARDED[winograd]
                output: Tensor = run(input, packed, residual, self.guarded_options, *weights)
                return output
        return self._unguarded(input, residual, weights)

    def __call__(
        self,
        input: Tensor,
        residual: Tensor | None,
        weights: Weights,
        overwrite: bool = False,
    ) -> Tensor:
        winograd = self.tiles is not None and self.tiles.suffice(input.shape)
        if self._onednn_wins(input.shape, winograd, residual) and onednn.supports(
            input, self.shape, residual, self.spec
        ):
            # oneDNN's weight layout depends on the input's shape
            packed = self.packs.get(input.shape, weights, lambda: self._reordered(input, weights))
            return onednn.convolution(input, packed, self.shape, residual, self.spec)
        form = _FORMS[winograd]
        packed = self.packs.find(form)
        if packed is None:
            make = self._transformed if winograd else self._packed
            packed = self.packs.get(form, weights, lambda: make(weights))
        if overwrite and residual is not None and _are_channels_last(input, residual):
            _RUN_IN_PLACE[winograd](input, packed, residual, self.options)
            return residual
        return _RUN[winograd](input, packed, residual, self.options)

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
