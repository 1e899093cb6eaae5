"""Graphs of modules by torch.fx, with who called what, and where tracing does not reach."""

from __future__ import annotations

import ast
import contextlib
import copy
import functools
import inspect
import random
import sys
import textwrap
from collections import OrderedDict
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from . import layers
from .layers import has_hooks
from .modules import ChannelShuffle, FusedBatchNorm2d, InputFormat, _Fused

_LEAVES = (
    *(_Fused, FusedBatchNorm2d, ChannelShuffle, InputFormat, fx.GraphModule),
    *(nn.modules.batchnorm._NormBase, torch.jit.ScriptModule),
)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def is_leaf(module: nn.Module) -> bool:
    """Whether a graph shows a call of ``module`` as one node."""
    if isinstance(module, _LEAVES) or layers.is_anchor(module) or layers.norm(module) is not None:
        return True
    if type(module).__module__.startswith("fastvision.ops."):
        return True  # runs fused as it is
    if type(module).__module__.startswith(("torch.nn", "torch.ao.nn")):
        return not isinstance(module, _CONTAINERS) or has_hooks(module)
    return has_hooks(module)  # a hook sees a call, so the call has to happen


@dataclass
class Trace:
    """A module's graph, everything but leaves inlined."""

    root: nn.Module
    graph: fx.Graph
    # by node: the modules whose forward was running, as paths from the outside in; "" is root
    callers: dict[fx.Node, tuple[str, ...]]
    # by path: how the module was called, once per call
    calls: dict[str, list[Call]] = field(default_factory=dict)

    # paths of modules whose code asks for the types of layers, and of those whose code does what a
    # graph of it does not repeat
    type_tests: set[str] = field(default_factory=set)
    unrepeatable: set[str] = field(default_factory=set)

    def module(self, node: fx.Node) -> nn.Module | None:
        return self.root.get_submodule(str(node.target)) if node.op == "call_module" else None


@dataclass(frozen=True)
class Call:
    """Names of the parameters that got a value, and the values of those that are constants."""

    given: frozenset[str]
    constants: tuple[tuple[str, Any], ...]
    callers: tuple[str, ...]


class Untraceable(Exception):
    """Why there is no graph."""


class _Proxy(fx.Proxy):
    """Sees x += y as what it is; torch.fx's own takes it for x = x + y. And is no Tensor, so that
    code that asks for that takes the wrong branch: it is not traceable."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_globals.get("__name__") in ("abc", "typing"):
            frame = frame.f_back
        ours = frame.f_globals.get("__name__", "").startswith(("torch.", __name__))
        if not ours and not {"isinstance", "__class__"}.isdisjoint(frame.f_code.co_names):
            raise Untraceable("asks for the type of a value")
        return type(self)


def _in_place_method(function: Any) -> Callable[[fx.Proxy, Any], Any]:
    return lambda self, other: self.tracer.create_proxy(
        "call_function", function, (self, other), {}
    )


for _operator in layers.IN_PLACE_OPERATORS:
    setattr(_Proxy, f"__{_operator.__name__}__", _in_place_method(_operator))


def _modes() -> tuple[Any, ...]:
    """What torch's context managers change for the code in them."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        *(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")),
        *(torch.get_autocast_dtype(device) for device in ("cpu", "cuda")),
    )


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # else their values would become constants

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = [""]
        self.callers: dict[fx.Node, tuple[str, ...]] = {}
        self.calls: dict[str, list[Call]] = {}
        self.modes = _modes()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m)

    def create_node(self, *arguments: Any, **options: Any) -> fx.Node:
        if _modes() != self.modes:
            raise Untraceable("changes the mode of gradients or autocast")
        node = super().create_node(*arguments, **options)
        self.callers[node] = tuple(self.stack)
        return node

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return super().call_module(m, forward, args, kwargs)
        self.calls.setdefault(path, []).append(_call(m, args, kwargs, tuple(self.stack)))
        self.stack.append(path)
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self.stack.pop()


