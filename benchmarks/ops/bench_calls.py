"""Repeated calls so small that the interpreter and the dispatcher take most of the time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import BASELINE, EAGER, EAGER_CHANNELS_LAST, Case
from benchmarks.ops.bench_nms import THRESHOLD, check
from fastvision import ops
from fastvision.testing import cases
from fastvision.testing.numerics import assert_matches
from fastvision.testing.tensors import in_format

Shape = tuple[int, ...]
NCHW, LAST = False, True  # channels_last
# op, input, weight if it has one, vectors, channels_last
LAYERS: list[tuple[str, Shape, Shape | None, int, bool]] = [
    ("conv_bn_relu", (1, 8, 4, 4), (8, 8, 3, 3), 4, NCHW),
    ("conv_bn_relu", (1, 8, 4, 4), (8, 8, 3, 3), 4, LAST),
    ("conv_bn_relu", (1, 64, 4, 4), (64, 64, 3, 3), 4, NCHW),
    ("conv_bn_relu", (1, 64, 4, 4), (64, 64, 3, 3), 4, LAST),
    ("conv_transpose2d", (1, 8, 4, 4), (8, 8, 2, 2), 1, NCHW),
    ("conv_transpose2d", (1, 8, 4, 4), (8, 8, 2, 2), 1, LAST),
    ("batch_norm_relu", (1, 8, 4, 4), None, 4, NCHW),
    ("batch_norm_relu", (1, 8, 4, 4), None, 4, LAST),
    ("linear_act", (1, 16), (16, 16), 1, NCHW),
]
MAP, ROI, BINS = (1, 8, 4, 4), (0.0, 0.5, 0.5, 3.0, 3.5), 2


def convolution(x: Tensor, weight: Tensor, *norm: Tensor) -> Tensor:
    return F.relu(F.batch_norm(F.conv2d(x, weight, None, 1, 1), *norm), inplace=True)


def our_convolution(
    x: Tensor, weight: Tensor, mean: Tensor, variance: Tensor, scale: Tensor, shift: Tensor
) -> Tensor:
    return ops.conv_bn_relu(
        x,
        weight,
        bn_weight=scale,
        bn_bias=shift,
        running_mean=mean,
        running_var=variance,
        padding=1,
    )


# torch's layers and fastvision's op, of input, weight and vectors
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "conv_bn_relu": (convolution, our_convolution),
    "conv_transpose2d": (
        lambda x, weight, bias: F.conv_transpose2d(x, weight, bias, 2),
        lambda x, weight, bias: ops.conv_transpose2d(x, weight, bias, 2),
    ),
    "batch_norm_relu": (
        lambda x, *norm: F.relu(F.batch_norm(x, *norm), inplace=True),
        ops.batch_norm_relu,
    ),
    "linear_act": (
        lambda x, weight, bias: F.relu(F.linear(x, weight, bias), inplace=True),
        ops.linear_act,
    ),
}


class Call:
    """A provider in inference mode, which is entered once for many calls, and on one thread: on a
    busy machine such a call would be the time that a second thread takes to get a core."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                yield
        finally:
            torch.set_num_threads(threads)

    def __call__(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors)


def call_case(
    name: str,
    inputs: Callable[[], tuple[Tensor, ...]],
    usual: Callable[..., Tensor],
    ours: Callable[..., Tensor],
    baseline: str = BASELINE,
    check: Callable[[Any, Any], None] = assert_matches,
) -> Case:
    return Case(
        "calls",
        name,
        inputs=lambda device: tuple(t.to(device) for t in inputs()),
        providers=lambda device: {baseline: Call(usual), "fastvision": Call(ours)},
        check=check,
        host_time=True,
        most_seconds=2.0,
        note="on one thread",
    )


def uniform(*shape: int) -> Tensor:
    """From 0.5 to 1.5, as a variance may be."""
    return torch.rand(shape, generator=cases.generator(11)) + 0.5


def layer_case(
    op: str, shape: Shape, weight: Shape | None, vectors: int, channels_last: bool
) -> Case:
    outputs = weight[0] if weight else shape[1]

    def inputs() -> tuple[Tensor, ...]:
        x = uniform(*shape)
        weights = [] if weight is None else [uniform(*weight)]
        x = in_format(x, channels_last) if x.dim() == 4 else x
        return x, *weights, *(uniform(outputs) for _ in range(vectors))

    layout = ", channels_last" if channels_last else ", contiguous" if len(shape) == 4 else ""
    baseline = EAGER_CHANNELS_LAST if channels_last else EAGER
    return call_case(f"{op}, {'x'.join(map(str, shape))}{layout}", inputs, *FUNCTIONS[op], baseline)


CASES = [
    *(layer_case(*layer) for layer in LAYERS),
    call_case(
        "roi_align, 1 box",
        lambda: (uniform(*MAP), torch.tensor([ROI])),
        lambda x, rois: torchvision.ops.roi_align(x, rois, BINS, 1.0, 2),
        lambda x, rois: ops.roi_align(x, rois, BINS, 1.0, 2),
    ),
    call_case(
        "nms, 1 box",
        lambda: (cases.uniform_boxes(1), cases.scores(1)),
        lambda boxes, scores: torchvision.ops.nms(boxes, scores, THRESHOLD),
        lambda boxes, scores: ops.nms(boxes, scores, THRESHOLD),
        check=check,
    ),
    call_case(
        "sigmoid_focal_loss, 1 element",
        lambda: (uniform(1), cases.scores(1)),
        torchvision.ops.sigmoid_focal_loss,
        ops.sigmoid_focal_loss,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_calls(case: Case, compare) -> None:
    compare(case)
