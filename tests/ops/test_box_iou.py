"""Overlap of all pairs of boxes: every backend against torchvision and the reference."""

import inspect

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from fastvision import ops, reference
from fastvision.ops import boxes as boxes_module
from fastvision.testing.boxes import KINDS, boxes, hostile_boxes
from fastvision.testing.numerics import DTYPES, assert_matches
from fastvision.testing.tensors import dtype_id, leaf
from fastvision.testing.threads import same_for_threads

pytestmark = pytest.mark.usefixtures("poisoned_memory")

NAMES = {
    "iou": "box_iou",
    "generalized": "generalized_box_iou",
    "distance": "distance_box_iou",
    "complete": "complete_box_iou",
}
# fewer than a vector has lanes, exactly as many, several tiles of rows or columns
COUNTS = [(1, 1), (20, 33), (130, 7), (5, 600)]
SOME = pytest.mark.only(
    lambda backend, counts: not backend.interpreted or max(counts) < 100
)  # Triton's interpreter is slow
of_kind = pytest.mark.parametrize("kind", KINDS)


def ours(kind, *args, **options):
    return getattr(ops, NAMES[kind])(*args, **options)


@SOME
@of_kind
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_matches_torchvision(backend, kind, dtype, counts, torchvision):
    b1, b2 = (boxes(n, seed=n).to(dtype) for n in counts)
    b2[0] = b1[0]
    wide = torch.promote_types(dtype, torch.float32)
    expected = getattr(torchvision.ops, NAMES[kind])(b1.to(wide), b2.to(wide))
    overlap = ours(kind, b1.to(backend.device), b2.to(backend.device), backend=backend.name)
    assert overlap.dtype == wide and overlap.shape == counts
    if kind == "complete":  # torch has an arc tangent of its own
        assert_matches(overlap.cpu(), expected)
    else:
        assert torch.equal(overlap.cpu(), expected)


