"""Inputs of deformable convolution for tests and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import cases
from .tensors import in_format


@dataclass(frozen=True)
class Problem:
    """Sizes of a call; ``groups`` of channels and of offsets."""

    shape: tuple[int, int, int, int]  # N, C, H, W
    filters: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    offset_groups: int = 1
    mask: bool = True
    bias: bool = True

    @property
    def size(self) -> tuple[int, int]:
        """OH, OW."""
        height, width = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(
                self.shape[2:], self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        return height, width

    def __str__(self) -> str:
        return (
            f"{'x'.join(map(str, self.shape))} to {self.filters}, "
            f"{self.kernel[0]}x{self.kernel[1]}/{self.stride[0]}"
            + f", {self.groups} groups" * (self.groups > 1)
            + f", {self.offset_groups} offset groups" * (self.offset_groups > 1)
            + ", mask" * self.mask
        )

    def tensors(
        self,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        channels_last: bool = False,
        reach: float = 2.0,
        gradients: bool = False,
    ) -> list[Tensor | None]:
        """input, offset, weight, bias and mask.

        A third of the offsets are whole pixels, so that samples are on the border and on pixels.
        ``reach``: standard deviation of the offsets.
        """
        taps = self.offset_groups * self.kernel[0] * self.kernel[1]
        N, C = self.shape[:2]
        offset = reach * cases.feature_map(N, 2 * taps, *self.size, seed=4)
        whole = torch.rand(offset.shape, generator=cases.generator(5)) < 1 / 3
        # multiples of 1/8, which 16-bit types have as well
        offset = torch.where(whole, offset.round(), (8 * offset).round() / 8)
        fan_in = C // self.groups * self.kernel[0] * self.kernel[1]
        weight = cases.feature_map(self.filters, C // self.groups, *self.kernel, seed=6)
        found: list[Tensor | None] = [
            in_format(cases.feature_map(*self.shape), channels_last),
            in_format(offset, channels_last),
            weight / fan_in**0.5,
            cases.feature_map(self.filters, seed=7) if self.bias else None,
            None,
        ]
        if self.mask:
            mask = torch.rand(N, taps, *self.size, generator=cases.generator(8))
            found[4] = in_format(mask, channels_last)
        return [
            None if t is None else t.to(device, dtype).detach().requires_grad_(gradients)
            for t in found
        ]

    def call(self, function: Any, tensors: list[Tensor | None], **options: Any) -> Tensor:
        """``function`` with the arguments of torchvision's deform_conv2d."""
        *first, mask = tensors
        window = (self.stride, self.padding, self.dilation)
        result: Tensor = function(*first, *window, mask, **options)
        return result


def leaves(tensors: list[Tensor | None]) -> list[Tensor]:
    return [t for t in tensors if t is not None]
