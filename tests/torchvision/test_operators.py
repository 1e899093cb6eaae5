"""torchvision's operators, called as they are, give the same answers from our kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastvision
from fastvision.testing import cases
from fastvision.testing.detection import BOXES, CLASSES, FEATURES, ROIS, SCORES
from fastvision.testing.numerics import assert_matches

pytest.importorskip("torchvision.ops")
from torchvision import ops  # noqa: E402

from .pooling import pool  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
]
needs_kernels = pytest.mark.usefixtures("needs_kernels")
OURS = {"fastvision::nms", "fastvision::roi_align", "fastvision::roi_align_backward"}


@needs_kernels
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
def test_nms(on, threshold, stock, our_ops):
    for boxes, scores in [
        (BOXES, SCORES),
        (BOXES.double(), SCORES.double()),
        (BOXES[:0], SCORES[:0]),
    ]:
        expected = stock(ops.nms, boxes, scores, threshold)
        assert torch.equal(ops.nms(boxes, scores, threshold), expected)
    assert our_ops(ops.nms, BOXES, SCORES, threshold) == {"fastvision::nms"}


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_cpu(on, dtype, stock, pool_with_gradient):
    boxes, scores = BOXES.to(dtype), SCORES.to(dtype)
    with pytest.raises(RuntimeError):
        stock(ops.nms, boxes, scores, 0.5)
    expected = stock(ops.nms, boxes.float(), scores.float(), 0.5)
    assert torch.equal(ops.nms(boxes, scores, 0.5), expected)
    pooled, grad = pool_with_gradient(pool, FEATURES.to(dtype), ROIS)
    assert pooled.dtype == grad.dtype == dtype
    assert_matches(pooled, stock(pool, FEATURES.to(dtype).float(), ROIS))


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted", "sliced"])
def test_roi_align(on, dtype, layout, stock, our_ops, pool_with_gradient):
    features, rois = FEATURES.to(dtype), ROIS.to(dtype)
    if layout == "channels_last":
        features = features.contiguous(memory_format=torch.channels_last)
    elif layout == "permuted":
        features = features.permute(0, 1, 3, 2)
    elif layout == "sliced":
        rois = rois.repeat(2, 2)[::2, :5]
        features = features.repeat(1, 2, 1, 1)[:, ::2]
    expected, expected_grad = stock(pool_with_gradient, pool, features, rois)
    pooled, grad = pool_with_gradient(pool, features, rois)
    assert_matches(pooled, expected)
    assert_matches(grad, expected_grad, scale=10)
    assert pooled.stride() == expected.stride()  # callers view() it
    assert our_ops(pool_with_gradient, pool, features, rois) == OURS - {"fastvision::nms"}


@needs_kernels
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [-1, 2])
def test_roi_align_options(on, aligned, sampling_ratio, stock, pool_with_gradient):
    boxes = [ROIS[ROIS[:, 0] == image, 1:] for image in (0, 1)]
    module = ops.RoIAlign((3, 4), 0.2, sampling_ratio, aligned)
    assert_matches(module(FEATURES, boxes), stock(module, FEATURES, boxes))
    empty = [boxes[0][:0], boxes[1][:0]]
    assert module(FEATURES, empty).shape == (0, 6, 3, 4)
    pooled, grad = pool_with_gradient(pool, FEATURES, ROIS[:0])
    assert pooled.shape == (0, 6, 5, 5) and not grad.any()


def pool_maxima(features: Tensor, rois: Tensor) -> Tensor:
    return ops.roi_pool(features, rois, 5, 0.25)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted"])
def test_roi_pool(on, dtype, layout, stock, our_ops, pool_with_gradient):
    features, rois = FEATURES.to(dtype), ROIS.to(dtype)
    if layout == "channels_last":
        features = features.contiguous(memory_format=torch.channels_last)
    elif layout == "permuted":
        features = features.permute(0, 1, 3, 2)
    expected, expected_grad = stock(pool_with_gradient, pool_maxima, features, rois)
    pooled, grad = pool_with_gradient(pool_maxima, features, rois)
    assert torch.equal(pooled, expected) and pooled.stride() == expected.stride()
    assert_matches(grad, expected_grad, scale=10)
    ran = our_ops(pool_with_gradient, pool_maxima, features, rois)
    assert ran == {"fastvision::roi_pool", "fastvision::roi_pool_backward"}
    module = ops.RoIPool((3, 4), 0.2)
    assert torch.equal(module(features, rois), stock(module, features, rois))
    raw = torch.ops.torchvision.roi_pool
    for ours, theirs in zip(
        raw(features, rois, 0.2, 3, 4), stock(raw, features, rois, 0.2, 3, 4), strict=True
    ):
        assert torch.equal(ours, theirs) and ours.stride() == theirs.stride()


@needs_kernels
def test_roi_pool_recorded(on, stock, our_ops):
    features = FEATURES[:, :2, :8, :8].double().requires_grad_()
    rois = cases.rois(4, 2, height=30, width=30, max_size=30).double()
    assert torch.autograd.gradcheck(
        lambda x: pool_maxima(x, rois), features, check_forward_ad=True, fast_mode=True
    )
    torch.library.opcheck(torch.ops.torchvision.roi_pool, (features, rois, 0.25, 5, 5))
    compiled = torch.compile(pool_maxima, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected = stock(pool_maxima, features, rois)
        assert torch.equal(compiled(features, rois), expected)
        assert our_ops(compiled, features, rois) == {"fastvision::roi_pool"}
    (grad,) = torch.autograd.grad(compiled(features, rois).square().sum(), features)
    (wanted,) = torch.autograd.grad(stock(pool_maxima, features, rois).square().sum(), features)
    assert_matches(grad, wanted)


@needs_kernels
def test_roi_pool_recorded_before(our_ops):
    """torchvision's autograd has recorded the forward, our kernel runs the backward."""
    features = FEATURES.clone().requires_grad_()
    (expected,) = torch.autograd.grad(pool_maxima(features, ROIS).square().sum(), features)
    loss = pool_maxima(features, ROIS).square().sum()
    with fastvision.enabled():
        assert our_ops(lambda: loss.backward()) == {"fastvision::roi_pool_backward"}
    assert_matches(features.grad, expected, scale=10)


