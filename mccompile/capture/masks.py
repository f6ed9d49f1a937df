"""Makes attention masks that blocks build from shared values alone once, before the blocks, in place of once in each.

before: in every block  mask = mul(unsqueeze(seen, 2), unsqueeze(seen, 3)); sdpa(q, k, v, mask)      (seen: [B, 1, L])
after:  before the blocks  mask = ...;  in every block  sdpa(q, k, v, mask)
refuses when: the mask is one row for all queries, depends on the latent, on a weight or on something written in place

A partial run needs some rows of such a mask and all of its columns, and the two are made of one value. Of a whole mask
the rows are gathered.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from mccompile.capture.dependence import data_inputs, flow_graph, written_by
from mccompile.capture.facts import Facts, ScalarFact, tensor_fact
from mccompile.capture.rules.attention import SDPA, mask_of
from mccompile.capture.stacks import block_of


def share_masks(module: fx.GraphModule, facts: Facts, source: str) -> None:
    """Rewrites the graph. source: the latent's placeholder."""
    graph = module.graph
    found = [mask for node in graph.find_nodes(op="call_function", target=SDPA) if (mask := _built(node, facts))]
    if not found:
        return
    depends = data_inputs(graph, flow_graph(graph), facts)
    shared: dict[tuple[object, str, str], fx.Node] = {}
    for nodes in found:
        if not any(source in depends[node] for node in nodes):
            _share(nodes, shared)
    graph.lint()


def _built(attention: fx.Node, facts: Facts) -> list[fx.Node] | None:
    """The nodes of its own block that make a mask with a row for each query, in order; None where they are not all."""
    mask, block = mask_of(attention), block_of(attention)
    fact = tensor_fact(facts, mask) if mask is not None else None
    if mask is None or block is None or fact is None or len(fact.shape) < 2 or fact.shape[-2] == (1, 1):
        return None
    inside: dict[fx.Node, None] = {}
    todo = [mask]
    while todo:
        node = todo.pop()
        if node in inside or block_of(node) != block or isinstance(facts.get(node), ScalarFact):
            continue
        pure = isinstance(node.target, torch._ops.OpOverload) or node.target is operator.getitem
        if node.op != "call_function" or not pure or written_by(node):
            return None
        if any(used.op == "get_attr" for used in node.all_input_nodes) or any(map(written_by, node.users)):
            return None
        inside[node] = None
        todo += node.all_input_nodes
    return [node for node in attention.graph.nodes if node in inside] or None


def _share(nodes: list[fx.Node], shared: dict[tuple[object, str, str], fx.Node]) -> None:
    """Gives the nodes to no block; each that was met before is replaced by that one."""
    for node in nodes:
        key = node.target, repr(node.args), repr(node.kwargs)
        first = shared.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            continue
        node.meta = {**node.meta, "nn_module_stack": {}}
    for node in reversed(nodes):
        if not node.users and node not in shared.values():
            node.graph.erase_node(node)
