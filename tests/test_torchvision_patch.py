"""enable(): unchanged torchvision code gets the same answers, from fastvision's kernels."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastvision
from fastvision import _extension, torchvision_patch
from fastvision.testing import cases
from fastvision.testing.numerics import assert_matches

torchvision = pytest.importorskip("torchvision")
from torchvision import ops  # noqa: E402
from torchvision.models import detection  # noqa: E402
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone  # noqa: E402
from torchvision.ops import batched_nms as bound_before  # noqa: E402

# torchvision's and torch's own
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:RCNN always returns:UserWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
]
needs_kernels = pytest.mark.skipif(
    _extension.missing is not None, reason=f"needs the CPU kernels: {_extension.missing}"
)
OURS = {"fastvision::nms", "fastvision::roi_align", "fastvision::roi_align_backward"}

BOXES, SCORES, CLASSES = cases.clustered_boxes(300), cases.scores(300), cases.classes(300, 5)
FEATURES = cases.feature_map(2, 6, 20, 30)
ROIS = cases.rois(12, 2, height=80, width=120, max_size=60)


@pytest.fixture(autouse=True)
def stock_again() -> Iterator[None]:
    assert not torchvision_patch._devices
    yield
    fastvision.disable()
    assert not torchvision_patch._devices


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The models here are too small to share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def on(stock_again: None) -> Iterator[None]:
    with fastvision.enabled():
        yield


def stock(function: Callable, *args):
    """The answer of torchvision's own kernels, inside the fixture ``on`` too."""
    state = torchvision_patch._on, torchvision_patch._blocks
    torchvision_patch._switch(False, 0)
    try:
        return function(*args)
    finally:
        torchvision_patch._switch(*state)


def our_ops(function: Callable, *args) -> set[str]:
    """Which of our ops a call runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function(*args)
    return {event.name for event in profile.events()} & OURS


def pool(features: Tensor, rois: Tensor) -> Tensor:
    return ops.roi_align(features, rois, 5, 0.25, 2)


def pool_with_gradient(features: Tensor, rois: Tensor, pool: Callable = pool) -> tuple:
    features = features.detach().clone().requires_grad_()
    pooled = pool(features, rois)
    pooled.square().sum().backward()
    return pooled.detach(), features.grad


# --- the operators


@needs_kernels
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
def test_nms(on, threshold):
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
def test_half_precision_on_cpu(on, dtype):
    boxes, scores = BOXES.to(dtype), SCORES.to(dtype)
    with pytest.raises(RuntimeError):
        stock(ops.nms, boxes, scores, 0.5)
    expected = stock(ops.nms, boxes.float(), scores.float(), 0.5)
    assert torch.equal(ops.nms(boxes, scores, 0.5), expected)
    pooled, grad = pool_with_gradient(FEATURES.to(dtype), ROIS)
    assert pooled.dtype == grad.dtype == dtype
    assert_matches(pooled, stock(pool, FEATURES.to(dtype).float(), ROIS))


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted", "sliced"])
def test_roi_align(on, dtype, layout):
    features, rois = FEATURES.to(dtype), ROIS.to(dtype)
    if layout == "channels_last":
        features = features.contiguous(memory_format=torch.channels_last)
    elif layout == "permuted":
        features = features.permute(0, 1, 3, 2)
    elif layout == "sliced":
        rois = rois.repeat(2, 2)[::2, :5]
        features = features.repeat(1, 2, 1, 1)[:, ::2]
    expected, expected_grad = stock(pool_with_gradient, features, rois)
    pooled, grad = pool_with_gradient(features, rois)
    assert_matches(pooled, expected)
    assert_matches(grad, expected_grad, scale=10)
    assert pooled.stride() == expected.stride()  # callers view() it
    assert our_ops(pool_with_gradient, features, rois) == OURS - {"fastvision::nms"}


@needs_kernels
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [-1, 2])
def test_roi_align_options(on, aligned, sampling_ratio):
    boxes = [ROIS[ROIS[:, 0] == image, 1:] for image in (0, 1)]
    module = ops.RoIAlign((3, 4), 0.2, sampling_ratio, aligned)
    assert_matches(module(FEATURES, boxes), stock(module, FEATURES, boxes))
    empty = [boxes[0][:0], boxes[1][:0]]
    assert module(FEATURES, empty).shape == (0, 6, 3, 4)
    pooled, grad = pool_with_gradient(FEATURES, ROIS[:0])
    assert pooled.shape == (0, 6, 5, 5) and not grad.any()


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
def test_graph_recorded_before():
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


def test_quantized_stays_with_torchvision(on):
    boxes = torch.quantize_per_tensor(BOXES.clamp(0, 250), 1.0, 0, torch.quint8)
    scores = torch.quantize_per_tensor(SCORES, 1 / 255, 0, torch.quint8)
    expected = stock(ops.nms, boxes, scores, 0.5)
    assert torch.equal(ops.nms(boxes, scores, 0.5), expected)
    features = torch.quantize_per_tensor(FEATURES[:1], 0.1, 0, torch.qint8)
    rois = torch.quantize_per_tensor(ROIS * 0.5 * torch.tensor([0, 1, 1, 1, 1]), 1, 0, torch.qint8)
    assert ops.roi_align(features, rois, 5, 0.25, 2).is_quantized


# --- around the operators


@needs_kernels
@pytest.mark.parametrize("count", [0, 1, 300, 1500])  # torchvision loops over classes from 1001 on
def test_batched_nms(on, count):
    boxes, scores = cases.clustered_boxes(count), cases.scores(count)
    classes = cases.classes(count, 5)
    expected = stock(ops.batched_nms, boxes, scores, classes, 0.5)
    assert torch.equal(ops.batched_nms(boxes, scores, classes, 0.5), expected)
    assert torch.equal(ops.boxes._batched_nms_vanilla(boxes, scores, classes, 0.5), expected)
    assert torch.equal(bound_before(boxes, scores, classes.float(), 0.5), expected)
    if count:
        assert our_ops(bound_before, boxes, scores, classes, 0.5) == {"fastvision::nms"}


@needs_kernels
def test_batched_nms_is_exact_per_class(on):
    """Where torchvision's offset by the largest coordinate mixes the classes."""
    boxes = torch.tensor([[-20.0, 0, -10, 10], [-9, 11, 1, 21], [-20, 0, -10, 10]])
    scores, classes = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 0, 2])
    assert ops.batched_nms(boxes, scores, classes, 0.5).tolist() == [0, 1, 2]
    boxes[1, 2] = float("inf")
    assert ops.batched_nms(boxes, scores, torch.tensor([1, 0, 1]), 0.5).tolist() == [0, 1]
    assert ops.batched_nms(torch.empty(0, 4), None, None, None).dtype == torch.int64


