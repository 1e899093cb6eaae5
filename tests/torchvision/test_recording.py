"""Scripts, traces and exports hold torchvision's operators, and find our kernels later."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastvision
from fastvision.testing.detection import BOXES, CLASSES, FEATURES, ROIS, SCORES
from fastvision.testing.numerics import assert_matches

pytest.importorskip("torchvision.ops")
from torchvision import ops  # noqa: E402

from .pooling import pool  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("needs_kernels", "one_thread"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
]


def pool_in_script(features: Tensor, rois: Tensor) -> Tensor:
    return ops.roi_align(features, rois, [5, 5], 0.25, 2)


def nms_in_script(boxes: Tensor, scores: Tensor, classes: Tensor) -> Tensor:
    return ops.batched_nms(boxes, scores, classes, 0.5)


@pytest.mark.parametrize("when", ["before", "after"])
def test_torchscript(when, our_ops, pool_with_gradient):
    if when == "before":
        scripted_pool, scripted_nms = map(torch.jit.script, (pool_in_script, nms_in_script))
    expected_kept = ops.batched_nms(BOXES, SCORES, CLASSES, 0.5)
    expected = pool_with_gradient(pool, FEATURES, ROIS)
    with fastvision.enabled():
        if when == "after":
            scripted_pool, scripted_nms = map(torch.jit.script, (pool_in_script, nms_in_script))
        assert torch.equal(scripted_nms(BOXES, SCORES, CLASSES), expected_kept)
        result = pool_with_gradient(scripted_pool, FEATURES, ROIS)
        assert our_ops(scripted_nms, BOXES, SCORES, CLASSES) == {"fastvision::nms"}
        assert our_ops(scripted_pool, FEATURES, ROIS) == {"fastvision::roi_align"}
    assert_matches(result[0], expected[0])
    assert_matches(result[1], expected[1], scale=10)
    assert our_ops(scripted_pool, FEATURES, ROIS) == set()


class BatchedNms(nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor, classes: Tensor) -> Tensor:
        return ops.batched_nms(boxes, scores, classes, 0.5)


def test_traces_and_exports_hold_torchvisions_operators(on, multiscale):
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


class Pool(nn.Module):
    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        return ops.roi_align(features, rois, (3, 3), 1.0, 2)


class PoolUnderAutocast(Pool):
    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(features.bfloat16(), rois)


def targets(program: torch.export.ExportedProgram) -> str:
    return " ".join(
        str(node.target) for m in program.graph_module.modules() for node in m.graph.nodes
    )


@pytest.mark.parametrize(
    ("module", "strict"),  # torch's strict export ignores autocast, for which torchvision fails
    [(Pool(), False), (Pool(), True), (PoolUnderAutocast(), False)],
)
@pytest.mark.parametrize("exported", ["before", "after"])
def test_exported_programs(module, strict, exported, our_ops):
    if exported == "before":
        program = torch.export.export(module, (FEATURES, ROIS), strict=strict)
    with fastvision.enabled():
        if exported == "after":
            program = torch.export.export(module, (FEATURES, ROIS), strict=strict)
        lowered = program.run_decompositions()
        ran = our_ops(lowered.module(), FEATURES, ROIS)
    for result in (program, lowered):
        assert "torchvision.roi_align" in targets(result) and "fastvision" not in targets(result)
    assert ran == {"fastvision::roi_align"}
    # and they are complete without us
    expected = module(FEATURES, ROIS)
    assert torch.equal(lowered.module()(FEATURES, ROIS), expected)


def test_watchers_see_torchvisions_operators():
    from torch.fx.experimental.proxy_tensor import make_fx

    def gradient(features: Tensor, rois: Tensor) -> Tensor:
        features = features.detach().requires_grad_()
        return torch.autograd.grad(pool(features, rois).square().sum(), features)[0]

    expected = gradient(FEATURES, ROIS)
    with fastvision.enabled():
        code = make_fx(gradient)(FEATURES, ROIS)
    assert "torchvision.roi_align" in code.code and "torchvision._roi_align_backward" in code.code
    assert "fastvision" not in code.code
    assert torch.equal(code(FEATURES, ROIS), expected)
    with fastvision.enabled():
        assert_matches(code(FEATURES, ROIS), expected, scale=10)


def test_onnx():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    graphs = [torch.onnx.export(Pool(), (FEATURES, ROIS), dynamo=True, verbose=False)]
    with fastvision.enabled():
        graphs.append(torch.onnx.export(Pool(), (FEATURES, ROIS), dynamo=True, verbose=False))
    stock, ours = ([node.op_type for node in graph.model.graph] for graph in graphs)
    assert ours == stock and "RoiAlign" in ours
