"""README's tables, written from a device's records between markers such as

<!-- table: ops begin -->
<!-- table: ops end -->
"""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass

from benchmarks.document import Table, markdown_table
from benchmarks.records import Record, our_speedup

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
    Line("ResNet-50, batch 1 / 8", [("fuse", f"^resnet50, batch {batch}$") for batch in (1, 8)]),
    Line(
        "MobileNetV2 / VGG-16 / GoogLeNet, batch 1",
        [("fuse", f"^{name}, batch 1$") for name in ("mobilenet_v2", "vgg16_bn", "googlenet")],
    ),
    Line(
        "DenseNet-121 / ShuffleNetV2 / ResNeXt-50, batch 1",
        [
            ("fuse", f"^{name}, batch 1$")
            for name in ("densenet121", "shufflenet_v2_x1_0", "resnext50_32x4d")
        ],
    ),
    Line("Faster R-CNN, also under `enable()`, 480x640", [("fuse", "^fasterrcnn_resnet50_fpn")]),
]
DETECTORS = [
    Line(
        "Faster R-CNN / Mask R-CNN",
        [("detection", f"^{name}_resnet50_fpn") for name in ("fasterrcnn", "maskrcnn")],
    ),
    Line("SSD300 / RetinaNet", [("detection", "^ssd300_vgg16"), ("detection", "^retinanet")]),
]
TABLES: dict[str, tuple[str, str, list[Line]]] = {
    "ops": ("case", "times as fast as torchvision", OPS),
    "convolutions": ("case", "times as fast as torch's layers", CONVOLUTIONS),
    "models": (
        "model after `fuse(model)`, 224x224",
        "times as fast as the model, in the faster memory format",
        MODELS,
    ),
    "detectors": ("model under `enable()`", "times as fast as before", DETECTORS),
}


def _format(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}" if ratio >= 2 else f"{ratio:.2f}"


def _figure(figure: Figure, records: dict[str, Record]) -> float | None:
    op, pattern = figure
    rows = records[op]["rows"] if op in records else []
    ratios = [our_speedup(row) for row in rows if re.search(pattern, row["case"])]
    measured = [ratio for ratio in ratios if ratio is not None]
    return statistics.geometric_mean(measured) if measured else None


def _slower(records: dict[str, Record]) -> list[list[str]]:
    lines = [["op", "slower than its baseline", "least"]]
    for op, record in records.items():
        ratios = [r for row in record["rows"] if (r := our_speedup(row)) is not None]
        slower = [ratio for ratio in ratios if ratio < 1]
        if slower:
            lines.append([f"`{op}`", f"{len(slower)} of {len(ratios)} cases", _format(min(slower))])
    return lines


def table(name: str, records: dict[str, Record]) -> str:
    """One of README's tables, or why there is none: a record with a remark needs a new run.

    A line of which the records lack a figure is left out.
    """
    if name == "slower":
        return markdown_table(Table(_slower(records)))
    *head, specification = TABLES[name]
    for op in sorted({op for line in specification for op, _ in line.figures} & set(records)):
        if "remark" in records[op]:
            return f"The record of `{op}` is {records[op]['remark']}: no table before the next run."
    lines = [head]
    for line in specification:
        figures = [_figure(figure, records) for figure in line.figures]
        if None not in figures:
            lines.append([line.text, " / ".join(_format(f) for f in figures if f is not None)])
    return markdown_table(Table(lines))


def rewrite(text: str, records: dict[str, Record]) -> str:
    """README with its tables written from ``records``; text outside the markers stays."""

    def replace(match: re.Match[str]) -> str:
        return f"{match[1]}{table(match[2], records)}\n{match[3]}"

    pattern = r"(<!-- table: (\w+) begin -->\n).*?(<!-- table: \2 end -->)"
    return re.sub(pattern, replace, text, flags=re.DOTALL)
