"""Sigmoid and softmax focal loss: every backend against the reference in float64."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastvision import _extension, ops, reference
from fastvision.testing import cases
from fastvision.testing.numerics import assert_matches

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
INF, NAN = math.inf, math.nan
pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    # Triton's interpreter computes with infinities and NaN as they come
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def id_of(value) -> str | None:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def logits(*shape: int, dtype: torch.dtype = torch.float32, spread: float = 4) -> Tensor:
    return cases.feature_map(*shape, dtype=torch.float32).mul(spread).to(dtype)


def make_targets(kind: str, x: Tensor) -> Tensor:
    """Labels with background and ignored rows, the same as zeros and ones, or soft labels."""
    g = cases.generator(8)
    if kind == "soft":
        return torch.rand(x.shape, generator=g).to(x)
    labels = torch.randint(0, x.shape[-1], x.shape[:-1], generator=g)
    chance = torch.rand(labels.shape, generator=g)
    labels = torch.where(chance < 0.6, -1, labels)
    if kind == "labels":
        return torch.where(chance > 0.9, -2, labels).to(x.device)
    return (labels[..., None] == torch.arange(x.shape[-1])).to(x)


def softmax_targets(x: Tensor, ignore_index: int = -100) -> Tensor:
    labels = cases.classes(x[..., 0].numel(), x.shape[-1]).view(x.shape[:-1])
    labels.view(-1)[::5] = ignore_index
    return labels.to(x.device)


def differentiate(loss: Tensor, x: Tensor, grad: Tensor) -> Tensor:
    return torch.autograd.grad(loss, x, grad)[0]


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
@pytest.mark.parametrize("dtype", DTYPES, ids=id_of)
@pytest.mark.parametrize(
    ("classes", "kind"),
    [(1, "labels"), (1, "soft"), (5, "labels"), (5, "hard"), (80, "hard"), (91, "labels")],
)
def test_sigmoid(backend, classes, dtype, kind, reduction):
    if backend.interpreted and (classes != 5 or dtype in (torch.float16, torch.float64)):
        pytest.skip("Triton's interpreter is slow: test_triton_kernels.py has these")
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
def test_options(backend, kind, alpha, gamma):
    if backend.interpreted and alpha == 1:
        pytest.skip("Triton's interpreter is slow")
    x = logits(9, 7, spread=8).to(backend.device)
    t = make_targets(kind, x)
    check(
        lambda x: ops.sigmoid_focal_loss(x, t, alpha, gamma, backend=backend.name),
        x,
        lambda x: ops.sigmoid_focal_loss(x, t, alpha, gamma, backend="reference"),
        scale=2,
    )


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("dtype", DTYPES, ids=id_of)
@pytest.mark.parametrize(
    ("classes", "gamma", "alpha"),
    [(1, 2, 0.3), (5, 1.5, "per class"), (5, 2, -1), (91, 0, "per class"), (1200, 2, None)],
)
def test_softmax(backend, classes, gamma, dtype, alpha, reduction):
    if backend.interpreted and (dtype != torch.float32 or classes in (1, 91)):
        pytest.skip("Triton's interpreter is slow: test_triton_kernels.py has these")
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


# --- against torchvision


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


# --- several levels


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("kind", ["labels", "soft"])
def test_levels(backend, kind, reduction):
    sizes = (31, 8, 0, 2)
    joined = logits(2, sum(sizes), 6).to(backend.device)
    t = make_targets(kind, joined)
    levels = [leaf(part) for part in joined.split(sizes, 1)]
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


# --- the unusual


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2, 2.5])
@pytest.mark.parametrize("kind", ["labels", "numbers"])
def test_infinite_logits(backend, kind, gamma):
    """The limits, of the gradient too."""
    x = leaf(torch.tensor([[INF, INF], [-INF, -INF]], device=backend.device))
    t = torch.tensor([0, 0], device=backend.device)
    if kind == "numbers":
        t = torch.tensor([[1.0, 0], [1, 0]], device=backend.device)
    loss = ops.sigmoid_focal_loss(x, t, -1, gamma, backend=backend.name)
    assert loss.tolist() == [[0, INF], [INF, 0]]
    assert differentiate(loss, x, torch.ones_like(loss)).tolist() == [[0, 1], [-1, 0]]
    right = t[:1] if kind == "labels" else t[:1, :1]
    assert ops.sigmoid_focal_loss(x[:1, :1], right, -1, gamma, "sum", backend=backend.name) == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=id_of)
def test_large_logits(backend, dtype):
    """Where e^x overflows the loss of a wrong answer is |x|, and that of a right one nothing."""
    x = leaf(torch.tensor([[1e4, -1e4]], dtype=dtype, device=backend.device))
    wrong = ops.sigmoid_focal_loss(x, torch.tensor([1], device=x.device), -1, backend=backend.name)
    assert torch.equal(wrong, x.abs())
    right = ops.sigmoid_focal_loss(x, torch.tensor([0], device=x.device), -1, backend=backend.name)
    assert right.eq(0).all()
    assert differentiate(wrong, x, torch.ones_like(x)).tolist() == [[1, -1]]
    assert differentiate(right, x, torch.ones_like(x)).eq(0).all()


def test_softmax_without_a_class(backend):
    """A logit of -infinity is a class of probability 0."""
    x = leaf(torch.tensor([[0.0, -INF, 1], [-INF, 2, -INF]], device=backend.device))
    t = torch.tensor([2, 1], device=backend.device)
    loss = ops.softmax_focal_loss(x, t, backend=backend.name)
    finite = ops.softmax_focal_loss(x[:1, ::2], t[:1] - 1, backend=backend.name)
    assert_matches(loss, torch.cat([finite, torch.zeros_like(finite)]))
    grad = differentiate(loss, x, torch.ones_like(loss))
    assert grad[0, 1] == 0 and grad[1].eq(0).all() and grad[0, 0] > 0
    impossible = ops.softmax_focal_loss(x[1:], t[:1], backend=backend.name)
    assert impossible.item() == INF


@pytest.mark.parametrize("kind", ["labels", "soft", "softmax"])
def test_nan(backend, kind):
    x = logits(6, 9).to(backend.device)
    t = make_targets(kind, x) if kind != "softmax" else torch.ones(6, dtype=torch.long)
    t = t.to(backend.device)
    if kind == "labels":
        t[2:4] = 1
    x[2, 1] = x[3, 4] = NAN
    x = leaf(x)
    op = ops.softmax_focal_loss if kind == "softmax" else ops.sigmoid_focal_loss
    loss = op(x, t, backend=backend.name)
    touched = torch.zeros_like(x, dtype=torch.bool)
    touched[2, 1] = touched[3, 4] = True
    if kind == "softmax":
        touched[2:4] = True
    assert torch.equal(loss.isnan(), touched[:, 1] if kind == "softmax" else touched)
    assert torch.equal(differentiate(loss, x, torch.ones_like(loss)).isnan(), touched)
    if kind == "labels":  # an ignored row counts as nothing, whatever it holds
        t[2:4] = -2
        total = ops.sigmoid_focal_loss(x, t, reduction="sum", backend=backend.name)
        assert total.isfinite() and differentiate(total, x, torch.ones_like(total)).isfinite().all()


@pytest.mark.parametrize("op", [ops.sigmoid_focal_loss, ops.softmax_focal_loss])
def test_bad_labels(backend, op):
    x = leaf(logits(5, 3).to(backend.device))
    softmax = op is ops.softmax_focal_loss
    for label in (3, 2**40, *((-1, -7) if softmax else ())):
        t = torch.tensor([0, 1, label, 2, 1], device=backend.device)
        if backend.device == "cpu" and backend.name != "triton":
            for reduction in ("none", "sum"):
                with pytest.raises(RuntimeError, match=r"targets: row 2.*3 classes"):
                    op(x, t, reduction=reduction, backend=backend.name)
        else:
            loss = op(x, t, backend=backend.name)
            grad = differentiate(loss, x, torch.ones_like(loss))
            assert loss[2].isnan().all() and grad[2].isnan().all()
            assert loss[[0, 1, 3]].isfinite().all() and grad[[0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0,), (2, 0, 3)])
def test_empty(backend, shape):
    x = leaf(torch.ones(shape, device=backend.device))
    labels = torch.full(shape[:-1], -1, device=backend.device)
    for t in (torch.ones_like(x), labels):
        assert ops.sigmoid_focal_loss(x, t, backend=backend.name).shape == shape
        total = ops.sigmoid_focal_loss(x, t, reduction="sum", backend=backend.name)
        assert total == 0
        total.backward()
        assert x.grad.shape == shape
        assert ops.sigmoid_focal_loss(x, t, reduction="mean", backend=backend.name).isnan()
    ignored = torch.full(shape[:-1], -100, device=backend.device)
    assert ops.softmax_focal_loss(x, ignored, reduction="sum", backend=backend.name) == 0
    assert ops.softmax_focal_loss(x, ignored, reduction="mean", backend=backend.name).isnan()
    assert ops.softmax_focal_loss(x, ignored, backend=backend.name).shape == shape[:-1]
    soft = torch.ones_like(x)
    mean = ops.softmax_focal_loss(x, soft, reduction="mean", backend=backend.name)
    assert torch.equal(mean.isnan(), torch.tensor(0 in shape[:-1], device=x.device))


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


@pytest.mark.parametrize("op", [ops.sigmoid_focal_loss, ops.softmax_focal_loss])
def test_deterministic(cpu_level, op):
    """Bit for bit the same for any number of threads."""
    x = leaf(logits(5000, 21))
    t = cases.classes(5000, 21)
    results = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            loss = op(x, t, reduction="sum", backend="cpp")
            results.append((loss, differentiate(loss, x, torch.tensor(0.3))))
        finally:
            torch.set_num_threads(before)
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0]) and torch.equal(grad, results[0][1])


def test_sum_of_many_small_numbers(cpu_level):
    """Millions of easy negatives: a sum in float32 would be off in the third digit."""
    x = torch.full((40000, 80), -7.0)
    labels = torch.full((40000,), -1)
    total = ops.sigmoid_focal_loss(x, labels, reduction="sum", backend="cpp")
    one = reference.sigmoid_focal_loss([x[:1, :1].double()], [labels[:1]], 0.25, 2.0, True)
    assert_matches(total / x.numel(), one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=id_of)
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


# --- derivatives


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=id_of)
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


# --- torch's machinery


@pytest.mark.parametrize("reduce", [False, True])
@pytest.mark.parametrize("grad_scale", [0.0, 0.5])
def test_opcheck(backend, grad_scale, reduce):
    if backend.name == "reference":
        pytest.skip("plain PyTorch, no op of its own")
    suffix = "_triton" if backend.name == "triton" else ""
    x = logits(6, 5).to(backend.device)
    labels = torch.tensor([0, -1, 2, 4, -1, 1], device=backend.device)
    sigmoid = getattr(torch.ops.fastvision, f"sigmoid_focal_loss{suffix}").default
    for t in (labels, make_targets("soft", x)):
        torch.library.opcheck(sigmoid, ([x], [t], 0.25, 2.0, reduce, grad_scale))
    softmax = getattr(torch.ops.fastvision, f"softmax_focal_loss{suffix}").default
    for weights in (None, torch.rand(5, device=backend.device)):
        torch.library.opcheck(softmax, (x, labels, weights, 2.0, -1, reduce, grad_scale))
    scale = getattr(torch.ops.fastvision, f"focal_loss_scale{suffix}_").default
    torch.library.opcheck(scale, ([x, x.clone()], torch.tensor(2.0, device=x.device), 0.25))


@pytest.mark.parametrize("compiler", ["eager", "aot_eager", "inductor"])
def test_compile(cpu_level, compiler):
    def step(x, labels, soft, classes):
        y = torch.relu(x) * 3 - 1
        return (
            ops.sigmoid_focal_loss([y, x], [labels, labels], reduction="sum")
            + ops.sigmoid_focal_loss(y, soft, gamma=1.5, reduction="mean")
            + ops.sigmoid_focal_loss(y, soft).square().mean()
            + ops.softmax_focal_loss(y, classes, reduction="mean")
        )

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend=compiler, dynamic=True)
    for rows, dtype in ((4, torch.float32), (7, torch.float32), (7, torch.bfloat16)):
        x = leaf(logits(rows, 5, dtype=dtype))
        args = (make_targets("labels", x), make_targets("soft", x), cases.classes(rows, 5))
        loss, expected = compiled(x, *args), step(x, *args)
        assert_matches(loss, expected)
        grad = differentiate(loss, x, torch.ones_like(loss))
        assert_matches(grad, differentiate(expected, x, torch.ones_like(loss)), scale=4)


def test_export(cpu_level):
    class Loss(torch.nn.Module):
        def forward(self, a, b, labels):
            return ops.sigmoid_focal_loss([a, b], labels, reduction="sum")

    x = logits(2, 12, 5)
    labels = make_targets("labels", x)
    args = (x[:, :9], x[:, 9:], labels)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(Loss(), args, dynamic_shapes=[{0: batch}] * 3)
    for n in (2, 1):
        part = tuple(arg[:n] for arg in args)
        assert_matches(program.module()(*part), Loss()(*part))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=id_of)
def test_autocast(backend, dtype):
    """Logits stay in low precision; the loss is float32, as torch's own under autocast."""
    linear = torch.nn.Linear(6, 5).to(backend.device)
    features = cases.feature_map(20, 6).to(backend.device)
    labels = torch.randint(0, 5, (20,), generator=cases.generator(1)).to(backend.device)
    with torch.autocast(backend.device, dtype):
        x = linear(features)
        losses = [
            op(x, labels, reduction=reduction, backend=backend.name)
            for op in (ops.sigmoid_focal_loss, ops.softmax_focal_loss)
            for reduction in ("none", "sum", "mean")
        ]
    assert x.dtype == dtype
    exact = x.detach().double()
    expected = [
        op(exact, labels, reduction=reduction, backend="reference")
        for op in (ops.sigmoid_focal_loss, ops.softmax_focal_loss)
        for reduction in ("none", "sum", "mean")
    ]
    for loss, wanted in zip(losses, expected, strict=True):
        assert loss.dtype == torch.float32
        assert_matches(loss, wanted)
    sum(loss.sum() for loss in losses).backward()
    assert linear.weight.grad.isfinite().all() and linear.weight.grad.any()


