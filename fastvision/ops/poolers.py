"""Pooling of boxes from a dictionary of feature maps, as in torchvision's detectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ._rois import as_rois, bins_of
from ._utils import _upcast
from .roi_align import MAX_LEVELS, PoolMode, multiscale_roi_align, roi_align


class LevelMapper:
    """The pyramid level of each box (Feature Pyramid Networks, Lin et al. 2017, equation 1).

    A box of area A belongs to ``floor(canonical_level + log2(sqrt(A) / canonical_scale) + eps)``,
    clamped to [k_min, k_max].
    """

    def __init__(
        self,
        k_min: int,
        k_max: int,
        canonical_scale: int = 224,
        canonical_level: int = 4,
        eps: float = 1e-6,
    ) -> None:
        self.k_min = k_min
        self.k_max = k_max
        self.s0 = canonical_scale
        self.lvl0 = canonical_level
        self.eps = eps

    def __call__(self, boxlists: list[Tensor]) -> Tensor:
        """int64 [sum of L], counted from ``k_min``, of one [L, 4] per image."""
        x1, y1, x2, y2 = _upcast(torch.cat(boxlists)).unbind(1)
        size = torch.sqrt((x2 - x1) * (y2 - y1))
        eps = torch.tensor(self.eps, dtype=size.dtype)
        level = torch.floor(self.lvl0 + torch.log2(size / self.s0) + eps)
        return level.clamp(self.k_min, self.k_max).to(torch.int64) - self.k_min


def initLevelMapper(
    k_min: int,
    k_max: int,
    canonical_scale: int = 224,
    canonical_level: int = 4,
    eps: float = 1e-6,
) -> LevelMapper:
    """:class:`LevelMapper`, under a name that torchvision has."""
    return LevelMapper(k_min, k_max, canonical_scale, canonical_level, eps)


def _infer_scale(feature: Tensor, original_size: Sequence[int]) -> float:
    """The power of two nearest to a feature map's height divided by the image's."""
    return 2.0 ** round(math.log2(feature.shape[-2] / original_size[0]))


def _largest(image_shapes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    if not image_shapes:
        raise ValueError("image_shapes must not be empty")
    return max(shape[0] for shape in image_shapes), max(shape[1] for shape in image_shapes)


@torch.fx.wrap
def _setup_scales(
    features: list[Tensor],
    image_shapes: list[tuple[int, int]],
    canonical_scale: int,
    canonical_level: int,
) -> tuple[list[float], LevelMapper]:
    """The scale of each map, and the mapper to levels from the first one's to the last one's."""
    size = _largest(image_shapes)
    scales = [_infer_scale(feature, size) for feature in features]
    first, last = (-math.log2(scale) for scale in (scales[0], scales[-1]))
    return scales, initLevelMapper(int(first), int(last), canonical_scale, canonical_level)


@torch.fx.wrap
def _filter_input(x: dict[str, Tensor], featmap_names: list[str]) -> list[Tensor]:
    """The maps with these names, in their own order."""
    return [feature for name, feature in x.items() if name in featmap_names]


@torch.fx.wrap
def _multiscale_roi_align(
    x_filtered: list[Tensor],
    boxes: list[Tensor],
    output_size: Sequence[int],
    sampling_ratio: int,
    scales: list[float] | None,
    mapper: LevelMapper | None,
) -> Tensor:
    """Boxes [L, 4] per image, each pooled from the level that ``mapper`` gives it.

    In one launch, unless levels are missing between the first and the last, whose boxes pool zeros,
    or ``mapper`` is of another class or tolerance.

    Raises:
        ValueError: ``scales`` or ``mapper`` is None.
    """
    if scales is None or mapper is None:
        raise ValueError("scales and mapper must not be None")
    first = x_filtered[0]
    if len(x_filtered) == 1:
        return roi_align(first, boxes, output_size, scales[0], sampling_ratio)
    levels = len(x_filtered)
    if (
        type(mapper) is LevelMapper
        and mapper.eps == 1e-6
        and mapper.k_max - mapper.k_min + 1 == levels <= MAX_LEVELS
    ):
        return multiscale_roi_align(
            x_filtered,
            boxes,
            output_size,
            scales,
            sampling_ratio,
            canonical_scale=mapper.s0,
            canonical_level=mapper.lvl0,
            min_level=mapper.k_min,
        )
    level_of = mapper(boxes)
    rois = as_rois(boxes, first)
    result = first.new_zeros((len(rois), first.shape[1], *bins_of(output_size)))
    for level, (feature, scale) in enumerate(zip(x_filtered, scales, strict=False)):
        index = torch.where(level_of == level)[0]
        pooled = roi_align(feature, rois[index], output_size, scale, sampling_ratio)
        result = result.index_copy(0, index, pooled.to(first.dtype))
    return result


@torch.fx.wrap
def _pool(
    x: dict[str, Tensor],
    boxes: list[Tensor],
    image_shapes: list[tuple[int, int]],
    names: list[str],
    output_size: tuple[int, ...],
    sampling_ratio: int,
    canonical_scale: int,
    canonical_level: int,
    pool_mode: PoolMode,
) -> Tensor:
    size = _largest(image_shapes)
    features = _filter_input(x, names)
    return multiscale_roi_align(
        features,
        boxes,
        output_size,
        [_infer_scale(feature, size) for feature in features],
        sampling_ratio,
        canonical_scale=canonical_scale,
        canonical_level=canonical_level,
        pool_mode=pool_mode,
    )


class MultiScaleRoIAlign(nn.Module):
    """:func:`multiscale_roi_align` with scales inferred from the sizes of maps and images.

    The scale of a map is the power of two nearest to its height divided by the largest image
    height.

    Args:
        featmap_names: names of the maps to pool from, among those passed to forward.
        output_size: bins (PH, PW), or one number for both.
        sampling_ratio: see :func:`roi_align`.
        canonical_scale, canonical_level, pool_mode: see :func:`multiscale_roi_align`.

    torchvision's module keeps the scales of its first call; this one infers them in every call.
    If a level between the first and the last is missing, its boxes are pooled from the next coarser
    map, where torchvision returns zeros.
    """

    pool_mode: PoolMode = "avg"  # of modules pickled without one

    def __init__(
        self,
        featmap_names: list[str],
        output_size: int | Sequence[int],
        sampling_ratio: int,
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
        pool_mode: PoolMode = "avg",
    ) -> None:
        nn.Module.__init__(self)  # torchvision's class may be a base (integrations/torchvision)
        if isinstance(output_size, int):
            output_size = (output_size, output_size)
        self.featmap_names = featmap_names
        self.sampling_ratio = sampling_ratio
        self.output_size = tuple(output_size)
        self.canonical_scale = canonical_scale
        self.canonical_level = canonical_level
        self.pool_mode = pool_mode

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Pools the boxes of all images.

        Args:
            x: feature maps [N, C, H_l, W_l] by name, finest first.
            boxes: [L, 4] (x1, y1, x2, y2) per image, in pixels of the image.
            image_shapes: (height, width) of each image.

        Returns:
            [sum of L, C, PH, PW], in the order of ``boxes``.

        Raises:
            ValueError: ``image_shapes`` is empty; otherwise as in :func:`multiscale_roi_align`.
        """
        return _pool(
            x,
            boxes,
            image_shapes,
            self.featmap_names,
            self.output_size,
            self.sampling_ratio,
            self.canonical_scale,
            self.canonical_level,
            self.pool_mode,
        )

    def extra_repr(self) -> str:
        pool_mode = "" if self.pool_mode == "avg" else f", pool_mode={self.pool_mode!r}"
        return (
            f"featmap_names={self.featmap_names}, output_size={self.output_size}, "
            f"sampling_ratio={self.sampling_ratio}{pool_mode}"
        )

    __repr__ = nn.Module.__repr__
