"""What the heads of detectors share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from ...fusion.border import tensor_of
from ...fusion.siblings import joined
from ...ops import conv_bn_relu, conv_norm_act
from ...ops._checks import is_eager, needs_gradient
from ...ops._layers import has_global_hooks, is_plain, own_class

Head = TypeVar("Head", bound=nn.Module)


def may_rearrange(x: Tensor, *layers: nn.Module) -> bool:
    """Whether layers may run in another form: in inference in one dtype, where nobody listens."""
    return _may_join(x, *layers) and not needs_gradient((x, *_parameters(layers)))


def _parameters(layers: Sequence[nn.Module]) -> list[Tensor]:
    return [parameter for layer in layers for parameter in layer.parameters()]


def _may_join(x: Tensor, *layers: nn.Module) -> bool:
    return (
        isinstance(x, Tensor)
        and is_eager()
        and all(map(is_plain, layers))
        and not has_global_hooks()
        and all(parameter.dtype == x.dtype for parameter in _parameters(layers))
        and (x.is_meta or not torch.is_autocast_enabled(x.device.type))
    )


def results_of(maps: Sequence[Tensor], *convs: Any) -> list[list[Tensor]]:
    """For each convolution its results [N, K, H, W] of all maps.

    Those of the same window run as one: a convolution of few outputs costs as much as one of all
    of them, and so do its gradients.
    """
    run = _as_one(maps[0], convs)
    if run is None:
        return [[conv_norm_act(features, conv) for features in maps] for conv in convs]
    counts = [conv.out_channels for conv in convs]
    parts = zip(*(run(features).split(counts, 1) for features in maps), strict=True)
    return [list(of_conv) for of_conv in parts]


def _as_one(x: Tensor, convs: Sequence[Any]) -> Callable[[Tensor], Tensor] | None:
    """The convolutions as one of all their outputs, if they allow it for an input like ``x``."""
    if not _have_one_window(convs):
        return None
    if type(convs[0]) is not nn.Conv2d:
        layer: Callable[[Tensor], Tensor] | None = joined(convs)
        return layer
    if not _may_join(x, *convs):
        return None
    weight = torch.cat([conv.weight for conv in convs])
    bias = torch.cat([conv.bias for conv in convs])
    stride, padding = convs[0].stride, convs[0].padding
    return partial(
        conv_bn_relu, weight=weight, bias=bias, stride=stride, padding=padding, activation="none"
    )


def _have_one_window(convs: Sequence[Any]) -> bool:
    """Whether they are convolutions, no subclasses but those of fuse(), that differ in weight and
    bias only."""
    if any(
        own_class(conv) is not nn.Conv2d
        or conv.bias is None
        or (conv.groups, *conv.dilation) != (1, 1, 1)
        or conv.padding_mode != "zeros"
        for conv in convs
    ):
        return False
    windows = {(conv.in_channels, conv.kernel_size, conv.stride, conv.padding) for conv in convs}
    return len(windows) == 1


def rows_of(x: Tensor, columns: int) -> Tensor:
    """Maps [N, A columns, H, W] as rows [N, H W A, columns], a view of channels_last maps."""
    x = tensor_of(x)
    n, channels, height, width = x.shape
    rows = height * width * (channels // columns)
    return x.permute(0, 2, 3, 1).reshape(n, rows, columns)


def predict(x: Tensor, conv: nn.Module, columns: int) -> Tensor:
    """:func:`rows_of` the result of a convolution."""
    return rows_of(conv_norm_act(x, conv), columns)


def initialize(*modules: nn.Module, std: float = 0.01) -> None:
    """Weights of convolutions from a normal distribution of this deviation, and zero biases."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=std)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


def initialize_prior(conv: nn.Conv2d, probability: float) -> None:
    """As :func:`initialize`, with a bias that gives every class this probability (Lin et al.,
    Focal loss, 2017, section 4.1), so that background does not swamp the first steps."""
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.constant_(conv.bias, -math.log((1 - probability) / probability))  # type: ignore[arg-type]


class LevelHead(nn.Module):
    """A part of a head: one prediction for every anchor."""

    def levels(self, x: Sequence[Tensor]) -> list[Tensor]:
        """Rows [N, H W A, columns] of each map [N, C, H, W]."""
        raise NotImplementedError(f"{type(self).__name__} has no levels")

    def forward(self, x: Sequence[Tensor]) -> Any:
        """The rows of all maps, [N, sum of H W A, columns]."""
        return torch.cat(self.levels(x), 1)


class DenseHead(nn.Module):
    """A head whose predictions are dicts."""

    def levels(self, x: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """Rows [N, H W A, columns] of each map [N, C, H, W], by name."""
        raise NotImplementedError(f"{type(self).__name__} has no levels")

    def forward(self, x: Sequence[Tensor]) -> dict[str, Tensor]:
        """The rows of all maps, [N, sum of H W A, columns], by name."""
        return {name: torch.cat(rows, 1) for name, rows in self.levels(x).items()}


def is_own(head: nn.Module, base: type[Head]) -> TypeGuard[Head]:
    """Whether a call of it is a call of the forward of ``base``, where nobody listens."""
    return (
        isinstance(head, base)
        and own_class(head).forward is base.forward
        and is_plain(head)
        and not has_global_hooks()
    )


def levels_of(head: nn.Module, x: Sequence[Tensor]) -> list[Tensor]:
    """Rows [N, H W A, columns] of each map by a part of a head, which may be of another class."""
    if is_own(head, LevelHead):
        return head.levels(x)
    return split_levels(head(x), x)


def split_levels(rows: Tensor, x: Sequence[Tensor]) -> list[Tensor]:
    """Of rows [N, sum of H W A, columns] those of each map [N, C, H, W]."""
    places = [maps.shape[2] * maps.shape[3] for maps in x]
    per_place = rows.shape[1] // sum(places)
    return list(rows.split([per_place * n for n in places], 1))
