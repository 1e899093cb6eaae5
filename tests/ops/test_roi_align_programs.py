"""RoIAlign's derivatives, and RoIAlign under torch's machinery."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

from fastvision import ops, reference
from fastvision.testing import cases
from fastvision.testing.marks import LAYOUTS
from fastvision.testing.numerics import assert_matches
from fastvision.testing.roi_programs import assert_compiles
from fastvision.testing.tensors import dtype_id, leaf
from fastvision.testing.threads import same_for_threads

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@LAYOUTS
def test_second_and_forward_derivatives(backend, channels_last):
    x = cases.feature_map(1, 2, 5, 6, dtype=torch.float64, channels_last=channels_last)
    x = leaf(x.to(backend.device))
    rois = torch.tensor([[0, 0.5, 1, 4, 3.5], [0, 2, 2, 9, 9]], dtype=torch.float64)
    rois = rois.to(backend.device)

    def pool(x):
        return ops.roi_align(x, rois, 2, 1.0, 2, True, backend=backend.name)

    fast = {"fast_mode": True} if backend.interpreted else {}
    assert torch.autograd.gradcheck(pool, x, check_forward_ad=True, **fast)
    assert torch.autograd.gradgradcheck(lambda x: pool(x).pow(3), x, **fast)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.detach(), torch.ones_like(x))
        tangent = forward_ad.unpack_dual(pool(dual)).tangent
    assert_matches(tangent, pool(torch.ones_like(x)))


def test_boxes_get_no_gradient(backend):
    rois = leaf(torch.tensor([[0, 0.5, 1, 4, 3.5]], device=backend.device))
    x = leaf(torch.ones(1, 2, 5, 5, device=backend.device))
    ops.roi_align(x, rois, 2, backend=backend.name).sum().backward()
    assert x.grad is not None and (rois.grad is None or rois.grad.eq(0).all())


@LAYOUTS
def test_deterministic(cpu_level, channels_last):
    """Bit for bit the same for any number of threads."""
    x = leaf(cases.feature_map(2, 70, 50, 60, channels_last=channels_last))
    rois = cases.small_rois(200, 2, 50, 60, 0.5)

    def run():
        pooled = ops.roi_align(x, rois, 7, 0.5, 2, backend="cpp")
        return pooled, *torch.autograd.grad(pooled.sin().sum(), x)

    same_for_threads(run)


def raw_arguments(x, rois):
    return ([x], rois, [0.5], 3, 2, 2, True, 0.0, 0.0, 0)


@LAYOUTS
# the reference is plain PyTorch, with no op of its own
@pytest.mark.only(lambda backend: backend.name != "reference")
def test_opcheck(backend, channels_last):
    suffix = "_triton" if backend.name == "triton" else ""
    x = cases.feature_map(2, 5, 8, 9, channels_last=channels_last).to(backend.device)
    rois = cases.small_rois(4, 2, 8, 9, 0.5).to(backend.device)
    forward = getattr(torch.ops.fastvision, f"roi_align{suffix}").default
    torch.library.opcheck(forward, raw_arguments(x, rois))
    backward = getattr(torch.ops.fastvision, f"roi_align_backward{suffix}").default
    grad = forward(*raw_arguments(x, rois))
    args = (grad, rois, [2, 8, 9], [0.5], 2, True, 0.0, 0.0, 0, channels_last)
    torch.library.opcheck(backward, args)


@pytest.mark.parametrize("compiler", ["eager", "aot_eager", "inductor"])
def test_compile(cpu_level, compiler):
    assert_compiles(lambda x, boxes: ops.roi_align(x, boxes, (3, 4), 0.5, 2), compiler)


def test_export(cpu_level):
    class Pool(torch.nn.Module):
        def forward(self, a, b, boxes):
            return ops.multiscale_roi_align([a, b], boxes, 3, [0.25, 0.125], 2)

    maps, _ = cases.pyramid(1, 4, height=64, width=64, levels=2)
    rois = cases.rois(6, 1, height=64, width=64)
    count = torch.export.Dim("count", min=0)
    with torch.no_grad():
        program = torch.export.export(
            Pool(), (*maps, rois), dynamic_shapes={"a": None, "b": None, "boxes": {0: count}}
        )
    for k in (6, 1, 3):
        assert_matches(program.module()(*maps, rois[:k]), Pool()(*maps, rois[:k]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_id)
def test_autocast(backend, dtype):
    """Features keep their low precision, boxes stay float32."""
    conv = torch.nn.Conv2d(3, 4, 1).to(backend.device)
    x = cases.feature_map(1, 3, 200, 200).to(backend.device)
    # a thousand pixels from the origin: 16-bit coordinates would move it by half a pixel and more
    rois = torch.tensor([[0, 1300.25, 1301.5, 1310.75, 1312.5]], device=backend.device)
    with torch.autocast(backend.device, dtype):
        features = conv(x)
        pooled = ops.roi_align(features, rois, 2, 0.125, 2, backend=backend.name)
    assert features.dtype == pooled.dtype == dtype
    expected = reference.roi_align(features.double(), rois.double(), 0.125, 2, 2, 2, False)
    assert_matches(pooled, expected)


def test_func_grad(cpu_level):
    x, rois = cases.feature_map(1, 3, 6, 7), torch.tensor([[0, 1.0, 1, 5, 4]])

    def loss(x):
        return ops.roi_align(x, rois, 2).square().sum()

    y = leaf(x)
    assert_matches(torch.func.grad(loss)(x), torch.autograd.grad(loss(y), y)[0])


def test_fx_sees_ops_as_leaves(cpu_level):
    pooler, single = ops.MultiScaleRoIAlign(["a"], 2, 2), ops.RoIAlign(2, 1.0, 2)
    for module, name in ((pooler, "_pool"), (single, "roi_align")):
        nodes = torch.fx.symbolic_trace(module).graph.nodes
        assert [n.target.__name__ for n in nodes if n.op == "call_function"] == [name]
