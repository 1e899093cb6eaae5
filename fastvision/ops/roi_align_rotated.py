"""RoIAlign of boxes that are rotated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import reference
from ._checks import is_traced
from ._linear_pooling import ARGUMENTS, declare_pooling, run
from ._rois import as_recorded, as_rois, bins_of, check_feature, check_scale
from ._torchscript import traced_op

_OPTIONS = ", int sampling_ratio, bool aligned, bool clockwise"
_OPERATORS = declare_pooling(
    "roi_align_rotated", _OPTIONS, reference.roi_align_rotated, sensitive=False
)


def _traced(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    PH: int,
    PW: int,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
    backend: str | None,
) -> Tensor:
    return roi_align_rotated(
        input, rois, (PH, PW), spatial_scale, sampling_ratio, aligned, clockwise=clockwise,
        backend=backend,
    )  # fmt: skip


_TRACED = traced_op(
    "roi_align_rotated", f"({ARGUMENTS}{_OPTIONS}, str? backend) -> Tensor", _traced
)


@torch.fx.wrap
def roi_align_rotated(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = True,
    *,
    clockwise: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Averages bilinear samples in each bin of each rotated box.

    :func:`roi_align` with the grid of samples turned about the box's centre (Ma et al. 2018,
    Arbitrary-Oriented Scene Text Detection via Rotation Proposals; sampled as in Mask R-CNN, He et
    al. 2017, section 3).

    Args:
        input: [N, C, H, W] features; float16, bfloat16, float32 or float64, contiguous or
            channels_last.
        boxes: [K, 6] (batch index, cx, cy, width, height, angle), or one [L, 5] per image; the
            angle in degrees turns the box counterclockwise as seen, with y pointing down.
            detectron2 has the same convention; mmcv has radians.
        output_size: bins (PH, PW), or one number for both; rows go along the box's height.
        spatial_scale: factor from box coordinates to pixels of ``input``; finite.
        sampling_ratio: samples per bin and axis; if <= 0, ``ceil(roi size / bins)``.
        aligned: shift the scaled centre by -0.5, since pixel centres are at integers, as detectron2
            always does. Without, boxes are at least one pixel wide and high, as in mmcv.
        clockwise: angles turn boxes the other way.
        backend: "cuda", "cpp" or "reference"; None picks the fastest that can run.

    Returns:
        [K, C, PH, PW] in the dtype and memory format of ``input``. Coordinates, weights and sums
        are float32 (float64 for float64 features), also under autocast and for 16-bit features;
        cosine and sine are rounded from float64.

    Differentiable in ``input``, any number of times and in forward mode, not one within the other,
    nor under vmap; the gradient is deterministic. Boxes get no gradient.

    ===============================================  ===============================  ============
    input                                            CPU                              CUDA
    ===============================================  ===============================  ============
    batch index outside [0, N), or NaN               RuntimeError                     zeros
    NaN or infinite coordinate, size or angle        zeros                            zeros
    more than 2**20 samples per bin and axis, or     RuntimeError                     zeros
    than 2**24 per bin
    sample beyond one pixel outside the map          counts as 0                      counts as 0
    width or height <= 0, aligned, adaptive          zeros                            zeros
    width or height < 0, aligned, not adaptive       mirrored                         mirrored
    K, C, PH or PW of 0                              empty result of that shape       the same
    H or W of 0                                      zeros                            zeros
    more than 2**31 elements                         works                            works
    ===============================================  ===============================  ============

    Raises:
        AssertionError: wrong shape of ``boxes``, as in :func:`roi_align`.
        TypeError, ValueError: other arguments that do not fit, such as a quantized ``input``;
            ``backend`` cannot run here.
        RuntimeError: on the CPU, see the table.
        NotImplementedError: sparse, nested or mkldnn tensors.
    """
    pooled = bins_of(output_size)
    check_scale(spatial_scale)
    options = (float(spatial_scale), *pooled, sampling_ratio, aligned, clockwise)
    if is_traced():
        return _TRACED(input, as_recorded(boxes, input, numbers=5), *options, backend)
    check_feature(input, "input")
    rois = as_rois(boxes, input, numbers=5)
    chosen = _OPERATORS.forward.choose(input, backend)
    return run("roi_align_rotated", chosen, rois, options, input)


class RoIAlignRotated(nn.Module):
    """Module form of :func:`roi_align_rotated`."""

    def __init__(
        self,
        output_size: int | Sequence[int],
        spatial_scale: float,
        sampling_ratio: int = -1,
        aligned: bool = True,
        *,
        clockwise: bool = False,
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.clockwise = clockwise

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        return roi_align_rotated(
            input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned,
            clockwise=self.clockwise,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}, "
            f"clockwise={self.clockwise}"
        )
