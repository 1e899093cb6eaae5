"""What blocks of several architectures share."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops import Conv2dNormActivation, conv_norm_act
from ..ops._layers import has_global_hooks, is_plain
from ..ops.chain import run_layers


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The multiple of ``divisor`` closest to ``channels``, but never below 90 % of them.

    Rounding of Sandler et al., MobileNetV2, 2018, as in their published code.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def add_input(layers: nn.Sequential, x: Tensor) -> Tensor:
    """layers(x) + x, added in the last convolution.

    Args:
        layers: they end in a convolution and a normalization, which may be a
            :class:`Conv2dNormActivation` of the two.
        x: [N, C, H, W].
    """
    *first, norm = layers
    called = [layers]  # where somebody listens, everything is called as it is
    if type(norm) is Conv2dNormActivation:
        called.append(norm)
        end = list(norm)
    else:
        end = [first.pop(), norm]
    if len(end) != 2 or has_global_hooks() or not all(map(is_plain, called)):
        return layers(x) + x
    return conv_norm_act(run_layers(first, x), end[0], end[1], residual=x)


def initialize(model: nn.Module) -> None:
    """The random start of the MobileNets: normal weights, of the variance that keeps gradients'
    magnitude in convolutions (He et al. 2015) and of 0.01 in linear layers; zero biases."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)
