"""Focal loss operators and their derivatives. The forward pass computes the gradient as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import reference
from ._checks import is_transformed, needs_gradient
from ._library import Operator, declare

# Gradients of easy examples underflow in float16, and a loss scale would only be applied in the
# backward. So they are stored multiplied by these factors. None overflows then, except in softmax
# with a class weight above a thousand.
HALF_GRAD_SCALE = {"sigmoid": 1024.0, "softmax": 32.0}


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _fake_results(
    inputs: list[Tensor], losses: Sequence[int], reduce: bool, grad_scale: float
) -> list[Tensor]:
    first = inputs[0]
    dtype = arithmetic(first.dtype) if reduce else first.dtype
    loss = first.new_empty(() if reduce else losses, dtype=dtype)
    return [loss, *(first.new_empty(x.shape) for x in inputs if grad_scale)]


def _fake_sigmoid(
    inputs: list[Tensor],
    targets: list[Tensor],
    alpha: float,
    gamma: float,
    reduce: bool,
    grad_scale: float,
) -> list[Tensor]:
    return _fake_results(inputs, inputs[0].shape, reduce, grad_scale)


def _fake_softmax(
    inputs: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    gamma: float,
    ignore_index: int,
    reduce: bool,
    grad_scale: float,
) -> list[Tensor]:
    return _fake_results([inputs], targets.shape, reduce, grad_scale)


def _fake_scale(grads: list[Tensor], factor: Tensor, scale: float) -> None:
    pass


# grad_scale: factor of the gradients; 0 if none are wanted. Returns the loss (if reduced, a sum in
# the compute dtype) and the gradient of each input.
SIGMOID = declare(
    "sigmoid_focal_loss",
    "(Tensor[] inputs, Tensor[] targets, float alpha, float gamma, bool reduce, float grad_scale) "
    "-> Tensor[]",
    fake=_fake_sigmoid, triton="kernels.focal_loss.launch_sigmoid_focal_loss",
    serves=("sigmoid_focal_loss",),
)  # fmt: skip
SOFTMAX = declare(
    "softmax_focal_loss",
    "(Tensor inputs, Tensor targets, Tensor? weights, float gamma, int ignore_index, bool reduce, "
    "float grad_scale) -> Tensor[]",
    fake=_fake_softmax, triton="kernels.focal_loss.launch_softmax_focal_loss",
    serves=("softmax_focal_loss",),
)  # fmt: skip
_SCALE = declare(
    "focal_loss_scale_", "(Tensor(a!)[] grads, Tensor factor, float scale) -> ()",
    fake=_fake_scale, triton="kernels.focal_loss.launch_focal_loss_scale",
)  # fmt: skip
_OPERATORS: dict[str, Operator] = {"sigmoid": SIGMOID, "softmax": SOFTMAX}


class Call(NamedTuple):  # a frozen dataclass takes a microsecond to make
    """The options of a call, without its tensors.

    sigmoid: tensors are all inputs, then all targets; options are (alpha, gamma). softmax: tensors
    are input, target and optional weights; options are (gamma, ignore_index).
    """

    kind: str  # "sigmoid" or "softmax"
    backend: str
    options: tuple[Any, ...]
    reduce: bool
    divisor: float = 1.0  # of the sum, if reduced

    def inputs_among(self, tensors: Sequence[Tensor]) -> int:
        return len(tensors) // 2 if self.kind == "sigmoid" else 1


def _run_op(call: Call, tensors: Sequence[Tensor], grad_scale: float) -> list[Tensor]:
    run = _OPERATORS[call.kind].run[call.backend]
    options = (*call.options, call.reduce, grad_scale)
    if call.kind == "sigmoid":
        n = call.inputs_among(tensors)
        results = run(list(tensors[:n]), list(tensors[n:]), *options)
    else:
        weights = tensors[2] if len(tensors) > 2 else None
        results = run(*tensors[:2], weights, *options)
    if call.divisor == 1:
        return results
    total, *grads = results
    return [total / call.divisor, *grads]


def _run_reference(call: Call, tensors: Sequence[Tensor]) -> Tensor:
    options = (*call.options, call.reduce)
    if call.kind == "sigmoid":
        n = call.inputs_among(tensors)
        loss = reference.sigmoid_focal_loss(tensors[:n], tensors[n:], *options)
    else:
        x, t, *weights = tensors
        loss = reference.softmax_focal_loss(x, t, weights[0] if weights else None, *options)
    return loss if call.divisor == 1 else loss / call.divisor


def _scales(call: Call, dtype: torch.dtype) -> tuple[float, float]:
    """The scale of the stored gradients, and the factor that turns them into the loss's."""
    divisor = call.divisor or 1.0
    if dtype == torch.float16:
        scale = HALF_GRAD_SCALE[call.kind]
        return scale, 1 / (scale * divisor)
    return 1 / divisor, 1.0


