"""Calls of deform_conv2d: programs, errors and the module."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch

from fastvision import ops
from fastvision.testing import cases
from fastvision.testing.deform_conv2d import Problem, leaves
from fastvision.testing.marks import needs_library
from fastvision.testing.numerics import assert_matches

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SMALL = Problem((2, 4, 5, 6), 3)


def test_autocast():
    """Tensors of different dtypes meet in float32; the result has the input's dtype."""
    tensors = SMALL.tensors(gradients=True)
    expected = SMALL.call(ops.deform_conv2d, tensors)
    mixed = [tensors[0].bfloat16(), *tensors[1:]]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(SMALL.call(ops.deform_conv2d, tensors), expected)
        result = SMALL.call(ops.deform_conv2d, mixed)
        slow = SMALL.call(ops.deform_conv2d, tensors, backend="reference")
    assert result.dtype == torch.bfloat16
    assert_matches(result, expected)
    assert_matches(slow, expected)
    with pytest.raises(RuntimeError, match="offset must be torch.bfloat16 on cpu as input"):
        SMALL.call(ops.deform_conv2d, mixed)
    result.float().sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in leaves(tensors))


def test_programs():
    """torch.compile, torch.export, torch.fx and torch.func."""
    module = ops.DeformConv2d(4, 3, 3, padding=1)
    tensors = SMALL.tensors(gradients=True)
    x, offset, _, _, mask = tensors
    expected = module(x, offset, mask)
    grad = cases.feature_map(*expected.shape, seed=9)
    wanted = [x, offset, mask, *module.parameters()]
    expected_grads = torch.autograd.grad(expected, wanted, grad)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    result = compiled(x, offset, mask)
    assert torch.equal(result, expected)
    for a, b in zip(torch.autograd.grad(result, wanted, grad), expected_grads, strict=True):
        assert torch.equal(a, b)
    inputs = tuple(t.detach() for t in (x, offset, mask))
    for program in (
        torch.export.export(module, inputs).module(),
        torch.fx.symbolic_trace(module),
    ):
        assert torch.equal(program(*inputs), expected)
    batched = torch.vmap(lambda *t: module(*(v[None] for v in t))[0])(*inputs)
    assert_matches(batched, expected)


@needs_library
def test_opcheck():
    x, offset, weight, bias, mask = SMALL.tensors()
    window = [*SMALL.stride, *SMALL.padding, *SMALL.dilation]
    forward = torch.ops.fastvision.deform_conv2d.default
    backward = torch.ops.fastvision.deform_conv2d_backward.default
    grad = torch.randn(2, 3, 5, 6)
    for factors in (mask, None):
        torch.library.opcheck(forward, (x, offset, factors, weight, bias, window, 1, 1))
        for needs in (31, 1, 26):
            torch.library.opcheck(backward, (grad, x, offset, factors, weight, window, 1, 1, needs))


