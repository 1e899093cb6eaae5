"""What test_triton_compile.py compiles: names, kernels, types of arguments and options.

A function per group of kernels yields its main variants, or all of them. fastvision.kernels is
imported there: not before the script that compiles has set up its process.
"""

from __future__ import annotations


def roi_align_variants(all_variants):
    from fastvision.kernels import roi_align
    from fastvision.kernels.configs import roi_align as config

    levels, channels, bins = 4, 256, 49
    variants = [("bf16", True), ("fp32", False)]
    if all_variants:
        variants += [("bf16", False), ("fp32", True), ("fp16", False), ("fp16", True)]
    for dtype, channels_last in variants:
        values = dict.fromkeys(["N", "C", "K", "PH", "PW", "sampling_ratio", "min_level"], "i32")
        values |= dict.fromkeys(["canonical_scale", "canonical_level"], "i64")
        values |= dict.fromkeys(["features", "grads"], (f"*{dtype}",) * levels)
        values |= dict.fromkeys(["heights", "widths"], ("i32",) * levels)
        values |= {"spatial_scales": ("i64",) * levels, "rois_ptr": "*fp32"}
        values |= dict.fromkeys(["output_ptr", "grad_ptr"], f"*{dtype}")
        values |= {"ALIGNED": True, "CHANNELS_LAST": channels_last, "INT64": False}
        name = f"{dtype} {'NHWC' if channels_last else 'NCHW'}"

        block_bins, block_c, num_warps = config.forward_tile(bins, channels, channels_last)
        forward = values | {"BLOCK_BINS": block_bins, "BLOCK_C": block_c}
        yield (
            f"forward {name}",
            roi_align._roi_align_forward_kernel,
            forward,
            {"num_warps": num_warps},
        )
        tile_h, tile_w, block_c, num_warps = config.backward_tile(channels, channels_last)
        backward = values | {"TILE_H": tile_h, "TILE_W": tile_w, "BLOCK_C": block_c}
        backward["BLOCK_K"] = 32 * num_warps
        options = {"num_warps": num_warps, "maxnreg": config.BACKWARD_REGISTERS}
        yield f"backward {name}", roi_align._roi_align_backward_kernel, backward, options