def _call(module: nn.Module, args: Any, kwargs: Any, callers: tuple[str, ...]) -> Call:
    try:
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        return Call(frozenset(("?",)), (), callers)
    constants = []
    for name, value in given.items():
        if value is None or isinstance(value, (bool, int, float, str)):
            constants.append((name, value))
    return Call(frozenset(given), tuple(constants), callers)


def trace(module: nn.Module, call: Call | None = None) -> Trace:
    """The graph of ``module``, called as in ``call`` (default: with its required parameters).

    Raises:
        Untraceable: Python code in it looks at values.
    """
    if "forward" in vars(module):
        raise Untraceable("its forward was replaced")
    constants = dict(call.constants) if call else {}
    concrete: dict[str, Any] = {}
    for parameter in inspect.signature(module.forward).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise Untraceable(f"forward takes *{parameter.name}")
        if parameter.name in constants:
            concrete[parameter.name] = constants[parameter.name]
        elif parameter.default is not parameter.empty and (
            call is None or parameter.name not in call.given
        ):
            concrete[parameter.name] = parameter.default
    option = None if call else steering_option(type(module))  # type: ignore[arg-type]
    if option:
        raise Untraceable(f"what forward does depends on its parameter {option}")
    with torch.enable_grad():  # unlike code in torch.no_grad
        tracer = _Tracer()
    with _unchanged(module), torch.enable_grad():
        try:
            graph = tracer.trace(module, concrete or None)
        except Exception as error:  # any code of the model may run here and trip over a proxy
            text = (str(error) or type(error).__name__).strip().splitlines()[0].split(". ")[0]
            raise Untraceable(text if len(text) <= 100 else text[:100] + " ...") from error
    traced = Trace(module, graph, tracer.callers, tracer.calls)
    for path in ("", *tracer.calls):
        cls = type(module.get_submodule(path))
        code = reach(cls)  # type: ignore[arg-type]
        if code is None:
            raise Untraceable(f"the source of {cls.__name__} is unknown")
        if code.modes:
            raise Untraceable(f"{cls.__name__} calls {min(code.modes)}")
        if code.tests_types:
            traced.type_tests.add(path)
        if code.unrepeatable:
            traced.unrepeatable.add(path)
    return traced


