"""PSRoIAlign's and PSRoIPool's CUDA kernels, run on the CPU by the emulation."""

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
BOTH = pytest.mark.parametrize("op", ["align", "pool"])


@dataclass(frozen=True)
class Case:
    rois: Tensor  # [K, 5]
    channels: int = 3  # of the output
    size: tuple[int, int] = (13, 18)
    bins: tuple[int, int] = (3, 4)
    sampling: int = 2
    usable: tuple[bool, ...] | None = None  # by roi; the others have a batch index out of range


ODD_ROIS = torch.tensor(
    [
        [0, -30, -20, 40, 30],  # over the left and upper borders
        [1, 60, 40, 200, 90],
        [1, -500, -500, -400, -400],  # outside
        [0, 40, 30, 10, 12],  # reversed
        [0, 20, 20, 20, 20],
        [0, 2, 6, 10, -6],  # halfway between pixels
        [0, NAN, 4, 30, 30],
        [0, 4, -INF, 30, INF],
    ]
)
CASES = {
    "plain": Case(random_rois(5)),
    "odd": Case(ODD_ROIS, channels=5),
    "adaptive": Case(random_rois(5), sampling=0),
    "indices": Case(
        torch.tensor([[i, 4, 4, 30, 30] for i in (0, -1, 2, 1e30, NAN, -0.5)]),
        usable=(True, False, False, False, False, False),
    ),
    "many_channels": Case(random_rois(2), channels=600, size=(4, 5), bins=(1, 2)),
    "many_rois": Case(random_rois(260), channels=2, size=(5, 6), bins=(1, 1)),
    "many_bins": Case(random_rois(3), channels=1, bins=(35, 40)),  # more than pixels, and a window
    "no_table": Case(random_rois(2), channels=1, size=(3, 5), bins=(1, 1600)),
    "one_pixel": Case(random_rois(3), size=(1, 1)),
    "wide": Case(random_rois(4), channels=2, size=(3, 70)),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ps_roi_align")
    return build(folder, "ps_roi_align", "ps_roi_align", "ps_roi_pool")


class Kernel(RoiKernel):
    """Both directions of an op's kernels on one case."""

    def __init__(
        self, program: Path, folder: Path, op: str, case: Case, dtype: torch.dtype, last: bool
    ):
        super().__init__(program, folder, case.rois, dtype, last)
        self.op, self.case = op, case
        self.C = case.channels * case.bins[0] * case.bins[1]

    def _run(self, direction: str, reverse: bool, **maps: Tensor) -> None:
        case = self.case
        sizes = (2, self.C, len(case.rois), *case.size, *case.bins)
        last = int(self.channels_last)
        options = (self.op, *sizes, 0.25, case.sampling, last)
        self.run(direction, *options, reverse=reverse, **maps)

    def forward(self, features: Tensor, *, reverse: bool = False) -> Tensor:
        self._run("forward", reverse, features=features)
        return self.read("pooled", (len(self.rois), self.case.channels, *self.case.bins))

    def backward(self, grad: Tensor, *, reverse: bool = False) -> Tensor:
        self._run("backward", reverse, pooled=grad)
        return self.read("features", (2, self.C, *self.case.size))


def check(program: Path, folder: Path, op: str, case: Case, dtype: torch.dtype, last: bool) -> None:
    kernel = Kernel(program, folder, op, case, dtype, last)
    features = cases.feature_map(2, kernel.C, *case.size, dtype=dtype)
    exact = features.to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    usable = torch.tensor(case.usable or (True,) * len(case.rois))
    options = (case.sampling,) if op == "align" else ()
    pool = reference.ps_roi_align if op == "align" else reference.ps_roi_pool
    pooled = pool(exact, kernel.rois[usable], 0.25, *case.bins, *options)
    expected = torch.zeros(len(usable), *pooled.shape[1:], dtype=pooled.dtype)
    expected[usable] = pooled.detach()
    assert_matches(kernel.forward(features), expected)

    grad = cases.feature_map(*expected.shape, seed=9, dtype=dtype)
    (wanted,) = torch.autograd.grad(pooled, exact, grad[usable].to(pooled))
    assert_matches(kernel.backward(grad), wanted, scale=10)


@BOTH
@LAYOUTS
@pytest.mark.parametrize("name", CASES)
def test_cases(program: Path, tmp_path: Path, op: str, name: str, channels_last: bool) -> None:
    dtype = DTYPES[list(CASES).index(name) % len(DTYPES)]
    check(program, tmp_path, op, CASES[name], dtype, channels_last)


@BOTH
@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(
    program: Path, tmp_path: Path, op: str, dtype: torch.dtype, channels_last: bool
) -> None:
    check(program, tmp_path, op, Case(random_rois(5), bins=(7, 7)), dtype, channels_last)


@BOTH
@LAYOUTS
def test_deterministic(program: Path, tmp_path: Path, op: str, channels_last: bool) -> None:
    case = Case(random_rois(20), channels=2)
    kernel = Kernel(program, tmp_path, op, case, torch.float32, channels_last)
    features = cases.feature_map(2, kernel.C, *case.size)
    pooled = kernel.forward(features)
    assert torch.equal(pooled, kernel.forward(features, reverse=True))
    grad = cases.feature_map(*pooled.shape)
    once = kernel.backward(grad)
    assert torch.equal(once, kernel.backward(grad, reverse=True))