def nms_variants(all_variants):
    from fastvision.kernels import matrix_nms, nms, soft_nms

    for classes in ("*i64", None) if all_variants else ("*i64",):
        values = dict.fromkeys(["N", "step", "max_output"], "i32")
        values |= {"boxes_ptr": "*fp32", "alive_ptr": "*i8", "iou_threshold": "i64"}
        values |= {"classes_ptr": classes, "origins_ptr": classes, "counts_ptr": "*i64"}
        values |= {"KIND": 0, "BLOCK": nms.BLOCK, "TILE": nms.TILE}
        yield (
            f"suppress {classes}",
            nms._nms_suppress_kernel,
            values,
            {"num_warps": nms.SUPPRESS_WARPS},
        )
        yield f"settle {classes}", nms._nms_settle_kernel, values, {"num_warps": nms.SETTLE_WARPS}
        kinds = [(1, "fp32"), (2, "fp64"), *([(2, "fp32")] if all_variants else [])]
        for kind, dtype in kinds:
            given = values | {"boxes_ptr": f"*{dtype}", "KIND": kind}
            tile = nms.ROTATED_TILE // (2 if dtype == "fp64" else 1)
            given |= {"BLOCK": nms.ROTATED_BLOCK, "TILE": tile}
            options = {"num_warps": nms.ROTATED_WARPS, "maxnreg": nms.ROTATED_REGISTERS}
            for part in ("suppress", "settle"):
                kernel = getattr(nms, f"_nms_{part}_kernel")
                yield f"{part} {classes} {kind} {dtype}", kernel, given, options
    if all_variants:
        values |= {"kept_ptr": "*i8", "order_ptr": "*i64", "indices_ptr": "*i64"}
        values |= {"counts_ptr": "*i64", "BLOCK": nms.COMPACT}
        yield "compact", nms._nms_compact_kernel, values, {"num_warps": nms.COMPACT_WARPS}

    values = {"boxes_ptr": "*fp32", "keep_ptr": "*i64", "match_ptr": "*i64", "N": "i32", "K": "i32"}
    values |= {"iou_threshold": "i64", "BLOCK": nms.MATCH_BLOCK, "TILE": nms.MATCH_TILE}
    for classes in ("*i64", None) if all_variants else ("*i64",):
        yield (
            f"match {classes}",
            nms._nms_match_kernel,
            values | {"classes_ptr": classes},
            {"num_warps": nms.MATCH_WARPS},
        )
    values = dict.fromkeys(["iou_threshold", "exponent", "min_score"], "i64")
    values |= {"N": "i32", "BLOCK": soft_nms.BLOCK}
    for dtype, begins, gaussian in [
        ("fp32", None, True),
        ("fp32", "*i64", False),
        ("fp64", "*i64", True),
    ][: 3 if all_variants else 1]:
        values |= dict.fromkeys(["boxes_ptr", "scores_ptr", "decayed_ptr"], f"*{dtype}")
        values |= {"begins_ptr": begins, "ends_ptr": begins, "GAUSSIAN": gaussian}
        name = f"soft {dtype} {begins} {gaussian}"
        yield name, soft_nms._soft_nms_kernel, values, {"num_warps": soft_nms.NUM_WARPS}

    values = dict.fromkeys(["boxes_ptr", "result_ptr"], "*fp32") | {"N": "i32", "sigma": "i64"}
    values |= {"begins_ptr": "*i64", "BLOCK": matrix_nms.BLOCK, "TILE": matrix_nms.TILE}
    for compensation, gaussian in [("*fp32", True), ("*fp32", False), (None, True)][
        : 3 if all_variants else 1
    ]:
        yield (
            f"matrix {compensation} {gaussian}",
            matrix_nms._matrix_nms_kernel,
            values | {"compensation_ptr": compensation, "GAUSSIAN": gaussian},
            {"num_warps": matrix_nms.NUM_WARPS},
        )


def mask_iou_variants(all_variants):
    from fastvision.kernels import mask_iou

    values = dict.fromkeys(["words", "row_words", "W", "M", "H", "N"], "i32")
    values |= {"masks_ptr": "*u8", "words_ptr": "*i32", "threshold": "i64", "covers_ptr": "*i8"}
    values |= dict.fromkeys(["words1_ptr", "words2_ptr"], "*i32") | {"alive_ptr": "*i8"}
    values |= dict.fromkeys(["extents1_ptr", "extents2_ptr"], "*i64")
    values |= {"PIXELS": mask_iou.PIXELS, "BLOCK_M": mask_iou.BLOCK_M, "TILE": mask_iou.TILE}
    pack = values | {"BLOCK": mask_iou.BLOCK_WORDS}
    yield "mask pack", mask_iou._mask_pack_kernel, pack, {"num_warps": mask_iou.PACK_WARPS}
    for classes in ("*i64", None) if all_variants else ("*i64",):
        given = {"classes_ptr": classes, "COVERS": classes is not None}
        given["result_ptr"] = "*i8" if given["COVERS"] else "*fp32"
        options = {"num_warps": mask_iou.OVERLAP_WARPS}
        yield f"mask overlap {classes}", mask_iou._mask_overlap_kernel, values | given, options
    suppress = values | {"BLOCK": mask_iou.BLOCK}
    options = {"num_warps": mask_iou.SUPPRESS_WARPS}
    yield "mask suppress", mask_iou._mask_suppress_kernel, suppress, options