@needs_library
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": [0, 1, 1, 1, 1, 1]}, "out of range"),
        ({"window": [1, 1, 1, 1, 2**62, 1]}, "out of range"),
        ({"window": [1, 1, -1, 1, 1, 1]}, "out of range"),
        ({"window": [1, 1]}, "window must have six values"),
        ({"groups": 0}, "groups and offset_groups must divide"),
        ({"offset_groups": 3}, "groups and offset_groups must divide"),
        ({"offset": torch.zeros(2, 18, 5, 7)}, r"offset.shape\[3\] must be 6, got 7"),
        ({"mask": torch.zeros(2, 8, 5, 6)}, r"mask.shape\[1\] must be 9, got 8"),
        ({"weight": torch.zeros(3, 2, 3, 3)}, r"weight.shape\[1\] must be 4, got 2"),
        ({"weight": torch.zeros(3, 4, 3, 3).half()}, "weight must have the dtype"),
        ({"weight": torch.zeros(3, 4, 9, 3)}, "kernel must fit"),
    ],
)
def test_operators_check_their_arguments(change, message):
    x, offset, weight, bias, mask = SMALL.tensors()
    arguments = {
        "input": x, "offset": offset, "mask": mask, "weight": weight, "window": [1] * 6,
        "groups": 1, "offset_groups": 1, **change,
    }  # fmt: skip
    operators = torch.ops.fastvision
    with pytest.raises(RuntimeError, match=message):
        operators.deform_conv2d(**arguments, bias=bias)
    with pytest.raises(RuntimeError, match=message):
        operators.deform_conv2d_backward(torch.zeros(2, 3, 5, 6), **arguments, needs=31)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input": torch.zeros(4, 5, 6)}, ValueError, r"input must have shape .*, got \[4, 5, 6\]"),
        ({"input": torch.zeros(2, 4, 5, 6).long()}, RuntimeError, "input must be float16, .*int64"),
        ({"input": None}, TypeError, "input must be a Tensor, got NoneType"),
        ({"offset": torch.zeros(2, 10, 5, 6)}, RuntimeError, "It should be a multiple of 2"),
        ({"offset": torch.zeros(2, 21, 5, 6)}, RuntimeError, r"got: 21 expected: 18"),
        ({"offset": torch.zeros(2, 54, 5, 6)}, RuntimeError, "divides input's 4 channels, got 3"),
        ({"offset": torch.zeros(1, 18, 5, 6)}, RuntimeError, "invalid batch size of offset: got 1"),
        ({"offset": torch.zeros(2, 18, 4, 6)}, RuntimeError, r"offset output dims: \(4, 6\)"),
        ({"mask": torch.zeros(2, 10, 5, 6)}, RuntimeError, "got: 10 expected: 9"),
        ({"mask": torch.zeros(3, 9, 5, 6)}, RuntimeError, "invalid batch size of mask: got 3"),
        ({"mask": torch.zeros(9, 5, 6)}, RuntimeError, "mask must have 4 dimensions"),
        ({"weight": torch.zeros(3, 3, 3, 3)}, RuntimeError, r"weight must have shape \[K, C / gr"),
        ({"weight": torch.zeros(3, 0, 3, 3)}, RuntimeError, "weight must not have empty"),
        ({"weight": torch.zeros(3, 4, 3, 3).double()}, RuntimeError, "weight must be torch.float"),
        ({"bias": torch.zeros(4)}, RuntimeError, r"bias must have shape \[3\], got \[4\]"),
        ({"stride": 0}, RuntimeError, r"stride must be at least 1, got \(0, 0\)"),
        ({"padding": (0, -1)}, RuntimeError, r"padding must be at least 0, got \(0, -1\)"),
        ({"dilation": 2**40}, RuntimeError, "must reach less than 1073741824 pixels"),
        ({"stride": (1, 1, 1)}, ValueError, r"stride must be one or two integers, got \(1, 1, 1"),
        ({"stride": 1.5}, TypeError, "stride must be one or two integers, got 1.5"),
        ({"backend": "cuda"}, ValueError, "backend='cuda' cannot run on cpu"),
    ],
)
def test_errors(change, error, message):
    x, offset, weight, bias, mask = SMALL.tensors()
    arguments = {
        "input": x, "offset": offset, "weight": weight, "bias": bias, "padding": 1, "mask": mask,
        **change,
    }  # fmt: skip
    with pytest.raises(error, match=message):
        ops.deform_conv2d(**arguments)


def test_a_kernel_that_does_not_fit():
    x, weight = torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 5, 5)
    with pytest.raises(RuntimeError, match="Calculated output size too small"):
        ops.deform_conv2d(x, torch.zeros(1, 50, 0, 0)[:, :, :0], weight, stride=2)


class TestModule:
    def test_as_torchvision(self, torchvision):
        """State, initialization, results and text."""
        for options in (
            {},
            {"stride": 2, "padding": (1, 2), "dilation": 3, "groups": 2, "bias": False},
        ):
            torch.manual_seed(0)
            theirs = torchvision.ops.DeformConv2d(4, 6, (3, 2), **options)
            torch.manual_seed(0)
            ours = ops.DeformConv2d(4, 6, (3, 2), **options)
            assert repr(ours) == repr(theirs)
            assert list(ours.state_dict()) == list(theirs.state_dict())
            for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
                assert torch.equal(a, b)
            for name in ("in_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
                assert getattr(ours, name) == getattr(theirs, name)
            x = cases.feature_map(1, 4, 9, 9)
            size = Problem((1, 4, 9, 9), 6, (3, 2), ours.stride, ours.padding, ours.dilation).size
            offset, mask = cases.feature_map(1, 12, *size), torch.rand(1, 6, *size)
            assert_matches(ours(x, offset, mask), theirs(x, offset, mask))
            assert_matches(ours(x, offset), theirs(x, offset))

    def test_signatures(self, torchvision):
        for name in ("deform_conv2d", "DeformConv2d"):
            theirs = inspect.signature(getattr(torchvision.ops, name)).parameters
            ours = dict(inspect.signature(getattr(ops, name)).parameters)
            ours.pop("backend", None)
            assert list(ours) == list(theirs)
            assert [p.default for p in ours.values()] == [p.default for p in theirs.values()]
        module = importlib.import_module("fastvision.ops.deform_conv")
        assert module.deform_conv2d is ops.deform_conv2d
        assert module.DeformConv2d is ops.DeformConv2d

    def test_errors(self):
        with pytest.raises(ValueError, match="in_channels must be divisible by groups, got 3 and"):
            ops.DeformConv2d(3, 4, 3, groups=2)
        with pytest.raises(ValueError, match="out_channels must be divisible by groups, got 3 and"):
            ops.DeformConv2d(4, 3, 3, groups=2)
