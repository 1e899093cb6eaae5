"""README's tables, written between markers that name a table and the folder of a device's records:

<!-- table: ops of amd-epyc-2-cores-avx512 begin -->
<!-- table: ops of amd-epyc-2-cores-avx512 end -->
"""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass

from benchmarks import surface
from benchmarks.document import Table, markdown_table
from benchmarks.harness import ONNX_RUNTIME
from benchmarks.records import Record, our_speedup, speedup
from benchmarks.tables import short_ratio

_MARK = r"table: (\w+) of ([\w-]+)"  # table, folder
Figure = tuple[str, str]  # op, and a regular expression that finds its cases


@dataclass(frozen=True)
class Line:
    text: str
    figures: list[Figure]  # of several cases the geometric mean


def _nms(kind: str, *counts: int) -> list[Figure]:
    return [("nms", f"{kind}, {count}$") for count in counts]


def _roi_align(case: str, *layouts: str) -> list[Figure]:
    return [("roi_align", f"^{case}, {layout}$") for layout in layouts]


LAYOUTS = ("channels_last", "contiguous")
LARGE = "2x256x200x304, 1000 boxes, 7x7 bins"
FOCAL = "2x120000x80, float32, sum"
OPS = [
    Line("`nms`, 1 / 10 / 100 boxes", _nms("^nms, uniform", 1, 10, 100)),
    Line(
        "`nms`, 4,000 / 20,000 / 100,000 boxes spread evenly",
        _nms("^nms, uniform", 4000, 20_000, 100_000),
    ),
    Line(
        "`nms`, 4,000 / 20,000 / 100,000 boxes around 40 objects",
        _nms("^nms, clustered", 4000, 20_000, 100_000),
    ),
    Line("`batched_nms`, 20,000 boxes, 80 classes", _nms("^batched_nms, 80 classes", 20_000)),
    Line(
        "`batched_nms_padded`, 4 images of 4,000 boxes, 80 classes, against a loop",
        [("batched_nms_padded", "^4 images, 80 classes, 4000$")],
    ),
    Line(
        "`roi_align`, 2x256x200x304, 1000 boxes, 7x7, 2x2 samples: channels_last / NCHW",
        _roi_align(f"forward, {LARGE}, 2x2 samples, float32", *LAYOUTS),
    ),
    Line(
        "the same, forward and backward",
        _roi_align(f"forward and backward, {LARGE}, 2x2 samples, float32", *LAYOUTS),
    ),
    Line(
        "the same with adaptive sampling, forward",
        _roi_align(f"forward, {LARGE}, adaptive samples, float32", *LAYOUTS),
    ),
    Line(
        "the same in bfloat16, forward (torchvision through float32)",
        _roi_align(f"forward, {LARGE}, 2x2 samples, bfloat16", *LAYOUTS),
    ),
    Line(
        "`roi_align`, 1x5x33x47, 17 boxes",
        [("roi_align", "^forward, 1x5x33x47, 17 boxes, .*float32")],
    ),
    Line(
        "`MultiScaleRoIAlign`, 4 levels, 1000 boxes: channels_last / NCHW",
        [("multiscale_roi_align", f"^4 levels .* float32, {layout}$") for layout in LAYOUTS],
    ),
    Line(
        "`sigmoid_focal_loss`, 2x120000x80, sum, forward: zeros and ones / integer labels",
        [("focal_loss", f"^forward, {kind}, {FOCAL}$") for kind in ("zeros and ones", "labels")],
    ),
    Line(
        "the same, forward and backward",
        [
            ("focal_loss", f"^forward and backward, {kind}, {FOCAL}$")
            for kind in ("zeros and ones", "labels")
        ],
    ),
]
CONVOLUTIONS = [
    *(
        Line(text, [("conv_bn_relu", f"^{model}, batch {batch},") for batch in (1, 8)])
        for model, text in (
            ("vgg16", "`conv_bn_relu`, convolutions of VGG-16, geometric mean: batch 1 / 8"),
            ("resnet50", "of ResNet-50"),
            ("resnext50", "of ResNeXt-50's grouped ones"),
            ("mobilenet_v2", "of MobileNetV2"),
        )
    ),
    Line(
        "training step of a 3x3 convolution, normalization and ReLU, batch 8: "
        "64@56 / 128@28 / 256@14",
        [
            ("batch_norm_relu", f"^training step, .* {C} to {C} @{size}, batch 8")
            for C, size in ((64, 56), (128, 28), (256, 14))
        ],
    ),
    Line(
        "`batch_norm_relu` alone, forward and backward: 2x32x14x14 / 8x512x7x7 / 8x256x56x56",
        [
            ("batch_norm_relu", f"^forward and backward, {shape}, float32, channels_last$")
            for shape in ("2x32x14x14", "8x512x7x7", "8x256x56x56")
        ],
    ),
    Line(
        "`conv_transpose2d` with bias and ReLU, Mask R-CNN's mask head, 100 maps: "
        "channels_last / NCHW",
        [("conv_transpose2d", f"^Mask R-CNN, mask head, .*, {layout}$") for layout in LAYOUTS],
    ),
    Line(
        "bilinear upsampling of FCN-8s / FCN-32s, channels_last",
        [("conv_transpose2d", f"^{fcn}, bilinear, .*last$") for fcn in ("FCN-8s", "FCN-32s")],
    ),
]
MODELS = [
    Line(f"{text}: batch 1 / 8", [("models", f"^{name}, batch {batch}$") for batch in (1, 8)])
    for name, text in (
        ("alexnet", "AlexNet"),
        ("vgg11", "VGG-11"),
        ("vgg16_bn", "VGG-16"),
        ("googlenet", "GoogLeNet"),
        ("inception_v3", "Inception-v3"),
        ("resnet18", "ResNet-18"),
        ("resnet50", "ResNet-50"),
        ("resnext50_32x4d", "ResNeXt-50"),
        ("wide_resnet50_2", "Wide ResNet-50"),
        ("densenet121", "DenseNet-121"),
        ("mobilenet_v2", "MobileNetV2"),
        ("mobilenet_v3_large", "MobileNetV3, large"),
        ("shufflenet_v2_x1_0", "ShuffleNetV2"),
        ("fcn_resnet50", "FCN"),
        ("deeplabv3_mobilenet_v3_large", "DeepLabv3 on MobileNetV3"),
        ("lraspp_mobilenet_v3_large", "LR-ASPP"),
    )
]
STEPS = [
    Line(text, [("models", f"^{name}, training step, batch 8$")])
    for name, text in (
        ("resnet18", "ResNet-18"),
        ("resnet50", "ResNet-50"),
        ("vgg11_bn", "VGG-11 with batch normalization"),
        ("mobilenet_v2", "MobileNetV2"),
    )
]
_OWN_DETECTORS = (
    ("fasterrcnn_resnet50_fpn", "Faster R-CNN"),
    ("maskrcnn_resnet50_fpn", "Mask R-CNN"),
    ("keypointrcnn_resnet50_fpn", "Keypoint R-CNN"),
    ("retinanet_resnet50_fpn", "RetinaNet"),
    ("fcos_resnet50_fpn", "FCOS"),
    ("ssd300_vgg16", "SSD300"),
    ("ssdlite320_mobilenet_v3_large", "SSDlite"),
)
OWN_DETECTORS = [Line(text, [("detectors", f"^{name}, batch 1$")]) for name, text in _OWN_DETECTORS]
DETECTOR_STEPS = [
    Line(text, [("detectors", f"^{name}, training step")])
    for name, text in _OWN_DETECTORS
    if text not in ("Keypoint R-CNN", "SSDlite")
]
DETECTORS = [
    Line(
        "Faster R-CNN / Mask R-CNN",
        [("detection", f"^{name}_resnet50_fpn") for name in ("fasterrcnn", "maskrcnn")],
    ),
    Line("SSD300 / RetinaNet", [("detection", "^ssd300_vgg16"), ("detection", "^retinanet")]),
]
# name: head of the lines, then the providers with the heads of their columns; None is the default
# backend
Columns = dict[str, str | None]
TABLES: dict[str, tuple[str, Columns, list[Line]]] = {
    "ops": ("case", {"times as fast as torchvision": None}, OPS),
    "convolutions": ("case", {"times as fast as torch's layers": None}, CONVOLUTIONS),
    "models": (
        "inference, 224x224",
        {"as built": "fastvision", "after `fuse(model)`": "fastvision, fused"},
        MODELS,
    ),
    "steps": (
        "training step, batch 8, 224x224",
        {
            "as built": "fastvision",
            "in channels_last": "fastvision, channels_last",
            "torchvision's after `fuse(model, training=True)`": "torchvision's, fused",
        },
        STEPS,
    ),
    "own_detectors": (
        "inference, a photograph of 427x640",
        {
            "as built": "fastvision",
            "after `fuse(model)`": "fastvision, fused",
            "torchvision's in ONNX Runtime": ONNX_RUNTIME,
        },
        OWN_DETECTORS,
    ),
    "detector_steps": (
        "training step, 2 images of 320x400",
        {"times as fast as torchvision": "fastvision"},
        DETECTOR_STEPS,
    ),
    "detectors": ("model under `enable()`", {"times as fast as before": None}, DETECTORS),
}


