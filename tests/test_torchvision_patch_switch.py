"""enable() as a switch: between threads, for recorded programs, and off as if it had never been."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastvision
from fastvision import _extension, torchvision_patch
from fastvision.testing import cases
from fastvision.testing.numerics import assert_matches

torchvision = pytest.importorskip("torchvision")
from torchvision import ops  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.skipif(
        _extension.missing is not None, reason=f"needs the CPU kernels: {_extension.missing}"
    ),
]

BOXES, SCORES, CLASSES = cases.clustered_boxes(60), cases.scores(60), cases.classes(60, 3)
FEATURES = cases.feature_map(1, 3, 9, 9)
ROIS = cases.rois(4, 1, height=9, width=9, max_size=6)


@pytest.fixture(autouse=True)
def off_again() -> Iterator[None]:
    assert not torchvision_patch._devices
    yield
    fastvision.disable()
    assert not torchvision_patch._devices


def run_python(code: str, *arguments: str, **environment: str) -> str:
    root = Path(fastvision.__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr  # negative where the process was ended by a signal
    return done.stdout


def operators(function: Callable, *args: object) -> set[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function(*args)
    return {event.name for event in profile.events() if event.name.startswith("fastvision::")}


def pool(features: Tensor, rois: Tensor) -> Tensor:
    return ops.roi_align(features, rois, 3, 1.0, 2)


# --- threads


def test_threads_switch_while_others_call():
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
        """
    )


def test_overlapping_blocks():
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
        assert operators(pool, FEATURES, ROIS) == {"fastvision::roi_align"}
    assert operators(pool, FEATURES, ROIS) == {"fastvision::roi_align"}
    close.set()
    thread.join()
    assert operators(pool, FEATURES, ROIS) == set()


# --- off

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


def test_off_is_torchvision(tmp_path):
    """To the last bit and the last word, in every mode."""
    outcomes = []
    for history in ("never enabled", "enabled once"):
        run_python(OUTCOMES, history, str(tmp_path / history))
        outcomes.append(torch.load(tmp_path / history))
    never, once = outcomes
    assert sum(isinstance(outcome, Tensor) for outcome in never.values()) > 15
    assert never.keys() == once.keys()
    for name, outcome in never.items():
        same = torch.equal if isinstance(outcome, Tensor) else lambda a, b: a == b
        assert same(outcome, once[name]), (name, outcome, once[name])


def test_torchvisions_names_come_back():
    names = {
        (module, name): getattr(sys.modules[module], name)
        for module, name, *_ in [
            ("torchvision.ops.boxes", "_batched_nms_vanilla"),
            ("torchvision.ops.boxes", "_batched_nms_coordinate_trick"),
            ("torchvision.ops.poolers", "_multiscale_roi_align"),
            ("torchvision.ops.roi_align", "is_compile_supported"),
            ("torchvision.ops", "sigmoid_focal_loss"),
        ]
    }
    for _ in range(2):
        with fastvision.enabled():
            meanwhile = {key: getattr(sys.modules[key[0]], key[1]) for key in names}
            assert not any(meanwhile[key] is stock for key, stock in names.items())
        assert all(getattr(sys.modules[key[0]], key[1]) is stock for key, stock in names.items())
    # bound meanwhile
    batched_nms = meanwhile["torchvision.ops.boxes", "_batched_nms_vanilla"]
    assert operators(batched_nms, BOXES, SCORES, CLASSES, 0.5) == set()


# --- recorded programs


class Pool(nn.Module):
    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        return ops.roi_align(features, rois, (3, 3), 1.0, 2)


class PoolUnderAutocast(Pool):
    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(features.bfloat16(), rois)


def targets(program: torch.export.ExportedProgram) -> str:
    return " ".join(
        str(node.target) for m in program.graph_module.modules() for node in m.graph.nodes
    )


@pytest.mark.parametrize(
    ("module", "strict"),  # torch's strict export ignores autocast, for which torchvision fails
    [(Pool(), False), (Pool(), True), (PoolUnderAutocast(), False)],
)
@pytest.mark.parametrize("exported", ["before", "after"])
def test_exported_programs(module, strict, exported):
    if exported == "before":
        program = torch.export.export(module, (FEATURES, ROIS), strict=strict)
    with fastvision.enabled():
        if exported == "after":
            program = torch.export.export(module, (FEATURES, ROIS), strict=strict)
        lowered = program.run_decompositions()
        ran = operators(lowered.module(), FEATURES, ROIS)
    for result in (program, lowered):
        assert "torchvision.roi_align" in targets(result) and "fastvision" not in targets(result)
    assert ran == {"fastvision::roi_align"}
    # and they are complete without us
    expected = module(FEATURES, ROIS)
    assert torch.equal(lowered.module()(FEATURES, ROIS), expected)


def test_watchers_see_torchvisions_operators():
    from torch.fx.experimental.proxy_tensor import make_fx

    def gradient(features: Tensor, rois: Tensor) -> Tensor:
        features = features.detach().requires_grad_()
        return torch.autograd.grad(pool(features, rois).square().sum(), features)[0]

    expected = gradient(FEATURES, ROIS)
    with fastvision.enabled():
        code = make_fx(gradient)(FEATURES, ROIS)
    assert "torchvision.roi_align" in code.code and "torchvision._roi_align_backward" in code.code
    assert "fastvision" not in code.code
    assert torch.equal(code(FEATURES, ROIS), expected)
    with fastvision.enabled():
        assert_matches(code(FEATURES, ROIS), expected, scale=10)


