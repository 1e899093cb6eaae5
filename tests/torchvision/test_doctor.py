"""``fastvision doctor`` on installations that are broken in one way each."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastvision import _device, _doctor, _extension, cli
from fastvision.integrations.torchvision import devices

pytest.importorskip("torchvision.ops")
import torchvision  # noqa: E402


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a torchvision with this code before the installed one."""

    def make(code: str) -> None:
        (tmp_path / "torchvision").mkdir()
        (tmp_path / "torchvision" / "__init__.py").write_text(textwrap.dedent(code))
        (tmp_path / "torchvision" / "extension.py").write_text("_has_ops = lambda: True")
        monkeypatch.syspath_prepend(str(tmp_path))

    return make


@pytest.fixture
def without_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts the installed torchvision without its compiled library before it; its folder."""
    folder = tmp_path / "torchvision"
    folder.mkdir()
    for entry in Path(torchvision.__file__).parent.iterdir():
        if entry.suffix != ".so":
            (folder / entry.name).symlink_to(entry)
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_doctor, "_gpus", lambda: 1)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(devices, "has_kernels", lambda device: True)


def of_torchvision() -> _doctor.Finding:
    (finding,) = _doctor._torchvision()
    return finding


def test_all_is_well(monkeypatch, capsys) -> None:
    if _extension.missing is not None:
        pytest.skip(_extension.missing)
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "all is well"
    assert any(
        line.startswith(f"ok      torchvision {torchvision.__version__[:4]}") for line in lines
    )


def test_missing_library(without_library, run_python, capsys) -> None:
    assert cli.main(["doctor"]) == 1
    assert "of 4 parts broken" in capsys.readouterr().out
    state, what, repair = of_torchvision()
    assert state == "broken"
    assert "cannot be imported: its compiled library is missing" in what
    assert "operator torchvision::nms does not exist" in what
    line = repair[0].partition(": ")[2]
    assert line.startswith("import fastvision; fastvision.enable()")
    run_python(
        f"""
        {line}
        import torch, torchvision
        assert torchvision.ops.nms(torch.ones(2, 4).cumsum(1), torch.ones(2), 0.5).tolist() == [0]
        """,
        path=(without_library.parent,),
    )


def test_library_of_another_torch(without_library) -> None:
    (without_library / "_C_stable.so").write_text("no library")
    state, what, repair = of_torchvision()
    assert state == "broken" and "_C_stable.so" in what
    assert f"its compiled library does not fit torch {torch.__version__} (" in what
    assert "fastvision.enable()" in repair[0] and "pip install --force-reinstall" in repair[1]


def test_another_major_version_of_cuda(fake) -> None:
    fake(
        """
        raise RuntimeError("Detected that PyTorch and torchvision were compiled with different "
                           "CUDA major versions. PyTorch has CUDA Version=13.0")
        """
    )
    state, what, repair = of_torchvision()
    assert state == "broken" and "compiled for another major version of CUDA than torch" in what
    assert "pip install" in repair[0] and "enable() does not repair it" in repair[1]


CPU_WHEEL = """
    import torch
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("_cuda_version() -> int")
    library.impl("_cuda_version", lambda: -1, "CompositeExplicitAutograd")
"""


def test_cpu_wheel_beside_a_gpu(fake, a_gpu, monkeypatch) -> None:
    fake(CPU_WHEEL)
    state, what, repair = of_torchvision()
    assert state == "broken" and "was compiled without CUDA, torch with CUDA 13.0" in what
    assert repair[0].endswith("import fastvision; fastvision.enable()") and len(repair) == 2
    monkeypatch.setattr(devices, "has_kernels", lambda device: False)
    assert "enable" not in " ".join(of_torchvision().repair)


def test_cpu_wheel_without_a_gpu(fake, monkeypatch) -> None:
    fake(CPU_WHEEL)
    monkeypatch.setattr(_doctor, "_gpus", lambda: 0)
    for cuda, state in (("13.0", "note"), (None, "ok")):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        assert of_torchvision().state == state


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import a_module_that_is_not_there", "No module named 'a_module_that_is_not_there'"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("import os; os.abort()", "it ends the process with code -6"),
        ("import os; os._exit(0)", "it ends the process with code 0: no message"),
    ],
)
def test_other_errors_of_the_import(fake, code, message, capsys) -> None:
    fake(code)
    assert cli.main(["doctor"]) == 1
    assert f"cannot be imported: {message}" in capsys.readouterr().out.replace(
        "ModuleNotFoundError: ", ""
    )


def test_folder_that_hides_the_package(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(_doctor, "_probe", lambda: {"origin": None})
    state, what, _ = of_torchvision()
    assert state == "broken" and "a folder without a package" in what


def test_no_torchvision(monkeypatch, capsys) -> None:
    monkeypatch.setattr(_doctor, "_probe", dict)
    state, what, repair = of_torchvision()
    assert state == "note" and what.startswith("torchvision is not installed")
    assert repair[0].startswith("pip install torchvision")


def test_own_library_missing(monkeypatch, capsys) -> None:
    monkeypatch.setattr(_extension, "missing", "it was left at home")
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "broken  fastvision: it was left at home; every op runs its slow reference" in out


@pytest.mark.parametrize(
    ("architectures", "triton", "states"),
    [
        (["90"], None, ["ok", "ok"]),
        ([], None, ["note", "ok"]),
        (["90"], "triton is not installed", ["ok", "note"]),
        ([], "triton is not installed", ["broken", "note"]),
    ],
)
def test_kernels_for_a_gpu(a_gpu, monkeypatch, architectures, triton, states) -> None:
    monkeypatch.setattr(_extension, "missing", None)
    monkeypatch.setattr(_extension, "cuda_architectures", lambda: architectures)
    monkeypatch.setattr(_device, "triton_missing", lambda: triton)
    monkeypatch.setattr(_device, "cuda_kernels_missing", lambda index: None)
    found = [*_doctor._library(), *_doctor._triton()]
    assert [finding.state for finding in found] == states
    monkeypatch.setattr(_device, "cuda_kernels_missing", lambda index: "built for 90")
    if architectures:
        (*_, last) = _doctor._library()
        assert "no CUDA kernels for cuda:0: built for 90" in last.what
        assert last.state == ("note" if triton is None else "broken")


def test_triton_is_not_needed_without_a_gpu(monkeypatch) -> None:
    monkeypatch.setattr(_doctor, "_gpus", lambda: 0)
    monkeypatch.setattr(_device, "triton_missing", lambda: "triton is not installed")
    (finding,) = _doctor._triton()
    assert finding.state == "ok" and "without a GPU nothing needs it" in finding.what