def _figure(
    figure: Figure, records: dict[str, Record], provider: str | None = None
) -> float | None:
    op, pattern = figure
    rows = [row for row in records[op]["rows"] if re.search(pattern, row["case"])]
    ratios = [our_speedup(row) if provider is None else speedup(row, provider) for row in rows]
    measured = [ratio for ratio in ratios if ratio is not None]
    return statistics.geometric_mean(measured) if measured else None


def _slower(records: dict[str, Record]) -> list[list[str]]:
    lines = [["op", "slower than its baseline", "least"]]
    for op, record in records.items():
        ratios = [r for row in record["rows"] if (r := our_speedup(row)) is not None]
        slower = [ratio for ratio in ratios if ratio < 1]
        if slower:
            count = f"{len(slower)} of {len(ratios)} cases"
            lines.append([f"`{op}`", count, short_ratio(min(slower))])
    return lines


def table(name: str, records: dict[str, Record]) -> str:
    """One of README's tables, or why there is none: a record with a remark needs a new run, and one
    may not have been made yet.

    A line of which the records lack a figure is left out.
    """
    if name in surface.TABLES:
        return markdown_table(surface.table(name, records))
    if name == "slower":
        return markdown_table(Table(_slower(records)))
    head, columns, specification = TABLES[name]
    needed = sorted({op for line in specification for op, _ in line.figures})
    if missing := [op for op in needed if op not in records]:
        return f"There is no record of `{missing[0]}` for this table yet."
    for op in needed:
        if "remark" in records[op]:
            return f"The record of `{op}` is {records[op]['remark']}: no table before the next run."
    lines = [[head, *columns]]
    for line in specification:
        cells = [line.text]
        for provider in columns.values():
            figures = [_figure(figure, records, provider) for figure in line.figures]
            if None not in figures:
                cells.append(" / ".join(short_ratio(f) for f in figures if f is not None))
        if len(cells) == len(lines[0]):
            lines.append(cells)
    return markdown_table(Table(lines))


def folders(text: str) -> set[str]:
    """The folders of records that README's markers name."""
    return {match[2] for match in re.finditer(rf"<!-- {_MARK} begin -->", text)}


def rewrite(text: str, records: dict[str, dict[str, Record]]) -> str:
    """README with its tables written from the records of each folder; other text stays."""

    def replace(match: re.Match[str]) -> str:
        begin, name, folder, end = match[1], match[2], match[3], match[4]
        return f"{begin}{table(name, records[folder])}\n{end}"

    pattern = rf"(<!-- {_MARK} begin -->\n).*?(<!-- table: \2 of \3 end -->)"
    return re.sub(pattern, replace, text, flags=re.DOTALL)
