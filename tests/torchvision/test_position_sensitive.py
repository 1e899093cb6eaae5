"""torchvision's position-sensitive operators while they are ours."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

import fastvision
from fastvision.testing import cases
from fastvision.testing.numerics import assert_matches

pytest.importorskip("torchvision.ops")
from torchvision import ops  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread", "needs_kernels")

FEATURES = cases.feature_map(2, 24, 20, 22)
# inside of the map: at its last row and column the gradient differs
ROIS = cases.rois(30, 2, height=60, width=70, max_size=60)
ROIS[:, 3:] = torch.minimum(ROIS[:, 3:], torch.tensor([80.0, 72.0]))


def samples(features: Tensor, rois: Tensor) -> Tensor:
    return ops.ps_roi_align(features, rois, 2, 0.25, 2)


def means(features: Tensor, rois: Tensor) -> Tensor:
    return ops.ps_roi_pool(features, rois, 2, 0.25)


BOTH = pytest.mark.parametrize(
    ("name", "pool"), [("ps_roi_align", samples), ("ps_roi_pool", means)]
)


def raw_arguments(name: str) -> tuple[float, ...]:
    return (0.25, 2, 3, 2) if name == "ps_roi_align" else (0.25, 2, 3)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_results(on, name, pool, dtype, layout, stock, our_ops, pool_with_gradient):
    features, rois = FEATURES.to(dtype), ROIS.to(dtype)
    if layout == "channels_last":
        features = features.contiguous(memory_format=torch.channels_last)
    expected, expected_grad = stock(pool_with_gradient, pool, features, rois)
    pooled, grad = pool_with_gradient(pool, features, rois)
    assert_matches(pooled, expected)
    assert pooled.stride() == expected.stride()
    assert_matches(grad, expected_grad, scale=10)
    ran = our_ops(pool_with_gradient, pool, features, rois)
    assert ran == {f"fastvision::{name}", f"fastvision::{name}_backward"}
    raw = partial(getattr(torch.ops.torchvision, name), features, rois, *raw_arguments(name))
    (ours, mapping), (theirs, their_mapping) = raw(), stock(raw)
    assert_matches(ours, theirs)
    assert torch.equal(mapping, their_mapping) and mapping.dtype == their_mapping.dtype
    assert mapping.stride() == their_mapping.stride()


def test_modules(on, stock):
    for module in (ops.PSRoIAlign((3, 2), 0.2, -1), ops.PSRoIPool((3, 2), 0.2)):
        assert_matches(module(FEATURES, ROIS), stock(module, FEATURES, ROIS))


@BOTH
def test_recorded(on, name, pool, stock, our_ops):
    features = FEATURES[:, :8, :8, :8].double().requires_grad_()
    rois = cases.rois(4, 2, height=20, width=20, max_size=20).double()
    rois[:, 3:] = rois[:, 3:].clamp(max=24)
    assert torch.autograd.gradcheck(
        lambda x: pool(x, rois), features, check_forward_ad=True, fast_mode=True
    )
    operator = getattr(torch.ops.torchvision, name)
    torch.library.opcheck(operator, (features, rois, 0.25, 2, 2, *raw_arguments(name)[3:]))
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_matches(compiled(features, rois), stock(pool, features, rois))
        assert our_ops(compiled, features, rois) == {f"fastvision::{name}"}
    (grad,) = torch.autograd.grad(compiled(features, rois).square().sum(), features)
    (wanted,) = torch.autograd.grad(stock(pool, features, rois).square().sum(), features)
    assert_matches(grad, wanted)


@BOTH
def test_recorded_before(our_ops, name, pool):
    """torchvision's autograd has recorded the forward, our kernel runs the backward."""
    features = FEATURES.clone().requires_grad_()
    (expected,) = torch.autograd.grad(pool(features, ROIS).square().sum(), features)
    loss = pool(features, ROIS).square().sum()
    with fastvision.enabled():
        assert our_ops(lambda: loss.backward()) == {f"fastvision::{name}_backward"}
    assert_matches(features.grad, expected, scale=10)


@BOTH
def test_backward_of_other_channels(on, name, pool):
    """The kernel would write a map of another size than autograd expects."""
    options = (2,) if name == "ps_roi_align" else ()
    backward = getattr(torch.ops.torchvision, f"_{name}_backward")
    mapping = torch.zeros(1, 2, 3, 3, dtype=torch.int32)
    for shape in ((1, 2, 3, 3), (1, 3, 3, 2), (1, 27)):
        with pytest.raises(RuntimeError, match="grad must have shape .* 27 values per box"):
            backward(
                torch.ones(shape), torch.zeros(1, 5), mapping, 1.0, 3, 3, *options, 1, 27, 8, 8
            )


@BOTH
def test_errors_are_torchvisions(on, name, pool):
    operator = getattr(torch.ops.torchvision, name)
    options = raw_arguments(name)
    for features, rois in [
        (FEATURES, torch.rand(4, 6)),
        (FEATURES, torch.rand(5)),
        (FEATURES[0], ROIS),
        (FEATURES.int(), ROIS),
        (FEATURES, ROIS + 5),
        (FEATURES[:, :20], ROIS),
    ]:
        with pytest.raises(RuntimeError):
            operator(features, rois, *options)
