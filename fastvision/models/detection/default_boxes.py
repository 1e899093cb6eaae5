"""Default boxes of SSD: boxes of fixed shapes around every pixel of a feature map."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ._constants import moved
from .anchors import box_dtype
from .image_list import ImageList


class DefaultBoxGenerator(nn.Module):
    """Default boxes of one scale per map (Liu et al., SSD, 2016, section 2.2).

    torchvision's constructor and methods. A map of scale s has a square of s and one of the
    geometric mean of s and the next scale, and for each aspect ratio a box of area s² in both
    orientations.

    Args:
        aspect_ratios: for each map the ratios of width to height beside 1.
        min_ratio, max_ratio: scales of the first and the last map; those between are equidistant.
        scales: of each map and one more, in units of the image; they replace the two ratios.
        steps: pixels of the image between pixels of each map; if None, the map covers the image.
        clip: whether widths and heights are limited to the image's.

    Raises:
        ValueError: another number of ``steps`` than of ``aspect_ratios``, or too few ``scales``.
    """

    def __init__(
        self,
        aspect_ratios: Sequence[Sequence[float]],
        min_ratio: float = 0.15,
        max_ratio: float = 0.9,
        scales: Sequence[float] | None = None,
        steps: Sequence[int] | None = None,
        clip: bool = True,
    ) -> None:
        super().__init__()
        maps = len(aspect_ratios)
        if steps is not None and len(steps) != maps:
            raise ValueError(
                f"aspect_ratios and steps should have the same length, got {maps} and {len(steps)}"
            )
        if scales is None and maps == 1:
            scales = [min_ratio, max_ratio]
        elif scales is None:
            span = max_ratio - min_ratio
            scales = [*(min_ratio + span * k / (maps - 1.0) for k in range(maps)), 1.0]
        elif len(scales) <= maps:
            raise ValueError(f"scales must have more than {maps} elements, got {len(scales)}")
        self.aspect_ratios = aspect_ratios
        self.scales, self.steps, self.clip = scales, steps, clip
        self._wh_pairs = [self._shapes(k) for k in range(maps)]

    def _shapes(self, k: int) -> Tensor:
        """[boxes of a pixel, 2] widths and heights on map ``k``, in units of the image."""
        scale = self.scales[k]
        between = math.sqrt(scale * self.scales[k + 1])
        shapes = [(scale, scale), (between, between)]
        for ratio in self.aspect_ratios[k]:
            width, height = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
            shapes += [(width, height), (height, width)]
        return torch.tensor(shapes, dtype=torch.float32)

    def num_anchors_per_location(self) -> list[int]:
        """Number of boxes around a pixel of each map."""
        return [len(shapes) for shapes in self._wh_pairs]

    def of_levels(self, image_list: ImageList, feature_maps: Sequence[Tensor]) -> list[Tensor]:
        """Corners [H W A, 4] of the boxes of each map, in pixels, which all images share.

        Raises:
            AssertionError: another number of maps than of ``aspect_ratios``.
        """
        if len(feature_maps) != len(self._wh_pairs):
            raise AssertionError(
                f"the default boxes have aspect_ratios for {len(self._wh_pairs)} feature maps, "
                f"got {len(feature_maps)}"
            )
        height, width = image_list.tensors.shape[-2:]
        kind, device = box_dtype(feature_maps[0]), feature_maps[0].device
        levels = []
        for k, (features, shapes) in enumerate(zip(feature_maps, self._wh_pairs, strict=True)):
            rows, columns = features.shape[-2:]
            down: float = rows if self.steps is None else height / self.steps[k]
            right: float = columns if self.steps is None else width / self.steps[k]
            # in float32 for any type of maps, as in torchvision
            x = ((torch.arange(columns, device=device) + 0.5) / right).to(kind)
            y = ((torch.arange(rows, device=device) + 0.5) / down).to(kind)
            half = 0.5 * moved(shapes.clamp(0, 1) if self.clip else shapes, kind, device)
            level = torch.empty((rows, columns, len(half), 4), dtype=kind, device=device)
            for axis, (at, pixels) in enumerate(((x[:, None], width), (y[:, None, None], height))):
                level[..., axis] = (at - half[:, axis]) * pixels
                level[..., axis + 2] = (at + half[:, axis]) * pixels
            levels.append(level.view(-1, 4))
        return levels

    def forward(self, image_list: ImageList, feature_maps: Sequence[Tensor]) -> list[Tensor]:
        """Boxes [sum of H W A, 4] of each image, one tensor that all of them share."""
        boxes = torch.cat(self.of_levels(image_list, feature_maps))
        return [boxes] * len(image_list.image_sizes)

    def extra_repr(self) -> str:
        return (
            f"aspect_ratios={self.aspect_ratios}, clip={self.clip}, scales={self.scales}, "
            f"steps={self.steps}"
        )