def multiscale(levels: int = 3, dtype: torch.dtype = torch.float32, **layout):
    """A MultiScaleRoIAlign and its arguments."""
    maps, _ = cases.pyramid(2, 4, height=128, width=160, levels=levels, dtype=dtype, **layout)
    features = {str(level): feature for level, feature in enumerate(maps)}
    rois = cases.rois(20, 2, height=128, width=160, max_size=150)
    boxes = [rois[rois[:, 0] == image, 1:] for image in (0, 1)]
    module = ops.MultiScaleRoIAlign(list(features), 5, 2, canonical_scale=60, canonical_level=3)
    return module, features, boxes, [(128, 160), (120, 150)]


@needs_kernels
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_multiscale_roi_align(on, levels, channels_last):
    module, features, boxes, sizes = multiscale(levels, channels_last=channels_last)
    for feature in features.values():
        feature.requires_grad_()

    def run():
        pooled = module(features, boxes, sizes)
        return pooled, *torch.autograd.grad(pooled.square().sum(), list(features.values()))

    expected, results = stock(run), run()
    for result, wanted in zip(results, expected, strict=True):
        assert_matches(result, wanted, scale=10)
    assert results[0].stride() == expected[0].stride()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    assert sum(e.name == "fastvision::roi_align" for e in profile.events()) == 1  # for all levels


@needs_kernels
def test_multiscale_roi_align_keeps_torchvisions_choices(on):
    module, features, boxes, sizes = multiscale(3)
    del features["1"]  # a gap: boxes of the missing level fall through
    assert_matches(module(features, boxes, sizes), stock(module, features, boxes, sizes))
    module, features, boxes, sizes = multiscale(3)
    first = module(features, boxes, sizes)
    assert torch.equal(module(features, boxes, [(64, 64)]), first)  # the first call's scales stay
    more_images = {name: torch.cat([f, f]) for name, f in features.items()}
    assert torch.equal(module(more_images, boxes, sizes), first)
    with pytest.raises(ValueError, match="empty"):
        multiscale(3)[0](features, boxes, [])


