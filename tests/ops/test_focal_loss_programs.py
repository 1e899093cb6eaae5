"""The focal losses under torch's machinery: compile, export, autocast, modules, meta tensors."""

from __future__ import annotations

import pytest
import torch

from fastvision import _extension, ops
from fastvision.testing import cases
from fastvision.testing.focal_loss import differentiate, logits, make_targets
from fastvision.testing.numerics import assert_matches
from fastvision.testing.tensors import dtype_id, leaf

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    # Triton's interpreter computes with infinities and NaN as they come
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


@pytest.mark.parametrize("reduce", [False, True])
@pytest.mark.parametrize("grad_scale", [0.0, 0.5])
# the reference is plain PyTorch, with no op of its own
@pytest.mark.only(lambda backend: backend.name != "reference")
def test_opcheck(backend, grad_scale, reduce):
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_id)
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


def test_library_has_the_kernels(cpu_level):
    assert _extension.missing is None
    names = torch._C._dispatch_get_registrations_for_dispatch_key("CPU")
    for name in ("sigmoid_focal_loss", "softmax_focal_loss", "focal_loss_scale_"):
        assert f"fastvision::{name}" in names
