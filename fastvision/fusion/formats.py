"""Which of torch's functions work in any memory format, and which queries do not depend on it."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


def named(names: str) -> set[Any]:
    """torch's functions and methods with these names, separated by spaces."""
    places = (Tensor, torch, F, torch._C._nn, torch.special)
    found = (getattr(place, name, None) for name in names.split() for place in places)
    return {function for function in found if callable(function)}


def operators(names: str) -> set[Any]:
    return {getattr(Tensor, f"__{name}__") for name in names.split()}


_POINTWISE = """
    add sub rsub subtract mul multiply div divide true_divide floor_divide neg negative abs exp
    expm1 log log1p log2 sqrt rsqrt square pow reciprocal sign floor ceil round trunc sin cos tan
    atan erf sigmoid tanh relu relu6 elu selu celu gelu silu mish hardswish hardsigmoid hardtanh
    leaky_relu softplus softsign threshold logsigmoid tanhshrink hardshrink softshrink prelu clamp
    clip clamp_min clamp_max lerp addcmul addcdiv nan_to_num
"""
# return new memory, or an input itself (float() of a float); contiguous if the inputs are
FRESH = (
    named(_POINTWISE)
    | named("maximum minimum where isnan isinf isfinite eq ne lt le gt ge masked_fill clone")
    | named("cat concat concatenate stack mean sum amax amin prod std var norm logsumexp all any")
    | named("max_pool1d avg_pool1d adaptive_avg_pool1d max_pool2d avg_pool2d adaptive_avg_pool2d")
    | named("adaptive_max_pool2d lp_pool2d")
    | named("interpolate upsample grid_sample softmax log_softmax batch_norm group_norm layer_norm")
    | named("instance_norm local_response_norm conv2d conv_transpose2d linear")
    | named("float half bfloat16 double")
    | operators("add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv pow rpow neg abs")
)
IN_PLACE = named(
    " ".join(f"{name}_" for name in f"{_POINTWISE} copy zero fill masked_fill".split())
) | operators("iadd isub imul itruediv ifloordiv ipow")
# return something through which the memory can be written without notice
ESCAPES = named(
    "numpy data_ptr storage untyped_storage __array__ __dlpack__ to_dlpack share_memory_"
)
# their operators accept any format and return that of their inputs
_OWN = ("fastvision", "torchvision")

# do not depend on the memory layout
_ATTRIBUTES = """
    shape dtype device layout ndim itemsize nbytes names grad grad_fn is_leaf requires_grad
    retains_grad is_cuda is_cpu is_meta is_mps is_xpu is_xla is_ipu is_vulkan is_maia is_mtia
    is_sparse is_sparse_csr is_mkldnn is_quantized is_nested output_nr
"""
_ATTRIBUTE_SET = frozenset(_ATTRIBUTES.split())
_QUERIES = (
    named("dim ndimension size numel nelement element_size get_device is_floating_point is_signed")
    | named("is_complex is_inference is_same_size is_conj is_neg is_nonzero")
    | operators("len hash")
)


class Treatment(NamedTuple):
    any_format: bool  # the result does not depend on the memory format
    fresh: bool  # in FRESH
    query: bool  # a query that does not depend on the memory layout


def treatment_of(func: Any) -> Treatment:
    fresh = func in FRESH
    return Treatment(fresh or func in IN_PLACE or _is_own(func), fresh, _is_query(func))


known_treatment_of = functools.lru_cache(maxsize=1024)(treatment_of)  # tracers need the other


def _is_query(func: Any) -> bool:
    if func in _QUERIES:
        return True
    if getattr(func, "__name__", "") != "__get__":
        return False
    return getattr(getattr(func, "__self__", None), "__name__", "") in _ATTRIBUTE_SET


def _is_own(func: Any) -> bool:
    if isinstance(func, torch._ops.OpOverload):
        return func.namespace in _OWN
    return isinstance(func, torch._ops.OpOverloadPacket) and func._qualified_op_name.startswith(
        tuple(f"{name}::" for name in _OWN)
    )
