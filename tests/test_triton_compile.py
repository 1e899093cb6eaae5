"""Every Triton kernel compiles ahead of time for each architecture, and nothing spills.

Run as a script it compiles for the architectures it is given and prints the resources: in a process
of its own, since under TRITON_INTERPRET=1 there are no kernels to compile.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# two processes share the work; one architecture gets every variant, the others the main ones
PROCESSES = (("75", "80", "86", "120"), ("90", "89", "100"))
ALL_VARIANTS = "90"


def compiled_resources(kernel, values, options, arch):
    """Registers, stack and so on of ``kernel``; ``values``: types of arguments, or constants."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        value = values[name]
        is_type = isinstance(value, (str, tuple))
        signature[name] = value if is_type else "constexpr"
        if not is_type:
            constants[name] = value
        # as at run time: tensors are aligned, and so is a number of channels like 256
        for path, type in [((i,), value)] if isinstance(value, str) else [
            ((i, j), type) for j, type in enumerate(value if is_type else ())
        ]:  # fmt: skip
            if type.startswith("*") or name == "C":
                attributes[path] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", arch, 32),
        options={"enable_fp_fusion": False, **options},
    )
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = subprocess.check_output([tool, "-res-usage", cubin.name], text=True)
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return found | {"SHARED": compiled.metadata.shared}


def roi_align_variants(all_variants):
    from fastvision.kernels import roi_align
    from fastvision.kernels.configs import roi_align as config

    levels, channels, bins = 4, 256, 49
    variants = [("bf16", True), ("fp32", False)]
    if all_variants:
        variants += [("bf16", False), ("fp32", True), ("fp16", False), ("fp16", True)]
    for dtype, channels_last in variants:
        values = dict.fromkeys(["N", "C", "K", "PH", "PW", "sampling_ratio", "min_level"], "i32")
        values |= dict.fromkeys(["canonical_scale", "canonical_level"], "i64")
        values |= dict.fromkeys(["features", "grads"], (f"*{dtype}",) * levels)
        values |= dict.fromkeys(["heights", "widths"], ("i32",) * levels)
        values |= {"spatial_scales": ("i64",) * levels, "rois_ptr": "*fp32"}
        values |= dict.fromkeys(["output_ptr", "grad_ptr"], f"*{dtype}")
        values |= {"ALIGNED": True, "CHANNELS_LAST": channels_last, "INT64": False}
        name = f"{dtype} {'NHWC' if channels_last else 'NCHW'}"

        block_bins, block_c, num_warps = config.forward_tile(bins, channels, channels_last)
        forward = values | {"BLOCK_BINS": block_bins, "BLOCK_C": block_c}
        yield (
            f"forward {name}",
            roi_align._roi_align_forward_kernel,
            forward,
            {"num_warps": num_warps},
        )
        tile_h, tile_w, block_c, num_warps = config.backward_tile(channels, channels_last)
        backward = values | {"TILE_H": tile_h, "TILE_W": tile_w, "BLOCK_C": block_c}
        backward["BLOCK_K"] = 32 * num_warps
        options = {"num_warps": num_warps, "maxnreg": config.BACKWARD_REGISTERS}
        yield f"backward {name}", roi_align._roi_align_backward_kernel, backward, options


def nms_variants(all_variants):
    from fastvision.kernels import nms

    for classes in ("*i64", None) if all_variants else ("*i64",):
        values = dict.fromkeys(["N", "step", "max_output"], "i32")
        values |= {"boxes_ptr": "*fp32", "alive_ptr": "*i8", "iou_threshold": "i64"}
        values |= {"classes_ptr": classes, "origins_ptr": classes}
        values |= {"BLOCK": nms.BLOCK, "TILE": nms.TILE}
        yield (
            f"suppress {classes}",
            nms._nms_suppress_kernel,
            values,
            {"num_warps": nms.SUPPRESS_WARPS},
        )
        yield f"settle {classes}", nms._nms_settle_kernel, values, {"num_warps": nms.SETTLE_WARPS}
    if all_variants:
        values |= {"kept_ptr": "*i8", "order_ptr": "*i64", "indices_ptr": "*i64"}
        values |= {"counts_ptr": "*i64", "BLOCK": nms.COMPACT}
        yield "compact", nms._nms_compact_kernel, values, {"num_warps": nms.COMPACT_WARPS}


@pytest.fixture(scope="module")
def resources():
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, *architectures],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for architectures in PROCESSES
    ]  # fmt: skip
    results = {}
    for process in processes:
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        results |= json.loads(output)
    return results


@pytest.mark.parametrize("arch", [arch for group in PROCESSES for arch in group])
def test_kernels_compile_without_spills(resources, arch):
    # a spilled register is on the stack
    assert {
        name: use for name, use in resources[arch].items() if use["STACK"] or use["LOCAL"]
    } == {}
    assert len(resources[arch]) == (17 if arch == ALL_VARIANTS else 6)


if __name__ == "__main__":
    found = {}
    for arch in sys.argv[1:]:
        found[arch] = {}
        for variants in (roi_align_variants, nms_variants):
            for name, kernel, values, options in variants(arch == ALL_VARIANTS):
                found[arch][name] = compiled_resources(kernel, values, options, int(arch))
    print(json.dumps(found))
