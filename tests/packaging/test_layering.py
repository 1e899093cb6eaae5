"""Imports go one way, between the parts of the package and inside of ops (docs/architecture.md)."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# from the bottom up; a part of the package imports itself and layers below its own
LAYERS = (
    {"_C", "_version", "_memory_format"},
    {"_extension", "reference", "kernels"},
    {"_device"},
    {"ops"},
    {"fusion"},  # and what is not named here
    {"models"},
    {"data"},
    {"training"},
    {"inference"},
    {"cli"},
    {"__init__", "__main__"},
    {"testing"},  # for tests and benchmarks: nothing in the package needs it
)
UNNAMED = LAYERS.index({"fusion"})


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Dotted name and syntax tree of every module of the package."""
    for package, folder in (("fastvision", "fastvision"), ("fastvision.kernels", "kernels")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if package == "fastvision" and parts[0] == "kernels":
                continue  # the link to the other folder
            yield ".".join((package, *parts)), ast.parse(path.read_text())


MODULES = dict(modules())


def imports(name: str, nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Absolute dotted names that the import statements among ``nodes`` bring in."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = name.split(".")[: -node.level] if node.level else []
            module = [*base, *(node.module or "").split(".")] if node.module else base
            yield from (".".join([*module, alias.name]) for alias in node.names)


def part(name: str) -> str:
    return (name.split(".") + ["__init__"])[1]


def layer(name: str) -> int:
    return next((i for i, names in enumerate(LAYERS) if part(name) in names), UNNAMED)


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name: str) -> None:
    for imported in imports(name, ast.walk(MODULES[name])):
        if imported.split(".")[0] != "fastvision" or part(imported) == part(name):
            continue
        both_unnamed = layer(imported) == layer(name) == UNNAMED
        assert layer(imported) < layer(name) or both_unnamed, f"{name} must not import {imported}"


def module_of(imported: str) -> str | None:
    """The module that an imported name is in."""
    while imported and imported not in MODULES and f"{imported}.__init__" not in MODULES:
        imported = imported.rpartition(".")[0]
    return imported if imported in MODULES else f"{imported}.__init__" if imported else None


OPS = {
    name: {module_of(imported) for imported in imports(name, ast.walk(tree))}
    for name, tree in MODULES.items()
    if part(name) == "ops"
}


def test_imports_inside_ops_are_acyclic() -> None:
    inside = {name: imported & OPS.keys() - {name} for name, imported in OPS.items()}
    try:
        graphlib.TopologicalSorter(inside).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_private_modules_of_ops_know_no_public_ones() -> None:
    """Public is what the package of ops exports from modules without an underscore."""
    exported = OPS["fastvision.ops.__init__"] & OPS.keys()
    public = {name for name in exported if "._" not in name.removesuffix(".__init__")}
    assert public
    for name in OPS.keys() - public - {"fastvision.ops.__init__"}:
        assert not OPS[name] & public, f"{name} must not import {OPS[name] & public}"


@pytest.mark.parametrize("name", MODULES)
def test_kernels_know_only_common_configs_and_their_own(name: str) -> None:
    """A kernel's own are further files of its op, whose names begin with the op's."""
    if part(name) != "kernels":
        return
    own = f"{name.split('.')[2]}_"
    for imported in imports(name, ast.walk(MODULES[name])):
        if imported.startswith("fastvision.kernels."):
            room = imported.split(".")[2]
            is_own = room.startswith(own)
            assert is_own or room in ("common", "configs"), f"{name} must not import {imported}"


# of few groups, taps and splits; the division of a single dimension would spill registers
GRIDS = {"_deform_conv2d_kernel", "_deform_conv2d_weight_kernel"}


@pytest.mark.parametrize("name", MODULES)
def test_grids_have_one_dimension(name: str) -> None:
    """CUDA ends the others at 65,535 programs, which many images or large maps exceed."""
    for function in MODULES[name].body:
        if isinstance(function, ast.FunctionDef) and function.name not in GRIDS:
            calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
            ids = [call for call in calls if ast.unparse(call.func) == "tl.program_id"]
            assert {ast.unparse(call) for call in ids} <= {"tl.program_id(0)"}, function.name


@pytest.mark.parametrize("name", MODULES)
def test_optional_packages_are_not_imported_with_the_package(name: str) -> None:
    """torchvision and Triton may be missing, and Triton is slow to import."""
    if part(name) == "kernels":
        return
    at_import = [node for node in MODULES[name].body if not isinstance(node, ast.FunctionDef)]
    for imported in imports(name, iter(at_import)):
        top = imported.split(".")[0]
        assert top not in ("torchvision", "triton"), f"{name} imports {top} when it is imported"
        assert part(imported) != "kernels", f"{name} imports Triton kernels when it is imported"


@pytest.mark.parametrize("folder", ["cpu", "cuda"])
def test_kernel_sources_are_free_of_torch(folder: str) -> None:
    waiting = sorted((ROOT / "csrc" / folder).glob("*"))
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        for header in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)', path.read_text(), re.MULTILINE):
            assert not re.match(r"torch/|ATen/|c10/", header), f"{path.name} includes {header}"
            inner = ROOT / "csrc" / header
            if inner.exists() and inner not in seen:
                seen.add(inner)
                waiting.append(inner)
