"""What gets installed, what the compiled library depends on, and life without it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastvision
from fastvision import _extension
from fastvision.testing.marks import needs_library

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(fastvision.__file__).parent
LIBRARY = PACKAGE / "libfastvision.so"


def tool(*command: str | Path) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_version() -> None:
    try:
        installed = importlib.metadata.version("fastvision")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("fastvision runs from the source tree, not installed")
    assert installed == fastvision.__version__


def test_types_are_declared() -> None:
    assert (PACKAGE / "py.typed").exists()
    assert (ROOT / "fastvision" / "_C.pyi").exists()  # not in wheels, which have no _C


def test_every_package_is_listed() -> None:
    tomllib = pytest.importorskip("tomllib")
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent for path in (ROOT / "fastvision").rglob("*.py")}
    folders |= {path.parent for path in (ROOT / "kernels").rglob("*.py")}
    names = set()
    for folder in folders:
        parts = folder.relative_to(ROOT).parts
        names.add(".".join(parts if parts[0] == "fastvision" else ("fastvision", *parts)))
    assert set(setuptools["packages"]) == names
    for name, folder in setuptools["package-dir"].items():
        assert (ROOT / folder / "__init__.py").exists(), name


def test_kernels_only_go_by_their_full_name() -> None:
    spec = importlib.util.spec_from_file_location("kernels", ROOT / "kernels" / "__init__.py")
    with pytest.raises(ImportError, match=r"import fastvision\.kernels"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert importlib.util.find_spec("fastvision.kernels").name == "fastvision.kernels"


@needs_library
def test_library_depends_on_torch_and_the_system_only() -> None:
    needed = set(re.findall(r"NEEDED.*\[(.+?)\]", tool("readelf", "-d", LIBRARY)))
    system = r"lib(stdc\+\+|gcc_s|c|m|dl|rt|pthread|asan|ubsan)\.so\.\d+|ld-linux.*"
    foreign = {name for name in needed if not re.fullmatch(system, name)}
    assert foreign == {"libtorch.so"}


@needs_library
def test_library_uses_the_stable_interface_of_torch_only() -> None:
    undefined = tool("nm", "-DC", "--undefined-only", LIBRARY)
    assert "torch_library_impl" in undefined
    assert not re.search(r"\b(c10|at|torch)::", undefined), "a C++ symbol of torch"
    assert not re.search(r"\b_?Py[A-Z]", undefined), "a symbol of Python"


@needs_library
def test_library_exports_what_its_header_declares() -> None:
    header = (ROOT / "csrc/python/library.h").read_text()
    declared = set(re.findall(r"^FASTVISION_EXPORT .*?(fastvision_\w+)\(", header, re.MULTILINE))
    defined = tool("nm", "-D", "--defined-only", LIBRARY)
    assert set(re.findall(r" T (\w+)", defined)) == declared


TAG = """
from distutils.core import run_setup
wheel = run_setup("setup.py", stop_after="init").get_command_obj("bdist_wheel")
wheel.ensure_finalized()
print(*wheel.get_tag())
"""


def test_one_wheel_serves_every_python() -> None:
    for module in ("setuptools", "setuptools.command.bdist_wheel"):
        pytest.importorskip(module)
    # setuptools first: it brings distutils to Pythons that have none
    run = [sys.executable, "-c", "import setuptools\n" + TAG]
    tag = subprocess.run(run, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    python, abi, platform = tag.split("\n")[-2].split()
    assert (python, abi) == ("py3", "none")
    assert platform.startswith("linux_")  # auditwheel makes it manylinux


INFO = """
import importlib.util, json, sys
import torch
import fastvision
assert fastvision.__file__.startswith(sys.argv[1]), fastvision.__file__
facts = fastvision.info()
boxes, scores = torch.tensor([[0, 0, 10, 10.0], [1, 1, 10, 10]]), torch.tensor([0.5, 0.9])
facts["nms"] = fastvision.ops.nms(boxes, scores, 0.5, backend="cpp").tolist()
assert "fastvision._C" not in sys.modules
print(json.dumps(facts))
"""


@needs_library
def test_python_module_is_not_needed(tmp_path: Path) -> None:
    without = shutil.ignore_patterns("_C*.so", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "fastvision", ignore=without)
    facts = []
    for folder in (tmp_path, PACKAGE.parent):
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        run = [sys.executable, "-c", INFO, str(folder)]
        text = subprocess.run(
            run, check=True, cwd=tmp_path.parent, env=environment, capture_output=True, text=True
        ).stdout
        facts.append(json.loads(text))
    assert facts[0] == facts[1]
    assert facts[0]["library"]["missing"] is None
    assert facts[0]["nms"] == [1]


def test_python_module_is_a_view_of_the_library(cpu_level) -> None:
    module = pytest.importorskip("fastvision._C", reason="not in wheels")
    questions = ("compiler", "cuda_version", "cuda_architectures", "cpu_levels")
    for question in (*questions, "cpu_level", "cpu_level_supported"):
        assert getattr(module, question)() == getattr(_extension, question)(), question
    module.set_cpu_level("baseline")
    assert _extension.cpu_level() == "baseline"
    _extension.set_cpu_level(_extension.cpu_level_supported())
    assert module.cpu_level() == _extension.cpu_level_supported()
    errors = []
    for view in (module, _extension):
        with pytest.raises(ValueError, match="CPU level 'mmx': the library is built for") as error:
            view.set_cpu_level("mmx")
        errors.append(str(error.value))
    assert errors[0] == errors[1]


def test_library_of_another_version_is_explained(tmp_path: Path) -> None:
    without = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "fastvision", ignore=without)
    tool("g++", "-shared", "-x", "c++", "/dev/null", "-o", tmp_path / "fastvision/libfastvision.so")
    code = "from fastvision import _extension; print(_extension.missing)"
    text = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    ).stdout
    assert re.match("the compiled library does not load: .*fastvision_compiler", text), text


@needs_library
def test_kernels_of_one_cpu_level_stay_in_it() -> None:
    # a weak symbol of a level's object could become everybody's copy, on a CPU that cannot run it
    objects = sorted(ROOT.glob("build/cmake-*/CMakeFiles/cpu_*.dir/csrc/cpu/*.o"))
    if not objects:
        pytest.skip("no build folder")
    for path in objects:
        weak = re.findall(r"^\S+ [WVu] .+", tool("nm", "--defined-only", path), re.MULTILINE)
        assert not weak, f"{path.parent.parent.parent.name}/{path.name}"


WITHOUT_LIBRARY = """
import sys, torch
import fastvision
from fastvision import _extension, ops
assert fastvision.__file__.startswith(sys.argv[1]), fastvision.__file__
assert "not installed" in _extension.missing, _extension.missing
boxes = torch.tensor([[0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30.0]])
scores = torch.tensor([0.5, 0.9, 0.1])
assert ops.nms(boxes, scores, 0.5).tolist() == [1, 2]
assert ops.batched_nms(boxes, scores, torch.tensor([0, 1, 0]), 0.5).tolist() == [1, 0, 2]
indices, counts = ops.batched_nms_padded(boxes[None], scores[None], None, 0.5, max_output=3)
assert indices.tolist() == [[1, 2, -1]] and counts.tolist() == [2]
features = torch.ones(1, 2, 16, 16, requires_grad=True)
pooled = ops.roi_align(features, [boxes], 2, 0.5)
assert pooled.shape == (3, 2, 2, 2) and torch.allclose(pooled, torch.ones(()))
pooled.sum().backward()
assert features.grad.sum().isclose(torch.tensor(24.0))
pyramid = [torch.ones(1, 2, 8, 8), torch.ones(1, 2, 4, 4)]
assert ops.multiscale_roi_align(pyramid, [boxes], 2, [0.25, 0.125]).shape == (3, 2, 2, 2)
try:
    ops.nms(boxes, scores, 0.5, backend="cpp")
except ValueError as error:
    assert "the compiled library is not installed" in str(error), error
else:
    raise AssertionError("backend='cpp' ran without the library")
"""


def test_without_the_library_every_op_runs(tmp_path: Path) -> None:
    without = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "fastvision", ignore=without)
    # -P would keep the source tree out too, but Python 3.10 has no -P
    run = [sys.executable, "-c", WITHOUT_LIBRARY, str(tmp_path)]
    subprocess.run(run, check=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
