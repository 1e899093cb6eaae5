"""PSRoIAlign against torchvision, and by hand. See also test_ps_roi_align_and_pool.py."""

from __future__ import annotations

import math

import pytest
import torch

from fastvision import ops
from fastvision.testing import cases
from fastvision.testing.marks import LAYOUTS
from fastvision.testing.numerics import assert_matches
from fastvision.testing.tensors import dtype_id, leaf

pytestmark = pytest.mark.usefixtures("poisoned_memory")
HAS_KERNEL = pytest.mark.only(lambda backend: backend.name != "triton")


@HAS_KERNEL
@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_id)
@pytest.mark.parametrize(("bins", "sampling"), [((7, 7), 2), ((3, 5), -1), ((1, 6), 1)])
def test_agrees_with_torchvision(backend, torchvision, channels_last, dtype, bins, sampling):
    C = 3 * bins[0] * bins[1]
    x = cases.feature_map(3, C, 25, 19, dtype=dtype, channels_last=channels_last)
    x = leaf(x.to(backend.device))
    rois = cases.small_rois(60, 3, 25, 19, 0.5).to(x)
    theirs = torchvision.ops.ps_roi_align(x, rois, bins, 0.5, sampling)
    ours = ops.ps_roi_align(x, rois, bins, 0.5, sampling, backend=backend.name)
    assert_matches(ours, theirs)
    grad = cases.feature_map(*ours.shape, seed=6, dtype=dtype).to(x)
    (actual,) = torch.autograd.grad(ours, x, grad)
    (expected,) = torch.autograd.grad(theirs, x, grad)
    assert_matches(actual, expected, scale=10)


@HAS_KERNEL
def test_bitwise_as_torchvision(backend, torchvision):
    """One sample between whole pixels: products with powers of two, and a sum of a few integers."""
    x = torch.randint(-99, 99, (2, 24, 12, 14), generator=cases.generator(1)).float()
    x = x.to(backend.device)
    corner = torch.randint(0, 9, (30, 2), generator=cases.generator(2)).float()
    image = torch.randint(0, 2, (30, 1), generator=cases.generator(3)).float()
    rois = torch.cat([image, corner, corner + torch.tensor([3.0, 2.0])], 1).to(backend.device)
    theirs = torchvision.ops.ps_roi_align(x, rois, (2, 3), 1.0, 1)
    assert torch.equal(ops.ps_roi_align(x, rois, (2, 3), 1.0, 1, backend=backend.name), theirs)


@HAS_KERNEL
def test_hand_checked(backend):
    """Each channel is its number plus x + 10 y at the centres of pixels."""
    plane = torch.arange(6.0) + 10 * torch.arange(5.0)[:, None]
    x = (plane + 100 * torch.arange(8.0)[:, None, None])[None].to(backend.device)

    def pool(roi, bins, **options):
        rois = torch.tensor([[0, *roi]], device=backend.device)
        return ops.ps_roi_align(x, rois, bins, backend=backend.name, **options)[0].tolist()

    # centres of bins at (1, 1), (1, 3), (3, 1) and (3, 3), less half a pixel
    centres = [[5.5, 107.5], [225.5, 327.5]]
    expected = [centres, [[value + 400 for value in row] for row in centres]]
    assert pool([0.0, 0, 4, 4], 2) == expected
    assert pool([0.0, 0, 4, 4], 2, sampling_ratio=1) == expected
    assert pool([0.0, 0, 8, 8], 2, spatial_scale=0.5) == expected


@HAS_KERNEL
@LAYOUTS
def test_bad_rois(backend, channels_last):
    """The table of the docstring: zeros for what has no answer, an error where it can be known."""
    x = cases.feature_map(2, 8, 6, 7, channels_last=channels_last)
    x = leaf(x.to(backend.device))
    nan, inf = math.nan, math.inf
    good = [0, 1.0, 1, 5, 5]
    harmless = [[1, nan, 1, 5, 5], [1, 1, -inf, 5, inf], [0, 5, 5, 1, 1], [0, 4, 4, 4, 4]]
    harmless += [[0, 500, 500, 600, 600]]
    rois = torch.tensor([good, *harmless, good], device=backend.device)
    pooled = ops.ps_roi_align(x, rois, 2, backend=backend.name)
    assert torch.equal(pooled[0], pooled[-1]) and pooled[0].ne(0).any()
    assert pooled[1:-1].eq(0).all()
    pooled.sum().backward()
    assert x.grad.isfinite().all() and x.grad[1].eq(0).all()
    huge = torch.tensor([[0, -1e9, 0, 1e9, 5]], device=backend.device)
    if backend.device == "cpu":
        with pytest.raises(RuntimeError, match="samples per bin"):
            ops.ps_roi_align(x, huge, 2, backend=backend.name)
    else:
        assert ops.ps_roi_align(x, huge, 2, backend=backend.name).eq(0).all()


def test_module():
    x, rois = torch.ones(1, 8, 4, 4), torch.tensor([[0, 0.0, 0, 4, 4]])
    module = ops.PSRoIAlign(2, 1.0, 2)
    assert torch.equal(module(x, rois), ops.ps_roi_align(x, rois, 2, 1.0, 2))
    assert repr(module) == "PSRoIAlign(output_size=2, spatial_scale=1.0, sampling_ratio=2)"
