"""What the benchmarks of RoI ops on a single map have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import BASELINE, COMPILED, Case, Providers, Work, backends, compiled
from fastvision.testing import cases
from fastvision.testing.numerics import assert_matches

FORWARD, BOTH, BACKWARD = "forward", "forward and backward", "backward"
GRADIENT_TERMS = 32  # a pixel's gradient sums the bins of many boxes


class Differentiated:
    """Gradient of the features: forward and backward in each call, or the backward alone."""

    def __init__(self, forward: Any, *, again: bool = True) -> None:
        self.forward, self.again = forward, again
        self.output: Tensor | None = None
        self.grad: Tensor | None = None

    def __call__(self, x: Tensor, rois: Tensor) -> Tensor:
        if self.again or self.output is None:
            self.output = self.forward(x, rois)
        if self.grad is None:
            self.grad = torch.empty_like(self.output)  # in the result's memory format
            self.grad.copy_(cases.feature_map(*self.output.shape, seed=7))
        return torch.autograd.grad(self.output, x, self.grad, retain_graph=not self.again)[0]


def roi_case(
    op: str,
    mode: str,
    shape: tuple[int, ...],
    count: int,
    bins: str,
    dtype: torch.dtype,
    *,
    boxes: Callable[[], Tensor],
    baseline: Callable[[Tensor, Tensor], Tensor],
    run: Callable[..., Tensor],
    least_work: Callable[[Tensor, Tensor], Work],
    channels_last: bool,
    quick: bool,
    reference: bool,
    triton: bool = False,
    compile: bool = False,
    peer: str = BASELINE,
    others: Callable[[torch.device], Providers] | None = None,
    forward_scale: int = 1,
) -> Case:
    """A case of pooling boxes from a feature map.

    Args:
        op: its public name.
        mode: FORWARD, BOTH or BACKWARD.
        shape, count: of the features, and of the boxes.
        bins: what the case's name says of them and of their samples.
        boxes: makes [count, 5] boxes.
        baseline: the peer's function of features and boxes, as a rule torchvision's. 16-bit
            features go through float32, as under autocast: bfloat16 kernels do not exist.
        run: ours, called with ``backend``, too.
        least_work: of features and boxes.
        reference: whether the reference runs as well.
        triton: whether the op has a Triton kernel.
        compile: whether torch.compile of the baseline runs as well.
        peer: whose function the baseline is.
        others: on a device, functions of other packages.
        forward_scale: of a forward's tolerance, where the peer rounds positions otherwise.
    """
    gradient = mode != FORWARD

    def inputs(device: torch.device) -> tuple[Tensor, Tensor]:
        x = cases.feature_map(*shape, dtype=dtype, channels_last=channels_last).to(device)
        return x.requires_grad_(gradient), boxes().to(device)

    def stock(x: Tensor, rois: Tensor) -> Tensor:
        if x.element_size() == 2:
            return baseline(x.float(), rois).to(x.dtype)
        return baseline(x, rois)

    def providers(device: torch.device) -> Providers:
        ours = backends(run, device, reference=reference)
        if not triton:
            ours.pop("triton", None)
        peers = {peer: stock} | ({COMPILED: compiled(stock)} if compile else {})
        if others is not None:
            peers |= others(device)
        every = peers | ours
        if not gradient:
            return every
        return {name: Differentiated(f, again=mode == BOTH) for name, f in every.items()}

    layout = "channels_last" if channels_last else "contiguous"
    kind = str(dtype).removeprefix("torch.")
    size = "x".join(map(str, shape))
    number = "1 box" if count == 1 else f"{count} boxes"
    return Case(
        op,
        f"{mode}, {size}, {number}, {bins}, {kind}, {layout}",
        inputs=inputs,
        providers=providers,
        check=lambda y, expected: assert_matches(
            y, expected, scale=GRADIENT_TERMS if gradient else forward_scale
        ),
        work=lambda tensors, _: least_work(*tensors),
        quick=quick,
        note=f"{peer} through float32" if dtype != torch.float32 else "",
    )
