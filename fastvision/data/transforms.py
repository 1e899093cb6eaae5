"""Augmentation for training and preparation for evaluation, built of torchvision.transforms.v2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops._checks import pair
from ._checks import check_number, check_range
from ._samples import IGNORE, PER_OBJECT, mask_boxes

# mean and deviation of ImageNet's RGB channels, from 0 to 1
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Size = int | tuple[int, int]
Stats = Sequence[float] | None


def classification_training(
    size: Size = 224,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    flip: float = 0.5,
    randaugment: bool = False,
    erase: float = 0.0,
    mean: Stats = IMAGENET_MEAN,
    std: Stats = IMAGENET_STD,
) -> Any:
    """Random crops of random size and aspect ratio, mirrored at random.

    Args:
        size: (H, W) of the result, or one number for both.
        scale: least and largest share of the image's area in a crop.
        flip: probability to mirror; 0 where left and right differ in meaning, as in digits.
        randaugment: whether to apply RandAugment (Cubuk et al., 2020).
        erase: probability to erase a rectangle (Zhong et al., 2020).
        mean: per channel, of values from 0 to 1; None leaves values from 0 to 1.
        std: per channel.

    Returns:
        A ``torchvision.transforms.v2.Compose`` of [C, H, W] images, alone or with a label. The
        result is float32.
    """
    from torchvision.transforms import v2

    check_range(scale, "scale", 0, 1)
    steps = [v2.RandomResizedCrop(pair(size, "size"), scale=scale, antialias=True)]
    steps += [v2.RandomHorizontalFlip(flip)]
    if randaugment:
        steps.append(v2.RandAugment())
    steps += _numbers(mean, std)
    if erase:
        steps.append(v2.RandomErasing(erase))
    return v2.Compose(steps)


def classification_evaluation(
    size: Size = 224,
    *,
    crop: float = 0.875,
    mean: Stats = IMAGENET_MEAN,
    std: Stats = IMAGENET_STD,
) -> Any:
    """The middle of the image.

    Args:
        size: (H, W) of the result, or one number for both.
        crop: share of the image's shorter side that remains, where ``size`` is square.
        mean, std: see :func:`classification_training`.

    Returns:
        A ``torchvision.transforms.v2.Compose`` of [C, H, W] images, alone or with a label.
    """
    from torchvision.transforms import v2

    check_number(crop, "crop", 0.1, 1)
    height, width = pair(size, "size")
    shorter = round(max(height, width) / crop)
    steps = [v2.Resize(shorter, antialias=True), v2.CenterCrop((height, width))]
    return v2.Compose([*steps, *_numbers(mean, std)])


def detection_training(
    size: Size | None = None,
    *,
    flip: float = 0.5,
    distort: bool = True,
    zoom_out: float = 0.5,
    crop: bool = True,
    mean: Stats = None,
    std: Stats = None,
) -> Any:
    """The augmentation of SSD (Liu et al., 2016): colors, zoom out, crop by overlap, mirror.

    Args:
        size: (H, W) to stretch to, or one number for both; None for models that resize.
        flip: probability to mirror; 0 where left and right differ in meaning, as in digits.
        distort: whether to change brightness, contrast, saturation and hue.
        zoom_out: probability to put the image into one of up to four times its sides.
        crop: whether to crop so that objects overlap with the crop at random.
        mean: per channel, of values from 0 to 1; None for models that normalize.
        std: per channel.

    Returns:
        A ``torchvision.transforms.v2.Compose`` of an image and a target with "boxes". Objects that
        a crop leaves out are dropped, see :class:`KeepVisible`.
    """
    from torchvision.transforms import v2

    steps: list[Any] = [v2.RandomPhotometricDistort()] if distort else []
    if zoom_out:
        steps.append(v2.RandomZoomOut(p=zoom_out))
    if crop:
        steps.append(v2.RandomIoUCrop())
    steps += [v2.RandomHorizontalFlip(flip), *_stretch(size), KeepVisible()]
    return v2.Compose([*steps, *_numbers(mean, std)])


def detection_evaluation(size: Size | None = None, *, mean: Stats = None, std: Stats = None) -> Any:
    """The image as it is or stretched, boxes and masks with it.

    Args:
        size, mean, std: see :func:`detection_training`.

    Returns:
        A ``torchvision.transforms.v2.Compose`` of an image and a target. No object is dropped.
    """
    from torchvision.transforms import v2

    return v2.Compose([*_stretch(size), *_numbers(mean, std)])


def segmentation_training(
    size: Size = 512,
    *,
    scale: tuple[float, float] = (0.5, 2.0),
    flip: float = 0.5,
    distort: bool = True,
    mean: Stats = IMAGENET_MEAN,
    std: Stats = IMAGENET_STD,
) -> Any:
    """Random scale, crop, mirror and colors (the augmentation of DeepLab, Chen et al., 2017).

    Args:
        size: (H, W) of the crop, or one number for both. Images that are smaller get a black
            border, which is 255 (:data:`IGNORE`) in class maps.
        scale: the image's shorter side before the crop, least and largest, as a share of the
            crop's.
        flip: probability to mirror; 0 where left and right differ in meaning, as in digits.
        distort: whether to change brightness, contrast, saturation and hue.
        mean, std: see :func:`classification_training`.

    Returns:
        A ``torchvision.transforms.v2.Compose`` of an image and a target with "class_map". It
        returns the image and the class map alone, [H, W] int64.
    """
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    check_range(scale, "scale", 0.01, 100)
    height, width = pair(size, "size")
    # RandomResize leaves out its upper limit
    least, most = (max(1, round(factor * min(height, width))) for factor in scale)
    fill = {tv_tensors.Mask: IGNORE, "others": 0}
    steps = [class_map_only, v2.RandomResize(least, most + 1, antialias=True)]
    steps.append(v2.RandomCrop((height, width), pad_if_needed=True, fill=fill))
    steps.append(v2.RandomHorizontalFlip(flip))
    if distort:
        steps.append(v2.RandomPhotometricDistort())
    return v2.Compose([*steps, *_numbers(mean, std)])


def segmentation_evaluation(
    size: Size | None = None, *, mean: Stats = IMAGENET_MEAN, std: Stats = IMAGENET_STD
) -> Any:
    """The image as it is or stretched, and its class map.

    Args:
        size: (H, W) to stretch to, or one number for both; None to keep the image's.
        mean, std: see :func:`classification_training`.

    Returns:
        A ``torchvision.transforms.v2.Compose`` of an image and a target with "class_map". It
        returns the image and the class map alone, [H, W] int64.
    """
    from torchvision.transforms import v2

    return v2.Compose([class_map_only, *_stretch(size), *_numbers(mean, std)])


class KeepVisible:
    """Drops objects of which a crop left nothing, and puts boxes around what it left of masks.

    Args:
        min_size: least width and height of a box, in pixels.

    Called with an image and a target, as ``torchvision.transforms.v2.SanitizeBoundingBoxes`` is.
    Unlike it, this drops an object from everything that the target has for each ("boxes", "labels",
    "masks", "iscrowd", "difficult"), and leaves class maps alone.
    """

    def __init__(self, min_size: float = 1.0) -> None:
        self.min_size = min_size

    def __call__(self, image: Any, target: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        target = dict(target)
        boxes = target["boxes"].as_subclass(Tensor)
        keep = self._is_large(boxes)
        if "masks" in target:
            masks = target["masks"].as_subclass(Tensor) != 0
            keep &= masks.flatten(1).any(1)
            boxes = boxes.clone()
            boxes[keep] = mask_boxes(masks[keep])
            keep &= self._is_large(boxes)
        target["boxes"] = _like(target["boxes"], boxes[keep])
        for name in PER_OBJECT:
            if name in target:
                target[name] = _like(target[name], target[name].as_subclass(Tensor)[keep])
        return image, target

    def _is_large(self, boxes: Tensor) -> Tensor:
        return (boxes[:, 2:] - boxes[:, :2] >= self.min_size).all(1)

    def __repr__(self) -> str:
        return f"KeepVisible(min_size={self.min_size})"


def class_map_only(image: Any, target: dict[str, Any]) -> tuple[Any, Any]:
    """The image and the "class_map" of its target, as segmentation needs them."""
    return image, target["class_map"]


def _stretch(size: Size | None) -> list[Any]:
    from torchvision.transforms import v2

    return [] if size is None else [v2.Resize(pair(size, "size"), antialias=True)]


def _numbers(mean: Stats, std: Stats) -> list[Any]:
    """Float32 from 0 to 1, normalized if there are statistics, in plain tensors."""
    from torchvision.transforms import v2

    if (mean is None) != (std is None):
        raise ValueError(f"mean and std must both be given or both be None, got {mean} and {std}")
    steps = [v2.ToDtype(torch.float32, scale=True)]
    if mean is not None:
        steps.append(v2.Normalize(mean, std))
    return [*steps, v2.ToPureTensor()]


def _like(tensor: Tensor, values: Tensor) -> Any:
    """``values`` as a tv_tensor of the kind of ``tensor``, if it is one."""
    from torchvision import tv_tensors

    is_one = isinstance(tensor, tv_tensors.TVTensor)
    return tv_tensors.wrap(values, like=tensor) if is_one else values
