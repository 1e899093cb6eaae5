"""What only a GPU can show of the CUDA NMS kernels: graphs, streams, memory, repeatability."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastvision.ops as ops
from fastvision import _device, reference
from fastvision.testing import cases
from fastvision.testing.nms import chain_boxes
from fastvision.testing.numerics import DTYPES

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _cuda_kernels() -> None:
    if (reason := _device.cuda_kernels_missing(0)) is not None:
        pytest.skip(reason)


def batch(images: int, count: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    boxes = cases.clustered_boxes(images * count, seed=seed, objects=max(1, count // 10))
    scores = cases.scores(images * count, seed=seed + 1)
    idxs = cases.classes(images * count, classes, seed=seed + 2)
    return (
        boxes.view(images, count, 4).cuda(),
        scores.view(images, count).cuda(),
        idxs.view(images, count).cuda(),
    )


@pytest.mark.parametrize("count", [1, 63, 64, 65, 1000, 4095, 4096, 4097, 9000])
@pytest.mark.parametrize("classes", [None, 3, 80])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_the_compiled_cpu_kernel(
    count: int, classes: int | None, dtype: torch.dtype
) -> None:
    boxes, scores, idxs = (t[0] for t in batch(1, count, classes or 1))
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    idxs = None if classes is None else idxs
    actual = torch.ops.fastvision.nms(boxes, scores, idxs, 0.5)
    host = None if idxs is None else idxs.cpu()
    expected = torch.ops.fastvision.nms(boxes.cpu(), scores.cpu(), host, 0.5)
    assert actual.cpu().equal(expected)


def test_matches_the_reference() -> None:
    boxes, scores, idxs = batch(3, 700, 5)
    actual = ops.batched_nms_padded(
        boxes, scores, idxs, 0.4, score_threshold=0.2, max_output=200, backend="cuda"
    )
    expected = reference.nms_padded(boxes, scores, idxs, 0.4, 0.2, 200)
    for a, e in zip(actual, expected, strict=True):
        assert a.equal(e)


@pytest.mark.parametrize("classes", [1, 80])
def test_many_boxes_in_bounded_memory(classes: int) -> None:
    boxes, scores, idxs = (t[0] for t in batch(1, 100_000, classes))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    actual = ops.batched_nms(boxes, scores, idxs, 0.5, backend="cuda")
    # a bit for every pair would take 1.25 GB
    assert torch.cuda.max_memory_allocated() - before < 100 * 2**20
    expected = ops.batched_nms(boxes.cpu(), scores.cpu(), idxs.cpu(), 0.5)
    assert actual.cpu().equal(expected)


def test_repeats_exactly() -> None:
    boxes, scores, idxs = batch(4, 5000, 3)
    first = ops.batched_nms_padded(boxes, scores, idxs, 0.5, max_output=5000, backend="cuda")
    for _ in range(10):
        again = ops.batched_nms_padded(boxes, scores, idxs, 0.5, max_output=5000, backend="cuda")
        assert all(a.equal(b) for a, b in zip(first, again, strict=True))


def test_cuda_graph() -> None:
    def run() -> tuple[Tensor, Tensor]:
        return ops.batched_nms_padded(
            boxes, scores, idxs, 0.5, score_threshold=0.1, max_output=300, backend="cuda"
        )

    boxes, scores, idxs = batch(2, 6000, 10)
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for tensor, other in zip((boxes, scores, idxs), batch(2, 6000, 4, seed=9), strict=True):
        tensor.copy_(other)
    graph.replay()
    for a, e in zip(captured, run(), strict=True):
        assert a.equal(e)


def test_padded_does_not_wait_for_the_device() -> None:
    boxes, scores, idxs = batch(2, 2000, 4)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.batched_nms_padded(boxes, scores, idxs, 0.5, max_output=100, backend="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_current_stream_is_used() -> None:
    boxes, scores, _ = (t[0] for t in batch(1, 3000, 1))
    expected = ops.nms(boxes, scores, 0.5, backend="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = torch.zeros_like(boxes)
        torch.cuda._sleep(20_000_000)  # the boxes arrive after the call
        late.copy_(boxes)
        actual = ops.nms(late, scores, 0.5, backend="cuda")
    assert actual.equal(expected)


def test_chain_of_boxes() -> None:
    boxes = chain_boxes(5000).cuda()
    kept = ops.nms(boxes, torch.linspace(1, 0, 5000, device="cuda"), 0.3, backend="cuda")
    assert kept.equal(torch.arange(0, 5000, 2, device="cuda"))
