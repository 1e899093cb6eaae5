"""The focal losses at their limits: infinities, NaN, labels out of range, size, wrong arguments."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from fastvision import ops, reference
from fastvision.testing.focal_loss import differentiate, logits, make_targets
from fastvision.testing.numerics import DTYPES, assert_matches
from fastvision.testing.tensors import dtype_id, leaf

INF, NAN = math.inf, math.nan
pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    # Triton's interpreter computes with infinities and NaN as they come
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


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


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_large_logits(backend, dtype):
    """Where e^x overflows, a wrong answer loses |x| and a right one nothing."""
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
