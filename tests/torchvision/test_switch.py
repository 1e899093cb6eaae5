"""On and off: nested, between threads, and off as if it had never been on."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fastvision
from fastvision.integrations.torchvision import devices
from fastvision.testing.detection import BOXES, CLASSES, FEATURES, ROIS, SCORES

pytest.importorskip("torchvision.ops")
from torchvision import ops  # noqa: E402

from .pooling import pool  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),
]
needs_kernels = pytest.mark.usefixtures("needs_kernels")
OURS = {"fastvision::nms", "fastvision::roi_align", "fastvision::roi_align_backward"}


@pytest.fixture
def all_calls(pool_with_gradient, multiscale) -> Callable[[], None]:
    def call() -> None:
        ops.nms(BOXES, SCORES, 0.5)
        ops.batched_nms(BOXES, SCORES, CLASSES, 0.5)
        pool_with_gradient(pool, FEATURES, ROIS)
        module, *arguments = multiscale(2)
        module(*arguments)

    return call


def names() -> list[object]:
    modules = ("boxes", "poolers", "roi_align")
    return [dict(vars(sys.modules[f"torchvision.ops.{module}"])) for module in modules]


@needs_kernels
def test_reversible(stock, our_ops, pool_with_gradient, all_calls):
    before = names()
    expected = stock(pool_with_gradient, pool, FEATURES, ROIS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastvision.enable()
        fastvision.enable()
        with fastvision.enabled(), fastvision.enabled():
            assert our_ops(all_calls) == OURS
    assert our_ops(all_calls) == OURS  # enable() outlives the blocks
    torch._dynamo.reset()  # other files compile the same function
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    assert our_ops(pool_with_gradient, compiled, FEATURES, ROIS) == OURS - {"fastvision::nms"}
    assert names() != before
    fastvision.disable()
    assert our_ops(all_calls) == set()
    assert names() == before
    with pytest.raises(RuntimeError):  # stock again: no bfloat16 on the CPU
        ops.nms(BOXES.bfloat16(), SCORES.bfloat16(), 0.5)
    assert torch.equal(pool_with_gradient(pool, FEATURES, ROIS)[1], expected[1])
    torch._dynamo.reset()
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    results = pool_with_gradient(compiled, FEATURES, ROIS)
    assert results[1] is not None and torch.equal(results[1], expected[1])
    with fastvision.enabled():
        with fastvision.enabled():
            fastvision.disable()  # the blocks decide
        assert our_ops(all_calls) == OURS
    assert our_ops(all_calls) == set()


def test_without_kernels(monkeypatch, our_ops, all_calls):
    monkeypatch.setattr(devices, "has_kernels", lambda device: False)
    with pytest.warns(UserWarning, match="changes nothing"), fastvision.enabled():
        assert our_ops(all_calls) == set()


@needs_kernels
def test_threads():
    expected = ops.nms(BOXES, SCORES, 0.5)
    wrong = []

    def work() -> None:
        for _ in range(20):
            with fastvision.enabled():
                if not torch.equal(ops.nms(BOXES, SCORES, 0.5), expected):
                    wrong.append(1)
                if not devices.active:  # another thread's block must not end ours
                    wrong.append(2)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@needs_kernels
def test_threads_switch_while_others_call(run_python):
    """In a fresh process: the first enable(), too, happens while others call."""
    run_python(
        """
        import threading, torch, torchvision, fastvision
        from torchvision import ops
        features = torch.randn(1, 3, 9, 9)
        rois = torch.tensor([[0.0, 1, 1, 5, 5], [0, 2, 2, 7, 8]])
        boxes = torch.rand(60, 2) * 50
        boxes, scores = torch.cat([boxes, boxes + 20], 1), torch.rand(60)
        classes = torch.randint(0, 3, (60,))

        def call():
            leaf = features.clone().requires_grad_()
            pooled = ops.roi_align(leaf, rois, 3)
            pooled.sum().backward()
            return (
                pooled, leaf.grad, ops.nms(boxes, scores, 0.5),
                ops.batched_nms(boxes, scores, classes, 0.5),
            )

        expected = call()
        wrong = []

        def work():
            try:
                for _ in range(150):
                    with fastvision.enabled():
                        results = [*call()]
                    results += call()
                    for result, wanted in zip(results, expected * 2, strict=True):
                        torch.testing.assert_close(result, wanted)
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong, wrong[0]
        """,
        warnings="ignore",
    )


@needs_kernels
def test_overlapping_blocks(our_ops):
    """The setting is one for all threads: it is on as long as any block is open."""
    opened, close = threading.Event(), threading.Event()

    def work() -> None:
        with fastvision.enabled():
            opened.set()
            close.wait()

    thread = threading.Thread(target=work)
    thread.start()
    opened.wait()
    with fastvision.enabled():
        assert our_ops(pool, FEATURES, ROIS) == {"fastvision::roi_align"}
    assert our_ops(pool, FEATURES, ROIS) == {"fastvision::roi_align"}
    close.set()
    thread.join()
    assert our_ops(pool, FEATURES, ROIS) == set()


OUTCOMES = """
    import sys, torch, torchvision
    if sys.argv[1] == "enabled once":
        import fastvision
        fastvision.enable()
        torchvision.ops.nms(torch.rand(3, 4), torch.rand(3), 0.5)
        fastvision.disable()
    from torch._subclasses import FakeTensorMode
    from torchvision import ops

    torch.manual_seed(0)
    corners = torch.rand(300, 2) * 100
    boxes, scores = torch.cat([corners, corners + 20], 1), torch.rand(300)
    classes = torch.randint(0, 5, (300,))
    features = torch.randn(2, 3, 12, 12)
    rois = torch.cat([torch.randint(0, 2, (9, 1)), boxes[:9] / 10], 1)

    def pool(x, r=rois):
        return ops.roi_align(x, r, 3, 0.5, 2)

    def gradients(x, order=1):
        x = x.detach().clone().requires_grad_()
        result = pool(x)
        for _ in range(order):
            (result,) = torch.autograd.grad(result.square().sum(), x, create_graph=True)
        return result.detach()

    def autocast(function, *args):
        with torch.autocast("cpu", torch.bfloat16):
            return function(*args)

    def dual(x):
        with torch.autograd.forward_ad.dual_level():
            return pool(torch.autograd.forward_ad.make_dual(x, x))

    def fake(function, *args):
        with FakeTensorMode() as mode:
            result = function(*(mode.from_tensor(arg) for arg in args))
        return str(tuple(result.shape)), str(result.dtype)

    def inference(function, *args):
        with torch.inference_mode():
            return function(*args).clone()

    def quantized(x):
        q = torch.quantize_per_tensor(x[:1], 0.1, 0, torch.qint8)
        r = torch.quantize_per_tensor(rois * torch.tensor([0, 1, 1, 1, 1]), 1, 0, torch.qint8)
        return pool(q, r).int_repr()

    def in_script(x, r):
        return torchvision.ops.roi_align(x, r, [3, 3], 0.5, 2)

    calls = {
        "nms": lambda: ops.nms(boxes, scores, 0.5),
        "nms, double": lambda: ops.nms(boxes.double(), scores.double(), 0.5),
        "nms, bfloat16": lambda: ops.nms(boxes.bfloat16(), scores.bfloat16(), 0.5),
        "nms, mixed": lambda: ops.nms(boxes, scores.double(), 0.5),
        "nms, shape": lambda: ops.nms(boxes[0], scores, 0.5),
        "nms, inference": lambda: inference(ops.nms, boxes, scores, 0.5),
        "nms, autocast": lambda: autocast(ops.nms, boxes, scores.bfloat16(), 0.5),
        "nms, meta": lambda: ops.nms(boxes.to("meta"), scores.to("meta"), 0.5),
        "nms, requires grad": lambda: ops.nms(boxes.clone().requires_grad_(), scores, 0.5),
        "nms, vmap": lambda: torch.vmap(lambda b: ops.nms(b, scores, 0.5))(boxes[None]),
        "batched": lambda: ops.batched_nms(boxes, scores, classes, 0.5),
        "batched, many": lambda: ops.batched_nms(
            boxes.repeat(5, 1), scores.repeat(5), classes.repeat(5), 0.5),
        "roi_align": lambda: pool(features),
        "roi_align, double": lambda: pool(features.double(), rois.double()),
        "roi_align, mixed": lambda: pool(features.double()),
        "roi_align, integer": lambda: pool(features.int()),
        "roi_align, inference": lambda: inference(pool, features),
        "roi_align, autocast": lambda: autocast(pool, features.bfloat16()),
        "roi_align, autocast gradients": lambda: autocast(gradients, features.bfloat16()),
        "roi_align, gradients": lambda: gradients(features),
        "roi_align, twice": lambda: gradients(features, 2),
        "roi_align, dual": lambda: dual(features),
        "roi_align, func": lambda: torch.func.grad(lambda x: pool(x).square().sum())(features),
        "roi_align, vmap": lambda: torch.vmap(pool)(features[None]),
        "roi_align, meta": lambda: str(pool(features.to("meta"), rois.to("meta")).shape),
        "roi_align, meta mixed": lambda: pool(features.double().to("meta"), rois.to("meta")),
        "roi_align, fake": lambda: fake(pool, features, rois),
        "roi_align, fake mixed": lambda: fake(pool, features.double(), rois),
        "roi_align, quantized": lambda: quantized(features),
        "roi_align, script": lambda: torch.jit.script(in_script)(features, rois),
        "roi_align, compiled": lambda: torch.compile(pool, backend="aot_eager")(features, rois),
        "pooler": lambda: ops.MultiScaleRoIAlign(["0"], 3, 2)(
            {"0": features}, [boxes[:3], boxes[3:5]], [(48, 48)] * 2),
        "focal loss": lambda: ops.sigmoid_focal_loss(features, features.sigmoid()),
    }
    outcomes = {}
    for name, call in calls.items():
        try:
            outcomes[name] = call()
        except Exception as error:
            # without the address or the source file that some messages have
            message = str(error).splitlines()[0].split(" at 0x")[0].split(" (/")[0]
            outcomes[name] = type(error).__name__, message
    torch.save(outcomes, sys.argv[2])
"""


@needs_kernels
def test_off_is_torchvision(tmp_path, run_python):
    """To the last bit and the last word, in every mode."""
    outcomes = []
    for history in ("never enabled", "enabled once"):
        run_python(OUTCOMES, history, str(tmp_path / history), warnings="ignore")
        outcomes.append(torch.load(tmp_path / history))
    never, once = outcomes
    assert sum(isinstance(outcome, Tensor) for outcome in never.values()) > 15
    assert never.keys() == once.keys()
    for name, outcome in never.items():
        same = torch.equal if isinstance(outcome, Tensor) else lambda a, b: a == b
        assert same(outcome, once[name]), (name, outcome, once[name])
