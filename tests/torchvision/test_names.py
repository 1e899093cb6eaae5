"""torchvision's functions around its operators, which enable() replaces by name."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import sys

import pytest
import torch

import fastvision
from fastvision.integrations.torchvision import devices, switch
from fastvision.testing import cases
from fastvision.testing.detection import BOXES, CLASSES, SCORES
from fastvision.testing.numerics import assert_matches

pytest.importorskip("torchvision.ops")
import torchvision  # noqa: E402
from torchvision import ops  # noqa: E402
from torchvision.ops import batched_nms as bound_before  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("needs_kernels", "one_thread"),
]


@pytest.mark.parametrize("count", [0, 1, 300, 1500])  # torchvision loops over classes from 1001 on
def test_batched_nms(on, count, stock, our_ops):
    boxes, scores = cases.clustered_boxes(count), cases.scores(count)
    classes = cases.classes(count, 5)
    expected = stock(ops.batched_nms, boxes, scores, classes, 0.5)
    assert torch.equal(ops.batched_nms(boxes, scores, classes, 0.5), expected)
    assert torch.equal(ops.boxes._batched_nms_vanilla(boxes, scores, classes, 0.5), expected)
    assert torch.equal(bound_before(boxes, scores, classes.float(), 0.5), expected)
    if count:
        assert our_ops(bound_before, boxes, scores, classes, 0.5) == {"fastvision::nms"}


def test_batched_nms_is_exact_per_class(on):
    """Where torchvision's offset by the largest coordinate mixes the classes."""
    boxes = torch.tensor([[-20.0, 0, -10, 10], [-9, 11, 1, 21], [-20, 0, -10, 10]])
    scores, classes = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 0, 2])
    assert ops.batched_nms(boxes, scores, classes, 0.5).tolist() == [0, 1, 2]
    boxes[1, 2] = float("inf")
    assert ops.batched_nms(boxes, scores, torch.tensor([1, 0, 1]), 0.5).tolist() == [0, 1]
    assert ops.batched_nms(torch.empty(0, 4), None, None, None).dtype == torch.int64


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_multiscale_roi_align(on, levels, channels_last, stock, multiscale):
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


def test_multiscale_roi_align_keeps_torchvisions_choices(on, stock, multiscale):
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


def test_deterministic_mode_takes_the_kernels(monkeypatch):
    monkeypatch.setattr(devices, "has_kernels", lambda device: True)
    module = sys.modules["torchvision.ops.roi_align"]
    assert module.is_compile_supported("cpu")
    with fastvision.enabled():
        assert not module.is_compile_supported("cpu") and not module.is_compile_supported("cuda")


@pytest.mark.filterwarnings("ignore:.*deprecated since:UserWarning")
def test_every_binding_by_name():
    """`from ... import` within torchvision copies a function to other modules."""
    for module in pkgutil.walk_packages(torchvision.__path__, "torchvision."):
        if "._C" not in module.name:
            with contextlib.suppress(ImportError):  # needs a package that is not installed
                importlib.import_module(module.name)
    with fastvision.enabled():
        stock = {id(row.stock): row.name for row in switch._installed.names if "." not in row.name}
        left = [
            f"{module}.{name}"
            for module, found in sys.modules.copy().items()
            if module.partition(".")[0] == "torchvision"
            for name, value in vars(found).items()
            if id(value) in stock
        ]
    assert len(stock) > 10 and left == []


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


def test_torchvisions_names_come_back(our_ops):
    names = {
        (module, name): getattr(sys.modules[module], name)
        for module, name, *_ in [
            ("torchvision.ops.boxes", "_batched_nms_vanilla"),
            ("torchvision.ops.boxes", "_batched_nms_coordinate_trick"),
            ("torchvision.ops.poolers", "_multiscale_roi_align"),
            ("torchvision.ops.roi_align", "is_compile_supported"),
            ("torchvision.ops", "sigmoid_focal_loss"),
        ]
    }
    for _ in range(2):
        with fastvision.enabled():
            meanwhile = {key: getattr(sys.modules[key[0]], key[1]) for key in names}
            assert not any(meanwhile[key] is stock for key, stock in names.items())
        assert all(getattr(sys.modules[key[0]], key[1]) is stock for key, stock in names.items())
    # bound meanwhile
    batched_nms = meanwhile["torchvision.ops.boxes", "_batched_nms_vanilla"]
    assert our_ops(batched_nms, BOXES, SCORES, CLASSES, 0.5) == set()
