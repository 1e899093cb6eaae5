"""ONNX files of the models as built."""

from __future__ import annotations

import importlib.util
import io

import pytest
import torch

from fastvision import models

_HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript"))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "googlenet", "shufflenet_v2_x0_5"])
def test_standard_operators(name):
    """An operator of ours would have no translation, which is an error."""
    model = models.get_model(name).eval()
    file = io.BytesIO()
    torch.onnx.export(model, (torch.rand(1, 3, 64, 64),), file, dynamo=False)
    assert file.getvalue()


@pytest.mark.skipif(not _HAS_ONNX, reason="needs onnx and onnxscript")
def test_operators_of_the_exporter_by_torch_export():
    model = models.get_model("mobilenet_v3_small").eval()
    program = torch.onnx.export(model, (torch.rand(1, 3, 64, 64),), dynamo=True)
    assert {node.domain for node in program.model.graph} == {""}
