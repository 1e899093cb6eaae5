"""RoIAlign of rotated boxes: every backend against the reference in float64."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from fastvision import ops, reference
from fastvision._memory_format import memory_format
from fastvision.testing import cases
from fastvision.testing.marks import LAYOUTS
from fastvision.testing.numerics import DTYPES, assert_matches
from fastvision.testing.roi_align import EMPTY
from fastvision.testing.roi_programs import assert_compiles
from fastvision.testing.tensors import dtype_id, leaf
from fastvision.testing.threads import same_for_threads

pytestmark = pytest.mark.usefixtures("poisoned_memory")
HAS_KERNEL = pytest.mark.only(lambda backend: backend.name != "triton")


def pool(x, rois, *args, backend, **options):
    rois = torch.as_tensor(rois, dtype=torch.float32, device=backend.device)
    return ops.roi_align_rotated(x, rois, *args, backend=backend.name, **options)


# channels below, at and above the width of a vector and of a block of vectors; bins of more samples
# than are looked at together
@HAS_KERNEL
@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize(
    ("channels", "bins", "sampling_ratio", "aligned"),
    [
        (1, (1, 1), 1, False),
        (5, (7, 7), 2, True),
        (37, (3, 2), 0, True),
        (150, (2, 9), 3, False),
        (16, (1, 2), 11, True),
    ],
)
def test_forward_and_backward(
    backend, channels_last, dtype, channels, bins, sampling_ratio, aligned
):
    x = cases.feature_map(2, channels, 13, 21, dtype=dtype, channels_last=channels_last)
    x = leaf(x.to(backend.device))
    rois = cases.rotated(cases.small_rois(40, 2, 13, 21, 0.25)).to(backend.device)
    args = (bins, 0.25, sampling_ratio, aligned)
    pooled = pool(x, rois, *args, backend=backend)
    assert pooled.dtype == dtype
    format = memory_format(channels_last)
    assert pooled.is_contiguous(memory_format=format)
    grad = torch.randn(pooled.shape, generator=cases.generator(6)).to(pooled)
    pooled.backward(grad)

    exact = leaf(x.double())
    expected = reference.roi_align_rotated(
        exact, rois.double(), 0.25, *bins, sampling_ratio, aligned, False
    )
    expected.backward(grad.double())
    assert_matches(pooled, expected, scale=2)
    assert x.grad.is_contiguous(memory_format=format)
    assert_matches(x.grad, exact.grad, scale=4)


@HAS_KERNEL
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [-1, 1, 2, 9])
def test_angle_of_0_is_roi_align(backend, sampling_ratio, aligned):
    x = leaf(cases.feature_map(2, 9, 13, 21, dtype=torch.float64).to(backend.device))
    boxes = cases.small_rois(30, 2, 13, 21, 0.25).to(backend.device).double()
    rois = cases.rotated(boxes)
    rois[:, 5] = torch.tensor([0.0, 360, -720]).repeat(10)
    args = ((4, 3), 0.25, sampling_ratio, aligned)
    ours = ops.roi_align_rotated(x, rois, *args, backend=backend.name)
    upright = ops.roi_align(x, boxes, *args)
    if aligned:
        sizes = boxes[:, 3:] - boxes[:, 1:3] > 0
    else:  # a box below one pixel grows about its centre, not its corner
        sizes = (boxes[:, 3:] - boxes[:, 1:3]) * 0.25 > 1
    same = sizes.all(1)
    assert same.sum() > 10
    assert_matches(ours[same], upright[same], scale=10)
    grad = cases.feature_map(*ours.shape, dtype=torch.float64).to(x) * same[:, None, None, None]
    (actual,) = torch.autograd.grad(ours, x, grad)
    assert_matches(actual, torch.autograd.grad(upright, x, grad)[0], scale=10)


@HAS_KERNEL
@pytest.mark.parametrize("clockwise", [False, True])
@pytest.mark.parametrize("turns", [1, 2, 3, -1])
def test_quarter_turns(backend, turns, clockwise):
    """A box turned counterclockwise sees the map turned clockwise."""
    x = cases.feature_map(1, 5, 11, 11).to(backend.device)
    boxes = torch.tensor([[0, 5.5, 5.5, 6, 4, 90.0 * turns], [0, 5.5, 5.5, 9.5, 7.25, 90 * turns]])
    ours = pool(x, boxes, (3, 4), 1.0, 2, backend=backend, clockwise=clockwise)
    upright = boxes * torch.tensor([1, 1, 1, 1, 1, 0])
    turned = torch.rot90(x, turns if clockwise else -turns, (2, 3))
    assert_matches(ours, pool(turned, upright, (3, 4), 1.0, 2, backend=backend))


@HAS_KERNEL
def test_numbers_of_detectron2(backend):
    """A map of 0 to 24, bins of a quarter of a pixel: its test at 0, 90, 180 and 270 degrees."""
    x = torch.arange(25.0, device=backend.device).view(1, 1, 5, 5)
    expected = torch.arange(4)[:, None] * 2.5 + torch.arange(4) * 0.5 + 4.5
    for turns in range(4):
        pooled = pool(x, [[0, 2, 2, 2, 2, 90 * turns]], 4, 1.0, 0, backend=backend)
        assert pooled[0, 0].equal(torch.rot90(expected, -turns).to(pooled))
    empty = pool(x, [[0, 2, 3, 0, 0, 0]], 7, backend=backend)
    assert empty.eq(0).all()


@HAS_KERNEL
def test_numbers_of_mmcv(backend):
    """Of its tests; angles are in radians there."""
    small = [[1.0, 2], [3, 4]]
    large = [[1.0, 2, 5, 6], [3, 4, 7, 8], [9, 10, 13, 14], [11, 12, 15, 16]]
    grads = [[3.0625, 0.4375], [0.4375, 0.0625]]
    row = torch.tensor([0.6875, 0.625, 0.625, 0.0625])
    for image, roi, expected, expected_grad in (
        (small, [0, 0.5, 0.5, 1, 1, 0], [[1, 1.25], [1.5, 1.75]], torch.tensor(grads)),
        (small, [0, 0.5, 0.5, 1, 1, 90], [[1.5, 1], [1.75, 1.25]], torch.tensor(grads)),
        (large, [0, 1.5, 1.5, 3, 3, 0], [[1.9375, 4.75], [7.5625, 10.375]], row[:, None] * row),
        (large, [0, 1.5, 1.5, 3, 3, 90], [[7.5625, 1.9375], [10.375, 4.75]], row[:, None] * row),
    ):
        x = leaf(torch.tensor([[image]], device=backend.device))
        pooled = pool(x, [roi], 2, 1.0, 2, backend=backend)
        assert pooled[0, 0].tolist() == expected
        pooled.sum().backward()
        assert x.grad[0, 0].cpu().equal(expected_grad)


@HAS_KERNEL
def test_boxes_as_a_list(backend):
    x = cases.feature_map(2, 3, 8, 9).to(backend.device)
    rois = cases.rotated(cases.small_rois(5, 2, 8, 9, 1.0)).to(backend.device)
    rois = rois[rois[:, 0].argsort()]
    listed = [rois[rois[:, 0] == image, 1:] for image in range(2)]
    expected = pool(x, rois, 3, 1.0, backend=backend)
    assert torch.equal(ops.roi_align_rotated(x, listed, 3, 1.0, backend=backend.name), expected)
    module = ops.RoIAlignRotated(3, 1.0)
    assert_matches(module(x, tuple(listed)), expected)
    assert "clockwise=False" in repr(module)
    assert ops.roi_align_rotated(x, [], 3, backend=backend.name).shape == (0, 3, 3, 3)
    with pytest.raises(AssertionError, match=r"boxes must have shape \[K, 6\], got \[5, 5\]"):
        pool(x, rois[:, :5], 3, backend=backend)


@HAS_KERNEL
@LAYOUTS
def test_bad_rois(backend, channels_last):
    """The table of the docstring: zeros for what has no answer, an error where it can be known."""
    x = cases.feature_map(2, 9, 6, 7, channels_last=channels_last)
    x = leaf(x.to(backend.device))
    good = [0, 3.0, 3, 4, 4, 30]
    nan, inf = math.nan, math.inf
    zeros = [[1, nan, 3, 4, 4, 0], [0, 3, inf, 4, 4, 0], [0, 3, 3, inf, 4, 0], [0, 3, 3, 4, nan, 0]]
    zeros += [[0, 3, 3, 4, 4, inf], [0, 3, 3, 4, 4, nan], [0, 500, 500, 9, 9, 45]]
    zeros += [[0, 3e38, 3, 4, 4, 0], [0, 1e10, 1e10, 50, 50, 10]]
    for ratio in (0, 2):
        more = [[0, 3, 3, -4, 4, 9], [0, 3, 3, 0, 4, 9]] if ratio == 0 else [[0, 3, 3, 3e38, 3, 0]]
        rois = torch.tensor([good, *zeros, *more, good], device=backend.device)
        pooled = pool(x, rois, 2, 2.0, ratio, backend=backend)  # 6e38 is infinite in float32
        assert torch.equal(pooled[0], pooled[-1]) and pooled[0].ne(0).any()
        assert pooled[1:-1].eq(0).all()
        x.grad = None
        pooled.sum().backward()
        assert x.grad.isfinite().all() and x.grad[1].eq(0).all() and x.grad[0].ne(0).any()

    def refused(roi, ratio, message):
        rois = torch.tensor([good, roi], device=backend.device)
        if backend.device == "cpu":
            with pytest.raises(RuntimeError, match=message):
                pool(x, rois, 2, 1.0, ratio, backend=backend)
        else:
            assert pool(x, rois, 2, 1.0, ratio, backend=backend)[1].eq(0).all()

    for index in (-1.0, -0.5, 2.0, 1e30, nan):
        refused([index, 3, 3, 4, 4, 0], 2, "batch index")
    too_many = "2\\*\\*20 samples per bin and axis, or 2\\*\\*24 per bin; pass a smaller"
    refused([0, 3, 3, 3e6, 1, 0], 0, too_many)
    refused([0, 3, 3, 1e4, 1e4, 0], 0, too_many)  # on both axes together
    refused([0, 3, 3, 4, 4, 0], 5000, too_many)


@HAS_KERNEL
def test_mirrored(backend):
    """A negative size with a given number of samples."""
    x = cases.feature_map(1, 3, 9, 9).to(backend.device)
    rois = torch.tensor([[0, 4.0, 4, -5, 3, 20], [0, 4, 4, 5, -3, 20], [0, 4, 4, 5, 3, 20]])
    pooled = pool(x, rois, (2, 3), 1.0, 2, backend=backend)
    assert_matches(pooled[0].flip(2), pooled[2], scale=4)
    assert_matches(pooled[1].flip(1), pooled[2], scale=4)


LONG_ROWS = torch.tensor(
    [
        [0, 5, 5, 900, 3, 0],
        [0, 5, 5, 900, 3, 37],
        [0, 5, 5, 3, 800, 90],
        [0, -390, 5, 800, 3, 0],
        [0, 5, 5, -700, 3, 200],
        [0, 300, 300, 860, 3, -45],
    ]
)


@functools.cache  # which takes the reference a second
def expected_of_long_rows(ratio):
    """In float64: bins, and the gradient of the map."""
    x = leaf(cases.feature_map(1, 4, 9, 11).double())
    rois = LONG_ROWS.double()
    bins = reference.roi_align_rotated(x, rois, 1.0, 2, 2, ratio, True, False)
    return bins.detach(), torch.autograd.grad(bins, x, cases.feature_map(*bins.shape).double())[0]


@HAS_KERNEL
@LAYOUTS
def test_long_rows_of_samples(backend, channels_last):
    """Only the samples near the map are looked at, and none of those in it is left out."""
    x = cases.feature_map(1, 4, 9, 11, channels_last=channels_last)
    x = leaf(x.to(backend.device))
    for ratio in (0, 200):
        expected, expected_grad = (t.to(x.device) for t in expected_of_long_rows(ratio))
        pooled = pool(x, LONG_ROWS, 2, 1.0, ratio, backend=backend)
        assert pooled.ne(0).any()
        assert_matches(pooled, expected, scale=30)  # positions are far from 0
        grad = cases.feature_map(*pooled.shape).to(x)
        (actual,) = torch.autograd.grad(pooled, x, grad)
        assert_matches(actual, expected_grad, scale=30)


@HAS_KERNEL
@pytest.mark.parametrize(("shape", "count", "bins"), EMPTY)
def test_empty(backend, shape, count, bins):
    x = leaf(torch.ones(shape, device=backend.device))
    rois = torch.tensor([[0, 1, 1, 3.0, 3, 5]]).repeat(count, 1)
    pooled = pool(x, rois, bins, backend=backend)
    assert pooled.shape == (count, shape[1], *bins) and pooled.eq(0).all()
    pooled.sum().backward()
    assert x.grad.shape == shape and x.grad.eq(0).all()


@HAS_KERNEL
def test_strided_input_and_gradient(backend):
    x = cases.feature_map(4, 6, 10, 12).to(backend.device)
    rois = cases.rotated(cases.small_rois(6, 2, 5, 12, 1.0)).to(backend.device)
    view = leaf(x[::2, 1::2, ::2])
    wide = torch.zeros(6, 12, device=backend.device)
    wide[:, ::2] = rois
    actual = pool(view, wide[:, ::2], 3, backend=backend)
    dense = leaf(view.contiguous())
    expected = pool(dense, rois, 3, backend=backend)
    assert torch.equal(actual, expected)
    grad = cases.feature_map(*actual.shape).to(x)
    (strided,) = torch.autograd.grad(actual, view, grad.mT.contiguous().mT)
    assert torch.equal(strided, torch.autograd.grad(expected, dense, grad)[0])


@HAS_KERNEL
@LAYOUTS
def test_second_and_forward_derivatives(backend, channels_last):
    x = cases.feature_map(1, 2, 5, 6, dtype=torch.float64, channels_last=channels_last)
    x = leaf(x.to(backend.device))
    rois = torch.tensor([[0, 2.5, 2, 4, 3.5, 50], [0, 5, 5, 9, 9, -10]], dtype=torch.float64)
    rois = rois.to(backend.device)

    def rotated(x):
        return ops.roi_align_rotated(x, rois, 2, backend=backend.name)

    assert torch.autograd.gradcheck(rotated, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: rotated(x).pow(3), x)


@LAYOUTS
@pytest.mark.parametrize("width", [60, 700])
def test_deterministic_in_any_number_of_tiles(cpu_level, channels_last, width):
    """Bit for bit the same for any number of threads."""
    x = leaf(cases.feature_map(2, 70, 50, width, channels_last=channels_last))
    rois = cases.rotated(cases.small_rois(60, 2, 50, width, 0.5))
    grad = cases.feature_map(60, 70, 7, 7)

    def run():
        pooled = ops.roi_align_rotated(x, rois, 7, 0.5, 2, backend="cpp")
        return pooled, *torch.autograd.grad(pooled, x, grad)

    _, gradient = same_for_threads(run)
    exact = leaf(x.double())
    expected = reference.roi_align_rotated(exact, rois.double(), 0.5, 7, 7, 2, True, False)
    (wanted,) = torch.autograd.grad(expected, exact, grad.double())
    assert_matches(gradient, wanted, scale=8)


@HAS_KERNEL
@LAYOUTS
@pytest.mark.only(lambda backend: backend.name != "reference")  # which has no op of its own
def test_opcheck(backend, channels_last):
    x = cases.feature_map(2, 5, 8, 9, channels_last=channels_last).to(backend.device)
    rois = cases.rotated(cases.small_rois(4, 2, 8, 9, 0.5)).to(backend.device)
    forward = torch.ops.fastvision.roi_align_rotated.default
    torch.library.opcheck(forward, (x, rois, 0.5, 3, 2, 2, True, False))
    pooled = forward(x, rois, 0.5, 3, 2, 2, True, False)
    backward = torch.ops.fastvision.roi_align_rotated_backward.default
    torch.library.opcheck(backward, (pooled, rois, 0.5, [2, 8, 9], 2, True, False, channels_last))


@pytest.mark.parametrize("compiler", ["eager", "aot_eager", "inductor"])
def test_compile(cpu_level, compiler):
    def pooled(x, boxes):
        return ops.roi_align_rotated(x, boxes, (3, 4), 0.5)

    assert_compiles(pooled, compiler, boxes_of=cases.rotated)


def test_export(cpu_level):
    class Model(torch.nn.Module):
        def forward(self, x, rois):
            return ops.roi_align_rotated(x, rois, 3, 0.5)

    x, rois = cases.feature_map(2, 5, 8, 9), cases.rotated(cases.small_rois(4, 2, 8, 9, 0.5))
    sizes = ({0: torch.export.Dim.DYNAMIC}, {0: torch.export.Dim.DYNAMIC})
    program = torch.export.export(Model(), (x, rois), dynamic_shapes=sizes)
    assert torch.equal(program.module()(x, rois[:2]), Model()(x, rois[:2]))


def test_more_than_2_31_elements(cpu_level):
    """Pages that nobody touches cost nothing, so the map is only as large as its addresses."""
    size, channels = 16500, 8
    assert channels * size * size > 2**31
    x = torch.zeros(1, size, size, channels, dtype=torch.bfloat16).permute(0, 3, 1, 2)
    x[:, :, -1, -2] = torch.arange(1.0, channels + 1)
    rois = torch.tensor([[0, size - 1.5, size - 0.5, 1.0, 1.0, 90]])
    pooled = ops.roi_align_rotated(x, rois, 1, 1.0, 1, backend="cpp")
    assert torch.equal(pooled.flatten(), torch.arange(1.0, channels + 1, dtype=torch.bfloat16))
