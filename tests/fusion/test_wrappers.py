"""What is built on models and their copies: graphs, wrappers, exports, other processes."""

from __future__ import annotations

import copy
import importlib.util
import io
import os
import pickle
import subprocess
import sys

import pytest
import torch
import torch.distributed.nn.functional  # not later: its default arguments would keep a group
from torch import Tensor, nn
from torch.nn import functional as F

import fastvision
from fastvision.testing.fusion import assert_alike, check_as_is, conv, image, kinds, norm

BN_RELU = "Conv2d + BatchNorm2d + relu"


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(), norm(), nn.ReLU())
        self.head = torch.jit.script(nn.Sequential(conv(6, 4), nn.Sigmoid()).eval())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripted_parts():
    fused = check_as_is(Scripted(), image())
    assert kinds(fused) == {BN_RELU: 1}
    assert ("head.0", "is part of a ScriptModule") in fused.fastvision_report.skipped
    whole = nn.Sequential(conv(), norm(), nn.ReLU()).eval()
    for scripted in (torch.jit.script(whole), torch.jit.trace(whole, image())):
        assert check_as_is(scripted, image()).fastvision_report.skipped


@pytest.fixture
def resnet() -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    return models.resnet18(weights=None).eval()


RESNET18 = {BN_RELU: 9, "Conv2d + BatchNorm2d + add + relu": 8, "Conv2d + BatchNorm2d": 3}


def test_graphs_of_torch_fx(resnet):
    x = image(1, 3, 48, 48)
    fused = check_as_is(torch.fx.symbolic_trace(resnet), x)
    assert kinds(fused).items() >= RESNET18.items()
    with torch.no_grad():
        assert_alike(copy.deepcopy(fused)(x), resnet(x))
        assert_alike(pickle.loads(pickle.dumps(fused))(x), resnet(x))
        assert_alike(torch.fx.symbolic_trace(fastvision.fuse(resnet))(x), resnet(x))


@torch.no_grad()
def test_feature_extractors(resnet):
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    x = image(1, 3, 48, 48)
    nodes = {"layer1": "a", "layer3": "b"}
    extractor = extraction.create_feature_extractor(resnet, nodes)
    expected = extractor(x)
    fused = fastvision.fuse(extractor)
    for features in (
        fused(x),
        extraction.create_feature_extractor(fastvision.fuse(resnet), nodes)(x),
    ):
        assert list(features) == list(expected)
        for name, value in features.items():
            assert_alike(value, expected[name])
    assert kinds(fused)["Conv2d + BatchNorm2d + add + relu"] == 6


def test_wrappers_for_parallel_training(resnet, tmp_path):
    x = image(1, 3, 48, 48)
    assert kinds(check_as_is(nn.DataParallel(resnet), x)).items() >= RESNET18.items()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(resnet)
        assert kinds(check_as_is(wrapped, x)).items() >= RESNET18.items()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript")),
    reason="needs onnx and onnxscript",
)
@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_gets_standard_operators(dynamo):
    import onnx

    gate = fastvision.ops.SqueezeExcitation(6, 3)
    model = nn.Sequential(conv(), norm(), nn.ReLU(), gate, nn.Flatten(), nn.Linear(6 * 12 * 14, 3))
    found = []
    for m in (model.eval(), fastvision.fuse(model)):
        file = io.BytesIO()
        program = torch.onnx.export(m, (image(),), None if dynamo else file, dynamo=dynamo)
        proto = program.model_proto if dynamo else onnx.load_model_from_string(file.getvalue())
        found.append([node.op_type for node in proto.graph.node])
    assert found[0] == found[1]


@torch.no_grad()
@pytest.mark.parametrize("strict", [False, True])
def test_exported_and_compiled_chains(resnet, strict):
    x = image(1, 3, 48, 48)
    fused = fastvision.fuse(resnet)
    program = torch.export.export(fused, (x,), strict=strict)
    targets = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert targets.count("fastvision.conv_bn_relu.default") == 20
    assert not any("batch_norm" in target or target[5:] == "relu.default" for target in targets)
    assert_alike(program.module()(x), resnet(x))


@torch.no_grad()
def test_writes_in_place_are_exported_right():
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.last = conv(3, 3), norm(3), conv(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.last(F.relu(self.norm(self.conv(x))))
            y.flatten(1).mul_(2)
            return F.relu(self.last(y)) + y

    model = Writes().eval()
    fused = check_as_is(model, image())
    for program in (
        torch.export.export(fused, (image(),)).module(),
        torch.jit.trace(fused, image()),
        torch.compile(fused, backend="aot_eager"),
    ):
        assert_alike(program(image()).contiguous(), model(image()))


def test_other_processes_load_a_fused_model(tmp_path):
    models = pytest.importorskip("torchvision.models")
    fused = fastvision.fuse(models.resnet18(weights=None))
    torch.save(fused, tmp_path / "model.pt")
    code = (
        "import sys, torch; m = torch.load(sys.argv[1], weights_only=False);"
        "print(type(m).__name__, m(torch.zeros(1, 3, 40, 40)).shape[1])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model.pt")]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=True)
    assert done.stdout.split() == ["ResNet", "1000"]