@needs_kernels
def test_deterministic_mode_takes_the_kernels(monkeypatch):
    monkeypatch.setattr(torchvision_patch, "_has_kernels", lambda device: True)
    module = sys.modules["torchvision.ops.roi_align"]
    assert module.is_compile_supported("cpu")
    with fastvision.enabled():
        assert not module.is_compile_supported("cpu") and not module.is_compile_supported("cuda")


# --- every way to call them


def pool_in_script(features: Tensor, rois: Tensor) -> Tensor:
    return torchvision.ops.roi_align(features, rois, [5, 5], 0.25, 2)


def nms_in_script(boxes: Tensor, scores: Tensor, classes: Tensor) -> Tensor:
    return torchvision.ops.batched_nms(boxes, scores, classes, 0.5)


@needs_kernels
@pytest.mark.parametrize("when", ["before", "after"])
def test_torchscript(when):
    if when == "before":
        scripted_pool, scripted_nms = map(torch.jit.script, (pool_in_script, nms_in_script))
    expected_kept = ops.batched_nms(BOXES, SCORES, CLASSES, 0.5)
    expected = pool_with_gradient(FEATURES, ROIS)
    with fastvision.enabled():
        if when == "after":
            scripted_pool, scripted_nms = map(torch.jit.script, (pool_in_script, nms_in_script))
        assert torch.equal(scripted_nms(BOXES, SCORES, CLASSES), expected_kept)
        result = pool_with_gradient(FEATURES, ROIS, scripted_pool)
        assert our_ops(scripted_nms, BOXES, SCORES, CLASSES) == {"fastvision::nms"}
        assert our_ops(scripted_pool, FEATURES, ROIS) == {"fastvision::roi_align"}
    assert_matches(result[0], expected[0])
    assert_matches(result[1], expected[1], scale=10)
    assert our_ops(scripted_pool, FEATURES, ROIS) == set()


@needs_kernels
def test_traces_and_exports_hold_torchvisions_operators(on):
    class Pools(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool, *_ = multiscale(2)

        def forward(self, fine, coarse, boxes, scores, classes):
            kept = ops.batched_nms(boxes, scores, classes, 0.5)
            return self.pool({"0": fine, "1": coarse}, [boxes[kept]], [(128, 160)])

    module, (_, features, _, _) = Pools(), multiscale(2)
    arguments = (features["0"][:1], features["1"][:1], BOXES.clamp(0, 100), SCORES, CLASSES)
    expected = module(*arguments)
    traced = torch.jit.trace(module, arguments)
    assert "fastvision" not in str(traced.inlined_graph)
    assert_matches(traced(*arguments), expected)
    exported = torch.export.export(BatchedNms(), (BOXES, SCORES, CLASSES))
    assert "torchvision.nms" in exported.graph_module.code
    assert "fastvision" not in exported.graph_module.code


class BatchedNms(nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor, classes: Tensor) -> Tensor:
        return ops.batched_nms(boxes, scores, classes, 0.5)


@needs_kernels
def test_autocast(on):
    """Features stay bfloat16 down to the kernel, with the result of torchvision in float32."""
    features = FEATURES.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        expected, expected_grad = stock(pool_with_gradient, features, ROIS)
        pooled, grad = pool_with_gradient(features, ROIS)
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


@needs_kernels
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_roi_align(on, backend):
    torch._dynamo.reset()
    compiled = torch.compile(pool, fullgraph=True, backend=backend)
    expected = pool_with_gradient(FEATURES, ROIS)
    for result, wanted in zip(pool_with_gradient(FEATURES, ROIS, compiled), expected, strict=True):
        assert torch.equal(result, wanted)
    # the gradient is contiguous in the program, as torchvision's, so sums are rounded differently
    features = FEATURES.contiguous(memory_format=torch.channels_last)
    for result, wanted in zip(pool_with_gradient(features, ROIS, compiled), expected, strict=True):
        assert_matches(result, wanted, scale=10)
    if backend == "inductor":
        return
    with torch.autocast("cpu", torch.bfloat16):
        pooled, grad = pool_with_gradient(FEATURES.bfloat16(), ROIS[:5], compiled)
    assert pooled.dtype == grad.dtype == torch.bfloat16
    with torch.inference_mode():
        assert torch.equal(compiled(FEATURES, ROIS), pool(FEATURES, ROIS))


@needs_kernels
@pytest.mark.parametrize("count", [0, 1, 300])
def test_compile_nms(on, count):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda boxes, scores: ops.nms(boxes, scores, 0.5) * 2, fullgraph=True, backend="aot_eager"
    )
    result = compiled(BOXES[:count], SCORES[:count])
    assert torch.equal(result, ops.nms(BOXES[:count], SCORES[:count], 0.5) * 2)
    many = count * 5  # torchvision cannot compile its loop over classes
    boxes, scores, classes = cases.clustered_boxes(many), cases.scores(many), cases.classes(many, 5)
    compiled = torch.compile(ops.batched_nms, fullgraph=True, backend="aot_eager")
    result = compiled(boxes, scores, classes, 0.5)
    assert torch.equal(result, ops.batched_nms(boxes, scores, classes, 0.5))


