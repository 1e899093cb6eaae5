"""A normalization's result in training, computed together with the addition and the activation
that follow.

A Pending is a tensor with the gradient of a normalization and no memory. An addition or an
activation, as torch calls it, continues it as one op; any other function of torch gets the computed
result. Code that bypasses __torch_function__ (a scripted function, an extension) takes it as an
ordinary tensor: operators compute it, and its own node in autograd's graph has its gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._memory_format import format_of
from ..ops._normalization import BatchNormReLU, Normalization
from ..reference.activations import DEFAULT_SLOPE
from .trees import map_tree, tensors_in

_plain = torch._C.DisableTorchFunctionSubclass


class Pending(Tensor):
    """A normalization, with the residual added to it, until its activation is known."""

    _normalization: Normalization
    _residual: Tensor | None
    _versions: tuple[int, ...]
    _value: Tensor | None  # the tensor it has become
    _value_version: int  # of the value while it is the node's result; -1 after a write in place
    _continued: bool  # as part of another op, which has no gradient for this result

    def read(self) -> tuple[Normalization, Tensor | None]:
        """What is to be computed; an error if a tensor that it is made of was written to."""
        if _versions(self._normalization, self._residual) != self._versions:
            raise RuntimeError(
                "an input or a parameter of a batch normalization, or a residual added to its "
                "result, was modified in place before the result was used, which is when "
                "fuse(training=True) computes it"
            )
        return self._normalization, self._residual

    def activate(self, activation: str, negative_slope: float) -> Tensor:
        normalization, residual = self.read()
        with _plain(), torch.inference_mode(False), torch.set_grad_enabled(self.requires_grad):
            return normalization.run(residual, activation, negative_slope)

    def resolve(self) -> Tensor:
        """An ordinary tensor, the same one in each call."""
        if self._value is None:
            self._value = self.activate("none", DEFAULT_SLOPE)
            self._value_version = self._value._version
        value = self._value
        return value.resolve() if type(value) is Pending else value

    def become(self, value: Tensor) -> Tensor:
        """After an operation in place, whose result is ``value``."""
        self._value, self._value_version = value, -1
        return value

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FACTS:
            with _plain():
                return func(*args, **kwargs)
        step = _STEPS.get(func)
        if step is not None:
            result = step(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if func in _OF_THE_GRAPH:
            _refuse_continued(args[1:] if func is torch.autograd.grad else args)
            _refuse_continued(kwargs.get("inputs"))
        args, kwargs = resolved(args), resolved(kwargs)
        with _plain():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func._schema.is_mutable:
            raise RuntimeError(
                f"{func} writes to the result of a batch normalization in code that bypasses "
                "__torch_function__, which fuse(training=True) cannot follow"
            )
        return func(*_memory(args), **_memory(kwargs or {}))


class _Pend(BatchNormReLU):
    """Gives a Pending, which has the gradient of what it stands for."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Any, bias: Any, residual: Any, mean: Tensor | None,
        var: Tensor | None, count: Any, group: Any, options: Any,
        momentum: float | None = None,
    ) -> Tensor:  # fmt: skip
        like = torch.empty_like(input, memory_format=format_of(input), device="meta")
        ctx.save_for_backward(input, weight, bias, mean, var, residual, None)
        ctx.count, ctx.group, ctx.options = count, group, options
        return Tensor._make_wrapper_subclass(
            Pending, like.shape, strides=like.stride(), dtype=like.dtype, device=input.device
        )


def pend(normalization: Normalization, residual: Tensor | None = None) -> Pending:
    with _plain():
        pending: Any = normalization.apply(_Pend, residual, 0, DEFAULT_SLOPE)
    pending._normalization, pending._residual = normalization, residual
    pending._versions = _versions(normalization, residual)
    pending._value, pending._value_version, pending._continued = None, -1, False
    return pending


def _versions(normalization: Normalization, residual: Tensor | None) -> tuple[int, ...]:
    tensors = (normalization.input, normalization.weight, normalization.bias, residual)
    return tuple(t._version for t in tensors if t is not None)


def resolved(value: Any) -> Any:
    """With the computed tensors in place of all Pendings in lists, tuples and dicts."""
    return value.resolve() if type(value) is Pending else map_tree(resolved, value)


def _memory(value: Any) -> Any:
    """With the memory of what is computed, for operators below autograd."""
    if type(value) is not Pending:
        return map_tree(_memory, value)
    memory = value.resolve()
    with _plain():
        same_node = (
            value._value_version == memory._version
            and value.requires_grad == memory.requires_grad
            and not memory._backward_hooks
            and not memory.retains_grad
        )
    if not same_node:
        raise RuntimeError(
            "the result of a batch normalization was written to, detached or given a hook, and is "
            "then used by code that bypasses __torch_function__; fuse(training=True) cannot give "
            "it the right gradient"
        )
    return memory.detach()


