"""enable() and torchvision's focal loss, which no dispatcher reaches: it is replaced by name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastvision
from fastvision.testing import cases
from fastvision.testing.numerics import assert_matches

pytest.importorskip("torchvision.ops")
from torchvision import ops  # noqa: E402
from torchvision.models import detection  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning"),
    pytest.mark.usefixtures("needs_kernels"),
]
NAMES = [
    "torchvision.ops",
    "torchvision.ops.focal_loss",
    "torchvision.models.detection.fcos",
    "torchvision.models.detection.retinanet",
]
STOCK = ops.sigmoid_focal_loss
OUR_OP = "fastvision::sigmoid_focal_loss"

LOGITS = cases.feature_map(30, 7) * 4
TARGETS = (torch.rand(30, 7, generator=cases.generator(1)) < 0.1).float()


@pytest.fixture
def runs_ours(our_ops) -> Callable[..., bool]:
    return lambda function, *args: OUR_OP in our_ops(function, *args)


def loss_and_gradient(inputs: Tensor, targets: Tensor, *args) -> tuple[Tensor, Tensor]:
    inputs = inputs.detach().clone().requires_grad_()
    loss = ops.sigmoid_focal_loss(inputs, targets, *args)
    return loss.detach(), torch.autograd.grad(loss.square().sum(), inputs)[0]


@pytest.mark.parametrize("name", NAMES)
def test_every_binding(name, runs_ours):
    module = importlib.import_module(name)
    assert module.sigmoid_focal_loss is STOCK
    with fastvision.enabled():
        replaced = module.sigmoid_focal_loss
        assert replaced is not STOCK
        assert inspect.signature(replaced) == inspect.signature(STOCK)
        assert replaced.__doc__ == STOCK.__doc__
        assert runs_ours(replaced, LOGITS, TARGETS)
        with fastvision.enabled():
            assert module.sigmoid_focal_loss is replaced
    assert module.sigmoid_focal_loss is STOCK
    # a name bound meanwhile
    assert not runs_ours(replaced, LOGITS, TARGETS)
    assert torch.equal(replaced(LOGITS, TARGETS), STOCK(LOGITS, TARGETS))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2), (-1, 0), (0.7, 1.5)])
def test_same_answers(alpha, gamma, reduction):
    for inputs, targets in [
        (LOGITS, TARGETS),
        (LOGITS.double(), TARGETS.double()),
        (LOGITS.mT, TARGETS.mT),
        (LOGITS[:, ::2], TARGETS[:, ::2]),
        (LOGITS[:0], TARGETS[:0]),
    ]:
        expected, expected_grad = loss_and_gradient(inputs, targets, alpha, gamma, reduction)
        with fastvision.enabled():
            loss, grad = loss_and_gradient(inputs, targets, alpha, gamma, reduction)
        assert loss.dtype == expected.dtype and loss.shape == expected.shape
        assert_matches(loss, expected)
        assert_matches(grad, expected_grad, scale=4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    expected, expected_grad = loss_and_gradient(LOGITS.to(dtype).float(), TARGETS)
    with fastvision.enabled():
        loss, grad = loss_and_gradient(LOGITS.to(dtype), TARGETS.to(dtype))
    assert loss.dtype == grad.dtype == dtype
    assert_matches(loss, expected)
    assert_matches(grad, expected_grad, scale=4)
    with torch.autocast("cpu", dtype):
        theirs = STOCK(LOGITS.to(dtype), TARGETS, reduction="sum")
        with fastvision.enabled():
            ours = ops.sigmoid_focal_loss(LOGITS.to(dtype), TARGETS, reduction="sum")
    assert ours.dtype == theirs.dtype == torch.float32


def test_same_errors():
    for args in [
        (LOGITS, TARGETS, 0.25, 2, "xyz"),
        (LOGITS, TARGETS, 2.0),
        (LOGITS, TARGETS[:1]),
        (LOGITS, TARGETS.long()),
        (LOGITS.long(), TARGETS),
        (LOGITS, TARGETS.to("meta")),
    ]:
        with pytest.raises(Exception) as stock:
            STOCK(*args)
        with fastvision.enabled(), pytest.raises(stock.type):
            ops.sigmoid_focal_loss(*args)
    with pytest.raises(ValueError, match="Invalid"), fastvision.enabled():
        ops.sigmoid_focal_loss(LOGITS, TARGETS, reduction="xyz")


def test_what_stays_with_torchvision(runs_ours):
    with fastvision.enabled():
        assert not runs_ours(ops.sigmoid_focal_loss, LOGITS, TARGETS, 0.25, -0.5)
        traced = torch.jit.trace(lambda x, t: ops.sigmoid_focal_loss(x, t), (LOGITS, TARGETS))
    assert_matches(traced(LOGITS, TARGETS), STOCK(LOGITS, TARGETS))


def in_script(x: Tensor, t: Tensor) -> Tensor:
    return ops.sigmoid_focal_loss(x, t, reduction="sum")


def test_torchscript():
    """Compiles torchvision's source, and runs as that does."""
    with fastvision.enabled():
        scripted = torch.jit.script(in_script)
        alone = torch.jit.script(ops.sigmoid_focal_loss)
        assert_matches(scripted(LOGITS, TARGETS), in_script(LOGITS, TARGETS))
    assert_matches(alone(LOGITS, TARGETS), STOCK(LOGITS, TARGETS))


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_compile(compiler, runs_ours):
    torch.compiler.reset()

    def step(x: Tensor, t: Tensor) -> Tensor:
        return ops.sigmoid_focal_loss(x * 2, t, reduction="sum")

    expected = step(LOGITS, TARGETS)
    with fastvision.enabled():
        compiled = torch.compile(step, fullgraph=True, backend=compiler)
        x = LOGITS.clone().requires_grad_()
        loss = compiled(x, TARGETS)
        (grad,) = torch.autograd.grad(loss, x)
        assert runs_ours(compiled, x, TARGETS)
    assert_matches(loss, expected)
    x = LOGITS.clone().requires_grad_()
    assert_matches(grad, torch.autograd.grad(step(x, TARGETS), x)[0], scale=4)