def focal_loss_variants(all_variants):
    from fastvision.kernels import focal_loss
    from fastvision.kernels.configs import focal_loss as config

    levels = 5
    for dtype, gamma in [("bf16", 2), ("fp32", -1), ("fp64", 2)] if all_variants else [("bf16", 2)]:
        double = dtype == "fp64"
        values = dict.fromkeys(["K", "ignore_index"], "i32")
        values |= dict.fromkeys(["positive", "negative", "gamma", "grad_scale", "scale"], "i64")
        values |= dict.fromkeys(["inputs", "targets", "grads"], (f"*{dtype}",) * levels)
        values |= dict.fromkeys(["rows", "counts", "tiles"], ("i32",) * levels)
        values |= dict.fromkeys(["losses_ptr", "inputs_ptr", "grads_ptr"], f"*{dtype}")
        values |= dict.fromkeys(["total_ptr", "weights_ptr"], "*fp64" if double else "*fp32")
        values |= {"labels": ("*i64",) * levels, "labels_ptr": "*i64", "partials_ptr": "*fp64"}
        values |= {"ticket_ptr": "*i32", "GAMMA": gamma, "GRAD": True, "SUM": True}
        values |= {"DOUBLE": double, "SUM_BLOCK": focal_loss.SUM_BLOCK}
        values |= {"BLOCK_ROWS": config.BLOCK_ROWS, "BLOCK_COLUMNS": config.BLOCK_COLUMNS}
        options = {"num_warps": config.LABELS_WARPS}
        yield f"focal labels {dtype}", focal_loss._labels_kernel, values, options
        values |= {"BLOCK": config.BLOCK_NUMBERS}
        options = {"num_warps": config.NUMBERS_WARPS}
        yield f"focal numbers {dtype}", focal_loss._numbers_kernel, values, options
        block_rows, block_k, num_warps = config.softmax_tile(80)
        values |= {"rows": "i32", "BLOCK_ROWS": block_rows, "BLOCK_K": block_k}
        options = {"num_warps": num_warps}
        yield f"focal softmax {dtype}", focal_loss._softmax_kernel, values, options
        if all_variants:
            values |= {"count": "i32", "factor_ptr": values["total_ptr"]}
            values |= {"BLOCK": config.BLOCK_SCALE}
            yield f"focal scale {dtype}", focal_loss._scale_kernel, values, {}


def batch_norm_relu_variants(all_variants):
    from fastvision.kernels import batch_norm_relu, batch_norm_relu_backward
    from fastvision.kernels.configs import batch_norm_relu as config

    variants = [("bf16", True, 1), ("fp32", False, 4)]
    if all_variants:
        variants += [("fp64", True, 4), ("fp16", False, 1)]
    for dtype, channels_last, activation in variants:
        block_s, block_c = config.tile(256, 56 * 56, channels_last)
        wide = "*fp64" if dtype == "fp64" else "*fp32"
        values = dict.fromkeys(["C", "S", "blocks", "splits"], "i32")
        values |= dict.fromkeys(["momentum", "eps", "negative_slope", "share"], "i64")
        names = ["input", "residual", "output", "grad", "result", "dz"]
        values |= dict.fromkeys([f"{name}_ptr" for name in names], f"*{dtype}")
        names = ["partials", "mean", "var", "weight", "bias", "sums"]
        values |= dict.fromkeys([f"{name}_ptr" for name in names], wide)
        values |= dict.fromkeys(["running_mean_ptr", "running_var_ptr"], wide)
        values |= {"ACTIVATION": activation, "CHANNELS_LAST": channels_last, "INT64": False}
        values |= {"BLOCK_S": block_s, "BLOCK_C": block_c}
        options = {"num_warps": config.NUM_WARPS, "enable_fp_fusion": True}
        for part in ("statistics", "merge", "forward", "sums", "backward"):
            module = batch_norm_relu_backward if part in ("sums", "backward") else batch_norm_relu
            kernel = getattr(module, f"_batch_norm_relu_{part}_kernel")
            given = values | ({"BLOCK_C": 128} if part == "merge" else {})
            name = f"batch norm {part} {dtype} {'NHWC' if channels_last else 'NCHW'}"
            yield name, kernel, given, options


