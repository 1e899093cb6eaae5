"""Random and hostile inputs through the public ops, for a library built with sanitizers.

A read or write outside a buffer and undefined behaviour end the process; all the ops may do with
nonsense is to refuse it with an exception that names the argument. Run by tests/test_sanitizers.py.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

import torch
from torch import Tensor

from fastvision import _extension, ops, reference
from fastvision.testing.numerics import assert_matches

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
HOSTILE = (float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 1e9, -1.0, -0.0, 1e-40, 65504.0)


def random_boxes(rng: random.Random, count: int, extent: float) -> Tensor:
    """[count, 4] boxes; some have sides that are negative, zero, huge or not a number."""
    corner = torch.rand(count, 2) * extent * 1.5 - extent * 0.25
    boxes = torch.cat([corner, corner + torch.rand(count, 2) * extent], 1)
    kind = rng.choice(("ordinary", "degenerate", "reversed", "whole pixels", "hostile"))
    if kind == "degenerate":
        boxes[::2, 2:] = boxes[::2, :2]
    elif kind == "reversed":
        boxes[::3] = boxes[::3].flip(1)
    elif kind == "whole pixels":
        boxes = boxes.round()
    elif kind == "hostile":
        for _ in range(count):
            boxes[rng.randrange(count), rng.randrange(4)] = rng.choice(HOSTILE)
    return boxes


def random_format(rng: random.Random, x: Tensor) -> Tensor:
    kind = rng.choice(("contiguous", "channels_last", "strided"))
    if kind == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    return x.mT.contiguous().mT if kind == "strided" else x


def fuzz_roi_align(rng: random.Random) -> list[Tensor]:
    levels = rng.choice((1, 1, 2, 4))
    images, channels = rng.randint(0, 3), rng.choice((0, 1, 3, 8, 17, 33, 64))
    height, width = rng.choice((0, 1, 2, 7, 16, 40)), rng.choice((1, 2, 5, 16, 40))
    dtype = rng.choice(DTYPES)
    features = [
        random_format(rng, torch.randn(images, channels, height >> i, max(width >> i, 1)).to(dtype))
        for i in range(levels)
    ]
    for feature in features:
        feature.requires_grad_(rng.random() < 0.8)
    count = rng.choice((0, 1, 2, 9, 30))
    boxes = random_boxes(rng, count, 8.0 * max(height, width)) if count else torch.zeros(0, 4)
    image = torch.randint(0, max(images, 1), (count, 1)).float()
    if count and rng.random() < 0.2:
        image[rng.randrange(count)] = rng.choice((*HOSTILE, float(images), -0.5))
    rois = torch.cat([image, boxes], 1)
    size = (rng.choice((0, 1, 2, 7, 14)), rng.choice((1, 3, 7)))
    sampling_ratio, aligned = rng.choice((-1, 0, 1, 2, 5)), rng.random() < 0.5
    scales = [2.0**-i / rng.choice((1, 8)) for i in range(levels)]
    if levels == 1:
        pooled = ops.roi_align(features[0], rois, size, scales[0], sampling_ratio, aligned)
    else:
        pooled = ops.multiscale_roi_align(
            features, rois, size, scales, sampling_ratio, aligned, canonical_scale=32
        )
    assert pooled.shape == (count, channels, *size) and pooled.dtype == dtype
    if pooled.requires_grad:
        grad = random_format(rng, torch.randn(pooled.shape).to(dtype))
        pooled.backward(grad)
        for feature in features:
            assert feature.grad is None or feature.grad.shape == feature.shape
    return [pooled.detach(), *(f.grad for f in features if f.grad is not None)]


def fuzz_nms(rng: random.Random) -> list[Tensor]:
    dtype = rng.choice(DTYPES)
    count = rng.choice((0, 1, 2, 15, 16, 17, 65, 400, 1500))
    boxes = random_boxes(rng, count, 60.0).to(dtype) if count else torch.zeros(0, 4, dtype=dtype)
    scores = torch.rand(count).to(dtype)
    if count and rng.random() < 0.3:
        scores[torch.randint(0, count, (count // 3 + 1,))] = rng.choice(HOSTILE)
    if rng.random() < 0.3:
        scores = scores.round(decimals=1)  # ties
    threshold = rng.choice((0.0, 0.3, 0.5, 0.9, 1.0, -1.0, 2.0, float("nan"), float("inf")))
    labels = rng.choice((1, 2, 80, 1 << 62))
    idxs = torch.randint(-labels, labels, (count,))
    kind = rng.choice(("nms", "batched", "padded"))
    if kind == "nms":
        kept = ops.nms(boxes, scores, threshold)
    elif kind == "batched":
        kept = ops.batched_nms(boxes, scores, idxs, threshold)
    else:
        images, most = rng.randint(0, 3), rng.choice((0, 1, 5, 2000))
        indices, counts = ops.batched_nms_padded(
            boxes.expand(images, count, 4),
            scores.expand(images, count),
            idxs.expand(images, count) if rng.random() < 0.7 else None,
            threshold,
            score_threshold=rng.choice((None, 0.2, float("nan"))),
            max_output=most,
        )
        assert indices.shape == (images, most) and counts.shape == (images,)
        for row, number in zip(indices, counts.tolist(), strict=True):
            assert (row[number:] == -1).all()
            assert row[:number].unique().numel() == number
            assert ((row[:number] >= 0) & (row[:number] < count)).all()
        return [indices, counts]
    assert kept.unique().numel() == kept.numel() <= count
    assert ((kept >= 0) & (kept < count)).all()
    return [kept]


def fuzz_conv_transpose2d(rng: random.Random) -> list[Tensor]:
    dtype = rng.choice(DTYPES)
    groups = rng.choice((1, 1, 2, 5))
    C, K = groups * rng.choice((1, 2, 3, 8, 17)), groups * rng.choice((1, 2, 8, 9, 33))
    window = [(rng.randint(1, 6), rng.randint(1, 4), rng.randint(0, 3)) for _ in range(2)]
    kernel, stride, padding = zip(*window, strict=True)
    dilation = (rng.choice((1, 1, 2, 3)), rng.choice((1, 1, 2, 4)))
    extra = tuple(rng.randrange(max(s, d)) for s, d in zip(stride, dilation, strict=True))
    kind = rng.choice(("dense", "separable", "hostile"))
    if kind == "separable":
        K, groups, dilation = C, C, (1, 1)
        extra = tuple(rng.randrange(s) for s in stride)
    weight = torch.randn(C, K // groups, *kernel)
    if kind == "separable":
        weight = torch.randn(C, 1, 1, 1) * torch.randn(kernel[0], 1) * torch.randn(kernel[1])
        if rng.random() < 0.5:  # the same between all channels
            weight, groups = weight * torch.eye(C)[:, :, None, None], 1
    x = torch.randn(rng.randint(0, 3), C, rng.randint(1, 9), rng.choice((1, 2, 7, 30)))
    if kind == "hostile":
        x.view(-1)[: rng.randint(0, 9)] = rng.choice(HOSTILE)
    x, weight = random_format(rng, x.to(dtype)), weight.to(dtype)
    sizes = [
        (n - 1) * s - 2 * p + d * (r - 1) + e + 1
        for n, r, s, p, e, d in zip(
            x.shape[2:], kernel, stride, padding, extra, dilation, strict=True
        )
    ]
    if min(sizes) < 1:
        raise ValueError("padding: refused in Python before any kernel")
    residual = torch.randn(x.shape[0], K, *sizes).to(dtype) if rng.random() < 0.5 else None
    y = ops.conv_transpose2d_bn_relu(
        x,
        weight,
        torch.randn(K).to(dtype) if rng.random() < 0.5 else None,
        stride=stride,
        padding=padding,
        output_padding=extra,
        groups=groups,
        dilation=dilation,
        residual=residual,
        activation=rng.choice(reference.ACTIVATIONS),
    )
    assert y.shape == (x.shape[0], K, *sizes) and y.dtype == dtype
    return [] if kind == "hostile" else [y]  # infinities may cancel in another order


def outcome(fuzz: Callable[[random.Random], list[Tensor]], seed: int) -> list[Tensor] | str:
    """What one input gives, or why it is refused."""
    torch.manual_seed(seed)
    try:
        return fuzz(random.Random(seed))
    except (RuntimeError, ValueError) as error:
        if "rois: " not in str(error) and "padding: " not in str(error):
            raise
        return str(error)


def assert_same(actual: list[Tensor] | str, expected: list[Tensor] | str) -> None:
    if isinstance(actual, str) or isinstance(expected, str):
        assert actual == expected
        return
    for one, other in zip(actual, expected, strict=True):
        if one.is_floating_point():  # levels differ in fused multiply-adds
            assert_matches(one, other, scale=8)
        else:
            assert torch.equal(one, other)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    library = _extension._C
    assert library is not None, _extension.missing
    supported = library.cpu_levels().index(library.cpu_capability_supported())
    levels = library.cpu_levels()[: supported + 1]
    torch.set_num_threads(2)

    done = refused = 0
    start = time.monotonic()
    while done < 40 or time.monotonic() - start < options.seconds:
        seed = options.seed + done
        fuzz = random.Random(-seed).choice((fuzz_roi_align, fuzz_nms, fuzz_conv_transpose2d))
        print(f"seed {seed} {fuzz.__name__}", flush=True)
        results = []
        for level in levels:
            library.set_cpu_capability(level)
            results.append(outcome(fuzz, seed))
            assert_same(results[-1], results[0])
        refused += isinstance(results[0], str)
        done += 1
    print(f"fuzzed {done} inputs on {', '.join(levels)}; {refused} were refused")


if __name__ == "__main__":
    main()
