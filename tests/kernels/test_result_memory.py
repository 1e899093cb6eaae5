"""Results are tensors like any other, whatever their size, or errors that name it."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from fastvision import _extension, ops
from fastvision.testing import cases


@pytest.fixture(autouse=True)
def library() -> None:
    if _extension.missing is not None:
        pytest.skip(_extension.missing)


def large(value: float, images: int = 1) -> Tensor:
    """[images, 64, 160, 160] of that value: 6.25 MiB an image."""
    x = torch.full((images, 1, 160, 160), float(value))
    return ops.conv_bn_relu(x, torch.ones(64, 1, 1, 1), activation="none")


def save_and_load(y: Tensor) -> Tensor:
    buffer = io.BytesIO()
    torch.save(y, buffer)
    buffer.seek(0)
    return torch.load(buffer)


def larger(y: Tensor) -> Tensor:
    z = y.clone()
    y.resize_(0)
    return torch.cat([z, z], out=y)[0]


USES: dict[str, Callable[[Tensor], Any]] = {
    "deepcopy": copy.deepcopy,
    "save": save_and_load,
    "lazy clone": torch._lazy_clone,
    "out": larger,
    "resize_": lambda y: y.resize_(2, *y.shape)[0],
    "numpy": lambda y: torch.from_numpy(y.numpy()),
    "dlpack": torch.from_dlpack,
    "share_memory_": lambda y: y.share_memory_(),
    "set_": lambda y: torch.empty(0).set_(y.untyped_storage())[: y.numel()],
}


@pytest.mark.parametrize("images", [1, 8], ids=["6 MiB", "50 MiB"])
@pytest.mark.parametrize("use", USES)
def test_results_are_ordinary_tensors(use: str, images: int):
    assert USES[use](large(4, images)).eq(4).all()


def test_memory_can_be_freed_by_hand():
    y = large(4)
    storage = y.untyped_storage()
    assert storage.resizable() and storage.nbytes() == y.numel() * 4
    storage.resize_(0)
    assert storage.nbytes() == 0
    storage.resize_(y.numel() * 4)
    assert y.fill_(3).eq(3).all()


FREED = """
import torch
from fastvision import ops

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def large():
    x = torch.ones(8, 1, 160, 160)
    return ops.conv_bn_relu(x, torch.ones(64, 1, 1, 1), activation="none")

large()
before = resident()
results = [large() for _ in range(6)]  # 300 MiB
used = resident()
del results
print(used - before, used - resident())
"""


def test_freed_memory_goes_back():
    """In a process of its own: here memory that others have freed may be used again."""
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    used, freed = map(int, done.stdout.split())
    assert freed > 0.8 * used > 200 << 20


def test_threads():
    def work(value: int) -> bool:
        return all(bool(large(value).eq(value).all()) for _ in range(5))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))


def test_gradients_are_kept_apart():
    x = cases.feature_map(1, 64, 160, 160).requires_grad_()
    rois = torch.tensor([[0.0, 0, 0, 100, 100]])
    for factor in (1.0, 2.0):
        ops.roi_align(x, rois, 7).sum().mul(factor).backward()
    once = torch.autograd.grad(ops.roi_align(x, rois, 7).sum(), x)[0]
    assert torch.allclose(x.grad, once * 3)


X, ROIS = torch.ones(1, 4, 5, 5), torch.tensor([[0.0, 0, 0, 4, 4]])
FILTERS = torch.ones(4, 4, 3, 3)
TOO_LARGE: dict[str, tuple[str, Callable[[], Any]]] = {
    "roi_align": (
        rf"{2**60} bytes for the result \[1, 4, {2**40}, {2**16}\]",
        lambda: ops.roi_align(X, ROIS, (2**40, 2**16)),
    ),
    "roi_align, 64 bits": (
        rf"more than 2\*\*63 bytes for the result \[1, 4, {2**42 + 1}, {2**20}\]",
        lambda: ops.roi_align(X, ROIS, (2**42 + 1, 2**20)),
    ),
    "conv_bn_relu": (
        r"more than 2\*\*63 bytes for the result \[1, 4, 4294967297, 4294967297\]",
        lambda: ops.conv_bn_relu(X, FILTERS, padding=2**31 - 1),
    ),
    "conv_transpose2d": (
        r"281475647799696 bytes for the result \[1, 4, 4194309, 4194309\]",
        lambda: ops.conv_transpose2d(X, FILTERS, dilation=2**21),
    ),
    "batched_nms_padded": (
        rf"{2**43} bytes for the result \[1, {2**40}\]",
        lambda: ops.batched_nms_padded(
            torch.rand(1, 5, 4), torch.rand(1, 5), None, 0.5, max_output=2**40
        ),
    ),
}


@pytest.mark.parametrize("case", TOO_LARGE)
def test_too_large(case: str):
    message, call = TOO_LARGE[case]
    with pytest.raises(RuntimeError, match=f"^out of memory: {message}$"):
        call()


def test_empty_results_of_huge_sizes():
    assert ops.roi_align(X, torch.empty(0, 5), (2**42, 2**42)).numel() == 0


def test_small_result_of_a_huge_padding():
    huge = 2**31 - 1
    y = ops.conv_bn_relu(X, FILTERS, padding=huge, stride=huge)
    assert y.shape == (1, 4, 3, 3)
    assert y[0, 0].tolist() == [[0, 0, 0], [0, 36, 0], [0, 0, 0]]


def child_of_a_process_with_threads(work: Callable[[], Any]) -> bool:
    """Whether ``work`` returns in a forked child within seconds."""
    torch.ones(2000, 2000).mul_(2)  # the parent has used its threads
    process = os.fork()
    if process == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.02)
    os.kill(process, 9)
    os.waitpid(process, 0)
    return False


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="fork")
@pytest.mark.filterwarnings("ignore:This process")
@pytest.mark.parametrize("op", ["batched_nms", "roi_align", "conv_bn_relu", "sigmoid_focal_loss"])
def test_forked_child(op: str, threads: None):
    boxes, scores = cases.uniform_boxes(3000), cases.scores(3000)
    labels = torch.arange(3000) % 80
    maps = torch.rand(1, 64, 40, 40)
    rois = torch.cat([torch.zeros(300, 1), boxes[:300]], 1)
    filters = torch.rand(64, 64, 3, 3)
    work: Callable[[], Any] = {
        "batched_nms": lambda: ops.batched_nms(boxes, scores, labels, 0.5),
        "roi_align": lambda: ops.roi_align(maps, rois, 7, 0.1, 2),
        "conv_bn_relu": lambda: ops.conv_bn_relu(maps, filters),
        "sigmoid_focal_loss": lambda: ops.sigmoid_focal_loss(maps, maps, reduction="sum"),
    }[op]
    expected = work().numpy()

    def check() -> None:
        # by NumPy: torch's own functions wait for the threads
        assert (work().numpy() == expected).all()

    assert child_of_a_process_with_threads(check)
