"""torchvision's deform_conv2d, its operators and its layer on our kernels."""

from __future__ import annotations

import pytest
import torch

import fastvision
from fastvision.testing.deform_conv2d import Problem, leaves
from fastvision.testing.numerics import assert_matches
from fastvision.testing.tensors import in_format

pytest.importorskip("torchvision.ops")
from torchvision import ops  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_thread", "needs_kernels"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),
]
OURS = {"fastvision::deform_conv2d", "fastvision::deform_conv2d_backward"}
PROBLEM = Problem((2, 6, 7, 5), 4, (3, 2), (1, 2), (1, 0), groups=2, offset_groups=3)


def with_gradients(tensors, problem=PROBLEM):
    result = problem.call(ops.deform_conv2d, tensors)
    return result, *torch.autograd.grad(result.square().sum(), leaves(tensors))


def operator_arguments(problem=PROBLEM, **options):
    x, offset, weight, bias, mask = problem.tensors(**options)
    window = (*problem.stride, *problem.padding, *problem.dilation)
    return x, weight, offset, mask, bias, *window, problem.groups, problem.offset_groups, True


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted"])
@pytest.mark.parametrize("mask", [False, True])
def test_function(on, dtype, layout, mask, stock, our_ops):
    problem = Problem((2, 6, 7, 7), 4, offset_groups=3, mask=mask, bias=mask)
    tensors = problem.tensors(dtype)
    tensors[0] = in_format(tensors[0], layout == "channels_last")
    if layout == "permuted":
        tensors[0], tensors[1] = tensors[0].mT, tensors[1].mT
    tensors = [None if t is None else t.requires_grad_() for t in tensors]
    expected = stock(with_gradients, tensors, problem)
    results = with_gradients(tensors, problem)
    for result, wanted in zip(results, expected, strict=True):
        assert_matches(result, wanted, scale=10)
    assert results[0].stride() == expected[0].stride()  # callers view() it
    assert our_ops(with_gradients, tensors, problem) == OURS


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_cpu(on, dtype, stock):
    tensors = PROBLEM.tensors(dtype, gradients=True)
    if dtype == torch.bfloat16:
        with pytest.raises(RuntimeError):
            stock(with_gradients, tensors)
    results = with_gradients(tensors)
    expected = stock(with_gradients, [t.detach().float().requires_grad_() for t in tensors])
    assert results[0].dtype == dtype
    assert_matches(results[0], expected[0])


def test_layer_and_script(on, stock, our_ops):
    layer = ops.DeformConv2d(6, 4, (3, 2), PROBLEM.stride, PROBLEM.padding, groups=2)
    x, offset, _, _, mask = PROBLEM.tensors()
    for program in (layer, torch.jit.script(layer)):
        for factors in (mask, None):
            assert_matches(program(x, offset, factors), stock(layer, x, offset, factors))
        assert our_ops(lambda p=program: p(x, offset, mask).sum().backward()) == OURS
    with torch.no_grad():
        assert our_ops(layer, x, offset, mask) == {"fastvision::deform_conv2d"}


def test_operators(on, stock):
    """Contiguous results, also of the backward without a mask."""
    arguments = operator_arguments()
    raw = torch.ops.torchvision.deform_conv2d
    result, expected = raw(*arguments), stock(raw, *arguments)
    assert_matches(result, expected)
    assert result.stride() == expected.stride()
    raw = torch.ops.torchvision._deform_conv2d_backward
    x, weight, offset, mask, bias, *options = arguments
    for use_mask in (True, False):
        factors = mask if use_mask else torch.zeros(2, 1)
        given = (expected, x, weight, offset, factors, bias, *options[:-1], use_mask)
        for ours, theirs in zip(raw(*given), stock(raw, *given), strict=True):
            assert_matches(ours, theirs, scale=10)
            assert ours.stride() == theirs.stride()


