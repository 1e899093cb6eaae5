"""RoIPool's CUDA kernels, run on the CPU by the emulation, against the reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastvision import reference
from fastvision.testing import cases
from fastvision.testing.marks import LAYOUTS
from fastvision.testing.numerics import DTYPES, assert_matches

from .roi_emulation import NEEDS_COMPILER, RoiKernel, build, random_rois

pytestmark = NEEDS_COMPILER
INF, NAN = float("inf"), float("nan")


@dataclass(frozen=True)
class Case:
    rois: Tensor  # [K, 5]
    C: int = 8
    size: tuple[int, int] = (13, 18)
    bins: tuple[int, int] = (3, 4)
    usable: tuple[bool, ...] | None = None  # by roi; the others have a batch index out of range


ODD_ROIS = torch.tensor(
    [
        [0, -30, -20, 40, 30],  # over the left and upper borders
        [1, 60, 40, 200, 90],
        [1, -500, -500, -400, -400],  # outside
        [0, 40, 30, 10, 12],  # reversed
        [0, 20, 20, 20, 20],
        [0, 2, 6, 10, -6],  # halfway between pixels
        [1, -1e6, -1e30, 36, 1e30],
        [0, NAN, 4, 30, 30],
        [0, 4, -INF, 30, INF],
    ]
)
CASES = {
    "plain": Case(random_rois(5)),
    "odd": Case(ODD_ROIS, C=5),
    "indices": Case(
        torch.tensor([[i, 4, 4, 30, 30] for i in (0, -1, 2, 1e30, NAN, -0.5)]),
        usable=(True, False, False, False, False, False),
    ),
    "many_channels": Case(random_rois(2), C=150, bins=(1, 2)),
    "many_rois": Case(random_rois(260), C=2, bins=(1, 1)),
    "many_bins": Case(random_rois(3), C=3, bins=(35, 60)),  # more than pixels
    "one_pixel": Case(random_rois(3), size=(1, 1)),
    "wide": Case(random_rois(4), C=2, size=(3, 70)),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("roi_pool"), "roi_pool", "roi_pool")


class Kernel(RoiKernel):
    """Both directions of the kernels on one case."""

    def __init__(self, program: Path, folder: Path, case: Case, dtype: torch.dtype, last: bool):
        super().__init__(program, folder, case.rois, dtype, last)
        self.case = case

    def _run(self, direction: str, reverse: bool, **maps: Tensor) -> None:
        case = self.case
        sizes = (2, case.C, len(case.rois), *case.size, *case.bins)
        self.run(direction, *sizes, 0.25, int(self.channels_last), reverse=reverse, **maps)

    def forward(self, features: Tensor, *, reverse: bool = False) -> tuple[Tensor, Tensor]:
        self._run("forward", reverse, features=features)
        shape = (len(self.rois), self.case.C, *self.case.bins)
        return self.read("pooled", shape), self.read("argmax", shape, torch.int32)

    def backward(self, grad: Tensor, argmax: Tensor, *, reverse: bool = False) -> Tensor:
        self._run("backward", reverse, pooled=grad, argmax=argmax)
        return self.read("features", (2, self.case.C, *self.case.size))


def check(program: Path, folder: Path, case: Case, dtype: torch.dtype, last: bool) -> None:
    kernel = Kernel(program, folder, case, dtype, last)
    features = cases.feature_map(2, case.C, *case.size, dtype=dtype).mul(2).round()  # with ties
    features[0, :, :1] = NAN
    exact = features.to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    usable = torch.tensor(case.usable or (True,) * len(case.rois))
    pooled, positions = reference.roi_pool(exact, kernel.rois[usable], 0.25, *case.bins)
    argmax = torch.full((len(usable), *positions.shape[1:]), -1, dtype=torch.int32)
    argmax[usable] = positions
    expected = torch.zeros(argmax.shape, dtype=dtype)
    expected[usable] = pooled.detach().to(dtype)
    ours, found = kernel.forward(features)
    assert torch.equal(ours, expected) and torch.equal(found, argmax)

    grad = cases.feature_map(*argmax.shape, seed=9, dtype=dtype)
    (wanted,) = torch.autograd.grad(pooled, exact, grad[usable].to(pooled))
    assert_matches(kernel.backward(grad, argmax), wanted, scale=10)


@LAYOUTS
@pytest.mark.parametrize("name", CASES)
def test_cases(program: Path, tmp_path: Path, name: str, channels_last: bool) -> None:
    dtype = DTYPES[list(CASES).index(name) % len(DTYPES)]
    check(program, tmp_path, CASES[name], dtype, channels_last)


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(program: Path, tmp_path: Path, dtype: torch.dtype, channels_last: bool) -> None:
    check(program, tmp_path, Case(random_rois(5), C=20, bins=(7, 7)), dtype, channels_last)


@LAYOUTS
def test_deterministic(program: Path, tmp_path: Path, channels_last: bool) -> None:
    case = Case(random_rois(40), C=4)
    kernel = Kernel(program, tmp_path, case, torch.float32, channels_last)
    features = cases.feature_map(2, case.C, *case.size)
    pooled, argmax = kernel.forward(features)
    assert torch.equal(pooled, kernel.forward(features, reverse=True)[0])
    grad = cases.feature_map(*pooled.shape)
    once = kernel.backward(grad, argmax)
    assert torch.equal(once, kernel.backward(grad, argmax, reverse=True))
