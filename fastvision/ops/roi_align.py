"""RoIAlign over one feature map or a feature pyramid; one op serves both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .. import reference
from .._memory_format import format_of, is_channels_last, memory_format
from . import _roi_align_max
from ._checks import check_number, is_traced, of_torchvision
from ._functions import differentiated, in_one_step
from ._library import declare
from ._plain import MISFITS, is_plain
from ._rois import as_recorded, as_rois, bins_of, check_feature, check_scale
from ._torchscript import traced_op

_SCHEMA = (
    "(Tensor[] features, Tensor rois, float[] spatial_scales, SymInt pooled_height, "
    "SymInt pooled_width, int sampling_ratio, bool aligned, float canonical_scale, "
    "float canonical_level, int min_level) -> Tensor"
)
# sizes: N, then H and W of each level
_BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor rois, SymInt[] sizes, float[] spatial_scales, int sampling_ratio, "
    "bool aligned, float canonical_scale, float canonical_level, int min_level, "
    "bool channels_last) -> Tensor[]"
)
MAX_LEVELS = 8  # kMaxLevels of csrc/common/roi_args.h
PoolMode = Literal["avg", "max"]


def _fake(
    features: list[Tensor],
    rois: Tensor,
    spatial_scales: list[float],
    pooled_height: int,
    pooled_width: int,
    *_: Any,
) -> Tensor:
    shape = (rois.shape[0], features[0].shape[1], pooled_height, pooled_width)
    return features[0].new_empty(shape).to(memory_format=format_of(features[0]))


def _fake_backward(grad: Tensor, rois: Tensor, sizes: list[int], *rest: Any) -> list[Tensor]:
    channels_last = rest[-1]
    N, C = sizes[0], grad.shape[1]
    return [
        grad.new_empty((N, C, H, W)).to(memory_format=memory_format(channels_last))
        for H, W in zip(sizes[1::2], sizes[2::2], strict=True)
    ]


_FORWARD = declare(
    "roi_align", _SCHEMA, fake=_fake, triton="kernels.roi_align.launch_roi_align",
    reference=reference.multiscale_roi_align, serves=("roi_align", "multiscale_roi_align"),
)  # fmt: skip
_BACKWARD = declare(
    "roi_align_backward", _BACKWARD_SCHEMA, fake=_fake_backward,
    triton="kernels.roi_align.launch_roi_align_backward",
)  # fmt: skip


class _RoIAlign(torch.autograd.Function):
    """Linear in the features: backward is the transpose, whose backward is the op itself."""

    @staticmethod
    def forward(backend: str, rois: Tensor, options: tuple[Any, ...], *features: Tensor) -> Tensor:
        return _FORWARD.run[backend](list(features), rois, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        backend, rois, options, *features = inputs
        ctx.save_for_backward(rois)
        ctx.save_for_forward(rois)
        ctx.backend, ctx.options = backend, options
        ctx.sizes = [features[0].shape[0]]
        for feature in features:
            ctx.sizes += feature.shape[2:]
        ctx.channels_last = is_channels_last(features[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (rois,) = ctx.saved_tensors
        needs_grad = torch.is_grad_enabled() and grad.requires_grad
        run = _RoIAlignBackward.apply if needs_grad else _run_backward
        grads = run(ctx.backend, rois, ctx.options, ctx.sizes, ctx.channels_last, grad)
        return (None, None, None, *grads)


_RoIAlignEager = in_one_step(_RoIAlign)


class _RoIAlignDual(_RoIAlign):
    """With forward-mode derivatives."""

    @staticmethod
    def jvp(ctx: Any, _backend: None, _rois: None, _options: None, *tangents: Tensor) -> Tensor:
        (rois,) = ctx.saved_tensors
        return _run(ctx.backend, rois, ctx.options, list(tangents))


class _RoIAlignBackward(torch.autograd.Function):
    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return tuple(_run_backward(*args))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.backend, rois, ctx.options = inputs[:3]
        ctx.save_for_backward(rois)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (rois,) = ctx.saved_tensors
        return (None, None, None, None, None, _run(ctx.backend, rois, ctx.options, list(grads)))


def _run_backward(
    backend: str,
    rois: Tensor,
    options: tuple[Any, ...],
    sizes: list[int],
    channels_last: bool,
    grad: Tensor,
) -> list[Tensor]:
    spatial_scales, _, _, sampling_ratio, aligned, *level_rule = options
    return _BACKWARD.run[backend](
        grad, rois, sizes, spatial_scales, sampling_ratio, aligned, *level_rule, channels_last
    )


def _pool(
    pool_mode: PoolMode,
    backend: str | None,
    boxes: Tensor | Sequence[Tensor],
    options: tuple[Any, ...],
    features: list[Tensor],
) -> Tensor:
    first = features[0]
    rois = as_rois(boxes, first)
    if pool_mode == "max":
        chosen = _roi_align_max.FORWARD.choose(first, backend)
        return _roi_align_max.run(chosen, rois, options, features)
    return _run(_FORWARD.choose(first, backend), rois, options, features)


def _check_pool_mode(pool_mode: object) -> None:
    if pool_mode not in ("avg", "max"):
        raise ValueError(f'pool_mode must be "avg" or "max", got {pool_mode!r}')


def _run(backend: str, rois: Tensor, options: tuple[Any, ...], features: list[Tensor]) -> Tensor:
    """The op, through autograd only where a derivative is wanted."""
    if backend == "reference":
        return reference.multiscale_roi_align(features, rois, *options)
    function = differentiated(features, _RoIAlign, _RoIAlignEager, _RoIAlignDual)
    if function is not None:
        pooled: Tensor = function.apply(backend, rois, options, *features)
        return pooled
    return _FORWARD.run[backend](features, rois, *options)


def _at_once(
    input: Tensor,
    boxes: Any,
    output_size: Any,
    spatial_scale: Any,
    sampling_ratio: Any,
    aligned: Any,
) -> Tensor | None:
    """The averages of a plain call with arguments as the op takes them; None for others."""
    try:
        PH, PW = (output_size, output_size) if type(output_size) is int else output_size
        if (
            type(boxes) is Tensor
            and boxes.is_cpu
            and boxes.dtype is torch.float32
            and input.dtype is not torch.float64
            and type(PH) is type(PW) is type(sampling_ratio) is int
            and PH >= 0
            and PW >= 0
            and type(spatial_scale) is float
            and math.isfinite(spatial_scale)
        ):
            bins = (PH, PW, sampling_ratio, aligned)
            pooled: Tensor = _FORWARD.direct([input], boxes, [spatial_scale], *bins, 0.0, 0.0, 0)
            return pooled
    except MISFITS:
        pass
    return None


def _traced_call(
    features: Sequence[Tensor], boxes: Tensor | Sequence[Tensor], *options: Any
) -> Tensor:
    """What torch.jit.trace records."""
    return _TRACED(features, as_recorded(boxes, features[0]), *options)


def _traced(features: list[Tensor], rois: Tensor, *options: Any) -> Tensor:
    scales, PH, PW, sampling_ratio, aligned, *level_rule, pool_mode, backend = options
    if len(features) == 1:
        return roi_align(
            features[0], rois, (PH, PW), scales[0], sampling_ratio, aligned, pool_mode=pool_mode,
            backend=backend,
        )  # fmt: skip
    canonical_scale, canonical_level, min_level = level_rule
    return multiscale_roi_align(
        features, rois, (PH, PW), scales, sampling_ratio, aligned, canonical_scale=canonical_scale,
        canonical_level=canonical_level, min_level=min_level, pool_mode=pool_mode, backend=backend,
    )  # fmt: skip


_TRACED = traced_op(
    "roi_align", _SCHEMA.replace(") ->", ", str pool_mode, str? backend) ->"), _traced
)


@torch.fx.wrap
def roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    *,
    pool_mode: PoolMode = "avg",
    backend: str | None = None,
) -> Tensor:
    """Averages bilinear samples in each bin of each box (RoIAlign, He et al. 2017, section 3).

    Args:
        input: [N, C, H, W] features; float16, bfloat16, float32 or float64, contiguous or
            channels_last.
        boxes: [K, 5] (batch index, x1, y1, x2, y2), or one [L, 4] per image.
        output_size: bins (PH, PW), or one number for both.
        spatial_scale: factor from box coordinates to pixels of ``input``; finite.
        sampling_ratio: samples per bin and axis; if <= 0, ``ceil(roi size / bins)``.
        aligned: shift the scaled coordinates by -0.5, since pixel centres are at integers. False is
            the original behaviour, in which boxes are at least one pixel wide and high.
        pool_mode: "max" takes the largest sample of a bin instead of the average, as in mmcv. A
            sample beyond one pixel outside the map is 0, and one that is NaN or below -3.4e38 is
            left out; a bin with no others has -3.4e38 (-inf in 16 bits), one without samples 0,
            where mmcv's has -3.4e38, too.
        backend: "cuda", "triton", "cpp" or "reference"; None picks the fastest that can run.

    Returns:
        [K, C, PH, PW] in the dtype and memory format of ``input``. Coordinates, weights and sums
        are float32 (float64 for float64 features), also under autocast and for 16-bit features.

    Differentiable in ``input``, any number of times and in forward mode, not one within the other,
    nor under vmap; the gradient is deterministic. Boxes get no gradient. The gradient of a largest
    sample, by rows the first of several, goes to the pixels around it.

    ===============================================  ===============================  ============
    input                                            CPU                              CUDA
    ===============================================  ===============================  ============
    batch index outside [0, N), or NaN               RuntimeError                     zeros
    NaN or infinite coordinate                       zeros                            zeros
    more than 2**20 samples per bin and axis,        RuntimeError                     zeros
    or with "max" than 2**24 per bin
    sample beyond one pixel outside the map          counts as 0                      counts as 0
    x2 < x1 or y2 < y1, aligned, adaptive sampling   zeros                            zeros
    K, C, PH or PW of 0                              empty result of that shape       the same
    H or W of 0                                      zeros                            zeros
    more than 2**31 elements                         works                            works
    ===============================================  ===============================  ============

    Raises:
        AssertionError: wrong shape of ``boxes`` (torchvision's error type).
        TypeError: another argument has the wrong type or dtype.
        ValueError: another argument has the wrong shape, device or value; ``backend`` cannot run
            here.
        RuntimeError: on the CPU, see the table.
        NotImplementedError: a sparse, nested or mkldnn tensor; a quantized one unless torchvision
            is imported, whose kernel then runs. With "max" it is a TypeError.
    """
    if (backend is None or backend == "cpp") and pool_mode == "avg" and is_plain(input):
        pooled_at_once = _at_once(input, boxes, output_size, spatial_scale, sampling_ratio, aligned)
        if pooled_at_once is not None:
            return pooled_at_once
    if isinstance(input, Tensor) and input.is_quantized and pool_mode == "avg":
        quantized = of_torchvision("roi_align", "input")
        return quantized(input, boxes, output_size, spatial_scale, sampling_ratio, aligned)
    pooled = bins_of(output_size)
    check_scale(spatial_scale)
    _check_pool_mode(pool_mode)
    if is_traced():
        level_rule = (0.0, 0.0, 0)
        numbers = ([spatial_scale], *pooled, sampling_ratio, aligned, *level_rule)
        return _traced_call([input], boxes, *numbers, pool_mode, backend)
    check_feature(input, "input")
    options = ([spatial_scale], *pooled, sampling_ratio, aligned, 0.0, 0.0, 0)
    return _pool(pool_mode, backend, boxes, options, [input])


def multiscale_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scales: Sequence[float],
    sampling_ratio: int = -1,
    aligned: bool = False,
    *,
    canonical_scale: float = 224,
    canonical_level: float = 4,
    min_level: int | None = None,
    pool_mode: PoolMode = "avg",
    backend: str | None = None,
) -> Tensor:
    """:func:`roi_align` from a feature pyramid in one launch, each box from the level of its size.

    A box of area A is pooled from level
    ``floor(canonical_level + log2(sqrt(A) / canonical_scale) + 1e-6)``, clamped to the given levels
    (Feature Pyramid Networks, Lin et al. 2017, equation 1). With more than one level, a box of
    negative or NaN area pools zeros.

    Args:
        features: up to 8 maps [N, C, H_l, W_l], finest first; cast to the dtype of the first.
        boxes: [K, 5] (batch index, x1, y1, x2, y2), or one [L, 4] per image, in pixels of the
            image.
        output_size: bins (PH, PW), or one number for both.
        spatial_scales: factor from box coordinates to pixels of each level; positive and finite.
        sampling_ratio, aligned, pool_mode, backend: see :func:`roi_align`.
        canonical_scale: size in pixels of boxes that belong to ``canonical_level``.
        canonical_level: level of boxes of that size.
        min_level: level of ``features[0]``; if None, ``-log2(spatial_scales[0])``.

    Returns:
        [K, C, PH, PW] in the dtype and memory format of ``features[0]``.

    Differentiable in ``features`` as :func:`roi_align` is in its input.

    Raises:
        AssertionError, TypeError, ValueError, RuntimeError, NotImplementedError: as in
            :func:`roi_align`, but quantized features are not supported.
    """
    if not 1 <= len(features) <= MAX_LEVELS:
        raise ValueError(f"features must be 1 to {MAX_LEVELS} levels, got {len(features)}")
    if len(spatial_scales) != len(features):
        raise ValueError(
            f"spatial_scales must be one per level, {len(features)}, got {len(spatial_scales)}"
        )
    first = features[0]
    pooled = bins_of(output_size)
    _check_pool_mode(pool_mode)
    for level, feature in enumerate(features if not is_traced() else ()):
        check_feature(feature, f"features[{level}]")
        if feature.shape[:2] != first.shape[:2] or feature.device != first.device:
            raise ValueError(
                f"features[{level}] must be [{first.shape[0]}, {first.shape[1]}, H, W] on "
                f"{first.device} as features[0], got {list(feature.shape)} on {feature.device}"
            )
    for level, scale in enumerate(spatial_scales):
        check_number(scale, f"spatial_scales[{level}]")
        if not 0 < scale < math.inf:
            raise ValueError(f"spatial_scales must be positive and finite, got {spatial_scales}")
    if min_level is None:
        min_level = int(-math.log2(spatial_scales[0]))
    # autocast may produce levels of different dtypes; the first one's wins, as in torchvision
    maps = [f if f.dtype == first.dtype else f.to(first.dtype) for f in features]
    options = (
        [float(scale) for scale in spatial_scales],
        *pooled,
        sampling_ratio,
        aligned,
        float(canonical_scale),
        float(canonical_level),
        min_level,
    )
    if is_traced():
        return _traced_call(maps, boxes, *options, pool_mode, backend)
    return _pool(pool_mode, backend, boxes, options, maps)


class RoIAlign(nn.Module):
    """Module form of :func:`roi_align`."""

    pool_mode: PoolMode = "avg"  # of modules pickled without one

    def __init__(
        self,
        output_size: int | Sequence[int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool = False,
        *,
        pool_mode: PoolMode = "avg",
    ) -> None:
        nn.Module.__init__(self)  # torchvision's class may be a base (integrations/torchvision)
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.pool_mode = pool_mode

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        return roi_align(
            input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned,
            pool_mode=self.pool_mode,
        )  # fmt: skip

    def extra_repr(self) -> str:
        pool_mode = "" if self.pool_mode == "avg" else f", pool_mode={self.pool_mode!r}"
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}{pool_mode}"
        )

    __repr__ = nn.Module.__repr__
