"""Sigmoid and softmax focal loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import check_floating, check_tensor, is_traced
from ._focal_gradient import SIGMOID, SOFTMAX, Call, arithmetic, run
from ._torchscript import traced_op

MAX_LEVELS = 8  # kMaxFocalLevels of csrc/ops/focal_loss.h


def _check_options(gamma: float, reduction: str) -> None:
    if not gamma >= 0:
        raise ValueError(f"Invalid gamma: {gamma}, expected a number that is not negative")
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"Invalid reduction: {reduction!r}, expected 'none', 'mean' or 'sum'")


def _as_targets(x: Tensor, targets: object, name: str) -> Tensor:
    """``targets`` as int64 labels or as floating-point values."""
    check_tensor(targets, name)
    assert isinstance(targets, Tensor)
    if targets.device != x.device:
        raise ValueError(f"{name} must be on {x.device} as inputs, got {targets.device}")
    if targets.shape == x.shape:
        return targets if targets.is_floating_point() else targets.to(x.dtype)
    if targets.shape != x.shape[:-1] or targets.dim() == x.dim():
        raise ValueError(
            f"{name} must have the shape of inputs, {list(x.shape)}, or for labels all but its "
            f"last dimension, got {list(targets.shape)}"
        )
    if targets.dtype.is_floating_point or targets.dtype.is_complex or targets.dtype == torch.bool:
        raise TypeError(
            f"{name} of shape {list(targets.shape)} must be integers, got {targets.dtype}"
        )
    return targets if targets.dtype == torch.int64 else targets.to(torch.int64)


def _result_dtype(x: Tensor) -> torch.dtype:
    """Under autocast a loss is float32, as in torch."""
    is_autocast = not x.is_meta and torch.is_autocast_enabled(x.device.type)
    return torch.promote_types(x.dtype, torch.float32) if is_autocast else x.dtype


def _levels(
    inputs: Tensor | Sequence[Tensor], targets: Tensor | Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    if isinstance(inputs, Tensor):
        check_tensor(inputs, "inputs")
        check_floating(inputs.dtype, "inputs")
        return [inputs], [_as_targets(inputs, targets, "targets")]
    if not isinstance(inputs, (list, tuple)):
        raise TypeError(f"inputs must be a Tensor or a list of them, got {type(inputs).__name__}")
    if not 1 <= len(inputs) <= MAX_LEVELS:
        raise ValueError(f"inputs must be 1 to {MAX_LEVELS} levels, got {len(inputs)}")
    for level, x in enumerate(inputs):
        check_tensor(x, f"inputs[{level}]")
        check_floating(x.dtype, f"inputs[{level}]")
        if x.dim() < 1 or x.shape[-1] != inputs[0].shape[-1] or x.device != inputs[0].device:
            raise ValueError(
                f"inputs[{level}] must be [..., {inputs[0].shape[-1]}] on {inputs[0].device} as "
                f"inputs[0], got {list(x.shape)} on {x.device}"
            )
    if isinstance(targets, Tensor):
        sizes = [x.shape[1] if x.dim() > 1 else 0 for x in inputs]
        if targets.dim() < 2 or targets.shape[1] != sum(sizes):
            raise ValueError(
                f"targets must be one Tensor per level, or [N, {sum(sizes)}, ...] for all of them, "
                f"got {list(targets.shape)}"
            )
        targets = targets.split(sizes, 1)
    if len(targets) != len(inputs):
        raise ValueError(f"targets must be one per level, {len(inputs)}, got {len(targets)}")
    fitting = [
        _as_targets(x, t, f"targets[{i}]")
        for i, (x, t) in enumerate(zip(inputs, targets, strict=True))
    ]
    if len({t.is_floating_point() for t in fitting}) > 1:
        raise TypeError("targets must be labels for all levels, or numbers for all")
    return list(inputs), fitting


def _common_dtype(inputs: list[Tensor], targets: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and floating-point targets in their promoted dtype; labels stay int64."""
    dtype = inputs[0].dtype
    numbers = targets if targets[0].is_floating_point() else []
    if all(t.dtype == dtype for t in (*inputs, *numbers)):
        return inputs, targets
    for t in (*inputs, *numbers):
        dtype = torch.promote_types(dtype, t.dtype)
    return [x.to(dtype) for x in inputs], [t.to(dtype) for t in numbers] or targets


