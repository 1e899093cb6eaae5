"""Small versions of the segmentation models that torchvision does not have."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastvision.models import segmentation

from .models import randomize

SMALL: dict[str, dict[str, Any]] = {
    "fcn32s_vgg16": {"base_width": 4},
    "fcn16s_vgg16": {"base_width": 4},
    "fcn8s_vgg16": {"base_width": 4},
    "segnet": {"base_width": 4},
    "unet": {"base_width": 4},
    "unet-norm": {"base_width": 4, "batch_norm": True},
    "fcn8s_vgg16-norm": {"base_width": 4, "batch_norm": True, "border": False},
}


def small(name: str, num_classes: int = 3, **options: Any) -> nn.Module:
    """The model in evaluation, with biases, statistics and scores that are not zero."""
    torch.manual_seed(0)
    builder = getattr(segmentation, name.partition("-")[0])
    model: nn.Module = builder(num_classes=num_classes, **SMALL[name], **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1 or not parameter.any():
                parameter.normal_(std=0.1)
    return randomize(model).eval()
