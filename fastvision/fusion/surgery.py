"""Puts fused modules into a model: the work behind fuse()."""

from __future__ import annotations

import operator
from collections.abc import Set
from typing import Any

import torch
from torch import fx, nn

from . import layers
from .chains import Chain, channel_shuffles, find_chains
from .modules import (
    ChannelShuffle,
    FusedBatchNorm2d,
    FusedFeaturePyramid,
    InputFormat,
    restore_format_hook,
)
from .report import Fusion, Report
from .tracing import Trace, Untraceable, has_options, is_leaf, is_reached_into, reach, trace

# their code takes activations in any memory format, and RoIAlign prefers channels_last
_ANY_FORMAT = ("torchvision.models.detection.",)
# with fewer convolutions the conversions at the borders cost more than they bring
_LEAST_CONVOLUTIONS = 2
_STRIDE_SENSITIVE = ("as_strided", "as_strided_", "stride", "is_contiguous", "storage", "data_ptr")
_STRIDE_SENSITIVE_FUNCTIONS = (torch.as_strided, torch.view_as_complex, torch.view_as_real)
# a view of a contiguous tensor, a copy of one that is channels_last
_FLATTENING = ("view", "view_as", "reshape", "reshape_as", "flatten", "ravel", "contiguous")


class Surgeon:
    """Fuses ``model``, a copy, in place; the result is another module if all of it is a graph."""

    def __init__(self, model: nn.Module, channels_last: bool | None) -> None:
        self.model = model
        self.channels_last = channels_last
        self.report = Report()
        self.paths: dict[int, list[str]] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            self.paths.setdefault(id(module), []).append(path)
        self.seen: dict[
            int, nn.Module
        ] = {}  # keeps what is replaced alive, so that ids stay unique

    def operate(self) -> nn.Module:
        self._visit("", self.model, frozenset(), whole=True, any_format=False)
        return self.model

    def _visit(
        self, path: str, module: nn.Module, names: Set[str], *, whole: bool, any_format: bool
    ) -> None:
        """``names``: attributes that the code of outer modules takes from objects. ``whole``: those
        do nothing with ``module`` but call it."""
        if id(module) in self.seen:
            return
        self.seen[id(module)] = module
        if "forward" in vars(module):
            self.report.skipped.append((path, "its forward was replaced"))
            return
        whole = whole and not is_reached_into(module, names)
        if layers.is_anchor(module):
            self._fuse_alone(path, module, whole)
            return
        if isinstance(module, fx.GraphModule) or (is_leaf(module) and not layers.has_hooks(module)):
            return
        if type(module).__module__.startswith("torch.nn.") and not isinstance(
            module, (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.DataParallel)
        ):
            return
        reason = "code outside may reach into it"
        if whole:
            try:
                traced = trace(module)
            except Untraceable as error:
                reason = f"not traceable as a whole ({error})"
            else:
                self._fuse_traced(path, traced, any_format)
                return
        if not any(map(layers.is_anchor, module.modules())):
            return
        if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            self.report.skipped.append((path, reason))
        inner = reach(type(module))  # type: ignore[arg-type]
        if inner is not None and inner.tests_types:
            self.report.skipped.append((path, "its code asks for the types of layers"))
            return
        any_format = type(module).__module__.startswith(_ANY_FORMAT)
        for name, child in module.named_children():
            self._visit(
                f"{path}.{name}" if path else name,
                child,
                names if inner is None else names | inner.names,
                whole=inner is not None and name not in inner.bare,
                any_format=any_format,
            )
        if whole and layers.is_fused_pyramid(module):
            self._fuse_pyramid(path, module)

    def _fuse_alone(self, path: str, module: nn.Module, whole: bool) -> None:
        reason = layers.why_not(module)
        if not whole:
            reason = reason or "code outside reads its weight"
        if reason:
            self.report.skipped.append((path, reason))
            return
        fused = layers.fused_module(module, None, None, channels_last=self.channels_last is True)
        self._install(module, fused)
        self.report.fused.append(Fusion(path, (type(module).__name__,)))

    def _fuse_pyramid(self, path: str, module: nn.Module) -> None:
        if self._install(module, FusedFeaturePyramid(module)):
            self.report.fused.append(Fusion(path, ("FeaturePyramidNetwork",)))

    # --- one graph

    def _fuse_traced(self, path: str, traced: Trace, any_format: bool) -> None:
        plan = _Plan(self, path, traced)
        channels_last = self._runs_channels_last(plan)
        plan.settle(channels_last)
        if channels_last and plan.no_channels_last:
            self.report.skipped.append((path, f"not channels_last: {plan.no_channels_last}"))
            channels_last = False
        hooked = {
            str(node.target): module
            for node in traced.graph.nodes
            if (module := traced.module(node)) is not None
            and layers.has_hooks(module)
            and not layers.is_anchor(module)
        }
        plan.carry_out(channels_last, border=not any_format)
        if channels_last:
            self.report.channels_last.append(path)
        for name, module in list(traced.root.named_modules()):
            if not traced.type_tests and layers.is_fused_pyramid(module):
                self._fuse_pyramid(_join(path, name), module)
        for name, module in hooked.items():
            if traced.type_tests:
                reason = "code outside asks for the types of layers"
                self.report.skipped.append((_join(path, name), reason))
                continue
            self._visit(_join(path, name), module, frozenset(), whole=True, any_format=False)

    def _runs_channels_last(self, plan: _Plan) -> bool:
        if self.channels_last is not None:
            return self.channels_last
        if any(p.is_cuda and p.dtype.itemsize > 2 for p in plan.trace.root.parameters()):
            return False  # tensor cores want it for 16-bit types
        convolutions = 0
        for node in plan.trace.graph.nodes:
            module = plan.trace.module(node)
            if module is not None and layers.has_hooks(module):
                return False  # a hook may look at strides
            if isinstance(module, nn.Conv2d):
                convolutions += 1
        return convolutions >= _LEAST_CONVOLUTIONS

    def _install(self, old: nn.Module, new: nn.Module) -> bool:
        """Puts ``new`` wherever ``old`` is; whether it still was anywhere."""
        new.eval()
        installed = False
        if not isinstance(new, fx.GraphModule):
            for name, value in vars(old).items():  # what describes the layer, like out_channels
                if not name.startswith("_") and name not in vars(new):
                    setattr(new, name, value)
        for path in self.paths[id(old)]:
            if not path:
                self.model, installed = new, True
                continue
            parent, _, name = path.rpartition(".")
            # a parent that is gone belongs to a graph, which has taken what it needs
            owner = _find(self.model, parent)
            if owner is not None and owner._modules.get(name) is old:
                owner._modules[name] = new
                installed = True
        return installed


