"""Reference models, built from :mod:`fastvision.ops`: one file per architecture."""

from . import segmentation
from ._registry import get_model, get_model_builder, list_models
from ._stages import Stages
from .resnet import (
    BasicBlock,
    Bottleneck,
    ResNet,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnext50_32x4d,
    resnext101_32x8d,
    resnext101_64x4d,
    wide_resnet50_2,
    wide_resnet101_2,
)

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "ResNet",
    "Stages",
    "get_model",
    "get_model_builder",
    "list_models",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "segmentation",
    "wide_resnet50_2",
    "wide_resnet101_2",
]
