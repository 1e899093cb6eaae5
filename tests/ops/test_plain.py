"""Calls that go to a C++ op at once, before their arguments are checked in Python."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fastvision import _extension, ops
from fastvision.ops import _plain
from fastvision.testing.backends import LEVELS
from fastvision.testing.marks import needs_library
from fastvision.testing.numerics import assert_matches
from fastvision.testing.tensors import in_format

X = torch.randn(2, 3, 4, 5)
MEAN, VAR = torch.zeros(3), torch.ones(3)
WEIGHT = torch.randn(4, 3, 3, 3)
BOXES, SCORES = torch.tensor([[0.0, 0, 4, 4], [1, 1, 5, 5], [8, 8, 9, 9]]), torch.rand(3)
ROIS = torch.tensor([[0.0, 0, 0, 3, 3], [1, 1, 1, 2, 2]])
CALLS = {
    "batch_norm_relu": lambda x: ops.batch_norm_relu(x, MEAN.to(x.dtype), VAR.to(x.dtype)),
    "conv_bn_relu": lambda x: ops.conv_bn_relu(x, WEIGHT.to(x.dtype), padding=1),
    "conv_transpose2d": lambda x: ops.conv_transpose2d(x, WEIGHT.mT[:3].to(x.dtype)),
    "linear_act": lambda x: ops.linear_act(x[0, 0, :2], torch.ones(7, 5, dtype=x.dtype)),
    "linear_act, strided": lambda x: ops.linear_act(x[:, 0, 0], torch.ones(7, 5, dtype=x.dtype)),
    "max_pool2d": lambda x: ops.max_pool2d_with_indices(x, 2)[0],
    "roi_align": lambda x: ops.roi_align(x, ROIS, 2),
}


class Subclass(Tensor):
    pass


@needs_library
def test_is_plain():
    assert _plain.is_plain(X, (WEIGHT, None))
    for input in (X.numpy(), None, X.to("meta"), X.as_subclass(Subclass)):
        assert not _plain.is_plain(input)
    wanted = WEIGHT.clone().requires_grad_()
    assert not _plain.is_plain(X, (None, wanted))
    assert not _plain.is_plain(X, (1.0,))
    with torch.no_grad():
        assert _plain.is_plain(X, (None, wanted))
    with torch.inference_mode():
        assert _plain.is_plain(X, (None, wanted))
    with forward_ad.dual_level():
        assert not _plain.is_plain(X)
    with FlopCounterMode(display=False):  # a dispatch mode
        assert not _plain.is_plain(X)
    seen = []
    torch.func.vmap(lambda x: seen.append(_plain.is_plain(x)) or x)(X)
    torch.jit.trace(lambda x: seen.append(_plain.is_plain(x)) or x + 1, X, check_trace=False)
    compiled = torch.compile(lambda x: x + _plain.is_plain(x), backend="eager", fullgraph=True)
    assert torch.equal(compiled(X), X)
    assert not any(seen) and len(seen) == 2


@pytest.mark.parametrize("op", CALLS)
def test_what_the_op_refuses_is_converted(op):
    """The same result under no_grad and with a gradient, which checks everything in Python."""
    for x in (X, X.double(), X.mT, X[..., ::2, :].to(torch.bfloat16), torch._neg_view(X)):
        if op.startswith("linear_act") and x.shape[-1] != 5:
            continue
        run = CALLS[op]
        expected = run(x.clone().detach().requires_grad_()).detach()
        with torch.no_grad():
            for _ in range(2):  # a repeated call takes another path
                y = run(x)
                assert y.dtype == expected.dtype
                assert_matches(y, expected, scale=4)


def test_nms_of_what_the_op_refuses():
    kept = ops.nms(BOXES, SCORES, 0.1)
    for boxes, scores in ((BOXES.double(), SCORES.double()), (BOXES.mT.contiguous().mT, SCORES)):
        assert torch.equal(ops.nms(boxes, scores, 0.1), kept)
    with torch.autocast("cpu"):
        assert torch.equal(ops.nms(BOXES, SCORES.double(), 0.1), kept)
    with pytest.raises(RuntimeError, match="boxes must have shape .* got"):
        ops.nms(BOXES[:, :3], SCORES, 0.1)
    with pytest.raises(RuntimeError, match="scores must have the type of boxes, torch.float32"):
        ops.nms(BOXES, SCORES.double(), 0.1)
    with pytest.raises(TypeError, match="scores must be a Tensor"):
        ops.nms(BOXES, SCORES.tolist(), 0.1)


def test_weights_may_change_between_repeated_calls():
    for weights in ({}, {"running_mean": torch.zeros(4), "running_var": torch.ones(4)}):
        weight = WEIGHT.clone()
        for change in (1.0, -1.0, 3.0):
            weight.data.mul_(change)  # does not count as a write
            for value in weights.values():
                value.data.add_(1.0)
            expected = ops.conv_bn_relu(X, weight.clone(), **weights)
            for _ in range(3):
                assert torch.equal(ops.conv_bn_relu(X, weight, **weights), expected)
    with pytest.raises(ValueError, match="input must have 3 channels"):
        ops.conv_bn_relu(X[:, :2], weight)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stride", [1, 2, (2, 3)])
@pytest.mark.usefixtures("poisoned_memory")
def test_transposed_windows_side_by_side(stride, dtype, channels_last):
    """Few pixels have a path of their own, more have the engine's."""
    window = stride if isinstance(stride, tuple) else (stride, stride)
    for shape, K in (((2, 3, 4, 5), 7), ((1, 17, 1, 64), 33), ((3, 2, 5, 5), 70)):
        x = in_format(torch.randn(shape, dtype=dtype), channels_last)
        weight, bias = torch.randn(shape[1], K, *window, dtype=dtype), torch.randn(K, dtype=dtype)
        for shift in (bias, None):
            expected = F.conv_transpose2d(x.double(), weight.double(), shift, stride)
            for _ in range(2):
                y = ops.conv_transpose2d(x, weight, shift, stride)
                assert_matches(y, expected, scale=8)
                assert y.is_contiguous() or channels_last