@pytest.mark.parametrize("fmt", ["xyxy", "xywh", "cxcywh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_id)
def test_formats(backend, fmt, dtype, torchvision):
    b1, b2 = (ops.box_convert(boxes(n, seed=n).to(dtype), "xyxy", fmt) for n in (9, 21))
    expected = torchvision.ops.box_iou(b1, b2, fmt)
    overlap = ops.box_iou(b1.to(backend.device), b2.to(backend.device), fmt, backend=backend.name)
    assert torch.equal(overlap.cpu(), expected)


def test_hand_checked(backend):
    """A box, itself, one shifted by half of its side, one that touches, one inside."""
    b1 = torch.tensor([[0.0, 0, 4, 4]], device=backend.device)
    others = [[0.0, 0, 4, 4], [2, 0, 6, 4], [4, 0, 8, 4], [1, 1, 3, 3]]
    b2 = torch.tensor(others, device=backend.device)
    iou = ops.box_iou(b1, b2, backend=backend.name)[0].cpu()
    assert_matches(iou, torch.tensor([1, 1 / 3, 0, 1 / 4]))
    # the box around the third pair is 8 by 4 and full, so is that around the others
    assert_matches(ours("generalized", b1, b2, backend=backend.name)[0].cpu(), iou)
    distance = ours("distance", b1, b2, backend=backend.name)[0].cpu()
    assert_matches(iou - distance, torch.tensor([0, 4 / 52, 16 / 80, 0]))
    assert_matches(ours("complete", b1, b2, backend=backend.name)[0].cpu(), distance)


@of_kind
@pytest.mark.parametrize(
    ("first", "second"),
    [((2, 3, 5), (2, 3, 4)), ((3, 5), (4,)), ((5,), (3, 4)), ((2, 1, 5), (3, 4)), ((1, 5), (2, 4))],
    ids=str,
)
def test_batches(backend, kind, first, second, torchvision):
    b1, b2 = (leaf(boxes(*shape, seed=i)) for i, shape in enumerate((first, second)))
    x1, x2 = (leaf(b.detach().to(backend.device)) for b in (b1, b2))
    expected = getattr(torchvision.ops, NAMES[kind])(b1, b2)
    overlap = ours(kind, x1, x2, backend=backend.name)
    assert_matches(overlap.cpu(), expected)
    weights = torch.rand(expected.shape)
    (expected * weights).sum().backward()
    (overlap * weights.to(overlap)).sum().backward()
    for x, b in ((x1, b1), (x2, b2)):
        assert_matches(x.grad.cpu(), b.grad, scale=4)


def test_one_box(torchvision):
    """torchvision takes a single box in the first place."""
    b1, b2 = boxes(4)[0], boxes(2, 3)
    assert torch.equal(ops.box_iou(b1, b2), torchvision.ops.box_iou(b1, b2))
    assert torch.equal(ops.box_iou(b1, b2[0]), torchvision.ops.box_iou(b1, b2[0]))


@of_kind
@pytest.mark.parametrize(("first", "second"), [((0,), (3,)), ((3,), (0,)), ((0, 2), (0, 3))])
def test_empty(backend, kind, first, second):
    b1, b2 = (leaf(boxes(*shape).to(backend.device)) for shape in (first, second))
    overlap = ours(kind, b1, b2, backend=backend.name)
    assert overlap.shape == (*first, second[-1])
    overlap.sum().backward()
    assert b1.grad.eq(0).all() and b2.grad.eq(0).all()
    assert b1.grad.shape == b1.shape and b2.grad.shape == b2.shape


@pytest.mark.parametrize("fmt", ["xyxy", "xywh", "cxcywh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_id)
def test_hostile_boxes_in_formats(backend, fmt, dtype, torchvision):
    b = hostile_boxes().to(dtype)
    expected = torchvision.ops.box_iou(b, b, fmt)
    overlap = ops.box_iou(b.to(backend.device), b.to(backend.device), fmt, backend=backend.name)
    torch.testing.assert_close(overlap.cpu(), expected, rtol=0, atol=0, equal_nan=True)


@of_kind
def test_hostile_boxes(backend, kind, torchvision):
    b = hostile_boxes()
    expected = getattr(torchvision.ops, NAMES[kind])(b, b)
    overlap = ours(kind, b.to(backend.device), b.to(backend.device), backend=backend.name)
    assert_matches(overlap.cpu(), expected)


INTEGERS = (torch.int32, torch.int64, torch.int16, torch.uint8)


@of_kind
@pytest.mark.parametrize("dtype", INTEGERS, ids=dtype_id)
def test_integers(backend, kind, dtype, torchvision):
    b1, b2 = (boxes(n, seed=n).round().to(dtype) for n in (9, 21))
    # uint8 wraps around in torchvision
    expected = getattr(torchvision.ops, NAMES[kind])(b1.long(), b2.long())
    overlap = ours(kind, b1.to(backend.device), b2.to(backend.device), backend=backend.name)
    assert overlap.dtype == expected.dtype == torch.float32
    assert_matches(overlap.cpu(), expected)


def test_integers_do_not_overflow(backend):
    side = 1 << 20  # the area has 40 bits
    b = torch.tensor([[0, 0, side, side], [0, 0, side, side // 2]], dtype=torch.int32)
    b = b.to(backend.device)
    assert ops.box_iou(b, b, backend=backend.name).tolist() == [[1, 0.5], [0.5, 1]]


def test_integers_with_another_default(torchvision):
    b = boxes(5).round().int()
    for dtype in (torch.float64, torch.float16):
        torch.set_default_dtype(dtype)
        try:
            expected = torchvision.ops.box_iou(b, b)
            overlap = ops.box_iou(b, b)
        finally:
            torch.set_default_dtype(torch.float32)
        assert overlap.dtype == expected.dtype == dtype
        assert_matches(overlap, expected)


def test_mixed_dtypes(torchvision):
    b = boxes(5)
    for other in (b.double(), b.half(), b.round().int()):
        for b1, b2 in ((b, other), (other, b)):
            dtype = torchvision.ops.box_iou(b1, b2).dtype
            overlap = ops.box_iou(b1, b2)
            assert overlap.dtype == dtype
            # torchvision takes the areas in the dtype of each set
            assert_matches(overlap, torchvision.ops.box_iou(b1.to(dtype), b2.to(dtype)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_id)
@of_kind
def test_16_bits_do_not_overflow(backend, kind, dtype):
    b1, b2 = ((boxes(n, seed=n) * 500).to(dtype) for n in (6, 20))
    expected = ours(kind, b1.double(), b2.double(), backend="reference")
    overlap = ours(kind, b1.to(backend.device), b2.to(backend.device), backend=backend.name)
    assert overlap.dtype == torch.float32
    assert_matches(overlap.cpu(), expected)


def test_strides(backend):
    b = boxes(12).to(backend.device)
    wide = torch.zeros(12, 9, device=backend.device)
    wide[:, 1::2] = b
    expected = ops.box_iou(b[::2], b[::3], backend=backend.name)
    for view in (wide[:, 1::2], b.t().contiguous().t()):
        assert torch.equal(ops.box_iou(view[::2], view[::3], backend=backend.name), expected)


@SOME
@of_kind
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_gradients(backend, kind, dtype, counts):
    b1, b2 = (leaf(boxes(n, seed=n).to(dtype).to(backend.device)) for n in counts)
    overlap = ours(kind, b1, b2, backend=backend.name)
    weights = torch.linspace(-1, 1, overlap.numel(), dtype=torch.float64).view(overlap.shape)
    (overlap * weights.to(overlap)).sum().backward()
    x1, x2 = (leaf(b.detach().double().cpu()) for b in (b1, b2))
    (ours(kind, x1, x2, backend="reference") * weights).sum().backward()
    for b, x in ((b1, x1), (b2, x2)):
        assert b.grad.dtype == dtype
        assert_matches(b.grad.cpu(), x.grad, scale=4 * x.grad.abs().max().clamp(min=1).item())


@of_kind
def test_gradients_of_equal_boxes(backend, kind, torchvision):
    """torch splits the gradient of a maximum between equal arguments."""
    b = boxes(6)
    b[1] = b[0]
    b[2, 0] = b[0, 0]
    b[3, 0] = b[0, 2]  # they touch
    b1, b2 = leaf(b), leaf(b)
    x1, x2 = (leaf(b.to(backend.device)) for _ in range(2))
    weights = torch.rand(6, 6)
    (getattr(torchvision.ops, NAMES[kind])(b1, b2) * weights).sum().backward()
    overlap = ours(kind, x1, x2, backend=backend.name)
    (overlap * weights.to(overlap)).sum().backward()
    assert_matches(x1.grad.cpu(), b1.grad, scale=4)
    assert_matches(x2.grad.cpu(), b2.grad, scale=4)


@pytest.mark.parametrize("fmt", ["xywh", "cxcywh"])
def test_gradients_of_formats(backend, fmt):
    b1, b2 = (ops.box_convert(boxes(n, seed=n).double(), "xyxy", fmt) for n in (5, 9))
    x1, x2 = (leaf(b.to(backend.device)) for b in (b1, b2))
    b1, b2 = leaf(b1), leaf(b2)
    ops.box_iou(x1, x2, fmt, backend=backend.name).square().sum().backward()
    ops.box_iou(b1, b2, fmt, backend="reference").square().sum().backward()
    assert_matches(x1.grad.cpu(), b1.grad)
    assert_matches(x2.grad.cpu(), b2.grad)


@of_kind
def test_derivatives(backend, kind):
    if backend.interpreted:
        pytest.skip("Triton's interpreter is slow")
    b1, b2 = (leaf(boxes(n, seed=n).double().to(backend.device)) for n in (3, 4))

    def overlap(b1, b2):
        return ours(kind, b1, b2, backend=backend.name)

    # the weight of the aspect ratio is a constant to derivatives, so theirs are not those of the
    # function's values: differences cannot check them
    if kind != "complete":
        assert gradcheck(overlap, (b1, b2), check_forward_ad=True, check_batched_grad=True)
        assert gradgradcheck(overlap, (b1, b2), fast_mode=True)
    grads = [
        torch.autograd.grad(ours(kind, b1, b2, backend=name).square().sum(), b1, create_graph=True)
        for name in (backend.name, "reference")
    ]
    second = [torch.autograd.grad(g.square().sum(), b2)[0] for (g,) in grads]
    assert_matches(second[0], second[1])


def test_gradients_do_not_depend_on_threads():
    b1, b2 = boxes(700), boxes(900, seed=1)
    weights = torch.rand(700, 900)

    def run():
        x1, x2 = leaf(b1), leaf(b2)
        overlap = ops.complete_box_iou(x1, x2)
        return overlap.detach(), *torch.autograd.grad((overlap * weights).sum(), (x1, x2))

    same_for_threads(run)


@of_kind
def test_programs(kind):
    """torch.compile, torch.export, torch.jit.trace and torch.func."""
    function = getattr(ops, NAMES[kind])

    class Model(torch.nn.Module):
        def forward(self, b1, b2):
            return function(b1, b2)

    b1, b2 = leaf(boxes(4)), leaf(boxes(2, 7, seed=1))
    expected = function(b1, b2)
    grads = torch.autograd.grad(expected.square().sum(), (b1, b2))
    compiled = torch.compile(Model(), backend="aot_eager", fullgraph=True)
    overlap = compiled(b1, b2)
    assert torch.equal(overlap, expected)
    for grad, wanted in zip(
        torch.autograd.grad(overlap.square().sum(), (b1, b2)), grads, strict=True
    ):
        assert_matches(grad, wanted)
    b1, b2 = b1.detach(), b2.detach()
    program = torch.export.export(Model(), (b1, b2)).module()
    assert torch.equal(program(b1, b2), expected)
    assert_matches(torch.jit.trace(Model(), (b1, b2))(b1, b2), expected)
    assert_matches(torch.vmap(function, (None, 0))(b1, b2), expected)


def test_programs_of_other_sizes():
    program = torch.export.export(
        _Pairs(), (boxes(4), boxes(7)), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},) * 2
    ).module()
    b1, b2 = boxes(9, seed=3), boxes(11, seed=4)
    assert torch.equal(program(b1, b2), ops.box_iou(b1, b2))


class _Pairs(torch.nn.Module):
    def forward(self, b1, b2):
        return ops.box_iou(b1, b2)


@of_kind
def test_opcheck(kind):
    b1, b2 = boxes(2, 3), boxes(1, 5)
    options = (KINDS.index(kind), 0, 1e-7)
    torch.library.opcheck(torch.ops.fastvision.box_iou.default, (b1, b2, *options, False))
    backward = torch.ops.fastvision.box_iou_backward.default
    torch.library.opcheck(backward, (torch.rand(2, 3, 5), b1, b2, *options))


def test_operators_check_shapes():
    b, operator = boxes(3), torch.ops.fastvision.box_iou
    for b1, b2 in ((b, b[:, :3]), (b, b[None]), (boxes(2, 3), boxes(3, 3)), (b[0], b[0])):
        with pytest.raises(RuntimeError, match="boxes1 and boxes2 must have"):
            operator(b1, b2, 0, 0, 0.0, False)
    with pytest.raises(RuntimeError, match="unknown kind 4"):
        operator(b, b, 4, 0, 0.0, False)
    with pytest.raises(RuntimeError, match="unknown format -1"):
        operator(b, b, 0, -1, 0.0, False)
    with pytest.raises(RuntimeError, match="grad must have the shape"):
        torch.ops.fastvision.box_iou_backward(torch.rand(3, 4), b, b, 0, 0, 0.0)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (
            (boxes(3), boxes(3)[:, :3]),
            ValueError,
            r"boxes2 must have shape \[..., 4\], got \[3, 3\]",
        ),
        ((torch.ones(()), boxes(3)), ValueError, r"boxes1 must have shape \[..., 4\], got \[\]"),
        ((boxes(3), boxes(3)[0]), ValueError, r"boxes2 must have shape \[..., M, 4\], got \[4\]"),
        ((boxes(2, 3), boxes(3, 3)), ValueError, r"boxes2 must have batch .* \[2\], got \[3\]"),
        ((boxes(3), boxes(3).to("meta")), ValueError, "boxes2 must be on cpu .* got meta"),
        ((boxes(3), boxes(3) > 1), TypeError, r"boxes2 must be of a .*, got torch\.bool"),
        ((boxes(3).to(torch.complex64), boxes(3)), TypeError, "boxes1 must be of a .*complex64"),
        (([1], boxes(3)), TypeError, "boxes1 must be a Tensor, got list"),
        ((boxes(3), boxes(3), "xxyy"), ValueError, "Unsupported format 'xxyy'"),
    ],
)
def test_errors(args, error, message):
    with pytest.raises(error, match=message):
        ops.box_iou(*args)


def test_errors_of_eps():
    for call in (ops.distance_box_iou, ops.complete_box_iou):
        with pytest.raises(TypeError, match="eps must be a number, got '1'"):
            call(boxes(2), boxes(2), "1")


@pytest.mark.parametrize("name", [n for n in boxes_module.__all__ if n != "box_iou_rotated"])
def test_signatures(name, torchvision):
    theirs = inspect.signature(getattr(torchvision.ops.boxes, name)).parameters
    mine = inspect.signature(getattr(boxes_module, name)).parameters
    extra = [p for p in mine.values() if p.name not in theirs]
    assert all(p.kind is p.KEYWORD_ONLY for p in extra)
    assert [(p.name, p.default, p.kind) for p in theirs.values()] == [
        (p.name, p.default, p.kind) for p in mine.values() if p.name in theirs
    ]


def test_reference_is_torchvisions(torchvision):
    b1, b2 = boxes(9), boxes(21, seed=1)
    for kind in KINDS:
        expected = getattr(torchvision.ops, NAMES[kind])(b1, b2)
        assert torch.equal(reference.box_iou(b1, b2, kind), expected)
