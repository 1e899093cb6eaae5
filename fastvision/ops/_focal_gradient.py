"""The operators of focal loss and their derivatives: the gradient is made in the forward's pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ._checks import is_transformed, needs_gradient
from ._library import Operator, declare

# Easy examples' gradients are below float16's range, and a loss scale that brings them back comes
# only in the backward: they are stored times that. No gradient is then above the range; in softmax,
# none unless a class weighs more than a thousand.
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


# grad_scale: what the gradients are multiplied by; 0 if none are wanted. The result is the loss,
# if reduced a sum in the type of arithmetic, and the gradient of each input.
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


@dataclass(frozen=True)
class Call:
    """What is computed of the tensors of a call.

    sigmoid: the tensors are inputs, then targets; options (alpha, gamma). softmax: input, target
    and the weights if there are any; options (gamma, ignore_index).
    """

    kind: str  # "sigmoid" or "softmax"
    backend: str
    options: tuple[Any, ...]
    reduce: bool
    divisor: float = 1.0  # of a sum

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
    """Of the stored gradients, and what makes them gradients of the loss."""
    divisor = call.divisor or 1.0
    if dtype == torch.float16:
        scale = HALF_GRAD_SCALE[call.kind]
        return scale, 1 / (scale * divisor)
    return 1 / divisor, 1.0


def _factor(call: Call, grad: Tensor, dtype: torch.dtype) -> Tensor:
    """``grad``, the loss's, in the type of arithmetic and to be multiplied with the gradients."""
    _, factor = _scales(call, dtype)
    grad = grad.to(arithmetic(dtype))
    grad = grad if factor == 1 else grad * factor
    return grad.unsqueeze(-1) if call.kind == "softmax" and not call.reduce else grad


def _is_batched(grad: Tensor) -> bool:
    """By torch.func.vmap, or autograd.grad's is_grads_batched, which has a kind of its own."""
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(grad) or functorch.is_legacy_batchedtensor(grad)


def _scaled(call: Call, grads: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    dtype = grads[0].dtype
    factor = _factor(call, grad, dtype)
    return [(g.to(factor.dtype) * factor).to(dtype) for g in grads]


class _FocalLoss(torch.autograd.Function):
    """Keeps the gradient of the forward, and gives it away in the backward."""

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Tensor) -> Tensor:
        grad_scale, _ = _scales(call, tensors[0].dtype)
        loss, *ctx.grads = _run_op(call, tensors, grad_scale)
        ctx.call = call
        ctx.save_for_backward(*tensors)  # for further derivatives alone
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        call: Call = ctx.call
        grads, ctx.grads = ctx.grads, None
        if torch.is_grad_enabled():  # the gradient will be differentiated
            # aliases, since levels may be the same Tensor or made from each other
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
        if grads is None:  # given away, and asked for again
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
    """For torch.compile, which plans memory itself and knows no second derivative."""

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
    """The loss, through autograd only where a derivative is wanted."""
    n = call.inputs_among(tensors)
    wants_grad = needs_gradient(tensors[:n])
    if call.backend == "reference" or is_transformed() or needs_gradient(tensors[n:]):
        return _run_reference(call, tensors)
    if not wants_grad:
        return _run_op(call, tensors, 0.0)[0]
    if not torch.compiler.is_compiling():
        return _FocalLoss.apply(call, *tensors)
    distinct: list[Tensor] = []  # what torch.compile insists on
    for t in tensors:
        distinct.append(t.view_as(t) if any(t is other for other in distinct) else t)
    return _FocalLossTraced.apply(call, *distinct)
