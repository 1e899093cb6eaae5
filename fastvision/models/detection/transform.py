"""What is done to images before a detector, and to its detections after it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...ops._checks import check_tensor
from .._images import IMAGENET_MEAN, IMAGENET_STD
from ._constants import constant
from ._parts import check_counts, check_numbers, check_positive
from .image_list import ImageList, Size, Target
from .masks import paste_masks_in_image


def _per_channel(
    name: str, values: Sequence[float] | None, default: Sequence[float]
) -> Sequence[float]:
    if values is None:
        return list(default)
    if not isinstance(values, (list, tuple)) or not values:
        raise TypeError(f"{name} must be a list of a number per channel, got {values!r}")
    for value in values:
        check_numbers(**{name: value})
    return values


class GeneralizedRCNNTransform(nn.Module):
    """Normalizes images, resizes them, and puts them into one batch.

    torchvision's constructor and methods.

    Args:
        min_size: wanted size of an image's shorter side; of several, training draws one per image
            and evaluation takes the last.
        max_size: limit of the longer side, which may make the shorter side less than ``min_size``.
        image_mean, image_std: per channel; ImageNet's if None.
        size_divisible: height and width of the batch are multiples of it.
        fixed_size: (width, height) of all images instead, whatever their shape.
        _skip_resize: leaves images as they are in training.

    Other arguments, which torchvision's ignores, are an error: a detector passes its own on.

    Raises:
        TypeError: a size, mean or deviation is no number, or ``size_divisible`` no integer.
        ValueError: a size or deviation is not positive, ``fixed_size`` is no pair, or mean and
            deviation are of different numbers of channels.
    """

    def __init__(
        self,
        min_size: int | Sequence[int],
        max_size: int,
        image_mean: Sequence[float] | None,
        image_std: Sequence[float] | None,
        size_divisible: int = 32,
        fixed_size: Size | None = None,
        *,
        _skip_resize: bool = False,
    ) -> None:
        super().__init__()
        sizes = min_size if isinstance(min_size, (list, tuple)) else (min_size,)
        if not sizes:
            raise ValueError("min_size must be a size or several, got none")
        for size in sizes:
            check_positive(min_size=size)
        check_positive(max_size=max_size)
        check_counts(1, size_divisible=size_divisible)
        if fixed_size is not None:
            if not isinstance(fixed_size, (list, tuple)) or len(fixed_size) != 2:
                raise ValueError(f"fixed_size must be (width, height), got {fixed_size!r}")
            for size in fixed_size:
                check_positive(fixed_size=size)
        self.min_size = sizes
        self.max_size = max_size
        self.image_mean = _per_channel("image_mean", image_mean, IMAGENET_MEAN)
        self.image_std = _per_channel("image_std", image_std, IMAGENET_STD)
        for deviation in self.image_std:
            check_positive(image_std=deviation)
        if len(self.image_mean) != len(self.image_std):
            raise ValueError(
                "image_mean and image_std must have a number per channel each, "
                f"got {len(self.image_mean)} and {len(self.image_std)}"
            )
        self.size_divisible = size_divisible
        self.fixed_size = fixed_size
        self._skip_resize = _skip_resize

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> tuple[ImageList, list[Target] | None]:
        """The batch, and the targets at its scale.

        Args:
            images: [C, H, W] each, floating-point in 0..1.
            targets: "boxes" [L, 4] (x1, y1, x2, y2) in pixels; "masks" [L, H, W] and "keypoints"
                [L, K, 3] (x, y, visibility) if there are any; other entries stay.

        Raises:
            ValueError: there are no images, or one is empty or has another number of dimensions or
                channels.
            TypeError: an image is no floating-point tensor.
        """
        images = list(images)
        if not images:
            raise ValueError("images must not be empty, got no image")
        sizes_of(images)
        resized_targets = None if targets is None else [dict(target) for target in targets]
        for i, image in enumerate(images):
            target = None if resized_targets is None else resized_targets[i]
            images[i], target = self.resize(self.normalize(image), target)
            if resized_targets is not None and target is not None:
                resized_targets[i] = target
        sizes = sizes_of(images)
        batch = self.batch_images(images, self.size_divisible)
        return ImageList(batch, sizes), resized_targets

    def normalize(self, image: Tensor) -> Tensor:
        """(image - mean) / std of [C, H, W]."""
        if not image.is_floating_point():
            raise TypeError(
                "Expected input images to be of floating type (in range [0, 1]), "
                f"but found type {image.dtype} instead"
            )
        statistics = tuple(tuple(map(float, x)) for x in (self.image_mean, self.image_std))
        channels = len(statistics[0])
        if image.shape[-3] != channels and 1 not in (image.shape[-3], channels):
            raise ValueError(
                f"images must have {channels} channels, as image_mean and image_std have, "
                f"got {list(image.shape)}"
            )
        mean, std = constant(statistics, image)[..., None, None]
        return (image - mean) / std

    def torch_choice(self, k: Sequence[int]) -> int:
        """One of the numbers, by torch's random numbers."""
        return k[int(torch.empty(1).uniform_(0.0, float(len(k))).item())]

    def resize(self, image: Tensor, target: Target | None = None) -> tuple[Tensor, Target | None]:
        """The image [C, H, W] and its target in the size that the arguments of the module give."""
        height, width = image.shape[-2:]
        if self.training:
            if self._skip_resize:
                return image, target
            shorter = self.torch_choice(self.min_size)
        else:
            shorter = self.min_size[-1]
        size = self._size_of(height, width, shorter)
        if size != (height, width):
            image = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
        if target is not None:
            target = resize_target(target, (height, width), size)
        return image, target

    def _size_of(self, height: int, width: int, shorter: int) -> Size:
        if self.fixed_size is not None:
            return self.fixed_size[1], self.fixed_size[0]
        scale = min(shorter / min(height, width), self.max_size / max(height, width))
        # torchvision fails for lines that would become thinner than a pixel
        return max(math.floor(height * scale), 1), max(math.floor(width * scale), 1)

    def batch_images(self, images: Sequence[Tensor], size_divisible: int = 32) -> Tensor:
        """[N, C, H, W] of images [C, h, w], with zeros at the right and below."""
        channels, *size = (max(x.shape[i] for x in images) for i in range(3))
        height, width = (math.ceil(s / size_divisible) * size_divisible for s in size)
        batch = images[0].new_zeros((len(images), channels, height, width))
        for place, image in zip(batch, images, strict=True):
            place[: image.shape[0], : image.shape[1], : image.shape[2]].copy_(image)
        return batch

    def batch_of(self, images: Tensor) -> ImageList:
        """What evaluation makes of images [N, C, H, W] of one size, all at once."""
        height, width = images.shape[-2:]
        size = self._size_of(height, width, self.min_size[-1])
        batch = self.normalize(images)
        if size != (height, width):
            batch = F.interpolate(batch, size=size, mode="bilinear", align_corners=False)
        down, right = (-side % self.size_divisible for side in size)
        batch = F.pad(batch, (0, right, 0, down)) if down or right else batch
        return ImageList(batch, [size] * len(images))

    def postprocess(
        self, result: list[Target], image_shapes: Sequence[Size], original_image_sizes: list[Size]
    ) -> list[Target]:
        """Detections in pixels of the images as they were given, with their masks in place.

        Args:
            result: changed in place: "boxes" [n, 4], and where there are any "masks" [n, 1, M, M]
                and "keypoints" [n, K, 3].
            image_shapes: (height, width) of the images in the batch.
            original_image_sizes: (height, width) of the images that were given.
        """
        if self.training:
            return result
        for found, size, original in zip(result, image_shapes, original_image_sizes, strict=False):
            found["boxes"] = resize_boxes(found["boxes"], size, original)
            if "masks" in found:
                found["masks"] = paste_masks_in_image(found["masks"], found["boxes"], original)
            if "keypoints" in found:
                found["keypoints"] = resize_keypoints(found["keypoints"], size, original)
        return result

    def extra_repr(self) -> str:
        return (
            f"min_size={self.min_size}, max_size={self.max_size}, fixed_size={self.fixed_size}, "
            f"image_mean={self.image_mean}, image_std={self.image_std}"
        )


