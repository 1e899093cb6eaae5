"""Finds chains of operations that are one op: convolution, normalization, addition, activation."""

from __future__ import annotations

import operator
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from . import layers
from .modules import Norm
from .tracing import Trace, tensors_read


@dataclass
class Chain:
    """Nodes of a graph that become one call; each but the last has the next as its only user."""

    nodes: list[fx.Node]  # the anchor first; identities may be in between
    module: nn.Module  # the anchor's
    parts: list[str]
    norm: Norm | None = None
    activation: layers.Activation | None = None
    add: fx.Node | None = None  # an addition
    residual: int = 0  # which of its arguments is not the chain
    absorbed: list[fx.Node] = field(default_factory=list)  # nodes but the anchor and identities

    @property
    def anchor(self) -> fx.Node:
        return self.nodes[0]

    def signature(self) -> tuple[Any, ...]:
        """What two calls of the anchor have to share if one module is to serve them."""
        norm = None if self.norm is None else tuple(map(id, self.norm[:4]))
        return norm, self.activation


def find_chains(
    trace: Trace, blocked: dict[int, str], allowed: Callable[[Chain], bool] | None = None
) -> tuple[list[Chain], list[tuple[str, str]]]:
    """The chains of a graph, and the paths of anchors that begin none, with reasons.

    ``blocked``: reasons against modules, by id. ``allowed`` may say no to a chain with its last
    node, and the chain then ends before it.
    """
    read = tensors_read(trace)
    chains: dict[int, list[Chain]] = {}  # by id of the anchor's module
    skipped: dict[str, str] = {}
    claimed: set[fx.Node] = set()
    positions = {node: i for i, node in enumerate(trace.graph.nodes)}
    roots = _roots(trace)
    for node in trace.graph.nodes:
        module = trace.module(node)
        if not layers.is_anchor(module):
            continue
        assert module is not None
        reason = blocked.get(id(module)) or layers.why_not(module)
        if reason is None and (node.kwargs or len(node.args) != 1):
            reason = "is called with options"
        if reason is None and any(id(p) in read for p in module.parameters()):
            reason = "its weight is read elsewhere"
        if reason is not None:
            skipped[str(node.target)] = reason
            continue
        chain = _grow(trace, node, module, claimed, read, positions, roots, allowed, skipped)
        claimed.update(chain.nodes)
        chains.setdefault(id(module), []).append(chain)
    found: list[Chain] = []
    for group in chains.values():
        if len({chain.signature() for chain in group}) == 1:
            found += group
        else:
            skipped[str(group[0].anchor.target)] = "is called more than once, with different layers"
    claimed = {n for chain in found for n in chain.nodes}
    found += _norm_chains(trace, claimed, blocked.keys() | read, allowed)
    return found, list(skipped.items())


def _grow(
    trace: Trace,
    anchor: fx.Node,
    module: nn.Module,
    claimed: set[fx.Node],
    read: set[int],
    positions: dict[fx.Node, int],
    roots: dict[fx.Node, set[Any]],
    allowed: Callable[[Chain], bool] | None,
    skipped: dict[str, str],
) -> Chain:
    chain = Chain([anchor], module, [type(module).__name__])
    convolution = not isinstance(module, nn.Linear)
    passed: list[fx.Node] = []  # identities since the last node of the chain
    value = anchor
    while chain.activation is None and len(value.users) == 1:
        node = next(iter(value.users))
        follower = trace.module(node)
        if node in claimed or node.op == "output":
            break
        if follower is not None and layers.has_hooks(follower):
            break
        longer = Chain(
            [*chain.nodes, *passed, node],
            module,
            list(chain.parts),
            chain.norm,
            chain.activation,
            chain.add,
            chain.residual,
            [*chain.absorbed, node],
        )
        first = bool(node.args) and node.args[0] is value
        alone = first and len(node.args) == 1 and not node.kwargs
        if layers.is_identity(node, follower) and first:
            passed.append(node)
            value = node
            continue
        if convolution and alone and (fact := layers.norm(follower)) is not None:
            if isinstance(fact, str):
                skipped[str(node.target)] = fact
                break
            if chain.norm is not None or chain.add is not None:
                break
            if any(id(tensor) in read for tensor in fact[0][:4]):
                skipped[str(node.target)] = "its tensors are read elsewhere"
                break
            longer.norm, longer.activation = fact
            longer.parts.append(type(follower).__name__)
        elif (
            convolution
            and chain.add is None
            and (residual := layers.addend(node, value)) is not None
            and _may_move(trace, anchor, node, longer.nodes, positions, roots)
        ):
            longer.add, longer.residual = node, node.args.index(residual)
            longer.parts.append("add")
        elif first and (activation := layers.activation(node, follower)) is not None:
            longer.activation = activation
            longer.parts.append(activation[0])
        else:
            break
        if allowed is not None and not allowed(longer):
            break
        chain, value, passed = longer, node, []
    return chain


