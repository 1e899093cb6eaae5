"""Overlap of solid boxes: every backend against geometry, other formulas and the reference."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from fastvision import ops
from fastvision.testing.boxes import beyond_a_side, boxes, rotated_boxes, solid_boxes
from fastvision.testing.numerics import DTYPES, assert_matches
from fastvision.testing.tensors import dtype_id, leaf
from fastvision.testing.threads import same_for_threads

pytestmark = pytest.mark.usefixtures("poisoned_memory")

COUNTS = [(1, 1), (5, 20), (70, 600)]
SOME = pytest.mark.only(lambda backend, counts: not backend.interpreted or max(counts) < 100)


def overlap_on(backend, b1, b2, **options):
    b1, b2 = b1.to(backend.device), b2.to(backend.device)
    return ops.box_iou_3d(b1, b2, backend=backend.name, **options)


@SOME
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_matches_float64(backend, dtype, counts):
    b1, b2 = (solid_boxes(n, seed=n, extent=60).to(dtype) for n in counts)
    expected = ops.box_iou_3d(b1.double(), b2.double(), backend="reference")
    overlap = overlap_on(backend, b1, b2)
    assert overlap.dtype == torch.promote_types(dtype, torch.float32)
    assert overlap.shape == counts
    assert_matches(overlap.cpu(), expected)


def test_is_the_area_from_above_times_the_height(backend):
    """By the area that box_iou_rotated tells of, whose boxes turn the other way."""
    b1, b2 = solid_boxes(9).double(), solid_boxes(30, seed=1).double()
    flat1, flat2 = (
        torch.cat([b[:, :2], b[:, 3:5], -b[:, 6:] * (180 / math.pi)], 1) for b in (b1, b2)
    )
    flat = ops.box_iou_rotated(flat1, flat2, backend="reference")
    areas = flat1[:, None, 2:4].prod(-1) + flat2[None, :, 2:4].prod(-1)
    low = torch.maximum(b1[:, None, 2] - b1[:, None, 5] / 2, b2[:, 2] - b2[:, 5] / 2)
    high = torch.minimum(b1[:, None, 2] + b1[:, None, 5] / 2, b2[:, 2] + b2[:, 5] / 2)
    shared = areas * flat / (1 + flat) * (high - low).clamp(min=0)
    volumes = b1[:, None, 3:6].prod(-1) + b2[None, :, 3:6].prod(-1)
    assert (shared > 0).any()
    assert_matches(overlap_on(backend, b1, b2).cpu(), shared / (volumes - shared), scale=10)


@pytest.mark.parametrize("turn", [0, 0.3, math.pi / 2, -4])
def test_hand_checked(backend, turn):
    """Turning both boxes around a point changes nothing, nor does a yaw of half a turn."""
    root = math.sqrt(2)
    octagon = 2 * (root - 1)  # that a unit square and one turned by 45 degrees share
    corner = 0.1 / root - 0.05**2  # from the center of a unit square, 0.1 across
    unit = (0, 0, 0, 1, 1, 1, 0)
    pairs = [
        (unit, unit, 1),
        (unit, (0, 0, 0, 1, 1, 1, math.pi), 1),
        (unit, (0, 0, 0.5, 1, 1, 1, 0), 1 / 3),
        (unit, (0.5, 0, 0, 1, 1, 1, 0), 1 / 3),
        (unit, (0.5, 0.5, 0.5, 1, 1, 1, 0), 1 / 15),
        (unit, (0, 0, 1, 1, 1, 1, 0), 0),
        (unit, (0, 0, 0, 1, 1, 1, math.pi / 4), octagon / (2 - octagon)),
        (unit, (0, 0, 0.5, 1, 1, 2, math.pi / 4), octagon / (3 - octagon)),
        ((0, 0, 0, 4, 2, 3, 0), (0, 0, 0, 2, 1, 1, 0.5), 2 / 24),
        # along the diagonal x = y if it turns from x towards y, across it otherwise
        (unit, (2, 2, 0, 4 * root, 0.1, 1, math.pi / 4), corner / (1 + 0.4 * root - corner)),
    ]
    cos, sin = math.cos(turn), math.sin(turn)
    for *two, expected in pairs:
        b1, b2 = (
            torch.tensor([[x * cos - y * sin, x * sin + y * cos, z, dx, dy, dz, r + turn]])
            for x, y, z, dx, dy, dz, r in two
        )
        overlap = overlap_on(backend, b1, b2)
        assert_matches(overlap.cpu(), torch.tensor([[float(expected)]]))


def test_numbers_of_mmcv(backend):
    """Of the test of its boxes_iou_bev, with corners (x1, y1, x2, y2, yaw); of equal heights."""
    first = [[1.0, 1.0, 3.0, 4.0, 0.5], [2.0, 2.0, 3.0, 4.0, 0.6], [7.0, 7.0, 8.0, 8.0, 0.4]]
    second = [[0.0, 2.0, 2.0, 5.0, 0.3], [2.0, 1.0, 3.0, 3.0, 0.5], [5.0, 5.0, 6.0, 7.0, 0.4]]
    expected = torch.tensor([[0.2621, 0.2948, 0.0], [0.0549, 0.1587, 0.0], [0.0, 0.0, 0.0]])
    b1, b2 = (
        torch.tensor([[(a + c) / 2, (b + d) / 2, 0, c - a, d - b, 1, r] for a, b, c, d, r in rows])
        for rows in (first, second)
    )
    torch.testing.assert_close(overlap_on(backend, b1, b2).cpu(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=dtype_id)
def test_boxes_that_are_apart_share_nothing(backend, dtype):
    """Not even a rounding error, beside one another or one upon the other."""
    flat = rotated_boxes(10 if backend.interpreted else 300, seed=2).to(dtype)

    def solid(flat, z, depth):
        upright = torch.full((len(flat), 2), depth, dtype=dtype)
        upright[:, 0] = z
        yaw = torch.deg2rad(-flat[:, 4:])
        return torch.cat([flat[:, :2], upright[:, :1], flat[:, 2:4], upright[:, 1:], yaw], 1)

    beside, into = (beyond_a_side(flat, gap) for gap in (1e-3, -1e-2))
    for other, z, expected in ((beside, 0.0, False), (into, 1.0, False), (into, 0.9, True)):
        b1, b2 = (
            leaf(b[:, None].to(backend.device)) for b in (solid(flat, 0.0, 1.0), solid(other, z, 1))
        )
        overlap = ops.box_iou_3d(b1, b2, backend=backend.name)
        assert (overlap > 0).eq(expected).all()
        overlap.sum().backward()
        for b in (b1, b2):
            assert b.grad.ne(0).any(-1).eq(expected).all()


def corners(count, seed):
    flat = boxes(count, seed=seed)
    upright = boxes(count, seed=seed + 50)
    low, high = (torch.cat([flat[:, i : i + 2], upright[:, i : i + 1]], 1) for i in (0, 2))
    return torch.cat([low, high], 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_corners(backend, dtype):
    b1, b2 = corners(6, 0).to(dtype), corners(20, 1).to(dtype)
    overlap = overlap_on(backend, b1, b2, fmt="xyzxyz")
    assert overlap.dtype == torch.promote_types(dtype, torch.float32)
    b1, b2 = b1.double(), b2.double()
    sides = torch.minimum(b1[:, None, 3:], b2[:, 3:]) - torch.maximum(b1[:, None, :3], b2[:, :3])
    inter = sides.clamp(min=0).prod(-1)
    volume1, volume2 = ((b[:, 3:] - b[:, :3]).prod(-1) for b in (b1, b2))
    assert (inter > 0).any()
    assert_matches(overlap.cpu(), inter / (volume1[:, None] + volume2 - inter))


def test_batches(backend):
    b1, b2 = solid_boxes(2, 1, 4), solid_boxes(3, 5, seed=1)
    overlap = overlap_on(backend, b1, b2)
    assert overlap.shape == (2, 3, 4, 5)
    for i in range(2):
        for j in range(3):
            assert torch.equal(overlap[i, j], overlap_on(backend, b1[i, 0], b2[j]))
    assert torch.equal(overlap[0, 0, 0:1], overlap_on(backend, b1[0, 0, 0], b2[0]))


@pytest.mark.parametrize(("first", "second"), [((0,), (3,)), ((3,), (0,)), ((0, 2), (0, 3))])
def test_empty(backend, first, second):
    b1, b2 = (leaf(solid_boxes(*shape).to(backend.device)) for shape in (first, second))
    overlap = ops.box_iou_3d(b1, b2, backend=backend.name)
    assert overlap.shape == (*first, second[-1])
    overlap.sum().backward()
    assert b1.grad.eq(0).all() and b2.grad.eq(0).all()


def test_hostile_boxes(backend):
    inf, nan = math.inf, math.nan
    usual = (0.0, 0, 0, 4, 2, 3, 0.5)
    empty = [(3, -4), (4, -2), (5, -3), (3, 0), (5, 0), (3, 1e-15)]  # place and value
    vague = [(0, nan), (1, inf), (2, nan), (2, -inf), (6, nan), (6, inf), (4, inf), (5, inf)]
    unknown = [(3, nan), (4, nan), (5, nan)]
    rows = [usual]
    for place, value in empty + vague + unknown:
        rows.append((*usual[:place], value, *usual[place + 1 :]))
    b = torch.tensor(rows)
    x = leaf(b.to(backend.device))
    overlap = ops.box_iou_3d(x, x.detach(), backend=backend.name)
    expected = torch.zeros(len(rows), len(rows))
    sized = [i for i in range(len(rows)) if not 0 < i <= len(empty)]
    for i in sized:
        for j in sized:
            if max(i, j) > len(empty) + len(vague):
                expected[i, j] = nan
    expected[0, 0] = 1
    assert_matches(overlap.detach().cpu(), expected)
    overlap.nan_to_num().sum().backward()
    assert x.grad.shape == b.shape


def test_two_negative_sides_are_no_box(backend):
    """Whose volume is positive."""
    b = torch.tensor([[0.0, 0, 0, -4, -2, 3, 0], [0, 0, 0, 4, 2, 3, 0]])
    assert overlap_on(backend, b, b).tolist() == [[0, 0], [0, 1]]
    assert overlap_on(backend, b[:1, [3, 4, 2, 0, 1, 5]], b[:1, :6], fmt="xyzxyz").item() == 0


@SOME
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_gradients(backend, dtype, counts):
    b1, b2 = (
        leaf(solid_boxes(n, seed=i).to(dtype).to(backend.device)) for i, n in enumerate(counts)
    )
    overlap = ops.box_iou_3d(b1, b2, backend=backend.name)
    weights = torch.linspace(-1, 1, overlap.numel(), dtype=torch.float64).view(overlap.shape)
    (overlap * weights.to(overlap)).sum().backward()
    x1, x2 = (leaf(b.detach().double().cpu()) for b in (b1, b2))
    (ops.box_iou_3d(x1, x2, backend="reference") * weights).sum().backward()
    for b, x in ((b1, x1), (b2, x2)):
        assert b.grad.dtype == dtype
        assert_matches(b.grad.cpu(), x.grad, scale=8 * x.grad.abs().max().clamp(min=1).item())


def test_derivatives(backend):
    if backend.interpreted:
        pytest.skip("Triton's interpreter is slow")
    b1, b2 = (leaf(solid_boxes(n, seed=n, extent=9).double().to(backend.device)) for n in (1, 2))

    def overlap(b1, b2):
        return ops.box_iou_3d(b1, b2, backend=backend.name)

    assert overlap(b1, b2).gt(0).any()
    assert gradcheck(overlap, (b1, b2), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(overlap, (b1, b2), fast_mode=True)


def test_gradients_of_batches_that_broadcast(backend):
    b1, b2 = leaf(solid_boxes(3).to(backend.device)), leaf(solid_boxes(2, 4, seed=1))
    overlap = ops.box_iou_3d(b1, b2.to(backend.device), backend=backend.name)
    grad = torch.autograd.grad(overlap.sum(), b1)[0]
    parts = [
        torch.autograd.grad(ops.box_iou_3d(b1, b.to(backend.device)).sum(), b1)[0]
        for b in b2.detach()
    ]
    assert_matches(grad, sum(parts))


class Model(torch.nn.Module):
    def forward(self, b1, b2):
        return ops.box_iou_3d(b1, b2) + ops.box_iou_3d(b1[:, :6], b2[:, :6], fmt="xyzxyz")


def test_programs():
    """torch.compile, torch.export, torch.jit.trace, torch.func and opcheck."""
    b1, b2 = leaf(solid_boxes(4)), leaf(solid_boxes(7, seed=1))
    expected = Model()(b1, b2)
    grads = torch.autograd.grad(expected.square().sum(), (b1, b2))
    overlap = torch.compile(Model(), backend="aot_eager", fullgraph=True)(b1, b2)
    assert torch.equal(overlap, expected)
    for grad, wanted in zip(
        torch.autograd.grad(overlap.square().sum(), (b1, b2)), grads, strict=True
    ):
        assert_matches(grad, wanted)
    b1, b2 = b1.detach(), b2.detach()
    assert torch.equal(torch.export.export(Model(), (b1, b2)).module()(b1, b2), expected)
    assert_matches(torch.jit.trace(Model(), (b1, b2))(b1, b2), expected)
    batched = torch.vmap(ops.box_iou_3d, (None, 0))(b1, b2.unsqueeze(1))
    assert_matches(batched[:, :, 0].t(), ops.box_iou_3d(b1, b2))
    torch.library.opcheck(torch.ops.fastvision.box_iou_3d.default, (b1, b2))
    backward = torch.ops.fastvision.box_iou_3d_backward.default
    torch.library.opcheck(backward, (torch.rand(4, 7), b1, b2))


def test_other_dtypes():
    b1, b2 = solid_boxes(4).round(), solid_boxes(7, seed=1).round()
    expected = ops.box_iou_3d(b1, b2)
    assert torch.equal(ops.box_iou_3d(b1.int(), b2.long()), expected)
    assert ops.box_iou_3d(b1, b2.double()).dtype == torch.float64


def test_threads_do_not_change_the_answer():
    b1, b2 = solid_boxes(300), solid_boxes(900, seed=1)
    same_for_threads(lambda: ops.box_iou_3d(b1, b2))


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((rotated_boxes(3), solid_boxes(3)), {}, ValueError, r"boxes1 must have shape \[..., 7\]"),
        ((solid_boxes(3), solid_boxes(1)[0]), {}, ValueError, r"boxes2 .* shape \[..., M, 7"),
        (
            (solid_boxes(3), solid_boxes(3)),
            {"fmt": "xyzxyz"},
            ValueError,
            r"boxes1 must have shape \[..., 6\], got \[3, 7\]",
        ),
        (
            (solid_boxes(3), solid_boxes(3)),
            {"fmt": "xyxy"},
            ValueError,
            r"fmt must be one of \('cxcyczdxdydzr', 'xyzxyz'\), got 'xyxy'",
        ),
        ((solid_boxes(3), solid_boxes(3)), {"fmt": 7}, TypeError, "fmt must be one of .*, got 7"),
        ((solid_boxes(3), solid_boxes(3).to("meta")), {}, ValueError, "boxes2 must be on cpu"),
        ((solid_boxes(3) > 0, solid_boxes(3)), {}, TypeError, r"boxes1 .* torch\.bool"),
        ((solid_boxes(3), None), {}, TypeError, "boxes2 must be a Tensor, got NoneType"),
    ],
)
def test_errors(args, options, error, message):
    with pytest.raises(error, match=message):
        ops.box_iou_3d(*args, **options)


def test_operators_check_shapes():
    b = solid_boxes(3)
    with pytest.raises(RuntimeError, match="boxes1 and boxes2 must have"):
        torch.ops.fastvision.box_iou_3d(b, b[:, :6])