def test_modules(cpu_level):
    x, t = logits(6, 5), cases.classes(6, 5)
    sigmoid = ops.SigmoidFocalLoss(0.5, 1, "sum")
    assert_matches(sigmoid(x, t), ops.sigmoid_focal_loss(x, t, 0.5, 1, "sum"))
    assert "gamma=1" in repr(sigmoid)
    weights = torch.rand(5)
    softmax = ops.SoftmaxFocalLoss(weights, ignore_index=2)
    assert_matches(softmax(x, t), ops.softmax_focal_loss(x, t, weights, 2, "mean", 2))
    assert "alpha" in softmax.state_dict() and "per class" in repr(softmax)
    assert_matches(ops.SoftmaxFocalLoss()(x, t), ops.softmax_focal_loss(x, t, reduction="mean"))


def test_meta(cpu_level):
    x = torch.empty(4, 5, device="meta")
    t = torch.empty(4, dtype=torch.long, device="meta")
    assert ops.sigmoid_focal_loss(x, t).shape == (4, 5)
    assert ops.sigmoid_focal_loss([x, x], [t, t], reduction="sum").shape == ()
    assert ops.softmax_focal_loss(x, t).shape == (4,)


# --- limits

MEMORY_SCRIPT = """
import re, sys, torch
from fastvision import ops

def peak():  # getrusage's would be the one of the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

labels = torch.full((200_000,), -1)
labels[::100] = 7
small = torch.zeros(100, 80, requires_grad=True)
small_loss = ops.sigmoid_focal_loss(small, labels[:100], reduction=sys.argv[1])
(small_loss.sum() / 3).backward()  # code and small pools are in memory now
x = torch.zeros(200_000, 80).requires_grad_()
before = peak()
loss = ops.sigmoid_focal_loss(x, labels, reduction=sys.argv[1])
(loss / 3).backward(torch.ones_like(loss) if loss.dim() else None)
print((peak() - before) / x.nbytes)
"""


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_memory(cpu_level, reduction):
    """Forward and backward take the gradient's size, nothing else of the logits'."""
    run = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, reduction], capture_output=True, text=True, check=True
    )
    assert 0.9 < float(run.stdout) < 1.05


