"""Derivatives of the focal losses: second and forward ones, batches, of targets and weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastvision import ops
from fastvision.testing.focal_loss import differentiate, logits, make_targets, softmax_targets
from fastvision.testing.numerics import assert_matches
from fastvision.testing.tensors import dtype_id, leaf

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    # Triton's interpreter computes with infinities and NaN as they come
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def test_half_precision_gradient_of_a_mean(backend):
    """An average's gradient is below float16's range; a loss scale brings it back."""
    x = leaf(torch.full((100, 80), -6.0, dtype=torch.float16, device=backend.device))
    labels = torch.full((100,), -1, device=backend.device)
    exact = leaf(x.double())
    expected = ops.sigmoid_focal_loss(exact, labels, reduction="mean", backend="reference")
    expected = differentiate(expected * 2.0**24, exact, torch.ones_like(expected))
    for t in (labels, torch.zeros_like(x)):
        with torch.autocast(backend.device, torch.float16):
            loss = ops.sigmoid_focal_loss(x, t, reduction="mean", backend=backend.name)
            loss = loss * 2.0**24
        grad = differentiate(loss, x, torch.ones_like(loss))
        assert grad.dtype == torch.float16
        assert_matches((grad / expected).half(), torch.ones_like(expected))


@pytest.mark.parametrize(
    ("kind", "gamma", "reduction"),
    [
        ("labels", 2, "none"),
        ("labels", 1.5, "mean"),
        ("soft", 0, "mean"),
        ("soft", 1.5, "none"),
        ("softmax", 2, "sum"),
        ("softmax", 1.5, "none"),
    ],
)
def test_second_and_forward_derivatives(backend, kind, gamma, reduction):
    x = leaf(logits(2, 3, dtype=torch.float64).to(backend.device))
    t = make_targets(kind, x) if kind != "softmax" else softmax_targets(x)
    op = ops.softmax_focal_loss if kind == "softmax" else ops.sigmoid_focal_loss

    def loss(x: Tensor) -> Tensor:
        return op(x, t, 0.3, gamma, reduction, backend=backend.name)

    assert torch.autograd.gradcheck(loss, x, check_forward_ad=True, fast_mode=backend.interpreted)
    assert torch.autograd.gradgradcheck(loss, x, fast_mode=True)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(loss(forward_ad.make_dual(x, torch.ones_like(x)))).tangent
    assert_matches(
        tangent.sum(), differentiate(loss(x).sum(), x, torch.ones_like(tangent.sum())).sum()
    )


@pytest.mark.parametrize("second", [lambda x: x, lambda x: x * x], ids=["same", "made from it"])
def test_levels_that_depend_on_each_other(backend, second):
    x = leaf(logits(2, 5, 3, dtype=torch.float64, spread=1).to(backend.device))
    t = make_targets("soft", x)

    def grad(create_graph: bool, name: str | None = backend.name) -> Tensor:
        levels = [x, second(x)]
        loss = ops.sigmoid_focal_loss(levels, [t, 1 - t], 0.25, 2, "sum", backend=name)
        return torch.autograd.grad(loss, x, create_graph=create_graph)[0]

    expected = grad(True, "reference")
    assert_matches(grad(False), expected)
    assert_matches(grad(True), expected)
    of_its_square = [torch.autograd.grad(g.square().sum(), x)[0] for g in (grad(True), expected)]
    assert_matches(*of_its_square)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=dtype_id)
@pytest.mark.parametrize("op", [ops.sigmoid_focal_loss, ops.softmax_focal_loss])
def test_batch_of_gradients(backend, op, dtype, reduction, create_graph):
    """A Jacobian's rows at once, as torch.autograd.functional.jacobian(vectorize=True) has them."""
    x = leaf(logits(3, 4, dtype=dtype).to(backend.device))
    t = torch.tensor([0, 3, 1], device=backend.device)
    loss = op(x, t, reduction=reduction, backend=backend.name)
    grads = torch.eye(loss.numel(), dtype=loss.dtype, device=x.device).view(-1, *loss.shape)
    options = {"retain_graph": True, "create_graph": create_graph}
    batches = [
        *torch.autograd.grad(loss, x, grads, is_grads_batched=True, **options),
        *torch.func.vmap(lambda grad: torch.autograd.grad(loss, x, grad, **options))(grads),
    ]
    for batch in batches:
        for row, grad in zip(batch, grads, strict=True):
            (expected,) = torch.autograd.grad(loss, x, grad, retain_graph=True)
            assert_matches(row, expected)


def test_gradient_of_the_targets(backend):
    x, t = leaf(logits(3, 4, dtype=torch.float64)), torch.rand(3, 4, dtype=torch.float64)
    x, t = leaf(x.to(backend.device)), leaf(t.to(backend.device))
    for reduction in ("none", "sum"):
        assert torch.autograd.gradcheck(
            lambda x, t, r=reduction: ops.sigmoid_focal_loss(
                x, t, reduction=r, backend=backend.name
            ),
            (x, t),
            fast_mode=backend.interpreted,
        )
    weights = leaf(torch.rand(4, dtype=torch.float64, device=backend.device))
    labels = torch.tensor([0, 3, 1], device=backend.device)
    assert torch.autograd.gradcheck(
        lambda x, w: ops.softmax_focal_loss(x, labels, w, backend=backend.name), (x, weights)
    )


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("op", [ops.sigmoid_focal_loss, ops.softmax_focal_loss])
def test_backward_twice(backend, op, reduction):
    """The first backward gives the stored gradient away; the second makes it again."""
    x = leaf(logits(8, 5).to(backend.device))
    t = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2], device=backend.device)
    loss = op(x, t, reduction=reduction, backend=backend.name)
    grad = torch.full_like(loss, 3)
    (first,) = torch.autograd.grad(loss, x, grad, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, x, grad)
    assert torch.equal(first, kept) and torch.equal(second, kept)
    assert first.data_ptr() != second.data_ptr()


def test_func_grad(cpu_level):
    x, t = logits(4, 5), torch.tensor([0, -1, 3, -2])

    def loss(x: Tensor) -> Tensor:
        return ops.sigmoid_focal_loss(x, t, reduction="sum")

    y = leaf(x)
    assert_matches(torch.func.grad(loss)(x), differentiate(loss(y), y, torch.tensor(1.0)))
    per_row = torch.func.vmap(lambda x, t: ops.sigmoid_focal_loss(x, t))(x, make_targets("soft", x))
    assert_matches(per_row, ops.sigmoid_focal_loss(x, make_targets("soft", x)))