def _norm_chains(
    trace: Trace,
    claimed: set[fx.Node],
    blocked: Set[int],
    allowed: Callable[[Chain], bool] | None,
) -> list[Chain]:
    """Normalizations that stand before a ReLU, in all calls, and behind no convolution.

    ``blocked``: ids of modules, and of tensors, whose modules stay as they are.
    """
    groups: dict[int, list[Chain | None]] = {}
    for node in trace.graph.nodes:
        module = trace.module(node)
        fact = layers.norm(module)
        if not isinstance(fact, tuple):
            continue
        assert module is not None
        chain = None
        if node not in claimed and fact[1] is None and _is_unary(node) and len(node.users) == 1:
            user = next(iter(node.users))
            follower = trace.module(user)
            if (
                user.args[:1] == (node,)
                and (follower is None or not layers.has_hooks(follower))
                and layers.activation(user, follower) == ("relu", 0.01)
                and not any(id(tensor) in blocked for tensor in fact[0][:4])
            ):
                parts = [type(module).__name__, "relu"]
                chain = Chain([node, user], module, parts, *fact, absorbed=[user])
                if allowed is not None and not allowed(chain):
                    chain = None
        groups.setdefault(id(module), []).append(chain)
    return [
        chain
        for key, group in groups.items()
        if key not in blocked and None not in group
        for chain in group
        if chain is not None
    ]


def _is_unary(node: fx.Node) -> bool:
    return len(node.args) == 1 and not node.kwargs


def _roots(trace: Trace) -> dict[fx.Node, set[Any]]:
    """By node: what its memory may be part of."""
    roots: dict[fx.Node, set[Any]] = {}
    for node in trace.graph.nodes:
        if node.op == "placeholder":
            roots[node] = {"inputs"}  # the caller may pass one tensor twice
        elif layers.is_fresh(node, trace.module(node)):
            roots[node] = {node}
        else:
            roots[node] = set().union(*(roots[n] for n in node.all_input_nodes)) or {node}
    return roots


def _may_move(
    trace: Trace,
    anchor: fx.Node,
    add: fx.Node,
    members: list[fx.Node],
    positions: dict[fx.Node, int],
    roots: dict[fx.Node, set[Any]],
) -> bool:
    """Whether the anchor may run where ``add`` does: nothing in between writes to its input."""
    source = roots[anchor.args[0]] if isinstance(anchor.args[0], fx.Node) else set()
    for node, position in positions.items():
        if (
            positions[anchor] < position < positions[add]
            and node not in members
            and layers.is_in_place(node, trace.module(node))
            and any(roots[n] & source for n in node.all_input_nodes)
        ):
            return False
    return True


def channel_shuffles(trace: Trace) -> list[tuple[fx.Node, fx.Node, int]]:
    """(first, last, groups) of view, transpose, contiguous, view that shuffle channels."""
    found = []
    for last in trace.graph.nodes:
        if last.op != "call_method" or last.target not in ("view", "reshape"):
            continue
        steps = [last]
        for wanted in (("contiguous",), ("transpose",), ("view", "reshape")):
            inner = steps[-1].args[0]
            name = getattr(inner, "target", None)
            name = getattr(name, "__name__", name)
            if not isinstance(inner, fx.Node) or name not in wanted or len(inner.users) != 1:
                break
            steps.append(inner)
        else:
            _, contiguous, transpose, first = steps
            if contiguous.kwargs or transpose.args[1:] != (1, 2) or len(first.args) != 6:
                continue
            x, batch, groups, depth, *rest = first.args
            size = [(x, i) for i in range(4)]
            if (
                isinstance(groups, int)
                and [_dimension(n) for n in (batch, *rest)] == [size[0], *size[2:]]
                and depth.op == "call_function"
                and depth.target is operator.floordiv
                and depth.args[1] == groups
                and _dimension(depth.args[0]) == size[1]
                and last.args[2] in (-1, depth.args[0])
                and (last.args[1], *last.args[3:]) == (batch, *rest)
            ):
                found.append((first, last, groups))
    return found


def _dimension(node: Any) -> tuple[Any, Any] | None:
    """(x, i) if ``node`` is x.size(i), x.size()[i] or x.shape[i]."""
    if not isinstance(node, fx.Node):
        return None
    if node.target == "size" and len(node.args) == 2:
        return node.args[0], node.args[1]
    if node.target is operator.getitem:
        size: Any = node.args[0]
        index = node.args[1]
        if size.target == "size" and len(size.args) == 1:
            return size.args[0], index
        if size.target is getattr and size.args[1] == "shape":
            return size.args[0], index
    return None