@needs_kernels
def test_compile_multiscale_roi_align(on):
    torch._dynamo.reset()
    module, *arguments = multiscale(3)
    expected = module(*arguments)  # the first call sets the scales
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), expected)


@needs_kernels
def test_compiled_before_runs_after():
    torch._dynamo.reset()
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    features = FEATURES.contiguous(memory_format=torch.channels_last)
    expected = pool_with_gradient(features, ROIS, compiled)
    with fastvision.enabled():
        results = pool_with_gradient(features, ROIS, compiled)
    for result, wanted in zip(results, expected, strict=True):
        assert_matches(result, wanted, scale=10)


# --- whole models

SIZES = {"min_size": 96, "max_size": 128}
IMAGES = [cases.feature_map(3, 80, 90), cases.feature_map(3, 96, 72)]
CORNER = torch.tensor([[5.0, 5, 40, 50], [20, 10, 60, 70], [30, 30, 70, 60]])
TARGETS = [
    {"boxes": CORNER, "labels": torch.tensor([1, 2, 3]), "masks": torch.ones(3, 80, 90)},
    {"boxes": CORNER[1:], "labels": torch.tensor([3, 1]), "masks": torch.ones(2, 96, 72)},
]


def detector(name: str) -> nn.Module:
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    if name == "faster_rcnn":
        return detection.FasterRCNN(backbone, 4, box_score_thresh=0, **SIZES)
    if name == "mask_rcnn":
        few = {"rpn_post_nms_top_n_train": 30, "box_batch_size_per_image": 16}
        few |= {"box_detections_per_img": 5}
        return detection.MaskRCNN(backbone, 4, box_score_thresh=0, **few, **SIZES)
    if name == "retinanet":
        model = detection.RetinaNet(backbone, 4, score_thresh=0, topk_candidates=100, **SIZES)
    else:
        backbone.out_channels = [256] * 5
        anchors = detection.anchor_utils.DefaultBoxGenerator([[2]] * 5)
        model = detection.ssd.SSD(
            backbone, anchors, (96, 96), 4, score_thresh=0, topk_candidates=100
        )
    for parameter in model.head.parameters():
        if parameter.dim() > 1:  # as initialised, all boxes get one score, and the order is chance
            nn.init.normal_(parameter, std=0.03)
    return model


@needs_kernels
@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn", "retinanet", "ssd"])
def test_detector(name):
    model = detector(name).eval()
    results = []
    with torch.no_grad():
        expected = model(IMAGES)
        with fastvision.enabled():
            ran = our_ops(lambda: results.extend(model(IMAGES)))
    assert ("fastvision::roi_align" in ran) == ("rcnn" in name) and "fastvision::nms" in ran
    assert all(len(result["boxes"]) >= 5 for result in expected)
    torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-4)


