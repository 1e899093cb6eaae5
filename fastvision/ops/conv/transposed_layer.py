"""Transposed convolution of one layer on the CPU with weights packed once: phase by phase, by
Winograd's algorithm, separable or by torch."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._library import direct
from .cpu import PackedLayer
from .prepared import MAX_PHASES, Prepared, by_torch, prepare
from .spec import ConvSpec, Weights

_OPS = torch.ops.fastvision
# by whether they use Winograd's algorithm
_RUN = _OPS.conv_transpose2d_packed.default, _OPS.conv_transpose2d_winograd.default
_GUARDED = (
    direct(_OPS.conv_transpose2d_packed_guarded.default),
    direct(_OPS.conv_transpose2d_winograd_guarded.default),
)
_KINDS = "cpp", "winograd"
guarded_alone = direct(_OPS.conv_transpose2d_alone_guarded.default)
# from which on packing dense weights for a single call pays: with fewer, torch is as fast
_MIN_PACKED_PIXELS = 1024


class TransposedLayer(PackedLayer):
    """A transposed convolution."""

    def __init__(
        self, shape: Sequence[int], dtype: torch.dtype, spec: ConvSpec, *, once: bool = False
    ) -> None:
        super().__init__(shape, dtype, spec, once=once)
        self.least_pixels = _MIN_PACKED_PIXELS if once and dtype == self.dtype else 0
        self.input_dtype = dtype
        self.pixel_differs = spec.stride != self._window()  # whether it has a layer of its own

    @functools.cached_property
    def for_pixel(self) -> TransposedLayer | None:
        """The layer for inputs of a single pixel, whose stride does not matter: with one as large
        as the window, each result has a single tap, where most would meet padding."""
        stride = self._window()
        if not self.pixel_differs or math.prod(stride) > MAX_PHASES:
            return None
        # if it runs once, too: 100 to 512 channels and 4x4 taps take 0.9 of torch's time
        layer = TransposedLayer(self.shape, self.input_dtype, self.spec._replace(stride=stride))
        layer.packs.fingerprint = self.packs.fingerprint
        return layer

    def _window(self) -> tuple[int, int]:
        (down, across), (R, S) = self.spec.dilation, self.shape[2:]
        return down * R, across * S

    @property
    def packed_for_all(self) -> Tensor | None:
        """The packed weights that serve inputs of any size but a single pixel, once they exist."""
        prepared: Prepared | None = None if self.tiles else self.packs.find(_KINDS[False])
        return None if prepared is None else prepared.packed

    def again(
        self, input: Tensor, residual: Tensor | None, weights: tuple[Tensor | None, ...]
    ) -> Tensor | None:
        shape = input.shape
        _, _, H, W = shape
        if self.pixel_differs and H == W == 1 and self.for_pixel is not None:
            return self.for_pixel.again(input, residual, weights)
        winograd = self.tiles is not None and self.tiles.suffice(shape)
        prepared: Prepared | None = self.packs.find(_KINDS[winograd])
        if prepared is None or prepared.weight is not None:
            return None  # torch does not check arguments as the kernels do
        if prepared.packed is None:
            return self._unguarded(input, residual, weights)
        run = _GUARDED[winograd]
        output: Tensor = run(input, prepared.packed, residual, self.guarded_options, *weights)
        return output

    def __call__(
        self,
        input: Tensor,
        residual: Tensor | None,
        weights: Weights,
        overwrite: bool = False,
    ) -> Tensor:
        N, _, H, W = input.shape
        if self.pixel_differs and H == W == 1 and self.for_pixel is not None:
            return self.for_pixel(input, residual, weights)
        spec = self.spec
        winograd = self.tiles is not None and self.tiles.suffice(input.shape)
        kind = _KINDS[winograd]
        are_few = self.least_pixels > N * H * W
        if are_few and spec.groups == 1 and not winograd:
            kind = "aten"
        prepared: Prepared = self.packs.get(
            kind, weights, lambda: prepare(weights, kind, self.dtype, spec)
        )
        if prepared.packed is not None:
            return _RUN[winograd](input, prepared.packed, residual, self.options)
        separable = prepared.separable
        if separable is None:
            return by_torch(input, prepared, residual, spec)
        left, _, top, _ = spec.padding
        size = spec.output_size(input.shape[2:], self.shape[2:])
        return _OPS.conv_transpose2d_separable.default(
            *(input, separable.rows, separable.columns, separable.scale, prepared.shift, residual),
            *(*spec.stride, top, left, *size, spec.activation, spec.negative_slope),
        )
