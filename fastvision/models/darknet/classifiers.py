"""Extraction, Darknet-19 and Darknet-53.

Redmon, Divvala, Girshick and Farhadi, You only look once: unified, real-time object detection,
2016; Redmon and Farhadi, YOLO9000: better, faster, stronger, 2017; YOLOv3: an incremental
improvement, 2018.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from .._registry import register
from .._weights import load_weights
from .architectures import Layers, darknet19_body, darknet53_body, extraction_body
from .network import Darknet
from .weights import load_darknet_weights

Model = TypeVar("Model", bound=nn.Module)


def load_any(
    model: Model, network: Darknet, name: str, weights: Any, progress: bool = True
) -> Model:
    """As :func:`load_weights`, and of Darknet's files into the ``network`` of ``model``."""
    if isinstance(weights, (str, os.PathLike)) and Path(weights).suffix == ".weights":
        load_darknet_weights(network, weights)
        return model
    return load_weights(model, name, weights, progress)


@register("classification")
def extraction(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int = 1000,
    width_mult: float = 1.0,
    size: int = 224,
    batch_norm: bool = False,
) -> Darknet:
    """Darknet's Extraction, with whose layers YOLOv1 begins (Redmon et al. 2016, section 2.2): 20
    convolutions and a linear layer, 23,428,136 parameters, 4.21 G multiply-adds at 224x224. Scores
    [N, num_classes], before the softmax, of images from 0 to 1.

    Args:
        weights: see :func:`~fastvision.models.resnet50`; also the path of a Darknet .weights file.
        progress: whether a download shows a progress bar.
        num_classes: number of scores.
        width_mult: factor of all numbers of channels.
        size: of the images in a configuration that is written; any size can be classified.
        batch_norm: whether batch normalizations follow the convolutions; none in the paper.
    """
    layers = Layers(size, size, width_mult, batch_norm)
    extraction_body(layers)
    layers.add("avgpool")
    layers.add("connected", output=num_classes, activation="linear")
    network = Darknet(layers)
    return load_any(network, network, "extraction", weights, progress)


@register("classification")
def darknet19(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int = 1000,
    width_mult: float = 1.0,
    size: int = 224,
) -> Darknet:
    """Darknet-19 (Redmon and Farhadi 2017): 20,842,376 parameters, 2.79 G multiply-adds at
    224x224. Scores [N, num_classes], before the softmax, of images from 0 to 1.

    Args:
        weights: see :func:`~fastvision.models.resnet50`; also the path of a Darknet .weights file.
        progress: whether a download shows a progress bar.
        num_classes: number of scores.
        width_mult: factor of all numbers of channels.
        size: of the images in a configuration that is written; any size can be classified.
    """
    layers = Layers(size, size, width_mult)
    darknet19_body(layers)
    layers.scores(num_classes)
    layers.add("avgpool")
    network = Darknet(layers)
    return load_any(network, network, "darknet19", weights, progress)


@register("classification")
def darknet53(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int = 1000,
    width_mult: float = 1.0,
    size: int = 256,
) -> Darknet:
    """Darknet-53 (Redmon and Farhadi 2018): 41,609,928 parameters, 9.29 G multiply-adds at
    256x256. Scores [N, num_classes], before the softmax, of images from 0 to 1.

    Args:
        weights: see :func:`~fastvision.models.resnet50`; also the path of a Darknet .weights file.
        progress: whether a download shows a progress bar.
        num_classes: number of scores.
        width_mult: factor of all numbers of channels.
        size: of the images in a configuration that is written; any size can be classified.
    """
    layers = Layers(size, size, width_mult)
    darknet53_body(layers)
    layers.add("avgpool")
    layers.scores(num_classes)
    network = Darknet(layers)
    return load_any(network, network, "darknet53", weights, progress)