def test_more_than_2_31_elements(cpu_level):
    """Untouched pages of bfloat16 zeros are one page: only addresses are large."""
    rows, classes = 2**31 // 2**20 + 2, 2**20
    x = torch.zeros(1, 1, dtype=torch.bfloat16).expand(rows, classes)
    assert x.numel() > 2**31
    labels = torch.full((rows,), -2)
    labels[-1] = classes - 1
    x = torch.zeros(rows, classes, dtype=torch.bfloat16)
    x[-1] = -1000
    x[-1, -1] = 5
    loss = ops.sigmoid_focal_loss(x, labels, -1, reduction="sum", backend="cpp")
    one = reference.sigmoid_focal_loss([x[-1:, -1:]], [labels[-1:] * 0], -1.0, 2.0, True)
    assert_matches(loss, one.bfloat16())


def test_bad_arguments():
    x, t, labels = torch.ones(2, 3), torch.ones(2, 3), torch.tensor([0, 1])
    sigmoid, softmax = ops.sigmoid_focal_loss, ops.softmax_focal_loss
    for call, error, text in [
        (lambda: sigmoid(x, t, reduction="xyz"), ValueError, "Invalid.*xyz"),
        (lambda: softmax(x, labels, reduction="xyz"), ValueError, "Invalid.*xyz"),
        (lambda: sigmoid(x, t, 2), ValueError, "Invalid alpha value: 2"),
        (lambda: sigmoid(x, t, -0.5), ValueError, "Invalid alpha value: -0.5"),
        (lambda: sigmoid(x, t, NAN), ValueError, "Invalid alpha value: nan"),
        (lambda: sigmoid(x, t, 0.5, -1), ValueError, "gamma.*-1"),
        (lambda: softmax(x, labels, gamma=NAN), ValueError, "gamma.*nan"),
        (lambda: sigmoid(x, t[:1]), ValueError, r"targets.*\[2, 3\].*\[1, 3\]"),
        (lambda: sigmoid(x, labels[:1]), ValueError, r"targets.*\[1\]"),
        (lambda: sigmoid(x, labels.float()), TypeError, "targets.*float32"),
        (lambda: sigmoid(x, labels.bool()), TypeError, "targets.*bool"),
        (lambda: sigmoid(x.int(), t), TypeError, "inputs.*int32"),
        (lambda: sigmoid(None, t), TypeError, "inputs.*NoneType"),
        (lambda: sigmoid(x, None), TypeError, "targets.*NoneType"),
        (lambda: sigmoid(x, t.to("meta")), ValueError, "targets.*cpu.*meta"),
        (lambda: sigmoid(x, t, backend="gpu"), ValueError, "gpu.*expected"),
        (lambda: sigmoid([x], [t]), ValueError, "reduction.*list"),
        (lambda: sigmoid([], [], reduction="sum"), ValueError, "inputs.*0"),
        (lambda: sigmoid([x] * 9, [t] * 9, reduction="sum"), ValueError, "inputs.*9"),
        (lambda: sigmoid([x, x], [t], reduction="sum"), ValueError, "targets.*2.*1"),
        (lambda: sigmoid([x, x], t, reduction="sum"), ValueError, r"targets.*6.*\[2, 3\]"),
        (lambda: sigmoid([x, x[:, :2]], [t, t], reduction="sum"), ValueError, r"inputs\[1\]"),
        (lambda: sigmoid([x, x], [t, labels], reduction="sum"), TypeError, "targets"),
        (lambda: sigmoid([x, 3], [t, t], reduction="sum"), TypeError, r"inputs\[1\].*int"),
        (lambda: softmax(x, labels, torch.ones(2)), ValueError, r"alpha.*\[3\].*\[2\]"),
        (lambda: softmax(x[0, 0], labels[0]), ValueError, "inputs"),
        (lambda: softmax(x, labels, backend="cuda"), ValueError, "cuda.*CUDA tensors"),
    ]:
        with pytest.raises(error, match=text):
            call()


