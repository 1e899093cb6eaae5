"""Images of several sizes in one tensor."""

from __future__ import annotations

from typing import Any

from torch import Tensor

Size = tuple[int, int]  # (height, width)
Target = dict[str, Tensor]  # "boxes", "labels" and others, of an image


class ImageList:
    """A batch of images, each in the upper left corner, and their sizes.

    Args:
        tensors: [N, C, H, W], zeros beyond the images.
        image_sizes: (height, width) of each image.
    """

    def __init__(self, tensors: Tensor, image_sizes: list[Size]) -> None:
        self.tensors = tensors
        self.image_sizes = image_sizes

    def to(self, device: Any) -> ImageList:
        return ImageList(self.tensors.to(device), self.image_sizes)
