"""RoIAlign's CUDA kernels, run on the CPU by the emulation, against the reference in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastvision import reference
from fastvision.reference.roi_align import _axis_taps
from fastvision.testing import cases
from fastvision.testing.marks import LAYOUTS
from fastvision.testing.numerics import DTYPES, assert_matches
from fastvision.testing.roi_align import ODD_ROIS, UNUSABLE_ROIS, USABLE

from .roi_emulation import NEEDS_COMPILER, RoiKernel, build, random_rois

pytestmark = NEEDS_COMPILER


@dataclass(frozen=True)
class Case:
    rois: Tensor  # [K, 5]
    N: int = 2
    C: int = 8
    sizes: tuple[tuple[int, int], ...] = ((13, 18),)
    scales: tuple[float, ...] = (0.25,)
    PH: int = 3
    PW: int = 4
    sampling_ratio: int = 2
    aligned: bool = True
    canonical_scale: float = 32.0
    canonical_level: float = 3.0
    min_level: int = 2
    offset: int = 0  # of the arrays, in elements from an aligned address
    usable: Tensor | None = None  # [K] whether the reference takes the roi; others give zeros


PYRAMID = {"sizes": ((20, 28), (10, 14), (5, 7)), "scales": (0.25, 0.125, 0.0625)}

CASES = {
    "plain": Case(random_rois(5)),
    "three_samples": Case(random_rois(5), sampling_ratio=3, C=5),
    "adaptive": Case(random_rois(5), sampling_ratio=0, C=16),
    "legacy": Case(random_rois(4), aligned=False, C=1),
    "legacy_adaptive": Case(random_rois(4, max_size=12), aligned=False, sampling_ratio=-1, C=33),
    "odd": Case(ODD_ROIS, C=4),
    "odd_adaptive": Case(ODD_ROIS, sampling_ratio=0, C=4),
    "odd_legacy": Case(ODD_ROIS, aligned=False, C=3),
    "odd_legacy_adaptive": Case(ODD_ROIS, aligned=False, sampling_ratio=0, C=4),
    "unusable": Case(UNUSABLE_ROIS, sampling_ratio=0, usable=USABLE),
    "misaligned": Case(random_rois(3), offset=1),
    "pyramid": Case(random_rois(8, max_size=100), C=8, **PYRAMID),
    "pyramid_odd": Case(ODD_ROIS, C=2, **PYRAMID),
    "many_channels": Case(random_rois(2), C=264, PH=1, PW=2),
    "many_rois": Case(random_rois(260), C=2, PH=1, PW=1, sampling_ratio=1),
    "one_pixel": Case(random_rois(3), sizes=((1, 1),)),
    "empty_level": Case(random_rois(3, max_size=100), sizes=((4, 6), (0, 0)), scales=(0.25, 0.125)),
    # larger than the tables in shared memory, the windows of bins and a warp's patch
    "large_ratio": Case(random_rois(2), N=2, C=4, sampling_ratio=150, PH=2, PW=2),
    "long_axes": Case(
        torch.tensor([[0, 8, 2, 6600, 9], [0, 6600, 2, 3, 9]]),
        N=1,
        C=4,
        sizes=((2, 1600),),
        PH=2,
        PW=3,
        sampling_ratio=0,
        aligned=False,
    ),
    "many_bins": Case(random_rois(2), C=4, PH=2, PW=1600, sampling_ratio=1),
    "windows": Case(random_rois(3), C=4, PH=35, PW=37, sampling_ratio=1),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("roi_align")
    return build(folder, "roi_align", "roi_align", "roi_align_backward")


class Kernel(RoiKernel):
    """Both directions of the kernels on one case."""

    def __init__(self, program: Path, folder: Path, case: Case, dtype: torch.dtype, last: bool):
        super().__init__(program, folder, case.rois, dtype, last)
        self.case = case

    def _run(self, direction: str, reverse: bool, **maps: Tensor) -> None:
        case = self.case
        levels = [
            x for size, scale in zip(case.sizes, case.scales, strict=True) for x in (*size, scale)
        ]
        self.run(
            direction,
            *(case.N, case.C, len(case.rois), case.PH, case.PW, case.sampling_ratio),
            *(int(case.aligned), int(self.channels_last), case.offset),
            *(case.canonical_scale, case.canonical_level, case.min_level),
            *levels,
            reverse=reverse,
            **maps,
        )

    def forward(self, features: list[Tensor], *, reverse: bool = False) -> Tensor:
        self._run("forward", reverse, **{f"features{i}": x for i, x in enumerate(features)})
        return self.read("pooled", (len(self.rois), self.case.C, self.case.PH, self.case.PW))

    def backward(self, grad: Tensor, *, reverse: bool = False) -> list[Tensor]:
        self._run("backward", reverse, pooled=grad)
        return [
            self.read(f"features{level}", (self.case.N, self.case.C, *size))
            for level, size in enumerate(self.case.sizes)
        ]


def expected_forward(case: Case, features: list[Tensor], rois: Tensor) -> Tensor:
    usable = torch.ones(len(rois), dtype=torch.bool) if case.usable is None else case.usable
    pooled = reference.multiscale_roi_align(
        [x.double() for x in features],
        rois[usable].double(),
        list(case.scales),
        case.PH,
        case.PW,
        case.sampling_ratio,
        case.aligned,
        case.canonical_scale,
        case.canonical_level,
        case.min_level,
    )
    return pooled.new_zeros(len(rois), *pooled.shape[1:]).index_put(
        (torch.where(usable)[0],), pooled
    )


def feature_maps(case: Case, dtype: torch.dtype) -> list[Tensor]:
    return [
        cases.feature_map(case.N, case.C, *size, seed=level, dtype=dtype)
        for level, size in enumerate(case.sizes)
    ]


def check(program: Path, folder: Path, case: Case, dtype: torch.dtype, channels_last: bool) -> None:
    kernel = Kernel(program, folder, case, dtype, channels_last)
    features = feature_maps(case, dtype)
    leaves = [x.double().requires_grad_() for x in features]
    expected = expected_forward(case, leaves, kernel.rois)
    assert_matches(kernel.forward(features), expected)

    grad = cases.feature_map(*expected.shape, seed=9, dtype=dtype)
    # a pixel sums the gradients of many bins
    scale = max(1, math.prod(expected.shape[2:]) / 8)
    grads = torch.autograd.grad(expected, leaves, grad.double())
    for actual, wanted in zip(kernel.backward(grad), grads, strict=True):
        assert_matches(actual, wanted, scale=scale)


@LAYOUTS
@pytest.mark.parametrize("name", CASES)
def test_cases(program: Path, tmp_path: Path, name: str, channels_last: bool) -> None:
    dtype = DTYPES[list(CASES).index(name) % len(DTYPES)]
    check(program, tmp_path, CASES[name], dtype, channels_last)


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(program: Path, tmp_path: Path, dtype: torch.dtype, channels_last: bool) -> None:
    check(program, tmp_path, replace(CASES["adaptive"], C=20), dtype, channels_last)


@LAYOUTS
def test_deterministic(program: Path, tmp_path: Path, channels_last: bool) -> None:
    case = Case(random_rois(40), C=4)
    kernel = Kernel(program, tmp_path, case, torch.float32, channels_last)
    features = feature_maps(case, torch.float32)
    grad = cases.feature_map(len(case.rois), case.C, case.PH, case.PW)
    assert torch.equal(kernel.forward(features), kernel.forward(features, reverse=True))
    assert torch.equal(kernel.backward(grad)[0], kernel.backward(grad, reverse=True)[0])


@LAYOUTS
def test_no_rois(program: Path, tmp_path: Path, channels_last: bool) -> None:
    case = Case(torch.zeros(0, 5))
    kernel = Kernel(program, tmp_path, case, torch.float32, channels_last)
    (grad,) = kernel.backward(torch.zeros(0, case.C, case.PH, case.PW))
    assert torch.equal(grad, torch.zeros_like(grad))


@LAYOUTS
def test_huge_roi(program: Path, tmp_path: Path, channels_last: bool) -> None:
    """125,000 samples per bin, nearly all of them outside the map."""
    case = Case(torch.tensor([[0, -1e6, -9e5, 1e6, 1e6]]), N=1, C=3, sampling_ratio=0)
    kernel = Kernel(program, tmp_path, case, torch.float64, channels_last)
    (features,) = feature_maps(case, torch.float64)
    (H, W), start, end = case.sizes[0], *(kernel.rois[0, 1:] * 0.25 - 0.5).view(2, 2, 1)

    def matrix(axis: int, bins: int, extent: int) -> Tensor:
        index, weight = _axis_taps(start[axis], (end - start)[axis], bins, extent, 0)
        return weight.new_zeros(bins, extent).scatter_add(1, index[0], weight[0])

    y, x = matrix(1, case.PH, H), matrix(0, case.PW, W)
    assert_matches(kernel.forward([features]), y @ features @ x.T)
    grad = cases.feature_map(1, case.C, case.PH, case.PW, dtype=torch.float64)
    assert_matches(kernel.backward(grad)[0], y.T @ grad @ x)


@LAYOUTS
def test_untouched_nan(program: Path, tmp_path: Path, channels_last: bool) -> None:
    """A tap without weight carries no NaN in, and no gradient that is one out."""
    # samples at whole pixels: each has one tap
    case = Case(
        torch.tensor([[0.0, 1.5, 1.5, 5.5, 4.5]]), scales=(1.0,), sampling_ratio=1, aligned=False
    )
    case = replace(case, rois=torch.tensor([[0.0, 1.5, 1.5, 5.5, 4.5], [1.0, 1.5, 1.5, 5.5, 4.5]]))
    kernel = Kernel(program, tmp_path, case, torch.float32, channels_last)
    (features,) = feature_maps(case, torch.float32)
    features[:, :, 5] = math.nan
    features[:, :, :, 6] = math.inf
    assert_matches(kernel.forward([features]), expected_forward(case, [features], kernel.rois))
    (grad,) = kernel.backward(torch.full((2, case.C, case.PH, case.PW), math.nan))
    touched = torch.zeros_like(grad, dtype=torch.bool)
    touched[:, :, 2:5, 2:6] = True
    assert torch.equal(grad.isnan(), touched)
    assert not grad[~touched].any()
