"""Brings an exported graph to a normal form, without checks, without casts that change nothing, and without dead code.

before: to_1 = to(temb, float32); add = add(to_1, table)      (temb is float32)
after:  add = add(temb, table)

Export binds a tensor that passes through a no-op cast to the newest node. Block k + 1 would then read block k's cast of
a value that all blocks share, and the blocks would be neither alike nor independent.
"""

from __future__ import annotations

import torch
from torch import fx

from mccompile.capture.dependence import flow_graph, needed_for, writes_outside
from mccompile.capture.facts import Facts, TensorFact, tensor_fact

aten = torch.ops.aten

_CASTS = frozenset(
    (
        aten.to.dtype,
        aten.to.dtype_layout,
        aten.to.device,
        aten.to.other,
        aten.type_as.default,
        aten.detach.default,
        aten.detach_.default,
        aten.alias.default,
    )
)
_CHECKS = frozenset(
    (
        aten._assert_tensor_metadata.default,
        aten._assert_async.msg,
        aten._assert_async.default,
        aten._assert_scalar.default,
        aten.sym_constrain_range_for_size.default,
        aten.sym_constrain_range.default,
    )
)


def _is_check(node: fx.Node) -> bool:
    return node.target in _CHECKS or (node.op == "call_module" and str(node.target).startswith("_guards"))


def drop_checks(module: fx.GraphModule) -> None:
    """Removes the assertions and the guard call that export inserted."""
    for node in list(module.graph.nodes):
        if _is_check(node):
            module.graph.erase_node(node)
    module.graph.lint()


def _changes_nothing(node: fx.Node, facts: Facts) -> bool:
    if node.target in (aten.dropout.default, aten.feature_dropout.default):
        return node.args[2] is False
    if node.target not in _CASTS or not isinstance(node.args[0], fx.Node):
        return False
    source, result = tensor_fact(facts, node.args[0]), tensor_fact(facts, node)
    before, after = node.args[0].meta.get("val"), node.meta.get("val")
    same_device = not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor)
    same_device = same_device or before.device == after.device
    copies = bool(node.kwargs.get("copy")) or (node.target is aten.to.dtype and len(node.args) > 3 and node.args[3])
    keeps_layout = node.kwargs.get("memory_format") in (None, torch.preserve_format)
    same = source is not None and result is not None and source.dtype == result.dtype
    return same and same_device and keeps_layout and not copies


def drop_identities(module: fx.GraphModule, facts: Facts) -> None:
    """Replaces casts to the same dtype and device, and dropout in evaluation, by their operand."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and _changes_nothing(node, facts):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)


def drop_plain_casts(module: fx.GraphModule) -> None:
    """Removes casts to the dtype and device that a tensor has, by the values that export saw.

    Export binds the tensor to the cast, so that a later block would read what an earlier one made of a shared value.
    """
    for node in [n for n in module.graph.nodes if n.target in _CASTS and isinstance(n.args[0], fx.Node)]:
        before, after = node.args[0].meta.get("val"), node.meta.get("val")
        if isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor):
            own = {n: TensorFact((), t.dtype) for n, t in ((node.args[0], before), (node, after))}
            if _changes_nothing(node, own):
                node.replace_all_uses_with(node.args[0])
                module.graph.erase_node(node)


def order(graph: fx.Graph) -> None:
    """Brings a graph into an order in which every node comes after its operands."""
    seen: set[fx.Node] = set()
    for node in list(graph.nodes):
        todo = [node]
        while todo:
            late = [used for used in todo[-1].all_input_nodes if used not in seen]
            if late:
                todo += late
                continue
            last = todo.pop()
            if last not in seen and last is not node:
                node.prepend(last)
            seen.add(last)


def drop_dead(graph: fx.Graph) -> None:
    """Removes what neither the output nor an in-place write into a live value or an operand needs."""
    flow = flow_graph(graph)
    kept = [n for n in graph.nodes if n.op in ("output", "placeholder")]
    live = needed_for(flow, [*kept, *(node for node, _ in writes_outside(flow))])
    for node in reversed(list(graph.nodes)):
        if node not in live:
            graph.erase_node(node)


def normalise(module: fx.GraphModule, facts: Facts) -> None:
    """All of the above, in order; the graph's outputs stay bit-equal. numbering.py makes the module's code anew."""
    drop_identities(module, facts)
    drop_dead(module.graph)
    module.graph.lint()
