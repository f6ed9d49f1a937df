"""Which value depends on which: a networkx graph over fx nodes. In-place writes are edges too.

In `out = empty_like(x); out[..., ::2].copy_(a); sum(out)` no fx edge leads from `copy_` to `sum`. Every value has a
root: the storage that it may be a view of, according to the operator's schema. A read depends on all earlier writes
to the root of what it reads.
"""

from __future__ import annotations

import functools
import operator
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import networkx as nx
import torch
from torch import fx

from mccompile.capture.facts import Facts, ScalarFact

# What these return has the shape of their input but none of its data.
_SHAPE_ONLY = frozenset(
    op.default
    for op in (
        torch.ops.aten.empty_like,
        torch.ops.aten.zeros_like,
        torch.ops.aten.ones_like,
        torch.ops.aten.new_zeros,
        torch.ops.aten.new_ones,
        torch.ops.aten.new_empty,
    )
)


@dataclass(frozen=True, slots=True)
class _Aliases:
    """The arguments of an operator that its schema lets it return a view of, and those that it writes: place, name."""

    viewed: tuple[tuple[int, str], ...]
    written: tuple[tuple[int, str], ...]


@functools.cache
def _aliases(operator: torch._ops.OpOverload) -> _Aliases:
    marked = [(i, a.name, a.alias_info) for i, a in enumerate(operator._schema.arguments) if a.alias_info is not None]
    written = tuple((i, name) for i, name, info in marked if info.is_write)
    return _Aliases(tuple((i, name) for i, name, _ in marked), written)


def _operands(node: fx.Node, places: tuple[tuple[int, str], ...]) -> list[fx.Node]:
    """The values that stand in these places; lists and constants are left out."""
    found = (node.args[i] if i < len(node.args) else node.kwargs.get(name) for i, name in places)
    return [value for value in found if isinstance(value, fx.Node)]


def written_by(node: fx.Node) -> tuple[fx.Node, ...]:
    """The operands that `node` writes in place."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return ()
    return tuple(_operands(node, _aliases(node.target).written))


def _aliased(node: fx.Node) -> fx.Node | None:
    """The operand that `node` may be a view of."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        return node.args[0]
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    return next(iter(_operands(node, _aliases(node.target).viewed)), None)


def flow_graph(graph: fx.Graph, until: Collection[fx.Node] | None = None) -> nx.DiGraph:
    """Edges from every value to what reads it, and from every in-place write to each later read of its root.

    until: nodes of the graph; what stands behind the last of them is left out, as none of them depends on it.

    The node attribute `writes` holds the roots that a node writes; a write into a placeholder or an attribute
    is a result too.
    """
    flow = nx.DiGraph()
    root: dict[fx.Node, fx.Node] = {}
    writes: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    left = None if until is None else set(until)
    for node in graph.nodes if left is None or left else ():
        flow.add_node(node)
        alias = _aliased(node)
        root[node] = node if alias is None else root[alias]
        for operand in node.all_input_nodes:
            flow.add_edge(operand, node)
            if root[operand] in writes:
                flow.add_edges_from((w, node) for w in writes[root[operand]])
        for target in written_by(node):
            writes[root[target]].append(node)
            flow.nodes[node].setdefault("writes", []).append(root[target])
        if left is not None and node in left:
            left.remove(node)
            if not left:
                break
    return flow


def root_of(value: fx.Node) -> fx.Node:
    """The value whose storage this one may be a view of."""
    alias = _aliased(value)
    return value if alias is None else root_of(alias)


def writes_outside(flow: nx.DiGraph) -> list[tuple[fx.Node, fx.Node]]:
    """(node, root) of every in-place write into a placeholder or an attribute."""
    found = ((node, root) for node, roots in flow.nodes(data="writes", default=()) for root in roots)
    return [(node, root) for node, root in found if root.op in ("placeholder", "get_attr")]


def needed_for(flow: nx.DiGraph, wanted: Iterable[fx.Node]) -> set[fx.Node]:
    """`wanted` and all that they depend on, including writes into what they read."""
    found: set[fx.Node] = set()
    todo = list(wanted)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo.extend(flow.predecessors(node))
    return found


def data_inputs(graph: fx.Graph, flow: nx.DiGraph, facts: Facts) -> dict[fx.Node, frozenset[str]]:
    """For every node, the names of the placeholders on whose data it depends. A size is not data."""
    depends: dict[fx.Node, frozenset[str]] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            depends[node] = frozenset() if isinstance(facts.get(node), ScalarFact) else frozenset((node.name,))
        elif node.target is torch.ops.aten.sym_size.int or node.target in _SHAPE_ONLY:
            depends[node] = frozenset()
        else:
            read = {depends[p] for p in flow.predecessors(node) if p in depends}
            depends[node] = read.pop() if len(read) == 1 else frozenset().union(*read)
    return depends
