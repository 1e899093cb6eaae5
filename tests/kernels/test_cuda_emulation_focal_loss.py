"""Focal loss's CUDA kernels, run on the CPU by the emulation, against the reference in float64."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastvision import reference
from fastvision.testing import cases
from fastvision.testing.numerics import DTYPES, assert_matches

sys.path.append(str(Path(__file__).parents[1]))
import cuda_emulation

pytestmark = pytest.mark.skipif(cuda_emulation.COMPILER is None, reason="needs a C++ compiler")

INF, NAN = float("inf"), float("nan")


@dataclass(frozen=True)
class Case:
    rows: tuple[int, ...] = (50,)
    K: int = 5
    kind: str = "labels"  # "numbers", "softmax"
    alpha: float = 0.25
    gamma: float = 2.0
    reduce: bool = True
    weighted: bool = False
    offset: int = 0  # of the arrays, in elements from an aligned address
    positives: float = 0.5
    grad_scale: float = 4.0


CASES = {
    "plain": Case(),
    "background": Case(rows=(40,), K=91, positives=0.02),
    "each": Case(K=7, reduce=False),
    "one_class": Case(rows=(77,), K=1),
    "coco": Case(rows=(300,), K=80, positives=0.1),
    "misaligned": Case(rows=(31,), K=9, offset=1, reduce=False),
    "levels": Case(rows=(40, 0, 7, 130), K=12, alpha=-1),
    "no_gradient": Case(grad_scale=0.0),
    "several_tiles": Case(rows=(4000,), K=3),
    **{
        f"gamma_{gamma}": Case(K=3, gamma=gamma, reduce=gamma > 1) for gamma in (0.0, 0.5, 1.0, 3.0)
    },
    "numbers": Case(kind="numbers", K=11),
    "soft": Case(kind="numbers", rows=(20, 9), K=7, positives=-1, gamma=1.5),
    "soft_each": Case(kind="numbers", positives=-1, reduce=False, offset=3, gamma=0.0),
    "softmax": Case(kind="softmax", K=19, rows=(60,)),
    "softmax_each": Case(kind="softmax", K=80, reduce=False, weighted=True, gamma=1.5),
    "softmax_one_class": Case(kind="softmax", K=1),
    "softmax_many": Case(kind="softmax", K=1000, rows=(5,), gamma=0.0, offset=1),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cuda_emulation.build(
        tmp_path_factory.mktemp("focal_loss") / "focal_loss",
        cuda_emulation.HERE / "driver_focal_loss.cpp",
        *sorted((cuda_emulation.ROOT / "csrc" / "cuda").glob("focal_loss*.cu")),
        options=("-O0",),  # the cases are small: compiling takes longer
    )


def to_bytes(x: Tensor) -> np.ndarray:
    return x.contiguous().reshape(-1).view(torch.uint8).numpy()


def from_file(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    data = torch.empty(math.prod(shape), dtype=dtype)
    data.view(torch.uint8).copy_(torch.from_numpy(np.fromfile(path, np.uint8)))
    return data.view(shape)


def make_inputs(case: Case, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], Tensor]:
    g = cases.generator(3)
    inputs, targets = [], []
    for rows in case.rows:
        inputs.append((torch.randn(rows, case.K, generator=g) * 4).to(dtype))
        labels = torch.randint(0, case.K, (rows,), generator=g)
        chance = torch.rand(rows, generator=g)
        if case.kind == "softmax":
            targets.append(torch.where(chance < 0.2, -100, labels))
        elif case.kind == "labels":
            labels = torch.where(chance < case.positives, labels, -1)
            targets.append(torch.where(chance > 0.9, -2, labels))
        elif case.positives < 0:
            targets.append(torch.rand(rows, case.K, generator=g).to(dtype))
        else:
            targets.append((torch.rand(rows, case.K, generator=g) < case.positives).to(dtype))
    weights = torch.rand(case.K, generator=g) + 0.5
    return inputs, targets, weights.to(torch.float64 if dtype == torch.float64 else torch.float32)


def run(
    program: Path,
    folder: Path,
    case: Case,
    inputs: list[Tensor],
    targets: list[Tensor],
    weights: Tensor,
    *,
    reverse: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    dtype = inputs[0].dtype
    arrays = {"weights": weights.numpy()}
    for i, (x, t) in enumerate(zip(inputs, targets, strict=True)):
        arrays |= {f"inputs{i}": to_bytes(x), f"targets{i}": to_bytes(t)}
    labels = case.kind != "numbers"
    shape = [(x.shape[0], case.K) if labels else (x.numel(), 1) for x in inputs]
    result = cuda_emulation.run(
        program,
        folder,
        "softmax" if case.kind == "softmax" else "sigmoid",
        str(dtype).removeprefix("torch."),
        *(shape[0][1], int(labels), case.alpha, case.gamma, case.grad_scale, int(case.reduce)),
        *(-100, case.offset, int(case.weighted), *(rows for rows, _ in shape)),
        inputs=arrays,
        reverse=reverse,
    )
    assert result.returncode == 0, result.stderr
    if case.reduce:
        loss = from_file(folder / "total", (), weights.dtype)
    else:
        size = targets[0].shape if case.kind == "softmax" else inputs[0].shape
        loss = from_file(folder / "losses", size, dtype)
    count = len(inputs) if case.grad_scale else 0
    return loss, [from_file(folder / f"grads{i}", inputs[i].shape, dtype) for i in range(count)]


def expect(
    case: Case, inputs: list[Tensor], targets: list[Tensor], weights: Tensor
) -> tuple[Tensor, list[Tensor]]:
    leaves = [x.double().requires_grad_() for x in inputs]
    if case.kind == "softmax":
        weight = weights.double() if case.weighted else None
        args = (leaves[0], targets[0], weight, case.gamma, -100, case.reduce)
        loss = reference.softmax_focal_loss(*args)
    else:
        wide = [t.double() if t.is_floating_point() else t for t in targets]
        loss = reference.sigmoid_focal_loss(leaves, wide, case.alpha, case.gamma, case.reduce)
    grads = torch.autograd.grad(loss.sum() * case.grad_scale, leaves)
    return loss.detach(), list(grads)


def check(program: Path, folder: Path, case: Case, dtype: torch.dtype) -> None:
    arrays = make_inputs(case, dtype)
    loss, grads = run(program, folder, case, *arrays)
    expected, expected_grads = expect(case, *arrays)
    assert_matches(loss, expected)
    assert len(grads) == (len(expected_grads) if case.grad_scale else 0)
    for grad, wanted in zip(grads, expected_grads, strict=False):
        assert_matches(grad, wanted)


@pytest.mark.parametrize("name", CASES)
def test_cases(program: Path, tmp_path: Path, name: str) -> None:
    check(program, tmp_path, CASES[name], DTYPES[list(CASES).index(name) % len(DTYPES)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["plain", "each", "numbers", "soft", "softmax"])
def test_dtypes(program: Path, tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    check(program, tmp_path, replace(CASES[name], K=10), dtype)


@pytest.mark.parametrize("name", ["several_tiles", "levels", "softmax"])
def test_deterministic(program: Path, tmp_path: Path, name: str) -> None:
    arrays = make_inputs(CASES[name], torch.float32)
    loss, grads = run(program, tmp_path, CASES[name], *arrays)
    again, grads_again = run(program, tmp_path, CASES[name], *arrays, reverse=True)
    assert torch.equal(loss, again)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))


@pytest.mark.parametrize("kind", ["labels", "numbers", "softmax"])
def test_nothing(program: Path, tmp_path: Path, kind: str) -> None:
    case = Case(kind=kind, rows=(0,))
    loss, grads = run(program, tmp_path, case, *make_inputs(case, torch.float32))
    assert loss == 0 and grads[0].numel() == 0


@pytest.mark.parametrize("kind", ["labels", "numbers"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_infinite_logits(program: Path, tmp_path: Path, gamma: float, kind: str) -> None:
    """The limits: an answer that is right costs nothing, a wrong one all."""
    case = Case(kind=kind, K=2, gamma=gamma, reduce=False, alpha=-1, grad_scale=1.0)
    x = torch.tensor([[INF, INF], [-INF, -INF]])
    labels = torch.tensor([0, 0])
    targets = labels if kind == "labels" else torch.tensor([[1.0, 0], [1, 0]])
    loss, (grad,) = run(program, tmp_path, case, [x], [targets], torch.ones(2))
    assert loss.tolist() == [[0, INF], [INF, 0]]
    assert grad.tolist() == [[0, 1], [-1, 0]]


@pytest.mark.parametrize("kind", ["labels", "softmax"])
@pytest.mark.parametrize("label", [3, 2**40])
def test_bad_label(program: Path, tmp_path: Path, label: int, kind: str) -> None:
    case = Case(kind=kind, K=3, reduce=False)
    x = torch.zeros(4, 3)
    targets = torch.tensor([0, label, -100, 1])
    loss, (grad,) = run(program, tmp_path, case, [x], [targets], torch.ones(3))
    for result in (loss, grad):
        assert result[1].isnan().all()
        assert result[2].eq(0).all()
        assert result[[0, 3]].isfinite().all()


def test_nan(program: Path, tmp_path: Path) -> None:
    for kind in ("labels", "numbers", "softmax"):
        case = Case(kind=kind, K=4, rows=(9,), reduce=False)
        inputs, targets, weights = make_inputs(case, torch.float32)
        inputs[0][2, 1] = NAN
        if kind != "numbers":
            targets[0][2] = 1
        loss, (grad,) = run(program, tmp_path, case, inputs, targets, weights)
        touched = torch.zeros(9, 4, dtype=torch.bool)
        touched[2, slice(None) if kind == "softmax" else 1] = True
        assert torch.equal(grad.isnan(), touched)
        assert torch.equal(loss.isnan(), touched[:, 1] if kind == "softmax" else touched)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [0, 1])
def test_scale(program: Path, tmp_path: Path, dtype: torch.dtype, offset: int) -> None:
    grads = cases.feature_map(1000, dtype=dtype)
    factor = torch.tensor(3.0, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    arrays = {"grads0": to_bytes(grads), "factor": factor.numpy()}
    for scale in (0.5, 1 / 3):  # the product is 1 in the second
        result = cuda_emulation.run(
            program,
            tmp_path,
            "scale",
            str(dtype).removeprefix("torch."),
            *(len(grads), scale, offset),
            inputs=arrays,
        )
        assert result.returncode == 0, result.stderr
        expected = grads.double() * (3 * scale)
        assert_matches(from_file(tmp_path / "grads0", grads.shape, dtype), expected)
