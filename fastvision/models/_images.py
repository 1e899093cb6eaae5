"""Images inside a model: their memory format, and the statistics of their values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._memory_format import is_channels_last

# mean and deviation of ImageNet's RGB channels, from 0 to 1
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def enter(images: Any) -> Any:
    """[N, C, H, W] in channels_last where convolutions are the fastest in it."""
    if not isinstance(images, Tensor) or images.dim() != 4:  # something traces the model
        return images
    if images.is_cuda and images.element_size() > 2:  # tensor cores want it for 16-bit types
        return images
    return images.contiguous(memory_format=torch.channels_last)


def leave(result: Any, images: Any) -> Any:
    """A result of the model, contiguous unless the ``images`` were channels_last."""
    if not isinstance(result, Tensor) or not isinstance(images, Tensor) or result.dim() != 4:
        return result
    return result if is_channels_last(images) else result.contiguous()
