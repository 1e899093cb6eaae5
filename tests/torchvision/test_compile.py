"""torch.compile while enabled, and the cache that it has on disk."""

from __future__ import annotations

import threading

import pytest
import torch

import fastvision
from fastvision.testing import cases
from fastvision.testing.detection import BOXES, FEATURES, ROIS, SCORES
from fastvision.testing.numerics import assert_matches

pytest.importorskip("torchvision.ops")
from torchvision import ops  # noqa: E402

from .pooling import pool  # noqa: E402

pytestmark = [
    pytest.mark.long,
    pytest.mark.usefixtures("needs_kernels", "one_thread"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_roi_align(on, backend, pool_with_gradient):
    torch._dynamo.reset()
    compiled = torch.compile(pool, fullgraph=True, backend=backend)
    expected = pool_with_gradient(pool, FEATURES, ROIS)
    for result, wanted in zip(pool_with_gradient(compiled, FEATURES, ROIS), expected, strict=True):
        assert torch.equal(result, wanted)
    # the gradient is contiguous in the program, as torchvision's, so sums are rounded differently
    features = FEATURES.contiguous(memory_format=torch.channels_last)
    for result, wanted in zip(pool_with_gradient(compiled, features, ROIS), expected, strict=True):
        assert_matches(result, wanted, scale=10)
    if backend == "inductor":
        return
    with torch.autocast("cpu", torch.bfloat16):
        pooled, grad = pool_with_gradient(compiled, FEATURES.bfloat16(), ROIS[:5])
    assert pooled.dtype == grad.dtype == torch.bfloat16
    with torch.inference_mode():
        assert torch.equal(compiled(FEATURES, ROIS), pool(FEATURES, ROIS))


@pytest.mark.parametrize("count", [0, 1, 300])
def test_compile_nms(on, count):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda boxes, scores: ops.nms(boxes, scores, 0.5) * 2, fullgraph=True, backend="aot_eager"
    )
    result = compiled(BOXES[:count], SCORES[:count])
    assert torch.equal(result, ops.nms(BOXES[:count], SCORES[:count], 0.5) * 2)
    many = count * 5  # torchvision cannot compile its loop over classes
    boxes, scores, classes = cases.clustered_boxes(many), cases.scores(many), cases.classes(many, 5)
    compiled = torch.compile(ops.batched_nms, fullgraph=True, backend="aot_eager")
    result = compiled(boxes, scores, classes, 0.5)
    assert torch.equal(result, ops.batched_nms(boxes, scores, classes, 0.5))


def test_compile_multiscale_roi_align(on, multiscale):
    torch._dynamo.reset()
    module, *arguments = multiscale(3)
    expected = module(*arguments)  # the first call sets the scales
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), expected)


def test_compiled_before_runs_after(pool_with_gradient):
    torch._dynamo.reset()
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    features = FEATURES.contiguous(memory_format=torch.channels_last)
    expected = pool_with_gradient(compiled, features, ROIS)
    with fastvision.enabled():
        results = pool_with_gradient(compiled, features, ROIS)
    for result, wanted in zip(results, expected, strict=True):
        assert_matches(result, wanted, scale=10)


def test_compiled_programs_follow_the_switch(our_ops):
    torch.compiler.reset()
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    assert our_ops(compiled, FEATURES, ROIS) == set()
    with fastvision.enabled():
        assert our_ops(compiled, FEATURES, ROIS) == {"fastvision::roi_align"}
        torch.compiler.reset()
        assert our_ops(compiled, FEATURES, ROIS) == {"fastvision::roi_align"}
    assert our_ops(compiled, FEATURES, ROIS) == set()
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


def test_compile_caches_on_disk(tmp_path, run_python):
    """Programs compiled with us and without do not mix, and each finds its own again."""
    missed, hit = "True False", "False True"
    for who, expected in (("on", missed), ("stock", missed), ("on", hit), ("off again", hit)):
        found = run_python(
            COMPILE, who, warnings="ignore", TORCHINDUCTOR_CACHE_DIR=str(tmp_path)
        ).splitlines()
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
