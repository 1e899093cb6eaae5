"""Losses of boxes one by one: every backend against torchvision and the reference."""

import inspect

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from fastvision import ops
from fastvision.ops.diou_loss import _diou_iou_loss
from fastvision.testing.boxes import boxes, hostile_boxes
from fastvision.testing.numerics import DTYPES, assert_matches
from fastvision.testing.tensors import dtype_id, leaf

pytestmark = pytest.mark.usefixtures("poisoned_memory")

NAMES = ("generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss")
of_name = pytest.mark.parametrize("name", NAMES)


def pairs(count, dtype=torch.float32):
    """Some are equal, some touch, some are apart."""
    b1, b2 = boxes(count, seed=1).to(dtype), boxes(count, seed=2).to(dtype)
    b2[::5] = b1[::5]
    b2[1::5, 0] = b1[1::5, 2]
    b2[2::5] += 100
    return b1, b2


@of_name
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("count", [1, 7, 300])
def test_matches_torchvision(backend, name, dtype, count, torchvision):
    b1, b2 = map(leaf, pairs(count, dtype))
    x1, x2 = (leaf(b.to(backend.device)) for b in (b1, b2))
    expected = getattr(torchvision.ops, name)(b1, b2)
    loss = getattr(ops, name)(x1, x2, backend=backend.name)
    assert loss.dtype == expected.dtype and loss.shape == (count,)
    if name.startswith("complete"):  # torch has an arc tangent of its own
        assert_matches(loss.cpu(), expected)
    else:
        assert torch.equal(loss.cpu(), expected)
    weights = torch.rand(count)
    (expected * weights).sum().backward()
    (loss * weights.to(loss)).sum().backward()
    for x, b in ((x1, b1), (x2, b2)):
        assert x.grad.dtype == dtype
        assert_matches(x.grad.cpu(), b.grad, scale=4)


@of_name
def test_hostile_boxes(backend, name, torchvision):
    b = hostile_boxes()
    b1, b2 = b.repeat_interleave(len(b), 0), b.repeat(len(b), 1)
    expected = getattr(torchvision.ops, name)(b1, b2)
    loss = getattr(ops, name)(b1.to(backend.device), b2.to(backend.device), backend=backend.name)
    assert_matches(loss.cpu(), expected)


@of_name
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(4,), (9, 4), (2, 3, 4), (0, 4)], ids=str)
def test_reductions_and_shapes(backend, name, reduction, shape, torchvision):
    b1, b2 = boxes(*shape[:-1], seed=1), boxes(*shape[:-1], seed=2)
    expected = getattr(torchvision.ops, name)(b1, b2, reduction)
    x1 = leaf(b1.to(backend.device))
    loss = getattr(ops, name)(x1, b2.to(backend.device), reduction, backend=backend.name)
    assert_matches(loss.detach().cpu(), expected)
    assert loss.shape == expected.shape
    loss.sum().backward()
    assert x1.grad.shape == b1.shape


@of_name
def test_eps(backend, name, torchvision):
    b1, b2 = pairs(7)
    expected = getattr(torchvision.ops, name)(b1, b2, eps=0.5)
    args = b1.to(backend.device), b2.to(backend.device)
    loss = getattr(ops, name)(*args, eps=0.5, backend=backend.name)
    assert_matches(loss.cpu(), expected)
    assert not torch.allclose(loss.cpu(), getattr(ops, name)(b1, b2))


@of_name
def test_broadcast(name, torchvision):
    b1, b2 = boxes(5), boxes(1)[0]
    assert_matches(getattr(ops, name)(b1, b2), getattr(torchvision.ops, name)(b1, b2))
    assert_matches(getattr(ops, name)(b2, b1), getattr(torchvision.ops, name)(b1, b2))


@of_name
def test_other_dtypes(name, torchvision):
    b1, b2 = boxes(5).round(), boxes(5, seed=1).round()
    function, expected = getattr(ops, name), getattr(torchvision.ops, name)(b1, b2)
    assert torch.equal(function(b1.int(), b2.long()), function(b1, b2))
    assert_matches(function(b1, b2), expected)
    assert function(b1, b2.double()).dtype == torch.float64


