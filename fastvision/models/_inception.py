"""What GoogLeNet and Inception-v3 share."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import ConvBNReLU2d
from ._images import IMAGENET_MEAN, IMAGENET_STD
from ._urls import addresses
from ._weights import Model, load_weights, read_weights

# ImageNet's mean and standard deviation, with which images are normalized


class BasicConv2d(ConvBNReLU2d):
    """A convolution without bias, a normalization and a ReLU.

    Args:
        in_channels, out_channels: of the convolution.
        options: further arguments of :class:`torch.nn.Conv2d`.
    """

    def __init__(self, in_channels: int, out_channels: int, **options: Any) -> None:
        super().__init__(in_channels, out_channels, eps=0.001, **options)


def initialize_truncated(model: nn.Module, std: float) -> None:
    """Draws weights from a truncated normal distribution.

    ``std``: where a layer has no ``stddev``.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.trunc_normal_(module.weight, std=float(getattr(module, "stddev", std)))
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def to_unit_range(images: Tensor) -> Tensor:
    """From ImageNet's normalization to [-1, 1], which the original models were trained on."""
    channels = zip(images.split(1, 1), IMAGENET_MEAN, IMAGENET_STD, strict=True)
    return torch.cat([x * (std / 0.5) + (mean - 0.5) / 0.5 for x, mean, std in channels], 1)


def options_for(name: str, weights: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The builder's ``options``, with those that the weights need."""
    if weights is None:
        return options
    return {"transform_input": _is_torchvisions(name, weights), **options, "init_weights": False}


def _is_torchvisions(name: str, weights: Any) -> bool:
    """Whether they go by a name of torchvision's, or are in a file of its name."""
    if isinstance(weights, (str, os.PathLike)):
        known = addresses(name)
        files = map(os.path.basename, known.values())
        return str(weights) in known or os.path.basename(weights) in files
    return hasattr(weights, "url")


def load_without(
    heads: tuple[str, ...], model: Model, name: str, weights: Any, progress: bool
) -> Model:
    """``model`` with the weights less those of the children ``heads``."""
    if weights is None:
        return model
    state = read_weights(name, weights, progress)
    kept = {key: value for key, value in state.items() if key.split(".")[0] not in heads}
    return load_weights(model, name, kept)
