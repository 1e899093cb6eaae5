"""fastvision.info() and the command line that prints it."""

from __future__ import annotations

import json

import pytest
import torch

import fastvision
from fastvision import _extension, cli
from fastvision.ops import _backend, _library


def test_versions() -> None:
    facts = fastvision.info()
    assert facts["fastvision"] == fastvision.__version__
    assert facts["torch"] == torch.__version__
    assert facts["torch_cuda"] == torch.version.cuda


def test_every_op_and_device_has_every_backend() -> None:
    facts = fastvision.info()
    functions = {name for name in fastvision.ops.__all__ if not name[0].isupper()}
    functions -= {"conv_norm_act", "norm_act"}  # they take layers and call other ops
    functions -= {"drop_block2d", "drop_block3d", "stochastic_depth"}  # of torch's operations
    functions -= {"box_area", "box_convert", "clip_boxes_to_image", "remove_small_boxes"}
    assert facts["ops"].keys() == functions
    for by_device in facts["ops"].values():
        assert len(by_device) == 1 + torch.cuda.device_count()
        for table in by_device.values():
            assert table.keys() == set(_backend.BACKENDS)
            assert table["reference"] is None


def test_tells_which_kernels_an_op_lacks() -> None:
    for op in ("conv_transpose2d", "batch_norm_relu"):
        assert "CUDA C++" in _library.PUBLIC[op].lacks["cuda"]


def test_agrees_with_the_choice_of_backend() -> None:
    boxes, scores = torch.zeros(1, 4), torch.zeros(1)
    for backend, reason in fastvision.info()["ops"]["nms"]["cpu"].items():
        if backend == "cuda" or reason is not None:
            assert reason is not None
            with pytest.raises(ValueError, match="cannot run on cpu"):
                fastvision.ops.nms(boxes, scores, 0.5, backend=backend)
        elif backend != "triton":
            assert fastvision.ops.nms(boxes, scores, 0.5, backend=backend).tolist() == [0]


def test_library_facts() -> None:
    if _extension.missing is not None:
        pytest.skip(_extension.missing)
    library = fastvision.info()["library"]
    levels = library["cpu_levels"]
    assert levels[0] == "baseline"
    assert levels.index(library["cpu_level"]) <= levels.index(library["cpu_level_supported"])
    assert bool(library["cuda"]) == bool(library["cuda_architectures"])


def test_a_cpu_level_that_cannot_run_is_explained(cpu_level) -> None:
    levels = _extension.cpu_levels()
    supported = levels.index(_extension.cpu_level_supported())
    for level in levels[supported + 1 :]:
        with pytest.raises(ValueError, match=f"CPU level '{level}': this CPU does not support it"):
            _extension.set_cpu_level(level)
    with pytest.raises(ValueError, match="CPU level '': the library is built for baseline"):
        _extension.set_cpu_level("")
    assert _extension.cpu_level() == levels[supported]


def test_a_missing_library_is_explained(monkeypatch, capsys) -> None:
    monkeypatch.setattr(_extension, "missing", "it was left at home")
    assert fastvision.info()["library"] == {"missing": "it was left at home"}
    assert fastvision.info()["ops"]["nms"]["cpu"]["cpp"] == "it was left at home"
    assert cli.main(["info"]) == 0
    assert "no cpp: it was left at home" in capsys.readouterr().out


def test_command_prints_the_same_as_json(capsys) -> None:
    assert cli.main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == fastvision.info()


def test_command_prints_a_line_per_op(capsys) -> None:
    assert cli.main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for op in fastvision.info()["ops"]:
        (line,) = (line for line in lines if line.split()[:1] == [op])
        assert line.split()[-1] == "yes"


def test_command_needs_a_subcommand() -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main([])
