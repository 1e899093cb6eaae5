"""Bridge from setuptools to CMakeLists.txt, the description of the build."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
OPTIONS = (
    "FASTVISION_CUDA",
    "FASTVISION_CUDA_ARCHS",
    "FASTVISION_TORCH_INCLUDE",
    "FASTVISION_SANITIZE",
    "FASTVISION_EMULATE_AVX512",
)


def torch_include() -> Path:
    """The header folder of the installed torch, found without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise SystemExit("building fastvision needs torch>=2.10 installed, for its headers")
    return Path(spec.origin).parent / "include"


def python_module() -> dict[str, str]:
    """What CMake needs for fastvision._C, which is tied to one Python: in-place builds only."""
    import pybind11

    return {
        "FASTVISION_PYTHON_MODULE": "ON",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }


class CMakeBuild(build_ext):
    def run(self) -> None:
        in_place = self.editable_mode or self.inplace
        prefix = (ROOT if in_place else Path(self.build_lib).resolve()) / "fastvision"
        # not build_temp: that is a temporary folder in editable mode, and nothing would be reused
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        ninja = shutil.which("ninja")
        if ninja is None:
            raise SystemExit("building fastvision needs ninja")
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_INSTALL_PREFIX": prefix,
            # an isolated build's tools are gone the next time: never take them from CMake's cache
            "CMAKE_MAKE_PROGRAM": ninja,
            "FASTVISION_TORCH_INCLUDE": torch_include(),
            **(python_module() if in_place else {}),
            **{name: os.environ[name] for name in OPTIONS if name in os.environ},
        }
        flags = [f"-D{name}={value}" for name, value in options.items()]
        # -U: an unset variable means the default again, not the last build's value
        configure = ["cmake", "-G", "Ninja", "-S", ROOT, "-B", build, "-U", "FASTVISION_*"]
        subprocess.check_call([*configure, *flags])
        subprocess.check_call(["cmake", "--build", build, "--target", "install"])

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Wheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        """For any Python 3: the library has nothing of Python in it."""
        return ("py3", "none", super().get_tag()[2])


setup(
    ext_modules=[Extension("fastvision.libfastvision", [])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": Wheel},
)
