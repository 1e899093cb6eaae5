"""What the kernels of batch_norm_relu share: tiles, parameters of channels, and launches.

The input has N images of S pixels and C channels; channels_last is treated as a single image. A
tile is a block of pixels of one image by a block of channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._memory_format import is_channels_last, memory_format
from ..configs.batch_norm_relu import NUM_WARPS, splits, tile
from .scalars import as_double


@triton.jit
def tile_of(
    block,
    channel_block,
    C,
    S,
    CHANNELS_LAST: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Offsets, mask and channels of a tile: [BLOCK_S, BLOCK_C], or [BLOCK_C, BLOCK_S] in NCHW."""
    blocks = tl.cdiv(S, BLOCK_S)
    image = block // blocks
    first = block % blocks * BLOCK_S
    if INT64:
        image = image.to(tl.int64)
        first = first.to(tl.int64)
    places = first + tl.arange(0, BLOCK_S)
    channels = channel_block * BLOCK_C + tl.arange(0, BLOCK_C)
    if CHANNELS_LAST:
        places = places[:, None]
        channels = channels[None, :]
        offsets = places * C + channels
    else:
        places = places[None, :]
        channels = channels[:, None]
        offsets = (image * C + channels) * S + places
    return offsets, (places < S) & (channels < C), channels


@triton.jit
def load_affine(mean_ptr, var_ptr, weight_ptr, bias_ptr, channels, C, eps):
    mask = channels < C
    mean = tl.load(mean_ptr + channels, mask=mask, other=0.0)
    var = tl.load(var_ptr + channels, mask=mask, other=1.0)
    invstd = 1.0 / tl.sqrt(var + as_double(eps).to(var.dtype))
    scale = invstd
    if weight_ptr is not None:
        scale = invstd * tl.load(weight_ptr + channels, mask=mask, other=0.0)
    shift = tl.zeros_like(mean)
    if bias_ptr is not None:
        shift = tl.load(bias_ptr + channels, mask=mask, other=0.0)
    return mean, invstd, scale, shift


class Layout:
    """Images, pixels, channels and tiles of an input."""

    def __init__(self, input: Tensor) -> None:
        self.N, self.C = input.shape[:2]
        self.S = input.numel() // max(self.N * self.C, 1)
        last = input.dim() == 4 and is_channels_last(input)
        self.format = memory_format(last)
        self.channels_last = last or self.S == 1
        if self.channels_last:
            self.N, self.S = 1, self.N * self.S
        block_s, block_c = tile(max(self.C, 1), max(self.S, 1), self.channels_last)
        self.blocks = self.N * triton.cdiv(self.S, block_s)
        self.channel_blocks = triton.cdiv(self.C, block_c)
        self.splits = splits(self.blocks, self.channel_blocks)
        self.options = {
            "CHANNELS_LAST": self.channels_last,
            "INT64": input.numel() >= 2**31,
            "BLOCK_S": block_s,
            "BLOCK_C": block_c,
            "num_warps": NUM_WARPS,
        }

    def dense(self, x: Tensor | None) -> Tensor | None:
        return None if x is None else x.contiguous(memory_format=self.format)

    def empty_like(self, x: Tensor) -> Tensor:
        return torch.empty_like(x, memory_format=self.format)


def empty_channels(input: Tensor, *shape: int) -> Tensor:
    return input.new_empty(shape, dtype=torch.promote_types(input.dtype, torch.float32))
