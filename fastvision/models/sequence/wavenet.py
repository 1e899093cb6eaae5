"""WaveNet.

Van den Oord, Dieleman, Zen, Simonyan, Vinyals, Graves, Kalchbrenner, Senior and Kavukcuoglu,
WaveNet: a generative model for raw audio, 2016.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._registry import register
from .._weights import load_weights


class CausalConv1d(nn.Conv1d):
    """A convolution of kernel size 2 whose result at t depends on nothing after t."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1) -> None:
        super().__init__(in_channels, out_channels, 2, dilation=dilation)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (self.dilation[0], 0)))


class WaveNetBlock(nn.Module):
    """A gated convolution around which the input is added, and a branch for the output.

    z = tanh(W_f * x) · sigmoid(W_g * x) (section 2.3, equation 2), x + W_r z and W_s z (section
    2.4). The last block has no W_r: nothing would read its result.
    """

    def __init__(self, channels: int, skip_channels: int, dilation: int, last: bool) -> None:
        super().__init__()
        self.filter_and_gate = CausalConv1d(channels, 2 * channels, dilation)
        self.residual = None if last else nn.Conv1d(channels, channels, 1)
        self.skip = nn.Conv1d(channels, skip_channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, channels, T] for the next block, [N, skip_channels, T] for the output."""
        filtered, gate = self.filter_and_gate(x).chunk(2, 1)
        z = torch.tanh(filtered) * torch.sigmoid(gate)
        return x if self.residual is None else x + self.residual(z), self.skip(z)


class WaveNet(nn.Module):
    """A stack of gated, dilated, causal convolutions; the sum of their branches makes the scores.

    Args:
        levels: of the quantized amplitude.
        channels: of the blocks.
        skip_channels: of the branches.
        layers: blocks per stack; their dilations are 1, 2, 4 and so on.
        stacks: how often the dilations repeat.
    """

    def __init__(
        self,
        levels: int = 256,
        channels: int = 32,
        skip_channels: int = 64,
        layers: int = 6,
        stacks: int = 2,
    ) -> None:
        super().__init__()
        self.levels = levels
        self.receptive_field = stacks * (2**layers - 1) + 2
        self.causal = CausalConv1d(levels, channels)
        dilations = [2**i for i in range(layers)] * stacks
        self.blocks = nn.ModuleList(
            WaveNetBlock(channels, skip_channels, dilation, last=i == len(dilations) - 1)
            for i, dilation in enumerate(dilations)
        )
        self.head = nn.Sequential(
            nn.ReLU(),
            nn.Conv1d(skip_channels, skip_channels, 1),
            nn.ReLU(),
            nn.Conv1d(skip_channels, levels, 1),
        )

    def forward(self, samples: Tensor) -> Tensor:
        """Scores [N, T, levels] of each next sample after samples int64 [N, T].

        A score depends on the ``receptive_field`` last samples.
        """
        one_hot = F.one_hot(samples, self.levels).to(self.causal.weight.dtype)
        x = self.causal(one_hot.transpose(1, 2))
        skips = []
        for block in self.blocks:
            x, skip = block(x)
            skips.append(skip)
        return self.head(torch.stack(skips).sum(0)).transpose(1, 2)


@register("sequence")
def wavenet(*, weights: Any = None, progress: bool = True, **options: Any) -> WaveNet:
    """WaveNet (van den Oord et al. 2016) of two stacks of six blocks, without conditioning:
    124,096 parameters, a receptive field of 128 samples."""
    return load_weights(WaveNet(**options), "wavenet", weights, progress)