def test_raw_op_refuses_what_is_unsafe(cpu_level):
    x, t, labels = torch.ones(2, 3), torch.ones(2, 3), torch.tensor([0, 1])
    for inputs, targets in [
        ([], []),
        ([x] * 9, [t] * 9),
        ([x], []),
        ([x], [t.double()]),
        ([x], [t[:1]]),
        ([x], [labels.int()]),
        ([x], [labels[:1]]),
        ([x, x.double()], [t, t]),
        ([x, x[:, :2]], [labels, labels]),
        ([x, x], [labels, t]),
        ([x.int()], [labels]),
        ([x[0, 0]], [labels[0]]),
    ]:
        with pytest.raises(RuntimeError):
            torch.ops.fastvision.sigmoid_focal_loss(inputs, targets, 0.25, 2.0, True, 1.0)
    for args in [
        ([x, x], [labels, labels], 0.25, 2.0, False, 1.0),
        ([x], [labels], 0.25, -2.0, True, 1.0),
    ]:
        with pytest.raises(RuntimeError):
            torch.ops.fastvision.sigmoid_focal_loss(*args)
    for targets, weights in [
        (t, None),
        (labels, torch.ones(2)),
        (labels, torch.ones(3).double()),
        (labels, torch.ones(3, 1)),
    ]:
        with pytest.raises(RuntimeError):
            torch.ops.fastvision.softmax_focal_loss(x, targets, weights, 2.0, -100, True, 1.0)
    for grads, factor in [
        ([], torch.tensor(2.0)),
        ([x], torch.ones(1)),
        ([x], torch.tensor(2.0).double()),
        ([x.mT], torch.tensor(2.0)),
        ([x, x.double()], torch.tensor(2.0)),
    ]:
        with pytest.raises(RuntimeError):
            torch.ops.fastvision.focal_loss_scale_(grads, factor, 1.0)


def test_library_has_the_kernels(cpu_level):
    assert _extension.missing is None
    names = torch._C._dispatch_get_registrations_for_dispatch_key("CPU")
    for name in ("sigmoid_focal_loss", "softmax_focal_loss", "focal_loss_scale_"):
        assert f"fastvision::{name}" in names