def _refuse_continued(value: Any) -> None:
    for tensor in tensors_in(value):
        if type(tensor) is Pending and tensor._continued and tensor._value is None:
            raise RuntimeError(
                "the result of this batch normalization is part of one op with the activation "
                "after it and has no gradient of its own: register hooks before the activation, "
                "or train the model without fuse(training=True)"
            )


def _ends(activation: str) -> Callable[..., Any]:
    def step(input: Any, inplace: bool = False, **others: Any) -> Any:
        return _end(input, activation, DEFAULT_SLOPE, inplace, others)

    return step


def _ends_in_place(activation: str) -> Callable[..., Any]:
    return lambda input: _end(input, activation, DEFAULT_SLOPE, True, {})


def _leaky_relu(
    input: Any, negative_slope: float = DEFAULT_SLOPE, inplace: bool = False, **others: Any
) -> Any:
    return _end(input, "leaky_relu", negative_slope, inplace, others)


def _hardtanh(
    input: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False, **others: Any
) -> Any:
    """torch.nn.ReLU6 is one of these."""
    if (min_val, max_val) != (0.0, 6.0):
        return NotImplemented
    return _end(input, "relu6", DEFAULT_SLOPE, inplace, others)


def _end(input: Any, activation: str, negative_slope: float, inplace: bool, others: Any) -> Any:
    if others or not _waits(input):
        return NotImplemented
    input._continued = True
    result = input.activate(activation, negative_slope)
    return input.become(result) if inplace else result


def _add(input: Any, other: Any = None, *rest: Any, alpha: Any = 1, **others: Any) -> Any:
    if not _takes(input, other):
        input, other = other, input
    if rest or others or alpha != 1 or not _takes(input, other):
        return NotImplemented
    input._continued = True
    return pend(input.read()[0], resolved(other))


def _add_in_place(input: Any, other: Any = None, *rest: Any, alpha: Any = 1) -> Any:
    if rest or alpha != 1 or not _takes(input, other):
        return NotImplemented
    return input.become(pend(input.read()[0], resolved(other)))


def _waits(input: Any) -> bool:
    return type(input) is Pending and input._value is None and torch.is_grad_enabled()


def _takes(input: Any, other: Any) -> bool:
    """Whether the op adds ``other`` to ``input``."""
    return (
        _waits(input)
        and input._residual is None
        and type(other) in (Tensor, Pending)
        and input is not other
        and not other.is_inference()
        and (input.shape, input.dtype, input.device) == (other.shape, other.dtype, other.device)
        and input.stride() == other.stride()  # which decide the strides of the sum
    )


_STEPS: dict[Any, Callable[..., Any]] = {
    F.relu: _ends("relu"),
    torch.relu: _ends("relu"),
    Tensor.relu: _ends("relu"),
    torch.relu_: _ends_in_place("relu"),
    Tensor.relu_: _ends_in_place("relu"),
    F.relu_: _ends_in_place("relu"),
    F.relu6: _ends("relu6"),
    F.hardtanh: _hardtanh,
    F.silu: _ends("silu"),
    F.hardswish: _ends("hardswish"),
    F.leaky_relu: _leaky_relu,
    F.sigmoid: _ends("sigmoid"),
    torch.sigmoid: _ends("sigmoid"),
    Tensor.sigmoid: _ends("sigmoid"),
    Tensor.sigmoid_: _ends_in_place("sigmoid"),
    torch.add: _add,
    Tensor.add: _add,
    Tensor.__add__: _add,
    Tensor.__radd__: _add,
    Tensor.add_: _add_in_place,
    Tensor.__iadd__: _add_in_place,
}
# that concern the node of a result in autograd's graph
_OF_THE_GRAPH = (
    Tensor.register_hook,
    Tensor.retain_grad,
    Tensor.backward,
    torch.autograd.grad,
    torch.autograd.backward,
)
# that a wrapper answers like the tensor it stands for
_FACTS = frozenset(
    getattr(Tensor, name).__get__
    for name in ("shape", "dtype", "device", "layout", "ndim", "requires_grad", "is_leaf",
                 "is_cuda", "is_cpu", "is_meta", "is_sparse", "is_quantized", "is_mkldnn",
                 "is_nested")
) | {
    Tensor.size, Tensor.dim, Tensor.numel, Tensor.stride, Tensor.is_contiguous,
    Tensor.is_floating_point, Tensor.is_complex, torch.is_floating_point, torch.is_complex,
    Tensor.__len__, Tensor.element_size, Tensor.is_inference,
}  # fmt: skip