@needs_kernels
def test_errors_of_roi_pool_are_torchvisions(on):
    for features, rois in [
        (FEATURES, torch.rand(4, 6)),
        (FEATURES, torch.rand(5)),
        (FEATURES[0], ROIS),
        (FEATURES.int(), ROIS),
        (FEATURES, ROIS + 5),
    ]:
        with pytest.raises(RuntimeError):
            torch.ops.torchvision.roi_pool(features, rois, 1.0, 2, 2)


def pool_in_script(features: Tensor, rois: Tensor) -> Tensor:
    return ops.roi_align(features, rois, [5, 5], 0.25, 2)


@needs_kernels
def test_derivatives(on):
    features = FEATURES[:, :2, :8, :8].double().requires_grad_()
    rois = cases.rois(4, 2, height=30, width=30, max_size=30).double()
    assert torch.autograd.gradcheck(
        lambda x: pool(x, rois), features, check_forward_ad=True, fast_mode=True
    )
    assert torch.autograd.gradgradcheck(lambda x: pool(x, rois), features, fast_mode=True)
    scripted = torch.jit.script(pool_in_script)
    assert torch.autograd.gradcheck(lambda x: scripted(x, rois), features, fast_mode=True)


@needs_kernels
def test_graph_recorded_before(our_ops):
    """torchvision's autograd has recorded the forward, our kernel runs the backward."""
    features = FEATURES.clone().requires_grad_()
    (expected,) = torch.autograd.grad(pool(features, ROIS).square().sum(), features)
    loss = pool(features, ROIS).square().sum()
    with fastvision.enabled():
        assert our_ops(lambda: loss.backward()) == {"fastvision::roi_align_backward"}
    assert_matches(features.grad, expected, scale=10)


