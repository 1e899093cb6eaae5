"""The Triton kernels as a CUDA device runs them."""

import pytest
import torch

from fastvision import ops, reference
from fastvision.testing import cases
from fastvision.testing.marks import LAYOUTS
from fastvision.testing.numerics import DTYPES, assert_matches
from fastvision.testing.roi_align import UNUSABLE_ROIS, USABLE

pytestmark = pytest.mark.gpu


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size, sampling_ratio", [(7, 2), (14, 0)])
def test_roi_align(dtype, channels_last, size, sampling_ratio):
    maps, scales = cases.pyramid(2, 64, dtype=dtype, channels_last=channels_last)
    rois = cases.rois(200, 2, max_size=600).cuda()
    maps = [x.cuda().requires_grad_() for x in maps]
    exact = [x.detach().double().requires_grad_() for x in maps]
    args = (size, scales, sampling_ratio, True)
    output = ops.multiscale_roi_align(maps, rois, *args, backend="triton")
    expected = ops.multiscale_roi_align(exact, rois.double(), *args, backend="reference")
    # boxes of hundreds of pixels: positions in float32 are off by some 1e-5 of a pixel
    assert_matches(output, expected, scale=10)

    grad = torch.randn_like(output)
    output.backward(grad, retain_graph=True)
    expected.backward(grad.double())
    for x, y in zip(maps, exact, strict=True):
        assert_matches(x.grad, y.grad, scale=32)
    again = torch.autograd.grad(output, maps, grad)
    assert all(torch.equal(x.grad, y) for x, y in zip(maps, again, strict=True))


def test_roi_align_bad_rois_give_zeros():
    x = cases.feature_map(2, 8, 32, 32).cuda()
    output = ops.roi_align(x, UNUSABLE_ROIS.cuda(), 3, backend="triton")
    assert output.shape == (len(UNUSABLE_ROIS), 8, 3, 3)
    assert output.flatten(1).any(1).cpu().equal(USABLE)


def test_roi_align_beyond_32_bit_offsets():
    x = torch.zeros(1, 1, 32, 2**26 + 8, dtype=torch.float16, device="cuda")
    x[..., -8:] = 1
    # one sample at the first of them in the last row, element 2**31 + 248
    rois = torch.tensor([[0, 2.0**26, 30, 2**26, 32]], device="cuda")
    assert ops.roi_align(x, rois, 1, 1.0, 1, backend="triton").item() == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_classes", [None, 3, 80])
@pytest.mark.parametrize("make", [cases.uniform_boxes, cases.clustered_boxes])
def test_nms(make, num_classes, dtype):
    boxes, scores = make(3000).to(dtype), cases.scores(3000).to(dtype)
    idxs = None if num_classes is None else cases.classes(3000, num_classes)
    expected = reference.nms(boxes, scores, idxs, 0.5)  # on the CPU, where a step costs less
    boxes, scores = boxes.cuda(), scores.cuda()
    if idxs is None:
        kept = ops.nms(boxes, scores, 0.5, backend="triton")
    else:
        kept = ops.batched_nms(boxes, scores, idxs.cuda(), 0.5, backend="triton")
    assert kept.tolist() == expected.tolist()


def test_nms_memory_is_linear():
    boxes, scores = cases.uniform_boxes(100_000).cuda(), cases.scores(100_000).cuda()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ops.nms(boxes, scores, 0.5, backend="triton")
    # a bit for each pair would take 1250 MB
    assert torch.cuda.max_memory_allocated() - before < 64 * 2**20


@pytest.mark.parametrize("num_classes", [None, 5])
def test_nms_padded_in_a_graph(num_classes):
    def inputs(seed):
        boxes = torch.stack([cases.clustered_boxes(1500, seed=seed + i) for i in range(3)])
        scores = torch.stack([cases.scores(1500, seed=seed + i) for i in range(3)])
        idxs = cases.classes(4500, num_classes or 1, seed=seed).view(3, 1500)
        return boxes, scores, idxs

    boxes, scores, idxs = (x.cuda() for x in inputs(0))

    def run():
        return ops.batched_nms_padded(
            boxes,
            scores,
            None if num_classes is None else idxs,
            0.5,
            score_threshold=0.2,
            max_output=200,
            backend="triton",
        )

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()  # compiles
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        indices, counts = run()

    for seed in (0, 10):
        host = inputs(seed)
        for device_tensor, host_tensor in zip((boxes, scores, idxs), host, strict=True):
            device_tensor.copy_(host_tensor)
        graph.replay()
        expected = reference.nms_padded(
            host[0], host[1], None if num_classes is None else host[2], 0.5, 0.2, 200
        )
        assert torch.equal(indices.cpu(), expected[0])
        assert torch.equal(counts.cpu(), expected[1])


def test_nms_padded_does_not_wait_for_the_device():
    boxes, scores = cases.clustered_boxes(700).cuda()[None], cases.scores(700).cuda()[None]
    idxs = cases.classes(700, 4).cuda()[None]
    options = {"score_threshold": 0.1, "max_output": 50, "backend": "triton"}
    ops.batched_nms_padded(boxes, scores, idxs, 0.5, **options)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.batched_nms_padded(boxes, scores, idxs, 0.5, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
