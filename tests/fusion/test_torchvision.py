"""torchvision's models and layers, fused."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastvision
from fastvision._memory_format import memory_format
from fastvision.testing.fusion import BN, assert_same, check, conv, image, kinds, net, randomized

pytestmark = pytest.mark.usefixtures("one_thread", "small_weights_are_packed")


def torchvision_model(name: str) -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    options: dict[str, Any] = {"weights": None}
    if name == "googlenet":
        options["init_weights"] = False
    if name.startswith(("fcn", "deeplab", "lraspp")):
        options |= {"weights_backbone": None, "num_classes": 5}
    torch.manual_seed(0)
    return randomized(models.get_model(name, **options))


CLASSIFIERS: dict[str, dict[str, int]] = {
    "resnet18": {f"{BN} + relu": 9, f"{BN} + add + relu": 8, BN: 3, "Linear": 1},
    "mobilenet_v2": {f"{BN} + relu6": 35, f"{BN} + add": 10, BN: 7, "Linear": 1},
    "mobilenet_v3_small": {
        f"{BN} + hardswish": 18,
        "squeeze_excitation": 18,
        "Linear + hardswish": 1,
    },
    "vgg11_bn": {f"{BN} + relu": 8, "Linear + relu": 2, "Linear": 1},
    "googlenet": {f"{BN} + relu": 57, "Linear": 5},
    "densenet121": {f"{BN} + relu": 59, "BatchNorm2d + relu": 62, "Conv2d": 61, "Linear": 1},
    "shufflenet_v2_x1_0": {f"{BN} + relu": 37, BN: 19, "Linear": 1},
    "resnext50_32x4d": {f"{BN} + relu": 33, f"{BN} + add + relu": 16, BN: 4, "Linear": 1},
    "squeezenet1_1": {"Conv2d + relu": 26},
    "efficientnet_b0": {f"{BN} + silu": 33, "squeeze_excitation": 32, "Linear": 1},
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier(name: str) -> None:
    model = torchvision_model(name)
    fused = check(model, image(1, 3, 64, 64))
    assert kinds(fused).items() >= CLASSIFIERS[name].items()
    assert fused.fastvision_report.channels_last
    with torch.no_grad():
        assert_same(fused(image(2, 3, 40, 72)), model(image(2, 3, 40, 72)))


def test_squeeze_excitation() -> None:
    """One op, unless somebody has changed or listens to a part of it."""
    layers = pytest.importorskip("torchvision.ops")

    class Half(layers.SqueezeExcitation):
        def _scale(self, input: Tensor) -> Tensor:
            return super()._scale(input) / 2

    class Twice(layers.SqueezeExcitation):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    def model(gate: nn.Module) -> nn.Module:
        return randomized(nn.Sequential(conv(3, 8), nn.Hardswish(), gate, conv(8, 4)))

    for gate in (layers.SqueezeExcitation(8, 2), fastvision.ops.SqueezeExcitation(8, 2)):
        fused = check(model(gate), image())
        assert kinds(fused)["squeeze_excitation"] == 2
        for program in (
            torch.compile(fused, backend="eager", fullgraph=True),
            torch.export.export(fused, (image(),)).module(),
            torch.jit.trace(fused, image()),
        ):
            with torch.no_grad():
                assert_same(program(image()), fused(image()))
    listened = layers.SqueezeExcitation(8, 2)
    heard: list[Tensor] = []
    listened.fc1.register_forward_hook(lambda *args: heard.append(args[2]))
    others = (Half(8, 2), Twice(8, 2), layers.SqueezeExcitation(8, 2, nn.GELU), listened)
    for gate in others:
        assert "squeeze_excitation" not in kinds(check(model(gate), image()))
    assert heard


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_mobilenet_v3_large"])
def test_segmentation(name: str) -> None:
    check(torchvision_model(name), image(1, 3, 48, 64))


def matched(some: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """The share of detections that have a partner: random weights give them nearly equal scores, so
    that rounding changes their order and who is the last to be kept."""
    same = some["labels"][:, None] == others["labels"]
    same &= (some["boxes"][:, None] - others["boxes"]).abs().amax(-1) <= 0.1
    same &= (some["scores"][:, None] - others["scores"]).abs() <= 1e-4
    return same.any(1).float().mean().item()


@pytest.mark.parametrize(
    "name",
    [
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        "maskrcnn_resnet50_fpn",
        "retinanet_resnet50_fpn",
        "ssdlite320_mobilenet_v3_large",
    ],
)
def test_detection(name: str) -> None:
    detection = pytest.importorskip("torchvision.models.detection")
    torch.manual_seed(0)
    options = {} if "320" in name else {"min_size": 96, "max_size": 128}
    if name.startswith("retinanet"):
        options["score_thresh"] = 0.005  # above it random weights find nothing
    model = getattr(detection, name)(
        weights=None, weights_backbone=None, num_classes=5, **options
    ).eval()
    fused = fastvision.fuse(model)
    images = [image(3, 90, 120).sigmoid(), image(3, 70, 60).sigmoid()]
    with torch.no_grad():
        features = model.backbone(image(1, 3, 96, 96))
        assert_same(fused.backbone(image(1, 3, 96, 96)), features)
        for ours, theirs in zip(fused(images), model(images), strict=True):
            assert ours.keys() == theirs.keys()
            assert len(ours["boxes"]) == len(theirs["boxes"]) > 0
            assert matched(ours, theirs) >= 0.9 and matched(theirs, ours) >= 0.9
    assert sum(kinds(fused).values()) > 50
    if "fpn" in name:
        assert kinds(fused)["Conv2d + add"] >= 1, "of the lateral connections"


def pyramid(**options: Any) -> nn.Module:
    ops = pytest.importorskip("torchvision.ops")
    return ops.FeaturePyramidNetwork([4, 6, 8], 32, **options)


def levels(*sizes: tuple[int, int], channels_last: bool = False) -> dict[str, Tensor]:
    format = memory_format(channels_last)
    maps = zip((4, 6, 8), sizes, strict=True)
    return {str(c): image(2, c, *size).contiguous(memory_format=format) for c, size in maps}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "sizes", [((12, 20), (6, 10), (3, 5)), ((11, 20), (6, 7), (5, 7))], ids=str
)
def test_feature_pyramid(sizes, channels_last):
    poolers = pytest.importorskip("torchvision.ops.feature_pyramid_network")
    maps = levels(*sizes, channels_last=channels_last)
    for model in (
        pyramid(),
        pyramid(norm_layer=nn.BatchNorm2d, extra_blocks=poolers.LastLevelMaxPool()),
    ):
        fused = check(model, maps)
        with torch.no_grad():
            ours = copy.deepcopy(maps)
            assert list(fused(ours)) == list(model(maps))
        assert all(torch.equal(ours[name], maps[name]) for name in maps)
        assert pickle.loads(pickle.dumps(fused)).state_dict().keys() == fused.state_dict().keys()
        wanted = {name: x.clone().requires_grad_() for name, x in maps.items()}
        expected = torch.autograd.grad(
            sum(y.sum() for y in model(wanted).values()), wanted.values()
        )
        actual = torch.autograd.grad(sum(y.sum() for y in fused(wanted).values()), wanted.values())
        assert_same(list(actual), list(expected))


def test_feature_pyramid_of_other_models():
    """Its methods are there, it batches as torch's operators do, and sizes are not constants."""

    def forward(self: Any, fine: Tensor, coarse: Tensor) -> Any:
        maps = self.pyramid({"fine": fine, "coarse": coarse})
        lateral = self.pyramid.get_result_from_inner_blocks(fine, 0)
        return maps["fine"], self.pyramid.get_result_from_layer_blocks(lateral, -1)

    ops = pytest.importorskip("torchvision.ops")
    model = net(forward, pyramid=ops.FeaturePyramidNetwork([4, 6], 8))
    inputs, others = (image(1, 4, 8, 8), image(2, 6, 4, 4)), (image(2, 4, 7, 9), image(2, 6, 4, 5))
    fused = check(model, *inputs)
    sizes = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    even = (image(2, 4, 8, 12), image(2, 6, 4, 6))
    with torch.no_grad():
        exported = torch.export.export(fused, even, dynamic_shapes=(sizes, sizes)).module()
        traced = torch.jit.trace(fused, even)
        for program in (exported, traced):
            assert_same(program(*others), model(*others))


