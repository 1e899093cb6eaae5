"""PSRoIAlign: RoIAlign from a map in which each bin has channels of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import reference
from ._checks import is_traced
from ._linear_pooling import ARGUMENTS, declare_pooling, run, sensitive_bins_of
from ._rois import as_recorded, as_rois, bins_of, check_feature, check_scale
from ._torchscript import traced_op

_OPTIONS = ", int sampling_ratio"
OPERATORS = declare_pooling("ps_roi_align", _OPTIONS, reference.ps_roi_align, sensitive=True)


def _traced(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    PH: int,
    PW: int,
    sampling_ratio: int,
    backend: str | None,
) -> Tensor:
    return ps_roi_align(input, rois, (PH, PW), spatial_scale, sampling_ratio, backend=backend)  # type: ignore[arg-type]


_TRACED = traced_op("ps_roi_align", f"({ARGUMENTS}{_OPTIONS}, str? backend) -> Tensor", _traced)


@torch.fx.wrap
def ps_roi_align(
    input: Tensor,
    boxes: Tensor,
    output_size: int,
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    *,
    backend: str | None = None,
) -> Tensor:
    """Averages bilinear samples in each bin of each box, from channels of the bin's own.

    Bin (i, j) of output channel c is pooled from channel ``(c * PH + i) * PW + j`` (Light-Head
    R-CNN, Li et al. 2017, section 3.2; the map is R-FCN's), as :func:`roi_align` does with
    ``aligned=True``.

    Args:
        input: [N, C * PH * PW, H, W] features; float16, bfloat16, float32 or float64, contiguous or
            channels_last.
        boxes: [K, 5] (batch index, x1, y1, x2, y2), or one [L, 4] per image.
        output_size: bins (PH, PW), or one number for both; at least 1.
        spatial_scale: from the boxes' coordinates to those of ``input``; finite.
        sampling_ratio: samples per bin and axis; if <= 0, ``ceil(roi size / bins)``.
        backend: "cuda", "cpp" or "reference"; None takes the fastest that can run.

    Returns:
        [K, C, PH, PW] in the dtype and memory format of ``input``. Coordinates, weights and sums
        are float32 (float64 for float64 features), also under autocast and for 16-bit features.

    Differentiable in ``input``, any number of times and in forward mode; the gradient is
    deterministic. The boxes get no gradient.

    ===============================================  ===============================  ============
    input                                            CPU                              CUDA
    ===============================================  ===============================  ============
    batch index outside [0, N), or NaN               RuntimeError                     zeros
    NaN or infinite coordinate                       zeros (torchvision: NaN)         zeros
    more than 2**20 samples per bin and axis         RuntimeError                     zeros
    sample beyond one pixel outside the map          counts as 0                      counts as 0
    x2 <= x1 or y2 <= y1, adaptive sampling          zeros (torchvision: 0 or NaN)    zeros
    K or C of 0                                      empty result of that shape       the same
    H or W of 0                                      zeros                            zeros
    more than 2**31 elements                         works                            works
    ===============================================  ===============================  ============

    Raises:
        AssertionError: shape of ``boxes`` (torchvision's error type).
        TypeError, ValueError: other arguments that do not fit; ``backend`` cannot run here.
        RuntimeError: on the CPU, see the table.
        NotImplementedError: sparse, nested or mkldnn tensors.
    """
    check_scale(spatial_scale)
    if is_traced():
        rois, bins = as_recorded(boxes, input), bins_of(output_size)
        return _TRACED(input, rois, spatial_scale, *bins, sampling_ratio, backend)
    check_feature(input, "input")
    bins = sensitive_bins_of(output_size, input)
    rois = as_rois(boxes, input)
    options = (float(spatial_scale), *bins, sampling_ratio)
    return run("ps_roi_align", OPERATORS.forward.choose(input, backend), rois, options, input)


class PSRoIAlign(nn.Module):
    """See :func:`ps_roi_align`."""

    def __init__(self, output_size: int, spatial_scale: float, sampling_ratio: int) -> None:
        nn.Module.__init__(self)  # torchvision's class may stand between
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        return ps_roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio)

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}"
        )

    __repr__ = nn.Module.__repr__