@contextlib.contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Undoes what tracing does to attributes: the model must not keep the tracer's placeholders.

    Raises:
        Untraceable: an attribute was changed, so a call may depend on the calls before it.
    """
    before = [(m, dict(m.__dict__), _contents(m)) for m in module.modules()]
    held = [*module.buffers(), *(v for m in module.modules() for v in _held(m))]
    held = [t for t in held if _has_version(t)]
    values = [(tensor, tensor._version, tensor.detach().clone()) for tensor in held]
    versions = [(p, p._version) for p in module.parameters() if _has_version(p)]
    random_state = _random_state()
    changed = ""
    try:
        yield
    finally:
        for m, attributes, contents in before:
            now = _contents(m)
            if _identities(m.__dict__) == _identities(attributes) and all(
                _identities(now[name]) == _identities(content) for name, content in contents.items()
            ):
                continue
            changed = f"forward of {type(m).__name__} changes attributes"
            m.__dict__.clear()
            m.__dict__.update(attributes)
            for name, content in contents.items():
                attributes[name].clear()
                (attributes[name].extend if isinstance(content, list) else attributes[name].update)(
                    content
                )
        for tensor, version, value in values:
            if tensor._version != version:
                changed = "forward writes to its tensors"
                with torch.no_grad():
                    tensor.copy_(value)
        if any(p._version != version for p, version in versions):
            changed = "forward writes to its parameters"
        if _random_state() != random_state:
            changed = "forward takes random numbers"
            random.setstate(random_state[0])
            torch.set_rng_state(torch.frombuffer(bytearray(random_state[1]), dtype=torch.uint8))
    if changed:
        raise Untraceable(changed)


def _has_version(tensor: torch.Tensor) -> bool:
    return not nn.parameter.is_lazy(tensor) and not tensor.is_inference()


def _held(module: nn.Module) -> list[torch.Tensor]:
    """Tensors that are plain attributes, or in those that are containers."""
    hidden = ("_parameters", "_buffers", "_modules")
    values = [value for name, value in vars(module).items() if name not in hidden]
    for value in values:  # grows: containers may be in containers
        if type(value) in (list, tuple, set):
            values += value
        elif type(value) in (dict, OrderedDict):
            values += value.values()
        if len(values) > 10_000:
            break  # or a container is in itself
    return [value for value in values if isinstance(value, torch.Tensor)]


def _random_state() -> tuple[Any, ...]:
    generators = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
    states = (g.get_state().numpy().tobytes() for g in generators)
    numpy = sys.modules.get("numpy")
    theirs = repr(numpy.random.get_state(legacy=False)) if numpy else ""
    return random.getstate(), torch.get_rng_state().numpy().tobytes(), theirs, *states


def _contents(module: nn.Module) -> dict[str, Any]:
    """Copies of the attributes that can change without being set."""
    return {
        name: copy.copy(value)
        for name, value in module.__dict__.items()
        if type(value) in (list, dict, OrderedDict, set)
    }


def _identities(container: Any) -> list[Any]:
    items = container.items() if isinstance(container, dict) else enumerate(container)
    return [(key, id(value)) for key, value in items]


def has_options(module: nn.Module) -> bool:
    """Whether forward has parameters with defaults: there are other calls than the traced one."""
    return any(
        p.default is not p.empty for p in inspect.signature(module.forward).parameters.values()
    )


@dataclass(frozen=True)
class Reach:
    """How the code of a class treats its children, as far as its source tells."""

    bare: frozenset[str]  # attributes of self that it does more with than to call them
    names: frozenset[str]  # attributes that it takes from other objects
    tests_types: bool  # of objects that may be layers
    modes: frozenset[str]  # what it calls to learn the mode that it runs in
    unrepeatable: bool  # whether it has contexts, or takes numbers out of tensors


_ITERATORS = ("children", "named_children", "modules", "named_modules", "_modules")
_MODES = {
    *("is_grad_enabled", "is_inference_mode_enabled", "is_inference_mode"),
    *("is_autocast_enabled", "is_autocast_cpu_enabled", "get_autocast_dtype", "is_tensor"),
}
# layers are instances of none of these
_VALUE_TYPES = {
    *("Tensor", "list", "tuple", "dict", "set", "int", "float", "str", "bool", "complex", "bytes"),
    *("OrderedDict", "Number", "Real", "Integral", "NestedTensor", "ImageList", "Size"),
}


@functools.lru_cache(maxsize=1024)
def reach(cls: type) -> Reach | None:
    """Of forward and the methods and functions that it may call; None if there is no source."""
    if _function(cls.forward) is None:  # type: ignore[attr-defined]
        return None
    methods: dict[str, list[Any]] = {}
    for base in cls.__mro__:
        if base.__module__.startswith("torch.nn.") or base is object:
            continue
        for name, value in vars(base).items():
            if (function := _function(value)) is not None:
                methods.setdefault(name, []).append(function)
    bare: set[str] = set()
    names: set[str] = set()
    modes: set[str] = set()
    tests_types = unrepeatable = False
    waiting: list[Any] = list(methods.get("forward", ()))
    seen: set[Any] = {"forward"}
    while waiting:
        function = waiting.pop()
        method = _parse(function)
        if method is None:
            return None
        parameters = [*method.args.posonlyargs, *method.args.args]
        this = parameters[0].arg if parameters else "self"
        fine: set[ast.AST] = set()
        messages: set[ast.AST] = set()
        for node in ast.walk(method):
            # ast.walk comes to the outer node first, which knows how the inner one is used
            if isinstance(node, (ast.Raise, ast.JoinedStr)):
                messages.update(ast.walk(node))
            if isinstance(node, ast.Call):
                fine.add(node.func)
                if _tests_type(node, this) and node not in messages:
                    tests_types = True
                    if node.func.id == "type":  # type: ignore[attr-defined]
                        modes.add("type")  # of a value, a tracer's placeholder would give its own
                if isinstance(node.func, ast.Name):
                    helper = _function(_look_up(function, node.func.id))
                    ours = ("torch.", "torchvision.", "fastvision.")
                    if helper not in (None, *seen) and not helper.__module__.startswith(ours):
                        seen.add(helper)
                        waiting.append(helper)
            elif isinstance(node, (ast.With, ast.AsyncWith)):
                unrepeatable = True
            elif isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.Is, ast.IsNot)):
                fine.add(node.left)
            elif isinstance(node, ast.Attribute):
                tests_types |= node.attr == "__class__"
                unrepeatable |= node.attr in ("item", "tolist")
                if node.attr not in _ITERATORS:
                    fine.add(node.value)
                if not (isinstance(node.value, ast.Name) and node.value.id == this):
                    names.add(node.attr)
                elif node not in fine:
                    bare.add(node.attr)
                if node.attr in methods and node.attr not in seen:
                    seen.add(node.attr)
                    waiting += methods[node.attr]
            name = getattr(node, "attr", getattr(node, "id", ""))
            if name in _MODES:
                modes.add(name)
    return Reach(frozenset(bare), frozenset(names), tests_types, frozenset(modes), unrepeatable)


def _function(value: Any) -> Any:
    """The Python function that ``value``, found in a class or module, is or calls."""
    if isinstance(value, property):
        value = value.fget
    value = inspect.unwrap(getattr(value, "__func__", value)) if callable(value) else value
    value = getattr(value, "__func__", value)
    return value if inspect.isfunction(value) else None


def _look_up(function: Any, name: str) -> Any:
    free = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    for variable, cell in free:
        if variable == name:
            with contextlib.suppress(ValueError):  # an empty cell
                return cell.cell_contents
    return function.__globals__.get(name)


def _parse(function: Any) -> ast.FunctionDef | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError):
        return None
    return tree if isinstance(tree, ast.FunctionDef) else None


def _tests_type(call: ast.Call, this: str) -> bool:
    if not isinstance(call.func, ast.Name) or not call.args:
        return False
    if call.func.id == "type":
        return not (isinstance(call.args[0], ast.Name) and call.args[0].id == this)
    if call.func.id not in ("isinstance", "issubclass") or len(call.args) != 2:
        return False
    kinds = call.args[1].elts if isinstance(call.args[1], ast.Tuple) else [call.args[1]]
    return any(getattr(k, "attr", getattr(k, "id", "")) not in _VALUE_TYPES for k in kinds)


@functools.lru_cache(maxsize=1024)
def steering_option(cls: type[nn.Module]) -> str | None:
    """A parameter of forward whose value may decide what it does, so that one graph is not enough.

    That is one with a default that is used but in arithmetic, or any that is compared by ``is``.
    """
    if cls.__module__.startswith("torch.nn."):
        return None
    function = _function(cls.forward)
    method = None if function is None else _parse(function)
    if function is None or method is None:
        return None  # such a class is not traceable anyway
    parameters = list(inspect.signature(function).parameters.values())[1:]
    options = {p.name for p in parameters if p.default is not p.empty}
    required = {p.name for p in parameters} - options
    fine: set[ast.AST] = set()
    for node in ast.walk(method):
        if isinstance(node, ast.BinOp):
            fine |= {node.left, node.right}
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.Is, ast.IsNot)):
            if isinstance(node.left, ast.Name) and node.left.id in required:
                return node.left.id
        elif isinstance(node, ast.Name) and node.id in options and node not in fine:
            return node.id
    return None


def is_reached_into(module: nn.Module, names: Set[str]) -> bool:
    """Whether code that takes attributes ``names`` from objects could mean those of ``module``."""
    tensors = {*module._parameters, *module._buffers}
    if tensors & names or module._modules.keys() & names:
        return True
    methods = {
        name
        for base in type(module).__mro__
        if not base.__module__.startswith("torch.nn.") and base is not object
        for name, value in vars(base).items()
        if callable(value)
    }
    return bool(methods & (names - set(dir(nn.Module))))


def tensors_read(trace: Trace) -> set[int]:
    """The ids of the parameters and buffers that a graph reads by itself."""
    paths = (str(n.target) for n in trace.graph.nodes if n.op == "get_attr")
    return {id(functools.reduce(getattr, path.split("."), trace.root)) for path in paths}