def _in_order_of_memory(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Permutes both so that ``x`` is contiguous if it is dense: the loss is elementwise."""
    order = list(range(x.dim()))
    if not x.is_contiguous():
        by_stride = sorted(order, key=lambda dim: (-x.stride()[dim], -x.shape[dim]))
        if x.permute(by_stride).is_contiguous():
            order = by_stride
            return x.permute(order), t.permute(order), order
    return x, t, order


def sigmoid_focal_loss(
    inputs: Tensor | Sequence[Tensor],
    targets: Tensor | Sequence[Tensor],
    alpha: float = 0.25,
    gamma: float = 2,
    reduction: str = "none",
    *,
    backend: str | None = None,
) -> Tensor:
    """Focal loss of independent binary decisions (Lin et al. 2017, equation 5).

    ``-alpha_t * (1 - p_t)**gamma * log(p_t)`` with ``p = sigmoid(inputs)``, where ``p_t`` is p for
    target 1 and 1 - p for target 0. Targets between 0 and 1 interpolate ``p_t``, ``alpha_t`` and
    the cross-entropy.

    Args:
        inputs: logits of any shape, float16, bfloat16, float32 or float64. With a reduction, also
            a list of up to 8 pyramid levels [..., K], which are not concatenated.
        targets: values of the same shape, or integer labels [...] for inputs [..., K]: 0 to K - 1
            is the class, -1 is background, and below -1 the row of K logits is ignored. For levels
            [N, A_l, K], one Tensor per level or a single one for all, [N, sum of A_l] or
            [N, sum of A_l, K].
        alpha: weight of positives; negatives get 1 - alpha. -1 disables the weights.
        gamma: focusing parameter, 0 or more; larger values down-weight easy examples more.
        reduction: "none", "sum" or "mean". The mean is over all logits outside ignored rows.
        backend: "cuda", "triton", "cpp" or "reference"; None picks the fastest that can run.

    Returns:
        Tensor with the shape of ``inputs``, or a scalar if reduced, in the promoted dtype of
        ``inputs`` and floating-point ``targets``; float32 under autocast. Arithmetic is in float32
        (float64 for float64). Sums have a fixed order that does not depend on the number of
        threads.

    The gradient is computed in the forward pass and scaled in place in the backward pass. Higher
    derivatives, forward mode and gradients of the targets run through eager PyTorch.

    ==============================  =============================  =============================
    input                           CPU                            CUDA
    ==============================  =============================  =============================
    infinite logit                  the limit, gradient included   the limit
    NaN logit or target             NaN there                      NaN there
    label of K or more              RuntimeError                   NaN
    ignored row                     0, whatever its logits         0
    nothing to reduce               sum 0, mean NaN                sum 0, mean NaN
    ==============================  =============================  =============================

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, device or value; ``backend`` cannot run here.
        NotImplementedError: a sparse, nested or mkldnn tensor.
        RuntimeError: a label of K or more, on the CPU.
    """
    if is_traced():
        single = isinstance(inputs, Tensor)
        levels, labels = ([x] if isinstance(x, Tensor) else list(x) for x in (inputs, targets))
        levels = [x.to(_result_dtype(x)) for x in levels]  # autocast as it is while tracing
        return _TRACED_SIGMOID(levels, labels, alpha, gamma, reduction, single, backend)
    if not 0 <= alpha <= 1 and alpha != -1:
        raise ValueError(f"Invalid alpha value: {alpha}. Expected one in [0, 1], or -1 for none.")
    _check_options(gamma, reduction)
    levels, labels = _levels(inputs, targets)
    chosen = SIGMOID.choose(levels[0], backend)
    levels, labels = _common_dtype(levels, labels)
    dtype = _result_dtype(levels[0])
    reduce = reduction != "none"
    are_labels = not labels[0].is_floating_point()
    if not reduce:
        if not isinstance(inputs, Tensor):
            raise ValueError("reduction must be 'sum' or 'mean' for a list of levels, got 'none'")
        levels = [levels[0].to(dtype)]
        labels = labels if are_labels else [labels[0].to(dtype)]
    orders: list[list[int]] = []
    if not are_labels and not all(x.is_contiguous() for x in levels):
        dense = [_in_order_of_memory(x, t) for x, t in zip(levels, labels, strict=True)]
        levels, labels, orders = map(list, zip(*dense, strict=True))
    divisor = 1.0
    if reduction == "mean" and not are_labels:
        divisor = float(sum(x.numel() for x in levels))
    call = Call("sigmoid", chosen, (float(alpha), float(gamma)), reduce, divisor)
    loss = run(call, (*levels, *labels))
    if reduction == "mean" and are_labels:
        rows = [(t >= -1).sum() for t in labels]
        total = rows[0] if len(rows) == 1 else torch.stack(rows).sum()
        loss = loss / (total * levels[0].shape[-1])
    elif orders and not reduce:
        loss = loss.permute([orders[0].index(dim) for dim in range(loss.dim())])
    return loss if loss.dtype == dtype else loss.to(dtype)


def softmax_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float | Tensor | None = None,
    gamma: float = 2,
    reduction: str = "none",
    ignore_index: int = -100,
    *,
    backend: str | None = None,
) -> Tensor:
    """Focal loss of a choice between K classes (Lin et al. 2017, equation 5, with softmax).

    ``-alpha_y * (1 - p_y)**gamma * log(p_y)`` with ``p = softmax(inputs)`` and label y. With gamma
    0 it is the cross-entropy.

    Args:
        inputs: [..., K] logits, float16, bfloat16, float32 or float64. Classes are the last
            dimension: for a map [N, K, H, W] pass ``x.permute(0, 2, 3, 1)``.
        targets: integer labels [...], or class probabilities [..., K]. Probabilities weight the
            loss of each class and run in eager PyTorch, without a kernel.
        alpha: class weights [K], or one weight for all classes; None or a negative number disables
            them.
        gamma: focusing parameter, 0 or more; larger values down-weight easy examples more.
        reduction: "none", "sum" or "mean". The mean is over the rows that are not ignored and does
            not divide by their weights.
        ignore_index: label of ignored rows, whose loss and gradient are 0.
        backend: see :func:`sigmoid_focal_loss`.

    Returns:
        Tensor [...], or a scalar if reduced, in the dtype of ``inputs``; float32 under autocast.
        Arithmetic, determinism and derivatives are as in :func:`sigmoid_focal_loss`.

    A logit of -infinity is a class of probability 0; +infinity gives NaN, as in softmax. A label
    outside [0, K) other than ``ignore_index`` gives NaN on CUDA.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, device or value; ``backend`` cannot run here.
        NotImplementedError: a sparse, nested or mkldnn tensor.
        RuntimeError: on the CPU, a label outside [0, K) other than ``ignore_index``.
    """
    if is_traced():
        of_alpha = (alpha, None) if isinstance(alpha, Tensor) else (None, alpha)
        options = (gamma, reduction, ignore_index, backend)
        inputs = inputs.to(_result_dtype(inputs))
        return _TRACED_SOFTMAX(inputs, targets, *of_alpha, *options)
    _check_options(gamma, reduction)
    check_tensor(inputs, "inputs")
    check_floating(inputs.dtype, "inputs")
    if inputs.dim() < 1:
        raise ValueError("inputs must have shape [..., K], got []")
    labels = _as_targets(inputs, targets, "targets")
    dtype = _result_dtype(inputs)
    wide = arithmetic(inputs.dtype)
    chosen = SOFTMAX.choose(inputs, backend)
    weights: tuple[Tensor, ...] = ()
    if isinstance(alpha, Tensor) and alpha.dim() > 0:
        if alpha.shape != inputs.shape[-1:] or alpha.device != inputs.device:
            raise ValueError(
                f"alpha must have shape [{inputs.shape[-1]}] on {inputs.device}, got "
                f"{list(alpha.shape)} on {alpha.device}"
            )
        weights = (alpha.to(wide),)
        alpha = None
    soft = labels.is_floating_point()
    x = inputs.to(dtype) if reduction == "none" else inputs
    call = Call(
        "softmax",
        "reference" if soft else chosen,
        (float(gamma), int(ignore_index)),
        reduction != "none",
        float(labels.shape[:-1].numel()) if reduction == "mean" and soft else 1.0,
    )
    loss = run(call, (x, labels.to(wide) if soft else labels, *weights))
    if reduction == "mean" and not soft:
        loss = loss / (labels != ignore_index).sum()
    if alpha is not None and alpha >= 0:
        loss = loss * alpha
    return loss if loss.dtype == dtype else loss.to(dtype)


def _traced_sigmoid(
    inputs: list[Tensor],
    targets: list[Tensor],
    alpha: float,
    gamma: float,
    reduction: str,
    single: bool,
    backend: str | None,
) -> Tensor:
    x: Any = inputs[0] if single else inputs
    t: Any = targets[0] if len(targets) == 1 else targets
    return sigmoid_focal_loss(x, t, alpha, gamma, reduction, backend=backend)


def _traced_softmax(
    inputs: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    alpha: float | None,
    gamma: float,
    reduction: str,
    ignore_index: int,
    backend: str | None,
) -> Tensor:
    weight = alpha if weights is None else weights
    options = (gamma, reduction, ignore_index)
    return softmax_focal_loss(inputs, targets, weight, *options, backend=backend)


_TRACED_SIGMOID = traced_op(
    "sigmoid_focal_loss",
    "(Tensor[] inputs, Tensor[] targets, float alpha, float gamma, str reduction, bool single, "
    "str? backend) -> Tensor",
    _traced_sigmoid,
)
_TRACED_SOFTMAX = traced_op(
    "softmax_focal_loss",
    "(Tensor inputs, Tensor targets, Tensor? weights, float? alpha, float gamma, str reduction, "
    "int ignore_index, str? backend) -> Tensor",
    _traced_softmax,
)


class SigmoidFocalLoss(nn.Module):
    """Module form of :func:`sigmoid_focal_loss`; the default reduction is "mean"."""

    def __init__(self, alpha: float = 0.25, gamma: float = 2, reduction: str = "mean") -> None:
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma
        self.reduction = reduction

    def forward(
        self, inputs: Tensor | Sequence[Tensor], targets: Tensor | Sequence[Tensor]
    ) -> Tensor:
        return sigmoid_focal_loss(inputs, targets, self.alpha, self.gamma, self.reduction)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, gamma={self.gamma}, reduction={self.reduction!r}"


class SoftmaxFocalLoss(nn.Module):
    """Module form of :func:`softmax_focal_loss`; the default reduction is "mean".

    A Tensor ``alpha`` becomes a buffer, so it moves with the module and is part of its state dict.
    """

    alpha: float | Tensor | None

    def __init__(
        self,
        alpha: float | Tensor | None = None,
        gamma: float = 2,
        reduction: str = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        if isinstance(alpha, Tensor):
            self.register_buffer("alpha", alpha)
        else:
            self.alpha = alpha
        self.gamma = gamma
        self.reduction = reduction
        self.ignore_index = ignore_index

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return softmax_focal_loss(
            inputs, targets, self.alpha, self.gamma, self.reduction, self.ignore_index
        )

    def extra_repr(self) -> str:
        alpha = "per class" if isinstance(self.alpha, Tensor) else self.alpha
        return (
            f"alpha={alpha}, gamma={self.gamma}, reduction={self.reduction!r}, "
            f"ignore_index={self.ignore_index}"
        )
