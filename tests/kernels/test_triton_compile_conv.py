"""The convolution kernels compile ahead of time for each architecture, and nothing spills.

A script as test_triton_compile.py, for the same reason.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from test_triton_compile import (
    ALL_VARIANTS,
    PROCESSES,
    compiled_resources,
    resources_by_architecture,
)

pytestmark = pytest.mark.long

RELU, SILU = 1, 4
SHARED_MEMORY = {"80": 163 << 10, "90": 227 << 10, "100": 227 << 10}
MIN_SHARED_MEMORY = 99 << 10  # from compute capability 8.0 on
TYPES = {"bf16": 2, "fp16": 2, "fp32": 4}
# 3x3 of 64 channels, 1x1, the first layer of a network, groups of 8 channels
SHAPES = {"3x3": (64, 256, 3), "1x1": (256, 256, 1), "7x7": (3, 64, 7), "grouped": (8, 16, 3)}
VARIANTS = (
    *("3x3 bf16", "3x3 fp16", "3x3 tf32", "3x3 fp32", "1x1 bf16", "1x1 tf32"),
    *("7x7 bf16", "7x7 tf32", "grouped bf16", "grouped fp32"),
)


def values_of(dtype, *, channels_last=True, residual=True):
    names = ["N", "H", "W", "OH", "OW", "C_UNITS", "K_UNITS", "groups", "stride_h", "stride_w"]
    names += ["pad_top", "pad_left", "dilation_h", "dilation_w", "split_steps"]
    names += ["rows", "column_units", "parts", "channels"]
    values = dict.fromkeys(names, "i32")
    values |= dict.fromkeys(["input_ptr", "weight_ptr", "output_ptr", "parts_ptr"], f"*{dtype}")
    values |= {"scale_ptr": "*fp32", "shift_ptr": "*fp32", "negative_slope": "fp32"}
    values |= {"residual_ptr": f"*{dtype}" if residual else None}
    return values | {"CHANNELS_LAST": channels_last, "INT64": False, "ACTIVATION": RELU}


def gemm_variants(arch):
    from fastvision.kernels import conv_bn_relu as conv
    from fastvision.kernels.common.convolution import unit_of
    from fastvision.kernels.configs import conv_bn_relu as config

    shared = SHARED_MEMORY.get(arch, MIN_SHARED_MEMORY)
    every = arch == ALL_VARIANTS
    names = VARIANTS if every else ("3x3 bf16", "7x7 bf16", "3x3 tf32", "3x3 fp32")
    for name in names:
        shape, kind = name.split()
        C, K, size = SHAPES[shape]
        dtype, tf32 = ("fp32", True) if kind == "tf32" else (kind, False)
        tiles = config.tiles(10**6, K, C, size * size, 1, TYPES[dtype], tf32, 100, shared)
        for tile in tiles if every and name == "3x3 bf16" else tiles[:1]:
            values = values_of(dtype) | {
                "R": size,
                "S": size,
                "UNIT_C": unit_of(C),
                "UNIT_K": unit_of(K),
                "PADDED": size > 1,
                "DENSE": size == 1,
                "FLAT_C": C if config.is_flat(C) else 0,
                "IS_SPLIT": False,
                "TF32": tf32,
                "BLOCK_M": tile.block_m,
                "BLOCK_N": tile.block_n,
                "BLOCK_K": tile.block_k,
                "GROUP_M": 8,
            }
            options = {"num_warps": tile.warps, "num_stages": tile.stages}
            yield f"{name} {tile}", conv._conv_kernel, values, options
        if every and name == "3x3 bf16":
            split = values | {"IS_SPLIT": True, "output_ptr": "*fp32"}
            yield f"{name} split", conv._conv_kernel, split, options
            large = values | {"INT64": True, "ACTIVATION": SILU}
            yield f"{name} large", conv._conv_kernel, large, options


def other_variants(arch):
    from fastvision.kernels import conv_bn_relu as conv
    from fastvision.kernels import conv_bn_relu_depthwise as depthwise
    from fastvision.kernels import conv_bn_relu_pointwise as pointwise
    from fastvision.kernels.configs import conv_bn_relu as config

    every = arch == ALL_VARIANTS
    vectors = ("bias", "weight", "shift", "mean", "var", "scale_out", "shift_out")
    values = {f"{name}_ptr": "*fp32" for name in vectors} | {"K": "i32", "eps": "fp32"}
    yield "fold", conv._fold_kernel, values | {"BLOCK": config.FOLD_BLOCK}, {"num_warps": 4}
    for dtype in TYPES if every else ("bf16",):
        for size in (3, 7) if every else (3,):
            block_m, block_n = config.depthwise_block(144)
            values = values_of(dtype) | {"R": size, "S": size, "UNIT_C": 16, "MULTIPLIER": 1}
            values |= {"BLOCK_M": block_m, "BLOCK_N": block_n}
            options = {"num_warps": config.DEPTHWISE_WARPS, "maxnreg": config.DEPTHWISE_REGISTERS}
            yield f"depthwise {size} {dtype}", depthwise._depthwise_kernel, values, options
        for channels_last in (True, False):
            block_m, block_n = config.pointwise_block(256)
            values = values_of(dtype, channels_last=channels_last)
            values |= {"UNIT": 16, "BLOCK_M": block_m, "BLOCK_N": block_n}
            options = {"num_warps": config.POINTWISE_WARPS}
            yield f"pointwise {dtype} {channels_last}", pointwise._pointwise_kernel, values, options


@pytest.fixture(scope="module")
def resources():
    return resources_by_architecture(__file__)


@pytest.mark.parametrize("arch", [arch for group in PROCESSES for arch in group])
def test_kernels_compile_without_spills(resources, arch):
    # a spilled register is on the stack
    assert {
        name: use for name, use in resources[arch].items() if use["STACK"] or use["LOCAL"]
    } == {}
    limit = SHARED_MEMORY.get(arch, MIN_SHARED_MEMORY)
    assert all(use["SHARED"] <= limit for use in resources[arch].values())
    assert len(resources[arch]) == {"75": 4, ALL_VARIANTS: 27}.get(arch, 8)


if __name__ == "__main__":
    found = {}
    for arch in sys.argv[1:]:
        found[arch] = {}
        # the dot is for tensor cores, which Triton uses from 8.0 on
        for variants in (gemm_variants, other_variants) if int(arch) >= 80 else (other_variants,):
            for name, kernel, values, options in variants(arch):
                found[arch][name] = compiled_resources(kernel, values, options, int(arch))
    print(json.dumps(found))
