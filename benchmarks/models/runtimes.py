"""Models in the inference engines that users may run instead, where they are installed."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.harness import ONNX_RUNTIME, OPENVINO
from benchmarks.peers import has, onnx_session


def runtimes(model: nn.Module, images: Tensor) -> dict[str, Callable[..., Tensor]]:
    """``model`` in each engine that is installed, for images of this shape on the CPU."""
    found = {}
    if has("onnx", "onnxscript", "onnxruntime"):
        found[ONNX_RUNTIME] = _onnx_runtime(model, images)
    if has("openvino"):
        found[OPENVINO] = _openvino(model, images)
    return found


def _onnx_runtime(model: nn.Module, images: Tensor) -> Callable[..., Tensor]:
    file = io.BytesIO()
    torch.onnx.export(model, (images,), dynamo=True, verbose=False).save(file)  # type: ignore[union-attr]
    session = onnx_session(file.getvalue())
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def detector_in_onnx_runtime(
    model: nn.Module, image: Tensor
) -> dict[str, Callable[..., list[dict[str, Tensor]]]]:
    """A detector in ONNX Runtime, where it is installed, for one image of this shape. By the
    exporter that traces: the other one cannot take sizes that depend on data."""
    if not has("onnx", "onnxruntime"):
        return {}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter is to be removed, the trace is of one shape
        names = list(model([image])[0])  # outputs are in this order
        file = io.BytesIO()
        torch.onnx.export(model, ([image],), file, opset_version=17, dynamo=False)
    session = onnx_session(file.getvalue())
    name = session.get_inputs()[0].name

    def run(image: Tensor) -> list[dict[str, Tensor]]:
        results = session.run(None, {name: image.numpy()})
        return [{key: torch.from_numpy(x) for key, x in zip(names, results, strict=True)}]

    return {ONNX_RUNTIME: run}


def _openvino(model: nn.Module, images: Tensor) -> Callable[..., Tensor]:
    import openvino

    core = openvino.Core()
    converted = openvino.convert_model(model, example_input=images, input=list(images.shape))
    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # bfloat16 otherwise, on CPUs that are fast at it
    }
    compiled = core.compile_model(converted, "CPU", options)
    return lambda x: torch.from_numpy(compiled(x.numpy())[0])
