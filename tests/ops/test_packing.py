"""What is kept of weights: fingerprints, life time, threads and processes."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastvision import _extension, ops
from fastvision.ops.conv import packing
from fastvision.testing.marks import needs_library
from fastvision.testing.numerics import assert_matches

pytestmark = needs_library
C = 12


def test_a_write_while_weights_are_packed(monkeypatch):
    """What was packed of half-written weights is not kept."""
    torch.manual_seed(0)
    x, weight = torch.randn(4, 512), torch.randn(2048, 512)
    original = weight.clone()
    pack = torch.ops.fastvision.conv_pack.default
    from fastvision.ops.conv import linear as linear_act

    with torch.no_grad():

        def interrupted(tensors, taps):
            made = interrupted.pack(tensors, taps)
            weight.data.mul_(2)  # somebody publishes new weights
            return made

        interrupted.pack = linear_act._pack
        monkeypatch.setattr(linear_act, "_pack", interrupted)
        ops.linear_act(x, weight, activation="none")
        monkeypatch.undo()
        assert_matches(ops.linear_act(x, weight, activation="none"), x @ weight.T, scale=8)
        weight.data.copy_(original)
        assert_matches(ops.linear_act(x, weight, activation="none"), x @ weight.T, scale=8)
    assert pack is torch.ops.fastvision.conv_pack.default


def test_threads_that_write_and_read():
    torch.manual_seed(0)
    x = torch.randn(4, 512)
    for _ in range(10):
        weight = torch.randn(2048, 512)
        started = threading.Event()

        def serve(weight=weight, started=started):
            started.set()
            with torch.no_grad():
                ops.linear_act(x, weight, activation="none")

        thread = threading.Thread(target=serve)
        thread.start()
        started.wait()
        weight.mul_(2)
        thread.join()
        with torch.no_grad():
            assert_matches(ops.linear_act(x, weight, activation="none"), x @ weight.T, scale=8)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_fork_while_others_pack():
    """No lock of the package's may be held in the child."""
    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    x, stop = torch.ones(2, 32, 8, 8), threading.Event()

    def pack() -> None:
        with torch.no_grad():
            while not stop.is_set():
                ops.conv_bn_relu(x, torch.ones(64, 32, 1, 1))

    workers = [threading.Thread(target=pack) for _ in range(3)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                import faulthandler

                faulthandler.dump_traceback_later(60, exit=True)
                with torch.no_grad():
                    ops.conv_bn_relu(x, torch.ones(64, 32, 1, 1))
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
    finally:
        stop.set()
        for worker in workers:
            worker.join()
        torch.set_num_threads(threads_before)


def test_packs_go_with_their_weight():
    weight = torch.randn(8, C, 3, 3)
    x = torch.randn(1, C, 6, 6)
    gc.collect()
    known = len(packing._entries)
    ops.conv_bn_relu(x, weight)
    assert len(packing._entries) == known + 1
    storage = weakref.ref(weight.untyped_storage())
    del weight
    gc.collect()
    assert storage() is None
    assert len(packing._entries) == known


def test_packed_once_for_the_same_values(monkeypatch):
    made = []
    pack = torch.ops.fastvision.conv_pack.default

    class Ops:
        def __getattr__(self, name: str) -> Any:
            return getattr(torch.ops.fastvision, name)

        class conv_pack:  # noqa: N801
            @staticmethod
            def default(*args: Any) -> Tensor:
                made.append(0)
                return pack(*args)

    module = ops.Conv2dNormActivation(C, C).eval()
    monkeypatch.setattr("fastvision.ops.conv.cpu._OPS", Ops())
    with torch.no_grad():
        for size in (9, 5, 9):
            module(torch.randn(1, C, size, size))
    assert len(made) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(3,), (64, 5), (17, 4, 3, 3), (1000, 700), ()], ids=str)
def test_fingerprint_depends_on_every_bit(shape, dtype):
    """Of the values, wherever they are, whatever changes, and of the layout."""
    torch.manual_seed(0)
    weight = torch.randn(shape).to(dtype)
    seen = {packing.fingerprint((weight, None))}
    assert packing.fingerprint((weight.clone(), None)) in seen
    flat = weight.view(-1)
    places = torch.randperm(flat.numel())[:50]
    for place in places:
        before = flat[place].clone()
        for change in (-before, before * 1.0078125 + 1e-3, torch.zeros_like(before)):
            flat[place] = change
            if not torch.equal(change, before):
                value = packing.fingerprint((weight, None))
                assert value not in seen
                seen.add(value)
        flat[place] = before
    for changed in (-weight, weight * 2, weight.view(-1).flip(0).view(shape)):
        if flat.numel() > 1:
            value = packing.fingerprint((changed, None))
            assert value not in seen
            seen.add(value)
    assert packing.fingerprint((None, weight)) not in seen
    assert packing.fingerprint((weight.view(-1, 1), None)) not in seen


@pytest.mark.usefixtures("cpu_level")
def test_fingerprint_is_the_same_at_every_level_and_number_of_threads():
    weight = torch.randn(300_001)
    values = set()
    threads = torch.get_num_threads()
    for level in ("baseline", "avx2", "avx512"):
        try:
            _extension.set_cpu_level(level)
        except ValueError:
            continue
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            values.add(packing.fingerprint((weight,)))
    torch.set_num_threads(threads)
    assert len(values) == 1


def test_what_has_gaps_is_packed_in_each_call():
    weight = torch.randn(16, C, 3, 3)[::2]
    assert packing.fingerprint((weight,)) == -1
    x = torch.randn(1, C, 6, 6)
    for _ in range(2):
        assert_matches(ops.conv_bn_relu(x, weight), F.relu(F.conv2d(x, weight)))
        weight.mul_(-1)