def test_transposed_weights_may_change_between_repeated_calls():
    weight, bias = torch.randn(3, 4, 2, 2), torch.randn(4)
    for change in (1.0, -1.0, 3.0):
        weight.data.mul_(change)
        bias.data.add_(1.0)
        expected = ops.conv_transpose2d(X, weight.clone(), bias.clone(), 2)
        for _ in range(3):
            assert torch.equal(ops.conv_transpose2d(X, weight, bias, 2), expected)
    assert_matches(ops.conv_transpose2d(X[0], weight, bias, 2), expected[0])
    y = ops.conv_transpose2d_bn_relu(X, weight, bias, stride=2)
    assert_matches(y, expected.relu())
    with pytest.raises(ValueError, match="input's channels|channels"):
        ops.conv_transpose2d(X[:, :2], weight, bias, 2)
    with pytest.raises(TypeError, match="stride must be one or two integers"):
        ops.conv_transpose2d(X, weight, bias, 2.0)
    with torch.autocast("cpu"):
        assert ops.conv_transpose2d(X, weight, bias, 2).dtype == torch.bfloat16


def test_transposed_weights_are_packed_for_each_cpu_level(cpu_level):
    weight, bias = torch.randn(3, 40, 2, 2), torch.randn(40)
    expected = F.conv_transpose2d(X, weight, bias, 2)
    for level in (*LEVELS, "baseline"):
        _extension.set_cpu_level(level)
        for _ in range(2):
            assert_matches(ops.conv_transpose2d(X, weight, bias, 2), expected, scale=4)


def test_pooling_windows_are_told_apart():
    """Of one tensor and of another size; integers that are none are refused in later calls too."""
    for x in (X, X[:, :, :3], X.to(memory_format=torch.channels_last), X[0], X.double()):
        for options in ((2,), (2, 1), (3, 2, 1), (2, 2, 0, 1, True), (2, None)):
            for _ in range(2):
                expected = F.max_pool2d_with_indices(x, *options)
                assert all(map(torch.equal, ops.max_pool2d_with_indices(x, *options), expected))
    for options in ((True,), (2.0,), (2, 1, 0, 1.0)):
        with pytest.raises(TypeError, match="must be one or two integers"):
            ops.max_pool2d_with_indices(X, *options)
    with pytest.raises(ValueError, match="kernel_size must be at least 1, got"):
        ops.max_pool2d_with_indices(X, 0)
    with pytest.raises(ValueError, match="a kernel that spans 9 pixels does not fit into 4"):
        ops.max_pool2d_with_indices(X, 9)


@needs_library
def test_pooling_op_refuses_a_window_of_another_size():
    window = torch.tensor([2, 2, 2, 2, 0, 0, 1, 1, 2, 2, 4, 5])
    run = torch.ops.fastvision.max_pool2d_of_window
    run(X, window)
    for x, w in ((X[:, :, :3], window), (X, window[:-1]), (X, window.int()), (X[0], window)):
        with pytest.raises(RuntimeError, match="must (be|have)"):
            run(x, w)


@pytest.mark.parametrize("which", range(5))
@pytest.mark.parametrize("training", [False, True])
def test_tensors_on_the_meta_device_have_no_values(which, training):
    """The dispatcher would call the fake, which returns memory that nothing has filled."""
    names = ("running_mean", "running_var", "weight", "bias", "residual")
    tensors = [MEAN.clone(), VAR.clone(), VAR, MEAN, X.clone()]
    tensors[which] = tensors[which].to("meta")
    options = {"training": training, **dict(zip(names, tensors, strict=True))}
    with pytest.raises(ValueError, match=f"{names[which]} must be .*cpu.*, got .*meta"):
        ops.batch_norm_relu(X, **options)
    assert which == 1 or torch.equal(tensors[1], VAR)


@pytest.mark.parametrize("rows", [2, 40])
def test_linear_layers_on_the_meta_device_have_no_values(rows):
    x, weight, bias = torch.randn(rows, 5), torch.randn(7, 5), torch.randn(7)
    for gradient in (False, True):
        x.requires_grad_(gradient)
        with pytest.raises(ValueError, match="weight must be on cpu as input, got meta"):
            ops.linear_act(x, weight.to("meta"))
        with pytest.raises(ValueError, match="bias must be on cpu as input, got meta"):
            ops.linear_act(x, weight, bias.to("meta"))


def test_options_of_another_type_are_refused_after_a_repeated_call():
    for _ in range(2):
        ops.conv_bn_relu(X, WEIGHT, stride=1)
    with pytest.raises(TypeError, match="stride must be one or two integers"):
        ops.conv_bn_relu(X, WEIGHT, stride=True)
    for eps in ("1e-5", torch.tensor(1e-5)):
        with pytest.raises(TypeError, match="eps must be a number"):
            ops.batch_norm_relu(X, MEAN, VAR, eps=eps)
    with pytest.raises(TypeError, match="momentum must be a number"):
        ops.batch_norm_relu(X, MEAN, VAR, momentum="0.1")
