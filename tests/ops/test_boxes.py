"""Functions on boxes that are torch's operations, and the modules that take torchvision's place."""

import importlib

import pytest
import torch

from fastvision import ops
from fastvision.ops.box_convert import _SIZES, _STEPS
from fastvision.testing.boxes import boxes, rotated_boxes
from fastvision.testing.tensors import dtype_id

ALL_DTYPES = (torch.float32, torch.float64, torch.float16, torch.int32, torch.int64)


def in_format(fmt, dtype=torch.float32, *shape):
    if fmt in ("xyxy", "xywh", "cxcywh"):
        return boxes(*(shape or (6,))).to(dtype)
    b = rotated_boxes(*(shape or (6,)))
    return (b if fmt != "xyxyxyxy" else ops.box_convert(b, "cxcywhr", fmt)).to(dtype)


@pytest.mark.parametrize("steps", [*_STEPS, ("xyxy", "xyxy"), ("xywhr", "xywhr")], ids=str)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=dtype_id)
@pytest.mark.parametrize("shape", [(6,), (2, 3), (0,), ()], ids=str)
def test_box_convert(steps, dtype, shape, torchvision):
    b = in_format(steps[0], dtype, *shape) if shape else in_format(steps[0], dtype)[0]
    expected = torchvision.ops.box_convert(b, *steps)
    converted = ops.box_convert(b, *steps)
    assert converted.dtype == expected.dtype
    assert torch.equal(converted, expected)
    assert converted.data_ptr() != b.data_ptr() or not b.numel()


@pytest.mark.parametrize("first", _SIZES)
@pytest.mark.parametrize("second", _SIZES)
def test_pairs_of_formats(first, second, torchvision):
    """Those that torchvision has, and its error for the others."""
    b = in_format(first)
    try:
        expected = torchvision.ops.box_convert(b, first, second)
    except NotImplementedError as error:
        with pytest.raises(NotImplementedError) as raised:
            ops.box_convert(b, first, second)
        assert str(raised.value) == str(error)
    else:
        assert torch.equal(ops.box_convert(b, first, second), expected)


def test_box_convert_by_hand():
    corners = torch.tensor([[1.0, 2, 5, 8]])
    assert ops.box_convert(corners, "xyxy", "cxcywh").tolist() == [[3, 5, 4, 6]]
    assert ops.box_convert(corners, "xyxy", "xywh").tolist() == [[1, 2, 4, 6]]
    # a quarter turn counterclockwise: the upper left corner goes to the lower left
    turned = ops.box_convert(torch.tensor([[0.0, 0, 4, 2, 90]]), "cxcywhr", "xyxyxyxy")
    expected = torch.tensor([[-1.0, 2, -1, -2, 1, -2, 1, 2]])
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fmt", ["xyxy", "xywh", "cxcywh"])
@pytest.mark.parametrize("dtype", [*ALL_DTYPES, torch.uint8], ids=dtype_id)
def test_box_area(fmt, dtype, torchvision):
    for b in (in_format(fmt, dtype), in_format(fmt, dtype, 2, 0, 3), in_format(fmt, dtype)[0]):
        expected = torchvision.ops.box_area(b, fmt)
        assert ops.box_area(b, fmt).dtype == expected.dtype
        assert torch.equal(ops.box_area(b, fmt), expected)


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=dtype_id)
def test_clip_boxes_to_image(dtype, torchvision):
    for b in (boxes(9), boxes(2, 3), boxes(0), in_format("xyxyxyxy")):
        b = (b - 20).to(dtype)
        expected = torchvision.ops.clip_boxes_to_image(b, (30, 20))
        clipped = ops.clip_boxes_to_image(b, (30, 20))
        assert clipped.dtype == expected.dtype and torch.equal(clipped, expected)


def test_remove_small_boxes(torchvision):
    b = boxes(40)
    b[3, 2] = b[3, 0] + 25.0
    for x in (b, b.round().int(), b.view(2, 20, 4), b[:0]):
        for size in (0, 25.0, 1000):
            expected = torchvision.ops.remove_small_boxes(x, size)
            assert torch.equal(ops.remove_small_boxes(x, size), expected)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda b: ops.box_convert(b, "xyxy", "yxyx"), ValueError, "Unsupported .* out_fmt yxyx"),
        (lambda b: ops.box_convert(b, "xywhr", "cxcywhr"), ValueError, r"\[..., 5\] in xywhr, got"),
        (lambda b: ops.box_area(b, "xywhr"), ValueError, "Unsupported .* given format xywhr"),
        (lambda b: ops.box_area(b[:, :3]), ValueError, r"boxes must have shape \[..., 4\], got"),
        (lambda b: ops.remove_small_boxes(b[:, :3], 1), ValueError, "boxes must have shape"),
        (lambda b: ops.clip_boxes_to_image([b], (1, 1)), TypeError, "boxes must be a Tensor"),
        (
            lambda b: ops.clip_boxes_to_image(b[:, [0, 1, 2, 3, 3]], (1, 1)),
            ValueError,
            r"boxes must have shape \[..., 4\], got \[3, 5\]",
        ),
        (lambda b: ops.remove_small_boxes(b, None), TypeError, "min_size must be a number"),
        (lambda b: ops.box_convert(b, ["xyxy"], "xywh"), TypeError, "in_fmt must be a string"),
        (lambda b: ops.box_convert(b, "xyxy", None), TypeError, "out_fmt must be a string"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(boxes(3))


@pytest.mark.parametrize("name", ["boxes", "giou_loss", "diou_loss", "ciou_loss"])
def test_modules_of_torchvision(name, torchvision):
    """Functions of torchvision's module, and the helpers that others import, are in ours."""
    theirs = importlib.import_module(f"torchvision.ops.{name}")
    mine = importlib.import_module(f"fastvision.ops.{name}")
    own = {
        key
        for key, value in vars(theirs).items()
        if getattr(value, "__module__", "") == theirs.__name__ and key != "_box_diou_iou"
    }
    assert own and not own - vars(mine).keys()


@pytest.mark.parametrize("fmt", ["xyxy", "xywh", "cxcywh"])
def test_helpers(fmt, torchvision):
    from fastvision.ops import boxes as mine

    theirs = torchvision.ops.boxes
    b1, b2 = in_format(fmt), in_format(fmt, torch.float32, 9)
    for ours, expected in zip(
        mine._box_inter_union(b1, b2, fmt), theirs._box_inter_union(b1, b2, fmt), strict=True
    ):
        assert torch.equal(ours, expected)
    with pytest.raises(ValueError, match="Unsupported Box IoU Calculation for given fmt xywhr"):
        mine._box_inter_union(b1, b2, "xywhr")
    for dtype in (*ALL_DTYPES, torch.uint8):
        assert mine._upcast(b1.to(dtype)).dtype == theirs._upcast(b1.to(dtype)).dtype
    b, scores, idxs = boxes(30), torch.rand(30), torch.arange(30) % 3
    expected = theirs._batched_nms_vanilla(b, scores, idxs, 0.3)
    assert torch.equal(mine._batched_nms_vanilla(b, scores, idxs, 0.3), expected)
    assert torch.equal(mine._batched_nms_coordinate_trick(b, scores, idxs, 0.3), expected)