def retinanet_loss(head: nn.Module, logits: Tensor, targets: list, matched: list) -> Tensor:
    return head.compute_loss(targets, {"cls_logits": logits}, matched)


def fcos_loss(head: nn.Module, logits: Tensor, targets: list, matched: list) -> Tensor:
    boxes = torch.tensor([[0.0, 0, 10, 10]]).expand(logits.shape[1], 4)
    outputs = {
        "cls_logits": logits,
        "bbox_regression": torch.ones(*logits.shape[:2], 4),
        "bbox_ctrness": torch.zeros(*logits.shape[:2], 1),
    }
    return head.compute_loss(targets, outputs, [boxes] * len(targets), matched)["classification"]


@pytest.mark.parametrize(
    ("loss_of", "head"),
    [
        (retinanet_loss, detection.retinanet.RetinaNetClassificationHead(32, 1, 7)),
        (fcos_loss, detection.fcos.FCOSHead(32, 1, 7)),
    ],
    ids=["retinanet", "fcos"],
)
def test_detectors_train_on_our_kernel(loss_of, head, runs_ours):
    """Heads built before: the loss and its gradient are the same, from our op."""
    targets = [{"boxes": torch.tensor([[1.0, 1, 9, 8]]), "labels": torch.tensor([2])}] * 2
    matched = [torch.tensor([-1] * 10 + [0] * 3 + [-2] * 2)] * 2
    x = LOGITS.view(2, 15, 7).clone().requires_grad_()
    expected = loss_of(head, x, targets, matched)
    (expected_grad,) = torch.autograd.grad(expected, x)
    with fastvision.enabled():
        assert runs_ours(loss_of, head, x, targets, matched)
        loss = loss_of(head, x, targets, matched)
        (grad,) = torch.autograd.grad(loss, x)
    assert_matches(loss, expected)
    assert_matches(grad, expected_grad)
