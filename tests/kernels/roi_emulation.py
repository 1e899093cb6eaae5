"""RoIAlign's and RoIPool's CUDA kernels under the emulation: what both tests need to run them."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastvision.testing import cases

sys.path.append(str(Path(__file__).parents[1]))
import cuda_emulation

NEEDS_COMPILER = pytest.mark.skipif(cuda_emulation.COMPILER is None, reason="needs a C++ compiler")


def random_rois(count: int, *, max_size: float = 48) -> Tensor:
    """Of 13 x 18 pixels at a scale of 1/4; some reach over the right and lower borders."""
    return cases.rois(count, 2, seed=0, height=52, width=72, min_size=2, max_size=max_size)


def build(folder: Path, op: str, *kernels: str) -> Path:
    """The driver of ``op`` with its sources ``kernels``, as an executable in ``folder``."""
    return cuda_emulation.build(
        folder / op,
        cuda_emulation.HERE / f"driver_{op}.cpp",
        *(cuda_emulation.ROOT / "csrc" / "cuda" / f"{kernel}.cu" for kernel in kernels),
        options=("-O0",),  # the cases are small: compiling takes longer
    )


class RoiKernel:
    """A driver with its rois, dtype and memory format."""

    def __init__(
        self, program: Path, folder: Path, rois: Tensor, dtype: torch.dtype, channels_last: bool
    ) -> None:
        self.program, self.folder = program, folder
        self.dtype, self.channels_last = dtype, channels_last
        self.rois = rois.to(torch.float64 if dtype == torch.float64 else torch.float32)

    def run(self, direction: str, *arguments: object, reverse: bool, **maps: Tensor) -> None:
        result = cuda_emulation.run(
            self.program,
            self.folder,
            direction,
            str(self.dtype).removeprefix("torch."),
            *arguments,
            inputs={"rois": self.rois.numpy(), **{k: self._bytes(x) for k, x in maps.items()}},
            reverse=reverse,
        )
        assert result.returncode == 0, result.stderr

    def _bytes(self, x: Tensor) -> np.ndarray:
        x = x.permute(0, 2, 3, 1) if self.channels_last else x
        return x.reshape(-1).view(torch.uint8).numpy()

    def read(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        """A map that the driver wrote, of the kernel's dtype if none is given."""
        N, C, H, W = shape
        data = torch.empty(math.prod(shape), dtype=dtype or self.dtype)
        written = cuda_emulation.read(self.folder / name, "uint8")
        data.view(torch.uint8).copy_(torch.from_numpy(written))
        return data.view(N, H, W, C).permute(0, 3, 1, 2) if self.channels_last else data.view(shape)