def test_recorded(on, stock, our_ops):
    tensors = PROBLEM.tensors(gradients=True)
    convolve = torch.compile(
        lambda *t: PROBLEM.call(ops.deform_conv2d, list(t)), fullgraph=True, backend="aot_eager"
    )
    expected = stock(with_gradients, tensors)
    result = convolve(*tensors)
    assert_matches(result, expected[0])
    for grad, wanted in zip(
        torch.autograd.grad(result.square().sum(), tensors), expected[1:], strict=True
    ):
        assert_matches(grad, wanted, scale=10)
    with torch.no_grad():
        assert our_ops(convolve, *tensors) == {"fastvision::deform_conv2d"}
    torch.library.opcheck(torch.ops.torchvision.deform_conv2d, operator_arguments(gradients=True))
    x, weight, *rest = operator_arguments()
    torch.library.opcheck(
        torch.ops.torchvision._deform_conv2d_backward, (expected[0].detach(), x, weight, *rest)
    )


def test_recorded_before(our_ops):
    """torchvision's autograd has recorded the forward, our kernel runs the backward."""
    tensors = PROBLEM.tensors(gradients=True)
    _, *expected = with_gradients(tensors)
    loss = PROBLEM.call(ops.deform_conv2d, tensors).square().sum()
    with fastvision.enabled():
        assert our_ops(loss.backward) == {"fastvision::deform_conv2d_backward"}
    for tensor, grad in zip(tensors, expected, strict=True):
        assert_matches(tensor.grad, grad, scale=10)


def test_derivatives(on):
    problem = Problem((1, 2, 3, 3), 2, (2, 2))
    tensors = problem.tensors(torch.float64)
    tensors[1] = tensors[1] + 1 / 3  # away from pixels, where there are kinks
    tensors = [t.requires_grad_() for t in tensors]

    def convolve(*tensors):
        return problem.call(ops.deform_conv2d, list(tensors))

    assert torch.autograd.gradcheck(convolve, tensors, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(convolve, tensors, fast_mode=True)


def test_a_single_tensor_that_requires_a_gradient(on):
    """Whichever of the five it is."""
    for i in range(5):
        tensors = PROBLEM.tensors()
        tensors[i].requires_grad_()
        PROBLEM.call(ops.deform_conv2d, tensors).sum().backward()
        assert tensors[i].grad is not None


def test_autocast(on, stock):
    tensors = PROBLEM.tensors()
    with torch.autocast("cpu", torch.bfloat16):
        expected = stock(PROBLEM.call, ops.deform_conv2d, tensors)
        result = PROBLEM.call(ops.deform_conv2d, tensors)
        mixed = PROBLEM.call(ops.deform_conv2d, [tensors[0].bfloat16(), *tensors[1:]])
    assert result.dtype == torch.float32
    assert_matches(result, expected)
    assert mixed.dtype == torch.bfloat16
    assert_matches(mixed, expected)


@pytest.mark.parametrize(
    "change",
    [
        {0: torch.zeros(6, 7, 5)},
        {0: torch.zeros(2, 6, 7, 5).long()},
        {1: torch.zeros(4, 3, 3)},
        {1: torch.zeros(4, 2, 3, 2)},
        {2: torch.zeros(2, 30, 7, 2)},
        {2: torch.zeros(1, 36, 7, 2)},
        {3: torch.zeros(2, 18, 7, 3)},
        {4: torch.zeros(5)},
        {5: 0},
        {7: -1},
        {11: 1},
        {12: 2},
    ],
    ids=str,
)
def test_errors_are_torchvisions(on, change):
    arguments = list(operator_arguments())
    for i, value in change.items():
        arguments[i] = value
    with pytest.raises(RuntimeError):
        torch.ops.torchvision.deform_conv2d(*arguments)
    x, weight, offset, mask, bias, *options = arguments
    with pytest.raises(RuntimeError):
        torch.ops.torchvision._deform_conv2d_backward(
            torch.zeros(2, 4, 7, 2), x, weight, offset, mask, bias, *options
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("deterministic", [False, True])
def test_cuda(deterministic):
    tensors = PROBLEM.tensors(device="cuda", gradients=True)
    expected = with_gradients(tensors)
    torch.use_deterministic_algorithms(deterministic, warn_only=False)
    try:
        with fastvision.enabled():
            results = with_gradients(tensors)
            with torch.autocast("cuda", torch.bfloat16):
                low = [tensors[0].bfloat16(), *tensors[1:]]
                mixed = PROBLEM.call(ops.deform_conv2d, low)
    finally:
        torch.use_deterministic_algorithms(False)
    for result, wanted in zip(results, expected, strict=True):
        assert_matches(result, wanted, scale=10)
    assert mixed.dtype == torch.bfloat16
    assert_matches(mixed, expected[0])