def squeeze_excitation_variants(all_variants):
    from fastvision.kernels import squeeze_excitation as kernels
    from fastvision.kernels.configs import squeeze_excitation as config

    variants = [("bf16", True, True), ("fp32", False, False)]
    if all_variants:
        variants += [("fp64", True, False), ("fp16", False, True)]
    for dtype, channels_last, hard in variants:
        block_s, block_c = config.tile(672, 14 * 14, channels_last)
        wide = "*fp64" if dtype == "fp64" else "*fp32"
        values = dict.fromkeys(["C", "S", "K"], "i32")
        names = ["input", "output", "weight", "bias"]
        values |= dict.fromkeys([f"{name}_ptr" for name in names], f"*{dtype}")
        values |= {"mean_ptr": wide, "hidden_ptr": wide, "ACTIVATION": 1, "HARD": hard}
        values |= {"CHANNELS_LAST": channels_last, "INT64": False, "BLOCK": config.LINEAR_BLOCK}
        values |= {"BLOCK_S": block_s, "BLOCK_C": block_c, "BLOCK_K": 64}
        options = {"num_warps": config.NUM_WARPS, "enable_fp_fusion": True}
        for part in ("mean", "squeeze", "scale"):
            kernel = getattr(kernels, f"_squeeze_excitation_{part}_kernel")
            name = f"squeeze excitation {part} {dtype} {'NHWC' if channels_last else 'NCHW'}"
            yield name, kernel, values, options


def box_iou_variants(all_variants):
    from fastvision.kernels import box_iou, box_iou_loss, box_iou_rotated
    from fastvision.kernels.configs import box_iou as config

    options = {"num_warps": config.NUM_WARPS}
    variants = [("fp32", 3, 0), ("fp64", 1, 2), ("fp16", 0, 1), ("bf16", 2, 0), ("fp32", 1, 0)]
    for dtype, kind, format in variants if all_variants else variants[:1]:
        double = dtype == "fp64"
        values = dict.fromkeys(["B", "N", "M", "step1", "step2"], "i32") | {"eps": "i64"}
        values |= dict.fromkeys(["boxes1_ptr", "boxes2_ptr"], f"*{dtype}")
        names = ["output_ptr", "grad_ptr", "rows_ptr", "columns_ptr"]
        values |= dict.fromkeys(names, "*fp64" if double else "*fp32")
        values |= {"KIND": kind, "FORMAT": format, "SOLID": kind == 1, "DOUBLE": double}
        values |= {"STRIP": config.GRADIENT_ROWS}
        if kind > 0 and dtype in ("fp32", "fp64"):
            names = [f"{name}_ptr" for name in ("boxes1", "boxes2", "losses", "grad1", "grad2")]
            given = values | dict.fromkeys([*names, "grad_ptr"], f"*{dtype}")
            given |= {"BLOCK": config.LOSS_BLOCK}
            for part in ("", "_backward"):
                kernel = getattr(box_iou_loss, f"_box_iou_loss{part}_kernel")
                yield f"loss{part} {dtype} {kind}", kernel, given, {"num_warps": config.LOSS_WARPS}
        for module in (box_iou, box_iou_rotated):
            for part in ("", "_backward"):
                op = module.__name__.rpartition(".")[2] + part
                chosen = config.tile(op, double)
                given = values | {"BLOCK_M": chosen.block_m, "BLOCK_N": chosen.block_n}
                kernel = getattr(module, f"_{op}_kernel")
                limited = part == "_backward" and module is box_iou_rotated
                more = {"maxnreg": config.ROTATED_REGISTERS} if limited else {}
                yield f"{op} {dtype} {kind}", kernel, given, options | more