@needs_kernels
def test_detector_in_training():
    model = detector("mask_rcnn").eval()  # batch norm's statistics must not move between the runs
    model.training = model.rpn.training = model.roi_heads.training = True

    def train() -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)  # of the sampling of proposals
        model.zero_grad()
        losses = torch.stack(list(model(IMAGES, TARGETS).values()))
        losses.sum().backward()
        return losses.detach(), model.backbone.body.layer3[0].conv1.weight.grad.clone()

    expected_losses, expected_grad = train()
    with fastvision.enabled():
        assert our_ops(train) == OURS
        losses, grad = train()
    torch.testing.assert_close(losses, expected_losses, rtol=1e-4, atol=1e-4)
    assert (grad - expected_grad).norm() < 1e-3 * expected_grad.norm()


@needs_kernels
def test_detector_in_torchscript():
    model = detector("faster_rcnn").eval()
    with torch.no_grad():
        expected = model(IMAGES)
        with fastvision.enabled():
            scripted = torch.jit.script(model)
            results = []
            ran = our_ops(lambda: results.extend(scripted(IMAGES)[1]))
    assert ran == {"fastvision::nms", "fastvision::roi_align"}
    torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-4)


# --- on and off


def all_calls() -> None:
    ops.nms(BOXES, SCORES, 0.5)
    ops.batched_nms(BOXES, SCORES, CLASSES, 0.5)
    pool_with_gradient(FEATURES, ROIS)
    module, *arguments = multiscale(2)
    module(*arguments)


def names() -> list[object]:
    modules = ("boxes", "poolers", "roi_align")
    return [dict(vars(sys.modules[f"torchvision.ops.{module}"])) for module in modules]


