"""fuse(model): a copy of a trained model that runs on fused ops, for inference."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn

from ..ops._layers import is_activation
from ..ops.chain import Sequential
from .classes import Fused, become
from .eligible import FUSED, LAYERS, is_norm, why_not
from .layers import FusedLayer, State
from .modules import FusedModule, tensors_of_graph, values_of_graph
from .norms import FusedNorm
from .report import Fusion, Report
from .sequential import FusedActivation, FusedSequential
from .squeeze_excitation import FusedSqueezeExcitation, is_fusible
from .training import fuse_for_training, take_back

__all__ = ["Fusion", "Report", "fuse"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# with fewer convolutions, format conversions at the borders cost more than channels_last gains
_MIN_CONVOLUTIONS = 2


def fuse(
    model: nn.Module,
    *,
    training: bool = False,
    channels_last: bool | None = None,
    dtype: torch.dtype | None = None,
    example_inputs: tuple[Any, ...] | None = None,
) -> nn.Module:
    """Returns a copy of ``model`` that runs chains of layers as single ops.

    A chain is a convolution (also transposed), a batch normalization with running statistics, the
    addition of a residual and an activation, or a linear layer and an activation. Batch
    normalizations are folded into the weights (Ioffe and Szegedy 2015, section 3.1). torchvision's
    ``SqueezeExcitation`` runs as one op too. This works for any torch.nn model: the copy runs the
    model's own forward and defers each convolution until its result is used, which reveals the rest
    of the chain. ``str(fused.fastvision_report)`` lists the chains that ran, and the layers left as
    they were with the reason.

    The copy has the model's state dict, and its modules keep their attributes, methods, parameters
    and buffers. Each module's class is a subclass of the original one, so ``isinstance`` works, but
    ``type(layer) is nn.Conv2d`` is False. Results differ from the model's by rounding. The copy can
    be moved, copied, pickled, compiled and exported (to ONNX as standard operators), accepts all
    input sizes that the model accepts, and propagates gradients to its inputs. Its parameters are
    frozen, and train() leaves it in eval mode.

    Each layer packs its weights in its first call, and again after ``load_state_dict()``, ``to()``,
    an assignment or a write in place. Writes that torch does not count (``.data``, NumPy, shared
    memory, collectives) are not detected: after them, fuse again or call
    ``load_state_dict(state_dict())``.

    Values inside the copy are instances of a subclass of Tensor, which is visible to hooks. Writing
    to the weights of a convolution, or of the normalization after it, between its call and the
    first use of its result is an error.

    With ``training=True``, the copy is for training. It shares the parameters and buffers of
    ``model``, so an optimizer may hold either's, and keeps its hooks and state dict; convert the
    model (``to()``, ``double()``) before, not after. Batch normalization, addition and activation
    run as one differentiable op, and on the CPU 3x3 convolutions use Winograd's algorithm where
    that is faster. The result of a normalization is computed at its first use: writing in place to
    its input, its parameters or a residual added to it before that is an error, if torch counts the
    write (``.data`` is not counted). Once an activation has used it, asking for its gradient by a
    hook or ``retain_grad()`` is an error. Results are ordinary tensors, in lists, tuples and dicts
    too. ``fuse(copy)`` makes an inference copy.

    Args:
        model: any module; it is not changed.
        training: make a copy for training; the other options are for inference only.
        channels_last: whether activations between layers use this memory format; None decides by
            device, dtype and number of convolutions. The model's code sees no difference, and
            results are contiguous unless an input is channels_last.
        dtype: dtype to convert the copy to, and then that of its inputs; None keeps the model's.
            Normalizations are folded in float32 or float64.
        example_inputs: arguments of a first call, which packs the weights and completes the report.

    Returns:
        The copy, in eval mode, with an attribute ``fastvision_report`` of type :class:`Report`.
        With ``training=True``, the copy is in the mode of ``model`` and has no report.

    Raises:
        TypeError: ``model`` is not an nn.Module, or an option has the wrong type.
        ValueError: ``dtype`` is not a floating-point dtype, or an option or an inference copy is
            combined with ``training``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(training, bool):
        raise TypeError(f"training must be True or False, got {training!r}")
    if channels_last is not None and not isinstance(channels_last, bool):
        raise TypeError(f"channels_last must be True, False or None, got {channels_last!r}")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, got {dtype!r}")
    if dtype is not None and dtype not in _DTYPES:
        raise ValueError(f"dtype must be float16, bfloat16, float32 or float64, got {dtype}")
    if example_inputs is not None and not isinstance(example_inputs, (tuple, list)):
        raise TypeError(
            f"example_inputs must be a tuple of arguments, got {type(example_inputs).__name__}"
        )
    if training:
        if channels_last is not None or dtype is not None or example_inputs is not None:
            raise ValueError(
                "channels_last, dtype and example_inputs are for inference: with training=True "
                "convert the model itself"
            )
        return fuse_for_training(model)
    # torch does not count writes to tensors made in inference mode
    with torch.inference_mode(False), torch.no_grad():
        fused = copy.deepcopy(model)
        take_back(fused)
        fused.eval()
        if dtype is not None:
            _convert(fused, dtype)
        _fuse(fused, channels_last)
    if example_inputs is not None:
        with torch.no_grad():
            fused(*example_inputs)
    return fused


def _convert(model: nn.Module, dtype: torch.dtype) -> None:
    """Casts all but normalizations, which stay in float32 for folding if ``dtype`` has 16 bits."""
    kept = {
        id(tensor)
        for module in model.modules()
        if is_norm(module)
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if dtype.itemsize == 2
    }
    model._apply(lambda t: t.to(dtype) if t.is_floating_point() and id(t) not in kept else t)


