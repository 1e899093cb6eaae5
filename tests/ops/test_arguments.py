"""Arguments that mean something take effect; errors of the others name them and what they got."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastvision import ops
from fastvision.testing import numerics

X, W = torch.randn(1, 4, 9, 9), torch.randn(4, 4, 3, 3)
BOXES = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 5], [5, 5, 9, 9]])
MASKS = torch.ones(3, 4, 5, dtype=torch.bool)
SCORES = torch.tensor([0.9, 0.8, 0.7])
ROIS = torch.tensor([[0.0, 1, 1, 6, 7]])
TURNED = torch.tensor([[0.0, 4, 4, 5, 6, 30]])
SOLID = torch.ones(1, 7)
CONVOLUTIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "conv_bn_relu": (lambda *a, **k: ops.conv_bn_relu(*a, activation="none", **k), F.conv2d),
    "conv_transpose2d": (ops.conv_transpose2d, F.conv_transpose2d),
}
SIZES = {
    "list": [2, 1],
    "one in a tuple": (2,),
    "one in a list": [2],
    "NumPy": np.int64(2),
    "NumPy in a tuple": (np.int32(2), 1),
    "torch.Size": torch.Size([2, 1]),
    "tensor": torch.tensor(2),
}


@pytest.mark.parametrize("option", ["stride", "padding", "dilation"])
@pytest.mark.parametrize("form", SIZES)
@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_forms_of_sizes(op: str, form: str, option: str):
    ours, theirs = CONVOLUTIONS[op]
    size: Any = SIZES[form]
    plain = [int(n) for n in size] if isinstance(size, (tuple, list)) else int(size)
    for _ in range(2):  # the second call finds what the first one has packed
        numerics.assert_matches(ours(X, W, **{option: size}), theirs(X, W, **{option: plain}))


def test_output_padding_and_groups():
    w = torch.randn(4, 1, 3, 3)
    y = ops.conv_transpose2d(X, w, stride=2, output_padding=[np.int64(1)], groups=np.int64(4))
    numerics.assert_matches(y, F.conv_transpose2d(X, w, stride=2, output_padding=1, groups=4))
    y = ops.conv_bn_relu(X, w, groups=np.int64(4), activation="none")
    numerics.assert_matches(y, F.conv2d(X, w, groups=4))


def test_four_paddings():
    y = ops.conv_bn_relu(X, W, padding=[0, np.int64(1), 2, 3], activation="none")
    numerics.assert_matches(y, F.conv2d(F.pad(X, (0, 1, 2, 3)), W))
    with pytest.raises(TypeError, match=r"padding must be one, two or four integers, got 1\.5"):
        ops.conv_bn_relu(X, W, padding=(0, 1.5, 2, 3))


def test_sizes_that_are_symbols():
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            half = x.shape[2] // 2
            return ops.conv_bn_relu(x, W, stride=half, padding=(half, 1))

    program = torch.export.export(
        Model(), (X,), dynamic_shapes=({2: torch.export.Dim.DYNAMIC},), strict=False
    )
    x = torch.randn(1, 4, 13, 9)
    numerics.assert_matches(program.module()(x), Model()(x))


WRONG_SIZES = [True, 1.5, (1, True), (2.0, 2), "2", "ab", None, (None, 1), np.float32(2), {2: 2}]


@pytest.mark.parametrize("option", ["stride", "padding", "dilation", "output_padding"])
@pytest.mark.parametrize("value", WRONG_SIZES, ids=repr)
@pytest.mark.parametrize("op", CONVOLUTIONS)
# a convolution has no output_padding
@pytest.mark.only(lambda op, option: (op, option) != ("conv_bn_relu", "output_padding"))
def test_wrong_types_of_sizes(op: str, value: Any, option: str):
    text = op == "conv_bn_relu" and option == "padding" and isinstance(value, str)
    with pytest.raises(ValueError if text else TypeError, match=f"{option} must be .*, got "):
        CONVOLUTIONS[op][0](X, W.clone(), **{option: value})


@pytest.mark.parametrize("op", ["conv_bn_relu", "conv_transpose2d_bn_relu"])
def test_training_is_checked_in_a_repeated_call(op: str):
    call = getattr(ops, op)
    for _ in range(2):
        call(X, W)
    for training in (None, 0):
        with pytest.raises(TypeError, match="training must be True or False, got"):
            call(X, W, training=training)


@pytest.mark.parametrize("value", [(), (1, 2, 3), [1] * 5])
@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_wrong_numbers_of_sizes(op: str, value: Any):
    with pytest.raises(ValueError, match="stride must be one or two integers, got"):
        CONVOLUTIONS[op][0](X, W, stride=value)


WRONG_OPTIONS = {
    "activation": [3, None, ["relu"]],
    "groups": ["a", 1.0, True, None],
    "eps": [None, "1e-5", [1]],
    "momentum": [None, "0.1"],
    "training": ["x", None, 0, 1.0],
    "negative_slope": [None, "0.1"],
}


@pytest.mark.parametrize(
    ("option", "value"),
    [(name, value) for name, values in WRONG_OPTIONS.items() for value in values],
    ids=repr,
)
@pytest.mark.parametrize("op", ["conv_bn_relu", "conv_transpose2d_bn_relu", "batch_norm_relu"])
# a normalization has no groups
@pytest.mark.only(lambda op, option: (op, option) != ("batch_norm_relu", "groups"))
def test_wrong_types_of_options(op: str, option: str, value: Any):
    tensors: Any = (X, W.clone())
    if op == "batch_norm_relu":
        tensors = (X, torch.zeros(4), torch.ones(4))
    call = getattr(ops, op)
    with pytest.raises(TypeError, match=f"^{option} must be .*, got "):
        call(*tensors, **{option: value})


def test_unknown_activation():
    for call in (
        lambda: ops.conv_bn_relu(X, W, activation="tanh"),
        lambda: ops.conv_transpose2d_bn_relu(X, W, activation="tanh"),
        lambda: ops.batch_norm_relu(X, torch.zeros(4), torch.ones(4), activation="tanh"),
    ):
        with pytest.raises(ValueError, match="activation must be one of .*, got 'tanh'"):
            call()


def not_dense(x: Tensor) -> dict[str, Tensor]:
    return {
        "torch.sparse_coo": x.to_sparse(),
        "torch._mkldnn": x.to_mkldnn(),
        "a nested one": torch.nested.as_nested_tensor([x[0], x[0]], layout=torch.strided),
        "a nested one, jagged": torch.nested.as_nested_tensor([x[0], x[0]], layout=torch.jagged),
    }


CALLS: dict[str, tuple[str, Tensor, Callable[[Tensor], Any]]] = {
    "nms": ("boxes", BOXES, lambda b: ops.nms(b, SCORES, 0.5)),
    "nms, scores": ("scores", SCORES, lambda s: ops.nms(BOXES, s, 0.5)),
    "batched_nms": ("boxes", BOXES, lambda b: ops.batched_nms(b, SCORES, SCORES, 0.5)),
    "batched_nms, idxs": ("idxs", SCORES, lambda i: ops.batched_nms(BOXES, SCORES, i, 0.5)),
    "matrix_nms": ("boxes", BOXES, lambda b: ops.matrix_nms(b, SCORES)),
    "matrix_nms, idxs": ("idxs", SCORES, lambda i: ops.matrix_nms(BOXES, SCORES, idxs=i)),
    "nms_match": ("boxes", BOXES, lambda b: ops.nms_match(b, SCORES, 0.5)),
    "nms_match, idxs": ("idxs", SCORES, lambda i: ops.nms_match(BOXES, SCORES, 0.5, idxs=i)),
    "nms_rotated": ("boxes", ROIS, lambda b: ops.nms_rotated(b, SCORES, 0.5)),
    "batched_nms_rotated": (
        "idxs",
        SCORES,
        lambda i: ops.batched_nms_rotated(ROIS, SCORES, i, 0.5),
    ),
    "nms_3d": ("boxes", SOLID, lambda b: ops.nms_3d(b, SCORES, 0.5)),
    "soft_nms": ("boxes", BOXES, lambda b: ops.soft_nms(b, SCORES)),
    "soft_nms, idxs": ("idxs", SCORES, lambda i: ops.soft_nms(BOXES, SCORES, idxs=i)),
    "weighted_boxes_fusion": (
        r"boxes\[0\]",
        BOXES,
        lambda b: ops.weighted_boxes_fusion([b], [SCORES], [SCORES]),
    ),
    "box_area": ("boxes", BOXES, ops.box_area),
    "box_convert": ("boxes", BOXES, lambda b: ops.box_convert(b, "xyxy", "xywh")),
    "box_iou": ("boxes1", BOXES, lambda b: ops.box_iou(b, BOXES)),
    "box_iou, boxes2": ("boxes2", BOXES, lambda b: ops.box_iou(BOXES, b)),
    "box_iou_3d": ("boxes1", SOLID, lambda b: ops.box_iou_3d(b, SOLID)),
    "box_iou_rotated": ("boxes1", ROIS, lambda b: ops.box_iou_rotated(b, ROIS)),
    "clip_boxes_to_image": ("boxes", BOXES, lambda b: ops.clip_boxes_to_image(b, (4, 4))),
    "complete_box_iou": ("boxes2", BOXES, lambda b: ops.complete_box_iou(BOXES, b)),
    "complete_box_iou_loss": ("boxes1", BOXES, lambda b: ops.complete_box_iou_loss(b, BOXES)),
    "distance_box_iou": ("boxes2", BOXES, lambda b: ops.distance_box_iou(BOXES, b)),
    "distance_box_iou_loss": ("boxes2", BOXES, lambda b: ops.distance_box_iou_loss(BOXES, b)),
    "generalized_box_iou": ("boxes1", BOXES, lambda b: ops.generalized_box_iou(b, BOXES)),
    "generalized_box_iou_loss": (
        "boxes1",
        BOXES,
        lambda b: ops.generalized_box_iou_loss(b, BOXES),
    ),
    "mask_iou": ("masks1", X, lambda m: ops.mask_iou(m, MASKS)),
    "mask_iou, masks2": ("masks2", X, lambda m: ops.mask_iou(MASKS, m)),
    "mask_nms": ("masks", X, lambda m: ops.mask_nms(m, SCORES, 0.5)),
    "mask_matrix_nms": ("masks", X, lambda m: ops.mask_matrix_nms(m, SCORES)),
    "masks_to_boxes": ("masks", X, ops.masks_to_boxes),
    "remove_small_boxes": ("boxes", BOXES, lambda b: ops.remove_small_boxes(b, 1.0)),
    "ps_roi_align": ("input", X, lambda x: ops.ps_roi_align(x, ROIS, 2)),
    "ps_roi_pool": ("input", X, lambda x: ops.ps_roi_pool(x, ROIS, 2)),
    "roi_align": ("input", X, lambda x: ops.roi_align(x, ROIS, 2)),
    "roi_align, maximum": ("input", X, lambda x: ops.roi_align(x, ROIS, 2, pool_mode="max")),
    "roi_align_rotated": ("input", X, lambda x: ops.roi_align_rotated(x, TURNED, 2)),
    "roi_pool": ("input", X, lambda x: ops.roi_pool(x, ROIS, 2)),
    "multiscale_roi_align": (
        r"features\[0\]",
        X,
        lambda x: ops.multiscale_roi_align([x], ROIS, 2, [1.0]),
    ),
    "conv_bn_relu": ("input", X, lambda x: ops.conv_bn_relu(x, W.clone())),
    "conv_bn_relu, weight": ("weight", W, lambda w: ops.conv_bn_relu(X, w)),
    "conv_transpose2d": ("input", X, lambda x: ops.conv_transpose2d(x, W)),
    "deform_conv2d": (
        "input",
        X,
        lambda x: ops.deform_conv2d(x, torch.zeros(1, 2, 1, 1), torch.ones(2, 4, 1, 1)),
    ),
    "deform_conv2d, offset": (
        "offset",
        X,
        lambda o: ops.deform_conv2d(X, o, torch.ones(2, 4, 1, 1)),
    ),
    "batch_norm_relu": (
        "input",
        X,
        lambda x: ops.batch_norm_relu(x, torch.zeros(4), torch.ones(4)),
    ),
    "FrozenBatchNorm2d": ("x", X, ops.FrozenBatchNorm2d(4)),
    "linear_act": ("input", X, lambda x: ops.linear_act(x, torch.ones(2, X.shape[-1]))),
    "squeeze_excitation": (
        "input",
        X,
        lambda x: ops.squeeze_excitation(x, torch.ones(2, 4), None, torch.ones(4, 2), None),
    ),
    "max_pool2d_with_indices": ("input", X, lambda x: ops.max_pool2d_with_indices(x, 2)),
    "max_unpool2d": (
        "input",
        X,
        lambda x: ops.max_unpool2d(x, torch.zeros(X.shape, dtype=torch.int64), 2),
    ),
    "sigmoid_focal_loss": ("inputs", X, lambda x: ops.sigmoid_focal_loss(x, X)),
    "sigmoid_focal_loss, targets": ("targets", X, lambda t: ops.sigmoid_focal_loss(X, t)),
    "softmax_focal_loss": ("inputs", X, lambda x: ops.softmax_focal_loss(x, X)),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("case", CALLS)
def test_tensors_that_are_not_dense(case: str):
    name, tensor, call = CALLS[case]
    for got, x in not_dense(tensor.float()).items() if tensor.dim() > 1 else ():
        layout = "a nested one" if "nested" in got else f"layout {got}"
        message = rf"^{name} must be a dense \(strided\) tensor, got {layout}$"
        with pytest.raises(NotImplementedError, match=message):
            call(x)
    with pytest.raises(NotImplementedError, match=rf"^{name} must be a dense .* torch.sparse_coo"):
        call(tensor.to_sparse())
    with pytest.raises(TypeError, match=f"^{name} must be .*, got (list|str)"):
        call("tensor")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "idxs",
    [torch.zeros(3, dtype=torch.complex64), torch.quantize_per_tensor(SCORES, 0.1, 0, torch.quint8)]
    if hasattr(torch, "quantize_per_tensor")
    else [torch.zeros(3, dtype=torch.complex64)],
    ids=lambda t: str(t.dtype),
)
def test_class_labels_that_are_none(idxs: Tensor):
    with pytest.raises(RuntimeError, match="idxs must be of an integer or floating-point type"):
        ops.batched_nms(BOXES, SCORES, idxs, 0.5)
    with pytest.raises(RuntimeError, match="idxs must be of an integer or floating-point type"):
        ops.batched_nms_padded(BOXES[None], SCORES[None], idxs[None], 0.5, max_output=2)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_class_labels_of_other_types(dtype: torch.dtype):
    idxs = torch.tensor([0.0, 1, 0]).to(dtype)
    assert ops.batched_nms(BOXES, SCORES, idxs, 0.5).tolist() == [0, 1, 2]
    assert ops.batched_nms(BOXES, SCORES, torch.zeros(3).to(dtype), 0.5).tolist() == [0, 2]


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_scales_that_are_not_finite(scale: float):
    with pytest.raises(ValueError, match="spatial_scale must be finite, got"):
        ops.roi_align(X, ROIS, 2, scale)
    with pytest.raises(ValueError, match="spatial_scales must be positive and finite, got"):
        ops.multiscale_roi_align([X, X], ROIS, 2, [1.0, scale])


@pytest.mark.parametrize("scale", [0.0, -0.5])
def test_scales_that_are_not_positive(scale: float, torchvision):
    with pytest.raises(ValueError, match="spatial_scales must be positive and finite, got"):
        ops.multiscale_roi_align([X, X], ROIS, 2, [scale, 0.5])
    for aligned in (False, True):
        args = (X, ROIS, 2, scale, 2, aligned)
        numerics.assert_matches(ops.roi_align(*args), torchvision.ops.roi_align(*args))


@pytest.mark.parametrize("scale", ["1", None, [1.0]])
def test_scales_that_are_no_numbers(scale: Any):
    with pytest.raises(TypeError, match="spatial_scale must be a number, got"):
        ops.roi_align(X, ROIS, 2, scale)
    with pytest.raises(TypeError, match=r"spatial_scales\[1\] must be a number, got"):
        ops.multiscale_roi_align([X, X], ROIS, 2, [1.0, scale])


@pytest.mark.parametrize("size", [True, 1.0, (2, "2"), None])
def test_output_sizes_of_wrong_types(size: Any):
    with pytest.raises(TypeError, match="output_size must be one or two integers, got"):
        ops.roi_align(X, ROIS, size)


def test_output_sizes_out_of_range():
    for size in (-1, (2, -2), 2**63):
        with pytest.raises(ValueError, match="output_size must be at least 0 and fit 64 bits, got"):
            ops.roi_align(X, ROIS, size)


def test_most_boxes_out_of_range():
    images: Any = (BOXES[None], SCORES[None], None, 0.5)
    for most, error in ((-1, ValueError), (2**63, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="max_output must .*, got"):
            ops.batched_nms_padded(*images, max_output=most)
        with pytest.raises(error, match="max_output must .*, got"):
            ops.nms(BOXES, SCORES, 0.5, max_output=most)  # type: ignore[arg-type]
        with pytest.raises(error, match="max_output must .*, got"):
            ops.batched_nms(BOXES, SCORES, SCORES, 0.5, max_output=most)  # type: ignore[arg-type]
    assert ops.batched_nms_padded(*images, max_output=np.int64(2))[0].tolist() == [[0, 2]]


@pytest.mark.filterwarnings("ignore")
class TestQuantized:
    def quantized(self, x: Tensor, scale: float) -> Tensor:
        return torch.quantize_per_tensor(x, scale, 3, torch.qint8)

    def test_torchvision_answers(self, torchvision):
        x, rois = self.quantized(X, 0.05), self.quantized(ROIS, 0.1)
        ours, theirs = ops.roi_align(x, rois, 3), torchvision.ops.roi_align(x, rois, 3)
        assert ours.q_scale() == theirs.q_scale() and ours.q_zero_point() == theirs.q_zero_point()
        assert torch.equal(ours.int_repr(), theirs.int_repr())

    @pytest.mark.parametrize("dtype", [torch.qint8, torch.quint8, torch.qint32], ids=str)
    def test_nms_is_torchvisions(self, torchvision, dtype):
        g = torch.Generator().manual_seed(0)
        for scale, threshold in ((0.2, 0.5), (0.4, 1 / 3), (0.2, 0.0), (1.0, 0.25), (0.2, 1.0)):
            boxes = torch.rand(80, 4, generator=g) * 20
            boxes[:, 2:] += boxes[:, :2]
            boxes = torch.quantize_per_tensor(boxes, scale, 3, dtype)
            # steps as coarse as to make many scores equal
            scores = torch.quantize_per_tensor(torch.rand(80, generator=g), 0.02, 1, dtype)
            theirs = torchvision.ops.nms(boxes, scores, threshold)
            assert torch.equal(ops.nms(boxes, scores, threshold), theirs)

    def test_nms_tells_large_integers_apart(self):
        boxes = torch.tensor([[0.0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5]])
        boxes = torch.quantize_per_tensor(boxes, 1.0, 0, torch.qint32)
        numbers = torch.tensor([5, 2**24, 2**24 + 1], dtype=torch.int32)
        scores = torch._make_per_tensor_quantized_tensor(numbers, 1.0, 0)
        assert ops.nms(boxes, scores, 0.5).tolist() == [2, 1, 0]
        assert ops.nms(boxes, scores, 0.5, score_threshold=6.0).tolist() == [2, 1]

    def test_nms_refuses(self):
        boxes, scores = self.quantized(BOXES, 0.1), self.quantized(SCORES, 0.01)
        assert ops.nms(boxes, scores, 0.5).tolist() == [0, 2]
        options = {"score_threshold": 0.75, "max_output": 1}
        expected = ops.nms(BOXES, SCORES, 0.5, **options)
        assert torch.equal(ops.nms(boxes, scores, 0.5, **options), expected)
        with pytest.raises(TypeError, match=r"both be quantized, got scores in torch\.float32"):
            ops.nms(boxes, SCORES, 0.5)
        with pytest.raises(TypeError, match=r"both be quantized, got boxes in torch\.float32"):
            ops.nms(BOXES, scores, 0.5)
        scales, zeros = torch.full((4,), 0.1), torch.zeros(4, dtype=torch.int64)
        by_column = torch.quantize_per_channel(BOXES, scales, zeros, 1, torch.qint8)
        with pytest.raises(TypeError, match="boxes must be quantized per tensor"):
            ops.nms(by_column, scores, 0.5)

    def test_without_torchvision(self, monkeypatch):
        monkeypatch.delitem(sys.modules, "torchvision.ops", raising=False)
        with pytest.raises(NotImplementedError, match="input must not be quantized unless"):
            ops.roi_align(self.quantized(X, 0.1), ROIS, 3)

    def test_ops_that_take_none(self):
        x = self.quantized(X, 0.1)
        for call in (
            lambda: ops.conv_bn_relu(x, W),
            lambda: ops.conv_transpose2d(x, W),
            lambda: ops.sigmoid_focal_loss(x, X),
            lambda: ops.multiscale_roi_align([x], ROIS, 2, [1.0]),
        ):
            with pytest.raises(TypeError, match=r"must be float16, .* got torch\.qint8"):
                call()