def masks_to_boxes_variants(all_variants):
    from fastvision.kernels import masks_to_boxes
    from fastvision.kernels.configs import masks_to_boxes as config

    block_h, block_w = config.tile(500)
    for dtype in ("i8", "i64", "i16") if all_variants else ("i8",):
        values = {"masks_ptr": f"*{dtype}", "boxes_ptr": "*fp32", "H": "i32", "W": "i32"}
        values |= {"BLOCK_H": block_h, "BLOCK_W": block_w, "SIGNED_ZERO": dtype != "i8"}
        kernel = masks_to_boxes._masks_to_boxes_kernel
        yield f"masks_to_boxes {dtype}", kernel, values, {"num_warps": config.NUM_WARPS}


def weighted_boxes_fusion_variants(all_variants):
    from fastvision.kernels import weighted_boxes_fusion as kernels

    for dtype, maximum in [("fp32", False), ("fp64", True)][: 2 if all_variants else 1]:
        names = ["boxes_ptr", "scores_ptr", "fused_ptr", "sums_ptr", "totals_ptr"]
        values = dict.fromkeys([*names, "fused_scores_ptr"], f"*{dtype}")
        values |= {"labels_ptr": "*i64", "counts_ptr": "*i64", "N": "i32", "iou_threshold": "i64"}
        values |= {"MAXIMUM": maximum, "BLOCK": kernels.BLOCK}
        kernel = kernels._weighted_boxes_fusion_kernel
        yield f"boxes fusion {dtype}", kernel, values, {"num_warps": kernels.NUM_WARPS}


def conv_transpose2d_variants(all_variants):
    from fastvision.kernels import conv_transpose2d
    from fastvision.kernels.configs import conv_transpose2d as config

    sizes = ["N", "H", "W", "OH", "OW", "C", "C_UNITS", "K_UNITS", "groups", "max_pixels"]
    sizes += ["phases", "stride_h", "stride_w", "tap_step_h", "tap_step_w", "in_step_h"]
    sizes += ["in_step_w", "padding_h", "padding_w"]
    shared = dict.fromkeys(sizes, "i32") | {"negative_slope": "fp32", "phases_ptr": "*i32"}
    shared |= dict.fromkeys(["scale_ptr", "shift_ptr", "taps_ptr"], "*fp32")
    shared |= {"R": 4, "S": 4, "UNIT_C": 16, "UNIT_K": 16, "INT64": False, "ACTIVATION": 1}
    # the GEMM's tiles for many and for few pixels, channels and kinds of product
    for dtype, size, tf32, pixels, K in (
        ("bf16", 2, False, 10**5, 256),
        ("fp32", 4, True, 10**5, 64),
        *([("fp16", 2, False, 10**5, 64), ("fp16", 2, False, 10**3, 256)] if all_variants else []),
        *([("fp32", 4, False, 10**5, 256), ("fp32", 4, True, 10**3, 16)] if all_variants else []),
    ):
        values = shared | dict.fromkeys(
            ["input_ptr", "weight_ptr", "residual_ptr", "output_ptr"], f"*{dtype}"
        )
        chosen = config.tile(pixels, K, 256, size, tf32)
        values |= {"EQUAL": True, "TF32": tf32, "BLOCK_M": chosen.block_m}
        values |= {"BLOCK_N": chosen.block_n, "BLOCK_K": chosen.block_k}
        yield (
            f"conv_transpose2d gemm {dtype} {chosen} {tf32}",
            conv_transpose2d._conv_transpose2d_kernel,
            values,
            {"num_warps": chosen.warps, "num_stages": chosen.stages},
        )
        values |= dict(zip(("BLOCK_M", "BLOCK_N"), config.depthwise_block(K), strict=True))
        yield (
            f"conv_transpose2d depthwise {dtype} {pixels} {K} {tf32}",
            conv_transpose2d._depthwise_kernel,
            values | {"MULTIPLIER": 1},
            {"num_warps": config.ELEMENTWISE_WARPS},
        )
        values |= {"TAPS_H": 2, "TAPS_W": 2, "CHANNELS_LAST": K == 256}
        yield (
            f"conv_transpose2d separable {dtype} {pixels} {K} {tf32}",
            conv_transpose2d._separable_kernel,
            values | {"BLOCK": config.SEPARABLE_BLOCK},
            {"num_warps": config.ELEMENTWISE_WARPS},
        )