@needs_kernels
def test_errors_are_torchvisions(on):
    with pytest.raises(AssertionError):
        ops.roi_align(FEATURES, torch.rand(4, 4), 2)
    with pytest.raises(AssertionError):
        ops.roi_align(FEATURES, [torch.rand(4, 5), torch.rand(4, 5)], 2)
    for features, rois in [
        (FEATURES, torch.rand(4, 6)),
        (FEATURES, torch.rand(5)),
        (FEATURES[0], ROIS),
        (FEATURES.int(), ROIS),
        (FEATURES, ROIS + 5),
    ]:
        with pytest.raises(RuntimeError):
            torch.ops.torchvision.roi_align(features, rois, 1.0, 2, 2, 2, False)
    for boxes, scores in [
        (torch.rand(4), torch.rand(4)),
        (torch.rand(3, 5), torch.rand(3)),
        (torch.rand(3, 4), torch.rand(3, 2)),
        (torch.rand(3, 4), torch.rand(4)),
        (torch.rand(3, 4).int(), torch.rand(3)),
        (torch.rand(3, 4), torch.rand(3).double()),
    ]:
        with pytest.raises(RuntimeError):
            ops.nms(boxes, scores, 0.5)


@needs_kernels
def test_opcheck(on):
    namespace = torch.ops.torchvision
    torch.library.opcheck(namespace.nms, (BOXES, SCORES, 0.5))
    features = FEATURES.clone().requires_grad_()
    torch.library.opcheck(namespace.roi_align, (features, ROIS, 0.25, 5, 5, 2, False))
    arguments = (torch.rand(12, 6, 5, 5), ROIS, 0.25, 5, 5, 2, 6, 20, 30, 2, False)
    torch.library.opcheck(namespace._roi_align_backward, arguments)


def test_quantized_stays_with_torchvision(on, stock):
    boxes = torch.quantize_per_tensor(BOXES.clamp(0, 250), 1.0, 0, torch.quint8)
    scores = torch.quantize_per_tensor(SCORES, 1 / 255, 0, torch.quint8)
    expected = stock(ops.nms, boxes, scores, 0.5)
    assert torch.equal(ops.nms(boxes, scores, 0.5), expected)
    features = torch.quantize_per_tensor(FEATURES[:1], 0.1, 0, torch.qint8)
    rois = torch.quantize_per_tensor(ROIS * 0.5 * torch.tensor([0, 1, 1, 1, 1]), 1, 0, torch.qint8)
    assert ops.roi_align(features, rois, 5, 0.25, 2).is_quantized


@needs_kernels
def test_autocast(on, stock, pool_with_gradient):
    """Features stay bfloat16 down to the kernel, with the result of torchvision in float32."""
    features = FEATURES.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        expected, expected_grad = stock(pool_with_gradient, pool, features, ROIS)
        pooled, grad = pool_with_gradient(pool, features, ROIS)
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True
        ) as profile:
            pool(features, ROIS.bfloat16())
        mixed = ops.batched_nms(BOXES, SCORES.bfloat16(), CLASSES, 0.5)
        single = ops.nms(BOXES, SCORES.bfloat16(), 1.0)
    assert pooled.dtype == grad.dtype == torch.bfloat16
    assert_matches(pooled, expected)
    assert_matches(grad, expected_grad, scale=2)
    copies = [e for e in profile.events() if e.name == "aten::_to_copy"]
    assert all(list(FEATURES.shape) not in e.input_shapes for e in copies)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mixed, stock(ops.batched_nms, BOXES, SCORES.bfloat16(), CLASSES, 0.5))
    assert len(single) == len(BOXES)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("deterministic", [False, True])
def test_cuda(deterministic, pool_with_gradient):
    boxes, scores, classes = BOXES.cuda(), SCORES.cuda(), CLASSES.cuda()
    features, rois = FEATURES.cuda(), ROIS.cuda()
    expected = (
        ops.batched_nms(boxes, scores, classes, 0.5),
        *pool_with_gradient(pool, features, rois),
    )
    torch.use_deterministic_algorithms(deterministic, warn_only=False)
    try:
        with fastvision.enabled():
            kept = ops.batched_nms(boxes, scores, classes, 0.5)
            pooled, grad = pool_with_gradient(pool, features, rois)
            with torch.autocast("cuda", torch.bfloat16):
                low, _ = pool_with_gradient(pool, features.bfloat16(), rois)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(kept, expected[0])
    assert_matches(pooled, expected[1])
    assert_matches(grad, expected[2], scale=10)
    assert_matches(low, expected[1])