@needs_kernels
def test_reversible():
    before = names()
    expected = stock(pool_with_gradient, FEATURES, ROIS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastvision.enable()
        fastvision.enable()
        with fastvision.enabled(), fastvision.enabled():
            assert our_ops(all_calls) == OURS
    assert our_ops(all_calls) == OURS  # enable() outlives the blocks
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    assert our_ops(pool_with_gradient, FEATURES, ROIS, compiled) == OURS - {"fastvision::nms"}
    assert names() != before
    fastvision.disable()
    assert our_ops(all_calls) == set()
    assert names() == before
    with pytest.raises(RuntimeError):  # stock again: no bfloat16 on the CPU
        ops.nms(BOXES.bfloat16(), SCORES.bfloat16(), 0.5)
    assert torch.equal(pool_with_gradient(FEATURES, ROIS)[1], expected[1])
    torch._dynamo.reset()
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    results = pool_with_gradient(FEATURES, ROIS, compiled)
    assert results[1] is not None and torch.equal(results[1], expected[1])
    with fastvision.enabled():
        with fastvision.enabled():
            fastvision.disable()  # the blocks decide
        assert our_ops(all_calls) == OURS
    assert our_ops(all_calls) == set()


@needs_kernels
def test_leaves_what_others_have_replaced():
    def other(*args):
        return torch.zeros(0)

    stock_function = ops.poolers._multiscale_roi_align
    try:
        with fastvision.enabled():
            ops.poolers._multiscale_roi_align = other
        assert ops.poolers._multiscale_roi_align is other
    finally:
        ops.poolers._multiscale_roi_align = stock_function


@needs_kernels
def test_threads():
    expected = ops.nms(BOXES, SCORES, 0.5)
    wrong = []

    def work() -> None:
        for _ in range(20):
            with fastvision.enabled():
                if not torch.equal(ops.nms(BOXES, SCORES, 0.5), expected):
                    wrong.append(1)
                if not torchvision_patch._devices:  # another thread's block must not end ours
                    wrong.append(2)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_without_kernels(monkeypatch):
    monkeypatch.setattr(torchvision_patch, "_has_kernels", lambda device: False)
    with pytest.warns(UserWarning, match="changes nothing"), fastvision.enabled():
        assert our_ops(all_calls) == set()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("deterministic", [False, True])
def test_cuda(deterministic):
    boxes, scores, classes = BOXES.cuda(), SCORES.cuda(), CLASSES.cuda()
    features, rois = FEATURES.cuda(), ROIS.cuda()
    expected = (
        ops.batched_nms(boxes, scores, classes, 0.5),
        *pool_with_gradient(features, rois),
    )
    torch.use_deterministic_algorithms(deterministic, warn_only=False)
    try:
        with fastvision.enabled():
            kept = ops.batched_nms(boxes, scores, classes, 0.5)
            pooled, grad = pool_with_gradient(features, rois)
            with torch.autocast("cuda", torch.bfloat16):
                low, _ = pool_with_gradient(features.bfloat16(), rois)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(kept, expected[0])
    assert_matches(pooled, expected[1])
    assert_matches(grad, expected[2], scale=10)
    assert_matches(low, expected[1])


# --- a torchvision whose compiled library is missing or does not fit


def run_python(code: str, *path: Path | str, python: str = sys.executable) -> str:
    root = Path(fastvision.__file__).resolve().parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (*path, root)))
    done = subprocess.run(
        [python, "-W", "error::UserWarning", "-c", textwrap.dedent(code)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr  # negative where the process was ended by a signal
    return done.stdout


USE_WITHOUT_LIBRARY = """
    import fastvision, torch
    if {failed_import}:
        try:
            import torchvision
        except RuntimeError as error:
            assert "does not exist" in str(error)
        else:
            raise AssertionError("this torchvision is complete")
    fastvision.enable()
    import torchvision
    from torchvision.models import detection

    assert not torchvision.extension._has_ops()
    torch.manual_seed(0)
    backbone = detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, trainable_layers=5)
    model = detection.MaskRCNN(
        backbone, 4, min_size=64, max_size=64, box_score_thresh=0, rpn_post_nms_top_n_test=20,
        rpn_pre_nms_top_n_test=50, box_detections_per_img=5).eval()
    with torch.no_grad():
        (result,) = model([torch.rand(3, 64, 64)])
    assert result["masks"].shape == (5, 1, 64, 64), result["masks"].shape

    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3.9], [5, 5, 6, 6]])
    scores = torch.tensor([0.5, 0.7, 0.6])
    assert torchvision.ops.nms(boxes, scores, 0.5).tolist() == [1, 2]
    with torch.autocast("cpu", torch.bfloat16):
        assert torchvision.ops.nms(boxes, scores.bfloat16(), 0.5).tolist() == [1, 2]
    if {compile}:
        compiled = torch.compile(
            lambda b, s: torchvision.ops.nms(b, s, 0.5), fullgraph=True, backend="aot_eager")
        assert compiled(boxes[:1], scores[:1]).tolist() == [0]
    features = torch.rand(1, 2, 8, 8, requires_grad=True)
    torchvision.ops.roi_align(features, [boxes], 2).sum().backward()
    torch.testing.assert_close(features.grad.sum(), torch.tensor(24.0))
    for call in (
        lambda: torchvision.ops.roi_pool(features, [boxes], 2),
        lambda: fastvision.disable() or torchvision.ops.nms(boxes, scores, 0.5),
    ):
        try:
            call()
        except RuntimeError as error:
            assert "Couldn't load custom C++ ops" in str(error), error
        else:
            raise AssertionError("torchvision has no such kernel")
"""


@pytest.mark.parametrize("failed_import", [False, True])
def test_missing_library(tmp_path, failed_import):
    installed = Path(torchvision.__file__).parent
    (tmp_path / "torchvision").mkdir()
    for entry in installed.iterdir():
        if entry.suffix != ".so":
            (tmp_path / "torchvision" / entry.name).symlink_to(entry)
    code = USE_WITHOUT_LIBRARY.format(failed_import=failed_import, compile=False)
    run_python(code, tmp_path)


@pytest.mark.skipif(
    "FASTVISION_MISMATCHED_PYTHON" not in os.environ,
    reason="FASTVISION_MISMATCHED_PYTHON names no interpreter whose torchvision does not fit torch",
)
@pytest.mark.parametrize("failed_import", [False, True])
def test_mismatched_library(failed_import):
    python = os.environ["FASTVISION_MISMATCHED_PYTHON"]
    code = USE_WITHOUT_LIBRARY.format(failed_import=failed_import, compile=True)
    run_python(code, python=python)


@needs_kernels
def test_enable_before_import():
    run_python(
        """
        import sys, fastvision
        assert "torchvision" not in sys.modules
        fastvision.enable()
        import torch, torchvision
        boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3.9]])
        assert torchvision.extension._has_ops()
        assert torchvision.ops.nms(boxes.bfloat16(), torch.rand(2).bfloat16(), 0.5).shape == (1,)
        """
    )
