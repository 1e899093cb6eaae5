"""The CUDA kernel of depthwise convolution, emulated on the CPU, against the reference."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastvision import reference
from fastvision.ops.conv.spec import output_size
from fastvision.reference.activations import ACTIVATIONS
from fastvision.testing import cases
from fastvision.testing.numerics import CONVOLUTION_DTYPES, assert_matches

sys.path.append(str(Path(__file__).parents[1]))
import cuda_emulation

pytestmark = pytest.mark.skipif(cuda_emulation.COMPILER is None, reason="needs a C++ compiler")

SLOPE = 0.25


@dataclass(frozen=True)
class Case:
    """A depthwise convolution."""

    N: int = 2
    C: int = 16
    H: int = 6
    W: int = 9
    taps: int = 3
    stride: int = 1
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)  # left, right, top, bottom
    activation: str = "relu"
    scaled: bool = True
    residual: bool = True

    @property
    def output_size(self) -> tuple[int, int]:
        return output_size(
            (self.H, self.W), [self.taps] * 2, [self.stride] * 2, self.padding, (1, 1)
        )


CASES = {
    "3": Case(),
    "3_stride_2": Case(stride=2, H=7),
    "3_valid": Case(padding=(0, 0, 0, 0), scaled=False),
    "5": Case(taps=5, padding=(2, 2, 2, 2)),
    "5_stride_2": Case(taps=5, stride=2, padding=(2, 2, 2, 2), residual=False),
    "7": Case(taps=7, padding=(3, 3, 3, 3), C=8),
    "7_stride_2": Case(taps=7, stride=2, padding=(3, 3, 3, 3), W=14),
    "asymmetric": Case(stride=2, padding=(0, 1, 2, 0), C=24),
    "smaller_than_kernel": Case(H=2, W=1, taps=5, padding=(2, 2, 2, 2)),
    "far_padding": Case(H=1, W=1, padding=(7, 3, 0, 9)),
    "many_channels": Case(C=1032, H=2, W=2, N=1),
    "plain": Case(activation="none", scaled=False, residual=False),
    **{name: Case(N=1, C=8, H=3, W=4, activation=name) for name in ACTIVATIONS},
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cuda_emulation.build(
        tmp_path_factory.mktemp("conv_depthwise") / "conv_depthwise",
        cuda_emulation.HERE / "driver_conv_depthwise.cpp",
        cuda_emulation.ROOT / "csrc" / "cuda" / "conv_depthwise.cu",
        options=("-O0",),  # the cases are small: compiling takes longer
    )


def to_bytes(x: Tensor) -> np.ndarray:
    return x.contiguous().view(-1).view(torch.uint8).numpy()


def make_inputs(case: Case, dtype: torch.dtype) -> dict[str, Tensor | None]:
    def values(*shape: int, seed: int) -> Tensor:
        return torch.randn(*shape, generator=cases.generator(seed))

    shape = (case.N, case.C, *case.output_size)
    return {
        "input": values(case.N, case.C, case.H, case.W, seed=1).to(dtype),
        "weight": (values(case.C, 1, case.taps, case.taps, seed=2) / case.taps).to(dtype),
        "scale": values(case.C, seed=3) if case.scaled else None,
        "shift": values(case.C, seed=4) if case.scaled else None,
        "residual": values(*shape, seed=5).to(dtype) if case.residual else None,
    }


def run(
    program: Path, folder: Path, case: Case, inputs: dict[str, Tensor | None], reverse: bool = False
) -> Tensor:
    input, weight = inputs["input"], inputs["weight"]
    none = np.zeros(0, np.uint8)
    files = {name: none if x is None else to_bytes(x) for name, x in inputs.items()}
    files["input"] = to_bytes(input.permute(0, 2, 3, 1))
    files["weight"] = to_bytes(weight[:, 0].permute(1, 2, 0))
    if case.residual:
        files["residual"] = to_bytes(inputs["residual"].permute(0, 2, 3, 1))
    result = cuda_emulation.run(
        program,
        folder,
        str(input.dtype).removeprefix("torch."),
        *(case.N, case.C, case.H, case.W, *case.output_size, case.taps, case.stride),
        *(case.padding[2], case.padding[0], ACTIVATIONS.index(case.activation), SLOPE),
        inputs=files,
        reverse=reverse,
    )
    assert result.returncode == 0, result.stderr
    OH, OW = case.output_size
    output = torch.empty(case.N, OH, OW, case.C, dtype=input.dtype)
    output.view(-1).view(torch.uint8).copy_(
        torch.from_numpy(cuda_emulation.read(folder / "output", "u1"))
    )
    return output.permute(0, 3, 1, 2)


def expected(case: Case, inputs: dict[str, Tensor | None]) -> Tensor:
    wide = {name: None if x is None else x.double() for name, x in inputs.items()}
    weight = wide["weight"]
    if case.scaled:
        weight = weight * wide["scale"].view(-1, 1, 1, 1)
    return reference.conv_bn_relu(
        wide["input"],
        weight,
        wide["shift"],
        residual=wide["residual"],
        stride=[case.stride] * 2,
        padding=case.padding,
        groups=case.C,
        activation=case.activation,
        negative_slope=SLOPE,
    )


@pytest.mark.parametrize("name", CASES)
def test_depthwise(program: Path, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    index = list(CASES).index(name) % len(CONVOLUTION_DTYPES)
    once = name in ACTIVATIONS
    for dtype in CONVOLUTION_DTYPES[index:][:1] if once else CONVOLUTION_DTYPES:
        inputs = make_inputs(case, dtype)
        assert_matches(run(program, tmp_path, case, inputs), expected(case, inputs))


def test_many_rows_per_thread(program: Path, tmp_path: Path) -> None:
    """Large enough that a thread goes down several rows, the last band a shorter one."""
    case = Case(N=1, C=64, H=131, W=272, residual=False)
    inputs = make_inputs(case, torch.float32)
    assert_matches(run(program, tmp_path, case, inputs), expected(case, inputs))


def test_nan_and_infinity_pass_through(program: Path, tmp_path: Path) -> None:
    for activation in ("relu", "relu6", "leaky_relu"):
        case = replace(CASES["plain"], activation=activation)
        inputs = make_inputs(case, torch.float32)
        inputs["input"][0, 3, 2, 4] = float("nan")
        inputs["input"][1, 5, 3, 3] = float("inf")
        output, wanted = run(program, tmp_path, case, inputs), expected(case, inputs)
        assert output.isnan().any()
        assert_matches(output, wanted)


def test_order_of_blocks_does_not_matter(program: Path, tmp_path: Path) -> None:
    case = CASES["5_stride_2"]
    inputs = make_inputs(case, torch.float16)
    forward = run(program, tmp_path, case, inputs)
    assert torch.equal(forward, run(program, tmp_path, case, inputs, reverse=True))
