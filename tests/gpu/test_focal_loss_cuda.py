"""What only a GPU can show of focal loss: torch's tensors, streams, graphs, size. Both backends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastvision import ops
from fastvision.ops._backend import unsupported
from fastvision.testing import cases
from fastvision.testing.numerics import DTYPES, assert_matches
from fastvision.testing.tensors import dtype_id

pytestmark = pytest.mark.gpu
KINDS = pytest.mark.parametrize("kind", ["labels", "numbers", "softmax"])


@pytest.fixture(params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    if (reason := unsupported(request.param, "cuda", 0)) is not None:
        pytest.skip(reason)
    return request.param


def inputs(
    kind: str, rows: int = 3001, classes: int = 91, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    x = (4 * cases.feature_map(rows, classes)).to(dtype)
    labels = cases.classes(rows, classes)
    if kind != "softmax":
        labels = torch.where(torch.rand(rows, generator=cases.generator(5)) < 0.1, labels, -1)
    if kind == "numbers":
        labels = (labels[:, None] == torch.arange(classes)).to(dtype)
    return x.cuda(), labels.cuda()


def loss_of(x: Tensor, targets: Tensor, kind: str, backend: str, reduction: str = "sum") -> Tensor:
    op = ops.softmax_focal_loss if kind == "softmax" else ops.sigmoid_focal_loss
    return op(x, targets, reduction=reduction, backend=backend)


def loss_and_grad(x: Tensor, *args) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    loss = loss_of(x, *args)
    return loss.detach(), torch.autograd.grad(loss, x, torch.full_like(loss, 0.25))[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@KINDS
@pytest.mark.parametrize("classes", [1, 7, 80, 91, 1203])
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_matches_the_reference(
    kind: str, dtype: torch.dtype, classes: int, reduction: str, backend: str
) -> None:
    x, targets = inputs(kind, 400, classes, dtype)
    loss, grad = loss_and_grad(x, targets, kind, backend, reduction)
    wide = targets.double() if kind == "numbers" else targets
    expected, expected_grad = loss_and_grad(x.double(), wide, kind, "reference", reduction)
    assert_matches(loss, expected)
    assert_matches(grad, expected_grad, scale=2)


def test_matches_torchvision(backend: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    x, targets = inputs("numbers", 20_000, 80)
    x.requires_grad_()
    loss = loss_of(x, targets, "numbers", backend)
    expected = torchvision.ops.sigmoid_focal_loss(x, targets, reduction="sum")
    assert_matches(loss, expected)
    (grad,) = torch.autograd.grad(loss, x)
    assert_matches(grad, torch.autograd.grad(expected, x)[0], scale=2)


@KINDS
def test_same_bits_in_every_run(kind: str, backend: str) -> None:
    x, targets = inputs(kind, 100_000, 80)
    results = [loss_and_grad(x, targets, kind, backend) for _ in range(5)]
    for loss, grad in results[1:]:
        assert loss.equal(results[0][0]) and grad.equal(results[0][1])


def test_levels(backend: str) -> None:
    x, labels = inputs("labels", 2 * 1500, 80)
    x, labels = x.view(2, 1500, 80), labels.view(2, 1500)
    levels = [part.detach().requires_grad_() for part in x.split((1000, 400, 0, 100), 1)]
    loss = ops.sigmoid_focal_loss(levels, labels, reduction="sum", backend=backend)
    whole, grad = loss_and_grad(x, labels, "labels", backend)
    assert_matches(loss, whole)
    grads = torch.autograd.grad(loss, levels, torch.full_like(loss, 0.25))
    assert_matches(torch.cat(grads, 1), grad)


@KINDS
def test_cuda_graph(kind: str, backend: str) -> None:
    x, targets = inputs(kind, dtype=torch.bfloat16)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        loss_and_grad(x, targets, kind, backend)  # compiles
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, grad = loss_and_grad(x, targets, kind, backend)
    for shift in (0.5, -0.5):
        x.add_(shift)
        graph.replay()
        expected, expected_grad = loss_and_grad(x, targets, kind, backend)
        assert loss.equal(expected) and grad.equal(expected_grad)


@KINDS
def test_no_synchronisation(kind: str, backend: str) -> None:
    x, targets = inputs(kind)
    loss_and_grad(x, targets, kind, backend, "mean")
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss_and_grad(x, targets, kind, backend, "mean")
    finally:
        torch.cuda.set_sync_debug_mode("default")


@KINDS
def test_poisoned_memory_is_overwritten(kind: str, backend: str) -> None:
    poison = torch.full((64 << 20,), float("nan"), device="cuda")
    del poison  # the next allocations come from it
    x, targets = inputs(kind)
    for reduction in ("none", "sum"):
        loss, grad = loss_and_grad(x, targets, kind, backend, reduction)
        assert loss.isfinite().all() and grad.isfinite().all()


@pytest.mark.parametrize("kind", ["labels", "softmax"])
def test_bad_labels_are_nan(kind: str, backend: str) -> None:
    x, targets = inputs(kind, 10, 5)
    targets[3] = 2**40
    loss, grad = loss_and_grad(x, targets, kind, backend, "none")
    assert loss[3].isnan().all() and grad[3].isnan().all()
    assert loss[4:].isfinite().all() and grad[4:].isfinite().all()


def test_memory(backend: str) -> None:
    """Forward and backward take the gradient's size, and next to nothing else."""
    x, targets = inputs("labels", 100_000, 80)
    loss_and_grad(x, targets, "labels", backend)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss_and_grad(x, targets, "labels", backend)
    assert torch.cuda.max_memory_allocated() - before < 1.05 * x.nbytes


@pytest.mark.parametrize("kind", ["labels", "numbers"])
def test_more_than_2_31_elements(kind: str, backend: str) -> None:
    rows, classes = 2**31 // 80 + 1000, 80
    free, _ = torch.cuda.mem_get_info()
    if free < 16 << 30:
        pytest.skip("needs 16 GiB of free device memory")
    x = torch.full((rows, classes), -100.0, dtype=torch.bfloat16, device="cuda")
    part, targets_of_part = inputs(kind, 500, classes, torch.bfloat16)
    x[-500:] = part
    background = torch.full((rows,), -1, device="cuda")
    targets = background if kind == "labels" else torch.zeros_like(x)
    targets[-500:] = targets_of_part
    assert x.numel() > 1 << 31
    loss, grad = loss_and_grad(x, targets, kind, backend)
    expected, expected_grad = loss_and_grad(part, targets_of_part, kind, backend)
    assert_matches(loss, expected)
    assert_matches(grad[-500:], expected_grad)
    assert not grad[:1000].any()