def sizes_of(images: Sequence[Tensor]) -> list[Size]:
    """(height, width) of images [C, H, W].

    Raises:
        TypeError: one is no tensor.
        ValueError: one is empty or has another number of dimensions.
    """
    for i, image in enumerate(images):
        check_tensor(image, f"images[{i}]")
        if image.dim() != 3 or 0 in image.shape:
            raise ValueError(
                "images is expected to be a list of 3d tensors of shape [C, H, W], "
                f"got {list(image.shape)}"
            )
    return [(image.shape[-2], image.shape[-1]) for image in images]


def resize_target(target: Target, original: Size, size: Size) -> Target:
    """A target's boxes, masks and keypoints in an image of another size (height, width)."""
    target = dict(target)
    target["boxes"] = resize_boxes(target["boxes"], original, size)
    if "masks" in target:
        masks = target["masks"].to(torch.uint8)
        target["masks"] = F.interpolate(masks[:, None], size=size, mode="nearest")[:, 0]
    if "keypoints" in target:
        target["keypoints"] = resize_keypoints(target["keypoints"], original, size)
    return target


def _ratios(original: Sequence[int], size: Sequence[int], like: Tensor) -> Tensor:
    """[4] of x, y, x, y in float32, as torchvision computes them."""
    (old_height, old_width), (height, width) = original, size
    new = torch.tensor((width, height) * 2, dtype=torch.float32, device=like.device)
    return new / torch.tensor((old_width, old_height) * 2, dtype=torch.float32, device=like.device)


def resize_boxes(boxes: Tensor, original_size: Sequence[int], new_size: Sequence[int]) -> Tensor:
    """Boxes [L, 4] in an image of another size (height, width)."""
    return (boxes * _ratios(original_size, new_size, boxes)).to(boxes.dtype)


def resize_keypoints(
    keypoints: Tensor, original_size: Sequence[int], new_size: Sequence[int]
) -> Tensor:
    """Keypoints [L, K, 2 or more], of which the first two numbers are x and y, in an image of
    another size (height, width)."""
    ratios = _ratios(original_size, new_size, keypoints)[:2]
    places = (keypoints[..., :2] * ratios).to(keypoints.dtype)
    return torch.cat((places, keypoints[..., 2:]), -1)
