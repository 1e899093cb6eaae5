"""The Triton kernels of convolution against the reference, interpreted where there is no GPU."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from fastvision import _device, ops, reference
from fastvision._memory_format import memory_format
from fastvision.ops.conv import gpu as dispatch
from fastvision.ops.conv.spec import output_size
from fastvision.reference.activations import ACTIVATIONS
from fastvision.testing import cases
from fastvision.testing.marks import LAYOUTS
from fastvision.testing.numerics import assert_matches

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [
    pytest.mark.skipif(
        DEVICE == "cpu" and not _device.triton_interpreted(),
        reason="needs CUDA or TRITON_INTERPRET=1",
    ),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.usefixtures("poisoned_memory", "exact_float32"),
]
SLOPE = 0.25


@pytest.fixture
def exact_float32(monkeypatch):
    monkeypatch.setattr(dispatch, "_tf32", lambda: False)


@dataclass(frozen=True)
class Case:
    N: int = 2
    C: int = 16
    K: int = 12
    H: int = 6
    W: int = 7
    R: int = 3
    S: int = 3
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)  # left, right, top, bottom
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    activation: str = "relu"
    bias: bool = False
    normalized: bool = True
    residual: bool = False
    channels_last: bool = True
    dtype: torch.dtype = torch.float32

    @property
    def options(self):
        return (self.stride, self.padding, self.dilation, self.groups, 1e-3)

    def tensors(self) -> list[Tensor | None]:
        """Input, weight, bias, normalization, residual."""

        def values(*shape, seed):
            return torch.randn(*shape, generator=cases.generator(seed)).to(DEVICE, self.dtype)

        K, C = self.K, self.C // self.groups
        kernel = (self.R, self.S)
        size = output_size((self.H, self.W), kernel, self.stride, self.padding, self.dilation)
        weight = values(K, C, *kernel, seed=1) / max(C * self.R * self.S, 1) ** 0.5
        format = memory_format(self.channels_last)
        input = values(self.N, self.C, self.H, self.W, seed=2).contiguous(memory_format=format)
        norm = [values(K, seed=seed) for seed in (3, 4, 5, 6)]
        norm[3] = norm[3].abs() + 0.5
        return [
            input,
            weight.to(self.dtype),
            values(K, seed=7) if self.bias else None,
            *(norm if self.normalized else [None] * 4),
            values(self.N, K, *size, seed=8) if self.residual else None,
        ]


def expected(case: Case, tensors: list[Tensor | None]) -> Tensor:
    wide = [None if t is None else t.double() for t in tensors]
    return reference.conv_bn_relu(*wide, *case.options, case.activation, SLOPE)


CASES = {
    "1x1": Case(R=1, S=1, padding=(0, 0, 0, 0), residual=True),
    "1x1_stride_2": Case(R=1, S=1, padding=(0, 0, 0, 0), stride=(2, 2), C=40),
    "1x1_padded": Case(R=1, S=1, padding=(1, 0, 2, 0)),
    "1x1_half": Case(R=1, S=1, padding=(0, 0, 0, 0), C=24, dtype=torch.float16, bias=True),
    "3x3": Case(residual=True, bias=True),
    "3x3_half": Case(C=32, residual=True, dtype=torch.float16),
    "3x3_bfloat16": Case(C=32, residual=True, dtype=torch.bfloat16),
    "3x3_stride_2": Case(stride=(2, 2), K=17),
    "strides": Case(stride=(1, 3), normalized=False, bias=True),
    "asymmetric_padding": Case(padding=(0, 2, 3, 1), stride=(2, 2)),
    "dilation": Case(dilation=(2, 1), padding=(1, 1, 2, 2)),
    "nchw": Case(residual=True, channels_last=False),
    "nchw_half": Case(C=20, channels_last=False, dtype=torch.float16),
    "3_channels": Case(C=3, R=7, S=7, stride=(2, 2), padding=(3, 3, 3, 3), dtype=torch.float16),
    "5_channels": Case(C=5, residual=True),
    "1x3": Case(R=1, S=3, padding=(1, 1, 0, 0)),
    "no_padding": Case(padding=(0, 0, 0, 0), normalized=False),
    "groups": Case(C=32, K=34, groups=2),
    "small_groups": Case(C=12, K=24, groups=3, residual=True),
    "many_outputs": Case(K=70, H=3, W=3, R=1, S=1, padding=(0, 0, 0, 0)),
    "depthwise": Case(K=16, groups=16, residual=True),
    "depthwise_half": Case(C=7, K=7, groups=7, stride=(2, 2), dtype=torch.float16, bias=True),
    "depthwise_nchw": Case(K=16, groups=16, R=5, padding=(1, 0, 2, 2), channels_last=False),
    "depthwise_dilated": Case(K=16, groups=16, dilation=(2, 3), padding=(3, 3, 2, 2)),
    "depthwise_multiplier": Case(C=6, K=18, groups=6, dtype=torch.bfloat16),
    "empty_batch": Case(N=0, residual=True),
}


@pytest.mark.parametrize("name", CASES)
def test_matches_the_reference(name):
    case = CASES[name]
    tensors = case.tensors()
    output = torch.ops.fastvision.conv_bn_relu_triton.default(
        *tensors, *case.options, ACTIVATIONS.index(case.activation), SLOPE
    )
    assert output.dtype == case.dtype
    # torch does not tell the formats of empty tensors apart
    format = memory_format(case.channels_last)
    assert output.numel() == 0 or output.is_contiguous(memory_format=format)
    assert_matches(output, expected(case, tensors))


@pytest.mark.parametrize("groups", [1, 16], ids=["gemm", "depthwise"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation, groups):
    case = Case(N=1, K=16, H=3, W=3, groups=groups, activation=activation)
    tensors = case.tensors()
    # far out on both sides, too
    tensors[4] = torch.linspace(-40, 40, 16, device=DEVICE)
    output = torch.ops.fastvision.conv_bn_relu_triton.default(
        *tensors, *case.options, ACTIVATIONS.index(activation), SLOPE
    )
    assert_matches(output, expected(case, tensors), scale=2)


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "leaky_relu"])
def test_nan_and_infinity_pass_through(activation):
    case = Case(N=1, K=16, groups=16, activation=activation)
    tensors = case.tensors()
    tensors[0][0, 3, 2, 4] = float("nan")
    tensors[0][0, 5, 1, 1] = float("inf")
    output = torch.ops.fastvision.conv_bn_relu_triton.default(
        *tensors, *case.options, ACTIVATIONS.index(activation), SLOPE
    )
    assert output.isnan().any()
    assert_matches(output, expected(case, tensors))


def launch(case: Case, **options) -> tuple[Tensor, Tensor]:
    """Result of the launcher, and what it should be."""
    from fastvision.kernels.conv_bn_relu import launch_conv

    p = dispatch._prepared(*(tensors := case.tensors()), *case.options, 1, SLOPE)
    output = p.empty_output()
    launch_conv(
        p.input, *dispatch._for_kernels(p), p.residual, output, p.stride, p.padding, p.dilation,
        p.groups, p.activation, p.negative_slope, **options,
    )  # fmt: skip
    return output, expected(case, tensors)


@LAYOUTS
@pytest.mark.parametrize("C", [48, 5], ids=["", "flat"])
def test_split_reduction_is_ordered(C, channels_last):
    from fastvision.kernels.configs.conv_bn_relu import Tile

    case = Case(N=1, C=C, residual=True, channels_last=channels_last, dtype=torch.float16)
    tile = Tile(32, 16, 16, 4, 2, splits=3)
    output, wanted = launch(case, tile=tile)
    assert_matches(output, wanted)
    assert torch.equal(output, launch(case, tile=tile)[0])


@pytest.mark.parametrize("splits", [1, 7])
def test_tiles_in_bands(splits):
    """More rows of tiles than a band has, and more splits than the reduction has steps for."""
    from fastvision.kernels.configs.conv_bn_relu import Tile

    case = Case(N=1, C=16, K=40, H=15, W=10, R=1, S=1, padding=(0, 0, 0, 0))
    output, wanted = launch(case, tile=Tile(16, 16, 16, 4, 2, splits=splits))
    assert_matches(output, wanted)


@pytest.mark.parametrize("groups", [1, 16], ids=["gemm", "depthwise"])
def test_64_bit_offsets(groups, monkeypatch):
    from fastvision.kernels import conv_bn_relu, conv_bn_relu_depthwise

    for module in (conv_bn_relu, conv_bn_relu_depthwise):
        monkeypatch.setattr(module, "exceeds_int32", lambda *tensors: True)
    output, wanted = launch(Case(K=16, groups=groups, stride=(2, 1), residual=True))
    assert_matches(output, wanted)


@LAYOUTS
@pytest.mark.parametrize("shape", [(2, 12, 5, 6), (1, 70, 3, 200)])
def test_pointwise(shape, channels_last):
    from fastvision.kernels.conv_bn_relu import launch_pointwise

    format = memory_format(channels_last)
    y, residual = (cases.feature_map(*shape, seed=seed).to(DEVICE) for seed in (1, 2))
    y, residual = (x.half().contiguous(memory_format=format) for x in (y, residual))
    scale, shift = (torch.randn(shape[1], device=DEVICE) for _ in range(2))
    wide = y.double() * scale.double().view(-1, 1, 1) + shift.view(-1, 1, 1) + residual
    launch_pointwise(y, scale, shift, residual, y, ACTIVATIONS.index("silu"), SLOPE)  # in place
    assert_matches(y, torch.nn.functional.silu(wide))


def test_public_function_and_opcheck():
    case = Case(residual=True)
    tensors = case.tensors()
    names = ("bn_weight", "bn_bias", "running_mean", "running_var", "residual")
    named = dict(zip(names, tensors[3:], strict=True))
    output = ops.conv_bn_relu(*tensors[:3], **named, eps=1e-3, padding=1, backend="triton")
    assert_matches(output, expected(case, tensors))
    opcheck(
        torch.ops.fastvision.conv_bn_relu_triton.default,
        (*tensors, *map(list, case.options[:3]), *case.options[3:], 1, SLOPE),
    )


def test_weights_are_packed_again_after_a_change():
    case = Case(N=1, R=1, S=1, padding=(0, 0, 0, 0))
    tensors = case.tensors()

    def run():
        return torch.ops.fastvision.conv_bn_relu_triton.default(*tensors, *case.options, 1, SLOPE)

    assert_matches(run(), expected(case, tensors))
    tensors[1].mul_(-2)
    assert_matches(run(), expected(case, tensors))
    tensors[6].add_(1)  # the variance
    assert_matches(run(), expected(case, tensors))


@pytest.mark.parametrize(
    "case, reason",
    [
        (Case(dtype=torch.float64), "float64"),
        (Case(R=33, S=1, H=40, padding=(0, 0, 0, 0)), "31 taps"),
    ],
)
def test_refuses_with_the_reason(case, reason):
    with pytest.raises(ValueError, match=reason):
        torch.ops.fastvision.conv_bn_relu_triton.default(*case.tensors(), *case.options, 1, SLOPE)


def test_refuses_more_pixels_than_32_bits_count():
    from fastvision.kernels.conv_bn_relu import MAX_PIXELS, unsupported

    weight = torch.empty(1, 1, 1, 1, device="meta")
    most, more = (torch.empty(1, 1, 1, MAX_PIXELS + i, device="meta") for i in (0, 1))
    assert unsupported(most, weight, MAX_PIXELS) is None
    assert "pixels" in unsupported(more, weight, 1)
    assert "pixels" in unsupported(most, weight, MAX_PIXELS + 1)


def test_tile_candidates_fit_and_differ():
    from fastvision.kernels.configs.conv_bn_relu import tiles

    shared = 99 << 10
    for M in (1, 49, 1568, 10**6):
        for K, C, taps, groups in ((64, 64, 9, 1), (2048, 512, 1, 1), (1, 3, 49, 1), (4, 4, 9, 32)):
            for size, tf32 in ((2, False), (4, True), (4, False)):
                found = tiles(M, K, C, taps, groups, size, tf32, 132, shared)
                assert len({str(tile) for tile in found}) == len(found) >= 1
                for tile in found:
                    staged = (tile.block_m + tile.block_n) * tile.block_k * size * tile.stages
                    assert staged <= shared
                    assert tile.splits == 1 or M <= 1568
    # few rows and a long reduction: the device is filled by splitting
    assert tiles(49, 512, 512, 9, 1, 2, False, 132, shared)[0].splits > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("K", [1, 300])
def test_fold(K, bias, affine, dtype):
    """The normalization as scale and shift, against the reference's rule."""
    from fastvision.kernels.conv_bn_relu import launch_fold

    g = torch.Generator().manual_seed(0)
    vectors = [torch.randn(K, generator=g).to(dtype).to(DEVICE) for _ in range(4)]
    var = (torch.rand(K, generator=g) + 0.1).to(dtype).to(DEVICE)
    offset, mean, weight, shift = vectors
    arguments = (
        offset if bias else None,
        *((weight, shift) if affine else (None, None)),
        *(mean, var, 1e-3),
    )
    actual = torch.empty((2, K), device=DEVICE)
    launch_fold(*arguments, *actual.unbind())
    ones = torch.ones(K, dtype=torch.float64, device=DEVICE)
    wide = [a.double() if isinstance(a, Tensor) else a for a in arguments]
    expected = reference.fold_batch_norm(ones, *wide)
    assert_matches(actual, torch.stack(expected).float())
