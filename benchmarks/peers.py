"""Functions of other packages that do what an op does, where they are installed and on the CPU.

Each takes and gives tensors, which costs it no copy: NumPy shares their memory.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import LSNMS, ONNX_RUNTIME, POWERBOXES, POWERBOXES_TREE, Providers

OPSET = 16  # the first with RoiAlign's choice of coordinates


def has(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) for package in packages)


def onnx_session(model: bytes) -> Any:
    """The model in ONNX Runtime, on as many threads as torch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@functools.cache
def _onnx_operator(name: str, threads: int, **attributes: Any) -> Any:
    """A session of one operator; for a number of threads, which it keeps."""
    from onnx import TensorProto, helper

    real, whole = TensorProto.FLOAT, TensorProto.INT64
    inputs, output = {
        "NonMaxSuppression": (
            {
                "boxes": (real, [1, None, 4]),
                "scores": (real, [1, 1, None]),
                "max_output_boxes_per_class": (whole, [1]),
                "iou_threshold": (real, [1]),
            },
            (whole, [None, 3]),
        ),
        "RoiAlign": (
            {"X": (real, [None] * 4), "rois": (real, [None, 4]), "batch_indices": (whole, [None])},
            (real, [None] * 4),
        ),
    }[name]
    graph = helper.make_graph(
        [helper.make_node(name, list(inputs), ["Y"], **attributes)],
        name,
        [helper.make_tensor_value_info(key, *kind) for key, kind in inputs.items()],
        [helper.make_tensor_value_info("Y", *output)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    return onnx_session(model.SerializeToString())


def overlaps(name: str, device: torch.device) -> Providers:
    """box_iou, generalized_box_iou, distance_box_iou or complete_box_iou."""
    if device.type != "cpu" or not has("powerboxes"):
        return {}
    import powerboxes

    # its other overlaps have no parallel form
    names = {
        "box_iou": "parallel_iou_distance",
        "generalized_box_iou": "parallel_giou_distance",
        "distance_box_iou": "diou_distance",
        "complete_box_iou": "ciou_distance",
    }
    function = getattr(powerboxes, names[name])
    return {POWERBOXES: lambda b1, b2: 1 - torch.from_numpy(function(b1.numpy(), b2.numpy()))}


def nms(iou_threshold: float, device: torch.device) -> Providers:
    """nms(boxes, scores) with the order of descending scores."""
    found: Providers = {}
    if device.type != "cpu":
        return found
    if has("powerboxes"):
        import powerboxes

        def powerboxes_nms(function: Callable[..., Any]) -> Callable[..., Tensor]:
            def run(boxes: Tensor, scores: Tensor) -> Tensor:
                kept = function(boxes.numpy(), scores.double().numpy(), iou_threshold, -1.0)
                return torch.from_numpy(kept.view("int64"))

            return run

        found[POWERBOXES] = powerboxes_nms(powerboxes.nms)
        found[POWERBOXES_TREE] = powerboxes_nms(powerboxes.rtree_nms)
    if has("lsnms"):
        import lsnms

        def sparse(boxes: Tensor, scores: Tensor) -> Tensor:
            kept = lsnms.nms(boxes.numpy(), scores.numpy(), iou_threshold)  # of scores above 0
            return torch.as_tensor(kept, dtype=torch.int64)

        found[LSNMS] = sparse
    if has("onnx", "onnxruntime"):
        session = _onnx_operator("NonMaxSuppression", torch.get_num_threads())
        threshold = torch.tensor([iou_threshold]).numpy()

        def onnx(boxes: Tensor, scores: Tensor) -> Tensor:
            feeds = {
                "boxes": boxes[None].numpy(),
                "scores": scores[None, None].numpy(),
                "max_output_boxes_per_class": torch.tensor([len(boxes)]).numpy(),
                "iou_threshold": threshold,
            }
            return torch.from_numpy(session.run(None, feeds)[0])[:, 2]

        found[ONNX_RUNTIME] = onnx
    return found


def roi_align(bins: int, scale: float, sampling: int, device: torch.device) -> Providers:
    """roi_align(features, rois) of contiguous float32 features."""
    if device.type != "cpu" or not has("onnx", "onnxruntime"):
        return {}
    session = _onnx_operator(
        "RoiAlign",
        torch.get_num_threads(),
        coordinate_transformation_mode="output_half_pixel",
        output_height=bins,
        output_width=bins,
        sampling_ratio=sampling,
        spatial_scale=scale,
    )

    def run(x: Tensor, rois: Tensor) -> Tensor:
        feeds = {
            "X": x.numpy(),
            "rois": rois[:, 1:].numpy(),
            "batch_indices": rois[:, 0].long().numpy(),
        }
        return torch.from_numpy(session.run(None, feeds)[0])

    return {ONNX_RUNTIME: run}
