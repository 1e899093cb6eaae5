"""Pooling of boxes from a dictionary of feature maps, as in torchvision's detectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .roi_align import multiscale_roi_align


def _infer_scale(size: int, image_size: int) -> float:
    """The power of two nearest to a feature map's height divided by the image's."""
    return 2.0 ** round(math.log2(size / image_size))


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
) -> Tensor:
    if not image_shapes:
        raise ValueError("image_shapes must not be empty")
    features = [feature for name, feature in x.items() if name in names]
    height = max(shape[0] for shape in image_shapes)
    scales = [_infer_scale(feature.shape[-2], height) for feature in features]
    return multiscale_roi_align(
        features,
        boxes,
        output_size,
        scales,
        sampling_ratio,
        canonical_scale=canonical_scale,
        canonical_level=canonical_level,
    )


class MultiScaleRoIAlign(nn.Module):
    """:func:`multiscale_roi_align` with scales inferred from the sizes of maps and images.

    The scale of a map is the power of two nearest to its height divided by the largest image
    height.

    Args:
        featmap_names: names of the maps to pool from, among those passed to forward.
        output_size: bins (PH, PW), or one number for both.
        sampling_ratio: see :func:`roi_align`.
        canonical_scale, canonical_level: see :func:`multiscale_roi_align`.

    torchvision's module keeps the scales of its first call; this one infers them in every call.
    If a level between the first and the last is missing, its boxes are pooled from the next coarser
    map, where torchvision returns zeros.
    """

    def __init__(
        self,
        featmap_names: list[str],
        output_size: int | Sequence[int],
        sampling_ratio: int,
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
    ) -> None:
        nn.Module.__init__(self)  # torchvision's class may be a base (integrations/torchvision)
        if isinstance(output_size, int):
            output_size = (output_size, output_size)
        self.featmap_names = featmap_names
        self.sampling_ratio = sampling_ratio
        self.output_size = tuple(output_size)
        self.canonical_scale = canonical_scale
        self.canonical_level = canonical_level

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
        )

    def extra_repr(self) -> str:
        return (
            f"featmap_names={self.featmap_names}, output_size={self.output_size}, "
            f"sampling_ratio={self.sampling_ratio}"
        )

    __repr__ = nn.Module.__repr__
