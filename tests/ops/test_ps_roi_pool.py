"""PSRoIPool against torchvision, and by hand. See also test_ps_roi_align_and_pool.py."""

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
@pytest.mark.parametrize("bins", [(7, 7), (3, 5), (1, 6), (9, 20)])
def test_agrees_with_torchvision(backend, torchvision, channels_last, dtype, bins):
    C = 2 * bins[0] * bins[1]
    x = cases.feature_map(3, C, 25, 19, dtype=dtype, channels_last=channels_last)
    x = leaf(x.to(backend.device))
    rois = cases.small_rois(60, 3, 25, 19, 0.5).to(x)
    rois[::10, 3:] = rois[::10, 1:3] - 3  # reversed corners
    rois[5::10, 1:] = rois[5::10, 1:].round()  # scaled, halfway between two pixels
    theirs = torchvision.ops.ps_roi_pool(x, rois, bins, 0.5)
    assert_matches(ops.ps_roi_pool(x, rois, bins, 0.5, backend=backend.name), theirs)

    # at the map's last row and column torchvision's gradient is of other bins than its forward's
    rois[:, 3:] = torch.minimum(rois[:, 3:], torch.tensor([34.0, 46.0]).to(x))
    theirs = torchvision.ops.ps_roi_pool(x, rois, bins, 0.5)
    ours = ops.ps_roi_pool(x, rois, bins, 0.5, backend=backend.name)
    grad = cases.feature_map(*ours.shape, seed=6, dtype=dtype).to(x)
    (actual,) = torch.autograd.grad(ours, x, grad)
    (expected,) = torch.autograd.grad(theirs, x, grad)
    assert_matches(actual, expected, scale=10)


@HAS_KERNEL
def test_bitwise_as_torchvision(backend, torchvision):
    """Bins of one or four pixels: division is exact."""
    x = cases.feature_map(2, 24, 12, 14).to(backend.device)
    corner = torch.randint(0, 9, (30, 2), generator=cases.generator(2)).float()
    image = torch.randint(0, 2, (30, 1), generator=cases.generator(3)).float()
    for size in ([3.0, 2.0], [6.0, 4.0]):
        rois = torch.cat([image, corner, corner + torch.tensor(size)], 1).to(backend.device)
        rois[:, 1:] = rois[:, 1:].clamp(max=10)
        whole = ((rois[:, 3:] - rois[:, 1:3]) == torch.tensor(size).to(rois)).all(1)
        theirs = torchvision.ops.ps_roi_pool(x.round(), rois[whole], (2, 3), 1.0)
        ours = ops.ps_roi_pool(x.round(), rois[whole], (2, 3), 1.0, backend=backend.name)
        assert whole.any() and torch.equal(ours, theirs)


@HAS_KERNEL
def test_hand_checked(backend):
    """Each channel is 100 times its number plus x + 10 y."""
    plane = torch.arange(6.0) + 10 * torch.arange(5.0)[:, None]
    x = (plane + 100 * torch.arange(4.0)[:, None, None])[None].to(backend.device)

    def pool(roi, bins, scale=1.0):
        rois = torch.tensor([[0, *roi]], device=backend.device)
        return ops.ps_roi_pool(x, rois, bins, scale, backend=backend.name)[0, 0].tolist()

    assert pool([0.0, 0, 4, 4], 2) == [[5.5, 107.5], [225.5, 327.5]]
    # without the last row and column
    assert pool([0.0, 0, 6, 6], 2) == [pytest.approx([11, 113.5]), [231, 333.5]]
    assert pool([1.0, 1, 4, 4], 2) == [[16.5, 117.5], [226.5, 327.5]]  # bins share the middle
    assert pool([1.0, 1, 1, 1], 2) == [[11, 111], [211, 311]]  # one pixel for all
    assert pool([3.0, 3, 1, 1], 1) == [[33]]  # reversed: one pixel at the first corner
    assert pool([0.5, 0.5, 0.5, 0.5], 1) == [[11]]  # half away from zero
    assert pool([3.0, 1, 9, 2], (1, 2)) == [[13.5, 0]]  # without the last column; bins outside
    assert pool([2.0, 2, 4, 4], 1, 0.5) == [[11]]


@HAS_KERNEL
def test_gradient_is_of_the_forward(backend):
    """Also at the last row and column of the map, which torchvision's gradient includes."""
    x = leaf(torch.zeros(1, 1, 4, 4, device=backend.device))
    rois = torch.tensor([[0, 1.0, 1, 8, 8]], device=backend.device)
    ops.ps_roi_pool(x, rois, 1, backend=backend.name).sum().backward()
    expected = torch.zeros(4, 4)
    expected[1:3, 1:3] = 0.25
    assert torch.equal(x.grad[0, 0].cpu(), expected)


@HAS_KERNEL
@LAYOUTS
def test_bad_rois(backend, channels_last):
    """The table of the docstring: zeros for what has no answer."""
    x = cases.feature_map(2, 8, 6, 7, channels_last=channels_last)
    x = leaf(x.to(backend.device))
    nan, inf = math.nan, math.inf
    good = [0, 1.0, 1, 5, 5]
    harmless = [[1, nan, 1, 5, 5], [1, 1, -inf, 5, inf], [0, 1, 1, inf, 5], [0, 500, 500, 600, 600]]
    harmless += [[0, -3e38, 0, 3e38, 5], [0, 1e10, 1e10, 2e10, 2e10]]
    rois = torch.tensor([good, *harmless, good], device=backend.device)
    pooled = ops.ps_roi_pool(x, rois, 2, 2.0, backend=backend.name)  # 6e38 is infinite in float32
    assert torch.equal(pooled[0], pooled[-1]) and pooled[0].ne(0).any()
    assert pooled[1:-1].eq(0).all()
    pooled.sum().backward()
    assert x.grad.isfinite().all() and x.grad[1].eq(0).all()
    huge = torch.tensor([[0, -1e30, -1e30, 1e30, 1e30]], device=backend.device)
    pooled = ops.ps_roi_pool(x, huge, 1, backend=backend.name)
    assert_matches(pooled[0, :, 0, 0], x[0, :, :-1, :-1].mean((1, 2)))


def test_module():
    x, rois = torch.ones(1, 8, 4, 4), torch.tensor([[0, 0.0, 0, 4, 4]])
    module = ops.PSRoIPool(2, 1.0)
    assert torch.equal(module(x, rois), ops.ps_roi_pool(x, rois, 2, 1.0))
    assert repr(module) == "PSRoIPool(output_size=2, spatial_scale=1.0)"
