"""Feature pyramid network, and the blocks that add levels to its coarse end."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _extension
from .._memory_format import contiguous, format_of, is_channels_last
from ._checks import is_eager, needs_gradient
from ._huge_pages import enlarged
from ._layers import has_global_hooks, is_overridden, is_plain
from .chain import conv_norm_act, norm_act
from .misc import Conv2dNormActivation

_CHANNELS_LAST = torch.channels_last
# values of the maps, each times its channels: with less, the calls take longer than they gain
_LEAST_WORK = 1 << 19


class ExtraFPNBlock(nn.Module):
    """Base class of blocks that add levels to a pyramid, called at its end."""

    def forward(
        self, results: list[Tensor], x: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """Extends the pyramid.

        Args:
            results: maps of the pyramid, finest first.
            x: the maps it was made from.
            names: of the maps in ``results``.

        Returns:
            The extended maps and names.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward")


def _is_extra_block(module: object) -> bool:
    """Also of torchvision's class, whose blocks have the same arguments."""
    return any(
        cls is ExtraFPNBlock
        or (cls.__name__ == "ExtraFPNBlock" and cls.__module__.startswith("torchvision.ops."))
        for cls in type(module).__mro__
    )


class FeaturePyramidNetwork(nn.Module):
    """Adds coarse, semantically strong maps to fine ones, level by level.

    Lin, Dollar, Girshick, He, Hariharan and Belongie, Feature pyramid networks for object
    detection, 2017, section 3: a map is the 1x1 convolution of its level plus the coarser map,
    enlarged to its size by nearest neighbours; a 3x3 convolution of it is the result. torchvision's
    constructor, initialization and state dict (``inner_blocks.*.0.*``, ``layer_blocks.*.0.*``; the
    keys of its version 1 are renamed). The 1x1 convolution, its normalization and the sum are one
    op, see :func:`conv_norm_act`, and without gradients float32 maps on the CPU are converted to
    channels_last meanwhile. A block with hooks, or that holds another layer, runs as it is, and a
    subclass may override the two methods that call the blocks.

    Args:
        in_channels_list: channels of each map, finest first.
        out_channels: channels of all results.
        extra_blocks: called at the end as ``extra_blocks(results, maps, names)``; it may extend
            results and names.
        norm_layer: called with ``out_channels`` after each convolution, which then has no bias.

    Raises:
        TypeError: ``extra_blocks`` is not an ExtraFPNBlock, torchvision's included.
        ValueError: a map has no channels.
    """

    _version = 2

    def __init__(
        self,
        in_channels_list: list[int],
        out_channels: int,
        extra_blocks: ExtraFPNBlock | None = None,
        norm_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        nn.Module.__init__(self)  # torchvision's class may be a base (integrations/torchvision)
        self.inner_blocks = nn.ModuleList()
        self.layer_blocks = nn.ModuleList()
        options: dict[str, Any] = {"norm_layer": norm_layer, "activation_layer": None}
        for channels in in_channels_list:
            if channels == 0:
                raise ValueError("in_channels=0 is currently not supported")
            self.inner_blocks.append(Conv2dNormActivation(channels, out_channels, 1, **options))
            self.layer_blocks.append(Conv2dNormActivation(out_channels, out_channels, **options))
        # before extra_blocks is a child: it keeps its own initialization
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _initialize(module)
        if extra_blocks is not None and not _is_extra_block(extra_blocks):
            raise TypeError(
                f"extra_blocks should be of type ExtraFPNBlock not {type(extra_blocks)}"
            )
        self.extra_blocks = extra_blocks

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if (local_metadata.get("version") or 1) < 2:  # its blocks were convolutions
            for blocks in ("inner_blocks", "layer_blocks"):
                for level in range(len(self.inner_blocks)):
                    block = f"{prefix}{blocks}.{level}"
                    for name in ("weight", "bias"):
                        if (old := f"{block}.{name}") in state_dict:
                            state_dict[f"{block}.0.{name}"] = state_dict.pop(old)
        nn.Module._load_from_state_dict(self, state_dict, prefix, local_metadata, *args, **kwargs)

    def get_result_from_inner_blocks(self, x: Tensor, idx: int) -> Tensor:
        """``inner_blocks[idx](x)``, as torchvision's."""
        return self.inner_blocks[idx](x)

    def get_result_from_layer_blocks(self, x: Tensor, idx: int) -> Tensor:
        """``layer_blocks[idx](x)``, as torchvision's."""
        return self.layer_blocks[idx](x)

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """Computes the pyramid.

        Args:
            x: [N, C_l, H_l, W_l] maps by name, finest first, one for each of
                ``in_channels_list``.

        Returns:
            [N, out_channels, H_l, W_l] maps by the same names, and those of ``extra_blocks``.

        Raises:
            ValueError: another number of maps.
        """
        names, maps = list(x.keys()), list(x.values())
        if not 0 < len(maps) == len(self.inner_blocks):
            raise ValueError(f"x must have {len(self.inner_blocks)} maps, got {len(maps)}")
        if _is_faster_in_channels_last(maps, self.parameters()):
            results = self._levels([m.contiguous(memory_format=_CHANNELS_LAST) for m in maps])
            results = [contiguous(result) for result in results]
        else:
            results = self._levels(maps)
        if self.extra_blocks is not None:
            results, names = self.extra_blocks(results, maps, names)
        return OrderedDict(zip(names, results, strict=False))

    def _levels(self, maps: list[Tensor]) -> list[Tensor]:
        inner = self._inner(maps[-1], -1)
        results = [self._layer(inner, -1)]
        for level in reversed(range(len(maps) - 1)):
            inner = self._inner(maps[level], level, inner)
            results.append(self._layer(inner, level))
        return results[::-1]

    def _inner(self, x: Tensor, level: int, coarser: Tensor | None = None) -> Tensor:
        """The result of an inner block, plus the coarser map at its size."""
        if is_overridden(self, "get_result_from_inner_blocks"):
            return _plus(self.get_result_from_inner_blocks(x, level), coarser)
        return _run(self.inner_blocks[level], x, coarser)

    def _layer(self, x: Tensor, level: int) -> Tensor:
        if is_overridden(self, "get_result_from_layer_blocks"):
            return self.get_result_from_layer_blocks(x, level)
        return _run(self.layer_blocks[level], x)


def _is_faster_in_channels_last(maps: list[Tensor], parameters: Iterable[Tensor]) -> bool:
    """Whether our convolutions, which compute in channels_last, pay for converting the maps."""
    return (
        is_eager()  # a program would keep the loop over this batch
        and all(m.is_cpu and m.dtype == torch.float32 and m.dim() == 4 for m in maps)
        and sum(m.numel() * m.shape[1] for m in maps) >= _LEAST_WORK
        and maps[0].is_contiguous()
        and _extension.missing is None
        and not torch.is_autocast_enabled("cpu")
        and not needs_gradient((*maps, *parameters))
    )


def _run(block: Any, x: Tensor, coarser: Tensor | None = None) -> Tensor:
    """block(x), plus the coarser map at the size of the result."""
    if type(block) is Conv2dNormActivation and is_plain(block) and not has_global_hooks():
        conv, *norms = block._modules.values() or (None,)
        if len(norms) < 2 and type(conv) is nn.Conv2d and (coarser is None or _keeps_size(conv)):
            if coarser is not None:
                coarser = enlarged(coarser, x.shape[-2:])
            return _convolve(x, conv, norms[0] if norms else None, coarser)
    return _plus(block(x), coarser)


def _plus(x: Tensor, coarser: Tensor | None) -> Tensor:
    return x if coarser is None else x + enlarged(coarser, x.shape[-2:])


def _keeps_size(conv: nn.Conv2d) -> bool:
    return bool(conv.kernel_size == conv.stride == (1, 1) and conv.padding == (0, 0))


def _convolve(x: Any, conv: Any, norm: Any = None, residual: Tensor | None = None) -> Tensor:
    """norm(conv(x)) + residual."""
    if isinstance(x, Tensor) and x.is_cpu and _is_faster_by_torch(x, conv):
        z: Tensor = conv(x)
        if norm is not None:
            return norm_act(z, norm, None, residual)
        return z if residual is None else z + residual
    return conv_norm_act(x, conv, norm, None, residual)


def _is_faster_by_torch(x: Tensor, conv: Any) -> bool:
    """Our kernels compute in channels_last, and pack a weight that changes in every step."""
    if not is_channels_last(x) or type(conv) is not nn.Conv2d:
        return True
    return conv.kernel_size == (1, 1) and needs_gradient((x, conv.weight))


def _initialize(conv: nn.Conv2d) -> None:
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


@torch.fx.wrap
def _halved(x: Tensor) -> Tensor:
    # max pooling with a window of one pixel, without its indices
    kept = format_of(x) if x.dim() == 4 else torch.contiguous_format
    return x[..., ::2, ::2].clone(memory_format=kept)


class LastLevelMaxPool(ExtraFPNBlock):
    """Adds the coarsest map at half its size, "pool": every second pixel of every second row.

    Faster R-CNN takes its largest anchors from it (Lin et al. 2017, section 4.1).
    """

    def forward(  # type: ignore[override]  # torchvision's names of the arguments
        self, x: list[Tensor], y: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """Appends to ``x`` and ``names``, and returns them; ``y`` is not used."""
        x.append(_halved(x[-1]))
        names.append("pool")
        return x, names


class LastLevelP6P7(ExtraFPNBlock):
    """Adds two levels by 3x3 convolutions with stride 2, "p6" and "p7" (Lin et al., Focal loss for
    dense object detection, 2017, section 4).

    "p6" is made from the coarsest map of the pyramid if it has ``out_channels``, otherwise from the
    backbone's.

    Args:
        in_channels: of the map that "p6" is made from.
        out_channels: of both levels.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        nn.Module.__init__(self)  # torchvision's class may be a base (integrations/torchvision)
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, 2, 1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, 2, 1)
        _initialize(self.p6)
        _initialize(self.p7)
        self.use_P5 = in_channels == out_channels

    def forward(
        self, p: list[Tensor], c: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """Extends ``p`` and ``names``, and returns them; ``c`` are the maps of the backbone."""
        p6 = _convolve(p[-1] if self.use_P5 else c[-1], self.p6)
        p7 = _convolve(F.relu(p6), self.p7)
        p.extend((p6, p7))
        names.extend(("p6", "p7"))
        return p, names
