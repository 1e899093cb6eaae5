"""A network that is built of a Darknet configuration."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from ...ops import Conv2dNormActivation
from .._images import enter
from .config import HEADS, Section, format_config, read_config
from .layers import (
    ACTIVATIONS,
    Connected,
    GlobalAverage,
    Local,
    MaxPool,
    Output,
    Reorg,
    Route,
    Shortcut,
    Softmax,
)

Shape = tuple[int, int, int]  # channels, height, width


class Head(NamedTuple):
    """Where a network ends: the section, and the shape of the maps that it gets for images of the
    configured size."""

    section: Section
    shape: Shape


class Darknet(nn.Module):
    """A network of the layers of a Darknet configuration.

    Redmon, Darknet: open source neural networks in C, 2013 to 2016. Layers are numbered as in
    Darknet, and their state dict keys begin with ``layers.<number>.``: ``0.weight`` of a
    convolution, ``1.*`` of its normalization. A padding of "pad=1" is half of the window; leaky
    ReLUs have a slope of 0.1. Convolutions begin with He's initialization.

    Args:
        config: the path of a .cfg file, or the sections of
            :func:`~fastvision.models.darknet.parse_config`.

    Attributes:
        heads: the [detection], [region] and [yolo] sections, each with the shape of its maps.
        size: (H, W) of the configured images.
        sections: of the configuration.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: the configuration is wrong; the message names file, line and section.
    """

    def __init__(self, config: str | os.PathLike[str] | Sequence[Section]) -> None:
        super().__init__()
        if isinstance(config, (str, os.PathLike)):
            config = read_config(config)
        self.sections = list(config)
        net = self.sections[0]
        shape = (net.integer("channels", 3, 1), net.integer("height", least=1))
        self.in_shape: Shape = (*shape, net.integer("width", least=1))
        self.heads: list[Head] = []
        self.layers = nn.ModuleList()
        self._sources: list[tuple[int, ...]] = []  # layers whose results a layer gets
        self._shapes: list[Shape] = []
        for part in self.sections[1:]:
            self._add(part)
        if not self.layers:
            net.error("is followed by no layer")
        self.head_layers = [i for i, layer in enumerate(self.layers) if isinstance(layer, Output)]
        used = {j: i for i, sources in enumerate(self._sources) for j in sources}
        # results that nobody needs any more
        self._done: list[list[int]] = [[] for _ in self.layers]
        for j, i in used.items():
            if j not in self.head_layers:
                self._done[i].append(j)

    @property
    def size(self) -> tuple[int, int]:
        return self.in_shape[1:]

    @property
    def config(self) -> str:
        """The text of a .cfg file that describes this network."""
        return format_config(self.sections)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """The maps that the heads get; without heads, the last result, as [N, C] if it is one
        pixel.

        Args:
            images: [N, C, H, W] from 0 to 1. Other sizes than the configured one are possible where
                no layer depends on it.
        """
        results = {-1: enter(images)}
        for i, layer in enumerate(self.layers):
            results[i] = layer(*(results[j] for j in self._sources[i]))
            for j in self._done[i]:
                del results[j]
        if self.head_layers:
            return [results[i] for i in self.head_layers]
        last = results[len(self.layers) - 1]
        return last.flatten(1) if self._shapes[-1][1:] == (1, 1) else last

    def _add(self, part: Section) -> None:
        number = len(self.layers)
        shape = self._shapes[-1] if self._shapes else self.in_shape
        sources: tuple[int, ...] = (number - 1,)
        if part.kind == "route":
            sources = tuple(self._number(part, j, "layers") for j in part.integers("layers"))
        elif part.kind == "shortcut":
            sources = (number - 1, self._number(part, part.integer("from", least=-number), "from"))
        if part.kind in HEADS:
            layer: nn.Module = Output()
            self.heads.append(Head(part, shape))
        elif part.kind in ("route", "shortcut"):
            layer, shape = _join(part, [self._shapes[j] for j in sources])
        else:
            layer, shape = _MAKERS[part.kind](part, shape)
        if min(shape) < 1:
            part.error(f"leaves nothing of its input: [C, H, W] = {list(shape)}")
        self.layers.append(layer)
        self._sources.append(sources)
        self._shapes.append(shape)

    def _number(self, part: Section, layer: int, option: str) -> int:
        """Of a layer that is given by its number or, if negative, by how far it is back."""
        number = layer if layer >= 0 else len(self.layers) + layer
        if not 0 <= number < len(self.layers):
            part.error(f"{option} {layer} is no layer before layer {len(self.layers)}", option)
        return number


def _join(part: Section, shapes: list[Shape]) -> tuple[nn.Module, Shape]:
    """A route or shortcut of results of these shapes."""
    channels, height, width = shapes[0]
    if part.kind == "shortcut":
        if shapes[0] != shapes[1]:
            part.error(f"adds results of different shapes, {shapes[0]} and {shapes[1]}", "from")
        make = _activation(part)
        return Shortcut(None if make is None else make()), shapes[0]
    if any(shape[1:] != (height, width) for shape in shapes):
        part.error(f"joins results of different sizes, {shapes}", "layers")
    groups, group = part.integer("groups", 1, 1), part.integer("group_id", 0)
    if group >= groups or any(shape[0] % groups for shape in shapes):
        part.error(f"cannot take part {group} of {groups} of the channels of {shapes}", "groups")
    return Route(groups, group), (sum(shape[0] for shape in shapes) // groups, height, width)


def _activation(part: Section) -> Callable[[], nn.Module] | None:
    name = part.text("activation", "linear" if part.kind == "shortcut" else "logistic")
    if name not in ACTIVATIONS:
        part.error(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name}", "activation")
    return ACTIVATIONS[name]


def _convolutional(part: Section, shape: Shape) -> tuple[nn.Module, Shape]:
    filters, size = part.integer("filters", 1, 1), part.integer("size", 1, 1)
    stride, groups = part.integer("stride", 1, 1), part.integer("groups", 1, 1)
    padding = size // 2 if part.integer("pad", 0) else part.integer("padding", 0)
    if shape[0] % groups or filters % groups:
        part.error(f"groups must divide {shape[0]} and {filters} channels, got {groups}", "groups")
    norm = nn.BatchNorm2d if part.integer("batch_normalize", 0) else None
    layer = Conv2dNormActivation(
        shape[0], filters, size, stride, padding, groups, norm, _activation(part), inplace=None
    )
    nn.init.kaiming_normal_(layer[0].weight, 0.1)  # type: ignore[arg-type]
    if norm is None:
        nn.init.zeros_(layer[0].bias)  # type: ignore[arg-type]
    rows, columns = ((n + 2 * padding - size) // stride + 1 for n in shape[1:])
    return layer, (filters, rows, columns)


def _maxpool(part: Section, shape: Shape) -> tuple[nn.Module, Shape]:
    stride = part.integer("stride", 1, 1)
    size = part.integer("size", stride, 1)
    padding = part.integer("padding", size - 1)
    if padding >= 2 * size - 1:
        part.error(f"padding must be below {2 * size - 1} for a size of {size}", "padding")
    layer = MaxPool(size, stride, padding)
    return layer, (shape[0], layer.rows(shape[1]), layer.rows(shape[2]))


def _connected(part: Section, shape: Shape) -> tuple[nn.Module, Shape]:
    inputs, outputs = shape[0] * shape[1] * shape[2], part.integer("output", 1, 1)
    norm = bool(part.integer("batch_normalize", 0))
    layers: list[nn.Module] = [nn.Linear(inputs, outputs, bias=not norm)]
    nn.init.normal_(layers[0].weight, std=(2 / inputs) ** 0.5)  # type: ignore[arg-type]
    if norm:
        layers.append(nn.BatchNorm1d(outputs))
    else:
        nn.init.zeros_(layers[0].bias)  # type: ignore[arg-type]
    make = _activation(part)
    if make is not None:
        layers.append(make())
    return Connected(*layers), (outputs, 1, 1)


def _local(part: Section, shape: Shape) -> tuple[nn.Module, Shape]:
    size, stride = part.integer("size", 1, 1), part.integer("stride", 1, 1)
    padding = size // 2 if part.integer("pad", 0) else 0
    filters, make = part.integer("filters", 1, 1), _activation(part)
    if min(shape[1:]) + 2 * padding < size:
        part.error(f"a window of {size} is larger than its input of {shape[1:]}", "size")
    layer = Local(shape, filters, size, stride, padding, None if make is None else make())
    return layer, (filters, layer.rows, layer.columns)


def _reorg(part: Section, shape: Shape) -> tuple[nn.Module, Shape]:
    stride = part.integer("stride", 2, 1)
    channels, height, width = shape
    if channels % stride**2 or height % stride or width % stride:
        part.error(f"a stride of {stride} does not divide [C, H, W] = {list(shape)}", "stride")
    return Reorg(stride), (channels * stride**2, height // stride, width // stride)


def _upsample(part: Section, shape: Shape) -> tuple[nn.Module, Shape]:
    stride = part.integer("stride", 2, 1)
    return nn.Upsample(scale_factor=stride), (shape[0], shape[1] * stride, shape[2] * stride)


def _softmax(part: Section, shape: Shape) -> tuple[nn.Module, Shape]:
    groups = part.integer("groups", 1, 1)
    if shape[0] * shape[1] * shape[2] % groups:
        part.error(f"groups must divide {shape[0] * shape[1] * shape[2]} values", "groups")
    return Softmax(groups), shape


def _dropout(part: Section, shape: Shape) -> tuple[nn.Module, Shape]:
    probability = part.number("probability", 0.5)
    if not 0 <= probability <= 1:
        part.error(f"probability must be between 0 and 1, got {probability}", "probability")
    return nn.Dropout(probability), shape


_MAKERS: dict[str, Callable[[Section, Shape], tuple[nn.Module, Shape]]] = {
    "convolutional": _convolutional,
    "maxpool": _maxpool,
    "avgpool": lambda part, shape: (GlobalAverage(), (shape[0], 1, 1)),
    "connected": _connected,
    "local": _local,
    "reorg": _reorg,
    "upsample": _upsample,
    "softmax": _softmax,
    "dropout": _dropout,
    "cost": lambda part, shape: (nn.Identity(), shape),  # a loss, which training brings along
}
