"""The tables of functions in README and on the API's page: what each adds to torchvision's, its
backends and its speed."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass

from benchmarks.document import Table
from benchmarks.records import Record, our_speedup
from benchmarks.tables import short_ratio
from fastvision.ops._library import PUBLIC

KERNELS = {"cpp": "C++", "cuda": "CUDA", "triton": "Triton"}  # all have a reference, too


@dataclass(frozen=True)
class Entry:
    names: str  # of functions, as shown
    text: str
    cases: str | None = None  # op of a record and, behind a colon, a pattern; default: the name

    @property
    def functions(self) -> list[str]:
        return re.findall(r"`(\w+)", self.names)


# with torchvision's signature, or torch's
SHARED = [
    Entry(
        "`nms`",
        "same result, ties included; float16 and bfloat16 on the CPU; O(N) memory; limits to "
        "scores and results",
        "nms:^nms",
    ),
    Entry(
        "`batched_nms`",
        "exact per class, with no offset by the largest coordinate",
        "nms:^batched_nms",
    ),
    Entry("`drop_block2d`, `drop_block3d`", "same random blocks, in fewer passes on the CPU"),
    Entry(
        "`box_iou`, `generalized_box_iou`, `distance_box_iou`, `complete_box_iou`",
        "same bits, but for the arc tangent; one pass over the pairs, forward and backward",
        r"box_iou:^\w*box_iou,",
    ),
    Entry(
        "`box_iou_rotated` (behind `box_iou`)",
        "differentiable, 16-bit and float64 boxes, batches",
    ),
    Entry(
        "`generalized_box_iou_loss`, `distance_box_iou_loss`, `complete_box_iou_loss`",
        "one pass, forward and backward",
        "box_iou:_loss,",
    ),
    Entry("`masks_to_boxes`", "reads only what can widen a box"),
    Entry("`ps_roi_align`", "bfloat16, channels_last, deterministic gradient, second derivatives"),
    Entry("`ps_roi_pool`", "bfloat16, channels_last, deterministic gradient, second derivatives"),
    Entry("`roi_align`", "bfloat16, channels_last, deterministic gradient, second derivatives"),
    Entry(
        "`roi_pool`",
        "float16 and bfloat16, channels_last, deterministic gradient, second derivatives",
    ),
    Entry(
        "`deform_conv2d`",
        "bfloat16, channels_last, deterministic on the CPU, second derivatives",
    ),
    Entry(
        "`sigmoid_focal_loss`",
        "integer labels, a list of levels, limits at infinite logits",
        "focal_loss:^(?!.*softmax)",
    ),
    Entry("`stochastic_depth`", "the same"),
    Entry(
        "`conv_transpose2d` (torch's signature)",
        "no inserted zeros; bilinear filters are detected",
    ),
    Entry(
        "`max_pool2d_with_indices` (torch's)",
        "float16 and bfloat16, channels_last",
        "max_pool2d:^pool",
    ),
    Entry(
        "`max_unpool2d` (torch's)",
        "deterministic where indices overlap, never outside of memory",
        "max_pool2d:^unpool",
    ),
]
OWN = [
    Entry(
        "`batched_nms_padded`",
        "a batch of images per call, fixed-size results, no synchronization",
    ),
    Entry(
        "`mask_iou`, `mask_nms`, `mask_matrix_nms`",
        "overlaps and suppression of masks, counted in words of bits",
        "mask_nms",
    ),
    Entry("`matrix_nms`", "scores of overlapping boxes decay all at once, in O(N) memory"),
    Entry("`nms_match`", "`nms`, and which box suppressed each of the others"),
    Entry(
        "`nms_rotated`, `batched_nms_rotated`, `nms_3d`", "rotated and solid boxes, exact per class"
    ),
    Entry("`soft_nms`", "scores of overlapping boxes decay; linear or Gaussian, per class"),
    Entry("`weighted_boxes_fusion`", "boxes of several models, fused by their scores"),
    Entry("`box_iou_3d`", "solid boxes with a yaw, or corners; differentiable, batches"),
    Entry("`multiscale_roi_align`", "all levels of a pyramid in one launch"),
    Entry('`roi_align(..., pool_mode="max")`', "the largest sample of each bin", "roi_align_max"),
    Entry("`roi_align_rotated`", "boxes at any angle"),
    Entry("`conv_bn_relu`", "convolution, batch normalization, residual, one of seven activations"),
    Entry("`conv_transpose2d_bn_relu`", "the same for transposed convolution", "conv_transpose2d"),
    Entry(
        "`batch_norm_relu`",
        "batch normalization, residual and activation in training, in few passes",
    ),
    Entry("`linear_act`", "linear layer and activation"),
    Entry("`squeeze_excitation`", "means, two linear layers, gate and scaling"),
    Entry("`softmax_focal_loss`", "class weights, `ignore_index`", "focal_loss:softmax"),
]


def _backends(entry: Entry) -> str:
    """Those with a kernel; a function without an operator of its own runs on torch's."""
    operator = next((PUBLIC[name] for name in entry.functions if name in PUBLIC), None)
    if operator is None:
        return "torch"
    names = [
        text for key, text in KERNELS.items() if key in operator.run and key not in operator.lacks
    ]
    return ", ".join(names) or "torch"


def _speed(entry: Entry, records: dict[str, Record]) -> str:
    """Geometric mean of the cases, and the range of several."""
    op, _, pattern = (entry.cases or entry.functions[0]).partition(":")
    if op not in records or "remark" in records[op]:
        return "-"
    rows = [row for row in records[op]["rows"] if re.search(pattern, row["case"])]
    ratios = [ratio for row in rows if (ratio := our_speedup(row)) is not None]
    if not ratios:
        return "-"
    mean, least, most = (
        short_ratio(r) for r in (statistics.geometric_mean(ratios), min(ratios), max(ratios))
    )
    return mean if least == most else f"{mean} ({least} to {most})"


# name: heads of the first two columns, entries
TABLES = {
    "shared": (("op", "beyond torchvision"), SHARED),
    "own": (("op", "description"), OWN),
}


def table(name: str, records: dict[str, Record]) -> Table:
    heads, entries = TABLES[name]
    lines = [[*heads, "kernels", "times as fast"]]
    lines += [[e.names, e.text, _backends(e), _speed(e, records)] for e in entries]
    return Table(lines)
