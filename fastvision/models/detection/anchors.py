"""Anchors: boxes of fixed sizes and shapes around every pixel of a feature map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._constants import moved
from .image_list import ImageList


def box_dtype(features: Tensor) -> torch.dtype:
    """Of boxes on these maps: 16 bits would not tell pixels of a large image apart."""
    return torch.promote_types(features.dtype, torch.float32)


def shared(of_images: Sequence[Tensor]) -> Tensor:
    """Anchors [A, 4] of each image as [N, A, 4], or as [1, A, 4] if they are one tensor."""
    first = of_images[0]
    if all(anchors is first for anchors in of_images):
        return first[None]
    return torch.stack(list(of_images))


class AnchorGenerator(nn.Module):
    """Anchors of several sizes and aspect ratios on each level of a pyramid (Ren, He, Girshick and
    Sun, Faster R-CNN, 2015, section 3.1.1).

    torchvision's constructor and methods; for 16-bit maps its anchors are of 16 bits, these are
    float32.

    Args:
        sizes: for each level its sizes, the square roots of areas in pixels, or one number.
        aspect_ratios: for each level its ratios of height to width, or those of all levels.

    Raises:
        ValueError: the two are of different numbers of levels.
    """

    def __init__(
        self,
        sizes: Sequence[Any] = ((128, 256, 512),),
        aspect_ratios: Sequence[Any] = ((0.5, 1.0, 2.0),),
    ) -> None:
        super().__init__()
        if not isinstance(sizes[0], (list, tuple)):
            sizes = tuple((size,) for size in sizes)
        if not isinstance(aspect_ratios[0], (list, tuple)):
            aspect_ratios = (aspect_ratios,) * len(sizes)
        if len(sizes) != len(aspect_ratios):
            raise ValueError(
                "sizes and aspect_ratios must be of the same number of levels, "
                f"got {len(sizes)} and {len(aspect_ratios)}"
            )
        self.sizes, self.aspect_ratios = sizes, aspect_ratios
        self.cell_anchors = [
            self.generate_anchors(*level) for level in zip(sizes, aspect_ratios, strict=True)
        ]

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: Any = "cpu",
    ) -> Tensor:
        """[ratios x sizes, 4] corners of the anchors around the origin, rounded to pixels."""
        heights = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        size = torch.as_tensor(scales, dtype=dtype, device=device)
        half = torch.stack(((1 / heights)[:, None] * size, heights[:, None] * size), -1) / 2
        half = half.flatten(0, 1)
        return torch.cat((-half, half), 1).round()

    def num_anchors_per_location(self) -> list[int]:
        """Number of anchors around a pixel of each level."""
        pairs = zip(self.sizes, self.aspect_ratios, strict=True)
        return [len(sizes) * len(ratios) for sizes, ratios in pairs]

    def grid_anchors(
        self,
        grid_sizes: Sequence[Sequence[int]],
        strides: Sequence[Sequence[Any]],
        *,
        dtype: torch.dtype = torch.float32,
        device: Any = "cpu",
    ) -> list[Tensor]:
        """Anchors [H W A, 4] of each level, by rows, columns, and anchors around a pixel.

        Args:
            grid_sizes: (height, width) of the maps.
            strides: pixels of the image between pixels of the maps, (vertical, horizontal).
            dtype, device: of the anchors.

        Raises:
            AssertionError: another number of maps than of levels.
        """
        if not len(grid_sizes) == len(strides) == len(self.cell_anchors):
            raise AssertionError(
                f"the anchor generator has sizes and aspect_ratios for {len(self.cell_anchors)} "
                f"feature maps, got {len(grid_sizes)}"
            )
        anchors = []
        for (height, width), (down, right), cell in zip(
            grid_sizes, strides, self.cell_anchors, strict=True
        ):
            cell = moved(cell, dtype, torch.device(device))
            x = torch.arange(width, dtype=torch.int32, device=cell.device) * right
            y = torch.arange(height, dtype=torch.int32, device=cell.device) * down
            columns = x[:, None, None] + cell[:, 0::2]
            rows = y[:, None, None] + cell[:, 1::2]
            level = cell.new_empty((height, width, len(cell), 4))
            level[..., 0::2] = columns
            level[..., 1::2] = rows[:, None]
            anchors.append(level.view(-1, 4))
        return anchors

    def of_levels(self, image_list: ImageList, feature_maps: Sequence[Tensor]) -> list[Tensor]:
        """Anchors [H W A, 4] of each map, which all images share, in pixels of the image list."""
        height, width = image_list.tensors.shape[-2:]
        grids = [(x.shape[-2], x.shape[-1]) for x in feature_maps]
        kind, device = box_dtype(feature_maps[0]), feature_maps[0].device
        strides = [(height // h, width // w) for h, w in grids]
        return self.grid_anchors(grids, strides, dtype=kind, device=device)

    def forward(self, image_list: ImageList, feature_maps: Sequence[Tensor]) -> list[Tensor]:
        """Anchors [sum of H W A, 4] of each image, one tensor that all of them share."""
        anchors = torch.cat(self.of_levels(image_list, feature_maps))
        return [anchors] * len(image_list.image_sizes)
