"""The helpers of torchvision.ops that other code imports, under the same module paths."""

from __future__ import annotations

import importlib
import inspect
from types import FunctionType

import pytest
import torch
from torch import nn

from fastvision.ops import _utils, poolers
from fastvision.testing import cases

pytest.importorskip("torchvision.ops")
from torchvision.ops import _utils as their_utils  # noqa: E402
from torchvision.ops import poolers as their_poolers  # noqa: E402

MODULES = ["ps_roi_align", "ps_roi_pool", "roi_align", "roi_pool"]
BOXES = [cases.uniform_boxes(20, seed=i, max_size=700) for i in range(3)]


@pytest.mark.parametrize("name", MODULES)
def test_a_function_and_a_module_share_a_name(name):
    for package in ("fastvision.ops", "torchvision.ops"):
        function = getattr(importlib.import_module(package), name)
        module = importlib.import_module(f"{package}.{name}")
        assert isinstance(function, FunctionType) and inspect.ismodule(module)
        assert getattr(module, name) is function


@pytest.mark.parametrize("name", MODULES)
def test_signatures(name):
    ours, theirs = (
        getattr(importlib.import_module(f"{package}.ops"), name)
        for package in ("fastvision", "torchvision")
    )
    found = [
        (p.name, p.default, p.kind)
        for p in inspect.signature(ours).parameters.values()
        if p.kind is not p.KEYWORD_ONLY
    ]
    expected = [(p.name, p.default, p.kind) for p in inspect.signature(theirs).parameters.values()]
    assert found == expected


@pytest.mark.parametrize(
    ("ours", "theirs", "names"),
    [
        (_utils, their_utils, ["_cat", "convert_boxes_to_roi_format", "check_roi_boxes_shape",
         "split_normalization_params", "_upcast", "_upcast_non_float", "_loss_inter_union"]),
        (poolers, their_poolers, ["MultiScaleRoIAlign", "LevelMapper", "initLevelMapper",
         "_setup_scales", "_filter_input", "_multiscale_roi_align", "_infer_scale"]),
    ],
)  # fmt: skip
def test_parameters_of_helpers(ours, theirs, names):
    for name in names:
        found, expected = (
            [(p.name, p.default) for p in inspect.signature(getattr(m, name)).parameters.values()]
            for m in (ours, theirs)
        )
        if name == "MultiScaleRoIAlign":
            expected = [*expected, ("pool_mode", "avg")]
        assert found == expected


def test_boxes():
    assert _utils._cat(BOXES[:1]) is BOXES[0]
    assert torch.equal(_utils._cat(BOXES), torch.cat(BOXES))
    for boxes in (BOXES, BOXES[:1], [BOXES[0], BOXES[1][:0], BOXES[2]]):
        expected = their_utils.convert_boxes_to_roi_format(boxes)
        assert torch.equal(_utils.convert_boxes_to_roi_format(boxes), expected)
    for utils in (_utils, their_utils):
        utils.check_roi_boxes_shape(BOXES)
        utils.check_roi_boxes_shape(torch.zeros(3, 5))
        for wrong in ([torch.zeros(3, 5)], torch.zeros(3, 4), 3):
            with pytest.raises(AssertionError):
                utils.check_roi_boxes_shape(wrong)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int16, torch.int64]
)
def test_upcast(dtype):
    x = torch.ones(2, dtype=dtype)
    assert _utils._upcast(x).dtype == their_utils._upcast(x).dtype
    assert _utils._upcast_non_float(x).dtype == their_utils._upcast_non_float(x).dtype


def test_intersection_and_union():
    one, other = BOXES[0].clone().requires_grad_(), BOXES[1].clone().requires_grad_()
    one.data[:5] = other.data[:5]
    ours, theirs = _utils._loss_inter_union(one, other), their_utils._loss_inter_union(one, other)
    for actual, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, expected)
        for box in (one, other):
            (grad,) = torch.autograd.grad(actual.sum(), box, retain_graph=True)
            (wanted,) = torch.autograd.grad(expected.sum(), box, retain_graph=True)
            torch.testing.assert_close(grad[5:], wanted[5:])  # the others touch: a corner


def test_split_normalization_params():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))
    )
    model.register_parameter("own", nn.Parameter(torch.ones(1)))
    model[0].weight.requires_grad_(False)
    for classes in (None, [nn.LayerNorm]):
        ours = _utils.split_normalization_params(model, classes)
        theirs = their_utils.split_normalization_params(model, classes)
        assert [[id(p) for p in kind] for kind in ours] == [
            [id(p) for p in kind] for kind in theirs
        ]
    with pytest.raises(ValueError, match=r"norm_classes.*int"):
        _utils.split_normalization_params(model, [int])


def pyramid(heights):
    return {str(h): cases.feature_map(3, 4, h, 2 * h, seed=h) for h in heights}


@pytest.mark.parametrize("heights", [(64, 32, 16), (64,), (64, 16), (50, 25, 13)])
def test_pyramids(heights):
    """Also with a level missing, whose boxes pool zeros."""
    maps, sizes = pyramid(heights), [(256, 400), (250, 512), (200, 300)]
    features = poolers._filter_input(maps | {"other": maps[str(heights[0])]}, list(maps))
    assert all(a is b for a, b in zip(features, maps.values(), strict=True))
    assert [poolers._infer_scale(f, [256, 512]) for f in features] == [
        their_poolers._infer_scale(f, [256, 512]) for f in features
    ]
    scales, mapper = poolers._setup_scales(features, sizes, 224, 4)
    their_scales, their_mapper = their_poolers._setup_scales(features, sizes, 224, 4)
    assert scales == their_scales and vars(mapper) == vars(their_mapper)
    assert torch.equal(mapper(BOXES), their_mapper(BOXES))
    expected = their_poolers._multiscale_roi_align(features, BOXES, (3, 2), 2, scales, their_mapper)
    for each in (mapper, their_mapper):  # one launch, or one per level
        pooled = poolers._multiscale_roi_align(features, BOXES, (3, 2), 2, scales, each)
        torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-5)


def test_what_pyramids_refuse():
    features = list(pyramid((64, 32)).values())
    with pytest.raises(ValueError, match="image_shapes"):
        poolers._setup_scales(features, [], 224, 4)
    for scales, mapper in ((None, poolers.initLevelMapper(2, 3)), ([0.25, 0.125], None)):
        with pytest.raises(ValueError, match="scales and mapper"):
            poolers._multiscale_roi_align(features, BOXES, (2, 2), 2, scales, mapper)