def _fuse(model: nn.Module, channels_last: bool | None) -> None:
    """Fuses a copy in place."""
    modules = _reachable(model)
    chosen = [m for m in modules if isinstance(m, LAYERS) and why_not(m) is None]
    convolutions = [m for m in chosen if not isinstance(m, nn.Linear)]
    if channels_last is None:
        # on GPUs only 16-bit dtypes gain, by tensor cores
        wide_on_gpu = any(m.weight.is_cuda and m.weight.dtype.itemsize > 2 for m in convolutions)
        channels_last = len(convolutions) >= _MIN_CONVOLUTIONS and not wide_on_gpu
    for module in modules:
        if isinstance(module, Fused):  # fused already
            continue
        if isinstance(module, LAYERS):
            if why_not(module) is None:
                _become(module, FUSED[_base(module)], channels_last)
        elif is_norm(module):
            _become(module, FusedNorm, channels_last)
        elif is_activation(module) and "forward" not in vars(module):
            become(module, FusedActivation)
    holders = _holders(model)
    for module in modules:
        if not isinstance(module, Fused) and id(module) in holders:
            if isinstance(module, fx.GraphModule):
                _open_graph(module)
            elif _has_forward(module):
                become(module, _mixin_of(module))
    for parameter in model.parameters():
        if not nn.parameter.is_lazy(parameter):
            parameter.requires_grad_(False)
    if not isinstance(model, Fused):
        _attach_report(model)


def _reachable(model: nn.Module) -> list[nn.Module]:
    """All modules, except inside scripted ones, which are compiled."""
    found: dict[int, nn.Module] = {}
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if id(module) not in found:
            found[id(module)] = module
            if not isinstance(module, torch.jit.ScriptModule):
                waiting += [child for child in module._modules.values() if child is not None]
    return list(found.values())


def _base(module: nn.Module) -> type:
    return next(base for base in type(module).__mro__ if base in FUSED)


def _become(module: nn.Module, mixin: type, channels_last: bool) -> None:
    become(module, mixin)
    module.__dict__["_fused"] = State(channels_last)


def _mixin_of(module: nn.Module) -> type[FusedModule]:
    """Of a module that contains fused layers."""
    if type(module).forward in (nn.Sequential.forward, Sequential.forward):
        return FusedSequential
    return FusedSqueezeExcitation if is_fusible(module) else FusedModule


def _holders(model: nn.Module) -> set[int]:
    """The ids of modules with a fused layer inside."""
    inside: dict[int, bool] = {}

    def look(module: nn.Module) -> bool:
        if id(module) not in inside:
            inside[id(module)] = False  # a module may contain itself
            if not isinstance(module, torch.jit.ScriptModule):
                children = [child for child in module._modules.values() if child is not None]
                inside[id(module)] = any([look(child) for child in children])  # noqa: C419  (all of them)
        return inside[id(module)] or isinstance(module, (FusedLayer, FusedNorm))

    look(model)
    return {key for key, holds in inside.items() if holds}


def _has_forward(module: nn.Module) -> bool:
    """Whether the module has a forward of its own, not just children."""
    cls = type(module)
    return (
        "forward" not in vars(module)
        and not isinstance(module, (torch.jit.ScriptModule, nn.ModuleList, nn.ModuleDict))
        and cls.forward is not nn.Module.forward
        and (not cls.__module__.startswith("torch.nn.") or isinstance(module, nn.Sequential))
    )


def _open_graph(module: fx.GraphModule) -> None:
    """Adds the conversions of a FusedModule's forward to a graph, as nodes."""
    graph = module.graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    output = next(iter(reversed(graph.nodes)))
    with graph.inserting_after(inputs[-1]):
        values = graph.call_function(values_of_graph, tuple(inputs))
    after = values
    for i, node in enumerate(inputs):
        with graph.inserting_after(after):
            after = graph.call_function(_item, (values, i))
        node.replace_all_uses_with(after, delete_user_cb=lambda user: user is not values)
    with graph.inserting_before(output):
        result = graph.call_function(tensors_of_graph, (output.args[0], *inputs))
    output.args = (result,)
    module.recompile()


def _item(values: Any, index: int) -> Any:
    return values[index]


_NAMES = {layer.__name__ for layer in LAYERS}


def report_of(model: nn.Module) -> Report:
    """Report of a fused model; covers the layers that have been called."""
    report = Report()
    for path, module in model.named_modules():
        if isinstance(module, (FusedLayer, FusedNorm)):
            state: State = module.__dict__["_fused"]
            report.channels_last |= state.channels_last
            chains = list(state.chains)
            if not chains and isinstance(module, FusedLayer):
                report.waiting += 1
                chains = [(_base(module).__name__,)]
            report.fused += [Fusion(path, parts) for parts in chains]
        elif isinstance(module, LAYERS):
            report.skipped.append((path, why_not(module) or "was put in after fuse()"))
        elif getattr(module, "original_name", None) in _NAMES:
            report.skipped.append((path, "is part of a ScriptModule"))
    return report


Fused.fastvision_report = property(report_of)  # type: ignore[attr-defined]


def _attach_report(model: nn.Module) -> None:
    """Adds the report to a model whose own class was not replaced."""
    if isinstance(model, fx.GraphModule):  # each instance has its own class
        type(model).fastvision_report = property(report_of)  # type: ignore[attr-defined]
    elif isinstance(model, torch.jit.ScriptModule):
        model.__dict__["fastvision_report"] = report_of(model)
    else:
        become(model, Fused)