def _factor(call: Call, grad: Tensor, dtype: torch.dtype) -> Tensor:
    """The factor of the stored gradients for ``grad``, the loss's gradient, in compute dtype."""
    _, factor = _scales(call, dtype)
    grad = grad.to(arithmetic(dtype))
    grad = grad if factor == 1 else grad * factor
    return grad.unsqueeze(-1) if call.kind == "softmax" and not call.reduce else grad


def _is_batched(grad: Tensor) -> bool:
    """Whether torch.func.vmap or autograd.grad's ``is_grads_batched`` batches ``grad``."""
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(grad) or functorch.is_legacy_batchedtensor(grad)


def _scaled(call: Call, grads: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    dtype = grads[0].dtype
    factor = _factor(call, grad, dtype)
    return [(g.to(factor.dtype) * factor).to(dtype) for g in grads]


class _FocalLoss(torch.autograd.Function):
    """Stores the gradient in the forward pass and hands it over in the backward pass."""

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Tensor) -> Tensor:
        grad_scale, _ = _scales(call, tensors[0].dtype)
        loss, *ctx.grads = _run_op(call, tensors, grad_scale)
        ctx.call = call
        ctx.save_for_backward(*tensors)  # only used for higher derivatives
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        call: Call = ctx.call
        grads, ctx.grads = ctx.grads, None
        if torch.is_grad_enabled():  # create_graph=True
            # aliases, since levels may be the same Tensor or derived from each other
            tensors = [t.view_as(t) for t in ctx.saved_tensors]
            n = call.inputs_among(tensors)
            loss = _run_reference(call, tensors)
            wanted = [i for i in range(n) if tensors[i].requires_grad]
            found = torch.autograd.grad(
                loss, [tensors[i] for i in wanted], grad.to(loss.dtype), create_graph=True
            )
            result: list[Tensor | None] = [None] * len(tensors)
            for i, g in zip(wanted, found, strict=True):
                result[i] = g
            return (None, *result)
        if grads is None:  # handed over before: retain_graph=True
            tensors = ctx.saved_tensors
            grad_scale, _ = _scales(call, tensors[0].dtype)
            _, *grads = _run_op(call, tensors, grad_scale)
        if _is_batched(grad):
            grads = _scaled(call, grads, grad)
        elif call.reduce:
            _, factor = _scales(call, grads[0].dtype)
            _SCALE.run[call.backend](grads, grad, factor)
        else:
            grads[0].mul_(_factor(call, grad, grads[0].dtype))
        return (None, *grads, *[None] * (len(ctx.needs_input_grad) - 1 - len(grads)))


class _FocalLossTraced(torch.autograd.Function):
    """For torch.compile, which plans memory itself and supports no second derivative."""

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Tensor) -> Tensor:
        grad_scale, _ = _scales(call, tensors[0].dtype)
        loss, *grads = _run_op(call, tensors, grad_scale)
        ctx.call, ctx.count = call, len(tensors)
        ctx.save_for_backward(*grads)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        scaled = _scaled(ctx.call, ctx.saved_tensors, grad)
        return (None, *scaled, *[None] * (ctx.count - len(scaled)))


def run(call: Call, tensors: Sequence[Tensor]) -> Tensor:
    """The loss; goes through autograd only if a derivative is needed."""
    n = call.inputs_among(tensors)
    wants_grad = needs_gradient(tensors[:n])
    if call.backend == "reference" or is_transformed() or needs_gradient(tensors[n:]):
        return _run_reference(call, tensors)
    if not wants_grad:
        return _run_op(call, tensors, 0.0)[0]
    if not torch.compiler.is_compiling():
        return _FocalLoss.apply(call, *tensors)
    distinct: list[Tensor] = []  # torch.compile rejects repeated arguments
    for t in tensors:
        distinct.append(t.view_as(t) if any(t is other for other in distinct) else t)
    return _FocalLossTraced.apply(call, *distinct)