def deform_conv2d_variants(all_variants):
    from fastvision.kernels import deform_conv2d, deform_conv2d_backward
    from fastvision.kernels.configs import deform_conv2d as config

    names = ["pixels", "H", "W", "OH", "OW", "C", "K", "groups", "offset_groups", "section"]
    names += ["stride_h", "stride_w", "padding_h", "padding_w", "dilation_h", "dilation_w"]
    sizes = dict.fromkeys([*names, "split_pixels"], "i32")
    variants = [("bf16", False, True), ("fp32", False, False)]
    if all_variants:
        variants += [("fp16", False, False), ("fp32", True, True)]
    for dtype, tf32, channels_last in variants:
        tensors = ("input", "offset", "mask", "weight", "bias", "output", "grad")
        tensors += ("grad_offset", "grad_mask")
        values = sizes | dict.fromkeys([f"{name}_ptr" for name in tensors], f"*{dtype}")
        values |= {"grad_input_ptr": "*fp32", "sums_ptr": "*fp32", "R": 3, "S": 3, "TF32": tf32}
        values |= {"CHANNELS_LAST": channels_last, "INT64": dtype == "fp16"}
        for name, module, tile in (
            ("deform_conv2d", deform_conv2d, config.tile),
            ("deform_conv2d_points", deform_conv2d_backward, config.points_tile),
            ("deform_conv2d_weight", deform_conv2d_backward, config.weight_tile),
        ):
            chosen = tile(256, dtype != "fp32" or tf32)
            given = values | {"BLOCK_M": chosen.block_m, "BLOCK_N": chosen.block_n}
            given["BLOCK_C"] = config.BLOCK_C
            kernel = getattr(module, f"_{name}_kernel")
            options = {"num_warps": chosen.warps, "num_stages": config.STAGES}
            yield f"{name} {dtype} {tf32}", kernel, given, options


def max_pool2d_variants(all_variants):
    from fastvision.kernels import max_pool2d, max_unpool2d

    names = ["H", "W", "OH", "OW", "stride_h", "stride_w", "padding_h", "padding_w"]
    names += ["dilation_h", "dilation_w", "C", "count", "positions", "pixels"]
    sizes = dict.fromkeys(names, "i32")
    for dtype, channels_last in [("bf16", True), ("fp64", False)][: 2 if all_variants else 1]:
        names = ["input_ptr", "output_ptr", "grad_ptr", "result_ptr"]
        values = sizes | dict.fromkeys(names, f"*{dtype}")
        values |= {"indices_ptr": "*i64", "winners_ptr": "*i32", "KERNEL_H": 3, "KERNEL_W": 3}
        values |= {"CHANNELS_LAST": channels_last, "INT64": False}
        for module, kernels in (
            (max_pool2d, ("max_pool2d", "max_pool2d_backward")),
            (max_unpool2d, ("max_unpool2d_winners", "max_unpool2d", "max_unpool2d_backward")),
        ):
            for name in kernels:
                kernel = getattr(module, f"_{name}_kernel")
                given = values | {"BLOCK": module.BLOCK}
                yield f"{name} {dtype}", kernel, given, {"num_warps": module.NUM_WARPS}


VARIANTS = (
    roi_align_variants,
    nms_variants,
    mask_iou_variants,
    focal_loss_variants,
    batch_norm_relu_variants,
    squeeze_excitation_variants,
    box_iou_variants,
    masks_to_boxes_variants,
    weighted_boxes_fusion_variants,
    conv_transpose2d_variants,
    deform_conv2d_variants,
    max_pool2d_variants,
)