def test_onnx():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    graphs = [torch.onnx.export(Pool(), (FEATURES, ROIS), dynamo=True, verbose=False)]
    with fastvision.enabled():
        graphs.append(torch.onnx.export(Pool(), (FEATURES, ROIS), dynamo=True, verbose=False))
    stock, ours = ([node.op_type for node in graph.model.graph] for graph in graphs)
    assert ours == stock and "RoiAlign" in ours


def test_compiled_programs_follow_the_switch():
    torch.compiler.reset()
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    assert operators(compiled, FEATURES, ROIS) == set()
    with fastvision.enabled():
        assert operators(compiled, FEATURES, ROIS) == {"fastvision::roi_align"}
        torch.compiler.reset()
        assert operators(compiled, FEATURES, ROIS) == {"fastvision::roi_align"}
    assert operators(compiled, FEATURES, ROIS) == set()
    with torch.autocast("cpu", torch.bfloat16), fastvision.enabled():
        mixed = compiled(FEATURES.bfloat16(), ROIS)
    with torch.autocast("cpu", torch.bfloat16):
        expected = pool(FEATURES.bfloat16(), ROIS)
        assert torch.equal(compiled(FEATURES.bfloat16(), ROIS), expected)
    assert_matches(mixed, expected)


COMPILE = """
    import sys, torch, torchvision
    from torch._dynamo.utils import counters
    from torchvision import ops
    if sys.argv[1] != "stock":
        import fastvision
        fastvision.enable()
    if sys.argv[1] == "off again":
        fastvision.disable()
    torch.manual_seed(0)
    boxes, scores = torch.rand(1500, 4), torch.rand(1500)
    features, rois = torch.ones(2, 4, 10, 10), torch.tensor([[0.0, 0, 0, 9, 9]])
    for function, args in (
        (lambda x, r: ops.roi_align(x, r, (2, 2)) * 2, (features, rois)),
        (lambda b, s: ops.nms(b, s, 0.5) * 2, (boxes, scores)),
        (lambda b, s, i: ops.batched_nms(b, s, i, 0.5) * 2, (boxes, scores, boxes[:, 0].long())),
    ):
        before = counters["inductor"].copy()
        torch.testing.assert_close(torch.compile(function)(*args), function(*args))
        found = counters["inductor"] - before
        print(found["fxgraph_cache_miss"] > 0, found["fxgraph_cache_hit"] > 0)
"""


def test_compile_caches_on_disk(tmp_path):
    """Programs compiled with us and without do not mix, and each finds its own again."""
    missed, hit = "True False", "False True"
    for who, expected in (("on", missed), ("stock", missed), ("on", hit), ("off again", hit)):
        found = run_python(COMPILE, who, TORCHINDUCTOR_CACHE_DIR=str(tmp_path)).splitlines()
        assert len(found) == 3
        assert found[:2] == [expected] * 2, who  # what compiles of batched_nms depends on who it is


def test_cache_tag_of_others():
    from torch.compiler import config

    original = config.cache_key_tag
    try:
        config.cache_key_tag = "mine"
        with fastvision.enabled():
            assert config.cache_key_tag.startswith("mine") and config.cache_key_tag != "mine"
            with fastvision.enabled():
                pass
            assert config.cache_key_tag != "mine"
        assert config.cache_key_tag == "mine"
        with fastvision.enabled():
            config.cache_key_tag = "other"
        assert config.cache_key_tag == "other"
    finally:
        config.cache_key_tag = original


def test_cache_tag_in_every_thread():
    """torch keeps its options per thread."""
    from torch.compiler import config

    tags = []

    def compile_and_look() -> None:
        torch.compiler.reset()
        torch.compile(pool, backend="aot_eager")(FEATURES, ROIS)
        tags.append(config.cache_key_tag)

    with fastvision.enabled():
        thread = threading.Thread(target=compile_and_look)
        thread.start()
        thread.join()
        compile_and_look()
    compile_and_look()
    assert tags[0] == tags[1] != tags[2]


# --- ties


class BatchedNms(nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor, classes: Tensor) -> Tensor:
        return torchvision.ops.boxes.batched_nms(boxes, scores, classes, 0.5)


@pytest.mark.parametrize("count", [900, 1500])  # torchvision loops over classes from 1001 on
@pytest.mark.parametrize("levels", [1, 5, 10**6])
def test_order_of_equal_scores(count, levels):
    """torchvision's, in eager mode and in TorchScript, whether scripted before or after."""
    boxes, classes = cases.clustered_boxes(count), cases.classes(count, 5)
    scores = (cases.scores(count) * levels).ceil() / levels
    arguments = boxes, scores, classes
    before = torch.jit.script(BatchedNms())
    expected = BatchedNms()(*arguments)
    with fastvision.enabled():
        after = torch.jit.script(BatchedNms())
        for module in (BatchedNms(), before, after):
            assert torch.equal(module(*arguments), expected)
            assert operators(module, *arguments) == {"fastvision::nms"}
        compiled = torch.compile(BatchedNms(), fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(*arguments), expected)
        scores[::7] = float("nan")
        with_nan = BatchedNms()(*arguments)
    assert torch.equal(BatchedNms()(*arguments), with_nan)