class _Plan:
    """What to do with one graph: which modules are replaced, and which become graphs themselves.

    A chain of modules only is fused in place: the first becomes the fused module, the others
    nn.Identity, and the model's own code goes on calling them. A chain with functions in it needs
    the code to change: the innermost module that runs all of it, its *region*, becomes a graph.
    """

    def __init__(self, surgeon: Surgeon, path: str, traced: Trace) -> None:
        self.surgeon, self.path, self.trace = surgeon, path, traced
        self.blocked: dict[int, str] = {}
        self.no_region: dict[str, str] = {}  # region and reason
        self.regions: set[str] = set()
        self.region_traces: dict[str, Trace] = {}
        self.no_channels_last = ""
        self.chains: list[Chain] = []
        self.skipped: list[tuple[str, str]] = []
        self._block_shared()

    def _block_shared(self) -> None:
        mine = self.surgeon.paths[id(self.trace.root)]
        for node in self.trace.graph.nodes:
            module = self.trace.module(node)
            if _is_replaceable(module) and not self._is_private(module, mine):
                self.blocked[id(module)] = "is used in several places"

    def _is_private(self, module: nn.Module | None, mine: list[str]) -> bool:
        return all(
            any(not own or path == own or path.startswith(own + ".") for own in mine)
            for path in self.surgeon.paths[id(module)]
        )

    def settle(self, channels_last: bool) -> None:
        """Finds chains and regions; whenever a region turns out impossible, once more without."""
        while True:
            self.chains, self.skipped = find_chains(self.trace, self.blocked, self._allowed)
            wanted = self._wanted_regions(channels_last)
            self.regions = _outermost(wanted)
            prepared = [self._prepare(region) for region in sorted(self.regions)]
            if all(prepared) and self._one_region_each():
                return

    def _wanted_regions(self, channels_last: bool) -> dict[str, tuple[str, ...]]:
        """By path: its callers and itself."""
        wanted: dict[str, tuple[str, ...]] = {}
        self.no_channels_last = ""
        absorbed = {n for c in self.chains for n in c.absorbed if c.add is None}
        for chain in self.chains:
            if not self._in_place(chain, absorbed) and not layers.norm(chain.module):
                stack = self._region(chain)
                if stack[-1] not in self.no_region:
                    wanted[stack[-1]] = stack
        if channels_last and self._writes_through_view():
            self.no_channels_last = "writes through a view"
            return wanted
        for node in self._views() if channels_last else ():
            stack = self.trace.callers[node]
            if stack[-1] in self.no_region:
                self.no_channels_last = self.no_region[stack[-1]]
            elif not _is_reshape(node):
                name = getattr(node.target, "__name__", node.target)
                self.no_channels_last = f"calls {name} with what depends on strides"
            else:
                wanted[stack[-1]] = stack
        return wanted

    def _region(self, chain: Chain) -> tuple[str, ...]:
        """The modules that run all of ``chain``, from the outside in."""
        stacks = [self.trace.callers[node] for node in chain.nodes]
        shared = 0
        while all(len(s) > shared and s[shared] == stacks[0][shared] for s in stacks):
            shared += 1
        return stacks[0][:shared]

    def _in_place(self, chain: Chain, absorbed: set[fx.Node]) -> bool:
        """Whether replacing modules is enough: each follower is always a follower."""
        if chain.add is not None or self._is_type_tested(self.trace.callers[chain.anchor]):
            return False
        mine = self.surgeon.paths[id(self.trace.root)]
        for node in chain.absorbed:
            module = self.trace.module(node)
            if module is None or not self._is_private(module, mine) or layers.has_hooks(module):
                return False
            if self._is_type_tested(self.trace.callers[node]):
                return False
            calls = [n for n in self.trace.graph.nodes if n.target == node.target]
            if not absorbed.issuperset(calls):
                return False
        return True

    def _is_type_tested(self, callers: tuple[str, ...]) -> bool:
        """Whether code that runs a layer would see that it has become another."""
        return not self.trace.type_tests.isdisjoint(callers)

    def _allowed(self, chain: Chain) -> bool:
        """Whether a chain may have grown this long; called before others of the graph are known."""
        region = self._region(chain)[-1]
        if region not in self.no_region:
            return True
        absorbed = {n for n in self.trace.graph.nodes if self._is_plain_follower(n)}
        return self._in_place(chain, absorbed)

    def _is_plain_follower(self, node: fx.Node) -> bool:
        """Whether a normalization or activation follows what it could be fused with."""
        module = self.trace.module(node)
        if module is None or not node.args or not isinstance(node.args[0], fx.Node):
            return False
        value = node.args[0]
        inner = self.trace.module(value)
        return len(value.users) == 1 and (layers.is_anchor(inner) or layers.norm(inner) is not None)

    def _prepare(self, region: str) -> bool:
        """Traces a region by itself; notes the reason if that is impossible."""
        if region in self.region_traces:
            return True
        module = self.trace.root.get_submodule(region)
        calls = self.trace.calls.get(region, [])
        reason = ""
        if layers.has_hooks(module):
            reason = "has hooks"
        elif not self._is_private(module, self.surgeon.paths[id(self.trace.root)]):
            reason = "is used in several places"
        elif len({(call.given, call.constants) for call in calls}) > 1:
            reason = "is called in different ways"
        elif not calls and region == "" and has_options(module):
            reason = "forward has optional parameters"
        elif any(self._is_type_tested(call.callers) for call in calls):
            reason = "code outside asks for the types of layers"
        if not reason:
            try:
                traced = trace(module, calls[0] if calls else None)
                if traced.unrepeatable:
                    reason = "its code has contexts or takes numbers out of tensors"
                else:
                    self.region_traces[region] = traced
            except Untraceable as error:
                reason = f"not traceable by itself ({error})"
        if reason:
            self.no_region[region] = reason
            self.skipped.append((region, reason))
        return not reason

    def _one_region_each(self) -> bool:
        """Whether every layer is called from one region, or from none, only."""
        homes: dict[int, set[str]] = {}
        for node in self.trace.graph.nodes:
            module = self.trace.module(node)
            if _is_replaceable(module):
                homes.setdefault(id(module), set()).add(self._home(node))
        shared = [key for key, regions in homes.items() if len(regions) > 1]
        new = [key for key in shared if key not in self.blocked]
        self.blocked.update(dict.fromkeys(new, "is used in several places"))
        return not new

    def _home(self, node: fx.Node) -> str:
        return next((c for c in self.trace.callers[node] if c in self.regions), "-")

    def _views(self) -> list[fx.Node]:
        """Calls that depend on the strides of what may be an image."""
        images: set[fx.Node] = set()
        views = []
        for node in self.trace.graph.nodes:
            flat = isinstance(self.trace.module(node), (nn.Linear, nn.Flatten)) or node.target in (
                torch.flatten,
                "flatten",
                "size",
                "dim",
            )
            flat |= node.target in ("view", "reshape") and len(node.args) < 4
            inputs = node.all_input_nodes
            if node.op == "call_method" and node.args and node.args[0] in images:
                if node.target in ("view", "view_as") or node.target in _STRIDE_SENSITIVE:
                    views.append(node)
            elif node.op == "call_function" and node.target in _STRIDE_SENSITIVE_FUNCTIONS:
                views.append(node)
            if not flat and (node.op == "placeholder" or any(n in images for n in inputs)):
                images.add(node)
        self.gives_images = any(
            n in images
            for o in self.trace.graph.nodes
            if o.op == "output"
            for n in o.all_input_nodes
        )
        return views

    def _writes_through_view(self) -> bool:
        """Whether code writes to what is a view of a contiguous tensor only."""
        views: set[fx.Node] = set()
        for node in self.trace.graph.nodes:
            module = self.trace.module(node)
            inputs = node.all_input_nodes
            identity = layers.is_identity(node, module)
            if any(n in views for n in inputs):
                if layers.is_in_place(node, module) and not identity:
                    return True
                if identity or not layers.is_fresh(node, module):
                    views.add(node)
            name = getattr(node.target, "__name__", node.target)
            if isinstance(module, nn.Flatten) or (node.op != "call_module" and name in _FLATTENING):
                views.add(node)
        return False

    # --- changing modules

    def carry_out(self, channels_last: bool, *, border: bool) -> None:
        report, surgeon = self.surgeon.report, self.surgeon
        self._views()
        if channels_last and border and self.gives_images and "" not in self.regions:
            self.trace.root.register_forward_hook(restore_format_hook)
        inside = lambda node: self._home(node) != "-"  # noqa: E731
        followers: dict[int, nn.Module] = {}
        done: set[int] = set()
        absorbed = {n for c in self.chains for n in c.absorbed if c.add is None}
        for chain in self.chains:
            if inside(chain.anchor) or not self._in_place(chain, absorbed):
                continue
            for node in chain.absorbed:
                follower = self.trace.module(node)
                followers[id(follower)] = follower  # type: ignore[assignment]
            if id(chain.module) not in done:
                done.add(id(chain.module))
                surgeon._install(chain.module, _fused(chain, channels_last))
                self._note(chain, str(chain.anchor.target))
        for follower in followers.values():
            surgeon._install(follower, nn.Identity())
        report.skipped += [(_join(self.path, name), reason) for name, reason in self.skipped]
        report.skipped += [
            (_join(self.path, name), reason)
            for name, reason in self.no_region.items()
            if (name, reason) not in self.skipped
        ]
        for region in self.regions:
            self._carry_out_region(region, channels_last, border)

    def _note(self, chain: Chain, target: str) -> None:
        self.surgeon.report.fused.append(Fusion(_join(self.path, target), tuple(chain.parts)))

    def _carry_out_region(self, region: str, channels_last: bool, border: bool) -> None:
        traced = self.region_traces[region]
        graph, root = traced.graph, traced.root
        chains, _ = find_chains(traced, self.blocked)
        done: set[int] = set()
        for chain in chains:
            target = str(chain.anchor.target)
            if id(chain.module) not in done:
                done.add(id(chain.module))
                self.surgeon._install(chain.module, _fused(chain, channels_last))
                self._note(chain, _join(region, target))
            options: dict[str, Any] = {}
            if chain.add is not None:
                options["residual"] = chain.add.args[chain.residual]
                if chain.add.target in (operator.iadd, "add_"):
                    options["in_place"] = True
            with graph.inserting_before(chain.add or chain.anchor):
                call = graph.call_module(target, (chain.anchor.args[0],), options)
            chain.nodes[-1].replace_all_uses_with(call)
            for node in reversed(chain.nodes):
                graph.erase_node(node)
        for i, (first, last, groups) in enumerate(channel_shuffles(traced)):
            name = f"channel_shuffle_{i}"
            root.add_module(name, ChannelShuffle(groups))
            with graph.inserting_before(first):
                call = graph.call_module(name, (first.args[0],))
            last.replace_all_uses_with(call)
            _erase_unused(graph, last)
            self.surgeon.report.fused.append(
                Fusion(_join(self.path, _join(region, name)), ("channel shuffle",))
            )
        if channels_last:
            for node in graph.nodes:
                if _is_reshape(node):
                    node.target = {"view": "reshape", "view_as": "reshape_as"}[node.target]
            if border and not region and self.gives_images:
                root.add_module("input_format", InputFormat())
                output = next(iter(reversed(graph.nodes)))
                inputs = tuple(n for n in graph.nodes if n.op == "placeholder")
                with graph.inserting_before(output):
                    output.args = (graph.call_module("input_format", (output.args[0], *inputs)),)
        graph.lint()
        self.surgeon._install(root, fx.GraphModule(root, graph, type(root).__name__))


