"""Random and hostile numbers, sizes and tensors that the fuzzers share."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
HOSTILE = (float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 1e9, -1.0, -0.0, 1e-40, 65504.0)
THRESHOLDS = (0.0, 0.3, 0.5, 0.9, 1.0, -1.0, 2.0, float("nan"), float("inf"))
# around the vector widths of all CPU levels and types
COUNTS = (0, 1, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 18, 33)
CHANNELS = (0, 1, 1, 2, 3, 3, 7, 8, 9, 15, 16, 17)
MORE_CHANNELS = (31, 32, 33, 64, 65, 130, 150)
_LARGE = 1 / 32  # of the inputs


class Results(NamedTuple):
    """What a call returns."""

    close: Sequence[Tensor] = ()  # on all CPU levels, within tolerances
    repeated: Sequence[Tensor] = ()  # bit by bit on the same level, where others may round apart


Call = Callable[[], Results]
T = TypeVar("T")


class Source(random.Random):
    """Where the choices of one input come from."""

    large = False  # whether sizes may reach the thresholds of blocks, tiles and threads

    def begin(self, seed: str) -> None:
        self.seed(seed)
        torch.default_generator.manual_seed(self.getrandbits(62))  # torch.manual_seed is slow
        self.large = self.random() < _LARGE

    def size(self, small: Sequence[T], large: Sequence[T]) -> T:
        """One of the small sizes, and in large inputs also of the large ones."""
        return self.choice(large if self.large and self.random() < 0.35 else small)

    def chance(self, probability: float) -> bool:
        return self.random() < probability


def spoil(rng: Source, x: Tensor, most: int = 1, values: Sequence[float] = HOSTILE) -> None:
    """Writes hostile numbers to up to that many places of contiguous ``x``."""
    for _ in range(rng.randint(1, most) if x.numel() else 0):
        x.view(-1)[rng.randrange(x.numel())] = rng.choice(values)


def random_boxes(rng: Source, count: int, extent: float) -> Tensor:
    """[count, 4] boxes; some have sides that are negative, zero, huge or not a number."""
    boxes = torch.rand(count, 4) * extent
    corner = boxes[:, :2]
    corner.mul_(1.5).sub_(extent * 0.25)
    boxes[:, 2:] += corner
    kind = rng.choice(("ordinary", "ordinary", "degenerate", "reversed", "whole pixels", "hostile"))
    if kind == "degenerate":
        boxes[::2, 2:] = boxes[::2, :2]
    elif kind == "reversed":
        boxes[::3] = boxes[::3].flip(1)
    elif kind == "whole pixels":
        boxes.round_()
    elif kind == "hostile":
        spoil(rng, boxes, max(count // 4, 2))
    return boxes


def _shifted(x: Tensor) -> Tensor:
    """The same values one element behind the start of their memory, where no vector is aligned."""
    memory = torch.empty(x.numel() + 1, dtype=x.dtype)
    return memory[1:].view(x.shape).copy_(x)


def random_format(rng: Source, x: Tensor) -> Tensor:
    """``x`` [N, C, H, W] in a memory format, or strided or unaligned."""
    kind = rng.choice(("contiguous", "contiguous", "channels_last", "strided", "shifted"))
    if kind == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if kind == "shifted":
        return _shifted(x)
    return x.mT.contiguous().mT if kind == "strided" else x


def random_layout(rng: Source, x: Tensor) -> Tensor:
    """The same values in memory of another order, unaligned or with gaps."""
    kind = rng.choice(("contiguous", "contiguous", "contiguous", "transposed", "gaps", "shifted"))
    if kind == "transposed" and x.dim() > 1:
        return x.mT.contiguous().mT
    if kind == "shifted":
        return _shifted(x)
    return torch.stack([x, x], -1)[..., 0] if kind == "gaps" else x


def random_map(rng: Source, shape: Sequence[int], dtype: torch.dtype, hostile: float) -> Tensor:
    """A feature map [N, C, H, W] in some format, with that chance of a hostile number."""
    x = torch.randn(shape)
    if rng.chance(hostile):
        spoil(rng, x)
    return random_format(rng, x.to(dtype))


def random_scores(rng: Source, count: int, dtype: torch.dtype) -> Tensor:
    scores = torch.rand(count).to(dtype)
    if count and rng.chance(0.3):
        scores[torch.randint(0, count, (count // 3 + 1,))] = rng.choice(HOSTILE)
    if rng.chance(0.3):
        scores = scores.round(decimals=1)  # ties
    return random_layout(rng, scores)


def random_rotated_boxes(rng: Source, count: int) -> Tensor:
    """[count, 5] boxes whose angle may be anything too."""
    boxes = random_boxes(rng, count, 40.0)
    angle = torch.rand(count, 1) * 720 - 360
    if rng.chance(0.2):
        spoil(rng, angle)
    return torch.cat([boxes, angle], 1)


def random_solid_boxes(rng: Source, count: int) -> Tensor:
    """[count, 7] boxes whose heights and yaws may be anything too."""
    flat, upright = (random_boxes(rng, count, 40.0) for _ in range(2))
    yaw = torch.rand(count, 1) * 12 - 6
    if rng.chance(0.2):
        spoil(rng, yaw)
    return torch.cat([flat[:, :2], upright[:, :1], flat[:, 2:], upright[:, 2:3], yaw], 1)


def gradients(y: Tensor, wanted: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """Derivatives of ``y`` in those of ``wanted`` that ask for one."""
    leaves = [t for t in wanted if t.requires_grad]
    if not leaves or not y.requires_grad:
        return []
    found = list(torch.autograd.grad(y, leaves, grad))
    assert all(g.shape == t.shape for g, t in zip(found, leaves, strict=True))
    return found
