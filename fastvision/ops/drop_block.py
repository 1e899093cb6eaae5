"""DropBlock: dropout of contiguous blocks of a feature map or volume."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._checks import check_floating, check_number, check_tensor, integer

# of the windows: with fewer, the calls take longer than torch's pooling
_MIN_READS = 200_000


@torch.fx.wrap
def drop_block2d(
    input: Tensor,
    p: float,
    block_size: int,
    inplace: bool = False,
    eps: float = 1e-06,
    training: bool = True,
) -> Tensor:
    """Zeroes random square blocks and scales the rest so that the expected sum stays.

    Ghiasi, Lin and Le, DropBlock: a regularization method for convolutional networks, 2018, eq. 1
    and algorithm 1. Each channel has blocks of its own; they overlap and lie inside the map. The
    random numbers are torchvision's under the same seed.

    Args:
        input: [N, C, H, W] float16, bfloat16, float32 or float64.
        p: probability that an element is dropped, from 0 to 1.
        block_size: side of a block in elements, odd; the shorter side of the map if that is less.
        inplace: write the result to ``input``.
        eps: added to the number of elements kept, by which the scale divides.
        training: if False, or if ``p`` is 0, ``input`` itself is returned.

    Returns:
        [N, C, H, W] in the dtype of ``input``. The elements kept are counted in float32 for 16-bit
        inputs, where torchvision's count in float16 overflows from 65,505 on.

    Differentiable in ``input``, any number of times and in forward mode.

    Raises:
        TypeError: ``input`` is not a floating-point tensor, ``p`` no number, or ``block_size`` no
            integer.
        ValueError: ``p`` is not in [0, 1], ``input`` has another number of dimensions, or the block
            is even or empty.
    """
    return _drop_block(input, p, block_size, inplace, eps, training, 2)


@torch.fx.wrap
def drop_block3d(
    input: Tensor,
    p: float,
    block_size: int,
    inplace: bool = False,
    eps: float = 1e-06,
    training: bool = True,
) -> Tensor:
    """:func:`drop_block2d` of [N, C, D, H, W] volumes, with cubes as blocks."""
    return _drop_block(input, p, block_size, inplace, eps, training, 3)


def _drop_block(
    input: Tensor, p: float, block_size: int, inplace: bool, eps: float, training: bool, dims: int
) -> Tensor:
    check_tensor(input, "input")
    if not isinstance(p, Tensor):
        check_number(p, "p")
    if not 0 <= p <= 1:
        raise ValueError(f"drop probability has to be between 0 and 1, but got {p}.")
    if input.dim() != dims + 2:
        raise ValueError(f"input should be {dims + 2} dimensional. Got {input.dim()} dimensions.")
    check_floating(input.dtype, "input")
    if not training or p == 0:
        return input
    sizes = input.shape[2:]
    block = min(integer(block_size, "block_size must be an integer"), *sizes)
    if input.numel() == 0:
        return input
    if block % 2 == 0:
        raise ValueError(f"block size should be odd. Got {block} which is even.")
    if block < 1:
        raise ValueError(f"block size should be positive. Got {block}.")

    places = [size - block + 1 for size in sizes]  # of a block's first corner
    elements, corners = 1, 1
    for size, place in zip(sizes, places, strict=True):
        elements, corners = elements * size, corners * place
    dropped = input.new_empty((*input.shape[:2], *places))
    dropped.bernoulli_(p * elements / (block**dims * corners))

    scale = 1 - _cover(dropped, block, dims)
    kept = scale.sum() if scale.element_size() > 2 else scale.sum(dtype=torch.float32)
    # one factor instead of torchvision's two: fewer passes, and one tensor saved for the gradient
    scale *= scale.numel() / (eps + kept)
    return input.mul_(scale) if inplace else input * scale


def _cover(corners: Tensor, block: int, dims: int) -> Tensor:
    """Ones where a block lies whose first corner is one in ``corners``, else zeros."""
    if not corners.is_cpu or _reads(corners.shape, block) < _MIN_READS:
        pool = F.max_pool2d if dims == 2 else F.max_pool3d
        half = block // 2  # the pooling pads the other half, and skips it
        return pool(F.pad(corners, [half] * 2 * dims), block, 1, half)
    # torch's pooling on the CPU reads all of a window: maxima of doubling length need log(block)
    for dim in range(-1, -1 - dims, -1):
        corners = F.pad(corners, [0, 0] * (-1 - dim) + [block - 1] * 2)
        length = 1
        while length < block:
            step = min(length, block - length)
            count = corners.shape[dim] - step
            corners = torch.maximum(corners.narrow(dim, 0, count), corners.narrow(dim, step, count))
            length += step
    return corners


def _reads(shape: torch.Size, block: int) -> int:
    """Of a pooling with a window at each element of the map."""
    reads: int = shape[0] * shape[1]
    for places in shape[2:]:
        reads *= block * (places + block - 1)
    return reads


class DropBlock2d(nn.Module):
    """See :func:`drop_block2d`.

    Args:
        p, block_size, inplace, eps: of :func:`drop_block2d`.
    """

    def __init__(
        self, p: float, block_size: int, inplace: bool = False, eps: float = 1e-06
    ) -> None:
        nn.Module.__init__(self)  # torchvision's class may be a base (integrations/torchvision)
        self.p = p
        self.block_size = block_size
        self.inplace = inplace
        self.eps = eps

    def forward(self, input: Tensor) -> Tensor:
        return drop_block2d(input, self.p, self.block_size, self.inplace, self.eps, self.training)

    def __repr__(self) -> str:
        options = f"p={self.p}, block_size={self.block_size}, inplace={self.inplace}"
        return f"{type(self).__name__}({options})"


class DropBlock3d(DropBlock2d):
    """See :func:`drop_block3d`.

    Args:
        p, block_size, inplace, eps: of :func:`drop_block3d`.
    """

    def __init__(
        self, p: float, block_size: int, inplace: bool = False, eps: float = 1e-06
    ) -> None:
        DropBlock2d.__init__(self, p, block_size, inplace, eps)

    def forward(self, input: Tensor) -> Tensor:
        return drop_block3d(input, self.p, self.block_size, self.inplace, self.eps, self.training)