@of_name
def test_derivatives(backend, name):
    if backend.interpreted:
        pytest.skip("Triton's interpreter is slow")
    b1, b2 = (leaf(boxes(3, seed=n).double().to(backend.device)) for n in (1, 2))

    def loss(b1, b2):
        return getattr(ops, name)(b1, b2, backend=backend.name)

    # the weight of the aspect ratio is a constant to derivatives, which differences cannot check
    if not name.startswith("complete"):
        assert gradcheck(loss, (b1, b2), check_forward_ad=True, check_batched_grad=True)
        assert gradgradcheck(loss, (b1, b2), fast_mode=True)


@of_name
def test_programs(name):
    """torch.compile, torch.export, torch.jit.trace, torch.func and opcheck."""
    function = getattr(ops, name)

    class Model(torch.nn.Module):
        def forward(self, b1, b2):
            return function(b1, b2, "sum")

    b1, b2 = map(leaf, pairs(6))
    expected = function(b1, b2, "sum")
    grads = torch.autograd.grad(expected, (b1, b2))
    loss = torch.compile(Model(), backend="aot_eager", fullgraph=True)(b1, b2)
    assert torch.equal(loss, expected)
    for grad, wanted in zip(torch.autograd.grad(loss, (b1, b2)), grads, strict=True):
        assert_matches(grad, wanted)
    b1, b2 = b1.detach(), b2.detach()
    assert_matches(torch.export.export(Model(), (b1, b2)).module()(b1, b2), expected)
    assert_matches(torch.jit.trace(Model(), (b1, b2))(b1, b2), expected)
    assert_matches(torch.vmap(function)(b1, b2), function(b1, b2))
    options = (1 + NAMES.index(name), 1e-7)
    torch.library.opcheck(torch.ops.fastvision.box_iou_loss.default, (b1, b2, *options))
    backward = torch.ops.fastvision.box_iou_loss_backward.default
    torch.library.opcheck(backward, (torch.rand(6), b1, b2, *options))


def test_distance_loss_with_iou(torchvision):
    """Which users of torchvision import."""
    b1, b2 = pairs(9)
    theirs = torchvision.ops.diou_loss._diou_iou_loss(b1, b2)
    for ours, expected in zip(_diou_iou_loss(b1, b2), theirs, strict=True):
        assert_matches(ours, expected)


@of_name
def test_signatures(name, torchvision):
    theirs = inspect.signature(getattr(torchvision.ops, name)).parameters
    mine = dict(inspect.signature(getattr(ops, name)).parameters)
    assert mine.pop("backend").kind is inspect.Parameter.KEYWORD_ONLY
    assert [(p.name, p.default, p.kind) for p in theirs.values()] == [
        (p.name, p.default, p.kind) for p in mine.values()
    ]


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (
            (boxes(3), boxes(3)[:, :3]),
            ValueError,
            r"boxes2 must have shape \[..., 4\], got \[3, 3\]",
        ),
        ((boxes(3), boxes(4)), ValueError, r"boxes2 must have a shape that .* got \[4, 4\]"),
        ((boxes(3), boxes(3).to("meta")), ValueError, "boxes2 must be on cpu .* got meta"),
        ((boxes(3).to(torch.complex64), boxes(3)), TypeError, "boxes1 must be of a .*complex64"),
        ((boxes(3), None), TypeError, "boxes2 must be a Tensor, got NoneType"),
        ((boxes(3), boxes(3), "total"), ValueError, "Invalid Value for arg 'reduction': 'total"),
        ((boxes(3), boxes(3), "sum", "1"), TypeError, "eps must be a number, got '1'"),
    ],
)
@of_name
def test_errors(name, args, error, message):
    with pytest.raises(error, match=message):
        getattr(ops, name)(*args)


def test_operators_check_shapes():
    b, operator = boxes(3), torch.ops.fastvision.box_iou_loss
    for b1, b2 in ((b, boxes(2)), (b, b[:, :3]), (b, b.double())):
        with pytest.raises(RuntimeError, match="boxes1 and boxes2 must have one shape"):
            operator(b1, b2, 1, 0.0)
    with pytest.raises(RuntimeError, match="unknown kind 0"):
        operator(b, b, 0, 0.0)
    with pytest.raises(RuntimeError, match="grad must have the shape"):
        torch.ops.fastvision.box_iou_loss_backward(torch.rand(2), b, b, 1, 0.0)
