"""CUDA kernels of roi_align_rotated and of roi_align's maximum, run on the CPU by the emulation."""

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
from fastvision.testing.roi_align import ODD_ROIS

from .roi_emulation import NEEDS_COMPILER, RoiKernel, build, random_rois

pytestmark = NEEDS_COMPILER
INF, NAN = float("inf"), float("nan")
LEVEL_RULE = (20.0, 0.0, 0)


@dataclass(frozen=True)
class Case:
    rois: Tensor  # [K, 5], turned by any angle where the op is rotated
    C: int = 8
    size: tuple[int, int] = (13, 18)
    bins: tuple[int, int] = (3, 4)
    sampling_ratio: int = 2
    aligned: bool = True
    levels: int = 1  # of the maximum
    usable: tuple[bool, ...] | None = None  # by roi; the CPU would refuse the others


UNUSABLE = [[i, 4, 4, 30, 30] for i in (0, -1, 2, 1e30, NAN, -0.5)]
CASES = {
    "plain": Case(random_rois(5)),
    "adaptive": Case(random_rois(4), C=5, sampling_ratio=0),
    "odd": Case(ODD_ROIS, C=5, sampling_ratio=3, aligned=False),
    "odd_adaptive": Case(ODD_ROIS, C=2, sampling_ratio=0),
    "many_samples": Case(random_rois(2), C=2, bins=(1, 2), sampling_ratio=13),
    "unusable": Case(
        torch.tensor([*UNUSABLE, [0, NAN, 4, 30, 30], [0, 4, -INF, 9, INF], [1, 0, 0, 3e7, 3e7]]),
        sampling_ratio=0,
        usable=(True, *[False] * 5, True, True, False),
    ),
    "many_channels": Case(random_rois(2), C=150, bins=(1, 2)),
    "many_rois": Case(random_rois(150), C=2, bins=(1, 1)),
    "many_bins": Case(random_rois(3), C=3, bins=(30, 40), sampling_ratio=1),
    "one_pixel": Case(random_rois(3), size=(1, 1)),
    "levels": Case(random_rois(12), C=3, size=(24, 20), levels=2),
}
ROTATED_LEVELS = ("rotated", "levels")  # the op has one level


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("roi_samples")
    return build(folder, "roi_samples", "roi_align_max", "roi_align_rotated")


class Kernel(RoiKernel):
    """Both directions of an op's kernels on one case."""

    def __init__(
        self, program: Path, folder: Path, op: str, case: Case, dtype: torch.dtype, last: bool
    ) -> None:
        rois = cases.rotated(case.rois) if op == "rotated" else case.rois
        super().__init__(program, folder, rois, dtype, last)
        self.op, self.case = op, case
        H, W = case.size
        self.shapes = [(2, case.C, H >> level, W >> level) for level in range(case.levels)]
        self.pooled_shape = (len(rois), case.C, *case.bins)

    def _run(self, direction: str, reverse: bool, **maps: Tensor) -> None:
        case = self.case
        sizes = (2, case.C, len(case.rois), *case.size, case.levels, *case.bins)
        options = (case.sampling_ratio, int(case.aligned), int(self.channels_last))
        self.run(direction, self.op, *sizes, 0.25, *options, reverse=reverse, **maps)

    def forward(self, features: list[Tensor], *, reverse: bool = False) -> tuple[Tensor, Tensor]:
        data = torch.cat([torch.from_numpy(self._bytes(f)) for f in features])
        (self.folder / "features").write_bytes(data.numpy().tobytes())
        self._run("forward", reverse)
        argmax = torch.zeros(())
        if self.op == "max":
            argmax = self.read("argmax", self.pooled_shape, torch.int32)
        return self.read("pooled", self.pooled_shape), argmax

    def backward(self, grad: Tensor, argmax: Tensor, *, reverse: bool = False) -> list[Tensor]:
        found = {"argmax": argmax} if self.op == "max" else {}
        self._run("backward", reverse, pooled=grad, **found)
        written = (self.folder / "features").read_bytes()
        grads, begin = [], 0
        for shape in self.shapes:
            end = begin + torch.Size(shape).numel() * self.dtype.itemsize
            (self.folder / "level").write_bytes(written[begin:end])
            grads.append(self.read("level", shape))
            begin = end
        return grads


def check(program: Path, folder: Path, op: str, case: Case, dtype: torch.dtype, last: bool) -> None:
    kernel = Kernel(program, folder, op, case, dtype, last)
    features = [
        cases.feature_map(*shape, seed=3 + level, dtype=dtype)
        for level, shape in enumerate(kernel.shapes)
    ]
    compute = torch.promote_types(dtype, torch.float32)
    exact = [f.to(compute).requires_grad_() for f in features]
    usable = torch.tensor(case.usable or (True,) * len(case.rois))
    rois = kernel.rois[usable]
    options = (*case.bins, case.sampling_ratio, case.aligned)
    scales = [0.25 / 2**level for level in range(case.levels)]
    ours, argmax = kernel.forward(features)
    if op == "max":
        best, _ = reference.roi_align_max(exact, rois, scales, *options, *LEVEL_RULE)
        samples = (scales, *options, *LEVEL_RULE)
        pooled = reference.samples_at(exact, rois, argmax[usable], samples)
        assert_matches(ours[usable], best.detach(), scale=4)
        assert argmax[~usable].eq(-1).all()
    else:
        pooled = reference.roi_align_rotated(exact[0], rois, 0.25, *options, False)
    assert_matches(ours[usable], pooled.detach(), scale=4)
    assert ours[~usable].eq(0).all()

    grad = cases.feature_map(*kernel.pooled_shape, seed=9, dtype=dtype)
    wanted = torch.autograd.grad(pooled, exact, grad[usable].to(pooled))
    for actual, expected in zip(kernel.backward(grad, argmax), wanted, strict=True):
        assert_matches(actual, expected, scale=16)


@LAYOUTS
@pytest.mark.parametrize(
    ("op", "name"),
    [(op, name) for name in CASES for op in ("max", "rotated") if (op, name) != ROTATED_LEVELS],
)
def test_cases(program: Path, tmp_path: Path, op: str, name: str, channels_last: bool) -> None:
    dtype = DTYPES[list(CASES).index(name) % len(DTYPES)]
    check(program, tmp_path, op, CASES[name], dtype, channels_last)


@LAYOUTS
@pytest.mark.parametrize("op", ["max", "rotated"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(
    program: Path, tmp_path: Path, op: str, dtype: torch.dtype, channels_last: bool
) -> None:
    check(program, tmp_path, op, Case(random_rois(5), C=20, bins=(7, 7)), dtype, channels_last)


@LAYOUTS
@pytest.mark.parametrize("op", ["max", "rotated"])
def test_deterministic(program: Path, tmp_path: Path, op: str, channels_last: bool) -> None:
    case = Case(random_rois(40), C=4)
    kernel = Kernel(program, tmp_path, op, case, torch.float32, channels_last)
    features = [cases.feature_map(2, case.C, *case.size)]
    pooled, argmax = kernel.forward(features)
    assert torch.equal(pooled, kernel.forward(features, reverse=True)[0])
    grad = cases.feature_map(*pooled.shape)
    (once,) = kernel.backward(grad, argmax)
    assert torch.equal(once, kernel.backward(grad, argmax, reverse=True)[0])
