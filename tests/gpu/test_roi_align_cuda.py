"""What only a GPU can show of the CUDA RoIAlign kernels: torch's tensors, streams, graphs, size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastvision.ops as ops
from fastvision import _device, reference
from fastvision._memory_format import memory_format
from fastvision.testing import cases
from fastvision.testing.marks import LAYOUTS
from fastvision.testing.numerics import DTYPES, assert_matches
from fastvision.testing.roi_align import UNUSABLE_ROIS, USABLE
from fastvision.testing.tensors import dtype_id

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _cuda_kernels() -> None:
    if (reason := _device.cuda_kernels_missing(0)) is not None:
        pytest.skip(reason)


def inputs(
    dtype: torch.dtype, channels_last: bool, *, C: int = 64, count: int = 200
) -> tuple[Tensor, Tensor]:
    x = cases.feature_map(2, C, 50, 76, dtype=dtype, channels_last=channels_last)
    return x.cuda(), cases.rois(count, 2).cuda()


def pool(x: Tensor, rois: Tensor, sampling_ratio: int = 2, aligned: bool = True) -> Tensor:
    return ops.roi_align(x, rois, 7, 1 / 16, sampling_ratio, aligned, backend="cuda")


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("C", [5, 64, 264])
@pytest.mark.parametrize("sampling_ratio", [0, 2, 3])
def test_matches_the_reference(
    dtype: torch.dtype, channels_last: bool, C: int, sampling_ratio: int
) -> None:
    x, rois = inputs(dtype, channels_last, C=C, count=40)
    x.requires_grad_()
    actual = pool(x, rois, sampling_ratio)
    wide = x.detach().double().requires_grad_()
    expected = reference.roi_align(wide, rois, 1 / 16, 7, 7, sampling_ratio, True)
    assert_matches(actual, expected, scale=4)
    assert actual.is_contiguous(memory_format=memory_format(channels_last))
    grad = torch.randn_like(actual)
    (actual_grad,) = torch.autograd.grad(actual, x, grad)
    (expected_grad,) = torch.autograd.grad(expected, wide, grad.double())
    assert_matches(actual_grad, expected_grad, scale=16)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@LAYOUTS
def test_matches_torchvision(channels_last: bool, sampling_ratio: int, aligned: bool) -> None:
    torchvision = pytest.importorskip("torchvision")
    x, rois = inputs(torch.float32, channels_last)
    x.requires_grad_()
    actual = pool(x, rois, sampling_ratio, aligned)
    expected = torchvision.ops.roi_align(x, rois, 7, 1 / 16, sampling_ratio, aligned)
    assert_matches(actual, expected)
    grad = torch.randn_like(actual)
    (actual_grad,) = torch.autograd.grad(actual, x, grad)
    (expected_grad,) = torch.autograd.grad(expected, x, grad)
    assert_matches(actual_grad, expected_grad, scale=16)


@LAYOUTS
def test_pyramid_matches_the_compiled_cpu_kernel(channels_last: bool) -> None:
    maps, scales = cases.pyramid(2, 32, channels_last=channels_last)
    rois = cases.rois(300, 2, max_size=700)
    maps = [x.requires_grad_() for x in maps]
    on_gpu = [x.detach().cuda().requires_grad_() for x in maps]
    expected = ops.multiscale_roi_align(maps, rois, 7, scales, 2, backend="cpp")
    actual = ops.multiscale_roi_align(on_gpu, rois.cuda(), 7, scales, 2, backend="cuda")
    assert_matches(actual.cpu(), expected)
    grad = cases.feature_map(*expected.shape)
    expected_grads = torch.autograd.grad(expected, maps, grad)
    actual_grads = torch.autograd.grad(actual, on_gpu, grad.cuda())
    for a, e in zip(actual_grads, expected_grads, strict=True):
        assert_matches(a.cpu(), e, scale=16)


def test_unusable_rois_give_zeros() -> None:
    x, _ = inputs(torch.float32, True)
    pooled = pool(x, UNUSABLE_ROIS.cuda(), 0).cpu()
    assert pooled.flatten(1).any(1).equal(USABLE)


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_same_bits_in_every_run(dtype: torch.dtype, channels_last: bool) -> None:
    x, rois = inputs(dtype, channels_last, count=2000)
    x.requires_grad_()
    grad = torch.randn_like(pool(x, rois))
    results = [torch.autograd.grad(pool(x, rois), x, grad)[0] for _ in range(5)]
    assert all(result.equal(results[0]) for result in results[1:])


def test_poisoned_memory_is_overwritten() -> None:
    x, rois = inputs(torch.float32, True)
    x.requires_grad_()
    poison = torch.full((64 << 20,), float("nan"), device="cuda")
    del poison  # the next allocations come from it
    pooled = pool(x, rois)
    pooled.backward(torch.ones_like(pooled))
    assert pooled.isfinite().all()
    assert x.grad is not None and x.grad.isfinite().all()


@LAYOUTS
def test_cuda_graph(channels_last: bool) -> None:
    x, rois = inputs(torch.bfloat16, channels_last)
    x.requires_grad_()
    grad = torch.randn_like(pool(x, rois))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.autograd.grad(pool(x, rois), x, grad)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        pooled = pool(x, rois)
        (x_grad,) = torch.autograd.grad(pooled, x, grad)
    rois.copy_(cases.rois(len(rois), 2, seed=11))
    graph.replay()
    expected = pool(x, rois)
    assert pooled.equal(expected)
    assert x_grad.equal(torch.autograd.grad(expected, x, grad)[0])


def test_no_synchronisation() -> None:
    x, rois = inputs(torch.bfloat16, True)
    x.requires_grad_()
    grad = torch.randn_like(pool(x, rois))
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(pool(x, rois), x, grad)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@LAYOUTS
def test_more_than_2_31_elements(channels_last: bool) -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < 14 << 30:
        pytest.skip("needs 14 GiB of free device memory")
    x, _ = inputs(torch.float16, channels_last, C=256)
    count = (1 << 31) // (256 * 49) + 100
    rois = cases.rois(100, 2).cuda().repeat(count // 100 + 1, 1)[:count]
    pooled = pool(x, rois)
    assert pooled.numel() > 1 << 31
    assert pooled[-100:].equal(pool(x, rois[-100:]))
    del pooled

    # and of a map
    height = (1 << 31) // (256 * 76) + 50
    format = memory_format(channels_last)
    shape = (1, 256, height, 76)
    tall = torch.empty(shape, dtype=x.dtype, device="cuda", memory_format=format).zero_()
    tall[:, :, -50:] = x[:1]
    # all positions are exact in float32, with and without the shift
    boxes = torch.tensor([[0, 168, 328, 392, 552.0]], device="cuda")
    shift = torch.tensor([0, 0, 16.0 * (height - 50), 0, 16.0 * (height - 50)], device="cuda")
    assert pool(tall, boxes + shift).equal(pool(x[:1], boxes))
