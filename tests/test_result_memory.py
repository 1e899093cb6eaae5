"""Large results on the CPU use the memory of freed ones again."""

from __future__ import annotations

import copy
import io
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import fastvision
from fastvision import _extension, ops
from fastvision.testing import cases


@pytest.fixture(autouse=True)
def library() -> None:
    version = tuple(map(int, torch.__version__.split(".")[:2]))
    if _extension.missing is not None or version < (2, 11):
        pytest.skip("needs the compiled library and torch 2.11")
    fastvision.empty_cache()


def large(value: float, images: int = 1) -> Tensor:
    """[images, 64, 160, 160] of that value: 6.25 MiB an image."""
    x = torch.full((images, 1, 160, 160), float(value))
    return ops.conv_bn_relu(x, torch.ones(64, 1, 1, 1), activation="none")


def test_memory_is_used_again_only_when_it_is_free():
    first = large(1)
    address = first.data_ptr()
    view = first[0, 3]
    del first  # the view still holds the memory
    second = large(2)
    assert second.data_ptr() != address
    assert view.eq(1).all()
    del view
    third = large(3)
    assert third.data_ptr() == address
    assert second.eq(2).all() and third.eq(3).all()


def test_sizes_that_fit():
    address = large(1, images=8).data_ptr()
    smaller = large(2, images=7)
    assert smaller.data_ptr() == address and smaller.shape[0] == 7
    del smaller
    assert large(3, images=2).data_ptr() != address  # it would waste most of it


def test_what_is_kept_has_a_bound_and_can_be_given_back():
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    results = [large(i, images=8) for i in range(12)]  # 600 MiB
    used = resident()
    del results
    assert used - resident() > 300 << 20
    kept = resident()
    fastvision.empty_cache()
    assert kept - resident() > 150 << 20


def test_results_are_ordinary_tensors():
    y = large(4)
    assert torch.equal(copy.deepcopy(y), y)
    buffer = io.BytesIO()
    torch.save(y, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer), y)
    assert y.numpy().mean() == 4
    y.share_memory_()
    assert y.is_shared() and y.eq(4).all()


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
