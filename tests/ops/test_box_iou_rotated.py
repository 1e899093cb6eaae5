"""Overlap of rotated boxes: every backend against torchvision, geometry and the reference."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from fastvision import ops
from fastvision.testing.boxes import beyond_a_side, boxes, rotated_boxes
from fastvision.testing.numerics import DTYPES, assert_matches
from fastvision.testing.tensors import dtype_id, leaf
from fastvision.testing.threads import same_for_threads

pytestmark = pytest.mark.usefixtures("poisoned_memory")

COUNTS = [(1, 1), (5, 20), (70, 600)]
SOME = pytest.mark.only(lambda backend, counts: not backend.interpreted or max(counts) < 100)


@SOME
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_matches_float64(backend, dtype, counts):
    b1, b2 = (rotated_boxes(n, seed=n, extent=60).to(dtype) for n in counts)
    expected = ops.box_iou_rotated(b1.double(), b2.double(), backend="reference")
    x1, x2 = b1.to(backend.device), b2.to(backend.device)
    overlap = ops.box_iou_rotated(x1, x2, backend=backend.name)
    assert overlap.dtype == torch.promote_types(dtype, torch.float32)
    assert overlap.shape == counts
    assert_matches(overlap.cpu(), expected)


def test_matches_torchvision(backend, torchvision):
    """Whose arithmetic is in float32, and for which corners that nearly meet are noise."""
    b1, b2 = rotated_boxes(12), rotated_boxes(40, seed=1)
    expected = torchvision.ops.box_iou(b1, b2, "cxcywhr")
    overlap = ops.box_iou_rotated(
        b1.to(backend.device), b2.to(backend.device), backend=backend.name
    )
    assert_matches(overlap.cpu(), expected, scale=2)


@pytest.mark.parametrize("fmt", ["cxcywhr", "xywhr", "xyxyxyxy"])
def test_formats(fmt, torchvision):
    b1, b2 = (
        ops.box_convert(b, "cxcywhr", fmt) for b in (rotated_boxes(9), rotated_boxes(21, seed=1))
    )
    expected = torchvision.ops.box_iou(b1, b2, fmt)
    overlap = ops.box_iou(b1, b2, fmt)
    assert overlap.dtype == expected.dtype
    assert_matches(overlap, expected, scale=8)
    assert ops.box_iou(b1.double(), b2.double(), fmt).dtype == torch.float32


@pytest.mark.parametrize("turn", [0, 30, 45, 90, -200])
def test_hand_checked(backend, turn):
    """Turning both boxes around a point changes nothing, and a quarter turn swaps the sides."""
    octagon = 2 * (math.sqrt(2) - 1)  # that a unit square and one turned by 45 degrees share
    pairs = [
        ((0, 0, 4, 2, 0), (0, 0, 4, 2, 0), 1),
        ((0, 0, 4, 2, 0), (0, 0, 4, 2, 180), 1),
        ((0, 0, 4, 2, 0), (0, 0, 2, 4, 90), 1),
        ((0, 0, 4, 2, 0), (2, 0, 4, 2, 0), 1 / 3),
        ((0, 0, 4, 2, 0), (4, 0, 4, 2, 0), 0),
        ((0, 0, 4, 2, 0), (0, 0, 4, 2, 90), 4 / 12),
        ((0, 0, 4, 4, 0), (0, 0, 2, 1, 33), 2 / 16),
        ((0, 0, 1, 1, 0), (0, 0, 1, 1, 45), octagon / (2 - octagon)),
        ((0, 0, 4, 2, 0), (9, 0, 4, 2, 45), 0),
    ]
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    for *two, expected in pairs:
        b1, b2 = (
            torch.tensor([[x * cos + y * sin, y * cos - x * sin, w, h, r + turn]])
            for x, y, w, h, r in two
        )
        overlap = ops.box_iou_rotated(
            b1.to(backend.device), b2.to(backend.device), backend=backend.name
        )
        assert_matches(overlap.cpu(), torch.tensor([[float(expected)]]))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=dtype_id)
def test_boxes_that_are_apart_share_nothing(backend, dtype):
    """Not even a rounding error, whichever of the two has the side between them."""
    first = rotated_boxes(10 if backend.interpreted else 300, seed=2).to(dtype)
    for gap, expected in ((1e-3, False), (-1e-2, True)):
        for pair in ((first, beyond_a_side(first, gap)), (beyond_a_side(first, gap), first)):
            b1, b2 = (leaf(b[:, None].to(backend.device)) for b in pair)  # one pair an image
            overlap = ops.box_iou_rotated(b1, b2, backend=backend.name)
            assert (overlap > 0).eq(expected).all()
            overlap.sum().backward()
            for b in (b1, b2):
                assert b.grad.ne(0).any(-1).eq(expected).all()


def test_upright_boxes(backend):
    b1, b2 = boxes(9), boxes(30, seed=1)
    r1, r2 = (
        torch.cat([ops.box_convert(b, "xyxy", "cxcywh"), torch.zeros(len(b), 1)], 1)
        for b in (b1, b2)
    )
    overlap = ops.box_iou_rotated(
        r1.to(backend.device), r2.to(backend.device), backend=backend.name
    )
    assert_matches(overlap.cpu(), ops.box_iou(b1, b2))


def test_batches(backend):
    b1, b2 = rotated_boxes(2, 1, 4), rotated_boxes(3, 5, seed=1)
    b2 = b2.to(backend.device)
    overlap = ops.box_iou_rotated(b1.to(backend.device), b2, backend=backend.name)
    assert overlap.shape == (2, 3, 4, 5)
    for i in range(2):
        for j in range(3):
            one = ops.box_iou_rotated(b1[i, 0].to(backend.device), b2[j], backend=backend.name)
            assert torch.equal(overlap[i, j], one)


@pytest.mark.parametrize(("first", "second"), [((0,), (3,)), ((3,), (0,)), ((0, 2), (0, 3))])
def test_empty(backend, first, second):
    b1, b2 = (leaf(rotated_boxes(*shape).to(backend.device)) for shape in (first, second))
    overlap = ops.box_iou_rotated(b1, b2, backend=backend.name)
    assert overlap.shape == (*first, second[-1])
    overlap.sum().backward()
    assert b1.grad.shape == b1.shape and b2.grad.shape == b2.shape
    assert b1.grad.eq(0).all() and b2.grad.eq(0).all()


def hostile() -> torch.Tensor:
    inf, nan = math.inf, math.nan
    return torch.tensor(
        [
            [0, 0, 4, 2, 30],
            [0, 0, 4, 2, 390],
            [0, 0, -4, 2, 0],
            [0, 0, -4, -2, 0],
            [0, 0, 0, 2, 0],
            [0, 0, 1e-8, 1e-8, 0],
            [0, 0, 1e30, 1e30, 0],
            [nan, 0, 4, 2, 0],
            [0, 0, nan, 2, 0],
            [0, 0, 4, 2, nan],
            [inf, 0, 4, 2, 0],
            [0, 0, inf, 2, 0],
            [0, 0, 4, 2, -inf],
        ]
    )


def test_hostile_boxes(backend, torchvision):
    b = hostile()
    expected = torchvision.ops.box_iou(b, b, "cxcywhr")
    x = leaf(b.to(backend.device))
    overlap = ops.box_iou_rotated(x, x.detach(), backend=backend.name)
    assert_matches(overlap.detach().cpu(), expected)
    overlap.nan_to_num().sum().backward()
    assert x.grad.shape == b.shape


def test_far_from_the_origin(backend):
    """Only differences of centers count."""
    b1, b2 = rotated_boxes(5).round(), rotated_boxes(9, seed=1).round()
    near = ops.box_iou_rotated(b1.to(backend.device), b2.to(backend.device), backend=backend.name)
    for b in (b1, b2):
        b[:, :2] += 1 << 20
    far = ops.box_iou_rotated(b1.to(backend.device), b2.to(backend.device), backend=backend.name)
    assert torch.equal(near, far)


@SOME
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_gradients(backend, dtype, counts):
    # of different seeds, since where edges coincide there is no one gradient
    b1, b2 = (
        leaf(rotated_boxes(n, seed=i).to(dtype).to(backend.device)) for i, n in enumerate(counts)
    )
    overlap = ops.box_iou_rotated(b1, b2, backend=backend.name)
    weights = torch.linspace(-1, 1, overlap.numel(), dtype=torch.float64).view(overlap.shape)
    (overlap * weights.to(overlap)).sum().backward()
    x1, x2 = (leaf(b.detach().double().cpu()) for b in (b1, b2))
    (ops.box_iou_rotated(x1, x2, backend="reference") * weights).sum().backward()
    for b, x in ((b1, x1), (b2, x2)):
        assert b.grad.dtype == dtype
        assert_matches(b.grad.cpu(), x.grad, scale=8 * x.grad.abs().max().clamp(min=1).item())


def test_gradient_of_upright_boxes(backend):
    """With edges that are parallel but apart, those of box_iou."""
    upright = torch.tensor([[0.0, 0, 4, 2], [1, 0.5, 3, 2.5], [-5, 1, 4, 4]])
    b1 = leaf(upright[:1])
    b2 = leaf(upright)
    ops.box_iou(b1, b2[1:], "cxcywh").square().sum().backward()
    x1, x2 = (
        leaf(torch.cat([b.detach(), torch.zeros(len(b), 1)], 1).to(backend.device))
        for b in (b1, b2)
    )
    ops.box_iou_rotated(x1, x2[1:], backend=backend.name).square().sum().backward()
    assert_matches(x1.grad[:, :4].cpu(), b1.grad)
    assert_matches(x2.grad[:, :4].cpu(), b2.grad)


def test_gradient_of_parallel_boxes(backend):
    """Angles 360 or 90 degrees apart, whose edges are parallel but for rounding: the gradient is
    that of central differences."""
    pairs = torch.tensor(
        [
            [[34.09375, 45.75, 22.1875, 22.09375, -219.25], [27, 38.34375, 41.8125, 20.3, 140.75]],
            [[14.75, 39.75, 13.8125, 30.25, 141], [27, 38.25, 41.75, 20.375, 141]],
            [[14.75, 39.75, 13.8125, 30.25, 141], [29.125, 26, 34.75, 12.6875, 51]],
        ]
    ).double()
    for pair in pairs:
        steps = torch.eye(10).double().view(10, 2, 5) * 1e-5
        after, before = (
            torch.stack([ops.box_iou_rotated(*(pair + s)[:, None]) for s in sign * steps]).flatten()
            for sign in (1, -1)
        )
        boxes = [leaf(b[None].to(backend.device)) for b in pair]
        overlap = ops.box_iou_rotated(*boxes, backend=backend.name)
        grads = torch.cat(torch.autograd.grad(overlap.sum(), boxes), 1).cpu().flatten()
        torch.testing.assert_close(grads, (after - before) / 2e-5, rtol=1e-5, atol=1e-7)


def test_derivatives(backend):
    if backend.interpreted:
        pytest.skip("Triton's interpreter is slow")
    b1, b2 = (leaf(rotated_boxes(n, seed=n, extent=9).double().to(backend.device)) for n in (1, 2))

    def overlap(b1, b2):
        return ops.box_iou_rotated(b1, b2, backend=backend.name)

    assert gradcheck(overlap, (b1, b2), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(overlap, (b1, b2), fast_mode=True)


def test_gradients_do_not_depend_on_threads():
    b1, b2, weights = rotated_boxes(300), rotated_boxes(500, seed=1), torch.rand(300, 500)

    def run():
        x1, x2 = leaf(b1), leaf(b2)
        overlap = ops.box_iou_rotated(x1, x2)
        return torch.autograd.grad((overlap * weights).sum(), (x1, x2))

    same_for_threads(run)


class Model(torch.nn.Module):
    def forward(self, b1, b2):
        return ops.box_iou_rotated(b1, b2)


def test_programs():
    """torch.compile, torch.export, torch.jit.trace, torch.func and opcheck."""
    b1, b2 = leaf(rotated_boxes(4)), leaf(rotated_boxes(7, seed=1))
    expected = ops.box_iou_rotated(b1, b2)
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
    batched = torch.vmap(ops.box_iou_rotated, (None, 0))(b1, b2.unsqueeze(1))
    assert_matches(batched[:, :, 0].t(), expected)
    torch.library.opcheck(torch.ops.fastvision.box_iou_rotated.default, (b1, b2))
    backward = torch.ops.fastvision.box_iou_rotated_backward.default
    torch.library.opcheck(backward, (torch.rand(4, 7), b1, b2))


def test_other_dtypes():
    b1, b2 = rotated_boxes(4).round(), rotated_boxes(7, seed=1).round()
    expected = ops.box_iou_rotated(b1, b2)
    assert torch.equal(ops.box_iou_rotated(b1.int(), b2.long()), expected)
    assert ops.box_iou_rotated(b1, b2.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((boxes(3), rotated_boxes(3)), ValueError, r"boxes1 must have shape \[..., 5\], got"),
        (
            (rotated_boxes(3), rotated_boxes(1)[0]),
            ValueError,
            r"boxes2 must have shape \[..., M, 5",
        ),
        ((rotated_boxes(3), rotated_boxes(3).to("meta")), ValueError, "boxes2 must be on cpu"),
        ((rotated_boxes(3) > 0, rotated_boxes(3)), TypeError, r"boxes1 must be of a .*torch\.bool"),
        ((rotated_boxes(3), None), TypeError, "boxes2 must be a Tensor, got NoneType"),
    ],
)
def test_errors(args, error, message):
    with pytest.raises(error, match=message):
        ops.box_iou_rotated(*args)


def test_operators_check_shapes():
    b = rotated_boxes(3)
    with pytest.raises(RuntimeError, match="boxes1 and boxes2 must have"):
        torch.ops.fastvision.box_iou_rotated(b, b[:, :4])
    with pytest.raises(RuntimeError, match="grad must have the shape"):
        torch.ops.fastvision.box_iou_rotated_backward(torch.rand(3, 2), b, b)
