"""Sigmoid and softmax focal loss: every backend against the reference in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastvision import ops, reference
from fastvision.testing import cases
from fastvision.testing.focal_loss import differentiate, logits, make_targets, softmax_targets
from fastvision.testing.numerics import DTYPES, assert_matches
from fastvision.testing.tensors import dtype_id, leaf
from fastvision.testing.threads import same_for_threads

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    # Triton's interpreter computes with infinities and NaN as they come
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def check(call, x: Tensor, expected_call, *, scale: float = 1) -> None:
    """The loss and its gradient, for a gradient of the loss that is not 1."""
    x, exact = leaf(x), leaf(x.double())
    loss, expected = call(x), expected_call(exact)
    assert loss.dtype == x.dtype and loss.shape == expected.shape
    assert_matches(loss, expected, scale=scale)
    grad = torch.rand(loss.shape, generator=cases.generator(6)).to(loss) + 0.5
    assert_matches(
        differentiate(loss, x, grad),
        differentiate(expected, exact, grad.double()),
        scale=2 * scale,
    )


# the classes: one, fewer than the lanes of a vector, and common ones, 91 of them odd
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize(
    ("classes", "kind"),
    [(1, "labels"), (1, "soft"), (5, "labels"), (5, "hard"), (80, "hard"), (91, "labels")],
)
# Triton's interpreter is slow: the tests of the kernels have the others
@pytest.mark.only(
    lambda backend, classes, dtype: (
        not backend.interpreted or (classes == 5 and dtype in (torch.float32, torch.bfloat16))
    )
)
def test_sigmoid(backend, classes, dtype, kind, reduction):
    x = logits(3, 17, classes, dtype=dtype).to(backend.device)
    t = make_targets(kind, x)
    wide = t if kind == "labels" else t.double()
    check(
        lambda x: ops.sigmoid_focal_loss(x, t, reduction=reduction, backend=backend.name),
        x,
        lambda x: ops.sigmoid_focal_loss(x, wide, reduction=reduction, backend="reference"),
    )


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 1.5, 2, 3, 7.25])
@pytest.mark.parametrize("alpha", [-1, 0.25, 1])
@pytest.mark.parametrize("kind", ["labels", "soft"])
# Triton's interpreter is slow
@pytest.mark.only(lambda backend, alpha: not backend.interpreted or alpha != 1)
def test_options(backend, kind, alpha, gamma):
    x = logits(9, 7, spread=8).to(backend.device)
    t = make_targets(kind, x)
    check(
        lambda x: ops.sigmoid_focal_loss(x, t, alpha, gamma, backend=backend.name),
        x,
        lambda x: ops.sigmoid_focal_loss(x, t, alpha, gamma, backend="reference"),
        scale=2,
    )


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize(
    ("classes", "gamma", "alpha"),
    [(1, 2, 0.3), (5, 1.5, "per class"), (5, 2, -1), (91, 0, "per class"), (1200, 2, None)],
)
# Triton's interpreter is slow: the tests of the kernels have the others
@pytest.mark.only(
    lambda backend, classes, dtype: (
        not backend.interpreted or (classes in (5, 1200) and dtype == torch.float32)
    )
)
def test_softmax(backend, classes, gamma, dtype, alpha, reduction):
    x = logits(2, 12, classes, dtype=dtype).to(backend.device)
    t = softmax_targets(x)
    if alpha == "per class":
        alpha = torch.linspace(0.5, 3, classes, device=backend.device)
    check(
        lambda x: ops.softmax_focal_loss(x, t, alpha, gamma, reduction, backend=backend.name),
        x,
        lambda x: ops.softmax_focal_loss(x, t, alpha, gamma, reduction, backend="reference"),
    )


def test_softmax_without_focus_is_cross_entropy(backend):
    x, weights = logits(40, 7).to(backend.device), torch.rand(7, device=backend.device)
    t = softmax_targets(x, ignore_index=3)
    for reduction in ("none", "sum"):
        loss = ops.softmax_focal_loss(x, t, weights, 0, reduction, 3, backend=backend.name)
        expected = torch.nn.functional.cross_entropy(
            x, t, weights, ignore_index=3, reduction=reduction
        )
        assert_matches(loss, expected)
    probabilities = x.softmax(-1)
    soft = ops.softmax_focal_loss(x, probabilities, weights, 0, "sum", backend=backend.name)
    expected = torch.nn.functional.cross_entropy(x, probabilities, weights, reduction="sum")
    assert_matches(soft, expected)


def test_hand_checked(backend):
    """At a logit of 0 p is 1/2: log(2) weighted by (1/2)**2, and by alpha."""
    x = torch.zeros(2, 3, device=backend.device)
    labels = torch.tensor([1, -1], device=backend.device)
    loss = ops.sigmoid_focal_loss(x, labels, backend=backend.name)
    unit = math.log(2) / 4
    expected = torch.tensor([[0.75, 0.25, 0.75], [0.75] * 3]) * unit
    assert_matches(loss.cpu(), expected)
    mean = ops.sigmoid_focal_loss(x, labels, -1, reduction="mean", backend=backend.name)
    assert_matches(mean.cpu(), torch.tensor(unit))
    three = ops.softmax_focal_loss(x[:1], labels[:1], reduction="sum", backend=backend.name)
    assert_matches(three.cpu(), torch.tensor((2 / 3) ** 2 * math.log(3)))


def test_labels_are_rows_of_zeros_and_ones(backend):
    x = logits(50, 11).to(backend.device)
    labels = make_targets("labels", x)
    kept = labels >= -1
    ones = (labels[:, None] == torch.arange(11, device=backend.device)).to(x)
    for reduction in ("sum", "mean"):
        actual = ops.sigmoid_focal_loss(x, labels, reduction=reduction, backend=backend.name)
        expected = ops.sigmoid_focal_loss(
            x[kept], ones[kept], reduction=reduction, backend=backend.name
        )
        assert_matches(actual, expected)
    each = ops.sigmoid_focal_loss(x, labels, backend=backend.name)
    assert each[~kept].eq(0).all()
    for dtype in (torch.int32, torch.int16):
        same = ops.sigmoid_focal_loss(x, labels.to(dtype), backend=backend.name)
        assert torch.equal(same, each)
    same = ops.sigmoid_focal_loss(x, ones.bool(), backend=backend.name)
    assert_matches(same[kept], each[kept])


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2), (-1, 0), (0.6, 1.3)])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_agrees_with_torchvision(backend, torchvision, kind, alpha, gamma, reduction):
    x = leaf(logits(7, 9, 5).to(backend.device))
    t = make_targets(kind, x)
    loss = ops.sigmoid_focal_loss(x, t, alpha, gamma, reduction, backend=backend.name)
    expected = torchvision.ops.sigmoid_focal_loss(x, t, alpha, gamma, reduction)
    assert_matches(loss, expected)
    weight = torch.rand(loss.shape, generator=cases.generator(1)).to(loss)
    assert_matches(differentiate(loss, x, weight), differentiate(expected, x, weight), scale=2)


def test_mixed_dtypes_as_torchvision(cpu_level, torchvision):
    x = logits(6, 5)
    t = make_targets("soft", x)
    for inputs, targets in [(x.bfloat16(), t), (x.double(), t), (x, t.double()), (x.half(), t)]:
        wide = torch.promote_types(inputs.dtype, targets.dtype)
        for reduction in ("none", "sum", "mean"):
            expected = torchvision.ops.sigmoid_focal_loss(inputs, targets, reduction=reduction)
            ours = ops.sigmoid_focal_loss(inputs, targets, reduction=reduction)
            assert ours.dtype == expected.dtype == wide
            # theirs rounds the probabilities to the dtype of the inputs
            expected = torchvision.ops.sigmoid_focal_loss(
                inputs.to(wide), targets.to(wide), reduction=reduction
            )
            assert_matches(ours, expected)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("kind", ["labels", "soft"])
def test_levels(backend, kind, reduction):
    sizes = (31, 8, 0, 2)
    joined = logits(2, sum(sizes), 6).to(backend.device)
    t = make_targets(kind, joined)
    levels = [leaf(part.clone()) for part in joined.split(sizes, 1)]
    exact = leaf(joined.double())
    wide = t if kind == "labels" else t.double()
    expected = ops.sigmoid_focal_loss(exact, wide, reduction=reduction, backend="reference")
    expected_grads = differentiate(expected, exact, torch.tensor(3.0).to(expected)).split(sizes, 1)
    for targets in (t, list(t.split(sizes, 1))):
        loss = ops.sigmoid_focal_loss(levels, targets, reduction=reduction, backend=backend.name)
        assert_matches(loss, expected)
        grads = torch.autograd.grad(3 * loss, levels)
        for grad, wanted in zip(grads, expected_grads, strict=True):
            assert_matches(grad, wanted)
    # one level alone may want a gradient
    mixed = [levels[0].detach(), *levels[1:]]
    loss = ops.sigmoid_focal_loss(mixed, t, reduction=reduction, backend=backend.name)
    assert_matches(torch.autograd.grad(3 * loss, mixed[1])[0], expected_grads[1])


def test_one_number(backend):
    x, t = leaf(torch.tensor(0.5, device=backend.device)), torch.tensor(1.0, device=backend.device)
    for reduction in ("none", "mean", "sum"):
        check(
            lambda x, r=reduction: ops.sigmoid_focal_loss(x, t, reduction=r, backend=backend.name),
            x,
            lambda x, r=reduction: ops.sigmoid_focal_loss(x, t, reduction=r, backend="reference"),
        )


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced", "expanded"])
def test_layouts(backend, layout, reduction):
    base = logits(2, 6, 5, 4).to(backend.device)
    x = {
        "channels_last": base.contiguous(memory_format=torch.channels_last),
        "transposed": base.mT,
        "sliced": base[:, ::2, 1:],
        "expanded": base[:1].expand(3, 6, 5, 4),
    }[layout]
    x.requires_grad_()
    for kind in ("labels", "soft"):
        t = make_targets(kind, x)
        loss = ops.sigmoid_focal_loss(x, t, reduction=reduction, backend=backend.name)
        dense = ops.sigmoid_focal_loss(
            x.contiguous(), t.contiguous(), reduction=reduction, backend=backend.name
        )
        assert_matches(loss, dense)
        grad = torch.rand(loss.shape, generator=cases.generator(2)).to(loss)
        assert_matches(differentiate(loss, x, grad), differentiate(dense, x, grad))
    if layout == "channels_last" and reduction == "none":
        assert loss.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("op", [ops.sigmoid_focal_loss, ops.softmax_focal_loss])
def test_deterministic(cpu_level, op):
    """Bit for bit the same for any number of threads."""
    x = leaf(logits(5000, 21))
    t = cases.classes(5000, 21)

    def run():
        loss = op(x, t, reduction="sum", backend="cpp")
        return loss, differentiate(loss, x, torch.tensor(0.3))

    same_for_threads(run)


def test_sum_of_many_small_numbers(cpu_level):
    """Millions of easy negatives: a sum in float32 would be off in the third digit."""
    x = torch.full((40000, 80), -7.0)
    labels = torch.full((40000,), -1)
    total = ops.sigmoid_focal_loss(x, labels, reduction="sum", backend="cpp")
    one = reference.sigmoid_focal_loss([x[:1, :1].double()], [labels[:1]], 0.25, 2.0, True)
    assert_matches(total / x.numel(), one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_id)
@pytest.mark.parametrize("kind", ["labels", "hard", "soft"])
def test_small_losses_are_as_exact(cpu_level, kind, dtype):
    """Relative to themselves, where easy negatives are many or few, or none for a while."""
    x = torch.linspace(-12, -1.5, 7 * 4500, dtype=dtype)
    x = x[torch.randperm(x.numel(), generator=cases.generator(4))].view(4500, 7)
    x[900:1800] += 4
    x[2000:2900:90] += 6
    x[3100:] += 6
    t = make_targets(kind, x)
    if kind == "soft":
        t[:3000] = 0
    x, exact = leaf(x), leaf(x.double())
    wide = t if kind == "labels" else t.double()
    loss = ops.sigmoid_focal_loss(x, t, backend="cpp")
    expected = ops.sigmoid_focal_loss(exact, wide, backend="reference")
    counts = expected > 0  # what is ignored is 0
    one = torch.ones(int(counts.sum()), dtype=dtype)
    assert torch.equal(loss > 0, counts)
    assert_matches((loss / expected)[counts].to(dtype), one)
    grad = differentiate(loss, x, torch.ones_like(loss))
    wanted = differentiate(expected, exact, torch.ones_like(expected))
    settled = counts & (wanted.abs() > 1e-3 * expected)  # soft labels' may be a small difference
    assert_matches((grad / wanted)[settled].to(dtype), one.new_ones(int(settled.sum())), scale=10)
    total = ops.sigmoid_focal_loss(x, t, reduction="sum", backend="cpp")
    assert_matches((total / expected.sum()).to(dtype), one[0])
    assert_matches(differentiate(total, x, one[0]), grad)