def test_feature_pyramid_whose_maps_others_see():
    maps = levels((12, 20), (6, 10), (3, 5))
    hooked, seen = pyramid(), []
    hooked.inner_blocks[0].register_forward_hook(lambda module, x, y: seen.append(y))
    maps_of_equal_width = {**maps, "4": image(2, 32, 12, 20)}
    cases = [(hooked, maps)]
    for block in (nn.Identity(), nn.Sequential()):
        model = pyramid()
        model.inner_blocks[0] = model.layer_blocks[0] = block
        cases.append((model, maps_of_equal_width))
    for model, inputs in cases:
        check(model, inputs)
    assert_same(seen[1], seen[0])


def test_layers_that_are_fused_already():
    ops = fastvision.ops
    fused = check(nn.Sequential(ops.Conv2dNormActivation(3, 6), conv(6, 6), nn.ReLU()))
    assert kinds(fused) == {"Conv2d + relu": 1, f"{BN} + relu": 1}
    fused = check(nn.Sequential(conv(), ops.FrozenBatchNorm2d(6), nn.ReLU()))
    assert kinds(fused) == {"Conv2d + FrozenBatchNorm2d + relu": 1}


def test_frozen_batch_norm():
    ops = pytest.importorskip("torchvision.ops")
    fused = check(nn.Sequential(conv(), ops.FrozenBatchNorm2d(6), nn.ReLU()))
    assert kinds(fused) == {"Conv2d + FrozenBatchNorm2d + relu": 1}
