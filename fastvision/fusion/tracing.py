"""Graphs of modules by torch.fx, with who called what, and where tracing does not reach."""

from __future__ import annotations

import ast
import contextlib
import copy
import functools
import inspect
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
    """Sees x += y as what it is; torch.fx's own takes it for x = x + y."""


def _in_place_method(function: Any) -> Callable[[fx.Proxy, Any], Any]:
    return lambda self, other: self.tracer.create_proxy(
        "call_function", function, (self, other), {}
    )


for _function in layers.IN_PLACE_OPERATORS:
    setattr(_Proxy, f"__{_function.__name__}__", _in_place_method(_function))


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # else their values would become constants

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = [""]
        self.callers: dict[fx.Node, tuple[str, ...]] = {}
        self.calls: dict[str, list[Call]] = {}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m)

    def create_node(self, *arguments: Any, **options: Any) -> fx.Node:
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
    tracer = _Tracer()
    with _unchanged(module):
        try:
            graph = tracer.trace(module, concrete or None)
        except Exception as error:  # any code of the model may run here and trip over a proxy
            text = (str(error) or type(error).__name__).strip().splitlines()[0].split(". ")[0]
            raise Untraceable(text if len(text) <= 100 else text[:100] + " ...") from error
    return Trace(module, graph, tracer.callers, tracer.calls)


@contextlib.contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Undoes what tracing does to attributes: the model must not keep the tracer's placeholders.

    Raises:
        Untraceable: an attribute was changed, so a call may depend on the calls before it.
    """
    before = [(m, dict(m.__dict__), _contents(m)) for m in module.modules()]
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
            changed = type(m).__name__
            m.__dict__.clear()
            m.__dict__.update(attributes)
            for name, content in contents.items():
                attributes[name].clear()
                (attributes[name].extend if isinstance(content, list) else attributes[name].update)(
                    content
                )
    if changed:
        raise Untraceable(f"forward of {changed} changes attributes")


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


_ITERATORS = ("children", "named_children", "modules", "named_modules", "_modules")


@functools.lru_cache(maxsize=256)
def reach(cls: type) -> Reach | None:
    """Of forward and the methods that it may call; None if there is no source."""
    methods: dict[str, list[ast.FunctionDef]] = {}
    for base in cls.__mro__:
        if base.__module__.startswith("torch.nn.") or base is object:
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            return None
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                methods.setdefault(node.name, []).append(node)
    bare: set[str] = set()
    names: set[str] = set()
    waiting, seen = ["forward"], {"forward"}
    while waiting:
        for node in (n for method in methods.get(waiting.pop(), ()) for n in ast.walk(method)):
            # ast.walk comes to the outer node first, which knows how the inner one is used
            if isinstance(node, ast.Call):
                node.func.fine = True  # type: ignore[attr-defined]
            elif isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.Is, ast.IsNot)):
                node.left.fine = True  # type: ignore[attr-defined]
            elif isinstance(node, ast.Attribute):
                if node.attr not in _ITERATORS:
                    node.value.fine = True  # type: ignore[attr-defined]
                if not (isinstance(node.value, ast.Name) and node.value.id == "self"):
                    names.add(node.attr)
                elif not hasattr(node, "fine"):
                    bare.add(node.attr)
                if node.attr in methods and node.attr not in seen:
                    seen.add(node.attr)
                    waiting.append(node.attr)
    return Reach(frozenset(bare), frozenset(names))


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
