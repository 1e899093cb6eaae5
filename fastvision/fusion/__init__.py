"""fuse(model): a copy of a trained model that runs on fused ops."""

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
from .training import fuse_for_training, take_back

__all__ = ["Fusion", "Report", "fuse"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# with fewer convolutions the conversions at the borders cost more than they bring
_LEAST_CONVOLUTIONS = 2


def fuse(
    model: nn.Module,
    *,
    training: bool = False,
    channels_last: bool | None = None,
    dtype: torch.dtype | None = None,
    example_inputs: tuple[Any, ...] | None = None,
) -> nn.Module:
    """A copy of ``model`` for inference in which chains of layers are one op each.

    Convolution (transposed, too), batch normalization with its running statistics, the addition of
    a residual and an activation become one op, as do a linear layer and its activation. The
    normalization becomes part of the weights. Any torch.nn model will do, whatever its code: the
    copy runs the model's own forward, and a convolution waits until it is used for what the code
    does with it next. ``str(fused.fastvision_report)`` tells which chains ran, and which layers are
    left as they are and why.

    All modules of the copy are instances of their own classes (of sub-classes of these), with all
    attributes, methods, parameters and buffers, and the copy's state dict is the model's. Results
    differ from the model's by rounding. ``type(layer) is nn.Conv2d`` is False in the copy. It can
    be moved, copied, pickled, exported (to ONNX as standard operators) and compiled, takes inputs
    of any size that the model takes, and lets gradients through to its inputs. It is for
    inference: its parameters are frozen, and train() leaves it in eval mode.

    The copy owns its weights: each layer packs them in its first call, and again after whatever
    torch counts as a write or a module's method does (``load_state_dict()``, ``to()``, an
    assignment, a write in place). Writes through ``.data``, NumPy, shared memory or a collective
    are not noticed by a fused copy: fuse again, or call ``load_state_dict(state_dict())``.

    Inside, values are instances of a sub-class of Tensor, which hooks see. A convolution is
    computed when what it gives is used: a write to its weight in between is an error.

    With ``training=True`` the copy is for training: it has the model's own parameters and buffers
    (the same tensors, so an optimizer may hold either's), its modules, hooks and state dict. Batch
    normalization, addition and activation run as one differentiable op, 3x3 convolutions by
    Winograd's algorithm where that is faster, and everything else as before. What a normalization
    gives is computed when it is used: a write in place to its input, or to what was added to it, in
    between is an error. ``fuse(copy)`` makes an inference copy of it.

    Args:
        model: any module; it is not changed.
        training: makes a copy for training; the other options are for inference only.
        channels_last: whether activations between layers are in that memory format: None for where
            it pays. The code of the model sees no difference, and what comes out is contiguous
            unless what goes in is channels_last.
        dtype: to convert the copy to: it then takes inputs of that dtype. Normalizations are
            folded in float32 or better.
        example_inputs: arguments of a first call, after which the weights are packed and the report
            is complete.

    Returns:
        The copy, in eval mode, with the attribute ``fastvision_report``, a :class:`Report`. With
        ``training=True`` it is in the model's mode and has no report.

    Raises:
        TypeError: model is no nn.Module, or an option is of the wrong type.
        ValueError: dtype is not a float type, or an option does not go with ``training``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
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
    # writes to tensors made in inference mode are not counted
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
    """Normalizations keep float32 where the layers around them get 16 bits: they are folded."""
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
        # tensor cores want it for 16-bit types
        wide_on_gpu = any(m.weight.is_cuda and m.weight.dtype.itemsize > 2 for m in convolutions)
        channels_last = len(convolutions) >= _LEAST_CONVOLUTIONS and not wide_on_gpu
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
                in_order = type(module).forward in (nn.Sequential.forward, Sequential.forward)
                become(module, FusedSequential if in_order else FusedModule)
    for parameter in model.parameters():
        if not nn.parameter.is_lazy(parameter):
            parameter.requires_grad_(False)
    if not isinstance(model, Fused):
        _attach_report(model)


def _reachable(model: nn.Module) -> list[nn.Module]:
    """All modules but those inside scripted ones, which are compiled."""
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


def _holders(model: nn.Module) -> set[int]:
    """The ids of modules with a fused layer inside."""
    inside: dict[int, bool] = {}

    def look(module: nn.Module) -> bool:
        if id(module) not in inside:
            inside[id(module)] = False  # a module may be in itself
            if not isinstance(module, torch.jit.ScriptModule):
                children = [child for child in module._modules.values() if child is not None]
                inside[id(module)] = any([look(child) for child in children])  # noqa: C419  (all of them)
        return inside[id(module)] or isinstance(module, (FusedLayer, FusedNorm))

    look(model)
    return {key for key, holds in inside.items() if holds}


def _has_forward(module: nn.Module) -> bool:
    """Whether it is called itself, by code that may be the model's."""
    cls = type(module)
    return (
        "forward" not in vars(module)
        and not isinstance(module, (torch.jit.ScriptModule, nn.ModuleList, nn.ModuleDict))
        and cls.forward is not nn.Module.forward
        and (not cls.__module__.startswith("torch.nn.") or isinstance(module, nn.Sequential))
    )


def _open_graph(module: fx.GraphModule) -> None:
    """Lets a graph take values: what a FusedModule's forward does, as nodes."""
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
    """What of a fused model runs as one op, as far as it has been called."""
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
    """Of a model that nothing was done to itself."""
    if isinstance(model, fx.GraphModule):  # of a class of its own
        type(model).fastvision_report = property(report_of)  # type: ignore[attr-defined]
    elif isinstance(model, torch.jit.ScriptModule):
        model.__dict__["fastvision_report"] = report_of(model)
    else:
        become(model, Fused)