def _is_reshape(node: fx.Node) -> bool:
    """Whether ``node`` is a view that gives the same by reshape."""
    if node.op != "call_method" or node.kwargs:
        return False
    sizes = node.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = tuple(sizes[0])
    return node.target == "view_as" or (
        node.target == "view" and all(isinstance(size, (int, fx.Node)) for size in sizes)
    )


def _is_replaceable(module: nn.Module | None) -> bool:
    return layers.is_anchor(module) or layers.norm(module) is not None


def _fused(chain: Chain, channels_last: bool) -> nn.Module:
    if not layers.is_anchor(chain.module):
        assert chain.norm is not None
        return FusedBatchNorm2d(chain.norm)
    return layers.fused_module(
        chain.module, chain.norm, chain.activation, channels_last=channels_last
    )


def _erase_unused(graph: fx.Graph, node: fx.Node) -> None:
    """Erases ``node`` and what only it used."""
    candidates = {node}
    for candidate in reversed(graph.nodes):
        if candidate in candidates and not candidate.users and candidate.op != "placeholder":
            candidates.update(candidate.all_input_nodes)
            graph.erase_node(candidate)


def _outermost(regions: dict[str, tuple[str, ...]]) -> set[str]:
    return {r for r, stack in regions.items() if not any(c in regions for c in stack[:-1])}


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def _find(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None
