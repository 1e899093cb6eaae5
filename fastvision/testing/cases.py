"""Seeded inputs for every op: small cases for tests, realistic ones for benchmarks."""

from __future__ import annotations

import torch
from torch import Tensor

IMAGE_HEIGHT, IMAGE_WIDTH = 800, 1216


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform_boxes(
    count: int, *, seed: int = 0, min_size: float = 8, max_size: float = 128
) -> Tensor:
    """[count, 4] corners of boxes uniform in position (800x1216 image) and side length."""
    g = generator(seed)
    corner = torch.rand(count, 2, generator=g) * torch.tensor([IMAGE_WIDTH, IMAGE_HEIGHT])
    size = min_size + torch.rand(count, 2, generator=g) * (max_size - min_size)
    return torch.cat([corner, corner + size], 1)


def clustered_boxes(count: int, *, seed: int = 0, objects: int = 40) -> Tensor:
    """[count, 4] corners as a detector produces them: jittered copies of a few objects."""
    g = generator(seed)
    centre = torch.rand(objects, 2, generator=g) * torch.tensor([IMAGE_WIDTH, IMAGE_HEIGHT])
    size = torch.exp(torch.rand(objects, 2, generator=g) * 2.5 + 3)  # 20 to 245 pixels
    which = torch.randint(0, objects, (count,), generator=g)
    centre = centre[which] + torch.randn(count, 2, generator=g) * size[which] * 0.15
    size = size[which] * torch.exp(torch.randn(count, 2, generator=g) * 0.2)
    return torch.cat([centre - size / 2, centre + size / 2], 1)


def scores(count: int, *, seed: int = 1) -> Tensor:
    """[count] scores, uniform in [0, 1)."""
    return torch.rand(count, generator=generator(seed))


def classes(count: int, num_classes: int, *, seed: int = 2) -> Tensor:
    """[count] int64 labels below ``num_classes``."""
    return torch.randint(0, num_classes, (count,), generator=generator(seed))


def feature_map(
    *shape: int, seed: int = 3, dtype: torch.dtype = torch.float32, channels_last: bool = False
) -> Tensor:
    """[N, C, H, W] features from a standard normal distribution."""
    x = torch.randn(*shape, generator=generator(seed)).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def rois(
    count: int,
    images: int,
    *,
    seed: int = 4,
    height: float = IMAGE_HEIGHT,
    width: float = IMAGE_WIDTH,
    min_size: float = 16,
    max_size: float = 256,
) -> Tensor:
    """[count, 5] (image, x1, y1, x2, y2); some reach across the right or bottom border."""
    g = generator(seed)
    image = torch.randint(0, images, (count, 1), generator=g).float()
    corner = torch.rand(count, 2, generator=g) * torch.tensor([width, height]) * 0.9
    size = min_size + torch.rand(count, 2, generator=g) * (max_size - min_size)
    return torch.cat([image, corner, corner + size], 1)


def pyramid(
    images: int,
    channels: int,
    *,
    height: int = IMAGE_HEIGHT,
    width: int = IMAGE_WIDTH,
    levels: int = 4,
    seed: int = 5,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> tuple[list[Tensor], list[float]]:
    """Feature maps with strides 4, 8, 16, ..., and their spatial scales."""
    strides = [4 << level for level in range(levels)]
    maps = [
        feature_map(
            images,
            channels,
            height // stride,
            width // stride,
            seed=seed + stride,
            dtype=dtype,
            channels_last=channels_last,
        )
        for stride in strides
    ]
    return maps, [1 / stride for stride in strides]


def small_rois(
    count: int, images: int, height: int, width: int, scale: float, seed: int = 4
) -> Tensor:
    """Boxes from a fraction of a pixel to most of the map, some over its borders on all sides."""
    boxes = rois(
        count,
        images,
        seed=seed,
        height=height / scale,
        width=width / scale,
        min_size=0.5 / scale,
        max_size=0.8 * min(height, width) / scale,
    )
    boxes[::3, 1:] -= 4 / scale
    return boxes


def rotated(rois: Tensor, seed: int = 8) -> Tensor:
    """[K, 6] (image, cx, cy, width, height, degrees) of [K, 5] boxes, at any angle."""
    degrees = torch.rand(len(rois), 1, generator=generator(seed)) * 720 - 360
    centre, size = (rois[:, 1:3] + rois[:, 3:]) / 2, rois[:, 3:] - rois[:, 1:3]
    return torch.cat([rois[:, :1], centre, size, degrees.to(rois)], 1)
