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

sys.path.append(str(Path(__file__).parent))
from triton_variants import VARIANTS

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
# two processes share the work; one architecture gets every variant, the others the main ones
PROCESSES = (("75", "80", "86", "120"), ("90", "89", "100"))
ALL_VARIANTS = "90"
# those of kernels/; test_triton_compile_conv.py has the others
KERNELS = {
    kernel
    for path in (ROOT / "kernels").glob("*.py")
    if not path.name.startswith("conv_bn_relu")
    for kernel in re.findall(r"^def (_\w+_kernel)\(", path.read_text(), re.MULTILINE)
}
MINOR = {"_nms_compact_kernel", "_scale_kernel"}  # which have no main variant
GEMMS = {
    "_conv_transpose2d_kernel",
    "_deform_conv2d_kernel",
    "_deform_conv2d_points_kernel",
    "_deform_conv2d_weight_kernel",
}


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
    return found | {"SHARED": compiled.metadata.shared, "KERNEL": kernel.__name__}


def resources_by_architecture(script):
    """What ``script`` prints for all architectures; a skip where there is no Triton."""
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    processes = [
        subprocess.Popen(
            [sys.executable, script, *architectures],
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


@pytest.fixture(scope="module")
def resources():
    return resources_by_architecture(__file__)


@pytest.mark.parametrize("arch", [arch for group in PROCESSES for arch in group])
def test_kernels_compile_without_spills(resources, arch):
    # a spilled register is on the stack
    assert {
        name: use for name, use in resources[arch].items() if use["STACK"] or use["LOCAL"]
    } == {}
    # without tensor cores of its kind, Triton's dot is not used on sm_75
    left_out = (set() if arch == ALL_VARIANTS else MINOR) | (GEMMS if arch == "75" else set())
    assert {use["KERNEL"] for use in resources[arch].values()} == KERNELS - left_out


if __name__ == "__main__":
    found = {}
    for arch in sys.argv[1:]:
        found[arch] = {}
        for variants in VARIANTS:
            for name, kernel, values, options in variants(arch == ALL_VARIANTS):
                if kernel.__name__ in GEMMS and arch == "75":
                    continue
                assert name not in found[arch], name
                found[arch][name] = compiled_resources(kernel, values, options, int(arch))
    print(json.dumps(found))
